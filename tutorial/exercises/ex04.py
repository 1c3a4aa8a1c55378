"""Chapter 4: sampling, and the alignment. Check yourself with `python -m tutorial.check 4`."""

import torch
from torch import Tensor


def inverse_cdf(probs: Tensor, uniform: Tensor) -> Tensor:
    """Sample one token a row: the first whose cumulative probability exceeds the row's uniform number.

    Args:
        probs: (B, V) probabilities; they sum to 1 up to rounding, and single ones may be 0.
        uniform: (B,) numbers from 0 up to, but not including, 1.

    Returns:
        (B,) int64 token ids from 0 to V - 1, and never a token of probability 0.
    """
    raise NotImplementedError


def logprobs_from_logits(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """The log-probability of every token but the first, given the tokens before it.

    Args:
        logits: (B, T, V) what the model says at each position of `tokens`.
        tokens: (B, T) int64.
        temperature: divides the logits, as in sampling.

    Returns:
        (B, T-1): column i belongs to tokens[:, i + 1].
    """
    raise NotImplementedError


def response_columns(all_logprobs: Tensor, query_lengths: list[int], response_lengths: list[int]) -> Tensor:
    """Cut the responses out of what `logprobs_from_logits` returns.

    Args:
        all_logprobs: (B, T-1), column i belonging to token i + 1 of "query then response"; rubbish behind a short row.
        query_lengths, response_lengths: B ints each.

    Returns:
        (B, R), R the longest response: column t belongs to response token t; 0 behind the end of a response.
    """
    raise NotImplementedError
