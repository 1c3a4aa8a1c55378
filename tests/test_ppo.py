"""The arithmetic of PPO, by hand and against recorded numbers, and the properties of a step."""

import ast
import math
import warnings
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from conftest import make_policy, make_ragged
from minippo import ppo
from minippo.metrics import RunningMoments
from minippo.ppo import AdaptiveKLController, FixedKLController, PPOConfig, PPOTrainer


def tensors(*rows):
    return [torch.tensor(row) for row in rows]


# --- recorded from TRL 0.11.4 and derived by hand once more; columns here are its T-1 columns, the mask selects ----------

LOGPROBS = torch.tensor([[-1, -2, -.5, -1.5, -3], [-.7, -1.1, -2.2, -.3, -.9]])
REF = torch.tensor([[-1.2, -1.5, -.5, -2, -1], [-.5, -1.4, -2, -.6, -.2]])
MASK = torch.tensor([[0, 1, 1, 1, 1], [0, 0, 1, 1, 0]]).bool()
VALUES = torch.tensor([[9, .5, .2, -.1, .3], [9, 9, .4, .6, 9]])
REWARDS = torch.tensor([[-.04, .10, 0, -.10, 1.40], [.04, -.06, .04, -.56, .14]])
RETURNS = torch.tensor([[1.192419, 1.228862, 1.177750, 1.245, 1.4], [-.397955, -.4189, -.462, -.56, 0]])
WHITENED = torch.tensor([.346020, .576333, .916174, .689459, -1.126114, -1.401873])


def close(a, b, atol=2e-6):
    torch.testing.assert_close(torch.as_tensor(a).float(), torch.as_tensor(b).float(), atol=atol, rtol=0)


def test_golden_rewards_advantages_and_losses():
    rewards, non_score_reward, kl = ppo.compute_rewards(torch.tensor([1.0, -0.5]), LOGPROBS, REF, MASK, kl_coef=0.2)
    close(rewards[MASK], REWARDS[MASK])
    close(non_score_reward[MASK], -0.2 * (LOGPROBS - REF)[MASK])
    close(kl[MASK], (LOGPROBS - REF)[MASK])
    advantages, returns = ppo.compute_advantages(VALUES, rewards, MASK, gamma=1.0, lam=0.95)
    close(returns[MASK], RETURNS[MASK])
    whitened = ppo.masked_whiten(advantages, MASK)
    close(whitened[MASK], WHITENED)
    new_logprobs = LOGPROBS + torch.tensor([[.3, .1, -.4, .05, .5], [0, 0, .3, -.1, 0]])
    new_values = torch.where(MASK, VALUES, 0) + torch.tensor([[0, .1, -.3, .5, -.05], [0, 0, .25, -.1, 0]])
    loss, stats = ppo.ppo_loss(new_logprobs, new_values, LOGPROBS, VALUES, whitened, returns, MASK)
    golden = {"ppo/loss/policy": .0382207, "ppo/loss/value": .5851484, "ppo/loss/total": .0967355,
              "ppo/policy/approxkl": .0435417, "ppo/policy/policykl": -.0750, "ppo/policy/clipfrac": .1666667,
              "ppo/val/error": 1.0707968, "ppo/val/clipfrac": .1666667}
    for name, value in golden.items():
        assert stats[name].item() == pytest.approx(value, abs=2e-6), name
    assert loss.item() == pytest.approx(.0967355, abs=2e-6)
    assert ppo.masked_mean(returns, MASK).item() == pytest.approx(.6716020, abs=2e-6)
    assert ppo.masked_var(returns, MASK).item() == pytest.approx(.8455940, abs=2e-6)
    assert ppo.masked_mean(VALUES, MASK).item() == pytest.approx(.3166667, abs=2e-6)
    assert ppo.masked_var(VALUES, MASK).item() == pytest.approx(.0616667, abs=2e-6)


def test_golden_kl_kinds_and_controllers():
    """kl of a token: -1 - (-3) = 2; abs 2; mse 2^2 / 2 = 2. Exact KL of softmax([1, 2, 3]) to uniform: .266217.

    k3 where the reference gives a token twice the probability: 2 - 1 - log 2.
    """
    close(ppo.kl_penalty(torch.tensor([-3.0]), torch.tensor([-1.0]), "kl"), [-2.0])
    close(ppo.kl_penalty(torch.tensor([-3.0]), torch.tensor([-1.0]), "abs"), [2.0])
    close(ppo.kl_penalty(torch.tensor([-3.0]), torch.tensor([-1.0]), "mse"), [2.0])
    log_p = torch.tensor([[1.0, 2, 3], [0, 0, 1]]).log_softmax(-1)
    log_q = torch.tensor([[0.0, 0, 0], [2, 0, 1]]).log_softmax(-1)
    close(ppo.kl_penalty(log_p, log_q, "full"), [.266217, .432278])
    close(ppo.kl_penalty(torch.tensor([-3.0]), torch.tensor([-3.0 + math.log(2)]), "k3"), [1 - math.log(2)])
    with pytest.raises(ValueError, match="one of kl, abs, mse, k3, full"):
        ppo.kl_penalty(log_p, log_q, "k1")
    adaptive, fixed = AdaptiveKLController(0.2, 6, 1e4), FixedKLController(0.3)
    adaptive.update(0, 128)
    assert adaptive.value == pytest.approx(.199488, abs=1e-9)
    adaptive.update(100, 128)
    assert adaptive.value == pytest.approx(.19999868928, abs=1e-12)
    fixed.update(100, 128)
    assert fixed.value == 0.3


def test_full_kl_rewards_take_whole_distributions():
    log_p, log_q = torch.tensor([[[1.0, 2, 3], [0, 0, 1]]]).log_softmax(-1), torch.tensor([[[0.0, 0, 0], [2, 0, 1]]]).log_softmax(-1)
    rewards, _, _ = ppo.compute_rewards(torch.tensor([1.0]), log_p, log_q, torch.ones(1, 2), kl_coef=0.5, kl_penalty="full")
    close(rewards, [[-.5 * .266217, 1 - .5 * .432278]])


# --- GAE --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("lam, advantages, returns", [
    (0.5, [0, .5, .5], [.5, .75, 1]), (0.0, [-.25, .25, .5], [.25, .5, 1]), (1.0, [.5, .75, .5], [1, 1, 1])])
def test_gae_exact_in_binary(lam, advantages, returns):
    """rewards (0, 0, 1), values (.5, .25, .5): deltas are 0 + .25 - .5 = -.25, 0 + .5 - .25 = .25, 1 + 0 - .5 = .5.

    lam .5: .5; .25 + .5 * .5 = .5; -.25 + .5 * .5 = 0. lam 1 sums the deltas from the right.
    """
    values, rewards, mask = tensors([[.5, .25, .5]], [[0, 0, 1.0]], [[True] * 3])
    A, G = ppo.compute_advantages(values, rewards, mask, gamma=1.0, lam=lam)
    assert A.tolist() == [advantages] and G.tolist() == [returns]


def test_gamma_discounts():
    """gamma .5, lam 1, values 0: the reward 1 on token 3 is worth 1, .5, .25 from tokens 3, 2, 1."""
    A, _ = ppo.compute_advantages(torch.zeros(1, 3), torch.tensor([[0, 0, 1.0]]), torch.ones(1, 3), gamma=0.5, lam=1.0)
    assert A.tolist() == [[.25, .5, 1]]


@pytest.mark.parametrize("garbage", [100.0, math.nan, -math.inf])
def test_garbage_behind_the_mask_changes_nothing(garbage):
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    generator = torch.Generator().manual_seed(0)
    x = {name: torch.randn(2, 4, generator=generator) for name in
         ("new_logprobs", "new_values", "logprobs", "values", "advantages", "returns", "ref_logprobs", "entropy")}

    def everything(fill):
        t = {name: torch.where(mask, value, fill).requires_grad_(name.startswith("new")) for name, value in x.items()}
        rewards, _, kl = ppo.compute_rewards(torch.tensor([1.0, 2.0]), t["logprobs"], t["ref_logprobs"], mask, 0.1)
        advantages, returns = ppo.compute_advantages(t["values"], torch.where(mask, rewards, fill), mask, 1.0, 0.95)
        t.pop("ref_logprobs")
        loss, stats = ppo.ppo_loss(**t, mask=mask, entropy_coef=0.1)
        loss.backward()
        whitened = ppo.masked_whiten(torch.where(mask, advantages, fill), mask, shift_mean=False)
        return [rewards, kl, advantages, returns, whitened, loss, *stats.values(), t["new_logprobs"].grad, t["new_values"].grad]

    for clean, dirty in zip(everything(0.0), everything(garbage)):
        torch.testing.assert_close(clean, dirty, atol=0, rtol=0)


def test_whitened_rewards_stay_inside_the_mask():
    """Rewards 1, 3 and 2 | padding: mean 2, variance 1, kept mean: they stay 1, 3, 2, and the padding stays 0."""
    rewards, mask = torch.tensor([[1.0, 3.0], [2.0, 0.0]]), torch.tensor([[True, True], [True, False]])
    close(ppo.masked_whiten(rewards, mask, shift_mean=False), rewards, atol=1e-6)


def test_one_element_has_variance_zero_and_whitens_to_zero():
    x, mask = torch.tensor([[3.0, 9.0]]), torch.tensor([[True, False]])
    assert ppo.masked_mean(x, mask) == 3 and ppo.masked_var(x, mask) == 0
    assert ppo.masked_whiten(x, mask).tolist() == [[0, 0]]


# --- rewards and losses -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("value", [0.3, 100.3, 1000.1])
def test_equal_numbers_whiten_to_zero(value):
    """Their fp32 mean differs from them by rounding, and the variance is 0: the two must not meet in a quotient."""
    for n in (7, 31, 64):
        assert not ppo.masked_whiten(torch.full((1, n), value), torch.ones(1, n, dtype=torch.bool)).any()


def test_scores_given_as_numbers_keep_the_precision_of_the_rest():
    zeros = torch.zeros(1, 2, dtype=torch.float64)
    assert ppo.compute_rewards([0.1], zeros, zeros, zeros == 0, 0.2).rewards.tolist() == [[0.0, 0.1]]           # not 0.1 in fp32


def test_per_token_rewards_are_added_where_they_stand():
    mask = torch.tensor([[True, True, True], [True, False, False]])
    zero = torch.zeros(2, 3)
    per_token = torch.tensor([[1.0, 2.0, 3.0], [4.0, 0.0, 0.0]])
    assert ppo.compute_rewards(per_token, zero, zero, mask, 0.2).rewards.tolist() == per_token.tolist()
    assert ppo.compute_rewards(torch.tensor([1.0, 2.0]), zero, zero, mask, 0.2).rewards.tolist() == [[0, 0, 1], [2, 0, 0]]


@pytest.mark.parametrize("advantage, ratio, slope", [
    (1.0, 1.0, -1.0), (1.0, 1.1, -1.1), (1.0, 1.3, 0.0), (1.0, 0.7, -0.7),      # gains: no more pull beyond 1.2
    (-1.0, 1.0, 1.0), (-1.0, 0.7, 0.0), (-1.0, 1.3, 1.3)])                      # losses: no more push below 0.8
def test_the_clipped_policy_gradient(advantage, ratio, slope):
    """d(-A * ratio) / d(logprob) = -A * ratio, and 0 once the clip has cut the gain off."""
    new = torch.tensor([[math.log(ratio)]], requires_grad=True)
    zero, one = torch.zeros(1, 1), torch.ones(1, 1)
    loss, _ = ppo.ppo_loss(new, zero, zero, zero, torch.tensor([[advantage]]), zero, one, vf_coef=0.0)
    loss.backward()
    assert new.grad.item() == pytest.approx(slope, abs=1e-6)


def test_the_clipped_value_loss():
    """old value 0, return 1, clip .2: v = .5 counts as max(.25, .64) / 2 = .32 and feels no gradient; v = -.5 counts 1.125."""
    zero, one = torch.zeros(1, 1), torch.ones(1, 1)
    for value, expected, gradient in ((0.5, .32, 0.0), (-0.5, 1.125, -1.5), (0.1, .405, -0.9)):
        new = torch.tensor([[value]], requires_grad=True)
        loss, stats = ppo.ppo_loss(zero, new, zero, zero, zero, one, one, vf_coef=1.0)
        loss.backward()
        assert stats["ppo/loss/value"].item() == pytest.approx(expected, abs=1e-6)
        assert new.grad.item() == pytest.approx(gradient, abs=1e-6)


def test_entropy_coefficient_rewards_entropy():
    zero, one, entropy = torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([[1.0, 3.0]], requires_grad=True)
    loss, stats = ppo.ppo_loss(zero, zero, zero, zero, zero, zero, one, entropy=entropy, entropy_coef=0.5)
    loss.backward()
    assert loss.item() == -1.0 and entropy.grad.tolist() == [[-.25, -.25]] and stats["ppo/policy/entropy"] == 2.0


def test_running_moments_equal_the_moments_of_everything_seen():
    moments, batches = RunningMoments(), [torch.tensor([1.0, 2.0, 4.0]), torch.tensor([8.0]), torch.tensor([-1.0, 0.0])]
    scaled = [moments.scale(batch, center=False) for batch in batches][-1]
    everything = torch.cat(batches)
    assert moments.mean == pytest.approx(everything.mean().item())
    assert scaled.tolist() == pytest.approx((batches[-1] / everything.std()).tolist(), rel=1e-5)
    for n, score in ((4, 3.0), (10, 0.1), (64, 0.1), (128, 0.1)):      # of n fp32 numbers 0.1 the mean is not 0.1
        constant = torch.full((n,), score)
        assert RunningMoments().scale(constant, center=False).equal(constant)       # over 1 and not 0, which would blow the scores up


# --- a step -------------------------------------------------------------------------------------------------------------

QUERIES, RESPONSES = make_ragged([3, 9, 1, 5, 4]), make_ragged([4, 1, 7, 7, 2], seed=1)
SCORES = [1.0, -0.5, 2.0, 0.0, 0.25]


def trainer_of(policy=None, **kwargs) -> PPOTrainer:
    kwargs = {"learning_rate": 1e-3, **kwargs}
    return PPOTrainer(PPOConfig(**kwargs), policy or make_policy())


def weights(trainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.model.parameters()]


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def state_of(trainer) -> list[torch.Tensor]:
    """Weights, Adam's moments, generator, controller, running moments: all that a refused step must not touch."""
    slots = [v.clone() for slot in trainer.optimizer.state_dict()["state"].values() for v in slot.values()]
    numbers = [trainer.kl_controller.value, *vars(trainer.moments).values(), trainer.steps_done]
    return weights(trainer) + slots + [trainer.generator.get_state(), torch.tensor(numbers)]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("sizes", [{}, {"mini_batch_size": 2}, {"mini_batch_size": 1, "gradient_accumulation_steps": 2}])
def test_the_first_ratio_is_exactly_one(dtype, sizes):
    trainer = trainer_of(make_policy(dtype=dtype), **sizes)
    stats = trainer.step(QUERIES, RESPONSES, SCORES)
    ratios = stats["ppo/policy/ratio"]
    other = PPOTrainer(PPOConfig(**sizes), make_policy())
    minibatches = other.minibatches(ppo.Batch(QUERIES, RESPONSES, 1.0), other.generator)
    first = sum(len(RESPONSES[row]) for row in minibatches[0])
    assert (ratios[:first] == 1).all() and not (ratios[first:] == 1).all()


def test_at_the_first_step_kl_is_zero_and_the_reward_is_the_score():
    trainer = trainer_of(init_kl_coef=10.0, ppo_epochs=1)
    stats = trainer.step(QUERIES, RESPONSES, SCORES)
    assert stats["objective/kl"] == 0 and stats["ppo/mean_non_score_reward"] == 0 and stats["ppo/policy/approxkl"] == 0
    assert stats["objective/score_total"] == pytest.approx(sum(SCORES) / 5) == pytest.approx(stats["ppo/mean_scores"])


def test_micro_batches_add_up_to_the_whole_gradient():
    """One optimizer step over five responses of unequal length, in passes of 5, 2 and 1: the same weights."""
    results = []
    for size, accumulation in ((5, 1), (2, 3), (1, 5)):
        trainer = trainer_of(mini_batch_size=size, gradient_accumulation_steps=accumulation, ppo_epochs=1)
        trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
        trainer.step(QUERIES, RESPONSES, SCORES)
        results.append(weights(trainer))
    for other in results[1:]:
        for a, b in zip(results[0], other):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(results[0][0], make_policy().transformer.wte.weight, atol=1e-5)


def test_the_reference_never_moves_and_the_mode_stays():
    trainer = trainer_of()
    trainer.model.eval()
    before = [p.clone() for p in trainer.ref_model.parameters()]
    for _ in range(2):
        trainer.step(QUERIES, RESPONSES, SCORES)
    assert same(before, trainer.ref_model.parameters()) and not trainer.model.training


def test_greedy_samples_are_the_same_before_and_after_scoring():
    """TRL left the model in train mode after step, so that later samples had dropout. There is none here."""
    trainer = trainer_of(learning_rate=0.0)
    before = trainer.generate(QUERIES, max_new_tokens=8, do_sample=False)
    trainer.step(QUERIES, RESPONSES, SCORES)
    assert same(before, trainer.generate(QUERIES, max_new_tokens=8, do_sample=False))
    assert not [m for m in trainer.model.modules() if isinstance(m, torch.nn.Dropout)]


def test_scores_of_every_kind_train_alike():
    results = []
    for scores in ([1, 0, 2, 0, 1], [1.0, 0.0, 2.0, 0.0, 1.0], torch.tensor([1, 0, 2, 0, 1]), [torch.tensor(1.0), False, 2, 0, True],
                   [torch.tensor([x]) for x in (1.0, 0.0, 2.0, 0.0, 1.0)]):
        trainer = trainer_of()
        trainer.step(QUERIES, RESPONSES, scores)
        results.append(weights(trainer))
    assert all(same(results[0], other) for other in results[1:])


def test_per_token_rewards_on_the_last_token_equal_a_score():
    results = []
    for scores in (SCORES, [torch.tensor([0.0] * (len(r) - 1) + [s]) for r, s in zip(RESPONSES, SCORES)]):
        trainer = trainer_of()
        stats = trainer.step(QUERIES, RESPONSES, scores)
        results.append(weights(trainer) + [torch.tensor(stats["ppo/mean_scores"])])
    assert same(*results)


@pytest.mark.parametrize("queries, responses, scores, message", [
    ([], [], [], "at least one"),
    (QUERIES, RESPONSES, SCORES[:4], "expected 5 scores, one for each response, got 4"),
    (QUERIES[:4], RESPONSES, SCORES, "4 queries and 5 responses"),
    (QUERIES[:1], [torch.tensor([], dtype=torch.long)], [1.0], "non-empty"),
    (QUERIES[:1], [torch.tensor([61])], [1.0], "outside the vocabulary"),
    (QUERIES[:1], RESPONSES[:1], [math.nan], "not finite"),
    (QUERIES[:1], RESPONSES[:1], [math.inf], "not finite"),
    (QUERIES[:1], RESPONSES[:1], [None], "NoneType"),
    (QUERIES[:1], RESPONSES[:1], ["0.5"], "str"),
    (QUERIES[:1], RESPONSES[:1], "0", "list of 1 numbers"),
    (QUERIES[:1], RESPONSES[:1], 0.5, "list of 1 numbers"),
    (QUERIES[:1], RESPONSES[:1], torch.tensor(0.5), "list of 1 numbers"),
    (QUERIES[:1], RESPONSES[:1], [torch.ones(3)], "4 per-token rewards"),
    (QUERIES[:1], RESPONSES[:1], torch.ones(1, 4, 2), "4 per-token rewards")])
def test_bad_input_changes_nothing(queries, responses, scores, message):
    trainer = trainer_of(use_score_scaling=True)
    trainer.step(QUERIES, RESPONSES, SCORES)
    before = state_of(trainer)
    with pytest.raises(ValueError, match=message):
        trainer.step(queries, responses, scores)
    assert same(before, state_of(trainer))


def test_a_batch_of_one_token_stays_finite():
    """TRL divided by n - 1 = 0 here and turned every weight into NaN."""
    trainer = trainer_of(batch_size=1)
    stats = trainer.step([torch.tensor([3])], [torch.tensor([4])], [1])
    numbers = [v for v in stats.values() if isinstance(v, (int, float))] + [x for v in stats.values() if torch.is_tensor(v) for x in v.flatten().tolist()]
    assert all(math.isfinite(x) for x in numbers) and all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_gradient_clipping_holds_at_every_step(monkeypatch):
    """TRL clipped the first step of a trainer's life only."""
    trainer, norms = trainer_of(max_grad_norm=0.01, mini_batch_size=2), []
    step = trainer.optimizer.step
    monkeypatch.setattr(trainer.optimizer, "step", lambda: (norms.append(torch.nn.utils.get_total_norm(
        [p.grad for p in trainer.model.parameters()]).item()), step()))
    for _ in range(2):
        stats = trainer.step(QUERIES, RESPONSES, SCORES)
    assert len(norms) == 24 and max(norms) <= 0.0101 and stats["ppo/grad_norm"] > 0.01


@pytest.mark.parametrize("fault", ["ratio", "nan"])
def test_a_skipped_minibatch_leaves_weights_and_adam_alone(fault, monkeypatch):
    """TRL multiplied the loss by zero, and Adam's momentum went on moving the weights."""
    trainer = trainer_of(ratio_threshold=0.5 if fault == "ratio" else 10.0)     # a mean ratio of 1 exceeds 0.5
    normal = trainer_of()
    normal.step(QUERIES, RESPONSES, SCORES)
    trainer.optimizer.load_state_dict(normal.optimizer.state_dict())
    if fault == "nan":
        compute_advantages = ppo.compute_advantages
        monkeypatch.setattr(ppo, "compute_advantages", lambda *a: (compute_advantages(*a)[0] * math.nan, compute_advantages(*a)[1]))
    before = state_of(trainer)[:-2]
    stats = trainer.step(QUERIES, RESPONSES, SCORES)
    assert same(before, state_of(trainer)[:-2])
    assert stats["ppo/skipped"] == 4 and stats["ppo/updates"] == 0 and stats["ppo/skipped_nonfinite"] == (4 if fault == "nan" else 0)


def test_gradients_that_others_left_do_not_enter_a_step():
    """An interrupted step leaves some, and so does a backward() of the user's own."""
    clean, dirty = trainer_of(), trainer_of()
    for parameter in dirty.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert dirty.step(QUERIES, RESPONSES, SCORES)["ppo/grad_norm"] == clean.step(QUERIES, RESPONSES, SCORES)["ppo/grad_norm"]
    assert same(weights(clean), weights(dirty))


def test_a_scheduler_that_needs_a_metric_is_refused():
    model = make_policy()
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises(ValueError, match="ReduceLROnPlateau"):
        PPOTrainer(PPOConfig(), model, optimizer=optimizer, lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer))


def test_a_seed_of_none_is_the_trainers_generator():
    one, two = trainer_of(), trainer_of()
    for a, b in zip(one.generate(QUERIES, seed=None, top_k=None, top_p=None, min_length=None), two.generate(QUERIES), strict=True):
        assert torch.equal(a, b)


def test_kl_coef_stays_positive_however_large_the_batch():
    """Horizon 10, 128 responses, KL 0: at most 20 % a step."""
    controller = AdaptiveKLController(0.5, 6.0, 10.0)
    controller.update(0.0, 128)
    assert controller.value == pytest.approx(0.4)


def test_early_stopping_acts_before_the_optimizer_moves(monkeypatch):
    """Tolerance 0: the first minibatch (approximate KL 0) is stepped on, the second is not."""
    trainer = trainer_of(early_stopping=True, target_kl=1e-9, learning_rate=1e-2)
    stats = trainer.step(QUERIES, RESPONSES, SCORES)
    assert stats["ppo/updates"] == 1 and stats["ppo/early_stopped"] == 1
    one = trainer_of(ppo_epochs=1, learning_rate=1e-2)
    one.step(QUERIES, RESPONSES, SCORES)
    for a, b in zip(weights(trainer), weights(one)):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_score_scaling_norm_and_clip():
    """Scores 1 and 3: mean 2, std sqrt(2): normalised -.7071 and .7071; clipped to +-.5."""
    pair = QUERIES[:2], RESPONSES[:2], [1.0, 3.0]
    assert trainer_of(use_score_scaling=True).step(*pair)["ppo/mean_scores"] == pytest.approx(2 / 2**0.5)
    normed = trainer_of(use_score_scaling=True, use_score_norm=True).step(*pair)
    assert normed["ppo/mean_scores"] == pytest.approx(0, abs=1e-6) and normed["ppo/std_scores"] == pytest.approx(1)
    assert trainer_of(score_clip=0.5).step(*pair)["ppo/mean_scores"] == 0.5
    constant = trainer_of(use_score_scaling=True, use_score_norm=True)
    assert constant.step(*pair[:2], [3.0, 3.0])["ppo/mean_scores"] == 0


def test_missing_eos_penalty():
    """Three of five responses do not end in token 60: each loses 2, on average 6 / 5."""
    class Tokenizer:
        eos_token_id = 60
    responses = [torch.tensor([1, 60]), torch.tensor([60]), torch.tensor([60, 1]), torch.tensor([2]), torch.tensor([3, 4])]
    trainer = PPOTrainer(PPOConfig(missing_eos_penalty=2.0), make_policy(), tokenizer=Tokenizer())
    assert trainer.step(QUERIES, responses, [0.0] * 5)["ppo/mean_scores"] == pytest.approx(-6 / 5)
    with pytest.raises(ValueError, match="needs to know the EOS"):
        trainer_of(missing_eos_penalty=2.0).step(QUERIES, RESPONSES, SCORES)


def test_temperature_is_that_of_the_sampling():
    """The trainer samples and scores with one temperature: KL and ratio are those of the tempered distributions."""
    trainer = trainer_of(temperature=0.7, learning_rate=0.0)
    responses = trainer.generate(QUERIES, max_new_tokens=5)
    from minippo.policy import response_logprobs
    expected, _, _ = response_logprobs(trainer.model, QUERIES, responses, temperature=0.7)
    close(trainer.step(QUERIES, responses, SCORES)["objective/logprobs"], expected.detach(), atol=1e-5)
    responses = trainer.generate(QUERIES, max_new_tokens=5, temperature=0.5)
    expected, _, _ = response_logprobs(trainer.model, QUERIES, responses, temperature=0.5)
    close(trainer.step(QUERIES, responses, SCORES, temperature=0.5)["objective/logprobs"], expected.detach(), atol=1e-5)
    with pytest.warns(UserWarning, match="sampled at temperature 0.5, but step.. scores at 0.7"):
        trainer.step(QUERIES, responses, SCORES)
    with pytest.raises(ValueError, match="one positive number that fp32 holds, got 0"):
        trainer.step(QUERIES, responses, SCORES, temperature=0)


def test_settings_of_one_sampling_do_not_stick_to_the_next():
    """An evaluation at temperature .01 without EOS, or a greedy one, leaves the next sampling as configured."""
    class Tokenizer:
        eos_token_id = 7
    plain, interrupted = (PPOTrainer(PPOConfig(), make_policy(), tokenizer=Tokenizer()) for _ in range(2))
    interrupted.generate(QUERIES, max_new_tokens=8, temperature=0.01, eos_token_id=None, seed=3)
    a, b = (trainer.generate(QUERIES * 4, max_new_tokens=8) for trainer in (plain, interrupted))
    assert same(a, b) and interrupted.eos_token_id == 7
    interrupted.generate(QUERIES, max_new_tokens=8, temperature=0.01, do_sample=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        interrupted.step(QUERIES, RESPONSES, SCORES)                 # greedy is no sampling: nothing to warn of


def test_the_controller_sees_nats_per_response_whatever_the_penalty():
    values = []
    for kind in ("kl", "abs", "mse", "full"):
        trainer = trainer_of(kl_penalty=kind, target=0.001, horizon=100.0)
        with torch.no_grad():
            trainer.model.transformer.wte.weight.add_(0.05 * torch.randn(61, 32, generator=torch.Generator().manual_seed(3)))
        stats = trainer.step(QUERIES, RESPONSES, SCORES)
        values.append((stats["objective/kl"], trainer.kl_controller.value))
        assert stats["objective/kl_coef"] == 0.2
    assert len(set(values)) == 1


def test_learning_rate_schedule_moves_once_a_step():
    model = make_policy()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 4)
    trainer = PPOTrainer(PPOConfig(), model, optimizer=optimizer, lr_scheduler=schedule)
    assert [round(trainer.step(QUERIES, RESPONSES, SCORES)["ppo/learning_rate"], 6) for _ in range(3)] == [0.1, 0.075, 0.05]


def test_length_sampler_return_prompt_and_eos_of_the_tokenizer():
    class Tokenizer:
        eos_token_id = 7
    trainer, lengths = PPOTrainer(PPOConfig(), make_policy(), tokenizer=Tokenizer()), iter([2, 5, 3, 1, 4])
    responses = trainer.generate(QUERIES, length_sampler=lambda: next(lengths), eos_token_id=None)
    assert [len(r) for r in responses] == [2, 5, 3, 1, 4]
    again = PPOTrainer(PPOConfig(), make_policy(), tokenizer=Tokenizer())
    full = again.generate([torch.tensor([7, 1, 7])] * 30, return_prompt=True, max_new_tokens=20)
    assert all(row[:3].tolist() == [7, 1, 7] and len(row) > 3 for row in full)          # EOS in the query cuts nothing
    assert all(7 not in row[3:-1] for row in full) and any(row[-1] == 7 and len(row) < 23 for row in full)


def test_filtered_sampling_warns_once(recwarn):
    trainer = trainer_of()
    for kwargs in ({"min_length": -1, "top_k": 0.0, "top_p": 1.0}, {"top_k": 5}, {"top_p": 0.9}):
        trainer.generate(QUERIES, max_new_tokens=2, **kwargs)
    messages = [str(w.message) for w in recwarn if "no longer come from the distribution" in str(w.message)]
    assert len(messages) == 1 and messages[0].startswith("top_k")


def test_trainer_refuses_what_cannot_work():
    model = make_policy()
    with pytest.raises(ValueError, match="would move with it"):
        PPOTrainer(PPOConfig(), model, ref_model=model)
    with pytest.raises(ValueError, match="61 tokens and 64 positions, the reference 5 and 64"):
        PPOTrainer(PPOConfig(), model, ref_model=make_policy(vocab_size=5))
    with pytest.raises(ValueError, match="without the optimizer"):
        PPOTrainer(PPOConfig(), model, lr_scheduler=object())


# --- configuration ------------------------------------------------------------------------------------------------------

def test_defaults_are_those_of_trl():
    expected = dict(batch_size=128, mini_batch_size=128, gradient_accumulation_steps=1, ppo_epochs=4, learning_rate=1.41e-5,
                    adap_kl_ctrl=True, init_kl_coef=0.2, kl_penalty="kl", target=6.0, horizon=10000.0, gamma=1.0, lam=0.95,
                    cliprange=0.2, cliprange_value=0.2, vf_coef=0.1, max_grad_norm=None, early_stopping=False, target_kl=1.0,
                    ratio_threshold=10.0, use_score_scaling=False, use_score_norm=False, score_clip=None,
                    whiten_rewards=False, seed=0)
    assert {name: getattr(PPOConfig(), name) for name in expected} == expected
    assert PPOConfig(**{"batch_size": 1}).batch_size == 1 and PPOConfig(**{"mini_batch_size": 1, "batch_size": 1})


@pytest.mark.parametrize("kwargs, message", [
    ({"batch_size": 0}, "batch_size must be a whole number above 0, got 0"), ({"ppo_epochs": 1.5}, "ppo_epochs"),
    ({"learning_rate": -1e-5}, "learning_rate"), ({"learning_rate": "1e-5"}, "learning_rate"), ({"lam": 1.5}, "from 0 to 1"),
    ({"gamma": math.nan}, "gamma"), ({"cliprange": 0}, "cliprange"), ({"max_grad_norm": 0.0}, "max_grad_norm"),
    ({"score_clip": -1}, "score_clip"), ({"kl_penalty": "k1"}, "one of kl, abs, mse, k3, full"), ({"temperature": 0}, "temperature"),
    ({"use_score_norm": True}, "needs use_score_scaling"), ({"mini_batch_size": True}, "mini_batch_size"),
    ({"adap_kl_ctrl": "no"}, "adap_kl_ctrl must be True or False, got 'no'"), ({"compile": None}, "compile must be True or False")])
def test_impossible_settings_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PPOConfig(**kwargs)


def test_every_field_of_the_configuration_is_read():
    package = Path(ppo.__file__).parent
    read = {node.attr for path in package.rglob("*.py") for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}
    assert {field.name for field in fields(PPOConfig)} <= read
