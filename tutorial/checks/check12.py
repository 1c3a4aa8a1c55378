"""Checks of chapter 12. Each case is a small run, or a small batch, with one fault in it; some look like another fault, too."""

import torch

from ..check import Mistake

HEALTHY = {
    "ppo/mean_scores": [0.25, 0.5, 0.75, 1.0], "objective/kl": [0.0, 0.5, 1.0, 1.25], "objective/entropy": [3.5, 3.25, 3.0, 2.5],
    "ppo/policy/entropy": [0.75, 0.75, 0.5, 0.5], "tokens/responses_len_mean": [5.0] * 4, "ppo/policy/approxkl": [0.01, 0.02, 0.01, 0.01],
    "ppo/policy/clipfrac": [0.1, 0.1, 0.0, 0.0], "ppo/val/error": [0.25, 0.25, 0.125, 0.0625],
    "ppo/returns/mean": [0.25, 0.375, 0.5, 0.75], "samples/distinct": [0.5, 0.5, 0.375, 0.25],
}
CASES = [       # what differs from a healthy run, the fault, what to say
    ({}, "healthy", "this run is healthy: score and KL rise together and stay small, and the first step holds"),
    ({"objective/kl": [0.0, -0.25, 0.5, 1.0]}, "healthy",
     "a single batch with a KL a little below 0 is noise: demand that it stays negative"),
    ({"objective/entropy": [35.0, 41.0, 40.0, 37.0], "objective/kl": [0.0, -8.0, -8.0, -5.0], "ppo/policy/approxkl": [3.0, 0.5, 0.25, 0.25]},
     "shifted", "at the first step a response of 5 tokens surprises by 35 nats, and 5 times the entropy is 3.75: look at that first, "
     "a shift upsets KL and approxkl as well"),
    ({"objective/kl": [0.25, 0.5, 1.0, 1.25]}, "dropout", "the first KL is 0.25, before anything was learnt: it must be 0"),
    ({"objective/kl": [-0.0625, 0.25, 0.75, 1.0]}, "dropout", "the first KL is -0.0625: not 0 is on either side of 0"),
    ({"ppo/policy/approxkl": [5.5, 4.0, 1.0, 0.5], "objective/kl": [0.0, 15.0, 11.0, 12.0]}, "large steps",
     "the first update moved the policy by 5.5 (approxkl): large steps, of which the high KL is a consequence"),
    ({"objective/kl": [0.0, -0.5, -1.5, -2.0]}, "wrong sampler",
     "the KL is negative from the second step on: the responses were not sampled from this policy"),
    ({"objective/kl": [0.0, 4.0, 15.0, 26.0], "ppo/mean_scores": [0.25, 1.0, 3.0, 5.0], "ppo/returns/mean": [0.25, 1.0, 3.0, 5.0],
      "samples/distinct": [0.5, 0.5, 0.25, 0.03]}, "hacking",
     "the KL reached 26 nats while the score rose: hacking, which ends in one answer, too; look at the KL before samples/distinct"),
    ({"objective/kl": [0.0, 1.0, 3.0, 3.5], "samples/distinct": [0.5, 0.25, 0.0625, 0.02]}, "collapse",
     "in the end 2 % of the responses are distinct: collapse, although the KL of 3.5 is no alarm"),
    ({"ppo/returns/mean": [0.0, 0.01, 0.01, 0.02], "ppo/val/error": [1.0, 1.0, 1.0, 1.0]}, "early whitening",
     "the score rose to 1 and the mean return stayed at 0: the returns were made of whitened advantages"),
    ({"objective/entropy": [60.0, 58.0, 50.0, 44.0], "tokens/responses_len_mean": [80.0] * 4}, "healthy",
     "a surprise of 60 nats is what 80 tokens with an entropy of 0.75 each have: compare the two"),
    ({"ppo/mean_scores": [-0.5, 0.0, 0.0, 0.25], "ppo/returns/mean": [-0.25, 0.0, 0.0, 0.05]}, "healthy",
     "the mean return is near 0 because the score is: early whitening shows where the score has left it behind"),
    ({"ppo/mean_scores": [0.25, 1.0, 2.0, 3.0], "ppo/returns/mean": [0.25, 0.75, 1.5, 2.5]}, "healthy",
     "a score of 3 is no fault while the KL is 1.25: what a score can reach is the task's business"),
    ({"ppo/policy/approxkl": [0.01, 0.02, 0.25, 0.01]}, "healthy",
     "an approxkl of 0.25 in one later step is no large first step: look at the first"),
    ({"samples/distinct": [0.5, 0.4, 0.2, 0.15]}, "healthy",
     "fewer distinct responses are what learning looks like; collapse is nearly none"),
]


def check_diagnose(diagnose):
    for changed, fault, message in CASES:
        said = diagnose({name: list(numbers) for name, numbers in (HEALTHY | changed).items()})
        if said is None:
            raise Mistake("you returned None: is a return statement missing? A run without a fault is \"healthy\"")
        if said not in {name for _, name, _ in CASES}:
            raise Mistake(f"{said!r} is none of the names in the docstring")
        if said != fault:
            raise Mistake(f"{message}; you said {said!r}")


def healthy_step() -> dict:
    """Two responses, the second one token shorter; surprise (1 + 1 + 2 + .5 + .5) / 5 = 1, and so the entropy."""
    mask = torch.tensor([[True, True, True], [True, True, False]])
    logprobs = torch.tensor([[-1.0, -1.0, -2.0], [-0.5, -0.5, 0.0]])
    return {"mask": mask, "first_ratio": torch.ones(5), "logprobs": logprobs, "ref_logprobs": logprobs.clone(),
            "entropy": torch.where(mask, 1.0, 0.0), "rewards": torch.tensor([[0.0, 0.0, 2.0], [0.0, -1.0, 0.0]]),
            "returns": torch.tensor([[1.5, 1.75, 2.0], [-0.5, -1.0, 0.0]])}


def broken_steps():
    """(what differs from a healthy step, the invariant that fails, what to say), the simple ones first."""
    healthy = healthy_step()
    yield {}, "none", "all five hold here"
    yield {"entropy": 0.7 * healthy["entropy"]}, "none", "surprise 1 and entropy 0.7 differ by 0.3, less than half of 0.7"
    yield ({"first_ratio": torch.tensor([1.0, 1.25, 0.75, 1.0, 1.0])}, "ratio",
           "ratios of 1.25 and 0.75 have mean 1, and are wrong all the same: every ratio must be 1")
    for off in (0.75, 1.000001):
        yield ({"first_ratio": torch.tensor([1.0, 1.0, off, 1.0, 1.0])}, "ratio",
               f"a ratio of {off} is not 1: the same code scored the same tokens twice, so it must be 1 exactly")
    for off in (0.01, -0.01, 0.5):
        yield ({"ref_logprobs": healthy["ref_logprobs"] - torch.tensor([[0.0, 0.0, 0.0], [0.0, off, 0.0]])}, "reference",
               f"one token differs from the reference by {off}: more than 0.001, on either side, is a difference")
    drift = torch.tensor([[0.5, -0.5, 0.0], [0.0, 0.0, 0.0]])
    yield ({"ref_logprobs": healthy["ref_logprobs"] + drift}, "reference",
           "two tokens differ from the reference by +0.5 and -0.5, which cancel in the mean: compare token by token")
    yield ({"logprobs": 8 * healthy["logprobs"], "ref_logprobs": 8 * healthy["logprobs"]}, "surprise",
           "the surprise is 8 nats a token and the entropy 1: the log-probabilities belong to other tokens")
    yield ({"logprobs": healthy["logprobs"] / 8, "ref_logprobs": healthy["logprobs"] / 8}, "surprise",
           "the surprise is 0.125 nats a token and the entropy 1: it can be too small, too")
    small = {"logprobs": healthy["logprobs"] / 4, "ref_logprobs": healthy["logprobs"] / 4}
    yield (small | {"entropy": healthy["entropy"] / 10}, "surprise",
           "the surprise is 0.25 nats a token and the entropy 0.1: half of the entropy is 0.05, and they differ by 0.15")
    short = healthy["returns"].clone()
    short[1, 1] = -0.25
    yield ({"returns": short}, "returns",
           "the last real token of row 1 is in column 1: its return is -0.25, its reward -1")
    yield ({"returns": torch.tensor([[0.5, 0.75, 1.0], [-1.5, -1.0, 0.0]])}, "returns",
           "the return of row 0's last token is 1, its reward 2: nothing follows it, so they are equal")
    for name in ("rewards", "returns", "logprobs", "ref_logprobs", "entropy"):
        leaked = healthy[name].clone()
        leaked[1, 2] = 7.0
        yield ({name: leaked}, "mask", f"{name} holds 7 outside the mask, where everything is 0")
    far = {"logprobs": 8 * healthy["logprobs"]}                      # from the reference, and from the entropy
    yield far, "reference", "reference and surprise both fail here: name the first in the order of the list"
    yield (far | {"ref_logprobs": far["logprobs"], "returns": 0 * healthy["returns"]}, "surprise",
           "surprise and returns both fail here: name the first in the order of the list")
    yield ({"first_ratio": torch.full((5,), 1.5), "ref_logprobs": healthy["ref_logprobs"] - healthy["mask"] * 0.25}, "ratio",
           "ratio and reference both fail here: name the first in the order of the list")


HINTS = {       # what to look at, if this is said of a step in which all five hold
    "mask": ": outside is ~mask",
    "surprise": ": is it minus the logprob, and the mean of all real tokens?",
    "returns": ": only the last real token of a row counts, and in row 1 it stands in column 1",
}


def check_failing_invariant(failing_invariant):
    for changed, wanted, message in broken_steps():
        said = failing_invariant(healthy_step() | changed)
        if said is None:
            raise Mistake("you returned None: is a return statement missing? Where all five hold it is \"none\"")
        if said != wanted:
            raise Mistake(f"{message}; you said {said!r}{'' if changed else HINTS.get(said, '')}")
