"""Chapter 6: scores. Check yourself with `python -m tutorial.check 6`."""

import re

import torch
from torch import Tensor


def robust_score(queries: list[str], responses: list[str], good: set[str], bad: set[str]) -> list[float]:
    """A rule that the two plainest cheats do not fool: (different good words - different bad words) / words.

    A word is a run of letters, in lower case; see `_words_of` below. A word that comes twice counts once above the line and
    twice below it. A response of fewer than four words gets 0, whatever they are.

    Args:
        queries, responses: B texts each; only the responses are judged.
        good, bad: words in lower case.

    Returns:
        B floats.
    """
    raise NotImplementedError


def bradley_terry_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """The mean of -log sigmoid(score of the chosen text - score of the rejected one).

    Args:
        chosen, rejected: (B,) scores; differences of 200 must give finite losses.

    Returns:
        a scalar tensor.
    """
    raise NotImplementedError


def last_token_scores(scores: Tensor, lengths: list[int]) -> Tensor:
    """The score of each text: the one at its last real token.

    Args:
        scores: (B, T) what the head says at each position; rows are padded on the right.
        lengths: B ints, the number of real tokens of each row.

    Returns:
        (B,)
    """
    raise NotImplementedError


def _words_of(text: str) -> list[str]:
    """The words of a text: runs of letters, in lower case."""
    return re.findall("[a-z]+", text.lower())
