"""Checks of chapter 8. All numbers are exact in binary, and the padding holds 40 and 100, which must not show up anywhere."""

import torch

from ..check import Mistake, compare

VALUES = torch.tensor([[0.5, 0.25, 1.0], [1.0, 0.5, 40.0]])
REWARDS = torch.tensor([[0.25, 0.0, 3.0], [0.0, 0.75, 100.0]])
MASK = torch.tensor([[True, True, True], [True, True, False]])
# with gamma = 1/2:  row 0: .25 + .125 - .5, 0 + .5 - .25, 3 + 0 - 1      row 1: 0 + .25 - 1, .75 + 0 - .5
DELTAS = [[-0.125, 0.25, 2.0], [-0.75, 0.25, 0.0]]


def check_td_errors(td_errors):
    compare(td_errors(VALUES.clone(), REWARDS.clone(), MASK.clone(), 0.5), DELTAS, {
        "the value of the padding leaked into the last real token: set values to 0 outside the mask first":
            [[-0.125, 0.25, 2.0], [-0.75, 20.25, 0.0]],
        "you used the padding: drop values and rewards outside the mask": [[-0.125, 0.25, 2.0], [-0.75, 20.25, 60.0]],
        "the padding is not 0 in your result: mask it at the end, too": [[-0.125, 0.25, 2.0], [-0.75, 0.25, 100.0]],
        "gamma is missing in front of the next value": [[0.0, 0.75, 2.0], [-0.5, 0.25, 0.0]],
        "the first value came round to the end: torch.roll wraps, but after the last token the value is 0":
            [[-0.125, 0.25, 2.25], [-0.75, 0.25, 0.0]],
        "you added the value before the previous token: shift the values the other way":
            [[-0.25, 0.0, 2.125], [-1.0, 0.75, 0.0]],
        "the token's own value is not subtracted: a surprise is measured against what was expected":
            [[0.375, 0.5, 3.0], [0.25, 0.75, 0.0]],
        "the sign is wrong: earned plus expected after, minus expected before": [[0.125, -0.25, -2.0], [0.75, -0.25, 0.0]],
    }, "the TD errors")
    values, rewards = (torch.where(MASK, x, torch.nan) for x in (VALUES, REWARDS))
    if not torch.as_tensor(td_errors(values, rewards, MASK.clone(), 0.5)).isfinite().all():
        raise Mistake("padding may hold nan, and 0 * nan is nan: drop it with torch.where, not by multiplying with the mask")


def check_compute_advantages(compute_advantages):
    # lam = 1/4, so each step back carries 1/8: row 0 from the right 2, .25 + .25, -.125 + .0625; row 1 .25, -.75 + .03125
    wanted = torch.tensor([[-0.0625, 0.5, 2.0], [-0.71875, 0.25, 0.0]])
    got = compute_advantages(VALUES.clone(), REWARDS.clone(), MASK.clone(), 0.5, 0.25)
    if not isinstance(got, (tuple, list)) or len(got) != 2:
        raise Mistake("expected two results: return advantages, returns")
    advantages, returns = got
    mean, std = 0.39375, 1.0072006                              # of the five real advantages
    whitened = torch.where(MASK, (wanted - mean) / std, 0.0)
    early = "you whitened here: return the plain advantages; the trainer whitens them later, when the returns are safe"
    compare(advantages, wanted, {
        "these are the TD errors: add gamma * lam times the advantage of the next token": DELTAS,
        "you carried lam alone: it is gamma * lam": [[0.0625, 0.75, 2.0], [-0.6875, 0.25, 0.0]],
        "lam is not used: you carried gamma alone": [[0.5, 1.25, 2.0], [-0.625, 0.25, 0.0]],
        "you ran forwards: an advantage collects what comes later, so start at the last token":
            [[-0.125, 0.234375, 2.029296875], [-0.75, 0.15625, 0.0]],
        "you ran forwards, through the padding: an advantage collects what comes later, so start at the last token":
            [[-0.125, 0.234375, 2.029296875], [-0.75, 0.15625, 0.01953125]],
        "the two results are exchanged: return advantages, returns": [[0.4375, 0.75, 3.0], [0.28125, 0.75, 0.0]],
        "you added the next surprise alone: it is the next advantage, which holds all later ones": [[-0.09375, 0.5, 2.0], [-0.71875, 0.25, 0.0]],
        "the padding leaked into the real tokens: drop values and rewards outside the mask before the loop":
            [[-0.0625, 0.5, 2.0], [2.71875, 27.75, 0.0]],
        "you used the padding: drop values and rewards outside the mask": [[-0.0625, 0.5, 2.0], [2.71875, 27.75, 60.0]],
        "inside the TD error the next value is discounted by gamma alone; lam belongs to the next advantage":
            [[-0.203125, 0.125, 2.0], [-0.90625, 0.25, 0.0]],
        early: whitened,
    }, "the advantages")
    compare(returns, [[0.4375, 0.75, 3.0], [0.28125, 0.75, 0.0]], {
        "the returns are the advantages again: add the values": wanted,
        "the returns keep the padding's values: they are 0 outside the mask": [[0.4375, 0.75, 3.0], [0.28125, 0.75, 40.0]],
        "these returns are sums of rewards: returns = advantages + values, so that lam acts on them, too":
            [[1.0, 1.5, 3.0], [0.375, 0.75, 0.0]],
        "the returns were made of whitened advantages: add the values first":
            torch.where(MASK, whitened + VALUES, 0.0),
    }, "the returns")


check_compute_advantages.builds_on = ("td_errors",)


def check_masked_whiten(masked_whiten):
    x = torch.tensor([[2.0, 4.0, 100.0], [6.0, 50.0, -7.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    # 2, 4, 6: mean 4, variance (4 + 0 + 4) / 2 = 4, so (x - 4) / 2
    compare(masked_whiten(x.clone(), mask), [[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]], {
        "the padding is not 0 in your result": [[-1.0, 0.0, 48.0], [1.0, 23.0, -5.5]],
        "you divided by n: the variance has n - 1": [[-1.2247449, 0.0, 0.0], [1.2247449, 0.0, 0.0]],
        "you divided by the variance: divide by its square root": [[-0.5, 0.0, 0.0], [0.5, 0.0, 0.0]],
        "the mean is 0, but the variance is not 1: divide by the standard deviation": [[-2.0, 0.0, 0.0], [2.0, 0.0, 0.0]],
        "the mean is still there: subtract it": [[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]],
        "the padding counted in mean and variance: take both over the mask alone":            # six numbers: 25.8333, 41.4749
            torch.where(mask, (x - 25.8333333) / 41.4748917, 0.0),
        "each row was whitened by itself: it is one mean and one variance for the whole batch":
            [[-0.7071068, 0.7071068, 0.0], [0.0, 0.0, 0.0]],
    }, "the whitened x")
    single = masked_whiten(torch.tensor([[5.0, 9.0]]), torch.tensor([[True, False]]))
    if not torch.as_tensor(single).isfinite().all():
        raise Mistake("a single real element gives nan: n - 1 is 0, clamp it to 1; then its variance is 0, add 1e-8 before the root")
    if not torch.as_tensor(masked_whiten(torch.where(mask, x, torch.nan), mask)).isfinite().all():
        raise Mistake("padding may hold nan, and 0 * nan is nan: drop it with torch.where, not by multiplying with the mask")
    compare(single, [[0.0, 0.0]], {}, "a single element, whitened,")
