"""Tasks whose outcome is known beforehand, learnt by the real ppo.py in seconds.

They guard sign, coefficient, ratio, clipping, advantages and alignment together: a formula may look right and still not learn.
"""

import pytest
import torch

from conftest import make_policy
from minippo.policy import response_logprobs
from minippo.ppo import PPOConfig, PPOTrainer

QUERY = torch.tensor([1])


def train(score, response_length: int, updates: int, batch: int = 128, **config) -> PPOTrainer:
    policy = make_policy(vocab_size=6, n_positions=8, n_embd=16, n_layer=1, n_head=2)
    settings = dict(adap_kl_ctrl=False, learning_rate=3e-3, mini_batch_size=batch, vf_coef=0.5)
    trainer = PPOTrainer(PPOConfig(**{**settings, **config}), policy)
    for update in range(updates):
        trainer.optimizer.param_groups[0]["lr"] = trainer.config.learning_rate * (1 - update / updates)
        responses = trainer.generate([QUERY] * batch, max_new_tokens=response_length)
        trainer.stats = trainer.step([QUERY] * batch, responses, [score(r.tolist()) for r in responses])
    return trainer


def first_token_probs(model) -> torch.Tensor:
    with torch.no_grad():
        logprobs, _, _ = response_logprobs(model, [QUERY] * 6, [torch.tensor([a]) for a in range(6)])
    return logprobs[:, 0].exp()


@pytest.mark.parametrize("kl_coef", [0.5, 2.0])
def test_one_token_responses_reach_the_closed_form_optimum(kl_coef):
    """max E[score] - kl_coef * KL has the solution pi*(a) ~ pi_ref(a) * exp(score(a) / kl_coef); total variation < 0.02.

    With the KL sign flipped it is above 0.5.
    """
    scores = torch.tensor([0.0, 1.0, -1.0, 0.5, 0.2, -0.3])
    trainer = train(lambda r: scores[r[0]].item(), 1, 80, batch=256, learning_rate=1e-2, init_kl_coef=kl_coef)
    optimum = (first_token_probs(trainer.ref_model).log() + scores / kl_coef).softmax(0)
    reached, start = first_token_probs(trainer.model), first_token_probs(trainer.ref_model)
    assert 0.5 * (reached - optimum).abs().sum() < 0.02 < 0.5 * (start - optimum).abs().sum()


def test_a_constant_score_leaves_the_policy_in_place_and_teaches_the_value_head():
    trainer = train(lambda r: 2.0, 3, 40, init_kl_coef=0.2)
    assert abs(trainer.stats["objective/kl"]) < 0.05
    assert trainer.stats["ppo/val/vpred"] == pytest.approx(2.0, abs=0.25)
    assert 0.5 * (first_token_probs(trainer.model) - first_token_probs(trainer.ref_model)).abs().sum() < 0.05


def test_credit_reaches_the_first_of_three_tokens():
    trainer = train(lambda r: float(r[0] == 4), 3, 40, init_kl_coef=0.01)
    assert first_token_probs(trainer.ref_model)[4] < 0.5 and first_token_probs(trainer.model)[4] > 0.9


def test_a_huge_kl_coefficient_keeps_the_policy_at_the_reference():
    trainer = train(lambda r: float(r[0] == 4), 3, 30, init_kl_coef=100.0)
    assert 0.5 * (first_token_probs(trainer.model) - first_token_probs(trainer.ref_model)).abs().sum() < 0.05


def test_the_value_head_learns_what_depends_on_the_query():
    policy = make_policy(vocab_size=6, n_positions=8, n_embd=16, n_layer=1, n_head=2)
    trainer = PPOTrainer(PPOConfig(adap_kl_ctrl=False, learning_rate=3e-3, vf_coef=1.0, cliprange_value=10.0), policy)
    queries = [torch.tensor([a]) for a in (1, 4)] * 32
    for _ in range(60):
        responses = trainer.generate(queries, max_new_tokens=2)
        stats = trainer.step(queries, responses, [1.0 if query == 1 else -1.0 for query in queries])
    _, values, _ = response_logprobs(policy, queries, responses)
    assert values[::2, 0].mean() > 0.8 and values[1::2, 0].mean() < -0.8 and stats["ppo/val/var_explained"] > 0.8
