"""REINFORCE, RLOO and GRPO in PPO's step: the baselines by hand, what a baseline is worth, and that no critic is left."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch

from conftest import make_policy, make_ragged
from minippo import ppo
from minippo.metrics import METRICS
from minippo.policy import response_logprobs
from minippo.ppo import PPOConfig, PPOTrainer, compute_group_advantages
from test_probe import first_token_probs, train

KINDS = ["reinforce", "rloo", "grpo"]
GOLDEN = json.loads((Path(__file__).parent / "golden" / "verl_0_9_1.json").read_text())
CRITIC = {"ppo/loss/value", "ppo/val/vpred", "ppo/val/error", "ppo/val/clipfrac", "ppo/val/mean", "ppo/val/var", "ppo/val/var_explained",
          "ppo/returns/mean", "ppo/returns/var"}
QUERIES, SCORES = [query for query in make_ragged((3, 5)) for _ in range(2)], [1.0, 0.0, 2.0, 2.0]


def trainer_of(kind: str, **config) -> PPOTrainer:
    size = 1 if kind in ("gae", "reinforce") else 2
    return PPOTrainer(PPOConfig(**{"advantage": kind, "group_size": size, "mini_batch_size": 3, "learning_rate": 1e-3} | config), make_policy())


# --- the advantages ------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind, expected", [
    # totals 3, 1 | 0, 4: mean of all 2; of the groups 2 and 2, the others' 1, 3 | 4, 0; deviations sqrt 2 and sqrt 8
    ("reinforce", [1, -1, -2, 2]),
    ("rloo", [2, -2, -4, 4]),
    ("grpo", [1 / math.sqrt(2), -1 / math.sqrt(2), -2 / math.sqrt(8), 2 / math.sqrt(8)])])
def test_advantages_by_hand(kind, expected):
    """The total of the real tokens counts, whatever stands in the padding, and all tokens of a response get the same."""
    rewards = torch.tensor([[1.0, 2.0, 99.0], [1.0, -1.0, 1.0], [0.0, math.nan, math.nan], [4.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 1]])
    advantages = compute_group_advantages(rewards, mask, 2, kind)
    torch.testing.assert_close(advantages, torch.tensor(expected, dtype=torch.float32)[:, None] * mask, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", range(len(GOLDEN)))
@pytest.mark.parametrize("kind", ["rloo", "grpo"])
def test_advantages_equal_those_of_verl(kind, case):
    case = GOLDEN[case]
    ours = compute_group_advantages(torch.tensor(case["rewards"]), torch.tensor(case["mask"]), case["group_size"], kind)
    torch.testing.assert_close(ours, torch.tensor(case[kind]), atol=1e-6, rtol=1e-6)


def test_groups_of_equal_rewards_have_no_advantage():
    """Exactly: the mean of three times 100.7 is not 100.7 in fp32, and grpo would divide the rest by a deviation as small."""
    for kind, size in itertools.product(("reinforce", "rloo", "grpo"), (2, 3, 6, 7, 12)):
        assert compute_group_advantages(torch.full((2 * size, 3), 100.7), torch.ones(2 * size, 3), size, kind).abs().max() == 0


# --- what a baseline is worth, exactly: three words, probabilities p, scores s ---------------------------

P, S = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64), torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)
GRADIENTS = torch.eye(3, dtype=torch.float64) - P                       # d log p(a) / d logits, one row for each word a


def moments_of(batches: list[tuple[float, torch.Tensor]]) -> tuple[torch.Tensor, float]:
    """Mean and total variance of a gradient estimate, from all batches there are with their probabilities."""
    mean = sum(probability * gradient for probability, gradient in batches)
    return mean, float(sum(probability * (gradient - mean).square().sum() for probability, gradient in batches))


def every_batch(n: int, kind: str | None) -> list[tuple[float, torch.Tensor]]:
    """All batches of n words that one query can get, and the gradient that REINFORCE, or `kind`, estimates from each."""
    batches = []
    for words in map(list, itertools.product(range(3), repeat=n)):
        rewards = S[words][:, None]
        advantages = rewards if kind is None else compute_group_advantages(rewards, torch.ones(n, 1), n, kind)
        batches.append((float(P[words].prod()), (advantages * GRADIENTS[words]).mean(0)))
    return batches


def test_a_baseline_leaves_the_mean_gradient_and_narrows_it():
    """The true gradient is p * (s - E[s]). RLOO's baseline does not see the response itself: unbiased, at two thirds of the variance."""
    exact = P * (S - (P * S).sum())
    plain, wide = moments_of(every_batch(4, None))
    rloo, narrow = moments_of(every_batch(4, "rloo"))
    torch.testing.assert_close(plain, exact)
    torch.testing.assert_close(rloo, exact)
    assert narrow < wide / 1.5


def test_a_mean_that_holds_the_response_itself_shrinks_the_gradient():
    """REINFORCE less the batch's mean: (n - 1) / n of the gradient, as the response's own share of the mean is taken off. Whitening,
    which follows in `step`, undoes the factor."""
    shrunk, _ = moments_of(every_batch(4, "reinforce"))
    torch.testing.assert_close(shrunk, 0.75 * P * (S - (P * S).sum()))


# --- in the step ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", KINDS)
def test_one_token_responses_reach_the_closed_form_optimum(kind):
    """As tests/test_probe.py for gae: there score - kl_coef * log-ratio is the same for every word, so all advantages are 0."""
    scores, kl_coef = torch.tensor([0.0, 1.0, -1.0, 0.5, 0.2, -0.3]), 0.5
    trainer = train(lambda r: scores[r[0]].item(), 1, 80, batch=256, learning_rate=1e-2, init_kl_coef=kl_coef, advantage=kind,
                    group_size=1 if kind == "reinforce" else 4)
    optimum = (first_token_probs(trainer.ref_model).log() + scores / kl_coef).softmax(0)
    reached = first_token_probs(trainer.model)
    assert 0.5 * (reached - optimum).abs().sum() < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_there_is_no_critic(kind):
    trainer = trainer_of(kind)
    trainer.model.v_head.register_forward_hook(lambda *args: pytest.fail("the value head was evaluated"))
    before = [p.clone() for p in trainer.model.v_head.parameters()]
    responses = trainer.generate(QUERIES, max_new_tokens=4)
    stats = trainer.step(QUERIES, responses, SCORES)
    assert all(torch.equal(p, q) for p, q in zip(before, trainer.model.v_head.parameters()))
    assert not any(p in trainer.optimizer.state for p in trainer.model.v_head.parameters())
    assert not CRITIC & stats.keys() and all(math.isfinite(x) for x in stats.values() if isinstance(x, float))
    assert stats["ppo/loss/total"] == stats["ppo/loss/policy"]
    assert CRITIC <= trainer_of("gae").step(QUERIES, responses, SCORES).keys()                     # else nothing was absent


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_ratio_is_one_and_a_checkpoint_continues(kind, tmp_path):
    first, second = trainer_of(kind), trainer_of(kind)
    responses = first.generate(QUERIES, max_new_tokens=4)
    stats = first.step(QUERIES, responses, SCORES)
    assert (stats["ppo/policy/ratio"][:3] == 1).all() and stats["ppo/policy/advantages_mean"] == pytest.approx(0, abs=0.5)
    first.save_checkpoint(str(tmp_path / "checkpoint"))
    second.load_checkpoint(str(tmp_path / "checkpoint"))
    for trainer in (first, second):
        trainer.stats = trainer.step(QUERIES, trainer.generate(QUERIES, max_new_tokens=4), SCORES)
    assert first.stats["ppo/loss/policy"] == second.stats["ppo/loss/policy"]
    assert all(torch.equal(p, q) for p, q in zip(first.model.parameters(), second.model.parameters()))


def test_advantages_are_whitened_but_for_grpo():
    responses = [torch.tensor([1, 2]), torch.tensor([3]), torch.tensor([4, 5]), torch.tensor([6])]
    for kind, expected in (("grpo", [1 / math.sqrt(2), -1 / math.sqrt(2), 0, 0]), ("rloo", [1.7321, -1.7321, 0, 0])):
        advantages = trainer_of(kind, init_kl_coef=0.0, adap_kl_ctrl=False).step(QUERIES, responses, [2.0, 1.0, 3.0, 3.0])["ppo/policy/advantages"]
        if kind == "grpo":
            assert advantages.tolist() == pytest.approx([x for x, r in zip(expected, responses) for _ in r], abs=1e-5)
        else:                                                       # tokens +1 +1 | -1 | 0 0 | 0: mean 1/6, variance 17/30
            scale, mean = math.sqrt(30 / 17), 1 / 6
            assert advantages.tolist() == pytest.approx([(x - mean) * scale for x in (1, 1, -1, 0, 0, 0)], abs=1e-5)


def test_how_scores_differ_within_groups_is_told():
    """Groups 1, 0 | 2, 2: deviations sqrt 0.5 and 0; one of two is equal."""
    trainer = trainer_of("rloo")
    stats = trainer.step(QUERIES, trainer.generate(QUERIES, max_new_tokens=4), SCORES)
    assert stats["ppo/groups/std_scores"] == pytest.approx(math.sqrt(0.5) / 2) and stats["ppo/groups/equal"] == 0.5
    assert {"ppo/groups/std_scores", "ppo/groups/equal"} <= {metric.key for metric in METRICS}


# --- bad input ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("settings, said", [
    ({"advantage": "ppo"}, "advantage must be gae, reinforce, rloo or grpo; got 'ppo'"),
    ({"advantage": "rloo"}, "group_size must be 2 or more, got 1"),
    ({"advantage": "grpo", "group_size": 3}, "batch_size 128 is not a multiple of group_size 3"),
    ({"group_size": 0}, "group_size must be")])
def test_settings_that_make_no_groups_are_refused(settings, said):
    with pytest.raises(ValueError, match=said.replace(" ", ".")):
        PPOConfig(**settings)


def test_responses_that_make_no_groups_are_refused():
    trainer = trainer_of("rloo")
    responses = trainer.generate(QUERIES, max_new_tokens=4)
    with pytest.raises(ValueError, match="groups of 2 responses to one query .PPOConfig.group_size., got 3"):
        trainer.step(QUERIES[:3], responses[:3], SCORES[:3])
    with pytest.raises(ValueError, match=r"queries\[1\] differs from queries\[0\], but group_size is 2"):
        trainer.step(QUERIES[:1] + QUERIES[2:] + QUERIES[1:2], responses, SCORES)
    assert trainer.steps_done == 0
