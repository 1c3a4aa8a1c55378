"""Sampling: equality with the slow way, frequencies, stopping, seeds, bad input."""

import pytest
import torch

from conftest import make_policy, make_ragged
from minippo.fast import compute_snapshot, free_decoders
from minippo.generation import Decoder, Sampling, generate, sample


def slow_greedy(model, query, n):
    tokens = query.clone()
    for _ in range(n):
        tokens = torch.cat([tokens, model(tokens[None])[0, -1].argmax()[None]])
    return tokens[len(query):]


def test_greedy_equals_the_loop_without_a_cache_and_ignores_neighbours(policy):
    queries = make_ragged([3, 9, 1, 5, 14])
    together = policy.generate(queries, max_new_tokens=12, do_sample=False)
    for query, response in zip(queries, together):
        assert torch.equal(response, slow_greedy(policy.transformer, query, 12))
        assert torch.equal(response, policy.generate([query], max_new_tokens=12, do_sample=False)[0])


def test_sample_by_hand():
    """p = (1/4, 1/2, 1/4), cdf = (1/4, 3/4, 1): u in [0, 1/4) gives 0, [1/4, 3/4) gives 1, [3/4, 1) gives 2."""
    logits = torch.tensor([1.0, 2.0, 1.0]).log().expand(6, 3)
    uniform = torch.tensor([[0.0], [0.2], [0.3], [0.7], [0.8], [0.999999]])
    assert sample(logits, uniform).flatten().tolist() == [0, 0, 1, 1, 2, 2]


def test_a_token_of_probability_zero_is_never_sampled():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(4, 5)
    uniform = torch.tensor([[0.0], [0.4999], [0.5001], [1 - 2**-24]])
    assert sample(logits, uniform).flatten().tolist() == [1, 1, 3, 3]


@pytest.mark.parametrize("kwargs", [{}, {"temperature": 0.5}, {"top_k": 5}, {"top_p": 0.7}])
def test_frequencies_pass_a_chi_square_test(kwargs):
    """4000 draws of the first token against the probabilities of the filtered softmax.

    Under the right distribution chi-square with k - 1 degrees of freedom exceeds k - 1 + 5 * sqrt(2 * (k - 1)) in about one of a
    hundred thousand seeds; this seed is fixed.
    """
    model = make_policy(vocab_size=11, scale=8.0).transformer
    query, draws = torch.tensor([1, 2, 3]), 4000
    responses = generate(model, [query] * draws, max_new_tokens=1, seed=0, **kwargs)
    counts = torch.bincount(torch.cat(responses), minlength=11).double()
    with torch.no_grad():
        probs = Sampling(**kwargs).filter(model(query[None])[:, -1]).softmax(-1)[0].double()
    assert counts[probs == 0].sum() == 0
    expected = probs[probs > 0] * draws
    chi_square = ((counts[probs > 0] - expected) ** 2 / expected).sum()
    freedom = len(expected) - 1
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5


def test_filters_by_hand():
    """p = (.4, .3, .2, .1). top_p .6 needs the first two (.4 < .6 <= .7); top_p .7 has enough with them; top_k 3 keeps three."""
    logits = torch.tensor([[0.2, 0.4, 0.1, 0.3]]).log()
    kept = lambda **kwargs: Sampling(**kwargs).filter(logits)[0].isfinite().tolist()
    assert kept() == [True] * 4
    assert kept(top_p=0.6) == [False, True, False, True]
    assert kept(top_p=0.3) == [False, True, False, False]
    assert kept(top_k=3) == [True, True, False, True]
    torch.testing.assert_close(Sampling(temperature=0.5).filter(logits), 2 * logits)


def test_a_response_ends_with_its_first_eos(policy):
    queries = make_ragged([4] * 40)
    free = policy.generate(queries, max_new_tokens=20, seed=3)
    stopped = policy.generate(queries, max_new_tokens=20, seed=3, eos_token_id=7)
    lengths = set()
    for long, short in zip(free, stopped):
        end = long.tolist().index(7) + 1 if 7 in long else 20
        assert torch.equal(short, long[:end])
        lengths.add(len(short))
    assert len(lengths) > 3 and max(lengths) == 20


def test_token_0_may_be_eos(policy):
    """It is also what an empty cell could hold: the responses are those of a loop that stops at a 0."""
    queries = make_ragged([3, 5, 1, 4])
    limits = [torch.tensor(12), 12, 12, 12]                                             # any whole number is a limit
    for free, ended in zip(generate(policy.transformer, queries, limits, seed=1),
                           generate(policy.transformer, queries, 12, seed=1, eos_token_id=0), strict=True):
        row = free.tolist()
        assert ended.tolist() == row[:row.index(0) + 1 if 0 in row else 12]


def test_minimum_lengths_hold_back_eos():
    """A model that always says token 2, its EOS: it stops at once, or right after the minimum.

    As in transformers EOS is held back while there are fewer tokens than the minimum: min_new_tokens=4 gives 4 others and EOS;
    with 3 query tokens min_length=5 gives 2 others and EOS.
    """
    model = make_policy(vocab_size=5)
    with torch.no_grad():
        model.transformer.wte.weight.zero_()
        model.transformer.wte.weight[2] = 1.0
        model.transformer.ln_f.weight.zero_(), model.transformer.ln_f.bias.fill_(5.0)
    query = [torch.tensor([1, 1, 1])]
    length = lambda **kwargs: len(model.generate(query, max_new_tokens=9, eos_token_id=2, seed=0, **kwargs)[0])
    assert length() == length(min_length=-1) == length(min_length=0) == length(min_length=3) == 1
    assert length(min_length=5) == 3 and length(min_new_tokens=4) == 5 and length(min_new_tokens=9) == 9


def test_each_row_has_its_own_limit_and_the_last_position_is_reachable(policy):
    queries = make_ragged([60, 3, 10])
    responses = policy.generate(queries, max_new_tokens=[4, 30, 1], seed=0)
    assert [len(r) for r in responses] == [4, 30, 1]
    alone = policy.generate(queries[:1], max_new_tokens=4, do_sample=False)[0]
    assert torch.equal(alone, slow_greedy(policy.transformer, queries[0], 4))


def test_same_seed_same_tokens_and_the_generator_moves_on(policy):
    queries = make_ragged([4, 6])
    again = lambda **kwargs: torch.cat(policy.generate(queries, max_new_tokens=10, **kwargs)).tolist()
    assert again(seed=1) == again(seed=1) != again(seed=2)
    generator = torch.Generator().manual_seed(1)
    assert again(generator=generator) == again(seed=1) != again(generator=generator)
    torch.manual_seed(5)
    first = again()
    torch.manual_seed(5)
    assert again() == first


def test_the_classic_keyword_dictionary_works(policy):
    kwargs = {"min_length": -1, "top_k": 0.0, "top_p": 1.0, "do_sample": True, "pad_token_id": 60, "max_new_tokens": 20}
    assert len(policy.generate(make_ragged([7]), **kwargs)[0]) == 20


def test_bf16_snapshot_follows_the_masters():
    model = make_policy(dtype=torch.bfloat16)
    first = compute_snapshot(model.transformer)
    assert first.h[0].mlp.c_fc.weight.dtype == torch.bfloat16 and first.wte is model.transformer.wte
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight.add_(1.0)
    second = compute_snapshot(model.transformer)
    assert second is first and torch.equal(second.h[0].mlp.c_fc.weight, model.transformer.h[0].mlp.c_fc.weight.bfloat16())
    assert compute_snapshot(make_policy().transformer).h[0].mlp.c_fc.weight.dtype == torch.float32


def test_generation_leaves_no_graph_and_no_mode_behind(policy):
    policy.train()
    responses = policy.generate(make_ragged([3]), max_new_tokens=4)
    assert policy.training and not responses[0].requires_grad
    assert not responses[0].is_inference()                       # an inference tensor could not be an index in training


@pytest.mark.parametrize("queries, kwargs, message", [
    ([], {}, "at least one"),
    ([torch.tensor([], dtype=torch.long)], {}, "non-empty"),
    ([torch.tensor([1, 61])], {}, "61 is outside the vocabulary"),
    ([torch.tensor([-1])], {}, "-1 is outside"),
    ([torch.tensor([1.5])], {}, "integers"),
    ([torch.tensor([True])], {}, "integers"),
    ([torch.tensor([[1, 2]])], {}, "1-D"),
    (torch.tensor([1, 2]), {}, "put a single sequence into a list"),
    ("This morning", {}, "list of 1-D"),
    (["This morning"], {}, "encode it first"),
    (None, {}, "list of 1-D"),
    ([torch.tensor([1])], {"temperature": 0.0}, "temperature"),
    ([torch.tensor([1])], {"temperature": float("nan")}, "temperature"),
    ([torch.tensor([1])], {"top_p": 0.0}, "top_p"),
    ([torch.tensor([1])], {"top_p": 1.1}, "top_p"),
    ([torch.tensor([1])], {"top_k": -1}, "top_k"),
    ([torch.tensor([1])], {"top_k": 2.5}, "top_k"),
    ([torch.tensor([1])], {"max_new_tokens": 0}, "max_new_tokens"),
    ([torch.tensor([1])], {"max_new_tokens": None}, "max_new_tokens must be a whole number"),
    ([torch.tensor([1])], {"temperature": None}, "one positive number"),
    ([torch.tensor([1])], {"eos_token_id": [1, 2]}, "eos_token_id, .* must be a whole number"),
    ([torch.tensor([1])], {"max_new_tokens": 64}, "64 positions"),
    ([torch.tensor([1])], {"max_new_tokens": [3, 4]}, "2 values of max_new_tokens for 1"),
    ([torch.tensor([1])], {"max_new_tokens": 3, "min_new_tokens": 4}, "minimum of 4"),
    ([torch.tensor([1])], {"eos_token_id": 61}, "eos_token_id"),
    ([torch.tensor([1])], {"seed": 1, "generator": torch.Generator()}, "not both")])
def test_bad_input_is_named_before_anything_runs(policy, monkeypatch, queries, kwargs, message):
    monkeypatch.setattr(policy.transformer, "embed", lambda *args: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match=message):
        policy.generate(queries, **kwargs)


def test_non_finite_logits_name_row_and_step(policy):
    """Token 9's embedding is NaN: only the row that holds it fails."""
    with torch.no_grad():
        policy.transformer.wpe.weight[6] = torch.nan
    with pytest.raises(FloatingPointError, match="token 3 of row 1"):
        policy.generate([torch.tensor([1]), torch.tensor([1, 2, 3, 4])], max_new_tokens=4, do_sample=False)


def test_rows_at_their_limit_are_not_waited_for(policy, monkeypatch):
    """Limits 2 and 50, and the second row has its EOS at once: one step is all that is needed."""
    decoded, step = [], Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self, model: (decoded.append(1), step(self, model)))
    first = policy.generate([torch.tensor([5, 9])], max_new_tokens=1, do_sample=False)[0].item()
    responses = policy.generate([torch.tensor([1, 2, 3]), torch.tensor([5, 9])], max_new_tokens=[2, 50], do_sample=False,
                                eos_token_id=first)
    assert [len(response) for response in responses] == [2, 1] and len(decoded) == 1
