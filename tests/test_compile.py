"""torch.compile, block by block, equals the eager way. It needs a C++ compiler and a minute: MINIPPO_SLOW=1 runs it."""

import os
import shutil

import pytest
import torch

from conftest import make_policy, make_ragged
from minippo.ppo import PPOConfig, PPOTrainer

pytestmark = [pytest.mark.skipif(not os.environ.get("MINIPPO_SLOW"), reason="compiles for a minute: set MINIPPO_SLOW=1"),
              pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")]


def test_compiled_steps_equal_eager_ones():
    """Three ragged batches, so that the shapes change: the same statistics, the first ratio exactly 1, weights that stay close."""
    results = []
    for compiled in (False, True):
        torch.compiler.reset()
        policy = make_policy()
        trainer = PPOTrainer(PPOConfig(mini_batch_size=3, ppo_epochs=2, compile=compiled), policy,
                             optimizer=torch.optim.SGD(policy.parameters(), lr=0.01))       # Adam makes steps of rounding errors
        for seed in range(3):
            queries, responses = make_ragged([2, 7, 4, 5, 3, 6], seed=seed), make_ragged([5, 3, 6, 1, 4, 2], seed=10 + seed)
            stats = trainer.step(queries, responses, [1.0, 0.0, -1.0, 0.5, 2.0, -0.5])
            assert (stats["ppo/policy/ratio"][:6] == 1).all()               # three responses have at least 1 + 2 + 3 tokens
            numbers = {name: x for name, x in stats.items() if isinstance(x, float) and not name.startswith("time/")}
            results.append((numbers, torch.cat([p.detach().flatten() for p in policy.parameters()])))
    for (eager, weights), (compiled, compiled_weights) in zip(results[:3], results[3:]):
        assert compiled == pytest.approx(eager, rel=1e-3, abs=1e-4)
        torch.testing.assert_close(compiled_weights, weights, atol=1e-5, rtol=1e-3)
    assert not trainer.model.transformer.skip_padding
