"""The folder of a run: whether this run may go into it, its lock, its logs, its checkpoints.

    runs/x/config.json           every setting of the run
           metrics.jsonl         one object an update
           samples.jsonl         responses with their scores; the followed ones token by token
           checkpoint-000010/    the newest few; each one is a model folder, too
           best/                 with keep_best, the best one
           labels.jsonl          the ratings of a human reward
           crash-step-000011.json    the batch that stopped the run, if one did
           report.html           all of it to look at

Only what a run wrote itself is ever removed or cut: a folder of other things is refused before anything happens in it.
"""

import json
import math
import os
import re
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Iterator
from weakref import WeakSet

from torch import Tensor

from ..distributed import rank
from ..files.atomic import TEMPORARY, beside, read_json, remove_leftovers
from ..files.checkpoint import save_state, verify_folder
from ..ppo import PPOTrainer
from .config import differences, place
from .terminal import warn

fcntl = msvcrt = None                   # POSIX has the first, Windows the second
with suppress(ImportError):
    import fcntl
with suppress(ImportError):
    import msvcrt

CHECKPOINT = re.compile(r"checkpoint-\d{6,}")
OURS = re.compile(CHECKPOINT.pattern + r"|best|config\.json|report\.html|crash-step-\d{6,}\.json")      # what a run writes whole
LOGS = ("metrics.jsonl", "samples.jsonl")
HELD = WeakSet()                        # lock files of this process; a child that it forks must not keep them locked
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: [file.close() for file in HELD])


@dataclass
class RunState:
    """What a checkpoint holds beside the trainer's own state."""
    prompts_taken: int = 0                                              # where the next batch begins
    followed: list[dict] = field(default_factory=list)                  # {"query": token ids, "response": ..., "score": ...}
    sizes: dict[str, int] = field(default_factory=dict)                 # bytes of each log that belong to the updates so far
    kls: list[float] = field(default_factory=list)                      # of the last three updates
    best: dict[str, float] = field(default_factory=dict)                # best_metric -> its best value so far


def plain(value):
    """`value` as JSON has it: tensors as lists, NaN and infinity as null."""
    value = value.tolist() if isinstance(value, Tensor) else value
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Log:
    """A file of JSON lines, of whole lines only. A full disk does not stop the run: lines wait until there is room."""

    def __init__(self, path: Path, size: int):
        self.path, self.waiting, self.warned = path, b"", False
        self.file = open(path if rank() == 0 else os.devnull, "ab", buffering=0)
        if self.file.seek(0, os.SEEK_END) > size:                       # updates that will be done again, or half a line
            self.file.truncate(size)

    def write(self, records: list[dict], sync: bool = False) -> int:
        """Append them, and wait until all lines are on the disk if asked to; returns the file's size."""
        self.waiting += b"".join(json.dumps(plain(record)).encode() + b"\n" for record in records)
        size, rest = self.file.seek(0, os.SEEK_END), self.waiting
        try:
            while rest:
                rest = rest[self.file.write(rest):]
            size, self.waiting = self.file.seek(0, os.SEEK_END), b""
            if sync:
                os.fsync(self.file.fileno())
        except OSError as error:
            with suppress(OSError):
                self.file.truncate(size)
            if not self.warned:
                warn(f"cannot write {self.path} ({error}); training goes on, and its lines wait in memory")
            self.warned = True
        return size


@contextmanager
def lock(out: Path) -> Iterator[None]:
    """Keep other runs out of this folder; the lock ends with the process, however it ends. Of several the first one has it."""
    if rank() > 0:
        yield
        return
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
            pid = (out / ".lock").read_text("ascii", "replace").strip()
            raise BlockingIOError(f"{out} is in use, locked by process {pid} or a child of it; choose another --out") from None
        except OSError as error:
            warn(f"{out} cannot be locked ({error}); do not start a second run in it")
        file.truncate(0)
        file.write(f"{os.getpid()}\n".encode())
        HELD.add(file)
        yield


def read_record(out: Path) -> dict:
    """What `describe` made of the run in this folder, {} where none is; ValueError for another config.json."""
    try:
        record = read_json(out / "config.json")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError:
        record = None
    if not isinstance(record, dict) or not all(isinstance(record.get(part), dict) for part in ("run", "ppo")):
        raise ValueError(f"{out / 'config.json'} is not the config.json of a run; choose another --out")
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
        raise ValueError(f"{out} was begun with other settings (then -> now): {'; '.join(changed)}. Give them as they were, or "
                         "--allow-config-change")
    if resume and stored.get("steps") not in (None, record["steps"]) and record["run"]["lr_schedule"] != "constant":
        changed.append(f"steps: {stored['steps']!r} -> {record['steps']}; the learning rate now falls to 0 at the new end")
    for change in changed:
        warn(f"changed: {change}")
    remove_leftovers(out, OURS)                                         # of processes that died: under the lock none is alive
    newest, found = newest_checkpoint(out), checkpoints(out)
    for damaged in found[found.index(newest) + 1:] if newest else []:
        os.rename(damaged, out / f"damaged-{damaged.name}.{os.getpid()}")       # out of the way of the next one of that update
    return newest


def checkpoints(out: Path) -> list[Path]:
    """The checkpoint folders, oldest first."""
    found = [path for path in out.glob("checkpoint-*") if CHECKPOINT.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name[11:]))


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
    best = f", the best {out / 'best'}" if (out / "best").exists() else ""
    return f"the newest checkpoint is {newest[0]}{best}" if newest else "there is no checkpoint yet"


def model_source(name: str, flag: str = "--model") -> str:
    """What to load for this name: of a run's folder the newest checkpoint, else the folder or public name itself."""
    path = place(name, flag)
    newest = newest_checkpoint(path)
    if newest is None and (path / "metrics.jsonl").exists() and not (path / "model.safetensors").exists():
        raise ValueError(f"{flag}: {name} is the folder of a run without a checkpoint yet")
    return str(newest or (path if name.startswith("~") else name))


def save(out: Path, trainer: PPOTrainer, state: RunState, logs: dict[str, Log], keep: int | None) -> None:
    """Write a checkpoint, then remove the oldest; OSError leaves the old ones as they were. keep: how many; None: write best/."""
    if rank() > 0:
        return
    state.sizes = {name: log.write([], sync=True) for name, log in logs.items()}    # before the checkpoint that counts on them
    folder = out / (f"checkpoint-{trainer.steps_done:06d}" if keep else "best")
    if not (out / "config.json").exists():
        warn(f"{out} was moved or removed during the run: {folder} is new there; move it to where the run is, to --resume")
    save_state(folder, trainer, asdict(state))
    for old in checkpoints(out)[:-keep] if keep else []:
        if old.is_symlink():                                            # it was moved to another disk and linked back
            warn(f"the link {old} is removed, the checkpoint that it points to is not: {os.readlink(old)}")
        os.rename(old, beside(old, "tmp"))                              # in one step: half a checkpoint is never seen
    remove_leftovers(out, CHECKPOINT)
