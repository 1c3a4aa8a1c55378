"""Chapter 6, solved."""

import re

import torch
from torch import Tensor


def robust_score(queries: list[str], responses: list[str], good: set[str], bad: set[str]) -> list[float]:
    scores = []
    for response in responses:
        words = _words_of(response)
        different = set(words)                                  # saying it again earns nothing and makes the text longer
        opinion = len(different & good) - len(different & bad)
        scores.append(opinion / len(words) if len(words) >= 4 else 0.0)
    return scores


def bradley_terry_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    return -torch.nn.functional.logsigmoid(chosen - rejected).mean()        # log(sigmoid(-200)) would be log 0


def last_token_scores(scores: Tensor, lengths: list[int]) -> Tensor:
    return scores[torch.arange(len(lengths)), torch.tensor(lengths) - 1]    # not the last column: that is padding


def _words_of(text: str) -> list[str]:
    return re.findall("[a-z]+", text.lower())
