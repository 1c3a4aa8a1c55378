"""Chapter 2, solved."""

import torch
from torch import Tensor


def policy_gradient(probs: Tensor, scores: Tensor, baseline: float) -> tuple[Tensor, Tensor]:
    grad_log_p = torch.eye(len(probs)) - probs                  # (V, V): row w is what log p(w) does to each logit
    estimates = (scores - baseline)[:, None] * grad_log_p       # (V, V): row w is the estimate when w is drawn
    gradient = probs @ estimates
    return gradient, probs @ ((estimates - gradient) ** 2).sum(1)


def rewards_to_go(rewards: Tensor, mask: Tensor) -> Tensor:
    rewards = torch.where(mask, rewards, 0.0)
    return torch.where(mask, rewards.flip(1).cumsum(1).flip(1), 0.0)        # a running sum from the right


def reinforce_loss(logprobs: Tensor, rewards: Tensor, mask: Tensor, baseline: float) -> Tensor:
    weights = rewards_to_go(rewards.detach(), mask) - baseline              # fixed: no gradient through the rewards
    return -torch.where(mask, weights * logprobs, 0.0).sum(1).mean()        # sum over tokens, mean over responses
