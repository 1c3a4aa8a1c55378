"""A person at a terminal: what is asked, what is kept, what stops a run."""

import fcntl
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest

from minippo.scoring import human as human_module
from minippo.scoring.human import HumanReward, StopRun
from minippo.scoring.rewards import Reward


QUERIES, RESPONSES = ["q1", "q2", "q3"], ["r1", "r2", "r3"]


def human(path, answers):
    """A HumanReward that types `answers`; what it shows is in .output."""
    return HumanReward(path, io.StringIO(answers), io.StringIO())


def saved(path):
    return [tuple(json.loads(line).values()) for line in path.read_text().splitlines()]


def test_ratings_are_scores_and_are_saved(tmp_path):
    path = tmp_path / "labels.jsonl"
    asked = human(path, "4\n -5 \n2.5\n")
    assert asked(QUERIES, RESPONSES) == [4.0, -5.0, 2.5]
    first = json.loads(path.read_text().splitlines()[0])
    assert first == {"query": "q1", "response": "r1", "score": 4.0}
    assert saved(path) == [("q1", "r1", 4.0), ("q2", "r2", -5.0), ("q3", "r3", 2.5)]
    assert "[2 of 3]\nquery:    q2\nresponse: r2\n" in asked.output.getvalue()


def test_a_rating_is_on_the_disk_before_the_next_question(tmp_path, monkeypatch):
    asked = human(tmp_path / "labels.jsonl", "1\n2\n")
    shown = []                                                          # how many questions at each fsync
    monkeypatch.setattr(os, "fsync", lambda fd: shown.append(asked.output.getvalue().count("query:")))
    asked(["q1", "q2"], ["r1", "r2"])
    assert shown == [1, 2]


@pytest.mark.parametrize("answer, score", [("3,5", 3.5), ("-,5", -0.5), ("+2", 2.0), ("4.", 4.0)])
def test_numbers_as_people_write_them(tmp_path, answer, score):
    assert human(tmp_path / "labels.jsonl", f"{answer}\n")(["q"], ["r"]) == [score]


@pytest.mark.parametrize("answer", ["?", "help", " HELP "])
def test_help_explains_and_asks_again(tmp_path, answer):
    asked = human(tmp_path / "labels.jsonl", f"{answer}\n1\n")
    assert asked(["q"], ["r"]) == [1.0] and saved(asked.path) == [("q", "r", 1.0)]
    assert "s, stop   end the run" in asked.output.getvalue() and "not a number" not in asked.output.getvalue()


@pytest.mark.parametrize("answer, reason", [
    ("", "'' is not a number"), ("abc", "'abc' is not a number"), ("3 4", "'3 4' is not a number"),
    ("6", "'6' is not a number from -5 to 5"), ("-5.1", "'-5.1' is not a number from"), ("nan", "'nan' is not a number from"), ("1,0,0", "is not a number"),
])
def test_nonsense_is_refused_with_the_reason_and_asked_again(tmp_path, answer, reason):
    path = tmp_path / "labels.jsonl"
    asked = human(path, f"{answer}\n1\n")
    assert asked(["q"], ["r"]) == [1.0] and saved(path) == [("q", "r", 1.0)]
    assert reason in asked.output.getvalue()


def test_undo_takes_back_in_the_file_too(tmp_path):
    """1, 2, back, back, 3, 4, then stop: the file never keeps what was taken back."""
    path = tmp_path / "labels.jsonl"
    with pytest.raises(StopRun):
        human(path, "1\n2\nU\nundo\n3\n4\nstop\n")(QUERIES, RESPONSES)
    assert saved(path) == [("q1", "r1", 3.0), ("q2", "r2", 4.0)]
    asked = human(path, "5\nu\ns\n")
    with pytest.raises(StopRun):
        asked(["q4", "q5"], ["r4", "r5"])
    assert saved(path) == [("q1", "r1", 3.0), ("q2", "r2", 4.0)]
    assert asked.ratings == {("q1", "r1"): 3.0, ("q2", "r2"): 4.0}


def test_undo_ends_at_the_batch(tmp_path):
    asked = human(tmp_path / "labels.jsonl", "1\nu\n2\n")
    assert asked(["q1"], ["r1"]) == [1.0]
    assert asked(["q2"], ["r2"]) == [2.0]
    assert "nothing to undo" in asked.output.getvalue()
    assert saved(asked.path) == [("q1", "r1", 1.0), ("q2", "r2", 2.0)]


def test_stop_and_the_end_of_the_input_keep_what_was_rated(tmp_path):
    for answers, reason in (("1\ns\n", "stopped"), ("1\n", "ended")):
        path = tmp_path / f"{reason}.jsonl"
        with pytest.raises(StopRun, match=reason) as info:
            human(path, answers)(QUERIES, RESPONSES)
        assert saved(path) == [("q1", "r1", 1.0)] and info.value.signum is None
        assert str(info.value).endswith(f"; ratings kept in {path}: 1")    # so that nobody thinks them lost


def test_a_stop_goes_through_a_weighted_sum(tmp_path):
    with pytest.raises(StopRun):
        Reward([(1.0, "human", human(tmp_path / "labels.jsonl", "s\n"))])(["q"], ["r"])


def test_replay_asks_only_what_is_new(tmp_path):
    path = tmp_path / "labels.jsonl"
    human(path, "1\n2\n")(["q1", "q2"], ["r1", "r2"])
    asked = human(path, "3\n")
    assert asked(["q2", "q3", "q1", "q3"], ["r2", "r3", "r1", "r3"]) == [2.0, 3.0, 1.0, 3.0]
    assert asked.output.getvalue().count("rating") == 1                 # the second (q3, r3) is the same
    assert f"2 of 4 responses are rated already, in {path}\n" in asked.output.getvalue()


def test_a_batch_that_is_rated_needs_no_terminal(tmp_path):
    human(tmp_path / "labels.jsonl", "1\n")(["q"], ["r"])
    asked = human(tmp_path / "labels.jsonl", "")
    asked.input.close()
    asked.output.close()
    assert asked(["q"], ["r"]) == [1.0]


@pytest.mark.parametrize("tail, kept", [
    (b'{"query": "q2", "resp', []),                                     # torn by a kill
    (b'{"query": "q2", "response": "r2", "score": 2}', [("q2", "r2", 2)]),      # only its newline
])
def test_the_last_line_may_lack_its_end(tmp_path, tail, kept):
    path = tmp_path / "labels.jsonl"
    human(path, "1\n")(["q1"], ["r1"])
    path.write_bytes(path.read_bytes() + tail)
    assert human(path, "3\n")(["q1", "q3"], ["r1", "r3"]) == [1.0, 3.0]
    assert saved(path) == [("q1", "r1", 1.0), *kept, ("q3", "r3", 3.0)]


@pytest.mark.parametrize("line", [
    b"{", b"[]", b'{"query": "q"}', b'{"query": [1], "response": "r", "score": 1}',
    b'{"query": "q", "response": "r", "score": 9}', b'{"query": "q", "response": "r", "score": NaN}',
    b'{"query": "q", "response": "r", "score": 1' + b"0" * 400 + b"}", b'{"query": 1, "response": "r", "score": 1}',
    b"[" * 100_000, b"",
], ids=range(10))
def test_any_other_bad_line_is_an_error_and_stays(tmp_path, line):
    path = tmp_path / "labels.jsonl"
    content = b'{"query": "q", "response": "r", "score": 1}\n' + line + b"\n"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="labels.jsonl, line 2: not a rating from -5 to 5"):
        human(path, "")
    assert path.read_bytes() == content


def record(query="q\u00e9: ", response='"\\ \n', score=-0.25):
    return json.dumps({"query": query, "response": response, "score": score}).encode()


@pytest.mark.parametrize("at", range(1, len(record())))
def test_half_a_line_of_ours_is_cut_off_wherever_it_is_torn(tmp_path, at):
    path = tmp_path / "labels.jsonl"
    path.write_bytes(record("first") + b"\n" + record()[:at])
    assert list(human(path, "").ratings) == [("first", '"\\ \n')]
    assert path.read_bytes() == record("first") + b"\n"


@pytest.mark.parametrize("content", [
    b'{"text": "good", "label": 1}\n{"text": "bad", "la',               # somebody's labels, still being written
    b'{"query": "q", "response": "r", "score": 1}\n{"text": "bad", "la',
    b'{"query": "q", "chosen": "r", "rejected": "s"',
    b'{"query": "q", "response": "r", "score": "good', b'{"query":"q"', b"notes of my own", b"\xff\xfe", b"[1, 2",
], ids=range(8))
def test_a_file_that_is_not_ours_is_refused_and_stays_to_the_byte(tmp_path, content):
    """A tail is mended only where it is the beginning of a line that a human reward writes."""
    path = tmp_path / "labels.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"labels.jsonl, line \d: not a rating from -5 to 5 .*move the file away"):
        human(path, "")
    assert path.read_bytes() == content


def test_a_response_cannot_steer_the_terminal(tmp_path):
    asked = human(tmp_path / "labels.jsonl", "1\n")
    asked(["q\x1b[2J\u202e"], ["a\nb\ud800\r"])
    shown = asked.output.getvalue()
    assert "\x1b" not in shown and "query:    q\\x1b[2J\\u202e\nresponse: a\n          b\\ud800\\r\n" in shown
    assert saved(asked.path) == [("q\x1b[2J\u202e", "a\nb\ud800\r", 1.0)]


def test_a_terminal_that_cannot_show_a_letter_shows_its_code(tmp_path):
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    assert HumanReward(tmp_path / "labels.jsonl", io.StringIO("1\n"), output)(["q"], ["é"]) == [1.0]
    assert b"\\xe9" in output.buffer.getvalue()


def test_closed_streams_stop_the_run(tmp_path):
    for closed in ("input", "output"):
        asked = human(tmp_path / "labels.jsonl", "1\n")
        getattr(asked, closed).close()
        with pytest.raises(StopRun, match="terminal is closed"):
            asked(["q"], ["r"])


def test_a_folder_that_cannot_be_written_fails_before_the_first_question(tmp_path):
    with pytest.raises(OSError):
        human(tmp_path / "none" / "labels.jsonl", "1\n")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_it_waits_stops_the_run(tmp_path, signum):
    """Even if the run's own handler would only set a flag; that handler is back afterwards."""
    asked, flags = human(tmp_path / "labels.jsonl", "1\n"), []
    asked.input.readline = lambda: os.kill(os.getpid(), signum) or time.sleep(5)
    before = signal.signal(signum, lambda *_: flags.append(1))
    try:
        with pytest.raises(StopRun) as info:
            asked(["q"], ["r"])
        assert info.value.signum == signum and not flags
        os.kill(os.getpid(), signum)
        assert flags == [1]
    finally:
        signal.signal(signum, before)


def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    """nohup ignores SIGHUP, so that a run outlives its terminal."""
    asked = human(tmp_path / "labels.jsonl", "")
    asked.input.readline = lambda: os.kill(os.getpid(), signal.SIGHUP) or "1\n"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert asked(["q"], ["r"]) == [1.0]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_it_works_where_there_is_no_sighup(tmp_path, monkeypatch):
    monkeypatch.delattr(signal, "SIGHUP")
    assert human(tmp_path / "labels.jsonl", "1\n")(["q"], ["r"]) == [1.0]


def test_it_asks_in_other_threads_too(tmp_path):
    found = []
    asked = human(tmp_path / "labels.jsonl", "1\n")
    thread = threading.Thread(target=lambda: found.extend(asked(["q"], ["r"])))
    thread.start()
    thread.join()
    assert found == [1.0]


# --- a person at a real terminal ------------------------------------------------------------------

SCRIPT = """
import signal, sys
from human import HumanReward, StopRun
if sys.argv[3] == "nohup":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)                        # outlive the terminal, to tell
try:
    outcome = HumanReward(sys.argv[1])(["q1", "q2", "q3"], ["r1", "r2", "r3"])
except StopRun as stop:
    outcome = f"stopped by {stop.signum}: {stop}"
open(sys.argv[2], "w").write(str(outcome))
"""


class Terminal:
    """A program at a pseudo-terminal of its own, as its controlling terminal."""

    def __init__(self, folder, hangup="nohup"):
        self.labels, self.outcome, self.shown = folder / "labels.jsonl", folder / "outcome", ""
        self.fd, inner = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, self.labels, self.outcome, hangup],
            stdin=inner, stdout=inner, stderr=inner, cwd=Path(human_module.__file__).parent,
            env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"}, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        os.close(inner)

    def type_when(self, text, answer):
        """Wait until `text` is shown, after what was waited for before; then type."""
        deadline = time.monotonic() + 20
        while text not in self.shown:
            assert time.monotonic() < deadline, f"{text!r} not in {self.shown!r}"
            if select.select([self.fd], [], [], 0.1)[0]:
                self.shown += os.read(self.fd, 4096).decode(errors="replace")
        self.shown = self.shown.partition(text)[2]
        os.write(self.fd, answer)

    def end(self):
        """Return the outcome of the program."""
        self.process.wait(timeout=20)
        return self.outcome.read_text()


@pytest.fixture
def terminal(tmp_path):
    found = Terminal(tmp_path)
    yield found
    found.process.kill()
    found.process.wait()


def test_rating_at_a_terminal(terminal):
    terminal.type_when("[1 of 3]\r\nquery:    q1\r\nresponse: r1\r\nrating -5 to 5", b"abc\n")
    terminal.type_when("'abc' is not a number", b"\n")
    terminal.type_when("'' is not a number", b"\xff\n")                 # not UTF-8
    terminal.type_when("is not a number", b"7\n")
    terminal.type_when("'7' is not a number from -5 to 5", b"1\n")
    terminal.type_when("[2 of 3]", b"u\n")
    terminal.type_when("[1 of 3]", b"2\n")
    terminal.type_when("[2 of 3]", b"-3\n")
    terminal.type_when("[3 of 3]", b"0\n")
    assert terminal.end() == "[2.0, -3.0, 0.0]"
    assert saved(terminal.labels) == [("q1", "r1", 2.0), ("q2", "r2", -3.0), ("q3", "r3", 0.0)]


@pytest.mark.parametrize("key, outcome", [(b"s\n", "None"), (b"\x04", "None"), (b"\x03", "2")],
                         ids=["s", "ctrl-d", "ctrl-c"])
def test_the_ways_to_stop_at_a_terminal(terminal, key, outcome):
    terminal.type_when("[1 of 3]", b"1\n")
    terminal.type_when("help > ", b"")
    terminal.type_when("help > ", key)
    assert terminal.end().startswith(f"stopped by {outcome}: ")
    assert saved(terminal.labels) == [("q1", "r1", 1.0)]


@pytest.mark.parametrize("hangup, signum", [("nohup", None), ("default", int(signal.SIGHUP))])
def test_a_terminal_that_goes_away(tmp_path, hangup, signum):
    """The program learns of it by SIGHUP, or, where that is ignored, by the end of its input."""
    terminal = Terminal(tmp_path, hangup)
    try:
        terminal.type_when("[1 of 3]", b"1\n")
        terminal.type_when("[2 of 3]", b"")
        terminal.type_when("help > ", b"")
        os.close(terminal.fd)
        assert terminal.end().startswith(f"stopped by {signum}: ")
        assert terminal.outcome.read_text().endswith(f"; ratings kept in {terminal.labels}: 1")
        assert saved(terminal.labels) == [("q1", "r1", 1.0)]
    finally:
        terminal.process.kill()
        terminal.process.wait()


def test_a_killed_run_goes_on_where_it_was(terminal, tmp_path):
    terminal.type_when("[1 of 3]", b"1\n")
    terminal.type_when("[2 of 3]", b"2\n")
    terminal.type_when("[3 of 3]", b"")
    terminal.process.kill()
    terminal.process.wait()
    again = Terminal(tmp_path)
    again.type_when("[1 of 1]\r\nquery:    q3", b"3\n")
    assert again.end() == "[1.0, 2.0, 3.0]"
