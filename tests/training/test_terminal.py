"""What is printed: progress, samples, and streams that are closed, full or gone."""

import io

from minippo.training import terminal
from minippo.training.terminal import Progress


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
