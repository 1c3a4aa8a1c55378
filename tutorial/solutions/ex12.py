"""Chapter 12, solved."""

import torch
from torch import Tensor


def diagnose(metrics: dict[str, list[float]]) -> str:
    first = {name: numbers[0] for name, numbers in metrics.items()}
    last = {name: numbers[-1] for name, numbers in metrics.items()}
    late = metrics["objective/kl"][len(metrics["objective/kl"]) // 2:]
    if first["objective/entropy"] > 2 * first["ppo/policy/entropy"] * first["tokens/responses_len_mean"]:
        return "shifted"                                        # first: it upsets KL and approxkl as well
    if abs(first["objective/kl"]) > 1e-4:                       # nothing was learnt yet; either sign
        return "dropout"
    if first["ppo/policy/approxkl"] > 0.5:
        return "large steps"
    if max(late) < -0.1:                                        # a single batch below 0 is noise
        return "wrong sampler"
    if last["objective/kl"] > 10:
        return "hacking"                                        # before collapse: it ends in one answer, too
    if last["samples/distinct"] < 0.1:
        return "collapse"
    if last["ppo/mean_scores"] > 0.5 and abs(last["ppo/returns/mean"]) < 0.1:
        return "early whitening"
    return "healthy"


def failing_invariant(step: dict[str, Tensor]) -> str:
    mask, columns = step["mask"], torch.arange(step["mask"].shape[1])
    names = ("logprobs", "ref_logprobs", "entropy", "rewards", "returns")
    if any((step[name][~mask] != 0).any() for name in names):
        return "mask"
    if (step["first_ratio"] != 1).any():                        # every one, not their mean
        return "ratio"
    if ((step["logprobs"] - step["ref_logprobs"]).abs() > 1e-3).any():
        return "reference"
    surprise, entropy = -step["logprobs"][mask].mean(), step["entropy"][mask].mean()
    if (surprise - entropy).abs() > 0.5 * entropy:
        return "surprise"
    last = torch.where(mask, columns, -1).amax(1, keepdim=True)
    if ((step["returns"] - step["rewards"]).gather(1, last).abs() > 1e-3).any():
        return "returns"
    return "none"
