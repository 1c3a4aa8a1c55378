"""Generation against transformers' `generate`: greedy continuations, and what top-k and top-p leave of a distribution."""

import pytest
import torch

pytest.importorskip("transformers", reason="needs transformers to compare with: pip install -r tests/peers/requirements.txt")

from gpt2_models import from_hf, hf_gpt2  # noqa: E402
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper  # noqa: E402

from minippo import GPT2Config, GPT2WithValueHead  # noqa: E402
from minippo.generation import Sampling  # noqa: E402

SIZES = {"vocab_size": 53, "n_positions": 48, "n_embd": 32, "n_layer": 2, "n_head": 4}
NEW = 24


@pytest.fixture(scope="module")
def models():
    """The same random weights, large enough that greedy texts do not just repeat one token."""
    theirs = hf_gpt2(SIZES, seed=3)
    ours = GPT2WithValueHead(GPT2Config(**SIZES))
    ours.load_state_dict(from_hf(theirs.state_dict()), strict=False)
    return ours, theirs


def ragged_queries(seed: int = 0, n: int = 12) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 20, (n,), generator=generator).tolist()
    return [torch.randint(SIZES["vocab_size"], (length,), generator=generator) for length in lengths]


def hf_greedy(model, queries: list[torch.Tensor], eos: int | None = None, **kwargs) -> list[list[int]]:
    """Greedy responses by transformers: padded on the left, with an attention mask, cut behind the first EOS."""
    longest = max(len(query) for query in queries)
    tokens = torch.stack([torch.nn.functional.pad(query, (longest - len(query), 0)) for query in queries])
    mask = torch.stack([torch.nn.functional.pad(torch.ones_like(query), (longest - len(query), 0)) for query in queries])
    rows = model.generate(tokens, attention_mask=mask, do_sample=False, max_new_tokens=NEW, eos_token_id=eos, pad_token_id=0,
                          **kwargs)[:, longest:].tolist()
    return [row[:row.index(eos) + 1] if eos in row else row for row in rows]


def ours_greedy(model, queries: list[torch.Tensor], eos: int | None = None, **kwargs) -> list[list[int]]:
    return [r.tolist() for r in model.generate(queries, do_sample=False, max_new_tokens=NEW, eos_token_id=eos, **kwargs)]


def test_greedy_responses_to_ragged_queries_are_equal(models):
    ours, theirs = models
    queries = ragged_queries()
    responses = ours_greedy(ours, queries)
    assert responses == hf_greedy(theirs, queries)
    assert len({token for response in responses for token in response}) > 10            # not one token over and over


def test_greedy_responses_end_at_the_same_eos(models):
    """Every token that occurs in the free responses takes its turn as EOS."""
    ours, theirs = models
    queries = ragged_queries()
    for eos in sorted({token for response in ours_greedy(ours, queries) for token in response})[:12]:
        assert ours_greedy(ours, queries, eos) == hf_greedy(theirs, queries, eos)


def test_minimum_lengths_hold_back_eos_alike(models):
    """One row at a time: transformers counts a row's padding into min_length. The minimum is shorter, equal and longer."""
    ours, theirs = models
    later = 0
    for query in ragged_queries()[:4]:
        eos = ours_greedy(ours, [query])[0][2]
        free = ours_greedy(ours, [query], eos)
        for n in (1, 3, 4, NEW):
            responses = ours_greedy(ours, [query], eos, min_new_tokens=n)
            assert responses == hf_greedy(theirs, [query], eos, min_new_tokens=n)
            assert responses == ours_greedy(ours, [query], eos, min_length=len(query) + n)
            assert responses == hf_greedy(theirs, [query], eos, min_length=len(query) + n)
            later += responses != free
    assert later > 4


@pytest.mark.parametrize("temperature, top_k, top_p", [
    (1.0, 1, 1.0), (1.0, 5, 1.0), (1.0, 1000, 1.0), (1.0, 0, 0.9), (1.0, 0, 0.3), (1.0, 0, 0.01), (0.7, 0, 1.0),
    (0.5, 10, 0.8), (2.0, 40, 0.95)])
def test_filtered_distributions_are_equal(temperature, top_k, top_p):
    """In transformers' order: temperature, then top-k, then top-p on what top-k has left."""
    logits = 3 * torch.randn(64, 101, generator=torch.Generator().manual_seed(0))
    expected = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    filtered = Sampling(temperature=temperature, top_k=top_k, top_p=top_p).filter(logits.clone())
    assert torch.equal(filtered.isinf(), expected.isinf())
    torch.testing.assert_close(filtered.softmax(-1), expected.softmax(-1), rtol=0, atol=1e-6)
    assert bool(filtered.isinf().any()) == (0 < top_k < 101 or top_p < 1)


def test_top_k_keeps_equal_logits_alike():
    """Three tokens share the second place: top_k=2 keeps all four in both."""
    logits = torch.tensor([[3.0, 1.0, 2.0, 2.0, 2.0, 0.0]])
    expected = TopKLogitsWarper(2)(None, logits)
    assert Sampling(top_k=2).filter(logits.clone()).tolist() == expected.tolist()
    assert expected.isfinite().sum() == 4
