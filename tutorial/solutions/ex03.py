"""Chapter 3, solved."""

import math

import torch
from torch import Tensor


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def split_heads(x: Tensor, n_head: int) -> tuple[Tensor, Tensor, Tensor]:
    B, T, _ = x.shape
    q, k, v = x.chunk(3, dim=-1)                                # (B, T, C) each
    return tuple(part.view(B, T, n_head, -1).transpose(1, 2) for part in (q, k, v))     # cut C first, then swap T and H


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    T, D = q.shape[-2:]
    fits = q @ k.transpose(-2, -1) / math.sqrt(D)               # (B, H, T, T): row i holds query i against every key
    future = torch.ones(T, T, dtype=torch.bool).triu(1)         # column > row; the diagonal, a token itself, stays
    return fits.masked_fill(future, -math.inf).softmax(-1) @ v  # -inf before the softmax, so that each row sums to 1
