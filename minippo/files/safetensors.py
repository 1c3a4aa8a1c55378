"""Weights without pickle: the safetensors file format, read strictly and written atomically.

    8 bytes: N, little-endian  |  N bytes: a JSON header  |  the bytes of the tensors, back to back

The header maps a name to {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, offsets counted from
the header's end, and "__metadata__", where it is there, to an object of texts.
Source: "Format" in the README of github.com/huggingface/safetensors.

A weight file comes from a stranger: each number is checked before it is used, no memory is taken for bytes
that the file does not hold, no name is used as a path. The verdicts are those of the safetensors package
0.8.0 (as a table in tests/test_safetensors.py), except that these are refused as well:
1. A key twice in one object: the last would silently win, and the format forbids it for names.
2. An entry that is no object, a dtype that is no text: the package's parser takes some, by accident.
3. Under an unknown inner key anything but text, true, false, null or a whole number of up to 19 digits:
   nesting and large numbers are where JSON parsers differ, and no writer puts them there.
4. An empty tensor whose other sizes multiply to 2^63 or more: torch cannot count its strides.
5. Types of less than a byte (F4, F6_E2M3, F6_E3M2): nothing here computes with them.
6. A header with more than a million of , [ and {, one for each value: 2 bytes there can be 60 in memory.
Left out: memory mapping (a mapped file that changes, changes the weights), big-endian machines.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch

MAX_HEADER = 100_000_000  # bytes, the package's limit too
MAX_VALUES = 1_000_000  # gpt2-xl's header holds about 4,000

# in the package's order; the writer follows it backwards, wide types first, so that all are aligned
_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16", "U16": "uint16", "F16": "float16", "BF16": "bfloat16", "I32": "int32", "U32": "uint32",
    "F32": "float32", "C64": "complex64", "F64": "float64", "I64": "int64", "U64": "uint64",
}
_DTYPES = {key: getattr(torch, name) for key, name in _NAMES.items() if hasattr(torch, name)}
_KEYS = {dtype: key for key, dtype in _DTYPES.items()}

_PICKLE = "a PyTorch pickle, which can run any code: minippo never unpickles; convert it to safetensors"
_FOREIGN = (  # first bytes, in lower case, and what such a file is
    (b"version https://git-lfs", "a git-LFS pointer, not the weights: run git lfs pull"),
    ((b"<!doctype", b"<html", b"<?xml"), "an HTML page, not the weights: download the file itself"),
    (b"pk\x03\x04", f"a zip archive, as torch.save writes: {_PICKLE}"),
    ((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), _PICKLE),
    (b"\x1f\x8b\x08", "gzip-compressed: unpack it first"),
)


class SafetensorsError(ValueError):
    """A file that is not valid safetensors, or tensors that cannot become one."""


class TensorInfo(NamedTuple):
    """What the header says of one tensor; start and end count from the file's first byte."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def _check(holds: bool, problem: str) -> None:
    if not holds:
        raise SafetensorsError(problem)


def _foreign(head: bytes) -> str | None:
    """What the file that opens with `head` is, if it is one of the usual mistakes."""
    if int.from_bytes(head[:8], "little") <= MAX_HEADER and head[:3] != b"\x1f\x8b\x08":
        return None  # a header of 640 bytes opens like a pickle; of these only gzip opens with a small N
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next((kind for start, kind in _FOREIGN if text.startswith(start)), None)


def _whole(number: str) -> int:
    """A JSON number as an int; "-0", "2e0" and NaN end here, and so does one of a million digits."""
    _check(number.isdecimal() and len(number) <= 19, f"{number:.24} is not a whole number of up to 19 digits")
    return int(number)


def _object(pairs: list) -> dict:
    """A JSON object as a dict: no key twice, no text that is not Unicode."""
    result = {}
    for key, value in pairs:
        _check(key not in result, f"the key {key!r:.80} stands twice")
        (key + value if type(value) is str else key).encode()  # raises at a lone surrogate
        result[key] = value
    return result


def _tensor_info(entry: object, data_start: int) -> TensorInfo:
    """One entry of the header, checked in itself: its bytes are as many as its shape and type need."""
    _check(type(entry) is dict, "expected an object")
    dtype, shape, offsets = (entry.pop(key, None) for key in ("dtype", "shape", "data_offsets"))
    _check(not any(type(value) in (list, dict) for value in entry.values()), "a list or object under an unknown key")
    _check(type(dtype) is str and dtype in _DTYPES, f"dtype {dtype!r:.40}, supported here: {', '.join(_DTYPES)}")
    for numbers in (shape, offsets):  # `type`, since to isinstance True is an int
        whole = type(numbers) is list and all(type(number) is int for number in numbers)
        _check(whole, f"shape {shape!r:.80}, data_offsets {offsets!r:.80}: expected lists of whole numbers")
    _check(len(offsets) == 2, f"data_offsets {offsets!r:.80}: expected a begin and an end")
    count = 1
    for size in shape:
        count *= max(size, 1)
        if count >= 2**63:  # stops the loop: a product of a million factors takes hours, and its message too
            raise SafetensorsError(f"shape {shape!r:.80} has too many elements to count")
    needed = 0 if 0 in shape else count * _DTYPES[dtype].itemsize
    begin, end = offsets
    _check(end - begin == needed, f"{dtype} {shape!r:.80} needs {needed} bytes, data_offsets give {end - begin}")
    return TensorInfo(_DTYPES[dtype], tuple(shape), data_start + begin, data_start + end)


def _parse(header: bytes, file_size: int) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors in file order and the metadata; raises ValueError or RecursionError."""
    values = sum(map(header.count, (b",", b"[", b"{")))  # each value but the first follows one of them
    _check(len(header) <= MAX_HEADER and values <= MAX_VALUES, f"a header of {len(header):,} bytes, {values:,} values")
    entries = json.loads(
        header.decode(), object_pairs_hook=_object, parse_int=_whole, parse_float=_whole, parse_constant=_whole
    )
    _check(type(entries) is dict, f"expected a JSON object as header, got {header[:40]!r}")
    metadata = entries.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    texts = type(metadata) is dict and all(type(value) is str for value in metadata.values())
    _check(texts, "__metadata__ is not an object of texts")

    infos = {}
    for name, entry in entries.items():
        try:
            infos[name] = _tensor_info(entry, 8 + len(header))
        except SafetensorsError as error:
            raise SafetensorsError(f"tensor {name!r:.80}: {error}") from None
    infos = dict(sorted(infos.items(), key=lambda item: item[1][2:]))
    position = 8 + len(header)
    for name, info in infos.items():  # an overlap is a memory bomb, a hole hides a second file
        _check(info.start == position, f"tensor {name!r:.80} starts at byte {info.start}, expected {position}")
        position = info.end
    _check(position == file_size, f"the file has {file_size:,} bytes, its header says {position:,}")
    return infos, metadata


def _read_header(file: BinaryIO, path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """_parse for an open file, which is left at its first tensor's first byte."""
    size, head = os.fstat(file.fileno()).st_size, file.read(64)
    length = int.from_bytes(head[:8], "little")
    try:
        fits = length <= min(size - 8, MAX_HEADER)
        _check(fits, f"the file has {size:,} bytes, its first 8 mean a header of {length:,}")
        file.seek(8)
        return _parse(file.read(length), size)
    except (ValueError, RecursionError) as error:
        kind = _foreign(head)
        problem = f"this is {kind}" if kind else f"not a valid safetensors file: {error}"
        raise SafetensorsError(f"{path}: {problem}") from None


def read_header(path: str | os.PathLike) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors of a file (name -> TensorInfo, in file order) and its metadata; reads no tensor.

    The whole format is checked. Raises SafetensorsError, which names the path and the fault.
    """
    with open(path, "rb") as file:
        return _read_header(file, path)


def _read_tensor(file: BinaryIO, path, name: str, info: TensorInfo) -> torch.Tensor:
    # through bytes, since older files (gpt2's own) are not aligned: new memory always is
    raw = torch.empty(info.end - info.start, dtype=torch.uint8, device="cpu")
    _check(file.readinto(raw.numpy()) == raw.numel(), f"{path}: cut short within {name!r:.80} while it was read")
    tensor = raw != 0 if info.dtype == torch.bool else raw.view(info.dtype)  # a bool in memory is 0 or 1
    return tensor.reshape(info.shape)


def iter_safetensors(path: str | os.PathLike) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, CPU tensor in memory of its own) in file order, and hold none of them.

    The whole header is checked before the first. Raises SafetensorsError as read_header does.
    """
    with open(path, "rb") as file:
        infos, _ = _read_header(file, path)
        for name, info in infos.items():  # they lie back to back: no need to seek
            yield name, _read_tensor(file, path, name, info)


def read_safetensors(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """All tensors of a file, on the CPU: name -> tensor."""
    return dict(iter_safetensors(path))


def _header(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> tuple[bytes, list[str]]:
    """The header's bytes and the names in file order; raises ValueError for what cannot be stored."""
    _check(isinstance(tensors, dict) and isinstance(metadata, dict), "tensors and metadata must be dictionaries")
    for text in (*tensors, *metadata, *metadata.values()):
        _check(isinstance(text, str), f"names and metadata must be texts, got {text!r:.80}")
    _check("__metadata__" not in tensors, "no tensor can have the name '__metadata__'")
    for name, tensor in tensors.items():
        _check(isinstance(tensor, torch.Tensor), f"{name!r:.80}: expected a torch.Tensor, got {type(tensor).__name__}")
        stored = tensor.dtype in _KEYS and tensor.layout == torch.strided and not tensor.is_meta
        _check(stored, f"{name!r:.80}: cannot store {tensor.dtype}, {tensor.layout}, on {tensor.device}")

    ranks = list(_KEYS)
    order = sorted(tensors, key=lambda name: (-ranks.index(tensors[name].dtype), name))
    entries, end = {"__metadata__": metadata} if metadata else {}, 0
    for name in order:
        begin, end = end, end + tensors[name].numel() * tensors[name].element_size()
        key, shape = _KEYS[tensors[name].dtype], list(tensors[name].shape)
        entries[name] = {"dtype": key, "shape": shape, "data_offsets": [begin, end]}
    header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    _parse(header, 8 + len(header) + end)  # never write what would not be read
    return header, order


def _bytes(tensor: torch.Tensor):
    """The elements in row-major order as a NumPy array of bytes, copied only where they do not lie so."""
    plain = tensor.cpu().resolve_conj().resolve_neg().contiguous()
    # not reshape(-1): one element counts as contiguous with any stride, and view(uint8) then refuses
    return plain.as_strided((plain.numel(),), (1,)).view(torch.uint8).numpy()


def write_safetensors(
    path: str | os.PathLike, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors to a file that is there whole or not at all; (tensors, path) is understood as well.

    Any device and strides; tensors that share memory are each written whole. metadata: text -> text,
    {"format": "pt"} if None. Raises SafetensorsError before anything is written; after an OSError the old
    file is as it was.
    """
    if isinstance(path, dict):  # the order of the package's save_file
        path, tensors = tensors, path
    path = Path(path)
    try:
        header, order = _header(tensors, {"format": "pt"} if metadata is None else metadata)
    except ValueError as error:
        raise SafetensorsError(f"{path} not written: {error}") from None
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} is there and not a file")  # os.replace would replace a device

    temporary = path.with_name(f"{path.name}.tmp-{os.urandom(4).hex()}")
    try:
        with open(temporary, "xb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for name in order:
                file.write(_bytes(tensors[name]))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the new name is on disk once the folder is
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
