"""A person at the terminal as a score function: asks, keeps every answer, never asks twice.

    python -m minippo train --model gpt2 --prompts prompts.txt --reward human --out runs/x

The answers are lines {"query", "response", "score"} of runs/x/labels.jsonl. Standard library only.
"""

import json
import os
import re
import signal
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

LOWEST, HIGHEST = -5, 5                                                 # 0 is neutral
PROMPT = f"rating {LOWEST} to {HIGHEST}, u = undo, s = stop and save, ? = help > "
HELP = f"""\
{HIGHEST} is the best, {LOWEST} the worst, 0 neutral; 3.5 and 3,5 are ratings, too
u, undo   take the rating before this one back, within its batch
s, stop   end the run; the ratings are saved, and --resume does not ask for them again
"""


class StopRun(Exception):
    """The person at the terminal ends the run: save and exit, with status 128 + signum where a signal asked for it."""

    def __init__(self, reason, signum=None):
        super().__init__(reason)
        self.signum = signum


def visible(text: str, keep: str = "") -> str:
    """Return text with control characters, direction marks and the like as escapes, except those in `keep`: shown, not obeyed."""
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in text)


@contextmanager
def signals_call(handler, always=()):
    """Within, SIGINT, SIGTERM and SIGHUP, a closed terminal, call `handler(signum, frame)`.

    Only the main thread may set handlers; in any other, signals keep their meaning. What is ignored stays ignored (nohup, a job in
    the background), but for those named in `always`.
    """
    main = threading.current_thread() is threading.main_thread()
    wanted = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if main and hasattr(signal, name)]
    before = {signum: signal.signal(signum, handler) for signum in wanted
              if signum in always or signal.getsignal(signum) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler or signal.SIG_DFL)


def _stop(signum, frame):
    """A handler that only set a flag would leave the program waiting for an answer."""
    raise StopRun(f"{signal.Signals(signum).name} at the terminal", signum)


_FORM = b'{"query": "", "response": "", "score": '                      # of a line of ours, less what varies: texts, number
_VARIES = re.compile(rb'(?<=[ye]": ")(?:[^"\\]|\\.)*\\?|(?<=score": )[-+.0-9e]+$')


def _read_ratings(path):
    """Return {(query, response): score} of a file of ratings, the later line where two disagree.

    Half a line of ours at its end, which a kill may leave, is cut off. Any other line that is no rating
    is a ValueError, and the file stays as it is: it may be somebody's own.
    """
    raw = path.read_bytes() if path.exists() else b""
    *lines, tail = raw.split(b"\n")
    whole = not _FORM.startswith(_VARIES.sub(b"", tail))                # whole, but for its newline
    ratings = {}
    for number, line in enumerate(lines + [tail] * whole, start=1):
        try:
            record = json.loads(line)
            query, response, score = record["query"], record["response"], float(record["score"])
            if not (isinstance(query, str) and isinstance(response, str) and LOWEST <= score <= HIGHEST):
                raise ValueError("expected two texts and a number")
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not a rating from {LOWEST} to {HIGHEST} ({type(error).__name__}: "
                             f"{error}); mend that line, or move the file away if it is not of a run") from error
        ratings[query, response] = score
    with open(path, "ab") as file:                                      # if it cannot be written, then it fails now
        if whole:
            file.write(b"\n")
        elif tail:
            file.truncate(len(raw) - len(tail))
    return ratings


class HumanReward:
    """A score function that asks a person: a rating from -5 (worst) to 5 (best), 0 is neutral.

    `u` goes back to the rating before, in the same batch; `s` and the end of the input raise StopRun,
    and so do SIGINT, SIGTERM and SIGHUP while it waits. Every rating is on the disk before the next
    question, in the file `path`. What is rated there is not asked again.
    """

    def __init__(self, path: str | Path, input=None, output=None):
        self.path = Path(path)
        self.input, self.output = input or sys.stdin, output or sys.stdout
        self.ratings = _read_ratings(self.path)                         # (query, response) -> score

    def __call__(self, queries: list[str], responses: list[str]) -> list[float]:
        pairs = list(zip(queries, responses))
        unrated = [pair for pair in dict.fromkeys(pairs) if pair not in self.ratings]
        try:
            if known := sum(pair in self.ratings for pair in pairs):
                self._say(f"\n{known} of {len(pairs)} responses are rated already, in {self.path}\n")
            self._rate(unrated)
        except StopRun as stop:
            if unrated:                                                 # else nobody need be asked
                raise StopRun(f"{stop}; ratings kept in {self.path}: {len(self.ratings)}", stop.signum) from stop
        return [self.ratings[pair] for pair in pairs]

    def _rate(self, unrated):
        """Ask for the ratings of these pairs, one after the other."""
        done = 0
        while done < len(unrated):
            query, response = (visible(text, keep="\n").replace("\n", "\n          ") for text in unrated[done])
            self._say(f"\n[{done + 1} of {len(unrated)}]\nquery:    {query}\nresponse: {response}\n")
            rating = self._ask()
            if rating is not None:
                self._keep(unrated[done], rating)
                done += 1
            elif done > 0:
                done -= 1
                self._drop(unrated[done])
            else:
                self._say("nothing to undo: this is the first of its batch\n")

    def _ask(self):
        """Return the rating, or None for undo, asking until the answer makes sense."""
        while True:
            with signals_call(_stop):                               # before a person can answer
                line = self._say(PROMPT, then=self.input.readline)
            answer = line.strip().lower()
            if not line or answer in ("s", "stop"):
                raise StopRun("stopped at the terminal" if line else "the input has ended")
            if answer in ("u", "undo"):
                return None
            with suppress(ValueError):
                rating = float(answer.replace(",", ".", 1))
                if LOWEST <= rating <= HIGHEST:                         # False for nan
                    return rating
            self._say(HELP if answer in ("?", "help") else f"{answer!r} is not a number from {LOWEST} to {HIGHEST}\n")

    def _say(self, text, then=lambda: None):
        """Write to the output, a character that it cannot encode as an escape; return what `then` does."""
        encoding = getattr(self.output, "encoding", None) or "utf-8"
        try:
            self.output.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self.output.flush()
            return then()
        except UnicodeDecodeError:                                      # typed nonsense, but not the end
            return "\ufffd"
        except (OSError, ValueError) as error:                          # ValueError: a closed file
            raise StopRun(f"the terminal is closed: {error}") from error

    def _keep(self, pair, rating):
        """Append one rating to the file."""
        with open(self.path, "ab") as file:
            file.write(json.dumps({"query": pair[0], "response": pair[1], "score": rating}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.ratings[pair] = rating

    def _drop(self, pair):
        """Take the last line of the file back, the rating of `pair`."""
        del self.ratings[pair]
        with open(self.path, "r+b") as file:
            lines = file.read()
            file.truncate(lines[:-1].rfind(b"\n") + 1)
            os.fsync(file.fileno())
