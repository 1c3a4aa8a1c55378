"""Attention, and the three ways in which it is called.

    no context              T tokens attend to themselves and to those before: scoring and training without padding
    a layer of a KVCache    the same, and keys and values are kept (prefill); or a new token attends to all kept ones (decode)
    Unpadded                as without a context, but the rows of a ragged batch come without their padding

Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2; Radford et al. 2019 (GPT-2).

Shapes: B batch, T sequence length, S cache length, n real tokens among the B * T, C width, H heads, D = C / H head size.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def split_heads(qkv: Tensor, n_head: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, T, 3C) -> queries, keys and values, each (B, H, T, D)."""
    B, T, C3 = qkv.shape
    q, k, v = qkv.view(B, T, 3, n_head, C3 // (3 * n_head)).unbind(2)             # (B, T, H, D) each
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def merge_heads(y: Tensor) -> Tensor:
    """(B, H, T, D) -> (B, T, C)."""
    return y.transpose(1, 2).flatten(2)


def causal_attention(qkv: Tensor, n_head: int) -> Tensor:
    """Each of T tokens attends to itself and to those before: (B, T, 3C) -> (B, T, C)."""
    q, k, v = split_heads(qkv, n_head)
    return merge_heads(F.scaled_dot_product_attention(q, k, v, is_causal=True))   # softmax(q k' / sqrt(D)) v


class LayerCache(NamedTuple):
    """One layer of a KVCache during one forward pass."""
    keys: Tensor                # (B, H, S, D)
    values: Tensor              # (B, H, S, D)
    rows: Tensor                # (B,) int64: 0, 1, 2, ...
    input_pos: Tensor | None    # (B,) int64: the column of each row's new token; None: the queries, from column 0 on (prefill)
    attn_mask: Tensor | None    # (B, 1, 1, S): added to the scores; 0 in the columns up to input_pos, -inf behind

    def attend(self, qkv: Tensor, n_head: int) -> Tensor:
        """(B, T, 3C) -> (B, T, C), and the new keys and values are kept; T = 1 when decoding."""
        q, k, v = split_heads(qkv, n_head)
        if self.input_pos is None:
            T = k.shape[2]
            self.keys[:, :, :T] = k
            self.values[:, :, :T] = v
            return merge_heads(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        # a slice between two index tensors: row b writes all its heads at its own column, keys[b, :, input_pos[b]] = k[b, :, 0]
        self.keys[self.rows, :, self.input_pos] = k[:, :, 0]
        self.values[self.rows, :, self.input_pos] = v[:, :, 0]
        # not is_causal, which aligns queries and keys at the top left: one query against S keys would see the first alone
        return merge_heads(F.scaled_dot_product_attention(q, self.keys, self.values, attn_mask=self.attn_mask))


class KVCache:
    """Keys and values of every layer in buffers of fixed size, so that a decode step always has the same shape.

    Row b holds the tokens of sequence b in columns 0..input_pos[b]; what lies behind is zero or stale and never attended to. So
    the keys of a query's padding do no harm: they lie behind input_pos, and are overwritten as the row grows.
    """

    def __init__(self, config, batch_size: int, length: int, device: torch.device, dtype: torch.dtype):
        shape = (batch_size, config.n_head, length, config.n_embd // config.n_head)             # (B, H, S, D)
        # zeros, since a NaN in fresh memory would survive the mask: 0 * nan is nan
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.rows, self.columns = torch.arange(batch_size, device=device), torch.arange(length, device=device)

    def prefill(self) -> list[LayerCache]:
        """A context for each layer, to run the queries, padded on the right."""
        return [LayerCache(keys, values, self.rows, None, None) for keys, values in zip(self.keys, self.values)]

    def decode(self, input_pos: Tensor) -> list[LayerCache]:
        """A context for each layer, to run one token a row, which stands in column input_pos (B,)."""
        behind = self.columns > input_pos[:, None]                                # (B, S)
        attn_mask = torch.zeros(behind.shape, device=behind.device, dtype=self.keys[0].dtype)
        attn_mask = attn_mask.masked_fill_(behind, -math.inf)[:, None, None]      # (B, 1, 1, S)
        return [LayerCache(keys, values, self.rows, input_pos, attn_mask) for keys, values in zip(self.keys, self.values)]

    def clear(self) -> None:
        """Zeros again: a NaN that an overflow left behind a row's end would survive the mask."""
        torch._foreach_zero_([*self.keys, *self.values])


class Unpadded(NamedTuple):
    """The rows of a padded (B, T) batch without the padding, one behind the other: (n, C). Attention alone needs them padded."""
    real_index: Tensor          # (n,) int64: of each real token among the flattened (B * T)
    shape: tuple[int, int]      # (B, T)

    def pack(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (n, C)"""
        return x.flatten(0, 1).index_select(0, self.real_index)

    def pad(self, x: Tensor) -> Tensor:
        """(n, C) -> (B, T, C), 0 at the padding"""
        B, T = self.shape
        return x.new_zeros(B * T, x.shape[-1]).index_copy_(0, self.real_index, x).view(B, T, -1)

    def attend(self, qkv: Tensor, n_head: int) -> Tensor:
        """(n, 3C) -> (n, C)"""
        return self.pack(causal_attention(self.pad(qkv), n_head))


Context = LayerCache | Unpadded         # None where there is neither


def hidden_states(model, tokens: Tensor, real_index: Tensor) -> Tensor:
    """GPT2.hidden of a padded batch without the work on the padding: (B, T) -> (B, T, C) fp32, to be ignored at the padding."""
    x = model.embed(tokens, torch.arange(tokens.shape[1], device=tokens.device))            # (B, T, C)
    if not model.skip_padding or len(real_index) == tokens.numel():
        return model.blocks(x)
    unpadded = Unpadded(real_index, tokens.shape)
    x = unpadded.pack(x)
    x = model.blocks(x, [unpadded] * len(model.h))
    return unpadded.pad(x)
