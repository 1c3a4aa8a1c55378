"""Chapter 5: the value head and the frozen twin. Check yourself with `python -m tutorial.check 5`."""

import copy

import torch
from torch import Tensor, nn


def new_value_head(n_embd: int) -> nn.Linear:
    """A linear layer from a hidden state to one number, which says 0 whatever it reads, and can be trained.

    Args:
        n_embd: C, the width of the hidden states.

    Returns:
        nn.Linear with weight (1, C) and bias (1,), fp32.
    """
    raise NotImplementedError


def response_values(hidden: Tensor, v_head: nn.Linear, query_length: int, response_length: int) -> Tensor:
    """The value of the state before each response token.

    Args:
        hidden: (B, T, C) hidden states of "query then response"; T may be larger than both lengths together.
        v_head: from C numbers to one.
        query_length, response_length: Q and R, the same for all rows here.

    Returns:
        (B, R)
    """
    raise NotImplementedError


def create_reference_model(model: nn.Module) -> nn.Module:
    """A frozen copy: same numbers, storage of its own, no gradients, eval mode. `model` itself stays as it is.

    Args:
        model: any module, in training or eval mode.
    """
    raise NotImplementedError
