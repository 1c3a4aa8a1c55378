"""Chapter 1, solved."""

import torch
from torch import Tensor


def optimal_policy(ref_probs: Tensor, scores: Tensor, kl_coef: float) -> Tensor:
    return (ref_probs.log() + scores / kl_coef).softmax(0)      # in logs: exp(2 / 0.001) would be infinite


def objective(probs: Tensor, ref_probs: Tensor, scores: Tensor, kl_coef: float) -> Tensor:
    kl = torch.where(probs > 0, probs * (probs / ref_probs).log(), 0.0).sum()   # 0 * log 0 counts as 0
    return (probs * scores).sum() - kl_coef * kl
