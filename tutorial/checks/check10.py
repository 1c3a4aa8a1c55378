"""Checks of chapter 10."""

import torch

from ..check import Mistake, compare

# six runs: 2 has the score of 1 for more KL, 4 a lower score than 3 for the same KL, 5 is worse than 1 in both
SCORES, KLS = torch.tensor([0.0, 0.5, 0.5, 1.0, 0.75, 0.25]), torch.tensor([0.0, 1.0, 2.0, 4.0, 4.0, 8.0])


def check_on_frontier(on_frontier):
    got = on_frontier(SCORES, KLS)
    compare(got, [1, 1, 0, 1, 0, 0], {
        "these are the runs that are beaten: the frontier is the others": [0, 0, 1, 0, 1, 1],
        "you kept the run with the best score alone: it also paid the most": [0, 0, 0, 1, 0, 0],
        "KL the wrong way round: less KL is better": [0, 0, 0, 1, 0, 1],
        "run 2 has the score of run 1 and pays twice the KL: equal in one and worse in the other is beaten": [1, 1, 1, 1, 0, 0],
        "run 4 pays the KL of run 3 for a lower score: equal in one and worse in the other is beaten": [1, 1, 0, 1, 1, 0],
        "equal in one and worse in the other is beaten, too: at least as good in both, and better in one": [1, 1, 1, 1, 1, 0],
        "no run is left: either every run beats itself (demand that the other is better in one of the two), or an 'or' stands "
        "where both must hold": [0, 0, 0, 0, 0, 0],
    }, "the frontier", formula=lambda i: ("no other pays as little", "the others with its score pay more", "run 1 has its score for less KL",
            "it has the best score", "run 3 has more for the same KL", "run 1 is better in both")[i])
    if torch.as_tensor(got).dtype != torch.bool:
        raise Mistake(f"expected a bool tensor, which can be used as a mask, got {torch.as_tensor(got).dtype}")
    # not in order of KL, and with two equal runs
    compare(on_frontier(torch.tensor([1.0, 0.5, 1.0, 0.75]), torch.tensor([3.0, 0.5, 3.0, 4.0])), [1, 1, 1, 0], {
        "two runs are exactly equal here, and neither beats the other: keep both": [0, 1, 0, 0],
        "two runs are exactly equal here: you kept one of them, but neither beats the other": [1, 1, 0, 0],
        "you compared neighbours: the runs come in no order, compare each with every other": [1, 1, 1, 1],
    }, "the frontier of runs in no order", formula=lambda i: ("run 2 is its equal", "no other pays as little", "run 0 is its equal",
            "run 0 is better in both")[i])
    # score 0.2 at KL 1 lies below the line from (0, 0) to (2, 1), and yet no run beats it
    compare(on_frontier(torch.tensor([0.0, 0.2, 1.0]), torch.tensor([0.0, 1.0, 2.0])), [1, 1, 1], {
        "you kept the best at some price, score - c * KL: a run in a dent of the frontier is unbeaten, too": [1, 0, 1],
    }, "the frontier with a dent", formula=lambda i: "no other run is at least as good in both and better in one")


def check_next_kl_coef(next_kl_coef):
    # KL 9 for a target of 8: error 1/8; 64 of 512 responses: 0.5 * (1 + 1/8 * 1/8)
    compare(next_kl_coef(0.5, 9.0, 8.0, 64, 512.0), 0.5078125, {
        "the sign is wrong: a KL above its target must make kl_coef larger": 0.4921875,
        "n and horizon are missing: the error acts in full over a whole horizon": 0.5625,
        "your error is 0.2 or more, and should be 9 / 8 - 1 = 0.125: the error is relative, kl / target - 1 (not kl - target), with "
        "the 1 taken off, at most 0.2 and at least -0.2": 0.5125,                               # .2 instead: 1 + .2 / 8
        "n is missing: error * n / horizon": 0.5 * (1 + 0.125 / 512),
        "horizon / n is upside down: error * n / horizon": 1.0,
        "you divided the difference by kl: the error is relative to the target": 0.5 * (1 + 1 / 9 / 8),
        "you added the correction: it multiplies kl_coef": 0.515625,
    }, "kl_coef", 1e-6, "0.5 * (1 + (9 / 8 - 1) * 64 / 512)")
    # KL 32: error 3, counted as .2: 0.5 * (1 + .2 / 8)
    compare(next_kl_coef(0.5, 32.0, 8.0, 64, 512.0), 0.5125, {
        "the error is not clipped: one wild batch (KL 32) would move kl_coef far": 0.6875,
        "you clipped after the factor n / horizon: clip the error itself": 0.6,
    }, "kl_coef after a KL of 32", 1e-6, "0.5 * (1 + 0.2 * 64 / 512), as 32 / 8 - 1 counts 0.2 at most")
    # KL 2: error -3/4, counted as -.2
    compare(next_kl_coef(0.5, 2.0, 8.0, 64, 512.0), 0.4875, {
        "the error is clipped on one side only: below the target it counts at most 20 %, too": 0.453125,
        "below its target the KL must make kl_coef smaller": 0.5,
    }, "kl_coef after a KL of 2", 1e-6, "0.5 * (1 - 0.2 * 64 / 512), as 2 / 8 - 1 counts -0.2 at least")
