"""The fast ways equal the plain ones: oneDNN's products, skipped padding, a gradient by hand."""

import math

import pytest
import torch

from conftest import make_ragged
from minippo import fast
from minippo import policy as policy_module
from minippo.attention import hidden_states
from minippo.fast import TokenLogprobs
from minippo.policy import response_logprobs, token_logprobs
from minippo.ppo import PPOConfig, PPOTrainer


@pytest.mark.skipif(fast.ONEDNN_WEIGHTS == float("inf"), reason="needs a torch with oneDNN")
@pytest.mark.parametrize("rows", [(1,), (2,), (3, 5), (0,)])
def test_large_products_through_onednn_equal_the_plain_ones(rows, monkeypatch):
    """Values and all three gradients; fp32 sums of 512 terms in another order."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in ((*rows, 512), (1024, 512), (1024,)))
    leaves = [tensor.requires_grad_() for tensor in (x, weight.div_(512**0.5), bias)]                        # results near 1
    upstream = torch.randn(*rows, 1024, generator=generator)
    results, plain, calls = [], torch.nn.functional.linear, []
    monkeypatch.setattr(fast.F, "linear", lambda *args: calls.append("plain") or plain(*args))
    for limit in (weight.numel(), weight.numel() + 1):
        monkeypatch.setattr(fast, "ONEDNN_WEIGHTS", limit)
        y, head = fast.linear(x, weight, bias), fast.linear(x, weight)
        frozen = fast.linear(x, weight.detach(), bias.detach())
        with torch.no_grad():
            sampled = fast.linear(x, weight, bias)
        assert torch.equal(sampled, y)                                        # the first ratio of a step is 1 to the last bit
        assert calls == ([] if limit == weight.numel() and x.numel() else 4 * ["plain"])
        calls.clear()
        results.append((y.detach(), *torch.autograd.grad(y, leaves, upstream), *torch.autograd.grad(head, leaves[:2], upstream),
                        *torch.autograd.grad(frozen, x, upstream)))
    torch.testing.assert_close(*results, atol=2e-5, rtol=1e-5)
    assert fast.linear(x.double(), weight.double()).dtype == torch.float64    # whatever oneDNN lacks goes the plain way


@pytest.mark.parametrize("checkpointing", [False, True])
def test_skipped_padding_changes_nothing_else(policy, checkpointing):
    """Real tokens and gradients as if the padding had been computed; 0 where it was not."""
    model, index = policy.transformer, torch.tensor([0, 1, 2, 6, 7, 8, 9, 10, 11, 12])      # rows of 3, 6 and 1 tokens, T = 6
    tokens = torch.stack(make_ragged([6, 6, 6]))
    model.gradient_checkpointing, results = checkpointing, []
    for real_index in (torch.arange(18), index):
        hidden = hidden_states(model, tokens, real_index).flatten(0, 1)
        model.zero_grad()
        hidden[index].square().sum().backward()
        results.append((hidden[index].detach(), *(parameter.grad.clone() for parameter in model.parameters())))
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-5)
    padding = torch.ones(18, dtype=torch.bool).index_fill(0, index, False)
    assert not hidden[padding].any()
    model.skip_padding = False
    assert hidden_states(model, tokens, index).flatten(0, 1)[padding].all()


def test_gradient_of_logprobs_by_hand():
    """Logits 0, 0, log 2: probabilities 1/4, 1/4, 1/2; the gradient at target 2 is (-1/4, -1/4, 1 - 1/2). And by differences."""
    logits = torch.tensor([[0.0, 0.0, math.log(2)]], dtype=torch.float64, requires_grad=True)
    logprobs, entropy, _ = TokenLogprobs.apply(logits, torch.tensor([2]))
    assert logprobs.item() == pytest.approx(-math.log(2)) and entropy.item() == pytest.approx(1.5 * math.log(2))
    (3 * logprobs).sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.75, -0.75, 1.5]], dtype=torch.float64))
    assert not entropy.requires_grad
    logits = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets = torch.tensor([0, 6, 3, 3, 1])
    assert torch.autograd.gradcheck(lambda x: TokenLogprobs.apply(x, targets)[0], logits)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_without_a_trained_entropy_equal_those_with_one(policy, temperature):
    """The short way and the plain one of token_logprobs: values, entropies and gradients."""
    hidden = torch.randn(6, policy.config.n_embd, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets = torch.tensor([1, 2, 3, 1, 0, 5])
    results = []
    for entropy_grad in (False, True):
        logprobs, entropy = token_logprobs(policy.transformer, hidden, targets, temperature, entropy_grad)
        assert entropy.requires_grad == entropy_grad
        gradients = torch.autograd.grad(logprobs.square().sum(), (hidden, policy.transformer.wte.weight))
        results.append((logprobs.detach(), entropy.detach(), *gradients))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk", [2**28, 20])
def test_scoring_has_the_gradients_of_the_plain_forward_pass(policy, monkeypatch, chunk):
    """response_logprobs against GPT2.forward; the head in one piece and in many."""
    monkeypatch.setattr(policy_module, "CHUNK_LOGITS", chunk)
    query, response, results = torch.tensor([3, 1, 3]), torch.tensor([1, 4, 1, 3]), []
    logprobs, _, _ = response_logprobs(policy, [query], [response])
    logits = policy.transformer(torch.cat([query, response])[None, :-1])[0, 2:]
    plain = logits.log_softmax(-1).gather(-1, response[:, None]).T
    for values in (logprobs, plain):
        results.append((values, *torch.autograd.grad(values.square().sum(), list(policy.transformer.parameters()))))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)


def test_padding_is_skipped_where_there_is_some(policy, monkeypatch):
    """Ragged pairs: the blocks see the real tokens alone; pairs of one length go as they are; skip_padding off: all as they are."""
    seen = []
    monkeypatch.setattr(policy.transformer.h[0].mlp.c_fc, "forward", lambda x, plain=policy.transformer.h[0].mlp.c_fc.forward:
                        seen.append(tuple(x.shape[:-1])) or plain(x))
    ragged, even = (make_ragged([3, 9, 5]), make_ragged([4, 2, 6])), (make_ragged([3, 3]), make_ragged([4, 4]))
    short = response_logprobs(policy, *ragged)
    response_logprobs(policy, *even)
    policy.transformer.skip_padding = False
    torch.testing.assert_close(short, response_logprobs(policy, *ragged), atol=1e-5, rtol=1e-5)
    assert seen == [(6 + 10 + 10,), (2, 6), (3, 10)]


def test_compiled_blocks_may_meet_many_shapes(policy):
    """All blocks share torch's limit of 8 shapes, which ragged batches pass; nothing compiles before a block is called."""
    with torch._dynamo.config.patch(recompile_limit=8):
        trainer = PPOTrainer(PPOConfig(compile=True), policy)
        assert torch._dynamo.config.recompile_limit == 64 and not policy.transformer.skip_padding
    assert all(block._compiled_call_impl is not None for model in (policy, trainer.ref_model) for block in model.transformer.h)
