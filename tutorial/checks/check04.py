"""Checks of chapter 4. Logits are logarithms of small whole numbers, so that every probability is a fraction."""

import torch

from ..check import Mistake, compare


def check_inverse_cdf(inverse_cdf):
    # token 1 of row 0 and token 2 of row 1 can never come
    probs = torch.tensor([[0.25, 0.0, 0.5, 0.25], [0.0, 0.5, 0.0, 0.5]])
    cdf = [0.25, 0.25, 0.75, 1.0], [0.0, 0.5, 0.5, 1.0]
    rows = torch.tensor([0, 0, 0, 1, 1, 1])
    uniform = torch.tensor([0.125, 0.5, 0.875, 0.25, 0.75, 0.9375])
    got = inverse_cdf(probs[rows], uniform)
    if torch.as_tensor(got).shape == (6, 1):
        raise Mistake("one token a row, in shape (B,): squeeze the last dimension")
    if len(torch.as_tensor(inverse_cdf(torch.full((64, 2), 0.5), torch.full((64,), 0.25))).unique()) > 1:
        raise Mistake("64 like rows with the same uniform number gave different tokens: this draws random numbers of its own, as "
                      "torch.multinomial does; use those that are given")
    compare(got, [0, 2, 3, 1, 3, 3], {
        "this is the most likely token, whatever the uniform number says: cumulate the probabilities and look where it falls":
            [2, 2, 2, 1, 1, 1],
        "you compared with the probabilities themselves: cumulate them first, with cumsum": [1, 4, 4, 2, 4, 4],
        "this is the token before: the FIRST whose cumulative probability exceeds the uniform number": [-1, 1, 2, 0, 2, 2],
        "this is one token too far: the first whose cumulative probability exceeds the uniform number": [1, 3, 4, 2, 4, 4],
        "you took the LAST token whose cumulative probability exceeds the uniform number: take the first": [3] * 6,
    }, "the tokens", formula=lambda i: f"the first token whose cumulative probability {cdf[rows[i]]} exceeds {uniform[i]:g}")
    edge = torch.tensor([[0.25, 0.0, 0.75], [0.0, 0.5, 0.5]])           # exactly on a border: 0.25, and 0
    compare(inverse_cdf(edge, torch.tensor([0.25, 0.0])), [2, 1], {
        "on a border you drew a token of probability 0: its cumulative probability must EXCEED the uniform number, not equal it":
            [0, 0],
    }, "tokens at the borders", formula=lambda i: f"the first token whose cumulative probability exceeds {(0.25, 0.0)[i]}")
    short = inverse_cdf(torch.tensor([[0.5, 0.25, 0.0]]), torch.tensor([0.875]))      # sums to 0.75, as rounding would, but larger
    if int(torch.as_tensor(short).reshape(-1)[0]) != 1:
        raise Mistake(f"probabilities that sum to a little less than 1 gave token {int(torch.as_tensor(short).reshape(-1)[0])}, which "
                      "has none: multiply the uniform number by the last cumulative probability")


# weights w; the logits are 2 * log(w), so that temperature 2 gives back w / sum(w)
WEIGHTS = torch.tensor([[[1.0, 2.0, 1.0], [2.0, 1.0, 5.0], [3.0, 1.0, 4.0], [1.0, 6.0, 1.0]],
                        [[5.0, 2.0, 1.0], [1.0, 1.0, 2.0], [1.0, 5.0, 2.0], [2.0, 3.0, 3.0]]])
TOKENS = torch.tensor([[2, 1, 0, 2], [0, 1, 2, 1]])


def check_logprobs_from_logits(logprobs_from_logits):
    got = logprobs_from_logits(2 * WEIGHTS.log(), TOKENS, 2.0)
    # row 0: token 1 at position 0 (2/4), token 0 at 1 (2/8), token 2 at 2 (4/8); row 1: 1 (2/8), 2 (2/4), 1 (5/8)
    wanted = torch.tensor([[2 / 4, 2 / 8, 4 / 8], [2 / 8, 2 / 4, 5 / 8]])
    same = torch.tensor([[1 / 4, 1 / 8, 3 / 8, 1 / 8], [5 / 8, 1 / 4, 2 / 8, 3 / 8]])               # token i at position i
    squared, fourth = WEIGHTS**2, WEIGHTS**4
    picked = torch.tensor([[2.0, 2.0, 4.0], [2.0, 2.0, 5.0]])
    compare(got, wanted.log(), {
        "you scored the token before: shift the logits by one, that is, pair logits[:, :-1] with tokens[:, 1:]": same.log()[:, :-1],
        "you scored the token before: drop the last position of the logits, not the first": same.log()[:, 1:],
        "one column too many, and shifted: position i predicts token i + 1, and the last position predicts nothing here": same.log(),
        "you shifted the wrong way: position i predicts token i + 1, not token i - 1":              # row 0: 2, 1, 0 at 1, 2, 3
            torch.tensor([[5 / 8, 1 / 8, 1 / 8], [1 / 4, 5 / 8, 3 / 8]]).log(),
        "the last column came round to the first token: torch.roll wraps; cut the last position off":
            torch.tensor([[2 / 4, 2 / 8, 4 / 8, 1 / 8], [2 / 8, 2 / 4, 5 / 8, 2 / 8]]).log(),
        "temperature is not used: divide the logits by it, what is scored must be what was sampled":
            (picked**2 / squared.sum(-1)[:, :-1]).log(),
        "you multiplied by the temperature: divide the logits by it": (picked**4 / fourth.sum(-1)[:, :-1]).log(),
        "you divided the log-probabilities: divide the logits, before the softmax":
            (picked**2 / squared.sum(-1)[:, :-1]).log() / 2,
        "these are probabilities: take the logarithm, or log_softmax at once": wanted,
        "these are logits: they become log-probabilities with log_softmax": picked.log(),
        "these are logits: divide by the temperature, then log_softmax": 2 * picked.log(),
        "the softmax ran over the positions: it runs over the vocabulary, dim=-1":
            (picked / WEIGHTS[:, :-1].sum(1).gather(-1, TOKENS[:, 1:])).log(),
    }, "the log-probabilities", formula=lambda i, t: f"log({picked[i, t]:g} / {WEIGHTS[i, t].sum():g}), token {TOKENS[i, t + 1]} "
                                                     f"at position {t}: exp(logit / 2) is {WEIGHTS[i, t].tolist()}")
    large = logprobs_from_logits(torch.tensor([[[0.0, 200.0], [0.0, 0.0]]]), torch.tensor([[1, 0]]), 1.0)
    if not torch.as_tensor(large).isfinite().all():
        raise Mistake("a token 200 below the best one gives -inf, because its probability is 0 in floats: "
                      "log_softmax, not softmax and then log")
    compare(large, [[-200.0]], {}, "the log-probability of a very unlikely token", tolerance=1e-3,
            formula=lambda i, t: "0 - log(exp(0) + exp(200))")


def check_response_columns(response_columns):
    # row 0: query 2, response 3, so positions 1, 2, 3; row 1: query 3, response 2: 2, 3; row 2: query 1, response 1: 0
    every = torch.tensor([[-1.0, -2.0, -3.0, -4.0, -5.0], [-11.0, -12.0, -13.0, -14.0, -15.0], [-21.0, -22.0, -23.0, -24.0, -25.0]])
    compare(response_columns(every, [2, 3, 1], [3, 2, 1]), [[-2, -3, -4], [-13, -14, 0], [-21, 0, 0]], {
        "one column too late: response token 0 is predicted by the query's last token, at position query_length - 1":
            [[-3, -4, -5], [-14, -15, 0], [-22, 0, 0]],
        "behind the end of a short response stand the numbers of what comes next: set them to 0":
            [[-2, -3, -4], [-13, -14, -15], [-21, -22, -23]],
        "each row has its own query length, and you used the first row's for all": [[-2, -3, -4], [-12, -13, 0], [-22, 0, 0]],
        "each row has its own query length, and you used the longest one for all": [[-3, -4, -5], [-13, -14, 0], [-23, 0, 0]],
        "each row has its own query length: you cut every row at the end": [[-3, -4, -5], [-14, -15, 0], [-25, 0, 0]],
        "the responses are pushed to the right: column t belongs to response token t, so they start in column 0":
            [[-2, -3, -4], [0, -13, -14], [0, 0, -21]],
        "these are the query's columns: the response starts at position query_length - 1": [[-1, -2, -3], [-11, -12, 0], [-21, 0, 0]],
    }, "the response's columns", formula=lambda i, t: f"all_logprobs[{i}, {(2, 3, 1)[i]} - 1 + {t}], the position query_length - 1 + t"
            if t < (3, 2, 1)[i] else "0, behind the end of the response")
