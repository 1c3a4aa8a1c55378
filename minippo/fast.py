"""What only speed needs: products through oneDNN, a gradient by hand, one upload for many tensors, what sampling keeps for its
next call, settings of torch and malloc.

Each gives what the plain lines give, up to rounding, and is tested against them; to understand GPT-2 or PPO you need none.

Shapes: N rows, K inputs, M outputs, V vocabulary.
"""

from __future__ import annotations

import copy
import ctypes
import math
import os
import weakref
from contextlib import contextmanager
from functools import lru_cache, wraps
from typing import Callable, Iterator, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")    # the second is private
ONEDNN_WEIGHTS = 2**19 if HAS_ONEDNN else math.inf          # linear() asks oneDNN from this many weights on


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear by oneDNN, without a gradient; F.linear itself asks oneDNN for fp32 only in that library's own layout."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class OneDNNLinear(torch.autograd.Function):
    """`onednn` and its gradient: two products of the same kind."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return onednn(x, weight, bias)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows, inputs = grad.flatten(0, -2), x.flatten(0, -2)                     # (N, M), (N, K)
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (onednn(grad, weight.T) if for_x else None, onednn(rows.T, inputs.T) if for_weight else None,
                rows.sum(0) if for_bias else None)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear: x @ weight.T + bias, (..., K), (M, K), (M,) -> (..., M).

    On a CPU large fp32 products go to oneDNN: faster than the default at many rows, nearly twice as fast at the few rows of a
    decode step. For a small matrix the call costs more than it saves.
    """
    large = weight.numel() >= ONEDNN_WEIGHTS and x.numel() > 0
    plain = x.device.type != "cpu" or not x.dtype == weight.dtype == torch.float32 or torch.compiler.is_compiling()
    if plain or not large:
        return F.linear(x, weight, bias)
    return OneDNNLinear.apply(x, weight, bias) if torch.is_grad_enabled() else onednn(x, weight, bias)


class TokenLogprobs(torch.autograd.Function):
    """Log-probability of each target; entropy, measured and not trained; probs: logits (N, V), targets (N,) -> (N,), (N,), (N, V).

    The gradient by hand, d logprob / d logits = one-hot(target) - probs: one (N, V) tensor is kept for it and one more is made.
    """

    @staticmethod
    def forward(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        log_probs = logits.log_softmax(-1)
        probs = log_probs.exp()
        entropy = -torch.linalg.vecdot(probs, log_probs)
        return log_probs.gather(-1, targets[:, None]).squeeze(-1), entropy, probs

    @staticmethod
    def setup_context(ctx, inputs: tuple, outputs: tuple) -> None:
        _, entropy, probs = outputs
        ctx.save_for_backward(probs, inputs[1])
        ctx.mark_non_differentiable(entropy, probs)
        ctx.set_materialize_grads(False)                                         # None, not zeros (N, V), as a gradient of probs

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor | None, *_) -> tuple[Tensor | None, None]:
        if grad is None:
            return None, None
        probs, targets = ctx.saved_tensors
        return (probs * -grad[:, None]).scatter_add_(-1, targets[:, None], grad[:, None]), None


def upload(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors of integers and bool on `device`, by one copy for all of them: on CUDA each copy costs as much as a small kernel."""
    if device.type == "cpu":
        return tensors
    flat = torch.cat([tensor.flatten().long() for tensor in tensors]).to(device, non_blocking=device.type == "cuda")
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape).to(tensor.dtype) for part, tensor in zip(parts, tensors)]


KEPT_DECODERS = 2           # shapes whose decoder is kept on CUDA; each holds a cache and the memory of its graph


class Snapshot(NamedTuple):
    """A model whose blocks' weights are in the compute dtype, and the modules of which it was made."""
    model: nn.Module
    modules: list[nn.Module]


_snapshots: weakref.WeakKeyDictionary[nn.Module, Snapshot] = weakref.WeakKeyDictionary()
_decoders: weakref.WeakKeyDictionary[nn.Module, dict] = weakref.WeakKeyDictionary()


def free_decoders(model: nn.Module) -> None:
    """Give back the memory that sampling keeps for its next call: on CUDA caches and graphs, in 16 bits a copy of the weights."""
    _decoders.pop(model, None)
    _snapshots.pop(model, None)


def hooked(model: nn.Module) -> bool:
    """Whether somebody looks into the model: a graph would not call the hooks."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def compute_snapshot(model: nn.Module) -> nn.Module:
    """The model with its blocks' weights in the compute dtype, refreshed in place; the model itself where that is fp32.

    Casting the masters in every layer of every decode step would move three times the bytes. Embedding and head stay shared, and
    so do hooks: whoever looks into a block sees it here, too.
    """
    if model.compute_dtype == torch.float32:
        return model
    modules = list(model.h.modules())
    kept = _snapshots.get(model)
    fits = (kept is not None and kept.modules == modules and kept.model.dtype == model.compute_dtype
            and next(kept.model.h.parameters()).device == model.device)
    if not fits:
        snapshot = copy.copy(model)                                # shares wte, wpe and ln_f ...
        snapshot._modules = dict(model._modules)
        snapshot.h = copy.deepcopy(model.h).to(model.compute_dtype).requires_grad_(False)  # ... but not the blocks
        snapshot.dtype = model.compute_dtype
        for module, own in zip(snapshot.h.modules(), modules):     # the same dictionaries: hooks added later are seen, too
            vars(module).update({name: hooks for name, hooks in vars(own).items() if name.startswith("_forward_") and "hooks" in name})
        kept = _snapshots[model] = Snapshot(snapshot, modules)
    torch._foreach_copy_(list(kept.model.h.parameters()), list(model.h.parameters()))
    return kept.model


def decoder_for(model: nn.Module, snapshot: nn.Module, make: Callable, *shape):
    """make(snapshot, *shape), a decoder. On CUDA the latest used are kept, since recording a graph costs as much as many steps."""
    if model.device.type != "cuda":
        return make(snapshot, *shape)
    kept = _decoders.setdefault(model, {})
    addresses = tuple(parameter.data_ptr() for parameter in snapshot.parameters())        # a graph replays on addresses
    key = (*shape, addresses, hooked(snapshot))
    decoder = kept.pop(key, None)
    if decoder is not None:
        decoder.cache.clear()                                                              # it may hold NaN behind an EOS
    while decoder is None and len(kept) >= KEPT_DECODERS:
        kept.pop(next(iter(kept)))                                                         # the one not used for longest
    kept[key] = decoder or make(snapshot, *shape)
    return kept[key]


@contextmanager
def torch_modes(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """torch's process-wide switches as our passes need them, and afterwards as they were.

    No inference mode, whose tensors could never be changed in place again, and no autocast: GPT2 chooses its own precisions.
    On CUDA, where the blocks compute in 16 bits, fp32 products may use TF32: the head then has 3 bits more than bf16. And no
    cuDNN attention: it plans anew for every shape, otherwise with gradients than without, and the first ratio must be 1.
    """
    gradients = torch.is_grad_enabled()                               # leaving inference mode would switch them on
    with torch.inference_mode(False), torch.set_grad_enabled(gradients), torch.autocast(device.type, enabled=False):
        if device.type != "cuda":
            yield
            return
        matmul, cudnn_sdp = torch.backends.cuda.matmul, torch.backends.cuda.cudnn_sdp_enabled()
        name, tf32 = ("fp32_precision", "tf32") if hasattr(matmul, "fp32_precision") else ("allow_tf32", True)    # since torch 2.9
        before = getattr(matmul, name)
        setattr(matmul, name, tf32 if dtype.itemsize == 2 else before)
        torch.backends.cuda.enable_cudnn_sdp(False)
        try:
            yield
        finally:
            setattr(matmul, name, before)
            torch.backends.cuda.enable_cudnn_sdp(cudnn_sdp)


def training_modes(method: Callable) -> Callable:
    """A method of a trainer, within torch_modes and with gradients, whatever its caller has set."""
    @wraps(method)
    def within(self, *args, **kwargs):
        with torch_modes(self.model.device, self.model.transformer.compute_dtype), torch.enable_grad():
            return method(self, *args, **kwargs)
    return within


@lru_cache(maxsize=1)               # once a process
def keep_freed_memory() -> None:
    """Let glibc keep freed memory instead of returning it to the kernel; MINIPPO_MALLOC=0 in the environment switches this off.

    A training step on a CPU frees and asks again for hundreds of megabytes; faulting those pages in anew costs half of the
    backward pass. The setting holds for the whole process and raises its peak memory by about a tenth.
    """
    try:
        glibc = os.confstr("CS_GNU_LIBC_VERSION")
    except (AttributeError, ValueError, OSError):                     # another C library, or none
        return
    if glibc and os.environ.get("MINIPPO_MALLOC") != "0":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)                                           # M_MMAP_MAX: take large blocks from the heap as well
        libc.mallopt(-1, -1)                                          # M_TRIM_THRESHOLD: never give its top back
        libc.mallopt(-2, 256 * 2**20)                                 # M_TOP_PAD: and grow it by this much at a time


def prepare_models(model, ref_model, gradient_checkpointing: bool, compiled: bool) -> None:
    """Set both up for training: what costs memory or time, and no result."""
    if gradient_checkpointing:
        model.transformer.gradient_checkpointing = True
    if compiled:
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)   # blocks share it, for all shapes
        for block in [*model.transformer.h, *ref_model.transformer.h]:
            block.compile()
        model.transformer.skip_padding = ref_model.transformer.skip_padding = False
    if model.device.type == "cpu":
        keep_freed_memory()
