"""Files and folders that are there whole or not at all; links, crashes and leftovers."""

import json
import os
import re
import stat
from pathlib import Path

import pytest

from minippo.files import atomic
from minippo.files.atomic import TEMPORARY, beside, find_folder, new_file, new_folder, read_json, remove_leftovers, sync, write_json, write_text


def test_new_folder_by_itself(tmp_path):
    with pytest.raises(RuntimeError):
        with new_folder(tmp_path / "x", whole=True) as temporary:
            (temporary / "a").write_text("half")
            raise RuntimeError
    assert not list(tmp_path.iterdir())


def write(folder, text: str, whole: bool) -> None:
    with new_folder(folder, whole) as temporary:
        (temporary / "a").write_text(text)


@pytest.mark.parametrize("whole", [True, False])
def test_a_folder_is_replaced_or_its_files_are(tmp_path, whole):
    write(tmp_path / "x", "old", whole)
    (tmp_path / "x" / "foreign").write_text("mine")
    write(tmp_path / "x", "new", whole)
    assert (tmp_path / "x" / "a").read_text() == "new" and (tmp_path / "x" / "foreign").exists() != whole
    assert [path.name for path in tmp_path.iterdir()] == ["x"] and len(list((tmp_path / "x").iterdir())) == 2 - whole


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("target", ["elsewhere/x", "not there yet/x"])
def test_a_link_to_a_folder_stays_one(tmp_path, whole, target):
    (tmp_path / "elsewhere" / "x").mkdir(parents=True)
    (tmp_path / "link").symlink_to(target)
    for text in ("one", "two"):
        write(tmp_path / "link", text, whole)
        assert os.readlink(tmp_path / "link") == target and (tmp_path / target / "a").read_text() == text
    assert sorted(path.name for path in tmp_path.iterdir() if path.name not in ("elsewhere", "not there yet")) == ["link"]
    assert [path.name for path in (tmp_path / target).parent.iterdir()] == ["x"]


def test_a_second_rename_that_fails_puts_the_old_folder_back(tmp_path, monkeypatch):
    """The disk fills up, or Ctrl+C comes, between setting the old one aside and renaming the new one."""
    write(tmp_path / "x", "old", True)
    rename = os.rename

    def fails(source, target):
        if ".tmp-" in str(source):
            raise KeyboardInterrupt
        rename(source, target)
    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "x", "new", True)
    assert (tmp_path / "x" / "a").read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("name", ["ck", "ck[1]", "ck.old-x", "c*"])
def test_a_folder_set_aside_is_found_again_under_its_very_name(tmp_path, name):
    """The newest, if there are several; names are no patterns, and what others gave such a name stays."""
    for age, text in ((100, "older"), (10, "newest"), (50, "old")):
        aside = beside(tmp_path / name, "old")
        aside.mkdir()
        (aside / "a").write_text(text)
        os.utime(aside, (10**9 - age, 10**9 - age))
    for foreign in (f"{name}.old-1234", f"{name}.tmp-minippo-01234567", f"other-{name}.old-minippo-01234567", f"{name}.old-minippo-0123456g"):
        (tmp_path / foreign).mkdir()
    assert (find_folder(tmp_path / name) / "a").read_text() == "newest"
    assert len(list(tmp_path.iterdir())) == 7
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        find_folder(tmp_path / "other")


def test_leftovers_are_removed_by_their_exact_names(tmp_path):
    (beside(tmp_path / "checkpoint-000001", "tmp")).mkdir()
    (beside(tmp_path / "config.json", "old")).write_text("")
    link = beside(tmp_path / "checkpoint-000002", "old")
    (tmp_path / "elsewhere").mkdir()
    link.symlink_to("elsewhere")
    foreign = ["data.tmp-2024", "data.tmp-minippo-01234567", "checkpoint-000001.tmp-1", "config.json.old-minippo-0123456", "elsewhere"]
    for name in foreign[:-1]:
        (tmp_path / name).mkdir()
    remove_leftovers(tmp_path, re.compile(r"checkpoint-\d{6}|config\.json"))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(foreign)


def test_names_of_our_own_making_are_recognised(tmp_path):
    for kind in ("tmp", "old"):
        assert TEMPORARY.fullmatch(beside(tmp_path / "a.b", kind).name).groups() == ("a.b", kind)


def test_a_link_to_a_file_stays_one(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_text(tmp_path / "link", "new")
    assert os.readlink(tmp_path / "link") == "real" and (tmp_path / "real").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write_json(tmp_path / "x", {"a": 1})
    with pytest.raises(ZeroDivisionError):
        with new_file(tmp_path / "x") as file:
            file.write(b"half")
            1 / 0
    assert json.loads((tmp_path / "x").read_text()) == {"a": 1} and len(list(tmp_path.iterdir())) == 1


def test_what_is_no_file_or_folder_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for name in ("fifo", "folder"):
        with pytest.raises(FileExistsError, match=f"{name} is there and not a file"):
            write_text(tmp_path / name, "x")
    with pytest.raises(NotADirectoryError, match="fifo exists and is not a folder"):
        write(tmp_path / "fifo", "x", True)
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)


def test_half_a_character_does_not_stop_a_write(tmp_path):
    write_text(tmp_path / "x", "a\ud800b")
    assert (tmp_path / "x").read_bytes() == b"a?b"


def test_on_windows_no_folder_is_opened_and_files_are_opened_for_writing(tmp_path, monkeypatch):
    """Windows opens no folders, and syncs only what it may write."""
    (tmp_path / "x").write_text("")
    flags, original = [], os.open
    monkeypatch.setattr(atomic.os, "open", lambda path, how: flags.append(how) or original(path, how))
    monkeypatch.setattr(atomic.os, "name", "nt")
    try:
        sync(tmp_path)
        sync(tmp_path / "x")
    finally:
        monkeypatch.undo()
    assert flags == [os.O_RDWR]


def test_a_full_disk_says_which_file(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full, a Linux device on which every write fails")
    with pytest.raises(OSError, match="No space left on device: '.*weights'"):
        with new_file(tmp_path / "weights"):
            with open("/dev/full", "wb", buffering=0) as full:
                full.write(b"x")
    assert not list(tmp_path.iterdir())


def test_a_home_is_found_wherever_a_folder_is_named(tmp_path, monkeypatch):
    """Where from_pretrained looks, save_pretrained must have written."""
    monkeypatch.setenv("HOME", str(tmp_path))
    with new_folder("~/folder", whole=True) as temporary:
        write_text(temporary / "a", "new")
    assert find_folder("~/folder") == tmp_path / "folder" and (tmp_path / "folder" / "a").read_text() == "new"
    with new_folder("~/folder", whole=False) as temporary:
        write_text(temporary / "a", "newer")
    assert (tmp_path / "folder" / "a").read_text() == "newer"


@pytest.mark.parametrize("content, message", [(b"{", "not valid JSON"), (b"\xff", "not valid JSON"), (b"[" * 100_000, "not valid JSON"),
                                              (b"9" * 5000, "not valid JSON"), (b" " * 1001, "1,001 bytes .*at most 1,000")],
                         ids=["half", "bytes", "deep", "digits", "long"])
def test_json_that_is_none_is_one_clear_error(tmp_path, content, message):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match=f"x .*{message}|x has {message}"):
        read_json(tmp_path / "x", 1000 if b" " in content else 2**20)


def test_json_from_a_pipe_is_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x")
    with pytest.raises(ValueError, match="not a file"):
        read_json(tmp_path / "x")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "absent")
