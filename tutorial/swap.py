"""Train with your own functions: put those of the exercises into minippo.ppo.

    python -m tutorial.swap train --model ... --prompts ...      # python -m minippo, with your functions inside

or, in Python: `use_exercises()`, then train as usual; `use_originals()` undoes it.

Only a function that passes its check is put in, so that a half-written exercise cannot spoil a run, and it works on clones: one
that writes into its inputs after all stops the run and is named. The exercises are simpler than the originals, which also serve
options and statistics; the small adapters here bridge the difference.
"""

from __future__ import annotations

import importlib
import sys
from typing import Callable

import torch

from minippo import ppo

from .check import checks_of, guarded, verdict

ORIGINALS = {name: getattr(ppo, name) for name in ("compute_rewards", "compute_advantages", "masked_whiten", "ppo_loss")}


def adapt_rewards(learners: Callable) -> Callable:
    """(scores, logprobs, ref_logprobs, mask, kl_coef) -> rewards, as ppo.compute_rewards; k1 penalty, one score a response."""
    def compute_rewards(scores, logprobs, ref_logprobs, mask, kl_coef, kl_penalty="kl", kl=None):
        if kl_penalty != "kl" or scores.dim() > 1:
            raise ValueError("your compute_rewards knows kl_penalty='kl' and one score a response; call use_originals()")
        original = ORIGINALS["compute_rewards"](scores, logprobs, ref_logprobs, mask, kl_coef)
        return original._replace(rewards=learners(scores, logprobs, ref_logprobs, mask, kl_coef))
    return compute_rewards


def adapt_whiten(learners: Callable) -> Callable:
    """(x, mask) -> x with mean 0 and variance 1, as ppo.masked_whiten, which can also keep the mean."""
    def masked_whiten(x, mask, shift_mean=True):
        return learners(x, mask) if shift_mean else ORIGINALS["masked_whiten"](x, mask, shift_mean=False)
    return masked_whiten


def adapt_loss(learners: Callable) -> Callable:
    """(new_logprobs, new_values, logprobs, values, advantages, returns, mask, cliprange, cliprange_value, vf_coef) -> loss."""
    def ppo_loss(new_logprobs, new_values, logprobs, values, advantages, returns, mask, cliprange=0.2, cliprange_value=0.2,
                 vf_coef=0.1, entropy=None, entropy_coef=0.0, n_tokens=None):
        if entropy_coef:
            raise ValueError("your ppo_loss has no entropy bonus: set entropy_coef=0, or call use_originals()")
        batch = (new_logprobs, new_values, logprobs, values, advantages, returns, mask)
        with torch.no_grad():
            _, stats = ORIGINALS["ppo_loss"](*batch, cliprange, cliprange_value, vf_coef, entropy, 0.0, n_tokens)
        share = 1.0 if n_tokens is None else mask.sum() / n_tokens      # the learner's mean is over this micro-batch alone
        loss = learners(*batch, cliprange, cliprange_value, vf_coef) * share
        return loss, stats | {"ppo/loss/total": loss.detach()}
    return ppo_loss


SWAPS = {       # exercise function: its chapter, and what makes it fit into ppo.py
    "compute_rewards": (7, adapt_rewards),
    "compute_advantages": (8, lambda learners: learners),
    "masked_whiten": (8, adapt_whiten),
    "ppo_loss": (9, adapt_loss),
}


def use_exercises(folder: str = "exercises") -> list[str]:
    """Put the functions of tutorial/<folder> that pass their checks into minippo.ppo; print which, and return their names."""
    use_originals()
    used = []
    for name, (number, adapt) in SWAPS.items():
        learners = getattr(importlib.import_module(f"tutorial.{folder}.ex{number:02d}"), name)
        said = verdict(checks_of(number)[name], learners)
        if said is None:
            setattr(ppo, name, adapt(guarded(learners)))
            used.append(name)
        print(f"{name}: {'yours, from chapter ' + str(number) if said is None else 'ours; yours: ' + said}")
    return used


def use_originals() -> None:
    """Put minippo's own functions back."""
    for name, original in ORIGINALS.items():
        setattr(ppo, name, original)


if __name__ == "__main__":
    from minippo.__main__ import main
    use_exercises()
    sys.exit(main(sys.argv[1:]))
