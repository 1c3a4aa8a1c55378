"""Chapter 1: what the loop should learn. Check yourself with `python -m tutorial.check 1`."""

import torch
from torch import Tensor


def optimal_policy(ref_probs: Tensor, scores: Tensor, kl_coef: float) -> Tensor:
    """The policy that maximises E[score] - kl_coef * KL(policy || reference) over one-token responses.

    Args:
        ref_probs: (V,) probability of each token under the reference, all above 0.
        scores: (V,) score of each token.
        kl_coef: weight of the KL penalty; also for a tiny one, such as 0.001, the result must be finite.

    Returns:
        (V,) probabilities that sum to 1.
    """
    raise NotImplementedError


def objective(probs: Tensor, ref_probs: Tensor, scores: Tensor, kl_coef: float) -> Tensor:
    """What the loop maximises: the mean score of a policy minus its KL penalty.

    Args:
        probs: (V,) the policy; entries may be 0, and a token that never occurs costs nothing.
        ref_probs, scores: (V,)

    Returns:
        a scalar tensor.
    """
    raise NotImplementedError
