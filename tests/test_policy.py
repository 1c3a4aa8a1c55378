"""The alignment rule, the value head, the reference copy, scoring in chunks."""

import pytest
import torch

from conftest import make_policy, make_ragged
from minippo import policy as policy_module
from minippo.policy import align, create_reference_model, evaluate_responses, response_kl, response_logprobs


def slow_scores(model, query, response, temperature=1.0):
    """One sequence, the full logits of every position, and the shift by one written out."""
    logits, values = model(torch.cat([query, response])[None])
    logprobs = (logits[0] / temperature).log_softmax(-1)
    positions = range(len(query) - 1, len(query) + len(response) - 1)
    return (torch.stack([logprobs[p, token] for p, token in zip(positions, response)]),
            torch.stack([values[0, p] for p in positions]))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_ragged_scores_equal_one_sequence_at_a_time(policy, temperature):
    queries, responses = make_ragged([3, 9, 1, 5]), make_ragged([4, 1, 7, 7], seed=1)
    logprobs, values, mask = response_logprobs(policy, queries, responses, temperature)
    assert mask.sum(1).tolist() == [4, 1, 7, 7] and logprobs.shape == values.shape == mask.shape == (4, 7)
    for b, (query, response) in enumerate(zip(queries, responses)):
        slow_logprobs, slow_values = slow_scores(policy, query, response, temperature)
        torch.testing.assert_close(logprobs[b, :len(response)], slow_logprobs, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(values[b, :len(response)], slow_values, atol=1e-5, rtol=1e-5)
        assert logprobs[b, len(response):].abs().sum() == values[b, len(response):].abs().sum() == 0


def test_alignment_by_hand():
    """Query a b c, response x y z: read at positions 2, 3, 4; z itself is not fed. Second row: query 1, response 1 token."""
    aligned = align([torch.tensor([1, 2, 3]), torch.tensor([4])], [torch.tensor([5, 6, 7]), torch.tensor([8])], torch.device("cpu"))
    assert aligned.tokens.tolist() == [[1, 2, 3, 5, 6], [4, 0, 0, 0, 0]]
    assert aligned.positions.tolist() == [2, 3, 4, 5] and aligned.targets.tolist() == [5, 6, 7, 8]
    assert aligned.mask.tolist() == [[True] * 3, [True, False, False]] and aligned.response_index.tolist() == [0, 1, 2, 3]


def test_uniform_logits_give_minus_log_v_and_entropy_log_v(policy):
    with torch.no_grad():
        policy.transformer.wte.weight.zero_()
    out = evaluate_responses(policy, align(make_ragged([2]), make_ragged([3]), policy.device))
    torch.testing.assert_close(out.logprobs, torch.full((1, 3), -torch.tensor(61.0).log()))
    torch.testing.assert_close(out.entropy, torch.full((1, 3), torch.tensor(61.0).log()))


def test_eos_inside_a_query_is_an_ordinary_token(policy):
    """Padding is known from lengths; token 0, the pad value, may stand anywhere."""
    queries, responses = [torch.tensor([0, 0, 5])], [torch.tensor([0, 7, 0])]
    logprobs, _, mask = response_logprobs(policy, queries, responses)
    slow, _ = slow_scores(policy, queries[0], responses[0])
    assert mask.all()
    torch.testing.assert_close(logprobs[0], slow, atol=1e-5, rtol=1e-5)


def test_permuting_the_batch_permutes_the_result(policy):
    queries, responses, order = make_ragged([3, 9, 1]), make_ragged([4, 2, 7], seed=1), [2, 0, 1]
    plain, _, _ = response_logprobs(policy, queries, responses)
    moved, _, _ = response_logprobs(policy, [queries[i] for i in order], [responses[i] for i in order])
    torch.testing.assert_close(moved, plain[order], atol=1e-6, rtol=1e-5)


def test_chunked_head_equals_the_whole_one(policy, monkeypatch):
    queries, responses = make_ragged([3, 9, 1, 5]), make_ragged([4, 1, 7, 7], seed=1)
    results = []
    for limit in (2**28, 61 * 3):                                # all at once; three tokens at a time
        monkeypatch.setattr(policy_module, "CHUNK_LOGITS", limit)
        policy.zero_grad()
        out = evaluate_responses(policy, align(queries, responses, policy.device), entropy_grad=True)
        (out.logprobs.sum() + out.values.square().sum() + out.entropy.sum()).backward()
        results.append([*out, *(p.grad.clone() for p in policy.parameters())])
    for whole, chunked in zip(*results):
        torch.testing.assert_close(whole, chunked, atol=1e-5, rtol=1e-4)


def test_sampled_logprobs_are_the_scored_ones():
    """What is scored is what was sampled: temperature .5 turns up in both."""
    model = make_policy(vocab_size=5, scale=8.0)
    query, draws = torch.tensor([1, 2]), 3000
    responses = model.generate([query] * draws, max_new_tokens=1, temperature=0.5, seed=0)
    counts = torch.bincount(torch.cat(responses), minlength=5) / draws
    candidates = [torch.tensor([token]) for token in range(5)]
    logprobs, _, _ = response_logprobs(model, [query] * 5, candidates, temperature=0.5)
    torch.testing.assert_close(counts, logprobs[:, 0].exp().detach(), atol=0.04, rtol=0)


def test_value_head_starts_at_zero():
    model = policy_module.GPT2WithValueHead(make_policy().config)
    logits, values = model(torch.stack(make_ragged([5])))
    assert logits.shape == (1, 5, 61) and values.shape == (1, 5) and values.abs().max() == 0


def test_reference_is_a_frozen_copy_with_its_own_memory(policy):
    reference = create_reference_model(policy)
    assert not any(p.requires_grad for p in reference.parameters()) and not reference.training
    theirs = {p.data_ptr() for p in reference.parameters()}
    assert not theirs & {p.data_ptr() for p in policy.parameters()}
    before = [p.clone() for p in reference.parameters()]
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, reference.parameters()))


def test_bf16_reference_holds_bf16_blocks_and_gives_the_same_numbers():
    model = make_policy(dtype=torch.bfloat16)
    reference = create_reference_model(model)
    queries, responses = make_ragged([3, 5]), make_ragged([4, 2], seed=1)
    assert reference.transformer.h[0].mlp.c_fc.weight.dtype == torch.bfloat16
    assert reference.transformer.wte.weight.dtype == torch.float32
    assert torch.equal(*(response_logprobs(m, queries, responses)[0] for m in (model, reference)))


def test_exact_kl_equals_the_sum_over_the_vocabulary(policy):
    other = make_policy(seed=5)
    queries, responses = make_ragged([3, 5]), make_ragged([4, 2], seed=1)
    aligned = align(queries, responses, policy.device)
    kl = response_kl(policy, other, aligned)
    for b, (query, response) in enumerate(zip(queries, responses)):
        tokens = torch.cat([query, response])[None]
        log_p, log_q = (m(tokens)[0][0].log_softmax(-1) for m in (policy, other))
        full = (log_p.exp() * (log_p - log_q)).sum(-1)[len(query) - 1:-1]
        torch.testing.assert_close(kl[b, :len(response)], full, atol=1e-5, rtol=1e-4)
    assert kl.min() >= 0 and response_kl(policy, create_reference_model(policy), aligned).abs().max() == 0


@pytest.mark.parametrize("queries, responses, message", [
    ([[1]], [[1], [2]], "1 queries and 2 responses"), ([[1]], [[]], r"responses\[0\].*non-empty"),
    ([[]], [[1]], r"queries\[0\].*non-empty"), ([[1] * 40], [[1] * 25], "64 positions"), ([[1]], [[99]], "99 is outside")])
def test_bad_pairs_are_named(policy, queries, responses, message):
    with pytest.raises(ValueError, match=message):
        response_logprobs(policy, queries, responses)
