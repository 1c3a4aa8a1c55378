"""A GPU where there is none: tensors that say `cuda`, whose numbers lie in CPU tensors beside them.

    with FakeCuda() as gpu:                             # around any code that asks for "cuda"
        ...
    print(gpu.report())                                 # every host sync and copy with its line, and the number of kernels

    python tests/fakecuda.py -m minippo check --device cuda             # any module or script, with that report at its end

Such a tensor is a `meta` tensor to torch's own code, and its class says `cuda` to whoever asks for its device. Each operation on it
arrives in `FakeCuda.__torch_dispatch__`, below autograd: it is held against what CUDA refuses, noted, and runs on the numbers. A
CUDA graph is a tape of operations: a capture leaves all memory as it was, a replay runs the tape.

It cannot see kernels and their rounding, limits on shapes (but for attention's), streams and races, memory, time, torch.compile.
"""

from __future__ import annotations

import runpy
import sys
import time
from collections import Counter
from contextlib import ExitStack, contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Iterator, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode

aten, Tag = torch.ops.aten, torch.Tag
DEVICE = torch.device("cuda", 0)
REAL_ATTENTION = F.scaled_dot_product_attention
COPIES = (aten._to_copy.default, aten.copy_.default)
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put"}         # their indices may be on the CPU
SCALARS = {"fill_", "fill", "masked_fill", "masked_fill_", "where", *INDEXED}       # take a 0-d CPU tensor, as pointwise ones do


class CaptureError(RuntimeError):
    """What CUDA refuses while it records a graph, or would freeze in it without a word."""


class Event(NamedTuple):
    kind: str       # kernel; view, which launches nothing; sync, d2h and h2d, where the host waits; h2d-async; replay
    op: str
    line: str       # of the caller's code


class CudaTensor(Tensor):
    """shadow: the CPU tensor with its numbers; views share its memory."""

    @staticmethod
    def __new__(cls, shadow: Tensor):
        self = Tensor._make_wrapper_subclass(cls, shadow.shape, strides=shadow.stride(), storage_offset=shadow.storage_offset(),
                                             dtype=shadow.dtype, device="meta")
        self.shadow = shadow
        return self

    device, is_cuda, is_meta = (property(lambda self, x=x: x) for x in (DEVICE, True, False))

    def __repr__(self) -> str:
        return f"CudaTensor({self.shadow})"

    def __deepcopy__(self, memo: dict) -> Tensor:
        new = self.detach().clone()
        return memo.setdefault(id(self), Parameter(new, self.requires_grad) if isinstance(self, Parameter) else new)

    def data_ptr(self) -> int:
        return self.shadow.data_ptr()

    def tolist(self) -> list:
        return self.cpu().tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return FakeCuda.active.__torch_dispatch__(func, types, args, kwargs)


def on_cuda(device) -> bool:
    """Whether this device is ours: asked by torch's own code, our tensors are on `meta`."""
    return device is not None and torch.device(device).type in ("cuda", "meta")


def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False):
    """F.scaled_dot_product_attention, where one of CUDA's fused kernels takes the arguments as they are: one launch."""
    if not isinstance(q, CudaTensor):
        return REAL_ATTENTION(q, k, v, attn_mask, dropout_p, is_causal)
    if attn_mask is not None and attn_mask.dtype not in (torch.bool, q.dtype):
        raise RuntimeError(f"attention: the mask is {attn_mask.dtype}, the query {q.dtype}")
    if q.shape[-1] * q.dtype.itemsize % 16 or attn_mask is not None and any(n % 8 for n in attn_mask.stride()[:-1]):
        raise NotImplementedError("attention: CUDA leaves its fused kernels for a head of this size, or pads a copy of this mask")
    return aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, dropout_p, is_causal, attn_mask=attn_mask)[0]


def named(x):
    """`cuda` by its full name: a torch without CUDA cannot say which of them is the current one."""
    return DEVICE if isinstance(x, (str, torch.device)) and x in ("cuda", torch.device("cuda")) else x


def asked_for(function):
    """A function of torch that is told the device by its full name."""
    return lambda *args, **kwargs: function(*map(named, args), **mapped(named, kwargs))


def to(x: Tensor, *args, plain=Tensor.to, **kwargs) -> Tensor:
    """Tensor.to, which has nothing to do where the device is the own one."""
    args, kwargs = tuple(map(named, args)), mapped(named, kwargs)
    if isinstance(x, CudaTensor):
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if (device is None or on_cuda(device)) and dtype in (None, x.dtype):
            return x
    return plain(x, *args, **kwargs)


def leaves(x) -> list:
    """What lies in nested lists, tuples and dictionaries."""
    if isinstance(x, (list, tuple)):
        return [leaf for y in x for leaf in (leaves(y) if isinstance(y, (list, tuple, dict)) else (y,))]
    return leaves(list(x.values())) if isinstance(x, dict) else [x]


def mapped(f, x):
    """The same nest with f of every leaf."""
    if isinstance(x, (list, tuple)):
        return (list if isinstance(x, list) else tuple)(mapped(f, y) for y in x)
    return {key: mapped(f, y) for key, y in x.items()} if isinstance(x, dict) else f(x)


def shadow_of(x):
    return x.shadow if isinstance(x, CudaTensor) else x


@lru_cache(maxsize=None)
def is_view(func) -> bool:
    return func.__name__.startswith(("detach.", "lift_fresh.", "alias.")) or any(
        r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)


@lru_cache(maxsize=None)
def caller(code) -> tuple[str, str] | None:
    """File and name of a function; None for those of torch, of this file and of Python."""
    path = code.co_filename
    foreign = path == __file__ or "/torch/" in path or "contextlib" in path or path.startswith("<")
    return None if foreign else (Path(path).name, code.co_name)


class Graph:
    """torch.cuda.CUDAGraph: the operations of a capture with their memory."""

    def __init__(self):
        self.tape, self.before = [], {}                     # before: what the memory held that the capture wrote to

    def replay(self) -> None:
        FakeCuda.active.note("replay", "graph")
        with torch._C._DisableTorchDispatch(), torch.no_grad():
            for func, args, kwargs, outs in self.tape:
                for old, new in zip(outs, leaves(func(*args, **kwargs))):
                    if isinstance(old, Tensor) and not is_view(func) and not any(old is x for x in leaves(args)):
                        old.copy_(new)


class Mark:
    """torch.cuda.Event, by the clock of the CPU."""

    def __init__(self, *_, **__):
        self.time = None

    def record(self, stream=None) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        FakeCuda.active.note("sync", "event")

    def elapsed_time(self, end: Mark) -> float:
        return 1000 * (end.time - self.time)


class FakeCuda(TorchDispatchMode):
    """Within it there is one GPU. events: all that happened on it, in order."""
    active: FakeCuda

    def __init__(self):
        super().__init__()
        self.events, self.graph, self.stack = [], None, ExitStack()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False                                        # it would be asked in every operation

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        device = kwargs.get("device")
        to_cuda = device is not None and on_cuda(device)
        if not to_cuda and CudaTensor not in types:
            if self.graph and any(isinstance(x, Tensor) for x in leaves(args)):
                raise CaptureError(f"{func} on CPU tensors at {self.line()}: its result would be frozen in the graph")
            return func(*args, **kwargs)
        cuda, cpu = [], []
        for x in leaves((args, kwargs)):
            if isinstance(x, Tensor):
                (cuda if isinstance(x, CudaTensor) else cpu).append(x)
        if device is not None and device.type == "cuda" and device.index:
            raise RuntimeError(f"CUDA error: invalid device ordinal {device.index}")
        if func is aten._to_copy.default and cuda and to_cuda and kwargs.get("dtype", args[0].dtype) == args[0].dtype:
            func, args, kwargs, device = aten.alias.default, args[:1], {}, None             # it is there already
        self.note(self.kind(func, args, kwargs, cuda, cpu), func.__name__.partition(".")[0])
        if device is not None:
            kwargs = kwargs | {"device": torch.device("cpu")}
        out = self.run(func, mapped(shadow_of, args), mapped(shadow_of, kwargs))
        if device is not None and not to_cuda or func is aten.copy_.default and not isinstance(args[0], CudaTensor):
            return out                                                                      # it has arrived on the CPU
        known = {id(x.shadow): x for x in cuda}                                             # in place: the same tensor comes back
        return mapped(lambda x: known[id(x)] if id(x) in known else CudaTensor(x) if isinstance(x, Tensor) else x, out)

    def kind(self, func, args: tuple, kwargs: dict, cuda: list[Tensor], cpu: list[Tensor]) -> str:
        """The kind of Event that this operation is; RuntimeError where CUDA refuses its devices."""
        op = func.__name__.partition(".")[0]
        if func in COPIES and (not cuda or cpu):
            source = args[1] if func is aten.copy_.default else args[0]
            later = kwargs.get("non_blocking") or args[2:] == (True,)
            return "d2h" if isinstance(source, CudaTensor) else "h2d-async" if later else "h2d"
        if func is aten._to_copy.default and kwargs.get("device") is not None and not on_cuda(kwargs["device"]):
            return "d2h"
        if any(isinstance(x, torch.Generator) and x.device.type == "cpu" for x in leaves((args, kwargs))):
            raise RuntimeError(f"{op}: expected a 'cuda' device type for generator but found 'cpu'")
        indices = [x for x in args[1] if x is not None] if op in INDEXED else []
        for x in cpu:
            if not any(x is index for index in indices) and (x.dim() or op not in SCALARS and Tag.pointwise not in func.tags):
                raise RuntimeError(f"{op}: expected all tensors to be on {DEVICE}, found one of shape {tuple(x.shape)} on the cpu")
        if any(not isinstance(x, CudaTensor) for x in indices):
            return "h2d"
        dynamic = Tag.data_dependent_output in func.tags or Tag.dynamic_output_shape in func.tags and op != "index"
        if dynamic or any(x.dtype in (torch.bool, torch.uint8) for x in indices):
            return "sync"
        return "view" if is_view(func) or "empty" in op or op == "_unsafe_view" else "kernel"

    def run(self, func, args: tuple, kwargs: dict):
        """The operation on the numbers; in a capture onto the tape, and what it writes to is remembered."""
        if self.graph and func._schema.is_mutable:
            for storage in (x.untyped_storage() for x in leaves((args, kwargs)) if isinstance(x, Tensor)):
                self.graph.before.setdefault(storage.data_ptr(), (storage, storage.clone()))
        out = func(*args, **kwargs)
        if self.graph:
            self.graph.tape.append((func, args, kwargs, leaves(out)))
        return out

    def note(self, kind: str, op: str) -> None:
        if self.graph and kind not in ("kernel", "view"):
            raise CaptureError(f"{kind} ({op}) at {self.line()} during the capture of a graph")
        self.events.append(Event(kind, op, self.line()))

    def line(self) -> str:
        """The innermost line outside torch and this file; none in a backward pass."""
        frame = sys._getframe(2)
        while frame and not caller(frame.f_code):
            frame = frame.f_back
        return f"{caller(frame.f_code)[0]}:{frame.f_lineno} {caller(frame.f_code)[1]}" if frame else "backward"

    def count(self, *kinds: str) -> int:
        return sum(event.kind in kinds for event in self.events)

    def report(self) -> str:
        found = Counter(f"{e.kind:10} {e.op:24} {e.line}" for e in self.events if e.kind not in ("kernel", "view"))
        return "\n".join([*(f"{n:6} x {what}" for what, n in found.most_common()), f"{self.count('kernel'):6} x kernel"])

    @contextmanager
    def capture(self, graph: Graph, **_) -> Iterator[None]:
        """torch.cuda.graph: it records, and runs nothing."""
        self.note("sync", "capture")
        self.graph = graph
        try:
            yield
        finally:
            self.graph = None
            for storage, before in graph.before.values():
                storage.copy_(before)

    def __enter__(self) -> FakeCuda:
        def patch(target, **names) -> None:
            self.stack.enter_context(mock.patch.multiple(target, create=True, **names))

        FakeCuda.active = self
        patch(torch.cuda, is_available=lambda: True, is_bf16_supported=lambda **_: True, device_count=lambda: 1,
              current_device=lambda: 0, get_device_name=lambda *_: "no GPU, its operations on a CPU", _lazy_init=lambda: None,
              get_device_properties=lambda *_: SimpleNamespace(total_memory=80 * 10**9), max_memory_allocated=lambda *_: 0,
              synchronize=lambda *_: self.note("sync", "synchronize"), Event=Mark, CUDAGraph=Graph, graph=self.capture,
              is_current_stream_capturing=lambda: self.graph is not None,
              Stream=mock.MagicMock(), current_stream=mock.MagicMock(), stream=nullcontext, device=nullcontext)
        patch(Tensor, to=to)
        patch(torch, tensor=asked_for(torch.tensor), as_tensor=asked_for(torch.as_tensor))
        patch(F, scaled_dot_product_attention=attention)
        patch(_foreach_utils, _foreach_supported_types=[*_foreach_utils._foreach_supported_types, CudaTensor],
              _get_foreach_kernels_supported_devices=lambda: ["cuda", "meta"])
        lift, overwrite = torch._C._only_lift_cpu_tensors(), torch.__future__.get_overwrite_module_params_on_conversion()
        self.stack.callback(torch._C._set_only_lift_cpu_tensors, lift)                              # torch.tensor(..., device="cuda")
        self.stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrite)  # module.to("cuda")
        torch._C._set_only_lift_cpu_tensors(True)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        return super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        self.stack.close()


if __name__ == "__main__":
    sys.modules["fakecuda"], sys.path[0] = sys.modules["__main__"], str(Path.cwd())
    sys.argv, run = (sys.argv[2:], runpy.run_module) if sys.argv[1] == "-m" else (sys.argv[1:], runpy.run_path)
    with FakeCuda() as gpu:
        gpu.stack.callback(lambda: print(gpu.report(), file=sys.stderr))
        run(sys.argv[0], run_name="__main__")
