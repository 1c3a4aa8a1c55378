"""GPT-2: shapes, causality, the cache, precision, the public sizes. Equality with transformers is in tests/peers."""

import pytest
import torch

from conftest import make_policy, make_ragged
from minippo.attention import KVCache
from minippo.gpt2 import GPT2, GPT2Config


def test_first_layer_by_hand():
    """One layer, one head, width 2, all block weights zero: the blocks add nothing, so hidden = ln_f(wte + wpe).

    wte[1] + wpe[0] = (3, 1) + (0, 0): mean 2, variance 1, normalised (1, -1); the logits are wte @ (1, -1).
    """
    model = GPT2(GPT2Config(vocab_size=3, n_positions=4, n_embd=2, n_layer=1, n_head=1, layer_norm_epsilon=1e-12))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.ln_f.weight.fill_(1.0)
        model.wte.weight.copy_(torch.tensor([[1.0, 0.0], [3.0, 1.0], [0.0, 5.0]]))
    torch.testing.assert_close(model(torch.tensor([[1]])), torch.tensor([[[1.0, 2.0, -5.0]]]))


def test_mlp_uses_the_tanh_gelu():
    """GPT-2's gelu(1) is 0.5 * (1 + tanh(sqrt(2 / pi) * 1.044715)) = 0.841192; the exact form gives 0.841345."""
    mlp = GPT2(GPT2Config(3, 4, 1, 1, 1)).h[0].mlp
    with torch.no_grad():
        mlp.c_fc.weight.fill_(1.0), mlp.c_fc.bias.zero_(), mlp.c_proj.weight.fill_(0.25), mlp.c_proj.bias.zero_()
    assert mlp(torch.ones(1, 1, 1)).item() == pytest.approx(0.841192, abs=2e-6)


def test_later_tokens_do_not_change_earlier_logits(policy):
    tokens = torch.stack(make_ragged([12, 12]))
    changed = tokens.clone()
    changed[:, 7:] = 3
    before, after = policy.transformer(tokens), policy.transformer(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7], atol=1e-6, rtol=0)
    assert not torch.allclose(before[:, 7:], after[:, 7:])


@pytest.mark.parametrize("n_layer, n_head, n_embd", [(1, 1, 8), (2, 4, 32), (4, 2, 128)])
def test_cached_logits_equal_the_full_forward(n_layer, n_head, n_embd):
    """Ragged queries, prefilled padded on the right, then decoded one token at a time at each row's own column."""
    model = make_policy(n_layer=n_layer, n_head=n_head, n_embd=n_embd).transformer
    sequences = make_ragged([20, 20, 20])
    starts = torch.tensor([3, 9, 1])
    cache = KVCache(model.config, 3, 32, model.device, torch.float32)
    prompts = torch.nn.utils.rnn.pad_sequence([s[:n] for s, n in zip(sequences, starts)], batch_first=True)
    with torch.no_grad():
        full = model(torch.stack(sequences))
        prefill = model.head(model.blocks(model.embed(prompts, torch.arange(prompts.shape[1])), cache.prefill()))
        for b, n in enumerate(starts):
            torch.testing.assert_close(prefill[b, :n], full[b, :n], atol=1e-5, rtol=1e-5)
        for j in range(8):
            pos = starts + j
            newest = torch.stack([s[p] for s, p in zip(sequences, pos)])[:, None]
            logits = model.head(model.blocks(model.embed(newest, pos[:, None]), cache.decode(pos)))[:, 0]
            torch.testing.assert_close(logits, full[torch.arange(3), pos], atol=1e-5, rtol=1e-5)


def test_stale_cache_columns_are_never_read(policy):
    """Columns behind input_pos may hold anything finite: a neighbour's padding, an earlier rollout's tokens."""
    model = policy.transformer
    outputs = []
    for garbage in (0.0, 1e4):
        cache = KVCache(model.config, 1, 16, model.device, torch.float32)
        for buffer in cache.keys + cache.values:
            buffer.fill_(garbage)
        with torch.no_grad():
            model.blocks(model.embed(torch.tensor([[1, 2, 3]]), torch.arange(3)), cache.prefill())
            outputs.append(model.blocks(model.embed(torch.tensor([[4]]), torch.tensor([3])), cache.decode(torch.tensor([3]))))
    assert torch.equal(*outputs)


def test_bf16_body_stays_near_fp32_and_gives_fp32_logits():
    tokens = torch.stack(make_ragged([16, 16]))
    exact, rounded = make_policy().transformer, make_policy(dtype=torch.bfloat16).transformer
    logits = rounded(tokens)
    assert logits.dtype == torch.float32 and exact.wte.weight.dtype == rounded.h[0].mlp.c_fc.weight.dtype == torch.float32
    difference = (logits.log_softmax(-1) - exact(tokens).log_softmax(-1)).abs()
    assert 0 < difference.mean() < 0.02


def test_gradient_checkpointing_changes_no_gradient(policy):
    tokens, gradients = torch.stack(make_ragged([9, 9])), []
    for policy.transformer.gradient_checkpointing in (False, True):
        policy.zero_grad()
        policy.transformer(tokens).square().mean().backward()
        gradients.append([p.grad.clone() for p in policy.transformer.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


def test_initialisation_follows_gpt2():
    model = GPT2(GPT2Config(512, 64, 128, 8, 4), generator=torch.Generator().manual_seed(0))
    assert model.wte.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.h[3].mlp.c_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)        # sqrt(2 * 8 layers) = 4
    assert model.h[0].attn.c_attn.bias.abs().max() == 0 and model.ln_f.weight.min() == 1
    again = GPT2(model.config, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))


@pytest.mark.parametrize("sizes, parameters, tensors", [
    ((768, 12, 12), 124_439_808, 148), ((1024, 24, 16), 354_823_168, 292), ((1280, 36, 20), 774_030_080, 436),
    ((1600, 48, 25), 1_557_611_200, 580), ((768, 6, 12), 81_912_576, 76)],
    ids=["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2"])
def test_public_sizes(sizes, parameters, tensors):
    """Counts of the published checkpoints, without their mask buffers: 12 tensors a block and 4 more."""
    n_embd, n_layer, n_head = sizes
    with torch.device("meta"):
        model = GPT2(GPT2Config(n_embd=n_embd, n_layer=n_layer, n_head=n_head))
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == tensors == 12 * n_layer + 4
    assert set(model.state_dict()) >= {"wte.weight", "wpe.weight", "ln_f.bias", "h.0.attn.c_attn.weight", "h.0.mlp.c_proj.bias"}


def test_state_dict_round_trip(policy):
    other = make_policy(seed=1)
    other.load_state_dict(policy.state_dict())
    tokens = torch.stack(make_ragged([5]))
    assert torch.equal(other(tokens)[0], policy(tokens)[0]) and torch.equal(other(tokens)[1], policy(tokens)[1])


@pytest.mark.parametrize("sizes, message", [
    (dict(n_embd=30, n_head=4), "not divisible"), (dict(n_layer=0), "n_layer must be a positive integer"),
    (dict(vocab_size=2.0), "vocab_size"), (dict(n_positions=True), "n_positions"), (dict(layer_norm_epsilon=0), "epsilon")])
def test_impossible_sizes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        GPT2Config(**sizes)


def test_forward_refuses_what_it_cannot_read(policy):
    with pytest.raises(ValueError, match="64 positions"):
        policy.transformer(torch.zeros(1, 65, dtype=torch.long))
    with pytest.raises(ValueError, match=r"\(B, T\)"):
        policy.transformer(torch.zeros(3, dtype=torch.long))
