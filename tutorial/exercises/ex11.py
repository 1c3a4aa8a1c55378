"""Chapter 11: the family. Check yourself with `python -m tutorial.check 11`."""

import torch
from torch import Tensor


def group_advantages(totals: Tensor, group_size: int, kind: str) -> Tensor:
    """Advantages without a critic: each response compared with others.

    Args:
        totals: (B,) the summed reward of each response; the responses to one query are neighbours, group_size of them.
        group_size: 2 or more; B is a multiple of it.
        kind: "reinforce": minus the mean of the whole batch; "rloo": minus the mean of the query's *other* responses;
            "grpo": minus the mean of all the query's responses, over their standard deviation (with n - 1) plus 1e-6.

    Returns:
        (B,), in the same order.
    """
    raise NotImplementedError


def implicit_reward(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, beta: float) -> Tensor:
    """What DPO takes for a text's score: beta times log(policy / reference) of the whole text.

    Args:
        logprobs, ref_logprobs: (B, R) of each token, anything where mask is False.
        mask: (B, R) bool, True at real tokens.

    Returns:
        (B,)
    """
    raise NotImplementedError


def dpo_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """How badly the implicit rewards tell the pairs apart: the mean of -log sigmoid(chosen - rejected).

    Args:
        chosen, rejected: (B,) implicit rewards of the better and of the worse text of each pair.

    Returns:
        () a scalar; finite also for a difference of -1000.
    """
    raise NotImplementedError
