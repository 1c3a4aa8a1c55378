"""Chapter 8, solved."""

import torch
from torch import Tensor


def td_errors(values: Tensor, rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    values = torch.where(mask, values, 0.0)                     # so the value after the last real token is 0
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    return torch.where(mask, rewards + gamma * next_values - values, 0.0)


def compute_advantages(values: Tensor, rewards: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    deltas = td_errors(values, rewards, mask, gamma)
    advantages = torch.zeros_like(deltas)
    later = torch.zeros_like(deltas[:, 0])                      # (B,): the advantage of the next token
    for t in reversed(range(deltas.shape[1])):
        later = deltas[:, t] + gamma * lam * later              # padding adds 0 and passes 0 on
        advantages[:, t] = later
    return advantages, torch.where(mask, advantages + values, 0.0)


def masked_whiten(x: Tensor, mask: Tensor) -> Tensor:
    n = mask.sum()
    mean = torch.where(mask, x, 0.0).sum() / n
    centred = torch.where(mask, x - mean, 0.0)
    variance = (centred**2).sum() / (n - 1).clamp(min=1)        # a single element: 0 / 1 instead of 0 / 0
    return centred * torch.rsqrt(variance + 1e-8)
