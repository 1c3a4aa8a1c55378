"""Our reader and writer against the safetensors package 0.8.0: same verdicts, same tensors, same bytes.

    python -m pytest tests/peers/test_safetensors_peer.py        # in an environment that has safetensors
    python tests/peers/test_safetensors_peer.py 3000 1           # the fuzz alone: files, seed
"""

import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import torch

package = pytest.importorskip("safetensors.torch", reason="needs the safetensors package to compare with")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "files")]

from test_safetensors import ACCEPT, CASES, REJECT, bits, raw  # noqa: E402

from minippo.files.safetensors import DTYPES, SafetensorsError, read_header, read_safetensors, write_safetensors  # noqa: E402

# words of our message -> the rule of minippo/files/safetensors.py by which we refuse what the package reads
STRICTER = {"stands twice": 1, "expected an object": 2, "'dtype': {": 2, "'dtype': [": 2, "64 whole": 3, "a header of": 3, "as dtype": 4}


def package_reads(path) -> dict[str, torch.Tensor] | None:
    """The package's tensors; None where it refuses the file, or torch the shape that it found."""
    try:
        return package.load_file(path)
    except Exception:
        return None


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    """Same names, types, shapes and bits; the package leaves the byte 2 in a bool, which counts as true."""

    def content(tensor):
        return bits(tensor.view(torch.uint8) != 0 if tensor.dtype == torch.bool else tensor)

    return ours.keys() == theirs.keys() and all(
        tensor.dtype == theirs[name].dtype
        and tensor.shape == theirs[name].shape
        and content(tensor) == content(theirs[name])
        for name, tensor in ours.items()
    )


def every_type(seed: int) -> dict[str, torch.Tensor]:
    """A few random tensors of each type, with all kinds of bits."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for number, (key, dtype) in enumerate(DTYPES.items()):
        for shape in ((), (0, 3), (2, 3), (number + 1,)):
            count = torch.Size(shape).numel()
            noise = torch.randint(256, (count * dtype.itemsize,), dtype=torch.uint8, generator=generator)
            values = noise > 127 if dtype == torch.bool else noise.view(dtype)
            tensors[f"{key.lower()}.é.{len(shape)}.{count}"] = values.reshape(shape)
    return tensors


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_the_verdicts_of_the_conformance_list_are_the_package_s(tmp_path, case):
    name, content, verdict, expected = case
    (tmp_path / "x.safetensors").write_bytes(content)
    theirs = package_reads(tmp_path / "x.safetensors")
    assert (theirs is None) == (verdict == REJECT), name
    if verdict == ACCEPT:
        assert same(expected, theirs)


def test_the_package_reads_what_we_write_and_writes_the_same_bytes(tmp_path):
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    tensors = every_type(0)
    write_safetensors(ours, tensors)
    package.save_file(tensors, theirs, {"format": "pt"})
    assert same(tensors, package.load_file(ours))
    assert ours.read_bytes() == theirs.read_bytes()


def test_we_read_what_the_package_writes(tmp_path):
    tensors = every_type(1)
    package.save_file(tensors, tmp_path / "x.safetensors", {"format": "pt", "a": "b", "ü": ""})
    assert same(tensors, read_safetensors(tmp_path / "x.safetensors"))


# ---- differential fuzz ----

NUMBERS = ["0", "1", "2", "3", "4", "8", "12", "16", "-1", "1.0", "1e0", "01", "+1", "0x1", "true", "null",
           '"1"', "NaN", "[1]", "{}", "9" * 19, "9" * 20, "9" * 400, *(str(2**n + d) for n in (31, 32, 40, 63, 64)
           for d in (-1, 0, 1))]  # fmt: skip
TYPES = [f'"{key}"' for key in DTYPES] + ['"F4"', '"F6_E2M3"', '"f32"', '""', "null", "1", '["F32"]', '{"F32":null}']
EXTRA = ['"x":1', '"x":null', '"x":"\\ud83d\\ude00"', '"x":"\\ud83d"', '"x":[1]', '"x":{"y":2}', '"x":0.5', '"x":1e999',
         '"x":' + "[" * 150 + "]" * 150, '"dtype":"F32"', '"x":1,"x":1', '"x":-1', '"\\u0073hape":[1]']  # fmt: skip
TOP = ['"__metadata__":{"a":"b"}', '"__metadata__":null', '"__metadata__":{"a":1}', '"__metadata__":{"a":"b","a":"c"}',
       '"__metadata__":[]', '"a":["F32",[1],[0,4]]', '"a":7', '"__metadata__":{},"__metadata__":{}']  # fmt: skip


ENTRY = '{{"dtype":{},"shape":[{}],"data_offsets":[{},{}]}}'


def random_entry(generator: random.Random, begin: int) -> tuple[str, int]:
    """An entry at `begin`, mostly valid, and where its bytes end."""
    key = generator.choice(list(DTYPES))
    shape = [generator.choice((0, 1, 2, 3)) for _ in range(generator.randrange(4))]
    end = begin + torch.Size(shape).numel() * DTYPES[key].itemsize
    fate = generator.random()
    if fate < 0.04:  # the package reads these
        return generator.choice((
            (f'["U8",[1],[{begin},{begin + 1}]]', begin + 1),
            (ENTRY.format('{"U8":null}', 1, begin, begin + 1), begin + 1),
            (ENTRY.format('"F4"', 2, begin, begin + 1), begin + 1),
            (ENTRY.format('"F32"', f"0,{2**40},{2**40}", begin, begin), begin),
        ))  # fmt: skip
    fields = {"dtype": [f'"{key}"'], "shape": [str(size) for size in shape], "data_offsets": [str(begin), str(end)]}
    if fate < 0.07:
        del fields[generator.choice(list(fields))]
    elif fate < 0.1:
        fields["dtype"] = [generator.choice(TYPES)]
    elif fate < 0.16:  # a number more, or less, or another
        numbers = fields[generator.choice(("shape", "data_offsets"))]
        place = generator.randrange(len(numbers) + 1)
        numbers[place : place + generator.randrange(2)] = generator.choice(([], [generator.choice(NUMBERS)]))
    listed = {field: values[0] if field == "dtype" else f"[{','.join(values)}]" for field, values in fields.items()}
    texts = [f'"{field}":{text}' for field, text in listed.items()]
    if generator.random() < 0.1:
        texts.insert(generator.randrange(len(texts) + 1), generator.choice(EXTRA))
    return "{" + ",".join(texts) + "}", end


def random_file(generator: random.Random) -> bytes:
    """A file of up to 6 tensors, with a fault in its fields, its JSON, its bytes or its length, or with none."""
    texts, end = [], 0
    for number in range(generator.randrange(7)):
        text, end = random_entry(generator, end)
        texts.append(f'"{generator.choice(("", "a", "h.0.w", "é", "..", "/x"))}{number or ""}":{text}')
    if generator.random() < 0.2:
        texts.append(generator.choice(TOP))
    if texts and generator.random() < 0.03:
        texts.append(generator.choice(texts))
    generator.shuffle(texts)
    header, data = ("{" + ",".join(texts) + "}").encode() + b" " * generator.randrange(9), generator.randbytes(end)
    fate = generator.random()
    if fate < 0.1:  # another character, with N kept right
        place, new = generator.randrange(len(header) + 1), generator.choice(' ,:"{}[]0\\\0\t\ufeff')
        header = header[:place] + new.encode() + header[place + generator.randrange(2) :]
    content = bytearray(raw(header, data))
    if 0.1 <= fate < 0.3:
        content[generator.randrange(8 + len(header))] ^= 1 << generator.randrange(8)
    elif 0.3 <= fate < 0.35:
        del content[generator.randrange(len(content)) :]
    elif 0.35 <= fate < 0.4:
        content += generator.randbytes(generator.choice((1, 8)))
    elif 0.4 <= fate < 0.43:
        content[:8] = generator.choice((0, 1, len(header) + 1, len(header) - 1, 10**8 + 1, 2**63)).to_bytes(8, "little")
    return bytes(content)


def fuzz(files: int, seed: int) -> Counter:
    """Read random files with both; how often each pair of verdicts came. Any disagreement but STRICTER raises."""
    generator, seen = random.Random(seed), Counter()
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 64 * 2**20,) * 2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.safetensors")
        for number in range(files):
            content = random_file(generator)
            path.write_bytes(content)
            signal.alarm(10)  # ends the process where one file takes so long
            theirs = package_reads(path)
            try:
                ours = read_safetensors(path)
            except SafetensorsError as error:
                if theirs is None:
                    seen["both refuse"] += 1
                    continue
                rules = [rule for words, rule in STRICTER.items() if words in str(error)]
                assert rules, f"file {number}: only we refuse {content}: {error}"
                seen[f"rule {rules[0]}"] += 1
                continue
            assert theirs is not None, f"file {number}: only we read {content}"
            assert same(ours, theirs), f"file {number}: other tensors from {content}"
            seen["both read" if ours else "both read nothing"] += 1
    signal.alarm(0)
    return seen


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux, to limit the memory of a process")
def test_fuzz_finds_no_other_difference():
    """3,000 seeded files in a process that may take 64 MB more than it has, 10 s a file and 5 minutes in all."""
    run = subprocess.run(
        [sys.executable, __file__, "3000", "0"], env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    seen = dict(line.rsplit(" ", 1) for line in run.stdout.splitlines())
    assert int(seen["both read"]) > 500 and int(seen["both refuse"]) > 1000
    assert {f"rule {rule}" for rule in range(1, 5)} <= seen.keys()  # each was tried


if __name__ == "__main__":
    for verdict, count in sorted(fuzz(int(sys.argv[1]), int(sys.argv[2])).items()):
        print(verdict, count)
