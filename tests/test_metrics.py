"""The table of the statistics: whole, and of everything that is logged."""

import pytest
import torch
from conftest import make_policy, make_ragged
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from minippo.metrics import GROUPS, METRICS, masked_whiten, metric_of
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


class NoDoubles(TorchDispatchMode):
    """Fails where an fp64 tensor is made on Apple's GPU, which has none."""
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        assert not (isinstance(made, torch.Tensor) and made.device.type == "mps" and made.dtype == torch.float64), function
        return made


def test_whitening_makes_no_doubles_on_apples_gpu():
    """With tensors that only say where they are, as nobody here has one."""
    with FakeTensorMode(), NoDoubles():
        x, mask = torch.empty(3, 4, device="mps"), torch.empty(3, 4, dtype=torch.bool, device="mps")
        whitened = masked_whiten(x, mask)
        assert (whitened.device.type, whitened.dtype, whitened.shape) == ("mps", torch.float32, (3, 4))
        with pytest.raises(AssertionError, match="_to_copy"):
            x.double()
