"""The table of the statistics: whole, and of everything that is logged."""

import torch
from conftest import make_policy, make_ragged

from minippo.metrics import GROUPS, METRICS, metric_of
from minippo.ppo import PPOConfig, PPOTrainer


def test_the_table_explains_every_scalar_that_a_step_returns():
    """What PPOTrainer.step logs is in METRICS; else the report and the tutorial would pass over it in silence."""
    trainer = PPOTrainer(PPOConfig(batch_size=2, mini_batch_size=2, ppo_epochs=1), make_policy(n_layer=1))
    stats = trainer.step(make_ragged([3, 4]), make_ragged([5, 6], seed=1), [1.0, 0.0])
    scalars = [key for key, value in stats.items() if not (isinstance(value, torch.Tensor) and value.dim())]
    assert len(scalars) > 25
    assert [key for key in scalars if metric_of(key) is None] == []


def test_the_table_is_complete_and_without_doubles():
    keys = [metric.key for metric in METRICS]
    assert len(keys) == len(set(keys))
    assert all(all(metric) for metric in METRICS), "a field is empty"
    assert {metric.group for metric in METRICS} == set(GROUPS)
    assert metric_of("score/rule:length").title == "Score: rule:length"
    assert metric_of("step") is None
