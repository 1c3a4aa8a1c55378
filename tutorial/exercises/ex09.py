"""Chapter 9: the clipped step. Check yourself with `python -m tutorial.check 9`."""

import torch
from torch import Tensor


def policy_loss(new_logprobs: Tensor, logprobs: Tensor, advantages: Tensor, mask: Tensor, cliprange: float) -> Tensor:
    """The clipped policy loss: minus the mean over real tokens of min(ratio * advantage, clipped ratio * advantage).

    Args:
        new_logprobs: (B, R) under the weights being trained; the gradient flows through these.
        logprobs: (B, R) of the rollout, fixed.
        advantages: (B, R)
        mask: (B, R) bool, True at real tokens; the other tensors may hold any finite number where it is False.
        cliprange: the ratio is clipped to 1 - cliprange .. 1 + cliprange.

    Returns:
        a scalar.
    """
    raise NotImplementedError


def value_loss(new_values: Tensor, values: Tensor, returns: Tensor, mask: Tensor, cliprange_value: float) -> Tensor:
    """The clipped value loss: half the mean over real tokens of the larger squared error, of the value or of the clipped value.

    Args:
        new_values: (B, R) under the weights being trained; the gradient flows through these.
        values, returns: (B, R) of the rollout, fixed.
        mask: (B, R) bool, as in policy_loss.
        cliprange_value: the clipped value stays within values - cliprange_value .. values + cliprange_value.

    Returns:
        a scalar.
    """
    raise NotImplementedError


def ppo_loss(new_logprobs: Tensor, new_values: Tensor, logprobs: Tensor, values: Tensor, advantages: Tensor, returns: Tensor,
             mask: Tensor, cliprange: float, cliprange_value: float, vf_coef: float) -> Tensor:
    """What the optimizer descends: the policy loss plus vf_coef times the value loss.

    Args:
        new_logprobs, new_values, logprobs, values, advantages, returns, mask: (B, R), as above.
        cliprange, cliprange_value: as above.
        vf_coef: the weight of the value loss.

    Returns:
        a scalar.
    """
    raise NotImplementedError
