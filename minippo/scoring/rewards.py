"""Score functions: rules, functions of your own, a person at the terminal (human.py), weighted sums of them.

A score function takes two lists of B texts, queries and responses, and returns B numbers, one for
each response, the more the better. `parse_reward` makes one from what --reward says:

    rule:length                         a rule below: sentiment, length, no_repeat, full_stop
    model:runs/reward-model             the folder of a reward model
    my_rewards:score                    your function `score` in my_rewards.py, in this folder
    human                               asks at the terminal and keeps the answers
    0.8*model:runs/rm + 0.2*rule:length=24    a weighted sum; its parts are logged apart
"""

import importlib
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Set
from functools import partial
from numbers import Real
from pathlib import Path

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
