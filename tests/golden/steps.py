"""A few PPO steps on a tiny GPT-2: the problem that minippo solves here and TRL in tests/peers/trl_steps.py.

Both sides start from the same weights, see the same queries, responses and scores, and use the rows in the same order. They
report each step as a `Step`, whose fields are then compared number by number. Both can run in double precision: what is left
between them then is no rounding but a difference of the algorithms.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import NamedTuple
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from minippo import GPT2Config, GPT2WithValueHead, PPOConfig, PPOTrainer, ppo

SIZES = {"vocab_size": 31, "n_positions": 16, "n_embd": 12, "n_layer": 2, "n_head": 2}
EOS = 30
BATCH, EPOCHS = 8, 4


class Batch(NamedTuple):
    queries: list[Tensor]
    responses: list[Tensor]
    scores: list[Tensor]
    orders: list[list[int]]             # the order of the rows in each epoch


class Problem(NamedTuple):
    weights: dict[str, Tensor]          # of the policy, under the names of GPT2WithValueHead
    reference: dict[str, Tensor]
    batches: list[Batch]                # one a step


class Step(NamedTuple):
    tokens: dict[str, Tensor]           # (N,) each: logprobs, rewards, ... of the N response tokens, row after row
    stats: dict[str, float]             # the scalars that step() returned, without the times
    kl_coef: float                      # after the step
    weights: dict[str, Tensor]          # after the step


def random_weights(generator: torch.Generator) -> dict[str, Tensor]:
    """No weight is zero, and they are large enough for a policy with opinions."""
    model = GPT2WithValueHead(GPT2Config(**SIZES), generator=generator)
    return {name: p.detach() + 0.2 * torch.randn(p.shape, generator=generator) for name, p in model.named_parameters()}


def random_batch(generator: torch.Generator, equal_lengths: bool) -> Batch:
    """Queries of 1 to 6 tokens and responses of 1 to 5, all of 4 and 5 if `equal_lengths`; some responses end with EOS."""
    def sequences(low: int, high: int, length: int) -> list[Tensor]:
        lengths = torch.randint(low, high + 1, (BATCH,), generator=generator).tolist()
        return [torch.randint(EOS, (length if equal_lengths else n,), generator=generator) for n in lengths]

    queries, responses = sequences(1, 6, 4), sequences(1, 5, 5)
    for response in responses[::3]:
        response[-1] = EOS
    orders = [torch.randperm(BATCH, generator=generator).tolist() for _ in range(EPOCHS)]
    return Batch(queries, responses, list(torch.randn(BATCH, generator=generator)), orders)


def make_problem(steps: int = 3, equal_lengths: bool = False) -> Problem:
    """The reference is another model than the policy, so that the KL penalty counts from the first step on."""
    generator = torch.Generator().manual_seed(28)               # this policy's greedy responses meet EOS
    weights, noise = random_weights(generator), random_weights(generator)
    reference = {name: w + 0.3 * noise[name] for name, w in weights.items()}
    return Problem(weights, reference, [random_batch(generator, equal_lengths) for _ in range(steps)])


# ---------------------------------------------------------------------------------------------------------------------
# double precision
# ---------------------------------------------------------------------------------------------------------------------

class DoubleTorch:
    """The module torch, but its float32 is float64."""
    float32 = float = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@contextmanager
def double_precision(*modules):
    """float64 where the given modules and `Tensor.float` ask for float32, which both implementations do in places."""
    with patch.object(torch.Tensor, "float", torch.Tensor.double):
        for module in modules:
            module.torch = DoubleTorch()
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)
            for module in modules:
                module.torch = torch


# ---------------------------------------------------------------------------------------------------------------------
# minippo's side
# ---------------------------------------------------------------------------------------------------------------------

def make_policy(weights: dict[str, Tensor], dtype: torch.dtype) -> GPT2WithValueHead:
    model = GPT2WithValueHead(GPT2Config(**SIZES), dtype=dtype).to(dtype)
    model.load_state_dict(weights)
    return model


def minippo_steps(problem: Problem, dtype: torch.dtype = torch.float64, lr_decay: float | None = None,
                  **settings) -> list[Step]:
    """The problem's steps by PPOTrainer; `settings` go into PPOConfig, `lr_decay` multiplies the rate after each step."""
    config = PPOConfig(**{"batch_size": BATCH, "mini_batch_size": BATCH, **settings})
    with double_precision(ppo) if dtype == torch.float64 else nullcontext():
        model = make_policy(problem.weights, dtype)
        optimizer = scheduler = None
        if lr_decay is not None:
            optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
            scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, lr_decay)
        trainer = PPOTrainer(config, model, make_policy(problem.reference, dtype), optimizer=optimizer, lr_scheduler=scheduler)
        return [minippo_step(trainer, batch) for batch in problem.batches]


def minippo_step(trainer: PPOTrainer, batch: Batch) -> Step:
    """One step, with a look at what passes between its parts."""
    seen, orders = {}, iter(batch.orders)
    compute_rewards, update = ppo.compute_rewards, trainer.update

    def see_rewards(*args):
        seen["before whitening"] = compute_rewards(*args)
        return seen["before whitening"]

    def see_update(filled, minibatches):
        seen.update(vars(filled), rewards=seen["before whitening"].rewards)
        return update(filled, minibatches)

    with (patch.object(ppo, "compute_rewards", see_rewards), patch.object(trainer, "update", see_update),
          patch.object(torch, "randperm", lambda n, generator, device: torch.tensor(next(orders)))):
        stats = trainer.step(batch.queries, batch.responses, batch.scores)
    columns = ("logprobs", "ref_logprobs", "values", "rewards", "advantages", "returns")
    return Step({name: seen[name][seen["mask"]] for name in columns}, scalars(stats), trainer.kl_controller.value,
                {name: p.detach().clone() for name, p in trainer.model.named_parameters()})


def scalars(stats: dict) -> dict[str, float]:
    return {name: float(x) for name, x in stats.items() if isinstance(x, (int, float)) and not name.startswith("time/")}


# ---------------------------------------------------------------------------------------------------------------------
# comparing
# ---------------------------------------------------------------------------------------------------------------------

def assert_numbers_agree(ours: Step, theirs: Step, rtol: float, atol: float) -> None:
    """The numbers of every token, the KL coefficient, and every scalar of theirs, which must all be among ours.

    But for the explained variance: theirs is of the values that are learnt during the step, ours of those of the rollout.
    """
    torch.testing.assert_close(ours.tokens, theirs.tokens, rtol=rtol, atol=atol, check_dtype=False)
    assert ours.kl_coef == pytest.approx(theirs.kl_coef, rel=rtol, abs=0)
    assert set(theirs.stats) <= set(ours.stats)
    names = theirs.stats.keys() - {"ppo/val/var_explained"}
    torch.testing.assert_close(*({name: step.stats[name] for name in names} for step in (ours, theirs)), rtol=rtol, atol=atol)


def weight_error(ours: Step, theirs: Step) -> float:
    """The largest distance |ours - theirs| / |theirs| of a parameter tensor.

    Left out is the bias of the attention keys: it adds the same to all scores of a query, which the softmax ignores. Its
    gradient is zero but for rounding, which Adam blows up to whole steps: in fp32 it is noise on both sides.
    """
    errors = []
    for name, w in theirs.weights.items():
        difference = ours.weights[name] - w
        if name.endswith("attn.c_attn.bias"):
            (query, _, value), (w_query, _, w_value) = difference.chunk(3), w.chunk(3)
            difference, w = torch.cat([query, value]), torch.cat([w_query, w_value])
        errors.append(float(difference.norm() / w.norm()))
    return max(errors)
