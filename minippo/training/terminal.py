"""What is printed: lines, warnings, progress, updates. Printing never ends a run, and text never steers a terminal.

Of several processes the first one talks; of those that end with an error, the first to do so."""

import os
import sys
import time
from contextlib import suppress

from ..distributed import rank, speaks
from ..scoring.human import visible


def write(stream, text: str) -> None:
    """Write what the stream can take: escapes for what it cannot encode, and nothing where it is closed, full or gone."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    with suppress(OSError, ValueError, AttributeError):                 # AttributeError: None, where a shell closed it (>&-)
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()


def say(text: str, stream: str = "stdout") -> None:
    """Print lines of text, whoever wrote what is in them: a model, a file, a folder."""
    if rank() == 0:
        write(getattr(sys, stream), visible(text, keep="\n\t") + "\n")


def warn(text: str) -> None:
    say(f"warning: {text}", "stderr")


def complain(text: str) -> None:
    """Say why a command ends, unless another process has said why it does."""
    if speaks():
        write(sys.stderr, visible(text, keep="\n\t") + "\n")


class Stream:
    """sys.stdout or sys.stderr with `write` above in the place of its own: no print can fail, in a user's function either."""
    def __init__(self, stream):
        self.stream = stream

    def write(self, text: str) -> int:
        write(self.stream, text)
        return len(text)

    def flush(self) -> None:
        pass                                                            # done in write; at Python's end it cannot fail, either

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


def protect() -> None:
    """For a program's first line: its prints cannot fail, and no file gets the number of a stream that a shell closed."""
    sys.stdin = sys.stdin or open(os.devnull)                           # opened in this order they get those numbers, 0 to 2
    sys.stdout, sys.stderr = (Stream(stream or open(os.devnull, "w")) for stream in (sys.stdout, sys.stderr))


class Progress:
    """One line about a training loop: rewritten in place at a terminal, elsewhere once a minute and at the end."""

    def __init__(self, name: str, steps: int, done: int = 0):
        self.name, self.steps, self.done = name, steps, done
        self.started = self.shown = time.monotonic()
        self.terminal = bool(sys.stdout) and not getattr(sys.stdout, "closed", False) and sys.stdout.isatty()

    def show(self, step: int, result: str) -> None:
        now = time.monotonic()
        if now - self.shown >= (0.2 if self.terminal else 60.0):
            self.shown = now
            self.write(f"{self.name}: step {step} of {self.steps}, {result}, {self.seconds_left(step, now):.0f} s left", last=False)

    def seconds_left(self, step: int, now: float | None = None) -> float:
        return ((now or time.monotonic()) - self.started) * (self.steps - step) / (step - self.done)

    def finish(self, result: str) -> None:
        self.write(f"{self.name}: {self.steps} steps, {result}, {time.monotonic() - self.started:.0f} s", last=True)

    def write(self, line: str, last: bool) -> None:
        text = f"\r{line:<79}" if self.terminal else line               # blanks wipe what a longer line has left
        if rank() == 0:
            write(sys.stdout, text + "\n" * (last or not self.terminal))


def status_line(metrics: dict, steps: int, seconds_left: float) -> str:
    left = f"{seconds_left // 3600:.0f}:{seconds_left % 3600 // 60:02.0f}:{seconds_left % 60:02.0f}"
    return (f"update {metrics['step']:{len(str(steps))}}/{steps}  score {metrics['ppo/mean_scores']:7.3f}  kl "
            f"{metrics['objective/kl']:6.2f}  entropy {metrics['ppo/policy/entropy']:5.2f}  clipfrac {metrics['ppo/policy/clipfrac']:.3f}"
            f"  value error {metrics['ppo/val/error']:7.3f}  {metrics['tokens_per_second']:6.0f} tokens/s  {left} left")


def sample_line(sample: dict) -> str:
    return f"    score {sample['score']:7.3f}  kl {sample['kl']:6.2f}  {visible(sample['query'])} |{visible(sample['response'])}"
