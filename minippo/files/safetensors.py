"""Weights without pickle: the safetensors file format, read strictly and written whole or not at all.

    8 bytes: N, little-endian  |  N bytes: a JSON header  |  the bytes of the tensors, back to back

The header maps a name to {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, offsets counted from the header's end,
and "__metadata__", where it is there, to an object of texts. Source: "Format" in huggingface/safetensors' README.

A weight file comes from a stranger: each number is checked before it is used, no memory is taken for bytes that are not there,
no name is used as a path. What the safetensors package 0.8.0 refuses is refused (but a size written as -0), and besides
1. a key twice in one object: the last would silently win, and the format forbids it for names;
2. an entry with other keys than the three: no writer puts any there;
3. a header of more than 8 MB or a tensor of more than 64 dimensions: 2 bytes of JSON can take 60 in memory;
4. types that nothing here computes with, such as F8_E4M3.
"""

import json
import math
import os
from contextlib import contextmanager
from typing import BinaryIO, Collection, Iterator, NamedTuple

import torch
from torch import Tensor

from .atomic import new_file

MAX_HEADER = 8_000_000          # bytes; gpt2-xl's header has 60,000, a checkpoint of it four times that
# in the package's order; the writer follows it backwards, wide types first, so that all are aligned
DTYPES = {"BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "F16": torch.float16,
          "BF16": torch.bfloat16, "I32": torch.int32, "F32": torch.float32, "F64": torch.float64, "I64": torch.int64}
KEYS = {dtype: key for key, dtype in DTYPES.items()}
FOREIGN = {                     # first bytes, in lower case, and what such a file is
    (b"version https://git-lfs",): "a git-LFS pointer, not the weights: run git lfs pull",
    (b"<!doctype", b"<html", b"<?xml"): "an HTML page, not the weights: download the file itself",
    (b"\x1f\x8b\x08",): "gzip-compressed: unpack it first",
    (b"pk\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        "a PyTorch pickle, which can run any code: minippo never unpickles; convert it to safetensors"}


class SafetensorsError(ValueError):
    """A file that is not valid safetensors, or tensors that cannot become one."""


class TensorInfo(NamedTuple):
    """What the header says of one tensor; start and end count from the file's first byte."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def check(holds: bool, problem: str) -> None:
    if not holds:
        raise SafetensorsError(problem)


def unique(pairs: list) -> dict:
    """A JSON object as a dict; no key stands twice."""
    result = dict(pairs)
    check(len(result) == len(pairs), f"a key stands twice among {[key for key, _ in pairs]!r:.80}")
    return result


def tensor_info(name: str, entry: object, data_start: int) -> TensorInfo:
    """One entry of the header, checked in itself: its bytes are as many as its shape and type need."""
    what = f"tensor {name!r:.80} is {entry!r:.200}"
    check(isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"},
          f"{what}, expected an object of dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    check(dtype in list(DTYPES), f"{what}, expected one of {', '.join(DTYPES)} as dtype")
    check(all(type(x) is list and len(x) <= 64 and all(type(n) is int and 0 <= n < 2**63 for n in x) for x in (shape, offsets))
          and len(offsets) == 2 and math.prod(n for n in shape if n) < 2**63,               # strides of an empty one, too
          f"{what}, expected up to 64 whole numbers as shape, of a product below 2^63, and two as data_offsets")
    needed = math.prod(shape) * DTYPES[dtype].itemsize
    check(offsets[1] - offsets[0] == needed, f"{what}, but the shape needs {needed} bytes")
    return TensorInfo(DTYPES[dtype], tuple(shape), data_start + offsets[0], data_start + offsets[1])


def parse(header: bytes, file_size: int) -> dict[str, TensorInfo]:
    """The tensors in file order; raises ValueError or RecursionError."""
    check(len(header) <= MAX_HEADER, f"a header of {len(header):,} bytes, expected at most {MAX_HEADER:,}")
    entries = json.loads(header.decode(), object_pairs_hook=unique)
    check(isinstance(entries, dict), f"expected a JSON object as header, got {header[:40]!r}")
    json.dumps(entries, ensure_ascii=False).encode()                    # raises where a text is not Unicode
    metadata = entries.pop("__metadata__", None)
    check(metadata is None or isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values()),
          "__metadata__: no object of texts")
    position = 8 + len(header)
    infos = {name: tensor_info(name, entry, position) for name, entry in entries.items()}
    infos = dict(sorted(infos.items(), key=lambda item: item[1][2:]))
    for name, info in infos.items():                                # an overlap is a memory bomb, a hole hides a second file
        check(info.start == position, f"tensor {name!r:.80} starts at byte {info.start}, expected {position}")
        position = info.end
    check(position == file_size, f"the file has {file_size:,} bytes, its header says {position:,}")
    return infos


@contextmanager
def opened(path: str | os.PathLike) -> Iterator[tuple[BinaryIO, dict[str, TensorInfo]]]:
    """The open file, and its tensors. Errors name the path, and the usual mistakes for what they are."""
    if os.path.exists(path) and not os.path.isfile(path):               # a pipe would keep us waiting for ever
        raise SafetensorsError(f"{path} is there and not a file; expected a safetensors file")
    with open(path, "rb") as file:
        size, head = os.fstat(file.fileno()).st_size, file.read(64)
        length, text = int.from_bytes(head[:8], "little"), head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
        try:
            if length > min(size - 8, MAX_HEADER):                      # all that is foreign announces a header that long
                kinds = [f"this is {kind}" for starts, kind in FOREIGN.items() if text.startswith(starts)]
                check(False, [*kinds, f"the file has {size:,} bytes, its first 8 mean a header of {length:,}"][0])
            file.seek(8)
            infos = parse(file.read(length), size)
        except (ValueError, RecursionError) as error:
            raise SafetensorsError(f"{path} is no valid safetensors file: {error}") from None
        yield file, infos


def read_header(path: str | os.PathLike) -> dict[str, TensorInfo]:
    """The tensors of a file, in file order; all is checked, none is read."""
    with opened(path) as (_, infos):
        return infos


def iter_safetensors(path: str | os.PathLike, names: Collection[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, CPU tensor in memory of its own) in file order, and hold none; where `names` are given, no other is read."""
    with opened(path) as (file, infos):
        for name in [name for name in infos if names is None or name in names]:
            dtype, shape, start, end = infos[name]
            file.seek(start)
            # through bytes, since older files (gpt2's own) are not aligned: new memory always is
            raw = torch.empty(end - start, dtype=torch.uint8, device="cpu")
            check(file.readinto(raw.numpy()) == raw.numel(), f"{path}: cut short within {name!r:.80} while it was read")
            raw = raw != 0 if dtype == torch.bool else raw.view(dtype)          # a bool in memory is 0 or 1
            yield name, raw.reshape(shape)
            del raw


def read_safetensors(path: str | os.PathLike) -> dict[str, Tensor]:
    """All tensors of a file, on the CPU: name -> tensor."""
    return dict(iter_safetensors(path))


def to_bytes(x: Tensor):
    """The elements in row-major order as a NumPy array of bytes, copied only where they do not lie so."""
    x = x.detach().cpu().resolve_neg().contiguous()
    # not reshape(-1): one element counts as contiguous with any stride, and view(uint8) then refuses
    return x.as_strided((x.numel(),), (1,)).view(torch.uint8).numpy()


def write_safetensors(path: str | os.PathLike, tensors: dict[str, Tensor]) -> None:
    """Write tensors of any device and strides. SafetensorsError: nothing was written; OSError: the old file stays."""
    try:
        "".join(tensors)                                                # json.dumps would make texts of other keys
        for name, x in tensors.items():
            what = (x.dtype, x.layout, x.device) if isinstance(x, Tensor) else type(x)
            check(isinstance(x, Tensor) and x.dtype in KEYS and x.layout == torch.strided and not x.is_meta
                  and name != "__metadata__", f"cannot store {what} as {name!r:.80}")
        order = sorted(tensors, key=lambda name: (-list(KEYS).index(tensors[name].dtype), name))
        entries, end = {"__metadata__": {"format": "pt"}}, 0            # transformers asks for the format
        for name, x in ((name, tensors[name]) for name in order):
            entries[name] = {"dtype": KEYS[x.dtype], "shape": list(x.shape), "data_offsets": [end, end + x.nbytes]}
            end += x.nbytes
        header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        parse(header, 8 + len(header) + end)                            # never write what would not be read
    except (ValueError, TypeError, AttributeError) as error:            # no dictionaries, or names that are no texts
        raise SafetensorsError(f"{path} not written: {error}") from None
    with new_file(path) as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in order:
            file.write(to_bytes(tensors[name]))
