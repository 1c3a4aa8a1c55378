"""Chapter 7: rewards. Check yourself with `python -m tutorial.check 7`."""

import torch
from torch import Tensor


def kl_estimates(logprobs: Tensor, ref_logprobs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three estimates of KL(policy || reference) from one sampled token: k1, k2, k3.

    Args:
        logprobs, ref_logprobs: of the same tokens, sampled from the policy; any shape.

    Returns:
        k1, the log-ratio; k2, half its square; k3, what is never negative and right on average. Each of the given shape.
    """
    raise NotImplementedError


def compute_rewards(scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """What each token earned: the KL penalty (k1) at every token, and the score on the last real one.

    Args:
        scores: (B,) one number a response.
        logprobs, ref_logprobs: (B, R) of the response tokens under the policy and under the reference.
        mask: (B, R) bool, True at real tokens, which come first in each row; logprobs may hold any finite number behind them.
        kl_coef: what one nat of KL costs.

    Returns:
        (B, R), 0 where mask is False.
    """
    raise NotImplementedError
