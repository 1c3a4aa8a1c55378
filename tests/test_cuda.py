"""The same promises on a GPU; where there is none, on tests/fakecuda.py."""

import os

import pytest
import torch

from conftest import make_policy, make_ragged
from fakecuda import FakeCuda
from minippo import attention, check
from minippo.fast import _decoders
from minippo.policy import create_reference_model, response_logprobs
from minippo.ppo import PPOConfig, PPOTrainer

pytestmark = pytest.mark.usefixtures("gpu")
QUERIES = make_ragged([3, 9, 1, 5])


def on_gpu(**kwargs):
    return make_policy(**kwargs).to("cuda")


def test_same_seed_same_tokens_as_on_the_cpu_in_fp32():
    for kwargs in ({"do_sample": False}, {"seed": 1}, {"seed": 1, "top_k": 5, "temperature": 0.8}, {"seed": 1, "eos_token_id": 7}):
        here = make_policy(dtype=torch.float32).generate(QUERIES, max_new_tokens=20, **kwargs)
        there = on_gpu(dtype=torch.float32).generate(QUERIES, max_new_tokens=20, **kwargs)
        assert all(torch.equal(a, b.cpu()) for a, b in zip(here, there, strict=True))


def test_the_graph_follows_the_weights_and_is_reused():
    """Recorded once; after the masters change in place the replayed steps use the new weights."""
    model = on_gpu()
    first = model.generate(QUERIES, max_new_tokens=12, do_sample=False)
    decoder = next(iter(_decoders[model.transformer].values()))
    assert all(torch.equal(a, b) for a, b in zip(first, model.generate(QUERIES, max_new_tokens=12, do_sample=False)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).to("cuda"))
    moved = model.generate(QUERIES, max_new_tokens=12, do_sample=False)
    assert next(iter(_decoders[model.transformer].values())) is decoder
    fresh = make_policy().to("cuda")
    fresh.load_state_dict(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(moved, fresh.generate(QUERIES, max_new_tokens=12, do_sample=False)))
    assert not all(torch.equal(a, b) for a, b in zip(first, moved))


def test_what_lies_in_a_kept_cache_does_not_matter():
    """An overflow behind a row's end leaves NaN there, which would survive the mask: 0 * nan is nan."""
    model = on_gpu()
    first = model.generate(QUERIES, max_new_tokens=12, seed=0)
    cache = next(iter(_decoders[model.transformer].values())).cache
    for x in [*cache.keys, *cache.values]:
        x.fill_(torch.nan)
    assert all(torch.equal(a, b) for a, b in zip(first, model.generate(QUERIES, max_new_tokens=12, seed=0), strict=True))


def test_the_latest_used_decoders_are_kept():
    """Of three shapes in the order A B A C, A and C."""
    model, decoders = on_gpu(), []
    for new in (8, 20, 8, 36):
        model.generate(QUERIES, max_new_tokens=new, seed=0)
        decoders.append(list(_decoders[model.transformer].values())[-1])
    assert decoders[2] is decoders[0] and list(_decoders[model.transformer].values()) == decoders[2:]


def test_a_hook_is_called_though_a_graph_is_kept():
    model, calls = on_gpu(), []
    first = model.generate(QUERIES, max_new_tokens=12, do_sample=False)
    handle = model.transformer.h[0].register_forward_hook(lambda *_: calls.append(1))
    hooked = model.generate(QUERIES, max_new_tokens=12, do_sample=False)
    assert len(calls) == 12 and all(torch.equal(a, b) for a, b in zip(first, hooked, strict=True))
    handle.remove()
    model.generate(QUERIES, max_new_tokens=12, do_sample=False)
    assert len(calls) == 12


def test_switches_of_a_step_are_as_before_afterwards(monkeypatch):
    """No cuDNN attention, whose plans differ with and without gradients, and TF32 for the head: in sampling and in the step."""
    matmul = torch.backends.cuda.matmul
    name = "fp32_precision" if hasattr(matmul, "fp32_precision") else "allow_tf32"
    switches = lambda: (torch.backends.cuda.cudnn_sdp_enabled(), getattr(matmul, name))                  # noqa: E731
    before, seen, attend = switches(), [], attention.F.scaled_dot_product_attention
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention",
                        lambda *args, **kwargs: seen.append(switches()) or attend(*args, **kwargs))
    trainer = PPOTrainer(PPOConfig(), on_gpu(dtype=torch.bfloat16))
    responses = trainer.generate(QUERIES, max_new_tokens=4)
    sampled = len(seen)
    trainer.step(QUERIES, responses, [1.0, 0.0, 2.0, -1.0])
    assert 0 < sampled < len(seen) and set(seen) == {(False, "tf32" if name == "fp32_precision" else True)} and switches() == before


def test_a_copied_model_has_a_graph_of_its_own():
    model = on_gpu()
    expected = model.generate(QUERIES, max_new_tokens=8, do_sample=False)
    assert all(torch.equal(a, b) for a, b in zip(expected, create_reference_model(model).generate(QUERIES, max_new_tokens=8,
                                                                                                   do_sample=False)))


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float16])
@pytest.mark.parametrize("sizes", [{}, {"mini_batch_size": 1, "gradient_accumulation_steps": 2}, {"gradient_checkpointing": True}])
def test_the_first_ratio_is_exactly_one(dtype, sizes):
    trainer = PPOTrainer(PPOConfig(learning_rate=1e-3, ppo_epochs=2, **sizes), on_gpu(dtype=dtype))
    responses = trainer.generate(QUERIES, max_new_tokens=8)
    stats = trainer.step(QUERIES, responses, [1.0, 0.0, 2.0, -1.0])
    first = 8 * (2 if "gradient_accumulation_steps" in sizes else 4)
    assert (stats["ppo/policy/ratio"][:first] == 1).all() and stats["objective/kl"] == 0 and stats["ppo/updates"] > 0


def test_scores_agree_with_the_cpu():
    responses = make_ragged([4, 1, 7, 7], seed=1)
    here = response_logprobs(make_policy(), QUERIES, responses)
    exact = response_logprobs(on_gpu(dtype=torch.float32), QUERIES, responses)
    rounded = response_logprobs(on_gpu(dtype=torch.bfloat16), QUERIES, responses)
    torch.testing.assert_close(exact[0].cpu(), here[0], atol=5e-3, rtol=1e-3)                # the head may run in TF32
    assert (rounded[0].cpu() - here[0]).abs()[here[2]].mean() < 0.05


def test_a_checkpoint_resumes(tmp_path):
    def step(trainer):
        responses = trainer.generate(QUERIES, max_new_tokens=6)
        trainer.step(QUERIES, responses, [float(len(set(r.tolist()))) for r in responses])
    straight = PPOTrainer(PPOConfig(learning_rate=1e-3), on_gpu())
    step(straight)
    straight.save_checkpoint(tmp_path / "ck")
    resumed = PPOTrainer(PPOConfig(learning_rate=1e-3), on_gpu(seed=4))
    resumed.load_checkpoint(tmp_path / "ck")
    step(straight), step(resumed)
    for a, b in zip(straight.model.parameters(), resumed.model.parameters()):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)                              # atomics in the embedding's gradient


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_check_holds(gpu, dtype, monkeypatch):
    """On fake tensors without the closed form, a hundred updates that take half a minute: MINIPPO_SLOW=1 adds it."""
    if isinstance(gpu, FakeCuda) and os.environ.get("MINIPPO_SLOW") != "1":
        monkeypatch.setattr(check, "check_closed_form", lambda device: check.check_gae())
    assert check.run_checks(None, "cuda", dtype) == 0
