"""Chapter 8: advantages. Check yourself with `python -m tutorial.check 8`."""

import torch
from torch import Tensor


def td_errors(values: Tensor, rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """The surprise of each token: what it earned, plus what is expected after it, minus what was expected before it.

    Args:
        values: (B, R) expected future reward before each token.
        rewards: (B, R)
        mask: (B, R) bool, True at real tokens; values and rewards may hold anything where it is False.
        gamma: the discount of what comes one token later.

    Returns:
        (B, R), 0 where mask is False. After a row's last real token the value is 0.
    """
    raise NotImplementedError


def compute_advantages(values: Tensor, rewards: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation: a token's own surprise, plus gamma * lam times the advantage of the next token.

    Args:
        values, rewards, mask, gamma: as in td_errors.
        lam: how much of the later surprises a token is credited with, from 0 to 1.

    Returns:
        advantages (B, R), not whitened, and returns (B, R) = advantages + values; both 0 where mask is False.
    """
    raise NotImplementedError


def masked_whiten(x: Tensor, mask: Tensor) -> Tensor:
    """x shifted and scaled so that all its real elements together have mean 0 and variance 1 (variance with n - 1).

    Args:
        x: (B, R), anything where mask is False.
        mask: (B, R) bool, True at real tokens.

    Returns:
        (B, R), 0 where mask is False; finite, also when there is a single real element.
    """
    raise NotImplementedError
