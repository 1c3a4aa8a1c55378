"""Checks of chapter 6."""

import torch

from ..check import Mistake, compare

GOOD, BAD = {"good", "fine", "joy"}, {"bad", "dull"}


def check_robust_score(robust_score):
    def score(*responses, query="It was"):
        got = robust_score([query] * len(responses), list(responses), set(GOOD), set(BAD))
        if got is None:
            raise Mistake("the result is None: is the return statement missing?")
        if not isinstance(got, list):
            raise Mistake(f"expected a list of {len(responses)} floats, got {type(got).__name__}")
        if len(got) != len(responses):
            raise Mistake(f"expected {len(responses)} scores, one for each response, got {len(got)}")
        return got

    # 2 good of 5 words; 1 good - 2 bad of 8; 1 good - 1 bad; none
    texts = ["a fine and good film", "the film is bad and dull but fine", "good or bad or so", "it is what it is"]
    compare(score(*texts), [2 / 5, -1 / 8, 0.0, 0.0], {
        "this is the count: divide by the number of words": [2.0, -1.0, 0.0, 0.0],
        "bad words are not subtracted": [2 / 5, 1 / 8, 1 / 5, 0.0],
        "you divided by the number of opinion words: divide by all words": [1.0, -1 / 3, 0.0, 0.0],
        "the query was counted: judge the response alone": [2 / 7, -1 / 10, 0.0, 0.0],
    }, "the scores", formula=lambda i: ("2 / 5", "(1 - 2) / 8", "(1 - 1) / 5", "0 / 5")[i] + f", good minus bad over all words of {texts[i]!r}")
    compare(score("so it was after all", query="good fine joy"), [0.0], {}, "the score of a response without opinions after a praising query")
    compare(score("good good good good film"), [1 / 5], {
        "cheated by repetition: 'good good good good film' got the praise four times; count different words": [4 / 5],
        "a word that comes twice counts twice below the line: divide by all words, not by the different ones": [1 / 2],
    }, "the score of 'good good good good film'", formula=lambda i: "1 / 5, one different good word of five words")
    compare(score("Good", "a good joy"), [0.0, 0.0], {
        "cheated by brevity: 'Good' alone got full marks; fewer than four words get 0": [1.0, 2 / 3],
    }, "the scores of 'Good' and 'a good joy'", formula=lambda i: f"0, as {(1, 3)[i]} words are fewer than four")
    compare(score("a good fine film"), [0.5], {"four words are enough: only fewer than four get 0": [0.0]}, "the score of 'a good fine film'",
            formula=lambda i: "2 / 4")
    compare(score("BAD, good, joy. fine"), [2 / 4], {
        "upper case hides words: 'BAD' is bad": [3 / 4],
        "punctuation hides words: 'joy.' is joy; cut with _words_of, not with split": [1 / 4],
    }, "the score of 'BAD, good, joy. fine'", formula=lambda i: "(3 - 1) / 4")
    compare(score(""), [0.0], {}, "the score of an empty response")


def check_bradley_terry_loss(bradley_terry_loss):
    ln3 = 1.0986123
    # differences ln 3 and -ln 3 and 0: sigmoid 3/4, 1/4, 1/2; losses .2876821, 1.3862944, .6931472, mean .7890412
    chosen, rejected = torch.tensor([2.0 + ln3, 1.0, -4.0, 5 + ln3]), torch.tensor([2.0, 1.0 + ln3, -4.0, 5.0])
    losses = [0.2876821, 1.3862944, 0.6931472, 0.2876821]
    flipped = [1.3862944, 0.2876821, 0.6931472, 1.3862944]
    compare(bradley_terry_loss(chosen, rejected), sum(losses) / 4, {
        "the sign inside is wrong: chosen - rejected, so that a higher score of the chosen text costs less": sum(flipped) / 4,
        "the minus in front is missing: a loss is made small, so it is -log": -sum(losses) / 4,
        "this is the sum: take the mean, so that the batch's size does not change the step": sum(losses),
        "this is one loss a pair: take the mean": losses,
        "the logarithm is missing: -log of the probability": -(0.75 + 0.25 + 0.5 + 0.75) / 4,
        "this is the mean probability: the loss is -log of each, then the mean": (0.75 + 0.25 + 0.5 + 0.75) / 4,
        "first the logarithm of each pair, then the mean": 0.5753641,                   # -log of the mean probability, .5625
        "there is no sigmoid: the mean difference has no bottom, scores would run away": -ln3 / 4,
        "each text was judged by itself: a pair only says which is better, so the sigmoid is of the difference":
            float(-(chosen.sigmoid().log() + (1 - rejected.sigmoid()).log()).mean()),
    }, "the loss", formula="-(log(3/4) + log(1/4) + log(1/2) + log(3/4)) / 4, the differences being log 3, -log 3, 0, log 3")
    far = bradley_terry_loss(torch.tensor([0.0, 300.0]), torch.tensor([200.0, 0.0]))
    if not torch.as_tensor(far).isfinite().all():
        raise Mistake("a pair 200 apart gives an infinite loss: its exp or its sigmoid leaves what floats hold; use "
                      "torch.nn.functional.logsigmoid")
    chosen.requires_grad_()
    if not torch.as_tensor(bradley_terry_loss(chosen, rejected)).requires_grad:
        raise Mistake("the loss carries no gradient: no .item() and no .detach(), it is to be trained on")
    compare(far, 100.0, {}, "the loss of pairs 200 and 300 apart", tolerance=1e-3, formula="(200 + 0) / 2")


def check_last_token_scores(last_token_scores):
    scores = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 7.0, 11.0, 13.0], [17.0, 19.0, 23.0, 29.0]])
    compare(last_token_scores(scores, [3, 1, 4]), [3.0, 5.0, 29.0], {
        "this is the last column: in short rows that is padding; read at length - 1": [4.0, 13.0, 29.0],
        "this is the first token, which has seen nothing of the text: read at length - 1": [1.0, 5.0, 17.0],
        "one too early: the last token stands at length - 1": [2.0, 13.0, 23.0],
        "one too far: the last token stands at length - 1": [4.0, 7.0, 29.0],
        "this is the mean over the text: the score is read at one place": [2.0, 5.0, 22.0],
        "every row's length for every row: index rows and columns together, scores[rows, lengths - 1]":
            [[3.0, 1.0, 4.0], [11.0, 5.0, 13.0], [23.0, 17.0, 29.0]],
        "this is one number for the batch: one score a text": 37.0,
    }, "the scores", formula=lambda i: f"scores[{i}, {(3, 1, 4)[i]} - 1]")
    compare(last_token_scores(torch.tensor([[9.0, 1.0, 5.0, 7.0], [8.0, 2.0, 4.0, 6.0]]), [2, 3]), [1.0, 4.0], {
        "one too far: the last token stands at length - 1": [5.0, 6.0],
        "this is the largest score up to the last token: read it at the last token": [9.0, 8.0],
    }, "the scores of two texts", formula=lambda i: f"scores[{i}, {(2, 3)[i]} - 1]")
