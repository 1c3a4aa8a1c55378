"""Chapter 5, solved."""

import copy

import torch
from torch import Tensor, nn


def new_value_head(n_embd: int) -> nn.Linear:
    v_head = nn.Linear(n_embd, 1)
    nn.init.zeros_(v_head.weight)                               # not noise: the first values become the first advantages
    nn.init.zeros_(v_head.bias)
    return v_head


def response_values(hidden: Tensor, v_head: nn.Linear, query_length: int, response_length: int) -> Tensor:
    first = query_length - 1                                    # the query's last token: response token 0 is not yet known there
    return v_head(hidden[:, first:first + response_length]).squeeze(-1)


def create_reference_model(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).eval().requires_grad_(False)    # copied first: the original keeps its mode and its gradients
