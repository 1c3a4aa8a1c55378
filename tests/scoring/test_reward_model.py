"""The reward model: the read-out and the normalisation by hand, its start from a language model, its folder.

    python -m pytest tests/scoring/test_reward_model.py
"""

import contextlib
import json
import math
from dataclasses import replace

import pytest
import torch

from minippo.scoring import reward_model as module
from minippo.gpt2 import GPT2, GPT2Config
from minippo.scoring.reward_model import HEAD_FILE, RewardModel
from minippo.files.safetensors import read_safetensors, write_safetensors
from minippo.training.bpe import train_bpe
from minippo.training.reward_training import RewardModelConfig, train_on_pairs

BYTES = train_bpe([], 257)                       # no merges: a token for each byte, then EOS (256)
CONFIG = GPT2Config(vocab_size=257, n_positions=32, n_embd=16, n_layer=1, n_head=2)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fresh(config: GPT2Config = CONFIG, tokenizer=None, seed: int = 0) -> RewardModel:
    drawn = generator(seed)
    return RewardModel(GPT2(config, generator=drawn), tokenizer, drawn)


@pytest.fixture
def model() -> RewardModel:
    return fresh(tokenizer=BYTES)


def sequences(count: int = 12) -> list[torch.Tensor]:
    g = generator(1)
    return [torch.randint(257, (length % 9 + 1,), generator=g) for length in range(count)]


def state(model: RewardModel) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in model.state_dict().items()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- the read-out ---------------------------------------------------------------------------------

def test_score_is_gain_times_head_of_the_last_hidden_state_plus_bias(model):
    """By hand for one sequence: gain 2, bias 0.5."""
    model.gain.fill_(2.0)
    model.bias.fill_(0.5)
    tokens = torch.tensor([7, 1, 200])
    last = model.transformer.blocks(model.transformer.embed(tokens[None], torch.arange(3)))[0, 2]
    expected = 2.0 * (last @ model.r_head.weight[0] + model.r_head.bias[0]) + 0.5
    assert model([tokens])[0].item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_score_does_not_depend_on_neighbours_and_padding(model):
    alone = torch.cat([model([tokens]) for tokens in sequences()])
    together = model(sequences())
    assert together.shape == (12,) and together.dtype == torch.float32
    assert torch.allclose(together, alone, atol=1e-5) and together.std() > 0.1
    assert torch.allclose(model.evaluate(sequences()), alone, atol=1e-5)


def test_evaluate_keeps_the_order_over_several_batches(model, monkeypatch):
    monkeypatch.setattr(module, "SCORE_BATCH", 5)
    assert torch.allclose(model.evaluate(sequences()), model(sequences()), atol=1e-5)
    assert not model.evaluate(sequences()).requires_grad


@contextlib.contextmanager
def doubles():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("mode", [doubles, lambda: torch.device("meta"), torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)],
                         ids=["default dtype", "default device", "no_grad", "autocast"])
def test_a_callers_modes_change_no_score(mode):
    """Another part of the reward may have set them: a model made, asked and trained within is one made without."""
    pairs, results = [("ab", "c", "def"), ("", "x", "y"), ("g", "hi", "j"), ("k", "l", "mno")], []
    for context in (contextlib.nullcontext, mode):
        gpt2 = GPT2(CONFIG, generator=generator())
        with context():
            model = RewardModel.from_gpt2(gpt2, BYTES, generator())
            scores = model.score(["ab", "c", "def"], ["x", "yz", ""])
            results.append((scores, train_on_pairs(model, pairs, RewardModelConfig(batch_size=2, held_out=0.25)).loss))
    (plain, plain_loss), (within, loss) = results
    assert within == pytest.approx(plain, rel=1e-6) and loss == pytest.approx(plain_loss, rel=0.01)      # autocast acts in backward()
    assert {x.dtype for x in model.state_dict().values()} == {torch.float32} and model.gain.device.type == "cpu"


def test_the_head_begins_at_one_over_the_root_of_c_plus_1():
    """255 + 1 = 16 squared: standard deviation 1/16 (of 2550 draws from ten seeds: within 4%), bias exactly 0."""
    config = GPT2Config(vocab_size=2, n_positions=1, n_embd=255, n_layer=1, n_head=1)
    heads = [fresh(config, seed=seed).r_head for seed in range(10)]
    drawn = torch.cat([head.weight.flatten() for head in heads])
    assert drawn.std().item() == pytest.approx(1 / 16, rel=0.04) and abs(drawn.mean().item()) < 0.005
    assert all(head.bias.item() == 0 for head in heads)
    assert torch.equal(heads[3].weight, fresh(config, seed=3).r_head.weight)


@pytest.mark.parametrize("wrong, message", [
    ([torch.zeros(33, dtype=torch.long)], r"sequences\[0\] has 33 tokens, but the model has 32 positions"),
    ([torch.tensor([257])], "token id 257 is outside the vocabulary"),
    ([torch.tensor([], dtype=torch.long)], "non-empty"),
    (["text"], "is text; encode it first"),
    ([], "at least one sequence"),
])
def test_forward_refuses_what_is_no_batch_of_sequences(model, wrong, message):
    with pytest.raises(ValueError, match=message):
        model(wrong)


# --- texts ----------------------------------------------------------------------------------------

def test_score_reads_query_and_response_as_one_text(model):
    expected = model([torch.tensor(BYTES.encode("a good film")), torch.tensor(BYTES.encode("bad"))])
    scores = model.score(["a good", ""], [" film", "bad"])
    assert type(scores[0]) is float and scores == pytest.approx(expected.tolist(), abs=1e-5)
    assert model.score([], []) == []


def test_a_text_without_tokens_is_one_eos(model):
    assert model.encode("").tolist() == [256]
    assert model.score([""], [""]) == pytest.approx(model([torch.tensor([256])]).tolist())


def test_of_a_long_text_the_end_is_read(model):
    """n_positions is 32: 40 letters and the last 32 of them score alike, and so does no other cut."""
    text = "".join(chr(97 + i % 26) for i in range(40))
    full, end, start = model.score(["", "", ""], [text, text[-32:], text[:32]])
    assert full == pytest.approx(end) and full != pytest.approx(start, abs=1e-3)
    assert model.encode(text, 3).tolist() == BYTES.encode(text[-3:])
    assert len(model.encode(text, 100)) == 32


def test_score_takes_lists_of_texts_and_no_text(model):
    """It would score the letters."""
    for pair in (("abc", "def"), (["a", "b"], "cd")):
        with pytest.raises(ValueError, match="expected lists of texts, got one text"):
            model.score(*pair)


def test_score_names_what_is_missing(model):
    with pytest.raises(ValueError, match="2 queries and 1 responses"):
        model.score(["a", "b"], ["c"])
    with pytest.raises(ValueError, match="no tokenizer"):
        fresh().score(["a"], ["b"])


# --- normalisation --------------------------------------------------------------------------------

def test_normalize_gives_mean_0_and_standard_deviation_1_and_keeps_the_order(model):
    before = model.evaluate(sequences())
    model.normalize(sequences())
    after = model.evaluate(sequences())
    assert after.mean().item() == pytest.approx(0, abs=1e-5)
    assert after.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert before.argsort().tolist() == after.argsort().tolist()


def test_normalize_by_hand_whatever_gain_and_bias_were(model, monkeypatch):
    """Head outputs 1 3 5 7 have mean 4 and standard deviation sqrt(5): gain 1/sqrt(5), bias -4/sqrt(5). Twice the same."""
    raw = torch.tensor([1.0, 3.0, 5.0, 7.0])
    monkeypatch.setattr(RewardModel, "evaluate", lambda self, _: self.gain * raw + self.bias)
    for gain, bias in ((1.0, 0.0), (10.0, -3.0)):
        model.gain.fill_(gain)
        model.bias.fill_(bias)
        model.normalize(raw)
        assert model.gain.item() == pytest.approx(1 / math.sqrt(5)) and model.bias.item() == pytest.approx(-4 / math.sqrt(5))


def test_a_constant_gets_gain_1(model):
    """One text has no spread: its score becomes 0, and no other score becomes huge or NaN."""
    spread = model.evaluate(sequences()).std().item()
    model.normalize(sequences()[:1] * 3)
    assert model.gain.item() == 1
    assert model.evaluate(sequences()[:1]).item() == pytest.approx(0, abs=1e-6)
    assert model.evaluate(sequences()).std().item() == pytest.approx(spread, rel=1e-4)


def test_rounding_is_no_spread(model, monkeypatch):
    """100 and the next number of fp32 differ by 7.6e-6: the same score, not one of standard deviation 3.8e-6."""
    raw = torch.tensor([100.0, 100.0]).nextafter(torch.tensor([100.0, 101.0]))
    monkeypatch.setattr(RewardModel, "evaluate", lambda self, _: raw)
    model.normalize(raw)
    assert model.gain.item() == 1 and model.bias.item() == pytest.approx(-100)


def test_normalize_refuses_nan_and_no_samples_and_changes_nothing(model):
    model.normalize(sequences())
    gain, bias = model.gain.item(), model.bias.item()
    with pytest.raises(ValueError, match="got none"):
        model.normalize([])
    model.r_head.weight.data[0, 0] = math.nan
    with pytest.raises(FloatingPointError, match="nan"):
        model.normalize(sequences())
    assert (model.gain.item(), model.bias.item()) == (gain, bias)


# --- starting from a language model ---------------------------------------------------------------

def test_from_gpt2_draws_the_head_from_the_generator():
    heads = [RewardModel.from_gpt2(GPT2(CONFIG), BYTES, generator(seed)).r_head.weight for seed in (5, 5, 6)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


# --- the folder -----------------------------------------------------------------------------------

def test_a_saved_model_comes_back_bit_for_bit(model, tmp_path):
    model.normalize(sequences())
    model.save_pretrained(tmp_path / "rm")
    loaded = RewardModel.from_pretrained(tmp_path / "rm", device="cpu")
    assert same(state(loaded), state(model)) and loaded.gain != 1
    queries, responses = ["a", "bb", ""], [" film", "", ""]
    assert loaded.score(queries, responses) == model.score(queries, responses)


def test_the_folder_holds_what_the_design_says(model, tmp_path):
    model.save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors", HEAD_FILE, "vocab.json", "merges.txt",
                     "tokenizer_config.json", "README.md"}
    shapes = {name: tuple(x.shape) for name, x in read_safetensors(tmp_path / HEAD_FILE).items()}
    assert shapes == {"r_head.weight": (1, 16), "r_head.bias": (1,), "gain": (), "bias": ()}
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == 256
    assert "`reward_head.safetensors`: of a reward model" in (tmp_path / "README.md").read_text()


def test_saving_again_keeps_a_readme_and_foreign_files(model, tmp_path):
    for name in ("README.md", "notes.txt"):
        (tmp_path / name).write_text("mine")
    model.save_pretrained(tmp_path)
    model.gain.fill_(3.0)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == (tmp_path / "notes.txt").read_text() == "mine"
    assert RewardModel.from_pretrained(tmp_path, device="cpu").gain == 3


def test_a_folder_without_a_tokenizer_scores_tokens_only(model, tmp_path):
    model.tokenizer = None
    model.save_pretrained(tmp_path)
    loaded = RewardModel.from_pretrained(tmp_path, device="cpu")
    assert torch.equal(loaded(sequences()), model(sequences()))
    with pytest.raises(ValueError, match="no tokenizer"):
        loaded.score(["a"], ["b"])


def test_a_language_model_or_no_folder_is_no_reward_model(tmp_path):
    GPT2(CONFIG).save_pretrained(str(tmp_path / "lm"))
    for folder in ("lm", "nothing"):
        with pytest.raises(FileNotFoundError, match=f"{folder} is no reward model: it has no {HEAD_FILE}"):
            RewardModel.from_pretrained(tmp_path / folder)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(model, tmp_path):
    """257 tokens; a padded vocabulary, here 300, is right."""
    small, padded = (fresh(replace(CONFIG, vocab_size=n)) for n in (256, 300))
    for reward_model in (small, padded):
        reward_model.save_pretrained(tmp_path / str(reward_model.config.vocab_size), BYTES)
    with pytest.raises(ValueError, match="the tokenizer has 257 tokens, the reward model 256"):
        RewardModel.from_pretrained(tmp_path / "256", device="cpu")
    with pytest.raises(ValueError, match="the tokenizer has 257 tokens, the reward model 256"):
        RewardModel.from_gpt2(small.transformer, BYTES)
    RewardModel.from_pretrained(tmp_path / "300", device="cpu")


@pytest.mark.parametrize("name, tensor, message", [
    ("gain", None, r"gain: expected a tensor of shape \(\), got nothing"),
    ("r_head.weight", torch.zeros(1, 17), r"r_head.weight: expected a tensor of shape \(1, 16\), got \(1, 17\)"),
    ("extra", torch.zeros(2), r"extra: expected a tensor of shape nothing, got \(2,\)"),
    ("bias", torch.tensor(math.nan), "bias holds NaN or infinity"),
    ("gain", torch.tensor(1), "gain is torch.int64"),
])
def test_a_damaged_head_is_named(model, tmp_path, name, tensor, message):
    model.save_pretrained(tmp_path)
    head = read_safetensors(tmp_path / HEAD_FILE)
    head[name] = tensor
    write_safetensors(tmp_path / HEAD_FILE, {key: x for key, x in head.items() if x is not None})
    with pytest.raises(ValueError, match=message):
        RewardModel.from_pretrained(tmp_path, device="cpu")
