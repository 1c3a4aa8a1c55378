"""Files and folders that are there whole or not at all: written beside their place, synced to the disk, then renamed.

A reader sees the old one or the new one, never half of either, also when the power fails. What a killed process leaves behind
has a name that nobody else gives, see TEMPORARY, and can be removed without touching anything foreign. A link stays a link.
"""

import hashlib
import json
import os
import re
import shutil
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Iterator

TEMPORARY = re.compile(r"(.+)\.(tmp|old)-minippo-[0-9a-f]{8}")       # a name of our own making; group 1 is what it becomes
MAX_JSON = 2**20                # bytes; the config.json and manifest.json of the largest models have a few thousand


def beside(path: Path, kind: str) -> Path:
    """A new name beside `path`; kind "tmp": not whole yet; "old": set aside while the new one takes its place."""
    return path.with_name(f"{path.name}.{kind}-minippo-{uuid.uuid4().hex[:8]}")


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    if os.name == "nt" and path.is_dir():                   # Windows opens no folders, and syncs only what may be written
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def read_text(path: Path, limit: int) -> str:
    """The text of a file; ValueError, and nothing is read, where it is a pipe or the like, or has more than `limit` bytes."""
    if (size := path.stat().st_size) > limit or not path.is_file():
        raise ValueError(f"{path} has {size:,} bytes or is not a file; expected a file of at most {limit:,} bytes")
    return path.read_text(encoding="utf-8", errors="replace")           # line ends of any kind become \n


def read_json(path: Path, limit: int = MAX_JSON) -> Any:
    text = read_text(path, limit)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); fetch or write the file again") from error


def write_text(path: str | os.PathLike, text: str) -> None:
    with new_file(path) as file:
        file.write(text.encode("utf-8", "replace"))         # half a character, as a cut response has, must not stop a run


def write_json(path: str | os.PathLike, content: dict) -> None:
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


@contextmanager
def new_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A binary file to write into; it stands at `path` when the block ends without an error."""
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} is there and not a file; choose another place")      # os.replace would replace a device
    temporary = beside(path, "tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
        sync(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and not error.filename:           # a full disk does not say where
            error.filename = str(path)
        raise
    sync(path.parent)


@contextmanager
def new_folder(folder: str | os.PathLike, whole: bool) -> Iterator[Path]:
    """A temporary folder to write into; its files are in `folder` when the block ends without an error.

    Where a folder is there already, `whole` replaces it (it is set aside first and removed last; after a crash between the two
    find_folder puts it back); otherwise each file is replaced in one step, and foreign files stay.
    """
    folder = Path(os.path.realpath(os.path.expanduser(folder)))
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} exists and is not a folder; choose another place")
    folder.parent.mkdir(parents=True, exist_ok=True)
    into = folder.exists() and not whole
    # inside the folder where only its files change: it may be a disk of its own, and files are renamed within one disk only
    temporary, aside = beside(folder / folder.name if into else folder, "tmp"), beside(folder, "old")
    temporary.mkdir()
    try:
        yield temporary
        for path in (*temporary.iterdir(), temporary):
            sync(path)
        if into:
            for path in temporary.iterdir():
                os.replace(path, folder / path.name)
            temporary.rmdir()
        else:
            if folder.exists():
                os.rename(folder, aside)
            os.rename(temporary, folder)
        sync(folder if into else folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if aside.exists() and not folder.exists():          # the second rename failed, or Ctrl+C came between the two
            os.rename(aside, folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def find_folder(folder: str | os.PathLike) -> Path:
    """`folder`, put back if a crash came between setting the old one aside and putting the new one in its place."""
    folder = Path(os.path.realpath(os.path.expanduser(folder)))
    asides = [path for path in folder.parent.glob("*")
              if (match := TEMPORARY.fullmatch(path.name)) and match.groups() == (folder.name, "old")]
    if asides and not folder.exists():
        os.rename(max(asides, key=lambda path: path.stat().st_mtime), folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    return folder


def remove_leftovers(folder: Path, names: re.Pattern) -> None:
    """Remove what killed processes left of files and folders whose names match `names`; nothing else."""
    for path in folder.iterdir():
        if (match := TEMPORARY.fullmatch(path.name)) and names.fullmatch(match[1]):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
