"""The folder of a run: whether this run may go into it, its lock, its logs, its checkpoints.

    runs/x/config.json           every setting of the run
           metrics.jsonl         one object an update
           samples.jsonl         responses with their scores; the followed ones token by token
           checkpoint-000010/    the newest few; each one is a model folder, too
           labels.jsonl          the ratings of a human reward
           crash-step-000011.json    the batch that stopped the run, if one did
           report.html           all of it to look at

Only what a run wrote itself is ever removed or cut: a folder of other things is refused before anything happens in it.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO, Iterator

from torch import Tensor

from ..files.atomic import TEMPORARY, beside, remove_leftovers
from ..files.checkpoint import save_state, verify_folder
from ..ppo import PPOTrainer
from .config import differences, place
from .terminal import warn

try:
    import fcntl
except ImportError:                     # Windows
    fcntl = None
try:
    import msvcrt
except ImportError:                     # all others
    msvcrt = None

OURS = re.compile(r"checkpoint-\d{6,}|config\.json|report\.html|crash-step-\d{6,}\.json")      # what a run writes whole
LOGS = ("metrics.jsonl", "samples.jsonl")


@dataclass
class RunState:
    """What a checkpoint holds beside the trainer's own state."""
    prompts_taken: int = 0                                              # where the next batch begins
    followed: list[dict] = field(default_factory=list)                  # {"query": token ids, "response": ..., "score": ...}
    sizes: dict[str, int] = field(default_factory=dict)                 # bytes of each log that belong to the updates so far


# --- logs ------------------------------------------------------------------------------------------------------------

def plain(value):
    """`value` as JSON has it: tensors as lists, NaN and infinity as null."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Log:
    """A file of JSON lines, of whole lines only. A full disk does not stop the run: lines wait until there is room."""

    def __init__(self, path: Path, size: int):
        self.path, self.waiting, self.warned = path, b"", False
        self.file = open(path, "ab", buffering=0)
        if self.size() > size:                                          # updates that will be done again, or half a line
            self.file.truncate(size)

    def size(self) -> int:
        return os.fstat(self.file.fileno()).st_size

    def write(self, records: list[dict]) -> None:
        self.waiting += b"".join(json.dumps(plain(record)).encode() + b"\n" for record in records)
        size, rest = self.size(), self.waiting
        try:
            while rest:
                rest = rest[self.file.write(rest):]
            self.waiting = b""
        except OSError as error:
            self.fail(error)
            with suppress(OSError):
                self.file.truncate(size)

    def sync(self) -> int:
        """Wait until the lines are on the disk; returns the file's size."""
        try:
            os.fsync(self.file.fileno())
        except OSError as error:
            self.fail(error)
        return self.size()

    def fail(self, error: OSError) -> None:
        if not self.warned:
            warn(f"cannot write {self.path} ({error}); training goes on, and its lines wait in memory")
        self.warned = True


# --- whose folder it is ----------------------------------------------------------------------------------------------

HELD: set[BinaryIO] = set()             # lock files of this process; a child that it forks must not keep them locked
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: [file.close() for file in HELD])


@contextmanager
def lock(out: Path) -> Iterator[None]:
    """Keep other runs out of this folder; the lock ends with the process, however it ends."""
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file; the run needs a folder: choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "a+b", buffering=0) as file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            elif msvcrt:
                file.seek(2**30)                                        # a byte beyond the number: that can still be read
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                raise OSError("this system has no locks")
        except (BlockingIOError, PermissionError):
            raise BlockingIOError(f"{out} is in use: {holder(file)}; wait for it, or choose another --out") from None
        except OSError as error:
            warn(f"{out} cannot be locked ({error}); do not start a second run in it")
        file.truncate(0)
        file.write(f"{os.getpid()}\n".encode())
        HELD.add(file)
        try:
            yield
        finally:
            HELD.discard(file)


def holder(file: BinaryIO) -> str:
    """The words for who holds the lock of a file."""
    file.seek(0)
    pid = file.read().decode("ascii", "replace").strip() or "unknown"
    try:
        if os.name == "posix":                                          # on Windows the signal 0 is Ctrl-C
            os.kill(int(pid), 0)
    except ProcessLookupError:
        return f"a process left behind by {pid}, which has ended, holds it"
    except (PermissionError, ValueError, OverflowError):                # another user's; no number, or none yet
        pass
    return f"process {pid} trains in it"


def read_record(out: Path) -> dict:
    """What `describe` made of the run in this folder, {} where none is; ValueError for another config.json."""
    path = out / "config.json"
    try:
        record = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or not all(isinstance(record.get(part), dict) for part in ("run", "ppo")):
        raise ValueError(f"{path} is not the config.json of a run; choose another --out")
    return record


def check_folder(out: Path, ours: re.Pattern, noted: bool, what: str) -> None:
    """ValueError where other things lie in a folder that is not `noted` as ours; a lock, ratings, leftovers are no reason."""
    for name in sorted(path.name for path in out.iterdir()) if out.is_dir() and not noted else []:
        leftover = TEMPORARY.fullmatch(name)
        if name not in (".lock", "labels.jsonl") and not (leftover and ours.fullmatch(leftover[1])):
            raise ValueError(f"{out} is no {what}, and {name} is in it: nothing was touched; choose an empty or new --out")


def open_folder(out: Path, record: dict, resume: bool, allow_config_change: bool) -> Path | None:
    """The checkpoint to start from, None for the beginning; ValueError where this run must not go into this folder."""
    stored, metrics = read_record(out), out / "metrics.jsonl"
    if not resume and (checkpoints(out) or metrics.exists() and metrics.stat().st_size):
        raise ValueError(f"{out} already holds a run: continue it with --resume, or choose another --out")
    changed = differences(stored, record) if resume and stored else []
    if changed and not allow_config_change:
        raise ValueError(f"{out} was begun with other settings (then -> now): {'; '.join(changed)}. Give them as they were, "
                         "or --allow-config-change to go on with the new ones")
    if resume and stored.get("steps") not in (None, record["steps"]) and record["run"]["lr_schedule"] != "constant":
        changed.append(f"steps: {stored['steps']!r} -> {record['steps']}; the learning rate now falls to 0 at the new end")
    for change in changed:
        warn(f"changed: {change}")
    remove_leftovers(out, OURS)                                         # of processes that died: under the lock none is alive
    newest = newest_checkpoint(out)
    found = checkpoints(out)
    for damaged in found[found.index(newest) + 1:] if newest else []:
        os.rename(damaged, out / f"damaged-{damaged.name}.{os.getpid()}")       # out of the way of the next one of that update
    return newest


# --- checkpoints -----------------------------------------------------------------------------------------------------

def checkpoints(out: Path) -> list[Path]:
    """The checkpoint folders, oldest first."""
    found = [path for path in out.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d{6,}", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def newest_checkpoint(out: Path) -> Path | None:
    """The newest checkpoint whose files are as its manifest says; None where there is none, ValueError if all are bad."""
    for folder in reversed(checkpoints(out)):
        try:
            verify_folder(folder)
            return folder
        except (OSError, ValueError) as error:
            warn(f"{folder.name} is damaged and passed over: {error}")
    if checkpoints(out):
        raise ValueError(f"no checkpoint in {out} is whole; move them away to start from the beginning")
    return None


def where_saved(out: Path) -> str:
    newest = checkpoints(out)[-1:]
    return f"the newest checkpoint is {newest[0]}" if newest else "there is no checkpoint yet"


def model_source(name: str, flag: str = "--model") -> str:
    """What to load for this name: of a run's folder the newest checkpoint, else the folder or public name itself."""
    path = place(name, flag)
    newest = newest_checkpoint(path)
    if newest is None and path.is_dir() and not (path / "model.safetensors").exists() and (path / "metrics.jsonl").exists():
        raise ValueError(f"{flag}: {name} is the folder of a run without a checkpoint yet")
    return str(newest or (path if name.startswith("~") else name))


def save(out: Path, trainer: PPOTrainer, state: RunState, logs: dict[str, Log], keep: int) -> Path:
    """Write a checkpoint, then remove the oldest; OSError leaves the old ones as they were."""
    state.sizes = {name: log.sync() for name, log in logs.items()}      # on the disk before the checkpoint that counts on them
    folder = out / f"checkpoint-{trainer.steps_done:06d}"
    if not (out / "config.json").exists():
        warn(f"{out} was moved or removed during the run: {folder} is new there; move it to where the run is, to --resume")
    save_state(folder, trainer, asdict(state))
    remove_old_checkpoints(out, keep)
    return folder


def remove_old_checkpoints(out: Path, keep: int) -> None:
    """All but the newest. Of one that was moved elsewhere and linked back the link goes, and what it points to stays."""
    for folder in checkpoints(out)[:-keep]:
        if folder.is_symlink():
            warn(f"the link {folder} is removed, the checkpoint that it points to is not: {os.readlink(folder)}")
            folder.unlink()
            continue
        doomed = beside(folder, "tmp")
        os.rename(folder, doomed)                                       # in one step: half a checkpoint is never seen
        shutil.rmtree(doomed)
