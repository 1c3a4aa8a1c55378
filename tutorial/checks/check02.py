"""Checks of chapter 2. All numbers are exact in binary and can be worked out on paper."""

import torch

from ..check import Mistake, compare

PROBS, SCORES = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.0, 1.0, 4.0])
REWARDS = torch.tensor([[1.0, 0.0, 2.0], [0.0, -1.0, 64.0]])
LOGPROBS = torch.tensor([[-1.0, -2.0, -0.5], [-0.5, -1.0, -4.0]])
MASK = torch.tensor([[True, True, True], [True, True, False]])


def _gradient(j):
    """How the gradient at logit j comes about; the baseline is 1."""
    words = (f"{p:g} * {score - 1:g} * ({int(w == j)} - {PROBS[j]:g})" for w, (p, score) in enumerate(zip(PROBS, SCORES)))
    return " + ".join(words) + ", p(w) * (score - baseline) * (1 for w itself, else 0, minus p)"


def _at_logprob(i, t):
    """How the loss's gradient at a log-probability comes about; the baseline is 1."""
    earned = " + ".join(f"{reward:g}" for reward in REWARDS[i, t:][MASK[i, t:]])
    return f"-({earned} - 1) / 2, minus (return - baseline) over the number of responses" if MASK[i, t] else "0, padding"


def check_policy_gradient(policy_gradient):
    got = policy_gradient(PROBS.clone(), SCORES.clone(), 1.0)
    if not isinstance(got, (tuple, list)) or len(got) != 2:
        raise Mistake("expected two results: return gradient, variance")
    gradient, variance = got
    estimates = (SCORES - 1)[:, None] * (torch.eye(3) - PROBS)
    # estimates of the three words: -1 (1/2, -1/4, -1/4), 0, 3 (-1/2, -1/4, 3/4); weighed with 1/2, 1/4, 1/4
    compare(gradient, [-0.625, -0.0625, 0.6875], {
        "the sign is wrong: a word that scores above the baseline must become likelier": [0.625, 0.0625, -0.6875],
        "the words are not weighed: each estimate counts with the probability of its word": [-2.0, -0.5, 2.5],
        "you took the plain mean over words: each estimate counts with the probability of its word": [-2 / 3, -0.5 / 3, 2.5 / 3],
        "the log is missing: grad p = p * grad log p, so the probabilities count twice": [-0.21875, 0.015625, 0.203125],
        "grad log p(w) is 1 at w's own logit, minus all of probs: the second part is missing": [-0.5, 0.0, 0.75],
        "this is the gradient for probabilities, which must sum to 1: take it for the logits, through the softmax":
            SCORES - 1.0,
        "this is the gradient for probabilities, without a baseline: take it for the logits, through the softmax": SCORES,
        "these are the estimates of each word: take their mean under probs":
            [[-0.5, 0.25, 0.25], [0.0, 0.0, 0.0], [-1.5, -0.75, 2.25]],
        "row w of grad log p is eye[w] - probs, all of probs: you subtracted p(w) from the whole row":
            (PROBS * (SCORES - 1)) @ (torch.eye(3) - PROBS[:, None]),
        "each word moves its own logit alone: it moves the others, too, by -p": PROBS * (SCORES - 1) * (1 - PROBS),
        "the sum runs over the logits: add up over the words, so that one number for each logit is left": [0.0, 0.0, 0.0],
    }, "the gradient", formula=_gradient)
    # squared lengths 3/8, 0, 9 * 7/8: mean 2.15625; less the gradient's own, .8671875
    compare(variance, 1.2890625, {
        "the squared mean is not subtracted: the variance is the mean squared distance to the mean": 2.15625,
        "the baseline is missing in the variance: the estimate is (score - baseline) * grad log p": 2.8515625,
        "the baseline is added: subtract it from the score": 5.6640625,
        "this is a standard deviation: its square is the variance": 1.2890625**0.5,
        "you took the mean over the logits: add their variances up": 1.2890625 / 3,
        "this is one variance for each logit: add them up": [0.296875, 0.16796875, 0.82421875],
        "the words are not weighed in the variance: each squared distance counts with the probability of its word": 4.8515625,
        "the words are not weighed in the variance: var() takes all for equally likely": estimates.var(0).sum(),
        "the words are not weighed in the variance: var(unbiased=False) takes all for equally likely": estimates.var(0, unbiased=False).sum(),
        "this is the variance of the scores: that of the estimate (score - baseline) * grad log p is asked": 2.6875,
    }, "the variance", formula="3/8 * 1 / 2 + 7/8 * 9 / 4 - (0.625**2 + 0.0625**2 + 0.6875**2), mean squared length less that of the mean")


def check_rewards_to_go(rewards_to_go):
    rewards, wanted = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 64.0]]), [[7.0, 6.0, 4.0], [24.0, 16.0, 0.0]]
    compare(rewards_to_go(rewards.clone(), MASK.clone()), wanted, {
        "these are the rewards so far: a return looks forward, so run from the last token to the first":
            [[1.0, 3.0, 7.0], [8.0, 24.0, 0.0]],
        "each token got the whole sum: drop the rewards of earlier tokens": [[7.0, 7.0, 7.0], [24.0, 24.0, 0.0]],
        "the token's own reward is missing": [[6.0, 4.0, 0.0], [16.0, 0.0, 0.0]],
        "the padding leaked into the real tokens: set rewards to 0 outside the mask first": [[7.0, 6.0, 4.0], [88.0, 80.0, 0.0]],
        "you used the padding: set rewards to 0 outside the mask": [[7.0, 6.0, 4.0], [88.0, 80.0, 64.0]],
        "the result runs backwards: flip it back after the running sum": [[4.0, 6.0, 7.0], [0.0, 16.0, 24.0]],
        "the sum ran on from one response into the next: one running sum for each row": [[31.0, 30.0, 28.0], [24.0, 16.0, 0.0]],
        "you ran along the batch: the tokens of a response are dimension 1": [[9.0, 18.0, 4.0], [8.0, 16.0, 0.0]],
        "these are means: a return is the sum of the rewards": [[7 / 3, 3.0, 4.0], [12.0, 16.0, 0.0]],
    }, "the rewards to go", formula=lambda i, t: " + ".join(f"{x:g}" for x in rewards[i, t:][MASK[i, t:]]) or "0, padding")
    if not torch.as_tensor(rewards_to_go(torch.where(MASK, rewards, torch.nan), MASK.clone())).isfinite().all():
        raise Mistake("padding may hold nan, and 0 * nan is nan: drop it with torch.where, not by multiplying with the mask")


def gradient_of(reinforce_loss, logprobs, rewards):
    """The gradient of the loss at each log-probability; the loss itself may have any value."""
    loss = reinforce_loss(logprobs, rewards, MASK.clone(), 1.0)
    if loss is None:
        raise Mistake("the loss is None: is the return statement missing?")
    if not isinstance(loss, torch.Tensor) or loss.dim():
        raise Mistake(f"expected the loss to be one number, a scalar tensor; got {tuple(getattr(loss, 'shape', ())) or type(loss).__name__}")
    if not loss.requires_grad:
        raise Mistake("no gradient reaches logprobs: only the rewards are fixed, detach nothing else")
    gradient, = torch.autograd.grad(loss, logprobs, allow_unused=True)
    return torch.zeros_like(logprobs) if gradient is None else gradient


def check_reinforce_loss(reinforce_loss):
    # returns 3, 2, 2 and -1, -1; less the baseline 2, 1, 1 and -2, -2; minus their half, for two responses
    logprobs = LOGPROBS.clone().requires_grad_()
    weights, wanted = torch.tensor([[2.0, 1.0, 1.0], [-2.0, -2.0, 0.0]]), [[-1.0, -0.5, -0.5], [1.0, 1.0, 0.0]]
    compare(gradient_of(reinforce_loss, logprobs, REWARDS.clone()), wanted, {
        "the sign is wrong: a loss is minimised, so it is minus the objective": [[1.0, 0.5, 0.5], [-1.0, -1.0, 0.0]],
        "the responses are added up: take their mean": -weights,
        "you divided by the number of tokens: the mean runs over responses": -weights / 5,
        "you divided by all cells, padding included: the mean runs over responses": -weights / 6,
        "each response is divided by its length: add up its tokens, else a long response's tokens count less":
            [[-1 / 3, -1 / 6, -1 / 6], [0.5, 0.5, 0.0]],
        "each token got the whole return: drop the rewards of earlier tokens": [[-1.0, -1.0, -1.0], [1.0, 1.0, 0.0]],
        "each token got its own reward alone: the later ones count, too": [[0.0, 0.5, -0.5], [0.5, 1.0, 0.0]],
        "the baseline is subtracted from each reward, and so several times from a return: subtract it after the sum":
            [[0.0, 0.0, -0.5], [1.5, 1.0, 0.0]],
        "the baseline is not used: subtract it from each return": [[-1.5, -1.0, -1.0], [0.5, 0.5, 0.0]],
        "the baseline is added: subtract it from each return": [[-2.0, -1.5, -1.5], [0.0, 0.0, 0.0]],
        "the log is gone: these are gradients of probabilities; multiply with logprobs as they are":
            -weights / 2 * LOGPROBS.exp(),
        "the padding is pushed by minus the baseline: mask the product, too": [[-1.0, -0.5, -0.5], [1.0, 1.0, 0.5]],
        "you used the padding: set rewards to 0 outside the mask": [[-1.0, -0.5, -0.5], [-31.0, -31.0, -31.5]],
        "the rewards of the padding leaked into the returns: set them to 0 outside the mask":
            [[-1.0, -0.5, -0.5], [-31.0, -31.0, 0.0]],
    }, "the loss's gradient at logprobs", formula=_at_logprob)
    logprobs = LOGPROBS.clone().requires_grad_()
    paid = REWARDS + 0.5 * (logprobs.detach() - logprobs)       # the same numbers, as a KL penalty that still hangs on logprobs
    compare(gradient_of(reinforce_loss, logprobs, paid), wanted, {
        "the gradient runs through the rewards, too: they are numbers, detach them":
            torch.tensor(wanted) + 0.25 * torch.where(MASK, LOGPROBS, 0.0).cumsum(1) * MASK,
    }, "where the rewards depend on logprobs, the loss's gradient", formula=_at_logprob)
    logprobs = torch.where(MASK, LOGPROBS, torch.nan).requires_grad_()
    if not gradient_of(reinforce_loss, logprobs, REWARDS.clone())[MASK].isfinite().all() \
            or not torch.as_tensor(reinforce_loss(logprobs, REWARDS.clone(), MASK.clone(), 1.0)).isfinite():
        raise Mistake("padding may hold nan, and 0 * nan is nan: drop it with torch.where, not by multiplying with the mask")


check_reinforce_loss.builds_on = ("rewards_to_go",)
