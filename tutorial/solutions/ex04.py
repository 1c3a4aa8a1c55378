"""Chapter 4, solved."""

import torch
from torch import Tensor


def inverse_cdf(probs: Tensor, uniform: Tensor) -> Tensor:
    cdf = probs.cumsum(-1)
    point = uniform[:, None] * cdf[:, -1:]                      # the last entry may be 0.9999999: never point behind it
    return (cdf <= point).sum(-1)                               # as many tokens lie wholly to the left of the point


def logprobs_from_logits(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    logprobs = (logits[:, :-1] / temperature).log_softmax(-1)   # the last position predicts a token that is not there
    return logprobs.gather(-1, tokens[:, 1:, None]).squeeze(-1)             # the first token is predicted by nobody


def response_columns(all_logprobs: Tensor, query_lengths: list[int], response_lengths: list[int]) -> Tensor:
    columns = torch.zeros(len(all_logprobs), max(response_lengths))
    for row, (Q, R) in enumerate(zip(query_lengths, response_lengths)):
        columns[row, :R] = all_logprobs[row, Q - 1:Q - 1 + R]   # position Q - 1, the query's last, predicts token 0
    return columns
