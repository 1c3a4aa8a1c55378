"""What users hand in by mistake, what they have set in torch, and a step that fails: right, or refused by name before anything changes."""

import contextlib
import math
import os
import subprocess
import sys
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch

from conftest import make_policy, make_ragged
from minippo import ppo
from minippo.fast import compute_snapshot, free_decoders
from minippo.policy import create_reference_model, response_logprobs
from minippo.ppo import PPOConfig, PPOTrainer

QUERIES, RESPONSES = make_ragged([3, 9, 1, 5, 4]), make_ragged([4, 1, 7, 7, 2], seed=1)
SCORES = [1.0, -0.5, 2.0, 0.0, 0.25]


def trainer_of(policy=None, **kwargs) -> PPOTrainer:
    return PPOTrainer(PPOConfig(**{"learning_rate": 1e-3, **kwargs}), policy or make_policy())


def weights(trainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.model.parameters()]


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# --- a trainer that could not train -------------------------------------------------------------------------------------

def tied_reference(policy):
    reference = create_reference_model(policy)
    reference.transformer.h = policy.transformer.h
    return reference


@pytest.mark.parametrize("make, message", [
    (lambda policy: {"model": torch.nn.Linear(2, 2)}, "model: expected a GPT2WithValueHead, got Linear"),
    (lambda policy: {"ref_model": policy.transformer}, "ref_model: expected a GPT2WithValueHead, got GPT2"),
    (lambda policy: {"ref_model": policy}, "would move with it"),
    (lambda policy: {"ref_model": tied_reference(policy)}, "shares weights with the model"),
    (lambda policy: {"ref_model": make_policy(vocab_size=5)}, "61 tokens and 64 positions, the reference 5 and 64"),
    (lambda policy: {"ref_model": make_policy(n_positions=32)}, "61 tokens and 64 positions, the reference 61 and 32"),
    (lambda policy: {"optimizer": torch.optim.Adam(make_policy().parameters())}, "parameters that are not the model's"),
    (lambda policy: {"model": make_policy(dtype="bfloat16")}, "dtype is the text 'bfloat16', expected torch.bfloat16"),
    (lambda policy: {"tokenizer": "gpt2"}, "load_tokenizer.'gpt2'. makes one"),
    (lambda policy: {"model": torch.compile(policy, backend="eager")}, "wrapped by torch.compile"),
    (lambda policy: {"optimizer": torch.optim.SGD(policy.parameters(), lr=0.1), "lr_scheduler":
                     torch.optim.lr_scheduler.StepLR(torch.optim.SGD(policy.parameters(), lr=0.1), 1)}, "belongs to another optimizer"),
    (lambda policy: {"model": policy.half()}, "is torch.float16, expected fp32 weights"),
    (lambda policy: {"model": policy.to(torch.bfloat16)}, "is torch.bfloat16, expected fp32 weights")])
def test_what_could_not_train_is_refused_when_the_trainer_is_made(policy, make, message):
    with pytest.raises(ValueError, match=message):
        PPOTrainer(**{"config": PPOConfig(), "model": policy} | make(policy))
    assert all(p.requires_grad for p in policy.parameters())                    # and a tied reference has frozen nothing


def test_a_model_that_became_half_later_is_refused_in_the_step():
    trainer = trainer_of()
    trainer.model.half()
    with pytest.raises(ValueError, match="expected fp32 weights"):
        trainer.step(QUERIES, RESPONSES, SCORES)


def unfreeze(trainer):
    trainer.model.transformer.wpe.requires_grad_(True)


def exchange_a_layer(trainer):
    trainer.model.transformer.h[0].mlp = make_policy(seed=1).transformer.h[0].mlp


def exchange_the_model(trainer):
    trainer.model = make_policy(seed=1)


@pytest.mark.parametrize("change, name", [(unfreeze, "wpe"), (exchange_a_layer, "h.0.mlp.c_fc"), (exchange_the_model, "wte")])
def test_weights_that_the_optimizer_does_not_know_are_refused_in_the_step(policy, change, name):
    """They would stay as they are, without a word. Freezing more is fine: those have no gradient."""
    policy.transformer.wpe.requires_grad_(False)
    trainer = trainer_of(policy)
    trainer.step(QUERIES, RESPONSES, SCORES)
    policy.transformer.h[1].requires_grad_(False)
    frozen = policy.transformer.h[1].mlp.c_fc.weight.clone()
    trainer.step(QUERIES, RESPONSES, SCORES)
    assert torch.equal(frozen, policy.transformer.h[1].mlp.c_fc.weight)
    change(trainer)
    with pytest.raises(ValueError, match=f"transformer.{name}.weight was exchanged or unfrozen since the trainer was made"):
        trainer.step(QUERIES, RESPONSES, SCORES)
    assert trainer.steps_done == 2


@pytest.mark.parametrize("rate", [math.nan, math.inf, -1e-3])
def test_a_learning_rate_that_would_spoil_the_weights_is_refused(policy, rate):
    """A scheduler of one's own may come to it: loss and gradient are finite, and after the step no weight is."""
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
    trainer = PPOTrainer(PPOConfig(), policy, optimizer=optimizer,
                         lr_scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate / 1e-3 if step else 1.0))
    trainer.step(QUERIES, RESPONSES, SCORES)
    before = weights(trainer)
    with pytest.raises(ValueError, match=f"the optimizer's learning rate is {rate}, expected a number of at least 0"):
        trainer.step(QUERIES, RESPONSES, SCORES)
    assert same(before, weights(trainer))


def test_responses_that_begin_with_their_queries_are_noticed():
    """return_prompt=True is for reading, not for training; one response that repeats its query is chance."""
    trainer = trainer_of()
    responses = trainer.generate(QUERIES, return_prompt=True, max_new_tokens=3)
    with pytest.warns(UserWarning, match="every response begins with its query"):
        trainer.step(QUERIES, responses, SCORES)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="every response")
        trainer.step(QUERIES, [*RESPONSES[:4], responses[4]], SCORES)
        trainer.step([QUERIES[0]], [torch.cat([QUERIES[0], RESPONSES[0]])], [1.0])


def test_gradient_checkpointing_that_a_user_switched_on_stays_on(policy):
    policy.transformer.gradient_checkpointing = True
    PPOTrainer(PPOConfig(), policy)
    assert policy.transformer.gradient_checkpointing


@pytest.mark.parametrize("seed", ["a", 1.5, True, 2**64 - 1])
def test_a_seed_that_torch_does_not_take_is_refused(seed):
    with pytest.raises(ValueError, match="PPOConfig: seed must be a whole number"):
        PPOConfig(seed=seed)


# --- queries, scores ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("queries", [torch.ones(2, 3, dtype=torch.long), {0: [1]}, {1}, (token for token in [[1]])])
def test_queries_are_a_list_and_never_a_padded_tensor(policy, queries):
    with pytest.raises(ValueError, match="expected a list of 1-D token tensors"):
        policy.generate(queries)


@pytest.mark.parametrize("scores, message", [
    ({0: 1.0, 1: 2.0}, "expected a list of 2 numbers"), ({1.0, 2.0}, "expected a list of 2 numbers"),
    (torch.tensor([1j, 2j]), "not finite"), ([1e39, 0.0], "not finite, or not in fp32"), ([torch.tensor(1j), 0.0], "not finite"),
    ([10**400, 0.0], "not finite, or not in fp32"), ([Fraction(10**310, 3), 0.0], "not finite, or not in fp32")])
def test_scores_of_the_wrong_kind_are_refused(scores, message):
    with pytest.raises(ValueError, match=message):
        trainer_of().step(QUERIES[:2], RESPONSES[:2], scores)


def test_real_numbers_of_any_kind_are_scores():
    stats = trainer_of().step(QUERIES, RESPONSES, [Fraction(1, 2), 2**70, np.float16(0.5), True, 0])
    assert stats["ppo/mean_scores"] == pytest.approx(2**70 / 5, rel=1e-6)


def test_numbers_and_per_token_rewards_may_be_mixed():
    """The number stands at its response's last token: as if it were written out."""
    results = []
    for first in (1.0, torch.tensor([0.0, 0.0, 0.0, 1.0])):
        trainer = trainer_of()
        trainer.step(QUERIES[:2], RESPONSES[:2], [first, torch.tensor([0.5])])
        trainer.step(QUERIES[2:4], RESPONSES[2:4], [torch.arange(7.0), 2 * first if first is results else 1.0])
        results.append(weights(trainer))
    assert same(*results)


@pytest.mark.parametrize("kwargs, message", [
    ({"min_new_tokens": "3"}, "min_new_tokens must be a whole number"), ({"top_k": math.inf}, "top_k must be a whole number"),
    ({"eos_token_id": "2"}, "eos_token_id, .* must be a whole number"), ({"top_p": "0.9"}, "top_p must be above 0"),
    ({"top_p": 1e-46}, "top_p must be above 0"), ({"temperature": "1"}, "temperature"), ({"temperature": 1e-40}, "temperature")])
def test_settings_of_another_type_are_named(policy, kwargs, message):
    with pytest.raises(ValueError, match=message):
        policy.generate(QUERIES, **kwargs)
    assert len(policy.generate(QUERIES, max_new_tokens=2, min_new_tokens=None, min_length=None)) == 5


@pytest.mark.parametrize("kwargs, message", [
    ({"num_beams": 4}, "num_beams is not supported: .* there are max_new_tokens"), ({"num_beams": 1, "repetition_penalty": 1.2}, "num_beams, repetition_penalty")])
def test_what_generate_does_not_support_is_refused_by_name(policy, kwargs, message):
    for generate in (policy.generate, trainer_of().generate):
        with pytest.raises(ValueError, match=message):
            generate(QUERIES, max_new_tokens=2, **kwargs)


# --- torch's global state -------------------------------------------------------------------------------------------------

@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16),
                                  lambda: default_dtype(torch.float64), lambda: torch.device("meta")],
                         ids=["no_grad", "inference_mode", "autocast", "default dtype", "default device"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_callers_modes_change_nothing(mode, dtype):
    """Sampling, scoring and two updates within a mode equal those without: the same tokens and weights, to the bit."""
    results = []
    for context in (contextlib.nullcontext, mode):
        trainer = trainer_of(make_policy(dtype=dtype))
        for _ in range(2):
            with context():
                responses = trainer.generate(QUERIES, max_new_tokens=6)
                stats = trainer.step(QUERIES, responses, SCORES)
        results.append([*responses, *weights(trainer), torch.tensor(stats["ppo/loss/total"], device="cpu")])
    assert same(*results)


def test_sampling_in_inference_mode_does_not_spoil_the_model():
    """The kept bf16 weights are refreshed in place, which tensors made in inference mode never allow outside it."""
    model = make_policy(dtype=torch.bfloat16)
    with torch.inference_mode():
        inside = model.generate(QUERIES, seed=1)
    assert same(inside, model.generate(QUERIES, seed=1))


@pytest.mark.parametrize("mode", [contextlib.nullcontext, torch.enable_grad, torch.inference_mode])
def test_sampling_keeps_no_graph(policy, mode):
    seen = []
    policy.transformer.h[1].register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    with mode():
        policy.generate(QUERIES, max_new_tokens=3)
    assert seen == [False] * 3


def test_importing_changes_nothing_and_a_trainer_on_a_cpu_keeps_freed_memory():
    """mallopt is glibc's; what the import and the first trainer ask of it is written down."""
    code = """
import ctypes, os, torch
calls, CDLL = [], ctypes.CDLL
class Watched:
    def __init__(self, name): self.mallopt = lambda *setting: calls.append(setting)
before = torch.get_float32_matmul_precision(), torch.backends.cuda.cudnn_sdp_enabled(), torch.get_num_threads()
os.confstr = lambda name: "glibc 2.36"
ctypes.CDLL = Watched
import minippo
assert calls == []
model = minippo.GPT2WithValueHead(minippo.GPT2Config(5, 8, 8, 1, 1))
for _ in range(2):
    minippo.PPOTrainer(minippo.PPOConfig(), model)
print(len(calls))
assert before == (torch.get_float32_matmul_precision(), torch.backends.cuda.cudnn_sdp_enabled(), torch.get_num_threads())
"""
    for setting, expected in (("1", "3"), ("0", "0")):
        done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"MINIPPO_MALLOC": setting}, text=True,
                              capture_output=True, timeout=60)
        assert (done.returncode, done.stdout.strip()) == (0, expected), done.stderr


# --- a step that fails ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("where", ["evaluate_responses", "compute_rewards", "compute_advantages"])
def test_a_failing_step_leaves_the_trainer_as_it_was(monkeypatch, where):
    """Weights, generator and running moments: the same step once more gives what it would have given."""
    trainer, undisturbed = (trainer_of(use_score_scaling=True, use_score_norm=True) for _ in range(2))
    for each in (trainer, undisturbed):
        each.step(QUERIES, RESPONSES, SCORES)

    def fail(*args, **kwargs):
        raise MemoryError("no memory")
    with monkeypatch.context() as patched:
        patched.setattr(ppo, where, fail)
        with pytest.raises(MemoryError):
            trainer.step(QUERIES, RESPONSES, SCORES)
    for each in (trainer, undisturbed):
        each.step(QUERIES, RESPONSES, SCORES)
    assert same(weights(trainer), weights(undisturbed)) and vars(trainer.moments) == vars(undisturbed.moments)
    assert torch.equal(trainer.generator.get_state(), undisturbed.generator.get_state()) and trainer.steps_done == 2


def test_a_look_at_another_temperature_changes_no_number_of_the_next_step():
    looked, plain = trainer_of(), trainer_of()
    looked.generate(QUERIES, temperature=0.1, seed=1)
    with pytest.warns(UserWarning, match="sampled at temperature 0.1, but step.. scores at 1"):
        looked.step(QUERIES, RESPONSES, SCORES)
    plain.step(QUERIES, RESPONSES, SCORES)
    assert same(weights(looked), weights(plain))


def test_one_nan_does_not_stay(monkeypatch):
    """A forward pass that overflows once: the minibatches are skipped, and the step after it learns as ever."""
    trainer = trainer_of(target=0.1, horizon=50.0)
    forward_pass = PPOTrainer.forward_pass

    def overflow(self, batch, minibatches):
        forward_pass(self, batch, minibatches)
        batch.logprobs = batch.logprobs * math.nan
    with monkeypatch.context() as patched:
        patched.setattr(PPOTrainer, "forward_pass", overflow)
        assert trainer.step(QUERIES, RESPONSES, SCORES)["ppo/skipped_nonfinite"] == 4
    assert trainer.kl_controller.value == 0.2
    assert trainer.step(QUERIES, RESPONSES, SCORES)["ppo/updates"] == 4 and math.isfinite(trainer.kl_controller.value)


def test_a_generator_of_none_is_the_trainers():
    one, two = trainer_of(), trainer_of()
    assert same(one.generate(QUERIES, generator=None), two.generate(QUERIES))


def test_too_long_a_sequence_is_refused_with_and_without_the_value_head(policy):
    for model in (policy, policy.transformer):
        with pytest.raises(ValueError, match="at most the model's 64 positions"):
            model(torch.zeros(1, 65, dtype=torch.long))


# --- sampling in 16 bits ----------------------------------------------------------------------------------------------------

def test_hooks_and_exchanged_modules_act_in_bf16_sampling_too():
    """The blocks that sample in bf16 are copies: they follow whoever looks into a block, or puts another layer in its place."""
    model, seen = make_policy(dtype=torch.bfloat16), []
    before = model.generate(QUERIES, max_new_tokens=4, do_sample=False)
    handle = model.transformer.h[1].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    model.generate(QUERIES, max_new_tokens=4, do_sample=False)
    assert seen == [torch.bfloat16] * 4                                                     # the queries and three tokens
    handle.remove()
    model.generate(QUERIES, max_new_tokens=4, do_sample=False)
    assert len(seen) == 4
    model.transformer.h[1].mlp = make_policy(seed=9).transformer.h[0].mlp
    after = model.generate(QUERIES, max_new_tokens=4, do_sample=False)
    fresh = make_policy(dtype=torch.bfloat16)
    fresh.transformer.h[1].mlp = make_policy(seed=9).transformer.h[0].mlp
    assert same(after, fresh.generate(QUERIES, max_new_tokens=4, do_sample=False)) and not same(after, before)


def test_what_sampling_keeps_can_be_given_back():
    model = make_policy(dtype=torch.bfloat16)
    kept = compute_snapshot(model.transformer)
    assert compute_snapshot(model.transformer) is kept
    model.free_decoders()
    assert compute_snapshot(model.transformer) is not kept
    free_decoders(model.transformer), model.free_decoders()                                 # twice is no error


def test_fp16_gradients_of_a_mean_over_many_tokens_survive():
    """A mean over 2000 tokens has gradients near fp16's smallest number; scaled by a power of two they agree with fp32's.

    Their cosine is 0.9999993 here; without the scale it was 0.99946, and one in 800 entries was 0.
    """
    gradients = []
    for dtype in (torch.float32, torch.float16):
        trainer = trainer_of(make_policy(n_positions=512, dtype=dtype, scale=0.1), ppo_epochs=1, vf_coef=0.0)
        trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=1.0)
        before = trainer.model.transformer.h[0].mlp.c_fc.weight.detach().clone()
        queries, responses = make_ragged([4] * 8), make_ragged([250] * 8, seed=1)
        trainer.step(queries, responses, [float(i % 3) for i in range(8)])
        gradients.append((before - trainer.model.transformer.h[0].mlp.c_fc.weight.detach()).flatten())
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99999 and (gradients[1] != 0).all()


# --- statistics -------------------------------------------------------------------------------------------------------------

def test_noise_is_not_explained():
    """Scores of pure chance: what the values learnt by heart while the batch was used says nothing about the next one.

    Asked of the values during the epochs, as TRL does, the mean was above 0.2; CleanRL asks those of the rollout, too.
    """
    trainer = trainer_of(ppo_epochs=20, vf_coef=5.0, cliprange=0.01, cliprange_value=10.0, init_kl_coef=0.0, adap_kl_ctrl=False)
    generator = torch.Generator().manual_seed(0)
    explained = []
    for _ in range(8):
        queries = make_ragged([3] * 16, seed=int(torch.randint(10**6, (1,), generator=generator)))
        responses = trainer.generate(queries, max_new_tokens=6)
        explained.append(trainer.step(queries, responses, torch.randn(16, generator=generator))["ppo/val/var_explained"])
    assert sum(explained[3:]) / 5 < 0.05


def test_explained_variance_by_hand():
    """lam 1, returns 1 | 0 (one token each), values v | v: they explain nothing. And values equal to the returns explain all."""
    batch = ppo.Batch([torch.zeros(1)] * 2, [torch.zeros(1)] * 2, 1.0, torch.tensor([1.0, 0.0]), mask=torch.ones(2, 1, dtype=torch.bool),
                      **{name: torch.zeros(2, 1) for name in ("logprobs", "ref_logprobs", "kl", "non_score_reward", "rewards", "advantages")})
    batch.returns = torch.tensor([[1.0], [0.0]])
    for values, expected in (([[0.3], [0.3]], 0.0), ([[1.0], [0.0]], 1.0), ([[0.0], [1.0]], -3.0), ([[0.5], [0.0]], 0.75)):
        batch.values = torch.tensor(values)
        assert ppo.batch_stats(batch, PPOConfig())["ppo/val/var_explained"] == pytest.approx(expected, abs=1e-6)


def test_every_number_of_a_step_is_a_plain_one():
    stats = trainer_of().step(QUERIES, RESPONSES, SCORES)
    assert {type(value) for value in stats.values()} == {int, float, torch.Tensor}
    tensors = {name for name, value in stats.items() if isinstance(value, torch.Tensor)}
    assert tensors == {"tokens/queries_dist", "tokens/responses_dist", "objective/kl_dist", "objective/logprobs",
                       "objective/ref_logprobs", "ppo/policy/advantages", "ppo/policy/ratio"}


def test_large_products_can_be_differentiated_by_torch_func(policy):
    from minippo import fast
    weight, x = torch.randn(1024, 512), torch.randn(3, 512)
    torch.testing.assert_close(torch.func.grad(lambda w: fast.linear(x, w).square().sum())(weight),
                               torch.func.grad(lambda w: (x @ w.T).square().sum())(weight), atol=1e-2, rtol=1e-3)


def test_scoring_can_be_differentiated_by_torch_func(policy):
    """The gradients of all log-probabilities, by torch.func as by autograd."""
    class Scoring(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.policy = policy

        def forward(self):
            return response_logprobs(self.policy, QUERIES, RESPONSES)[0].sum()
    module = Scoring()
    by_func = torch.func.grad(lambda weights: torch.func.functional_call(module, weights, ()))(dict(module.named_parameters()))
    module().backward()
    for name, p in module.named_parameters():
        torch.testing.assert_close(by_func[name], torch.zeros_like(p) if p.grad is None else p.grad)


def test_a_model_in_fp64_still_works():
    policy = make_policy(dtype=torch.float64).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stats = trainer_of(policy).step(QUERIES, RESPONSES, SCORES)
    assert stats["ppo/updates"] == 4 and response_logprobs(policy, QUERIES, RESPONSES)[0].dtype == torch.float64
