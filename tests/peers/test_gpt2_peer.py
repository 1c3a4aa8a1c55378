"""GPT-2 by hand against transformers' GPT2LMHeadModel: logits and gradients, from the files that transformers writes."""

import pytest
import torch

pytest.importorskip("transformers", reason="needs transformers to compare with: pip install -r tests/peers/requirements.txt")

from gpt2_models import hf_gpt2, to_hf  # noqa: E402

from minippo import GPT2  # noqa: E402

SHAPES = {                                      # layers 1 to 4, head sizes 8 to 64, odd vocabularies
    "1 layer": {"vocab_size": 37, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 1},
    "2 layers": {"vocab_size": 101, "n_positions": 33, "n_embd": 32, "n_layer": 2, "n_head": 2},
    "3 layers": {"vocab_size": 257, "n_positions": 50, "n_embd": 96, "n_layer": 3, "n_head": 4},
    "4 layers": {"vocab_size": 509, "n_positions": 64, "n_embd": 128, "n_layer": 4, "n_head": 2},
}


@pytest.fixture(params=SHAPES)
def sizes(request):
    return SHAPES[request.param]


def random_tokens(sizes: dict, seed: int = 1) -> torch.Tensor:
    """Three sequences that fill all positions."""
    return torch.randint(sizes["vocab_size"], (3, sizes["n_positions"]), generator=torch.Generator().manual_seed(seed))


def test_logits_are_equal(sizes, tmp_path):
    theirs = hf_gpt2(sizes)
    theirs.save_pretrained(tmp_path)
    ours = GPT2.from_pretrained(str(tmp_path), device="cpu")
    tokens = random_tokens(sizes)
    with torch.no_grad():
        logits, expected = ours(tokens), theirs(tokens).logits
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.5                 # of a size that makes 1e-4 mean something


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_are_equal_from_half_precision_files(sizes, dtype, tmp_path):
    """A file in half precision becomes fp32 weights: the same as transformers after its own rounding."""
    theirs = hf_gpt2(sizes).to(dtype)
    theirs.save_pretrained(tmp_path)
    ours = GPT2.from_pretrained(str(tmp_path), device="cpu")
    tokens = random_tokens(sizes)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs.float()(tokens).logits, rtol=0, atol=1e-4)


def test_gradients_are_equal(sizes, tmp_path):
    """Those of the next-token loss: each to 1e-4 of the largest in its tensor, or to 1e-6 where all are (nearly) zero."""
    theirs = hf_gpt2(sizes)
    theirs.save_pretrained(tmp_path)
    ours = GPT2.from_pretrained(str(tmp_path), device="cpu")
    tokens = random_tokens(sizes)
    for logits in (ours(tokens), theirs(tokens).logits):
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    gradients = to_hf({f"transformer.{name}": p.grad for name, p in ours.named_parameters()})
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        scale = max(float(expected[name].abs().max()), 1e-2)
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-4 * scale, msg=lambda m: f"{name}: {m}")
