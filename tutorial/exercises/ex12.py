"""Chapter 12: when it breaks. Check yourself with `python -m tutorial.check 12`."""

import torch
from torch import Tensor


def diagnose(metrics: dict[str, list[float]]) -> str:
    """Name the fault of a run from its metrics.

    Args:
        metrics: for each metric one number a step, the first step first. You need objective/kl, objective/entropy (the
            sampled surprise of a response), ppo/policy/entropy (a token's), tokens/responses_len_mean, ppo/policy/approxkl,
            ppo/val/error, ppo/returns/mean, ppo/mean_scores and samples/distinct. The reference is the policy before step 1.

    Returns:
        "shifted"           log-probabilities read at the wrong position: at the first step the surprise is no entropy
        "dropout"           policy and reference differ at the first step
        "large steps"       the very first update moves the policy by about a nat a token or more
        "wrong sampler"     the KL turns negative and stays so
        "hacking"           the KL leaves everything healthy behind
        "collapse"          in the end nearly all responses are alike
        "early whitening"   the score has risen, the mean return never left 0
        "healthy"           none of these
    """
    raise NotImplementedError


def failing_invariant(step: dict[str, Tensor]) -> str:
    """The first of the five invariants that does not hold in the first step of a run.

    Args:
        step: mask (B, R) bool, True at real tokens; first_ratio (N,) of the first minibatch, real tokens alone; and, all (B, R),
            logprobs, ref_logprobs, entropy, rewards, returns.

    Returns:
        "mask"        some (B, R) tensor is not 0 outside the mask
        "ratio"       a ratio of the first minibatch is not 1
        "reference"   policy and reference differ at a token by more than 0.001
        "surprise"    mean(-logprob) and mean(entropy), over real tokens, differ by more than half of the entropy
        "returns"     the return of a row's last real token differs from its reward by more than 0.001
        "none"        all five hold
    """
    raise NotImplementedError
