"""Chapter 3: the inside of GPT-2. Check yourself with `python -m tutorial.check 3`."""

import math

import torch
from torch import Tensor


def gelu_tanh(x: Tensor) -> Tensor:
    """GPT-2's activation function, element by element; write it out, without torch.nn.functional.

    Args:
        x: any shape.

    Returns:
        the same shape.
    """
    raise NotImplementedError


def split_heads(x: Tensor, n_head: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of all heads from what c_attn gives.

    Args:
        x: (B, T, 3C): at each position first the C numbers of the query, then those of the key, then those of the value;
            the C numbers of each are those of head 0, then of head 1, ...
        n_head: H.

    Returns:
        q, k, v, each (B, H, T, D) with D = C / H.
    """
    raise NotImplementedError


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each position's mean of the values up to its own, weighted by how well its query fits their keys.

    Args:
        q, k, v: (B, H, T, D)

    Returns:
        (B, H, T, D)
    """
    raise NotImplementedError
