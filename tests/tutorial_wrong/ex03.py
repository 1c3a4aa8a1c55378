"""Wrong answers to chapter 3; each docstring is in the message that the check must give."""

import math

import torch
import torch.nn.functional as F

from tutorial.solutions import ex03


def gelu_tanh__exact(x):
    """this is the exact GELU"""
    return F.gelu(x)


def gelu_tanh__sigmoid(x):
    """a rougher GELU"""
    return x * (1.702 * x).sigmoid()


def gelu_tanh__no_half(x):
    """the half in front is missing"""
    return 2 * F.gelu(x, approximate="tanh")


def gelu_tanh__no_cube(x):
    """the cube is missing"""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * x))


def gelu_tanh__no_constant(x):
    """sqrt(2 / pi) is missing"""
    return 0.5 * x * (1 + torch.tanh(x + 0.044715 * x**3))


def gelu_tanh__relu(x):
    """this is a ReLU"""
    return x.relu()


def gelu_tanh__silu(x):
    """this is SiLU"""
    return F.silu(x)


def heads(part, n_head):
    return part.view(*part.shape[:2], n_head, -1).transpose(1, 2)


def split_heads__mixes_positions(x, n_head):
    """the heads mix positions"""
    B, T, width = x.shape
    return tuple(part.reshape(B, n_head, T, width // 3 // n_head) for part in x.chunk(3, -1))


def split_heads__not_swapped(x, n_head):
    """T and H are not swapped"""
    return tuple(heads(part, n_head).transpose(1, 2) for part in x.chunk(3, -1))


def split_heads__head_by_head(x, n_head):
    """you gave each head its own q, k, v in a row"""
    B, T, width = x.shape
    return tuple(part.transpose(1, 2) for part in x.view(B, T, n_head, 3, width // 3 // n_head).unbind(3))


def split_heads__numbers_before_heads(x, n_head):
    """view (H, D), not (D, H)"""
    B, T, _ = x.shape
    return tuple(part.view(B, T, -1, n_head).permute(0, 3, 1, 2) for part in x.chunk(3, -1))


def split_heads__another_order(x, n_head):
    """in another order"""
    return tuple(heads(part, n_head) for part in x.chunk(3, -1))[::-1]


def split_heads__one_tensor(x, n_head):
    """return q, k, v"""
    return heads(x, n_head)


def attend(fits, v):
    future = torch.ones(fits.shape[-2:], dtype=torch.bool).triu(1)
    return fits.masked_fill(future, -math.inf).softmax(-1) @ v


def causal_attention__no_mask(q, k, v):
    """every position sees the future"""
    return F.scaled_dot_product_attention(q, k, v)


def causal_attention__upside_down(q, k, v):
    """the mask is upside down"""
    fits = q @ k.mT / 2
    return fits.masked_fill(torch.ones(3, 3, dtype=torch.bool).tril(-1), -math.inf).softmax(-1) @ v


def causal_attention__hides_itself(q, k, v):
    """A token may look at itself"""
    fits = q @ k.mT / 2
    return fits.masked_fill(torch.ones(3, 3, dtype=torch.bool).triu(0), -math.inf).softmax(-1) @ v


def causal_attention__no_scale(q, k, v):
    """the scale is missing"""
    return attend(q @ k.mT, v)


def causal_attention__scale_of_D(q, k, v):
    """you divided by D"""
    return attend(q @ k.mT / q.shape[-1], v)


def causal_attention__scale_of_T(q, k, v):
    """you divided by sqrt(T)"""
    return attend(q @ k.mT / math.sqrt(q.shape[-2]), v)


def causal_attention__filled_with_zero(q, k, v):
    """fill with -inf, not 0"""
    return (q @ k.mT / 2).tril().softmax(-1) @ v


def causal_attention__masked_too_late(q, k, v):
    """mask before the softmax"""
    return (q @ k.mT / 2).softmax(-1).tril() @ v


def causal_attention__over_the_queries(q, k, v):
    """over the keys, dim=-1"""
    fits = q @ k.mT / 2
    return fits.masked_fill(torch.ones(3, 3, dtype=torch.bool).triu(1), -math.inf).softmax(-2) @ v


def causal_attention__no_softmax(q, k, v):
    """there is no softmax"""
    return (q @ k.mT / 2).tril() @ v


def causal_attention__minus_infinity_times_zero(q, k, v):
    """0 * -inf is nan"""
    T, D = q.shape[-2:]
    return (q @ k.transpose(-2, -1) / D**0.5 + torch.ones(T, T).triu(1) * -torch.inf).softmax(-1) @ v


def gelu_tanh__in_place(x):
    """you changed `x` in place"""
    return ex03.gelu_tanh(x.mul_(1 + 1e-3))


def causal_attention__scaled_in_place(q, k, v):
    """you changed `q` in place"""
    q /= q.shape[-1] ** 0.5
    fits = q @ k.transpose(-2, -1)
    return fits.masked_fill(torch.ones(3, 3, dtype=torch.bool).triu(1), -torch.inf).softmax(-1) @ v
