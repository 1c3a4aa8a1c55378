"""Plain operations with less work: products through oneDNN, padding skipped, two gradients by hand.

Each gives what the plain lines give, up to rounding, and is tested against them; to understand GPT-2 or PPO you need none.

Shapes: B batch, T sequence length, n real tokens among the B * T, C width, N rows, V vocabulary.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")    # the second is private
ONEDNN_WEIGHTS = 2**19 if HAS_ONEDNN else math.inf          # linear() asks oneDNN from this many weights on


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear by oneDNN, without a gradient; F.linear itself asks oneDNN for fp32 only in that library's own layout."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class OneDNNLinear(torch.autograd.Function):
    """`onednn` and its gradient: two products of the same kind."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows, inputs = grad.flatten(0, -2), x.flatten(0, -2)                     # (n, M), (n, K)
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (onednn(grad, weight.T) if for_x else None, onednn(rows.T, inputs.T) if for_weight else None,
                rows.sum(0) if for_bias else None)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear: x @ weight.T + bias, (..., K), (M, K), (M,) -> (..., M).

    On a CPU large fp32 products go to oneDNN: faster than the default at many rows, nearly twice as fast at the few rows of a
    decode step. For a small matrix the call costs more than it saves.
    """
    large = weight.numel() >= ONEDNN_WEIGHTS and x.numel() > 0
    if not large or x.device.type != "cpu" or x.dtype != torch.float32 or torch.compiler.is_compiling():
        return F.linear(x, weight, bias)
    return OneDNNLinear.apply(x, weight, bias) if torch.is_grad_enabled() else onednn(x, weight, bias)


class Ragged(NamedTuple):
    """Where the real tokens of a padded (B, T) batch are. Attention alone needs the padded shape; all else skips the padding."""
    index: Tensor               # (n,) int64: of each real token among the flattened (B * T)
    shape: tuple[int, int]      # (B, T)

    def pack(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (n, C)"""
        return x.flatten(0, 1).index_select(0, self.index)

    def pad(self, x: Tensor) -> Tensor:
        """(n, C) -> (B, T, C), 0 at the padding"""
        B, T = self.shape
        return x.new_zeros(B * T, x.shape[-1]).index_copy_(0, self.index, x).view(B, T, -1)


class TokenLogprobs(torch.autograd.Function):
    """Log-probability of each target, and the entropy, measured and not trained: logits (N, V), targets (N,) -> (N,), (N,).

    The gradient by hand, d logprob / d logits = one-hot(target) - probs: one (N, V) tensor is kept for it and one more is made.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = logits.log_softmax(-1)
        probs = log_probs.exp()
        entropy = -torch.linalg.vecdot(probs, log_probs)
        ctx.save_for_backward(probs, targets)
        ctx.mark_non_differentiable(entropy)
        return log_probs.gather(-1, targets[:, None]).squeeze(-1), entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, _) -> tuple[Tensor, None]:
        probs, targets = ctx.saved_tensors
        return (probs * -grad[:, None]).scatter_add_(-1, targets[:, None], grad[:, None]), None


class TiedEmbedding(torch.autograd.Function):
    """Rows of a table, and the table for its second use as the head: tokens (...) int64, (V, C) -> (..., C), (V, C).

    The head's gradient is there first, since a backward pass runs backwards; that of the rows is added into it. Autograd would
    fill a second (V, C) tensor with zeros for them.
    """

    @staticmethod
    def forward(ctx, tokens: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(tokens)
        return F.embedding(tokens, table), table.view_as(table)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, grad_table: Tensor) -> tuple[None, Tensor]:
        tokens, grad = ctx.saved_tensors[0].flatten(), grad.flatten(0, -2)
        if grad.is_cuda:
            return None, grad_table.index_put_((tokens,), grad, accumulate=True)    # sorts, where index_add_ sums in any order
        return None, grad_table.index_add_(0, tokens, grad)
