"""What is printed: progress, samples, and streams that are closed, full or gone."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minippo.training import terminal
from minippo.training.terminal import Progress, Stream, say, visible, warn

ROOT = Path(__file__).parents[2]
ENTRY = re.search(r'^minippo = "([\w.]+):(\w+)"$', (ROOT / "pyproject.toml").read_text(), re.M).groups()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def count_up(monkeypatch, seconds_a_step: float) -> None:
    """Three steps of this length, by a clock of our own."""
    clock = iter(range(100))
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock) * seconds_a_step)
    progress = Progress("pretraining", 3)
    for step in (1, 2, 3):
        progress.show(step, "loss 0.500")
    progress.finish("loss 0.250")


def test_progress_is_one_line_where_nobody_watches(monkeypatch, capsys):
    count_up(monkeypatch, 1.0)
    assert capsys.readouterr().out == "pretraining: 3 steps, loss 0.250, 4 s\n"


def test_progress_of_a_continued_run_counts_what_was_done_before(monkeypatch, capsys):
    """Step 11 of 13, of which 10 were done before: 100 s for one, hence 200 s for two."""
    clock = iter([0.0, 100.0])
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))
    Progress("PPO", 13, done=10).show(11, "score 1.000")
    assert capsys.readouterr().out == "PPO: step 11 of 13, score 1.000, 200 s left\n"


def test_progress_of_a_long_run_reaches_a_log_file(monkeypatch, capsys):
    """At 60 s a step the first line comes after the first, when two more will take 120 s."""
    count_up(monkeypatch, 60.0)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "pretraining: step 1 of 3, loss 0.500, 120 s left" and len(lines) == 4


def test_progress_rewrites_its_line_at_a_terminal(monkeypatch):
    output = Terminal()
    monkeypatch.setattr(terminal.sys, "stdout", output)
    count_up(monkeypatch, 1.0)
    assert output.getvalue().count("\r") == 4 and output.getvalue().count("\n") == 1
    assert output.getvalue().endswith("\n") and "step 3 of 3" in output.getvalue()


def test_a_sample_cannot_steer_the_terminal():
    sample = {"query": "clear", "response": " it\x1b[2J\nnow", "score": 0.5, "kl": 1.0}
    assert terminal.sample_line(sample) == "    score   0.500  kl   1.00  clear | it\\x1b[2J\\nnow"


# --- streams --------------------------------------------------------------------------------------

def broken_pipe() -> io.TextIOWrapper:
    reading, writing = os.pipe()
    os.close(reading)
    return open(writing, "w")


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("make", [
    lambda: None, closed, broken_pipe,
    pytest.param(lambda: open("/dev/full", "w"), marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux"))])
def test_a_stream_that_is_closed_full_or_gone_is_passed_over(monkeypatch, make):
    stream = make()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    say("text")
    warn("text")
    progress = Progress("PPO", 3)
    progress.show(1, "loss 1")
    progress.finish("loss 0")
    print("a user's own", file=Stream(stream))
    if stream is not None and not stream.closed:                        # what it still holds would fail when it is closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        stream.close()


def test_what_a_stream_cannot_encode_becomes_an_escape():
    raw = io.BytesIO()
    ascii = io.TextIOWrapper(raw, encoding="ascii")
    print("\u00e9 \ufffd \ud800 a", file=Stream(ascii))
    assert raw.getvalue() == b"\\xe9 \\ufffd \\ud800 a\n"


def test_text_is_shown_and_not_obeyed(capsys):
    say("a\x1b[2J\rb\n\tc")
    warn("a\x1b[2J")
    assert capsys.readouterr() == ("a\\x1b[2J\\rb\n\tc\n", "warning: a\\x1b[2J\n")
    assert visible("a\x1b[2J\u202e\r\nb\u00e9") == "a\\x1b[2J\\u202e\\r\\nb\u00e9" and visible("a\n\tb", keep="\n") == "a\n\\tb"


PROGRAMS = ["-m minippo", f'-c "import sys; from {ENTRY[0]} import {ENTRY[1]}; sys.exit({ENTRY[1]}())"']      # as pip's script calls it


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell closes the streams")
@pytest.mark.parametrize("program, command, status", [
    (PROGRAMS[0], "report no/such >/dev/full 2>&-", 2), (PROGRAMS[0], "--help >/dev/full", 0),
    (PROGRAMS[0], "generate --model no/such --prompt x <&- >&- 2>&-", 2), (PROGRAMS[0], "train --help | true", 0),
    (PROGRAMS[1], "--help >/dev/full", 0), (PROGRAMS[1], "report no/such <&- >&- 2>&-", 2)])
def test_a_program_keeps_its_exit_status_whatever_its_streams_are(program, command, status):
    """The first of a pipe's: head -1 and the like leave before it is done."""
    done = subprocess.run(["bash", "-c", f"{sys.executable} {program} {command}; exit ${{PIPESTATUS[0]}}"], cwd=ROOT,
                          stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (status, "")


def test_no_file_gets_the_number_of_a_closed_stream():
    code = ("import sys; sys.path.insert(0, sys.argv[1]); from minippo.training.terminal import protect; protect(); "
            "file = open(sys.argv[2], 'w'); sys.exit(file.fileno() < 3)")
    command = f'{sys.executable} -c "$0" "$1" "$2" <&- >&- 2>&-'
    assert subprocess.run(["bash", "-c", command, code, str(ROOT), os.devnull]).returncode == 0
