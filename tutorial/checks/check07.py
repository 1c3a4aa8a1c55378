"""Checks of chapter 7. The rewards are exact in binary; the padding holds a log-ratio of -5, which must not show up."""

import torch

from ..check import Mistake, compare

LN2 = 0.69314718


def check_kl_estimates(kl_estimates):
    ratio = "2", "1/2", "4"                     # policy over reference
    ref_logprobs = torch.tensor([-1.0, -2.0, -3.0])
    logprobs = ref_logprobs + LN2 * torch.tensor([1.0, -1.0, 2.0])
    got = kl_estimates(logprobs, ref_logprobs)
    if got is not None and (not isinstance(got, tuple) or len(got) != 3):
        raise Mistake("expected three results: return k1, k2, k3")
    k1, k2, k3 = got or (None, None, None)
    compare(k1, [LN2, -LN2, 2 * LN2], {
        "k1 is turned round: it is the policy's log-probability minus the reference's": [-LN2, LN2, -2 * LN2],
        "k1 lost its sign: single tokens may be negative, only their mean is not": [LN2, LN2, 2 * LN2],
        "that is the ratio: k1 is its logarithm, the difference of the log-probabilities": [2.0, 0.5, 4.0],
        "k1 is weighted by the token's probability: the tokens were sampled, so likely ones come often enough by themselves":
            logprobs.exp() * (logprobs - ref_logprobs),
    }, "k1", formula=lambda i: f"log({ratio[i]}), log of policy over reference: logprob {logprobs[i]:.4f} minus {ref_logprobs[i]:g}")
    compare(k2, [0.5 * LN2**2, 0.5 * LN2**2, 2 * LN2**2], {
        "the half of k2 is missing": [LN2**2, LN2**2, 4 * LN2**2],
        "half the log-ratio: k2 takes its square": [0.5 * LN2, -0.5 * LN2, LN2],
    }, "k2", formula=lambda i: f"0.5 * log({ratio[i]})**2")
    # reference over policy: 1/2, 2, 1/4; minus 1, plus k1
    compare(k3, [-0.5 + LN2, 1 - LN2, -0.75 + 2 * LN2], {
        "k3 takes the other ratio: exp(-k1), the reference over the policy, because the tokens come from the policy":
            [1 - LN2, -0.5 + LN2, 3 - 2 * LN2],
        "the sign of k1 inside k3 is wrong: exp(-k1) - 1 + k1": [-0.5 - LN2, 1 + LN2, -0.75 - 2 * LN2],
        "the -1 of k3 is missing: where both agree it must be 0": [0.5 + LN2, 2 - LN2, 0.25 + 2 * LN2],
        "the + k1 of k3 is missing: without it single tokens are negative": [-0.5, 1.0, -0.75],
    }, "k3", formula=lambda i: f"1 / ({ratio[i]}) - 1 + log({ratio[i]}), exp(-k1) - 1 + k1")


def check_compute_rewards(compute_rewards):
    logprobs = torch.tensor([[-1.0, -2.0, -0.5], [-3.0, -1.0, -9.0]])
    ref_logprobs = torch.tensor([[-1.5, -1.75, -2.5], [-1.0, -2.5, -4.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    # log-ratios 0.5, -0.25, 2 | -2, 1.5, (-5)      times -1/4      scores 2 and -1 on the third and on the second token
    got = compute_rewards(torch.tensor([2.0, -1.0]), logprobs, ref_logprobs, mask, 0.25)
    compare(got, [[-0.125, 0.0625, 1.5], [0.5, -1.375, 0.0]], {
        "the sign of the KL is wrong: a token that is likelier than under the reference costs":
            [[0.125, -0.0625, 2.5], [-0.5, -0.625, 0.0]],
        "kl_coef is missing in front of the KL": [[-0.5, 0.25, 0.0], [2.0, -2.5, 0.0]],
        "kl_coef multiplied the score, too: it belongs to the KL alone": [[-0.125, 0.0625, 0.0], [0.5, -0.625, 0.0]],
        "the score of a short response fell on the padding: its last token is the last one where mask is True":
            [[-0.125, 0.0625, 1.5], [0.5, -0.375, -1.0]],
        "the score of a short response is lost: it was put on the padding, and then masked":
            [[-0.125, 0.0625, 1.5], [0.5, -0.375, 0.0]],
        "the padding earned a KL reward: drop it with torch.where": [[-0.125, 0.0625, 1.5], [0.5, -1.375, 1.25]],
        "the padding earned a KL reward, and the score of a short response is on it":
            [[-0.125, 0.0625, 1.5], [0.5, -0.375, 0.25]],
        "every token got the score: it is paid once, on the last token": [[1.875, 2.0625, 1.5], [-0.5, -1.375, 0.0]],
        "the score is on the first token: it belongs to the last": [[1.875, 0.0625, -0.5], [-0.5, -0.375, 0.0]],
        # the sums of the log-ratios are 2.25 and -0.5
        "the KL of the whole response is on the last token: each token pays for itself":
            [[0.0, 0.0, 1.4375], [0.0, -0.875, 0.0]],
        "you took the absolute value: a token that is less likely than under the reference is paid back":
            [[-0.125, -0.0625, 1.5], [-0.5, -1.375, 0.0]],
        "you cut off the negative ones: they must stay, or the mean is no KL": [[-0.125, 0.0, 1.5], [0.0, -1.375, 0.0]],
        # half the squares: 0.125, 0.03125, 2 | 2, 1.125
        "that is k2: here the penalty is k1, the plain difference": [[-0.03125, -0.0078125, 1.5], [-0.5, -1.28125, 0.0]],
        # 0.1065, 0.0340, 1.1353 | 4.3891, 0.7231
        "that is k3: here the penalty is k1, the plain difference":
            [[-0.0266327, -0.0085064, 1.7161662], [-1.097264, -1.1807826, 0.0]],
        "the score is subtracted: it is earned, add it": [[-0.125, 0.0625, -2.5], [0.5, 0.625, 0.0]],
        "every column got the score, the padding too: it is paid once, on the last token":
            [[1.875, 2.0625, 1.5], [-0.5, -1.375, -1.0]],
        "the score is not there: add it on the last token": [[-0.125, 0.0625, -0.5], [0.5, -0.375, 0.0]],
        "the KL is not there": [[0.0, 0.0, 2.0], [0.0, -1.0, 0.0]],
        "the score replaced the KL of the last token: add it": [[-0.125, 0.0625, 2.0], [0.5, -1.0, 0.0]],
        "the score was divided by the length and paid on each token: it is paid once, in full, on the last token":
            [[-0.125 + 2 / 3, 0.0625 + 2 / 3, -0.5 + 2 / 3], [0.0, -0.875, 0.0]],
        "the score was divided by the length: it is paid in full": [[-0.125, 0.0625, -0.5 + 2 / 3], [0.5, -0.875, 0.0]],
        "rewards[:, last] takes the last column of every row in every row: it needs the row, too, rewards[torch.arange(B), last]":
            [[-0.125, -0.9375, 1.5], [0.5, -1.375, 2.0]],
        "rewards[:, last] takes the last column of every row in every row, before the mask: it needs the row, too, "
        "rewards[torch.arange(B), last]": [[-0.125, -0.9375, 1.5], [0.5, -1.375, 0.0]],
        "the mean KL of the response is on the last token: each token pays for itself": [[0.0, 0.0, 1.8125], [0.0, -0.9375, 0.0]],
        "the score is one column late: the last token stands in column mask.sum(1) - 1": [[-0.125, 0.0625, -0.5], [0.5, -0.375, -1.0]],
        "the score is one column early: the last token stands in column mask.sum(1) - 1": [[-0.125, 2.0625, -0.5], [-0.5, -0.375, 0.0]],
    }, "the rewards", formula=lambda i, t: f"-0.25 * ({logprobs[i, t]:g} - {ref_logprobs[i, t]:g})".replace("- -", "+ ")
            + ((" + 2" if i == 0 else " - 1") + ", with the score, as this is the last token" if t == 2 - i else
               ", -kl_coef * (logprob - ref_logprob)") if mask[i, t] else "0, padding")
