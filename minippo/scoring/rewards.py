"""Score functions: rules, functions of your own, a person at the terminal (human.py), weighted sums of them.

A score function takes two lists of B texts, queries and responses, and returns B numbers, one for each response, the more
the better. `parse_reward` makes one from what --reward says:

    rule:length                         a rule below: sentiment, length, no_repeat, full_stop
    model:runs/reward-model             the folder of a reward model
    my_rewards:score                    your function `score` in my_rewards.py, in this folder
    human                               asks at the terminal and keeps the answers
    0.8*model:runs/rm + 0.2*rule:length=24    a weighted sum; its parts are logged apart
"""

import math
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from functools import partial
from numbers import Real
from pathlib import Path

from ..distributed import ProcessLost, interleave, of_each, rank, share, speaks
from .human import HumanReward, StopRun

ScoreFn = Callable[[list[str], list[str]], list[float]]
LARGEST = (2 - 2**-23) * 2.0**127                       # of fp32, in which training keeps the scores


class RewardError(ValueError):
    """A score function raised, or returned something else than one finite number per response."""


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
    counts = [[sum(word in known for word in _words(text)) for known in (GOOD_WORDS, BAD_WORDS)] for text in responses]
    return [(good - bad) / max(1, good + bad) for good, bad in counts]


def length(queries: list[str], responses: list[str], target: int = 12) -> list[float]:
    """Closeness of the number of words to `target`: 1 there, 0 at none or at twice as many."""
    return [max(0.0, 1 - abs(len(_words(response)) - target) / target) for response in responses]


def no_repeat(queries: list[str], responses: list[str]) -> list[float]:
    """Share of the pairs of neighbouring words that are new; 0 without a pair: silence is no way to repeat nothing."""
    pairs = [list(zip(words, words[1:])) for words in map(_words, responses)]
    return [len(set(found)) / max(1, len(found)) for found in pairs]


def full_stop(queries: list[str], responses: list[str]) -> list[float]:
    """1 where the response ends with a full stop, one that is not part of "...", else 0."""
    return [float(text.endswith(".") and not text.endswith("..")) for text in map(str.rstrip, responses)]


RULES = {"sentiment": sentiment, "length": length, "no_repeat": no_repeat, "full_stop": full_stop}


def check_scores(scores, name: str, queries: list[str]) -> list[float]:
    """Return what the score function `name` gave, a list or any tensor of numbers, as a float a query; or RewardError."""
    values = scores.tolist() if hasattr(scores, "tolist") else scores
    no_list = isinstance(values, (str, bytes, Mapping, Set)) or not hasattr(values, "__iter__")
    values = [] if no_list else list(values)
    if no_list or len(values) != len(queries):
        got = f"{type(scores).__name__} {scores!r:.60}" if no_list else len(values)
        raise RewardError(f"reward {name}: expected {len(queries)} scores, got {got}")
    numbers = []
    for value, query in zip(values, queries):
        with suppress(ValueError, RuntimeError, OverflowError):             # several elements; 10**400
            number = value.item() if hasattr(value, "item") else value      # 0-d tensors, numpy scalars
            if isinstance(number, Real) and abs(number) <= LARGEST:         # False for nan
                numbers.append(float(number))
                continue
        raise RewardError(f"reward {name}, query {query!r:.80}: expected a finite number, got {type(value).__name__} "
                          f"{value!r:.60}; fp32, which keeps it, ends at {LARGEST:.2g}")
    return numbers


class Reward:
    """A weighted sum of score functions, itself a score function. terms: [(weight, name, fn)].

    Of several processes each scores its share by reward models, or by all parts if `shared`; the rest the first one does alone.
    """

    def __init__(self, terms: list[tuple[float, str, ScoreFn]], shared: bool = False):
        self.terms, self.shared = terms, shared

    def parts(self, queries: list[str], responses: list[str]) -> tuple[list[float], dict]:
        """Return the scores, and each part's own, unweighted ones: {name: B floats}."""
        parts = {}
        for _, name, score_fn in self.terms:
            rows, what = range(len(queries)), f"the scores of {name}"
            shared = name != "human" and (self.shared or name.startswith("model:"))
            rows = share(rows) if shared else rows[:0 if rank() > 0 else len(rows)]
            asked, answers = [queries[i] for i in rows], [responses[i] for i in rows]
            try:
                scores = score_fn([*asked], answers) if rows else []    # copies: it may change them
                scores = check_scores(scores, name, asked)              # inside: may be a generator
            except BaseException as error:                              # sys.exit(), too
                speaks()                                                # it says why; the others end, a person's stop with it
                of_each(what, error if isinstance(error, StopRun) else None)
                if isinstance(error, (StopRun, RewardError)):
                    raise
                batch = f"a batch of {len(queries)}, the first query {''.join(queries[:1])!r:.80}"
                raise RewardError(f"reward {name} raised {type(error).__name__}: {error} (scoring {batch})") from error
            each = of_each(what, scores)
            if None in each:
                raise ProcessLost(f"process {each.index(None)} has no scores of {name}")
            if isinstance(each[0], StopRun):
                raise each[0]
            parts[name] = interleave(each) if shared else each[0]
        total = [sum(weight * parts[name][i] for weight, name, _ in self.terms) for i in range(len(queries))]
        return check_scores(total, " + ".join(parts), queries), parts

    def __call__(self, queries: list[str], responses: list[str]) -> list[float]:
        return self.parts(queries, responses)[0]


_SOURCES = (f"known: {', '.join('rule:' + name for name in RULES)}, rule:length=WORDS (1 or more), model:DIR, human, "
            "module:function; + and - need a space before them")
_TERM = re.compile(r"""(?: (?P<weight> (?: \d+\.?\d* | \.\d+ ) (?: [eE][+-]?\d+ )? ) \s* \* \s* )?
                       (?P<source> (?: "[^"]*" | [^\s"] )+ )""", re.VERBOSE)
_OWN = re.compile(r"(?!rule:|model:)[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")                  # module:function


def _own_function(source):
    """Import a function of the user's; modules in the current folder are found first."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = pkgutil.resolve_name(source)
    except (Exception, SystemExit) as error:                            # whatever the module raises
        raise ValueError(f"cannot import {source!r} ({type(error).__name__}: {error}); {_SOURCES}") from error
    if not callable(function):
        raise ValueError(f"{source} is no function, but {function!r:.60}")
    return function


def _resolve(source, load_model, labels):
    """Return the score function that a source names."""
    kind, _, rest = source.partition(":")
    if source == "human":
        return HumanReward(labels) if rank() == 0 else None             # its file is the first process's
    if kind == "rule" and rest in RULES:
        return RULES[rest]
    if words := re.fullmatch("rule:length=([1-9][0-9]*)", source):
        return partial(length, target=int(words[1]))
    if kind == "model" and rest:
        return load_model(rest)
    if _OWN.fullmatch(source):
        return _own_function(source)
    raise ValueError(f"no source {source!r}; {_SOURCES}")


def _spec_error(spec, at, message):
    return ValueError(f"reward, column {at + 1}: {message}\n    {spec}\n    {' ' * at}^")


def _terms(spec):
    """Return [(weight, source, column)] of what --reward says."""
    terms, at = [], 0
    while at < len(spec.rstrip()) or not terms:
        sign = re.compile(r"\s+([+-])\s*" if terms else r"\s*([+-]?)\s*").match(spec, at)
        term = sign and _TERM.match(spec, sign.end())
        if not term:
            raise _spec_error(spec, sign.end() if sign else at, f"expected [number *] source, after + or -; {_SOURCES}")
        weight, source, at = float(f"{sign[1]}{term['weight'] or 1}"), term["source"].replace('"', ""), term.end()
        if math.isinf(weight) or source in [name for _, name, _ in terms]:
            raise _spec_error(spec, term.start("source"), f"expected a weight that is finite, and {source} only once")
        terms.append((weight, source, term.start("source")))
    return terms


def own_functions(spec: str) -> list[str]:
    """Return the sources module:function in `spec`: those for which parse_reward imports code."""
    return [source for _, source, _ in _terms(spec) if _OWN.fullmatch(source)]


def parse_reward(spec: str, load_model: Callable[[str], ScoreFn], labels: str | Path, shared: bool = False) -> Reward:
    """Make a Reward of terms `[number *] source`, joined by + or - with a space before it; ValueError shows the column.

    load_model makes a score function of a model's DIR, in quotes where it has spaces; labels: the file of `human`; shared: see Reward.
    """
    terms = []
    for weight, source, column in _terms(spec):
        try:
            terms.append((weight, source, _resolve(source, load_model, labels)))
        except ValueError as error:
            raise _spec_error(spec, column, error) from error
    return Reward(terms, shared)
