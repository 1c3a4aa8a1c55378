"""Checks of chapter 8. All numbers are exact in binary, and the padding holds 40 and 100, which must not show up anywhere."""

import torch

from ..check import Mistake, compare

VALUES = torch.tensor([[0.5, 0.25, 1.0], [1.0, 0.5, 40.0]])
REWARDS = torch.tensor([[0.25, 0.0, 3.0], [0.0, 0.75, 100.0]])
MASK = torch.tensor([[True, True, True], [True, True, False]])
LAST = 2, 1                             # the last real column of each row
# with gamma = 1/2:  row 0: .25 + .125 - .5, 0 + .5 - .25, 3 + 0 - 1      row 1: 0 + .25 - 1, .75 + 0 - .5
DELTAS = [[-0.125, 0.25, 2.0], [-0.75, 0.25, 0.0]]


def _delta(i, t):
    """The TD error of a real token, on paper."""
    after = VALUES[i, t + 1] if t < LAST[i] else 0.0
    return f"{REWARDS[i, t]:g} + 0.5 * {after:g} - {VALUES[i, t]:g}"


def _advantage(i, t):
    """The advantage of a real token, on paper."""
    wanted = [[-0.0625, 0.5, 2.0], [-0.71875, 0.25, 0.0]]
    return f"{DELTAS[i][t]:g} + 0.5 * 0.25 * {wanted[i][t + 1] if t < LAST[i] else 0:g}"


def check_td_errors(td_errors):
    compare(td_errors(VALUES, REWARDS, MASK, 0.5), DELTAS, {
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
        "you bootstrapped: nothing follows the last token, so the value after it is 0, not its own": [[-0.125, 0.25, 2.5], [-0.75, 0.5, 0.0]],
        "you bootstrapped in the last column: nothing follows the last token, so the value after it is 0, not its own":
            [[-0.125, 0.25, 2.5], [-0.75, 0.25, 0.0]],
        "you bootstrapped in the last column, and the padding's value leaked into the short row: the value after a last token is 0":
            [[-0.125, 0.25, 2.5], [-0.75, 20.25, 0.0]],
        "the value after the token is missing: reward + gamma * next value - value": [[-0.25, -0.25, 2.0], [-1.0, 0.25, 0.0]],
        "the token's own value is added: it was expected before, subtract it": [[0.875, 0.75, 4.0], [1.25, 1.25, 0.0]],
        "the last column is 0: its token has a TD error, too, with a next value of 0": [[-0.125, 0.25, 0.0], [-0.75, 0.25, 0.0]],
        "one column is missing: the last token has a TD error, too, with a next value of 0": [[-0.125, 0.25], [-0.75, 0.25]],
        "one column is missing, and the padding's value leaked: the last token has a TD error, too, with a next value of 0":
            [[-0.125, 0.25], [-0.75, 20.25]],
        "this is all that was earned later, minus the value (Monte Carlo): a TD error takes one reward and the next value":
            [[0.5, 1.25, 2.0], [-0.625, 0.25, 0.0]],
        "these are the discounted sums of the rewards (Monte Carlo): a TD error takes one reward and the next value":
            [[1.0, 1.5, 3.0], [0.375, 0.75, 0.0]],
        "gamma discounts the reward, too: it belongs to the next value alone": [[-0.25, 0.25, 0.5], [-0.75, -0.125, 0.0]],
        "gamma stands in front of the reward: it belongs to the next value": [[-0.125, 0.75, 0.5], [-0.5, -0.125, 0.0]],
        "you added the value before the previous token, and the last one came round to the first: shift the other way, without wrapping":
            [[0.25, 0.0, 2.125], [-1.0, 0.75, 0.0]],
        "the values are one column early: you added the token's own value and subtracted the previous one": [[0.5, -0.375, 3.25], [0.5, 0.0, 0.0]],
    }, "the TD errors", formula=lambda i, t: f"{_delta(i, t)}, reward + gamma * next value - value" if MASK[i, t] else "0, padding")
    values, rewards = (torch.where(MASK, x, torch.nan) for x in (VALUES, REWARDS))
    if not torch.as_tensor(td_errors(values, rewards, MASK, 0.5)).isfinite().all():
        raise Mistake("padding may hold nan, and 0 * nan is nan: drop it with torch.where, not by multiplying with the mask")


def check_compute_advantages(compute_advantages):
    # lam = 1/4, so each step back carries 1/8: row 0 from the right 2, .25 + .25, -.125 + .0625; row 1 .25, -.75 + .03125
    wanted = torch.tensor([[-0.0625, 0.5, 2.0], [-0.71875, 0.25, 0.0]])
    got = compute_advantages(VALUES, REWARDS, MASK, 0.5, 0.25)
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
        "you bootstrapped: nothing follows the last token, so the value after it is 0, not its own":
            [[-0.0546875, 0.5625, 2.5], [-0.6875, 0.5, 0.0]],
        "you bootstrapped in the last column: nothing follows the last token, so the value after it is 0, not its own":
            [[-0.0546875, 0.5625, 2.5], [-0.71875, 0.25, 0.0]],
        "you bootstrapped in the last column, and the padding's value leaked into the short row: the value after a last token is 0":
            [[-0.0546875, 0.5625, 2.5], [1.78125, 20.25, 0.0]],
        "the loop began one column too early: the last token has an advantage, too, its TD error": [[-0.09375, 0.25, 0.0], [-0.71875, 0.25, 0.0]],
        "the last column is 0: the last token has an advantage, too, its TD error": [[-0.0625, 0.5, 0.0], [-0.71875, 0.25, 0.0]],
        "you multiplied the TD errors by 1 - lam: the sum is not an average, each enters in full": 0.75 * wanted,
        "the carry went on from row to row: each response starts with a next advantage of 0":
            [[-0.0625, 0.5, 2.0], [-0.7197265625, 0.2421875, 0.0]],
        "the carry went on from row to row, through the padding: each response starts with a next advantage of 0":
            [[-0.0625, 0.5, 2.0], [-0.7188720703, 0.2490234375, 0.0]],
        "the carry went on from row to row, into the padding: each response starts with a next advantage of 0":
            [[-0.0625, 0.5, 2.0], [-0.7188720703, 0.2490234375, -0.0078125]],
    }, "the advantages", formula=lambda i, t: f"{_advantage(i, t)}, TD error + gamma * lam * next advantage" if MASK[i, t] else "0, padding")
    compare(returns, [[0.4375, 0.75, 3.0], [0.28125, 0.75, 0.0]], {
        "the returns are the advantages again: add the values": wanted,
        "the returns keep the padding's values: they are 0 outside the mask": [[0.4375, 0.75, 3.0], [0.28125, 0.75, 40.0]],
        "these returns are sums of rewards: returns = advantages + values, so that lam acts on them, too":
            [[1.0, 1.5, 3.0], [0.375, 0.75, 0.0]],
        "the returns were made of whitened advantages: add the values first":
            torch.where(MASK, whitened + VALUES, 0.0),
    }, "the returns", formula=lambda i, t: f"{wanted[i, t]:g} + {VALUES[i, t]:g}, advantage + value" if MASK[i, t] else "0, padding")


check_compute_advantages.builds_on = ("td_errors",)


def check_masked_whiten(masked_whiten):
    x = torch.tensor([[7.0, 2.0, 3.0], [5.0, 3.0, 100.0]])
    off = torch.tensor([[3.0, -2.0, -1.0], [1.0, -1.0, 0.0]])           # from the mean, 4; variance (9 + 4 + 1 + 1 + 1) / 4 = 4

    def each(dim, n_minus):
        """Whitened row by row or column by column, with n - n_minus below the line; a single number becomes 0."""
        n = MASK.sum(dim, keepdim=True)
        centred = torch.where(MASK, x - torch.where(MASK, x, 0.0).sum(dim, keepdim=True) / n, 0.0)
        return centred / ((centred**2).sum(dim, keepdim=True) / (n - n_minus).clamp(min=1) + 1e-8).sqrt()

    low = torch.where(MASK, (x - 2) / 5, 0.0)
    compare(masked_whiten(x, MASK), off / 2, {
        "the padding is not 0 in your result": [[1.5, -1.0, -0.5], [0.5, -0.5, 48.0]],
        "you divided by n: the variance has n - 1": off / 3.2**0.5,
        "you divided by the variance: divide by its square root": off / 4,
        "the mean is 0, but the variance is not 1: divide by the standard deviation": off,
        "the mean is still there: subtract it": [[3.5, 1.0, 1.5], [2.5, 1.5, 0.0]],
        "the padding counted in mean and variance: take both over the mask alone":            # six numbers: 20, 39.2326
            torch.where(MASK, (x - 20) / 39.2326395, 0.0),
        "the padding counted in mean and variance, and you divided by n: take both over the mask alone":
            torch.where(MASK, (x - 20) / 35.8143360, 0.0),
        "each row was whitened by itself: it is one mean and one variance for the whole batch": each(1, 1),
        "each row was whitened by itself, over n: it is one mean and one variance for the whole batch": each(1, 0),
        "each column was whitened by itself: it is one mean and one variance for the whole batch": each(0, 1),
        "each column was whitened by itself, over n: it is one mean and one variance for the whole batch": each(0, 0),
        "this is the range moved to 0 .. 1: subtract the mean, not the smallest, and divide by the standard deviation": low,
        "this is the range moved to -1 .. 1: subtract the mean and divide by the standard deviation": torch.where(MASK, 2 * low - 1, 0.0),
    }, "the whitened x", formula=lambda i, t: f"({x[i, t]:g} - 4) / sqrt(4), (x - mean) / sqrt(variance)" if MASK[i, t] else "0, padding")
    single = masked_whiten(torch.tensor([[5.0, 9.0]]), torch.tensor([[True, False]]))
    if not torch.as_tensor(single).isfinite().all():
        raise Mistake("a single real element gives nan: n - 1 is 0, clamp it to 1; then its variance is 0, add 1e-8 before the root")
    if not torch.as_tensor(masked_whiten(torch.where(MASK, x, torch.nan), MASK)).isfinite().all():
        raise Mistake("padding may hold nan, and 0 * nan is nan: drop it with torch.where, not by multiplying with the mask")
    compare(single, [[0.0, 0.0]], {}, "a single element, whitened,", formula=lambda i, t: "0, its own mean subtracted, or padding")
