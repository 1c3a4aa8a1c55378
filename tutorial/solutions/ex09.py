"""Chapter 9, solved."""

import torch
from torch import Tensor


def policy_loss(new_logprobs: Tensor, logprobs: Tensor, advantages: Tensor, mask: Tensor, cliprange: float) -> Tensor:
    ratio = torch.where(mask, new_logprobs - logprobs, 0.0).exp()       # before exp: padding could overflow, and 0 * inf is nan
    advantages = torch.where(mask, advantages, 0.0)
    clipped = ratio.clamp(1 - cliprange, 1 + cliprange)
    return -torch.minimum(ratio * advantages, clipped * advantages).sum() / mask.sum()


def value_loss(new_values: Tensor, values: Tensor, returns: Tensor, mask: Tensor, cliprange_value: float) -> Tensor:
    clipped = torch.clamp(new_values, values - cliprange_value, values + cliprange_value)
    worse = torch.maximum((new_values - returns) ** 2, (clipped - returns) ** 2)
    return 0.5 * torch.where(mask, worse, 0.0).sum() / mask.sum()


def ppo_loss(new_logprobs: Tensor, new_values: Tensor, logprobs: Tensor, values: Tensor, advantages: Tensor, returns: Tensor,
             mask: Tensor, cliprange: float, cliprange_value: float, vf_coef: float) -> Tensor:
    policy = policy_loss(new_logprobs, logprobs, advantages, mask, cliprange)
    return policy + vf_coef * value_loss(new_values, values, returns, mask, cliprange_value)
