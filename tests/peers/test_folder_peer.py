"""Model folders go both ways: ours load in transformers 4.46 and 5 without a complaint, theirs and TRL's load here."""

import os

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"              # read when transformers is imported: nothing here needs a network
pytest.importorskip("transformers", reason="needs transformers to compare with: pip install -r tests/peers/requirements.txt")

from gpt2_models import hf_gpt2  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from minippo import GPT2, GPT2Config, GPT2WithValueHead  # noqa: E402
from minippo.training.bpe import train_bpe  # noqa: E402

TEXTS = ["the cat sat on the mat, the cat sat on the hat", "naïve café: 12 + 30 = 42!", "  spaces\n\nand 日本語 🙂"]
SIZES = GPT2Config(vocab_size=267, n_positions=24, n_embd=32, n_layer=2, n_head=4, layer_norm_epsilon=0.01)
TOKENS = torch.tensor([[1, 2, 3, 4, 5, 6, 7], [260, 259, 258, 0, 9, 9, 9]])


def random_policy(config: GPT2Config) -> GPT2WithValueHead:
    """With a value head that is not zero, and no bias that is."""
    generator = torch.Generator().manual_seed(0)
    model = GPT2WithValueHead(config, generator=generator)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.2)
    return model


def load_without_complaint(folder):
    """transformers' model, after the proof that it found each tensor it wanted and no other."""
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert {kind: list(names) for kind, names in report.items() if len(names)} == {}
    assert {"missing_keys", "unexpected_keys", "mismatched_keys"} <= set(report)
    return model


def logits_of(model, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens).logits


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Our policy with a value head and a BPE tokenizer of its own, saved."""
    path = tmp_path_factory.mktemp("ours") / "model"
    random_policy(SIZES).save_pretrained(str(path), train_bpe(TEXTS, SIZES.vocab_size))
    return path


def test_transformers_loads_our_folder(folder):
    theirs = load_without_complaint(folder)
    with torch.no_grad():
        torch.testing.assert_close(logits_of(theirs), random_policy(SIZES)(TOKENS)[0], rtol=0, atol=1e-4)
    eos = train_bpe(TEXTS, SIZES.vocab_size).eos_token_id
    assert theirs.config.eos_token_id == theirs.config.bos_token_id == eos
    assert theirs.generation_config.eos_token_id == eos
    assert next(theirs.parameters()).dtype == torch.float32


def test_auto_tokenizer_is_equal(folder):
    theirs, ours = AutoTokenizer.from_pretrained(folder), train_bpe(TEXTS, SIZES.vocab_size)
    assert len(theirs) == ours.vocab_size == SIZES.vocab_size
    assert theirs.eos_token_id == ours.eos_token_id
    for text in [*TEXTS, "This morning I went to the ", "", "\t\x00 'll"]:
        assert theirs.encode(text, add_special_tokens=False) == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == ours.decode(ours.encode(text))


def test_generation_in_transformers_stops_at_our_eos(folder):
    """With nothing said about EOS, which the folder names; the first token is EOS, because the model is made to prefer it."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    eos = model.config.eos_token_id
    with torch.no_grad():
        model.transformer.ln_f.bias.copy_(10 * model.transformer.wte.weight[eos])
    prompt = TOKENS[:1, :3]
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=8, pad_token_id=0)
    assert out[0, 3:].tolist() == [eos]


def test_transformers_loads_the_language_model_alone(tmp_path):
    """GPT2.save_pretrained: no value head, no tokenizer. A vocabulary of GPT-2's size has GPT-2's EOS."""
    model = random_policy(GPT2Config(vocab_size=50257, n_positions=8, n_embd=8, n_layer=1, n_head=1)).transformer
    model.save_pretrained(str(tmp_path / "model"))
    theirs = load_without_complaint(tmp_path / "model")
    assert theirs.config.eos_token_id == theirs.generation_config.eos_token_id == 50256
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS), logits_of(theirs), rtol=0, atol=1e-4)


def test_a_folder_goes_through_transformers_and_back(folder, tmp_path):
    """Ours -> transformers -> ours: bit for bit the same weights."""
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path)
    back, ours = (GPT2.from_pretrained(str(path), device="cpu").state_dict() for path in (tmp_path, folder))
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], w) for name, w in ours.items())


def test_a_folder_in_parts_is_read(folder, tmp_path):
    """As transformers writes it where a model is larger than max_shard_size."""
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path, max_shard_size="40KB")
    assert (tmp_path / "model.safetensors.index.json").exists() and len(list(tmp_path.glob("model-*.safetensors"))) > 1
    back, ours = (GPT2.from_pretrained(str(path), device="cpu").state_dict() for path in (tmp_path, folder))
    assert back.keys() == ours.keys() and all(torch.equal(back[name], w) for name, w in ours.items())


def test_the_two_lines_that_convert_a_pickle_work(folder, tmp_path):
    """What the error says, done."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError) as caught:
        GPT2.from_pretrained(str(tmp_path), device="cpu")
    exec("\n".join(line.strip() for line in str(caught.value).splitlines()[-2:]), {})
    back, ours = (GPT2.from_pretrained(str(path), device="cpu").state_dict() for path in (tmp_path, folder))
    assert all(torch.equal(back[name], w) for name, w in ours.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_trl_folder_loads_here_with_its_value_head(dtype, tmp_path):
    """TRL keeps the value head in fp32, inside model.safetensors, whatever the type of the rest."""
    trl = pytest.importorskip("trl", reason="needs trl 0.11.4 to compare with: pip install -r tests/peers/requirements.txt")
    sizes = {"vocab_size": 261, "n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 4}
    theirs = trl.AutoModelForCausalLMWithValueHead.from_pretrained(hf_gpt2(sizes).to(dtype), summary_dropout_prob=0.0)
    theirs.save_pretrained(tmp_path)
    ours = GPT2WithValueHead.from_pretrained(str(tmp_path), device="cpu")
    with torch.no_grad():
        logits, values = ours(TOKENS)
        expected_logits, _, expected_values = theirs.float()(TOKENS)
    torch.testing.assert_close(logits, expected_logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(values, expected_values, rtol=0, atol=1e-5)
    assert expected_values.std() > 0.05
    assert torch.equal(ours.v_head.weight, theirs.v_head.summary.weight)
