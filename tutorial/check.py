"""Check the exercises of a chapter; where an answer is wrong, name the mistake.

    python -m tutorial.check 8                 # your functions in tutorial/exercises/ex08.py
    python -m tutorial.check 8 --solutions     # ours in tutorial/solutions/ex08.py

In a notebook: `from tutorial.check import check`, then `check(8, my_function)` for functions defined there.
A check is a function `check_NAME(NAME)` in checks/checkNN.py: it calls the learner's function on small numbers and compares
the result with numbers worked out by hand, and with those that the usual mistakes give. The function works on clones.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
import sys
import traceback
from typing import Callable

import torch
from torch import Tensor

from .build import chapters


class Mistake(Exception):
    """What is wrong with an answer, in words for its author."""


def compare(got, wanted, mistakes: dict, what: str = "the result", tolerance: float = 1e-4, formula: str | Callable = "") -> None:
    """Mistake unless `got` has the shape and the numbers of `wanted`.

    Args:
        got: what the learner's function returned.
        wanted: a number, list or tensor, worked out by hand.
        mistakes: message -> the result that this mistake gives; the first that fits is the one reported.
        what: the name of the result in messages.
        formula: where no mistake fits, how the first wrong number comes about, "0.25 + 0.5 * 0.5"; for a tensor a function that
            says so of an index, (row, column) -> words.
    """
    if got is None:
        raise Mistake(f"{what} is None: is the return statement missing?")
    try:
        got = torch.as_tensor(got).detach().double()
    except (TypeError, ValueError, RuntimeError) as error:
        raise Mistake(f"expected {what} to be a tensor, got {type(got).__name__}") from error

    def fits(numbers) -> bool:
        numbers = torch.as_tensor(numbers).double()
        return got.shape == numbers.shape and torch.allclose(got, numbers, rtol=0, atol=tolerance)

    if fits(wanted):
        return
    for message, numbers in mistakes.items():
        if fits(numbers):
            raise Mistake(message)
    wanted = torch.as_tensor(wanted).double()
    if got.shape != wanted.shape:
        raise Mistake(f"{what} has shape {tuple(got.shape)}, expected {tuple(wanted.shape)}")
    wrong = (~torch.isclose(got, wanted, rtol=0, atol=tolerance)).nonzero().tolist()
    index = tuple(wrong[0])
    words = formula(*index) if callable(formula) else formula
    place = f" at row {index[0]}, column {index[1]}" if len(index) == 2 else f" at {list(index)}" if index else ""
    count = f" (the first of {len(wrong)} that differ)" if len(wrong) > 1 else ""
    raise Mistake(f"{what}{place}: got {got[index]:.6g}, expected {wanted[index]:.6g}{' = ' + words if words else ''}{count}")


def cloned(x):
    """Tensors cloned, with gradients flowing through, and lists, dicts and sets of them copied; modules and numbers are themselves."""
    if isinstance(x, Tensor):
        return x.clone()
    if isinstance(x, dict):
        return {key: cloned(value) for key, value in x.items()}
    return type(x)(map(cloned, x)) if type(x) in (list, tuple, set) else x


def same(x, y) -> bool:
    """Whether nothing differs between x and what cloned(x) has become; nan is nan."""
    if isinstance(x, Tensor):
        return x.shape == y.shape and bool(((x == y) | ((x != x) & (y != y))).all())
    if isinstance(x, dict):
        return x.keys() == y.keys() and all(same(value, y[key]) for key, value in x.items())
    return len(x) == len(y) and all(map(same, x, y)) if isinstance(x, (list, tuple)) else x is y or x == y


def guarded(answer: Callable) -> Callable:
    """`answer` on clones of its arguments, so that it spoils neither a check nor a run; Mistake where it wrote into them."""
    @functools.wraps(answer)
    def guard(*args, **kwargs):
        call = inspect.signature(answer).bind(*args, **kwargs)
        given = dict(call.arguments)
        call.arguments.update(cloned(given))
        result = answer(*call.args, **call.kwargs)
        for name, x in given.items():
            if not same(x, call.arguments[name]):
                raise Mistake(f"you changed `{name}` in place: whoever called you still needs it. Make a new tensor: "
                              "x = x - y, not x -= y; or write into a clone()")
        return result
    return guard


def verdict(check_one: Callable, answer: Callable) -> str | None:
    """What is wrong with `answer` in the eyes of one check; None if nothing is."""
    try:
        check_one(guarded(answer))
    except NotImplementedError as error:
        if not error.args:                          # the stub's own; torch's say what is not implemented
            return "not written yet"
        return f"it stopped with an error: NotImplementedError: {error}"
    except Mistake as mistake:
        return str(mistake)
    except Exception as error:                      # the learner's own: say where, in their file
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == answer.__code__.co_filename]
        where = f"line {frames[-1].lineno}: " if frames else ""
        return f"it stopped with an error: {where}{type(error).__name__}: {error}"
    return None


def checks_of(number: int) -> dict[str, Callable]:
    """The checks of a chapter by the name of the function that they check, in order."""
    module = importlib.import_module(f"tutorial.checks.check{number:02d}")
    return {name.removeprefix("check_"): f for name, f in vars(module).items() if name.startswith("check_")}


def check(number: int, *functions: Callable, folder: str = "exercises") -> bool:
    """Check a chapter's exercises, print one line for each, and say whether all are right.

    Args:
        number: of the chapter.
        functions: the learner's, found by their names; without any, those of tutorial/<folder>/exNN.py.
    """
    answers = {f.__name__: f for f in functions} or vars(importlib.import_module(f"tutorial.{folder}.ex{number:02d}"))
    checks = checks_of(number)
    unknown = sorted(f.__name__ for f in functions if f.__name__ not in checks)
    if unknown:
        raise ValueError(f"chapter {number} has no exercise {', '.join(unknown)}; it has {', '.join(checks)}")
    wrong = []
    for name, check_one in checks.items():
        if name in answers:
            said = verdict(check_one, answers[name])
            below = [other for other in wrong if other in getattr(check_one, "builds_on", ())]
            if said and below:
                said = f"builds on {' and '.join(below)}: mend that first"
            wrong += [name] * (said is not None)
            print(f"{name}: {said or 'right'}")
    return not wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tutorial.check", description=__doc__.splitlines()[0])
    parser.add_argument("chapter", type=int, metavar="N", choices=[int(path.name[:2]) for path in chapters()], help="number of the chapter")
    parser.add_argument("--solutions", action="store_true", help="check our solutions instead of your exercises")
    arguments = parser.parse_args()
    from tutorial.check import check                # not the one above: here it is __main__'s, the checks raise tutorial.check's Mistake
    sys.exit(not check(arguments.chapter, folder="solutions" if arguments.solutions else "exercises"))
