"""Chapter 10: a whole run. Check yourself with `python -m tutorial.check 10`."""

import torch
from torch import Tensor


def on_frontier(scores: Tensor, kls: Tensor) -> Tensor:
    """Which runs are beaten by no other. A run beats another with at least its score, at most its KL, and one of the two better.

    Args:
        scores: (K,) mean score of each of K runs; more is better.
        kls: (K,) KL of each; less is better.

    Returns:
        (K,) bool.
    """
    raise NotImplementedError


def next_kl_coef(kl_coef: float, kl: float, target: float, n: int, horizon: float) -> float:
    """kl_coef after an update: larger where the KL is above its target, smaller where it is below.

    Args:
        kl_coef: its value in this update.
        kl: nats per response, the mean over the n responses of this update.
        target: the KL wanted.
        n: responses in this update.
        horizon: responses over which the full error acts; errors beyond 20 % count as 20 %.
    """
    raise NotImplementedError
