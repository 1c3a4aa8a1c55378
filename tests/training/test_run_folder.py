"""The folder of a run: whose it is, its lock, logs and checkpoints."""

import json
import os
import resource
import shutil
import signal
import time

import pytest

from minippo.files.checkpoint import verify_folder
from minippo.training import run_folder
from minippo.training.run_folder import Log, lock, model_source, newest_checkpoint, read_record
from test_run import base, forked, history, lines, no_fsync, start, status_of  # noqa: F401: base and no_fsync are fixtures


def snapshot(folder) -> dict:
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


# --- whose folder it is ---------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["samples.jsonl", "metrics.jsonl", "config.json", "thesis.txt", "checkpoint-000001", "data.tmp-2024",
                                  "x.tmp-minippo-0123abcd"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_other_things_is_refused_and_left_as_it_is(base, tmp_path, monkeypatch, name, resume):
    """`--out .` in a folder of one's own: nothing is removed, cut or added."""
    if name[-2:] in ("01", "24"):
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_text('{"step": 1}\n')
    before = snapshot(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is no run's folder, and .* is in it: nothing was touched|is not the config.json of a run"):
        start(base, ".", resume=resume)
    assert snapshot(tmp_path) == before


def test_leftovers_of_a_run_are_removed_and_foreign_ones_are_not(base, tmp_path):
    start(base, tmp_path, steps=1, lr_schedule="constant")
    (tmp_path / "checkpoint-000009.tmp-minippo-0123abcd").mkdir()
    (tmp_path / "report.html.tmp-minippo-0123abcd").touch()
    kept = [tmp_path / name for name in ("data.tmp-2024", "checkpoint-000009.tmp-mine", "x.tmp-minippo-0123abcd")]
    for path in kept:
        path.mkdir()
    start(base, tmp_path, steps=1, lr_schedule="constant", resume=True)
    assert sorted(tmp_path.glob("*.tmp-*")) == sorted(kept)


def test_a_lock_or_ratings_alone_do_not_make_a_folder_foreign(base, tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / "labels.jsonl").touch()
    assert start(base, tmp_path, steps=1).steps_done == 1


@pytest.mark.parametrize("content", ["[]", "null", "", "{", '{"run": 1, "ppo": {}}', '{"run": {}}', "[" * 100_000, "\xff"])
def test_a_config_json_that_is_no_run_s_gives_one_clear_line(base, tmp_path, content):
    (tmp_path / "config.json").write_text(content, encoding="latin1")
    for action in (lambda: read_record(tmp_path), lambda: start(base, tmp_path), lambda: start(base, tmp_path, resume=True)):
        with pytest.raises(ValueError, match="config.json is not the config.json of a run; choose another --out$"):
            action()
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_folder_with_a_run_is_not_written_over(base):
    before = history(base / "reference")
    with pytest.raises(ValueError, match="already holds a run: continue it with --resume"):
        start(base, base / "reference")
    assert history(base / "reference") == before


def test_a_foreign_config_json_is_not_written_over(base):
    with pytest.raises(ValueError, match="config.json is not the config.json of a run"):
        start(base, base / "model", resume=True)


def test_out_must_be_a_folder_that_can_be_written(base, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="is a file"):
        start(base, tmp_path / "file")
    if os.getuid() != 0:
        tmp_path.chmod(0o500)
        with pytest.raises(PermissionError):
            start(base, tmp_path / "new")


# --- the lock -------------------------------------------------------------------------------------

def test_a_second_run_in_the_same_folder_is_refused(base, tmp_path):
    with lock(tmp_path):
        with pytest.raises(BlockingIOError, match=f"in use, locked by process {os.getpid()} or a child of it"):
            start(base, tmp_path)
    start(base, tmp_path, steps=2)                                                     # a .lock that nobody holds is no problem


def test_a_child_that_outlives_a_killed_run_does_not_hold_its_lock(tmp_path):
    """A reward that forks without exec: the run is killed, the child sleeps on, and another run may begin at once."""
    reading, writing = os.pipe()

    def run():
        with lock(tmp_path):
            pid = os.fork()
            if pid == 0:
                time.sleep(60)
                os._exit(0)
            os.write(writing, f"{pid}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)
    assert status_of(forked(run)) == -signal.SIGKILL
    child = int(os.read(reading, 20))
    try:
        with lock(tmp_path):
            assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(reading)
        os.close(writing)


def test_the_holder_of_a_lock_may_be_a_child_of_the_process_that_it_names(tmp_path):
    ended = forked(lambda: None)
    status_of(ended)
    with lock(tmp_path):
        (tmp_path / ".lock").write_text(f"{ended}\n")
        with pytest.raises(BlockingIOError, match=f"in use, locked by process {ended} or a child of it; choose another"):
            with lock(tmp_path):
                pass


class Msvcrt:
    """As the module of Windows: one byte of a file belongs to one opening of it."""
    LK_NBLCK = 2
    held: set = set()

    def locking(self, descriptor, mode, n):
        place = os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR)
        if place in self.held:
            raise PermissionError(13, "Permission denied")
        self.held.add(place)


def test_the_lock_without_fcntl(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_folder, "fcntl", None)
    with lock(tmp_path), lock(tmp_path):
        pass
    assert "cannot be locked (this system has no locks); do not start a second run in it" in capsys.readouterr().err
    monkeypatch.setattr(run_folder, "msvcrt", Msvcrt())
    with lock(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"
        with pytest.raises(BlockingIOError, match=f"in use, locked by process {os.getpid()} or a child of it"):
            with lock(tmp_path):
                pass
    assert capsys.readouterr().err == ""


# --- checkpoints ----------------------------------------------------------------------------------

def test_a_checkpoint_that_was_moved_and_linked_back_is_resumed_and_never_removed(base, tmp_path, capsys):
    out, elsewhere = tmp_path / "run", tmp_path / "another disk"
    start(base, out, steps=2, lr_schedule="constant")
    (out / "checkpoint-000002").rename(elsewhere)
    (out / "checkpoint-000002").symlink_to(elsewhere)
    start(base, out, steps=4, lr_schedule="constant", resume=True, keep_checkpoints=1)
    assert [path.name for path in run_folder.checkpoints(out)] == ["checkpoint-000004"]
    assert verify_folder(elsewhere)["step"] == 2
    assert f"the link {out / 'checkpoint-000002'} is removed, the checkpoint that it points to is not: {elsewhere}" in capsys.readouterr().err


def test_a_folder_renamed_during_a_run_loses_no_weights(base, tmp_path, capsys):
    def rename(queries, responses):
        if (tmp_path / "run" / "checkpoint-000002").exists():
            os.rename(tmp_path / "run", tmp_path / "renamed")
        return [0.0] * len(queries)
    result = start(base, tmp_path / "run", score_fn=rename, keep_checkpoints=9)
    assert result.checkpoint == tmp_path / "run" / "checkpoint-000004" and verify_folder(result.checkpoint)["step"] == 4
    assert "was moved or removed during the run: " in capsys.readouterr().err
    assert len(lines(tmp_path / "renamed" / "metrics.jsonl")) == 4


def test_a_reward_that_changes_the_folder_does_not_move_the_run(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    start(base, "run", score_fn=lambda queries, responses: os.chdir(tmp_path / "elsewhere") or [0.0] * len(queries), steps=2)
    assert newest_checkpoint(tmp_path / "run").name == "checkpoint-000002" and not list((tmp_path / "elsewhere").iterdir())


def test_a_run_folder_stands_for_its_newest_checkpoint_wherever_a_model_is_named(base, tmp_path, monkeypatch):
    newest = str(base / "reference" / "checkpoint-000004")
    assert model_source(str(base / "reference")) == newest
    assert model_source("gpt2") == "gpt2" and model_source(str(base / "model")) == str(base / "model")
    monkeypatch.setenv("HOME", str(base))
    assert model_source("~/reference") == newest and model_source("~/model") == str(base / "model")
    start(base, tmp_path / "next", model=str(base / "reference"), steps=1)
    assert json.loads((tmp_path / "next" / "metrics.jsonl").read_text())["objective/kl"] == 0      # it is its own reference
    shutil.copytree(base / "reference", tmp_path / "empty", ignore=shutil.ignore_patterns("checkpoint-*"))
    with pytest.raises(ValueError, match="is the folder of a run without a checkpoint yet"):
        model_source(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="--model: expected a path, got ''"):
        model_source("")


# --- logs -----------------------------------------------------------------------------------------

def test_lines_wait_until_there_is_room(tmp_path, capsys):
    """Lines of 12 bytes where files may have 30: two fit, the third is taken back whole and comes when there is room."""
    log = Log(tmp_path / "log", 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30, hard))                          # Python ignores SIGXFSZ: write fails
        for step in (1, 2, 3):
            log.write([{"step": step}])
        assert log.write([], sync=True) == 24
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "log").read_bytes() == b'{"step": 1}\n{"step": 2}\n'
    log.write([{"step": 4, "x": float("nan")}])
    assert lines(tmp_path / "log") == [{"step": 1}, {"step": 2}, {"step": 3}, {"step": 4, "x": None}]
    log.file.close()
