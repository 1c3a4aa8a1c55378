"""Chapter 2: from score to gradient. Check yourself with `python -m tutorial.check 2`."""

import torch
from torch import Tensor


def policy_gradient(probs: Tensor, scores: Tensor, baseline: float) -> tuple[Tensor, Tensor]:
    """What REINFORCE does on average with one sampled word, and how much it scatters; by enumeration, without a sample.

    The policy is a softmax of logits, and word w, when it is drawn, gives the estimate (score(w) - baseline) * grad log p(w).

    Args:
        probs: (V,) probability of each word.
        scores: (V,)
        baseline: a number, the same for all words.

    Returns:
        the mean of the estimate, (V,), one number for each logit; and its variance, a scalar: the mean of its squared
        distance to that mean, added up over the logits.
    """
    raise NotImplementedError


def rewards_to_go(rewards: Tensor, mask: Tensor) -> Tensor:
    """The return of each token: its own reward and all later ones of its response.

    Args:
        rewards: (B, R), anything where mask is False, nan included.
        mask: (B, R) bool, True at real tokens, which come first in each row.

    Returns:
        (B, R), 0 where mask is False.
    """
    raise NotImplementedError


def reinforce_loss(logprobs: Tensor, rewards: Tensor, mask: Tensor, baseline: float) -> Tensor:
    """A scalar to minimise: minus its gradient is the mean over responses of sum_t (return_t - baseline) * grad logprob_t.

    Args:
        logprobs: (B, R) of the sampled tokens under the weights being trained, with gradients; anything where mask is False.
        rewards: (B, R), numbers to be taken as fixed, even if they were computed from logprobs.
        mask: (B, R) bool, True at real tokens.
        baseline: a number, the same for all tokens.
    """
    raise NotImplementedError
