"""Score functions: rules, a person at the terminal, functions of your own, weighted sums of them.

A score function takes two lists of B texts, queries and responses, and returns B numbers, one for
each response, the more the better. `parse_reward` makes one from what --reward says:

    rule:length                         a rule below: sentiment, length, no_repeat, full_stop
    model:runs/reward-model             the folder of a reward model
    my_rewards:score                    your function `score` in my_rewards.py, in this folder
    human                               asks at the terminal and keeps the answers
    0.8*model:runs/rm + 0.2*rule:length=24    a weighted sum; its parts are logged apart
"""

import importlib
import json
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Set
from contextlib import contextmanager
from functools import partial
from numbers import Real
from pathlib import Path

ScoreFn = Callable[[list[str], list[str]], list[float]]
LARGEST = (2 - 2**-23) * 2.0**127                       # of fp32, in which training keeps the scores


class RewardError(ValueError):
    """A score function raised, or returned something else than one finite number per response."""


class StopRun(Exception):
    """The person at the terminal ends the run: save and exit.

    signum: the signal that asked for it (the exit status is then 128 + signum), or None.
    """

    def __init__(self, reason, signum=None):
        super().__init__(reason)
        self.signum = signum


# --- rules ----------------------------------------------------------------------------------------

GOOD_WORDS = set("""
    admirable amazing amusing beautiful best brilliant charm charming clever compelling delight delightful elegant
    engaging enjoy enjoyable enjoyed entertaining excellent exciting fantastic fascinating fresh fun funny gem good
    gorgeous great gripping happy hilarious honest impressive inspired love loved lovely masterpiece memorable moving
    nice original outstanding perfect pleasure powerful remarkable rich satisfying smart solid splendid strong
    stunning superb sweet terrific thoughtful touching triumph warm warmth wise wit witty wonderful worth""".split())
BAD_WORDS = set("""
    absurd annoying awful awkward bad bland bore bored boring careless cheap clumsy confused confusing contrived
    disappointing disappointment disaster dreadful dreary dull empty fail fails failure flat flawed forgettable hate
    hated hollow horrible lame lazy lifeless mediocre mess messy miserable muddled nonsense painful pathetic pointless
    poor predictable pretentious ridiculous sad shallow silly slow sloppy stale stupid tedious terrible thin tired
    tiresome ugly uneven unfunny unpleasant waste weak wooden worse worst wrong""".split())


def _words(text):
    """Return the words of `text` in lower case, without punctuation."""
    return re.findall(r"[^\W_]+(?:['’][^\W_]+)*", text.lower())


def sentiment(queries: list[str], responses: list[str]) -> list[float]:
    """Good words minus bad words, as a share of both: -1 to 1; 0 where there are none."""
    scores = []
    for response in responses:
        good = sum(word in GOOD_WORDS for word in _words(response))
        bad = sum(word in BAD_WORDS for word in _words(response))
        scores.append((good - bad) / max(1, good + bad))
    return scores


def length(queries: list[str], responses: list[str], target: int = 12) -> list[float]:
    """Closeness of the number of words to `target`: 1 there, 0 at none or at twice as many."""
    return [max(0.0, 1 - abs(len(_words(response)) - target) / target) for response in responses]


def no_repeat(queries: list[str], responses: list[str]) -> list[float]:
    """Share of the pairs of neighbouring words that are new, 0 to 1.

    0 where there is no pair: saying nothing must not be the way to repeat nothing.
    """
    scores = []
    for response in responses:
        words = _words(response)
        pairs = list(zip(words, words[1:]))
        scores.append(len(set(pairs)) / max(1, len(pairs)))
    return scores


def full_stop(queries: list[str], responses: list[str]) -> list[float]:
    """1 where the response ends with a full stop, one that is not part of "...", else 0."""
    texts = [response.rstrip() for response in responses]
    return [float(text.endswith(".") and not text.endswith("..")) for text in texts]


RULES = {"sentiment": sentiment, "length": length, "no_repeat": no_repeat, "full_stop": full_stop}


# --- what a score function returned ---------------------------------------------------------------

def check_scores(scores, n: int, name: str, queries: list[str]) -> list[float]:
    """Return what the score function `name` returned as a list of n floats, or raise RewardError.

    Accepts lists and tensors (torch on any device, numpy) of real numbers; bools are 0 and 1.
    """
    values = scores.tolist() if hasattr(scores, "tolist") else scores
    if isinstance(values, (str, bytes, Mapping, Set)) or not hasattr(values, "__iter__"):
        got = f"{type(scores).__name__} {scores!r:.60}"
        raise RewardError(f"reward {name}: expected {n} scores, got {got}")
    values = list(values)
    if len(values) != n:
        raise RewardError(f"reward {name}: expected {n} scores, got {len(values)}")
    return [_finite(value, name, query) for value, query in zip(values, queries)]


def _finite(value, name, query):
    """Return `value` as a float; raise RewardError unless it is one real number that fp32 holds."""
    try:
        number = value.item() if hasattr(value, "item") else value      # 0-d tensors, numpy scalars
        if isinstance(number, Real) and abs(number) <= LARGEST:         # False for nan
            return float(number)
    except (ValueError, RuntimeError, OverflowError):                   # several elements; 10**400
        pass
    got = f"{type(value).__name__} {value!r:.60}"
    raise RewardError(f"reward {name}, query {query!r:.80}: expected a finite number, got "
                      f"{got}; fp32, which keeps it, ends at {LARGEST:.2g}")


def _score(name, score_fn, queries, responses):
    """Call a score function and check what it returns; whatever it raises becomes a RewardError."""
    try:
        scores = score_fn(list(queries), list(responses))               # copies: it may change them
        return check_scores(scores, len(queries), name, queries)        # inside: may be a generator
    except (StopRun, RewardError):
        raise
    except BaseException as error:                                      # sys.exit(), too
        batch = f"a batch of {len(queries)}, the first query {''.join(queries[:1])!r:.80}"
        message = f"reward {name} raised {type(error).__name__}: {error} (scoring {batch})"
        raise RewardError(message) from error


# --- a person at the terminal ---------------------------------------------------------------------

LOWEST, HIGHEST = -5, 5                                                 # 0 is neutral


def _visible(text):
    """Return text with control characters as escapes: a response must not steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


@contextmanager
def _signals_stop_the_run():
    """Within, SIGINT and SIGTERM raise StopRun.

    A handler that only sets a flag would leave the program waiting for an answer. Only the main
    thread may set handlers; in any other, signals keep their meaning.
    """
    def stop(signum, frame):
        raise StopRun(f"{signal.Signals(signum).name} at the terminal", signum)

    wanted = (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():
        wanted = ()
    before = {signum: signal.signal(signum, stop) for signum in wanted}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _read_ratings(path):
    """Return {(query, response): score} of a file of ratings, the later line where two disagree.

    Half a line at its end, which a kill may leave, is cut off; any other bad line is an error.
    """
    raw = path.read_bytes() if path.exists() else b""
    *lines, tail = raw.split(b"\n")
    if tail:
        try:
            json.loads(tail)
            lines, mended = lines + [tail], tail + b"\n"                # whole, but for its newline
        except ValueError:
            mended = b""
        with open(path, "r+b") as file:
            file.seek(len(raw) - len(tail))
            file.write(mended)
            file.truncate()
    ratings = {}
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            score = float(record["score"])
            if not LOWEST <= score <= HIGHEST:
                raise ValueError(f"a score of {score}")
            ratings[record["query"], record["response"]] = score
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: not a rating from {LOWEST} to {HIGHEST} "
                             f"({type(error).__name__}: {error})") from error
    return ratings


class HumanReward:
    """A score function that asks a person: a rating from -5 (worst) to 5 (best), 0 is neutral.

    `u` goes back to the rating before, in the same batch; `s` and the end of the input raise
    StopRun, and so do SIGINT and SIGTERM while it waits. Every rating is on the disk before the next
    question, a line {"query", "response", "score"} of the file `path`. What is rated there is not
    asked again.
    """

    def __init__(self, path: str | Path, input=None, output=None):
        self.path = Path(path)
        self.input, self.output = input or sys.stdin, output or sys.stdout
        self.ratings = _read_ratings(self.path)                         # (query, response) -> score
        open(self.path, "ab").close()                                   # if it fails, then now

    def __call__(self, queries: list[str], responses: list[str]) -> list[float]:
        pairs = list(zip(queries, responses))
        unrated = [pair for pair in dict.fromkeys(pairs) if pair not in self.ratings]
        done = 0
        while done < len(unrated):
            self._show(unrated[done], f"{done + 1} of {len(unrated)}")
            rating = self._ask()
            if rating is not None:
                self._keep(unrated[done], rating)
                done += 1
            elif done > 0:
                done -= 1
                self._drop(unrated[done])
            else:
                self._say("nothing to undo: this is the first of its batch\n")
        return [self.ratings[pair] for pair in pairs]

    def _ask(self):
        """Ask until the answer makes sense; return the rating, or None for undo."""
        while True:
            answer = self._answer(f"rating {LOWEST} to {HIGHEST}, u = undo, s = stop and save > ")
            if answer == "u":
                return None
            if answer == "s":
                raise StopRun("stopped at the terminal")
            try:
                rating = float(answer)
            except ValueError:
                self._say(f"{answer!r} is not a number, u or s\n")
                continue
            if LOWEST <= rating <= HIGHEST:                             # False for nan
                return rating
            self._say(f"{answer} is not from {LOWEST} to {HIGHEST}\n")

    def _answer(self, prompt):
        """Return the next line of the input without the white space around it."""
        with _signals_stop_the_run():                                   # before a person can answer
            self._say(prompt)
            try:
                line = self.input.readline()
            except UnicodeDecodeError:                                  # nonsense, but not the end
                return "?"
            except (OSError, ValueError) as error:                      # ValueError: a closed file
                raise StopRun(f"the terminal is closed: {error}") from error
        if not line:
            raise StopRun("the input has ended")
        return line.strip().lower()

    def _show(self, pair, place):
        query, response = (_visible(text).replace("\n", "\n          ") for text in pair)
        self._say(f"\n[{place}]\nquery:    {query}\nresponse: {response}\n")

    def _say(self, text):
        """Write to the output; a character that it cannot encode becomes an escape."""
        encoding = getattr(self.output, "encoding", None) or "utf-8"
        try:
            self.output.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self.output.flush()
        except (OSError, ValueError) as error:
            raise StopRun(f"the terminal is closed: {error}") from error

    def _keep(self, pair, rating):
        """Append one rating to the file."""
        record = {"query": pair[0], "response": pair[1], "score": rating}
        with open(self.path, "ab") as file:
            file.write(json.dumps(record).encode() + b"\n")
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


# --- weighted sums --------------------------------------------------------------------------------

class Reward:
    """A weighted sum of score functions, itself a score function. terms: [(weight, name, fn)]."""

    def __init__(self, terms: list[tuple[float, str, ScoreFn]]):
        self.terms = terms
        self.names = [name for _, name, _ in terms]

    def parts(self, queries: list[str], responses: list[str]) -> tuple[list[float], dict]:
        """Return the scores, and each part's own, unweighted ones: {name: B floats}."""
        parts = {name: _score(name, fn, queries, responses) for _, name, fn in self.terms}
        scores = [sum(weight * parts[name][i] for weight, name, _ in self.terms)
                  for i in range(len(queries))]
        return check_scores(scores, len(queries), " + ".join(self.names), queries), parts

    def __call__(self, queries: list[str], responses: list[str]) -> list[float]:
        return self.parts(queries, responses)[0]


_SOURCES = (f"known: {', '.join('rule:' + name for name in RULES)}, model:DIR, human, "
            "module:function; + and - need a space before them")
_TERM = re.compile(r"""(?: (?P<weight> (?: \d+\.?\d* | \.\d+ ) (?: [eE][+-]?\d+ )? ) \s* \* \s* )?
                       (?P<source> (?: "[^"]*" | [^\s"] )+ )""", re.VERBOSE)


def _rule(text):
    """Return the rule of this name; "length=24" is `length` with that target."""
    name, equals, target = text.partition("=")
    if name not in RULES:
        raise ValueError(f"no rule {name!r}; {_SOURCES}")
    if not equals:
        return RULES[name]
    if name != "length" or not re.fullmatch("[1-9][0-9]*", target):
        raise ValueError(f"only rule:length=WORDS takes a number, 1 or more; got {text!r}")
    return partial(length, target=int(target))


def _own_function(module_name, name):
    """Import a function of the user's; modules in the current folder are found first."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:                            # whatever the module raises
        raise ValueError(f"cannot import {module_name!r}, in this folder or installed "
                         f"({type(error).__name__}: {error}); {_SOURCES}") from error
    function = getattr(module, name, None)
    if not callable(function):
        has = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise ValueError(f"{module_name} has no function {name!r}, but {', '.join(has) or 'none'}")
    return function


def _is_own(source):
    """Tell whether a source is module:function."""
    kind, _, rest = source.partition(":")
    return kind not in ("rule", "model") and all(map(str.isidentifier, [*kind.split("."), rest]))


def _resolve(source, load_model, labels):
    """Return the score function that a source names."""
    kind, _, rest = source.partition(":")
    if source == "human":
        return HumanReward(labels)
    if kind == "rule":
        return _rule(rest)
    if kind == "model" and rest:
        return load_model(rest)
    if _is_own(source):
        return _own_function(kind, rest)
    raise ValueError(f"no source {source!r}; {_SOURCES}")


def _spec_error(spec, at, message):
    return ValueError(f"reward, column {at + 1}: {message}\n    {spec}\n    {' ' * at}^")


def _terms(spec):
    """Return [(weight, source, column)] of what --reward says."""
    terms, at = [], 0
    while at < len(spec.rstrip()) or not terms:
        sign = re.compile(r"\s+([+-])\s*" if terms else r"\s*([+-]?)\s*").match(spec, at)
        if sign is None:
            raise _spec_error(spec, at, "expected + or - after a space, then [number *] source")
        term = _TERM.match(spec, sign.end())
        if term is None:
            raise _spec_error(spec, sign.end(), f"expected [number *] source; {_SOURCES}")
        weight, source = float(term["weight"] or 1), term["source"].replace('"', "")
        if not math.isfinite(weight):
            raise _spec_error(spec, term.start("source"), f"the weight {term['weight']} is too large")
        if source in [name for _, name, _ in terms]:
            raise _spec_error(spec, term.start("source"), f"{source} is there twice; give it one weight")
        terms.append((-weight if sign[1] == "-" else weight, source, term.start("source")))
        at = term.end()
    return terms


def own_functions(spec: str) -> list[str]:
    """Return the sources module:function in `spec`: those for which parse_reward imports code."""
    return [source for _, source, _ in _terms(spec) if _is_own(source)]


def parse_reward(spec: str, load_model: Callable[[str], ScoreFn], labels: str | Path) -> Reward:
    """Make a Reward of terms `[number *] source`, joined by + or - with a space before it.

    A source is rule:NAME, model:DIR, human or module:function; quote a DIR that has spaces.
    load_model makes a score function of DIR; labels is the file for the ratings of `human`.
    ValueError shows the column and lists what is known.
    """
    terms = []
    for weight, source, column in _terms(spec):
        try:
            terms.append((weight, source, _resolve(source, load_model, labels)))
        except ValueError as error:
            raise _spec_error(spec, column, error) from error
    return Reward(terms)
