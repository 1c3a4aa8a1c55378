"""Score functions: rules by hand, what a function may return, the parser, a person at a terminal."""

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
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from minippo.scoring import rewards
from minippo.scoring.rewards import HumanReward, Reward, RewardError, StopRun, check_scores, own_functions, parse_reward


# --- rules ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("rule, response, score", [
    (rewards.sentiment, " a great film, GREAT but dull", 1 / 3),        # (2 good - 1 bad) / 3
    (rewards.sentiment, " dull", -1.0),
    (rewards.sentiment, " gladness", 0.0),                              # whole words only
    (rewards.sentiment, "", 0.0),
    (rewards.length, " one two, three", 0.25),                          # 1 - |3 - 12| / 12
    (rewards.length, "", 0.0),
    (rewards.length, "word " * 12, 1.0),
    (rewards.length, "word " * 15, 0.75),
    (rewards.length, "word " * 40, 0.0),                                # never below 0
    (rewards.no_repeat, " a b a b a", 0.5),                             # ab ba ab ba: 2 of 4 are new
    (rewards.no_repeat, " All new. all", 1.0),
    (rewards.no_repeat, " word", 0.0),
    (rewards.no_repeat, "", 0.0),
    (rewards.full_stop, " It ends. ", 1.0),
    (rewards.full_stop, " It trails off...", 0.0),
    (rewards.full_stop, " no", 0.0),
    (rewards.full_stop, "", 0.0),
])
def test_rules_by_hand(rule, response, score):
    assert rule(["q", "q"], [response, response]) == pytest.approx([score, score])


def test_length_takes_a_target():
    assert rewards.length(["q"], ["one two three"], target=4) == [0.75]


# --- what a score function may return -------------------------------------------------------------

@pytest.mark.parametrize("scores", [
    [1, 2], (1.0, 2.0), [True, 2], [Fraction(1), np.float32(2)], (value for value in [1, 2]),
    torch.tensor([1, 2]), np.array([1.0, 2.0]), [torch.tensor(1.0), torch.tensor([2.0])],
    torch.tensor([1.0, 2.0], dtype=torch.bfloat16, requires_grad=True),
])
def test_numbers_of_all_kinds_become_floats(scores):
    checked = check_scores(scores, 2, "mine", ["a", "b"])
    assert checked == [1.0, 2.0] and all(type(score) is float for score in checked)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_scores_on_a_gpu_become_floats():
    scores = torch.tensor([1.0, 2.0], device="cuda")
    for form in (scores, list(scores)):
        assert check_scores(form, 2, "mine", ["a", "b"]) == [1.0, 2.0]


@pytest.mark.parametrize("bad", [
    None, "1.0", float("nan"), float("inf"), 10**400, 1j, [1.0], {}, torch.tensor([1.0, 2.0]),
    np.float64("nan"), torch.tensor(float("-inf")), np.array(["x"])[0],
])
def test_anything_else_is_refused_by_function_and_query(bad):
    with pytest.raises(RewardError, match="reward mine, query 'second': expected a finite number, got"):
        check_scores([1.0, bad], 2, "mine", ["first", "second"])


def test_the_wrong_number_of_scores_is_refused():
    for scores in ([1.0] * 7, torch.ones(7), np.ones((7, 8))):
        with pytest.raises(RewardError, match="reward mine: expected 8 scores, got 7"):
            check_scores(scores, 8, "mine", ["q"] * 8)
    for scores in (None, 1.0, "12345678", {}, {1.0}, frozenset({1.0}), {1.0: 1}.keys(), torch.tensor(1.0)):
        with pytest.raises(RewardError, match="reward mine: expected 8 scores, got [a-zA-Z_]+ "):
            check_scores(scores, 8, "mine", ["q"] * 8)


def failing(queries, responses):
    raise KeyError("lost")


def failing_late(queries, responses):
    yield 1.0
    raise KeyError("lost")


@pytest.mark.parametrize("score_fn", [failing, failing_late])
def test_an_exception_inside_a_reward_names_it_and_the_query(score_fn):
    reward = Reward([(1.0, "mine", score_fn)])
    message = "reward mine raised KeyError: 'lost' .*a batch of 2, the first query 'ask'"
    with pytest.raises(RewardError, match=message) as info:
        reward(["ask", "b"], ["c", "d"])
    assert isinstance(info.value.__cause__, KeyError)


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt(), GeneratorExit()], ids=repr)
def test_whatever_a_reward_raises_is_its_error(error):
    def leaving(queries, responses):
        raise error
    with pytest.raises(RewardError, match=f"reward mine raised {type(error).__name__}") as raised:
        Reward([(1.0, "mine", leaving)])(["q"], ["r"])
    assert raised.value.__cause__ is error


def test_a_module_that_ends_the_program_when_it_is_imported_is_named(parse, tmp_path):
    (tmp_path / "quitting.py").write_text("import sys; sys.exit(0)")
    with pytest.raises(ValueError, match="cannot import 'quitting', .*SystemExit: 0"):
        parse("quitting:score")


@pytest.mark.parametrize("score, ok", [(3.4e38, True), (-3.4e38, True), (3.5e38, False), (1e39, False), (10**400, False)])
def test_a_score_must_fit_into_fp32(score, ok):
    if ok:
        assert check_scores([score], 1, "mine", ["q"]) == [score]
    else:
        with pytest.raises(RewardError, match="expected a finite number, got .*; fp32, which keeps it, ends at 3.4e\\+38"):
            check_scores([score], 1, "mine", ["q"])


def test_a_reward_cannot_change_the_batch():
    queries, responses = ["a"], ["b"]
    with pytest.raises(RewardError):
        Reward([(1.0, "mine", lambda q, r: q.clear() or r.clear())])(queries, responses)
    assert (queries, responses) == (["a"], ["b"])


# --- weighted sums --------------------------------------------------------------------------------

def load_model(folder):
    """A stand-in for a reward model: the number of characters of the folder's name."""
    return lambda queries, responses: [float(len(folder))] * len(queries)


@pytest.fixture
def parse(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return partial(parse_reward, load_model=load_model, labels=tmp_path / "labels.jsonl")


@pytest.mark.parametrize("spec, weights, names", [
    ("rule:length", [1], ["rule:length"]),
    ("0.8*model:DIR + 0.2*rule:length", [0.8, 0.2], ["model:DIR", "rule:length"]),
    ("  -2 * rule:length -.5*rule:no_repeat  ", [-2, -0.5], ["rule:length", "rule:no_repeat"]),
    ("1e-3*model:runs/a-b+c.d  +  human", [1e-3, 1], ["model:runs/a-b+c.d", "human"]),
    ('3.*model:"my runs/rm" + rule:length=24', [3, 1], ["model:my runs/rm", "rule:length=24"]),
    ("0*os.path:join", [0], ["os.path:join"]),
])
def test_good_specs(parse, spec, weights, names):
    reward = parse(spec)
    assert [weight for weight, _, _ in reward.terms] == weights and reward.names == names


@pytest.mark.parametrize("spec, column, problem", [
    ("", 1, r"expected \[number \*\] source"),
    ("rule:length + ", 15, r"expected \[number \*\] source"),
    ("rule:length rule:no_repeat", 12, "expected . or -"),
    ("rule:length * 2", 12, "expected . or -"),
    ("0.5*rule:lenght", 5, "no rule 'lenght'; known: rule:sentiment, rule:length"),
    ("rule:length+0.2*human", 1, "need a space before"),
    ("2*rule:length=0", 3, "1 or more; got 'length=0'"),
    ("rule:sentiment=3", 1, "only rule:length"),
    ("rule:length + nonsense", 15, "no source 'nonsense'; known: .*human"),
    ("0.5*", 1, "no source '0.5"),
    ("model:", 1, "no source 'model:'"),
    ("1e999*rule:length", 7, "too large"),
    ("rule:length - rule:length", 15, "twice"),
    ("my_missing:score", 1, "cannot import 'my_missing'"),
    ("math:scores", 1, "math has no function 'scores', but acos"),
])
def test_bad_specs_show_the_column(parse, spec, column, problem):
    with pytest.raises(ValueError, match=f"reward, column {column}: .*{problem}") as info:
        parse(spec)
    assert str(info.value).endswith(f"\n    {spec}\n    {' ' * (column - 1)}^")


def test_the_sources_that_import_code_are_known_without_importing_it():
    assert own_functions('model:"a b" - 2*os:getcwd + rule:length + human + 0*a.b:c') == ["os:getcwd", "a.b:c"]
    assert own_functions("rule:length=3 + model:x:y") == [] and "a.b" not in sys.modules


def test_a_weighted_sum_by_hand(parse):
    """model:DIR gives 3, rule:length 3 of 12 words = 0.25: 0.5*3 - 2*0.25 = 1."""
    scores, parts = parse("0.5*model:DIR - 2*rule:length").parts(["q"], ["one two three"])
    assert scores == [1.0]
    assert parts == {"model:DIR": [3.0], "rule:length": [0.25]}
    assert parse("0.5*model:DIR - 2*rule:length")(["q"], ["one two three"]) == [1.0]


def test_a_sum_that_overflows_is_refused(parse):
    huge = Reward([(1e300, "mine", lambda queries, responses: [1e30])])
    with pytest.raises(RewardError, match="mine, query 'q': expected a finite number, got float inf"):
        huge(["q"], ["r"])


def test_functions_of_your_own(parse, tmp_path):
    (tmp_path / "my_own_rewards.py").write_text("def score(qs, rs):\n    return map(len, rs)\n")
    (tmp_path / "my_broken_rewards.py").write_text("1 / 0\n")
    assert parse("2*my_own_rewards:score")(["q", "q"], ["four", "to"]) == [8.0, 4.0]
    with pytest.raises(ValueError, match="has no function 'scores', but score"):
        parse("my_own_rewards:scores")
    with pytest.raises(ValueError, match="ZeroDivisionError"):
        parse("my_broken_rewards:score")


# --- a person -------------------------------------------------------------------------------------

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


@pytest.mark.parametrize("answer, reason", [
    ("", "'' is not a number"), ("abc", "'abc' is not a number"), ("3 4", "'3 4' is not a number"),
    ("6", "6 is not from -5 to 5"), ("-5.1", "-5.1 is not from"), ("nan", "nan is not from"),
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
        human(path, "1\n2\nU\nu\n3\n4\ns\n")(QUERIES, RESPONSES)
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


def test_a_stop_goes_through_a_weighted_sum(tmp_path):
    with pytest.raises(StopRun):
        Reward([(1.0, "human", human(tmp_path / "labels.jsonl", "s\n"))])(["q"], ["r"])


def test_replay_asks_only_what_is_new(tmp_path):
    path = tmp_path / "labels.jsonl"
    human(path, "1\n2\n")(["q1", "q2"], ["r1", "r2"])
    asked = human(path, "3\n")
    assert asked(["q2", "q3", "q1", "q3"], ["r2", "r3", "r1", "r3"]) == [2.0, 3.0, 1.0, 3.0]
    assert asked.output.getvalue().count("rating") == 1                 # the second (q3, r3) is the same


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
])
def test_any_other_bad_line_is_an_error_and_stays(tmp_path, line):
    path = tmp_path / "labels.jsonl"
    content = b'{"query": "q", "response": "r", "score": 1}\n' + line + b"\n"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="labels.jsonl, line 2: not a rating from -5 to 5"):
        human(path, "")
    assert path.read_bytes() == content


def test_a_response_cannot_steer_the_terminal(tmp_path):
    asked = human(tmp_path / "labels.jsonl", "1\n")
    asked(["q\x1b[2J"], ["a\nb\ud800\r"])
    shown = asked.output.getvalue()
    assert "\x1b" not in shown and "query:    q\\x1b[2J\nresponse: a\n          b\\ud800\\r\n" in shown
    assert saved(asked.path) == [("q\x1b[2J", "a\nb\ud800\r", 1.0)]


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


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
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
from rewards import HumanReward, StopRun
signal.signal(signal.SIGHUP, signal.SIG_IGN)                            # outlive the terminal, to tell
try:
    outcome = HumanReward(sys.argv[1])(["q1", "q2", "q3"], ["r1", "r2", "r3"])
except StopRun as stop:
    outcome = f"stopped by {stop.signum}"
open(sys.argv[2], "w").write(str(outcome))
"""


class Terminal:
    """A program at a pseudo-terminal of its own, as its controlling terminal."""

    def __init__(self, folder):
        self.labels, self.outcome, self.shown = folder / "labels.jsonl", folder / "outcome", ""
        self.fd, inner = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, self.labels, self.outcome],
            stdin=inner, stdout=inner, stderr=inner, cwd=Path(rewards.__file__).parent,
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
    terminal.type_when("'?' is not a number", b"7\n")
    terminal.type_when("7 is not from -5 to 5", b"1\n")
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
    terminal.type_when("save > ", b"")
    terminal.type_when("save > ", key)
    assert terminal.end() == f"stopped by {outcome}"
    assert saved(terminal.labels) == [("q1", "r1", 1.0)]


def test_a_terminal_that_goes_away(terminal):
    terminal.type_when("[1 of 3]", b"1\n")
    terminal.type_when("[2 of 3]", b"")
    os.close(terminal.fd)
    assert terminal.end() == "stopped by None"
    assert saved(terminal.labels) == [("q1", "r1", 1.0)]


def test_a_killed_run_goes_on_where_it_was(terminal, tmp_path):
    terminal.type_when("[1 of 3]", b"1\n")
    terminal.type_when("[2 of 3]", b"2\n")
    terminal.type_when("[3 of 3]", b"")
    terminal.process.kill()
    terminal.process.wait()
    again = Terminal(tmp_path)
    again.type_when("[1 of 1]\r\nquery:    q3", b"3\n")
    assert again.end() == "[1.0, 2.0, 3.0]"
