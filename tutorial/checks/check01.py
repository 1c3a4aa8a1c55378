"""Checks of chapter 1. Factors exp(score / kl_coef) are powers of 2, so that every number can be worked out on paper."""

import torch

from ..check import Mistake, compare

LN2 = 0.69314718


def check_optimal_policy(optimal_policy):
    ref, scores = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.0, LN2, 2 * LN2])
    # factors 1, 4, 16 at kl_coef 0.5: weights 1/2, 1, 4, and 5.5 in all
    got = optimal_policy(ref, scores, 0.5)
    compare(got, [1 / 11, 2 / 11, 8 / 11], {
        "the weights are right, but they do not sum to 1: divide by their sum": [0.5, 1.0, 4.0],
        "you multiplied the scores by kl_coef: divide by it, a larger kl_coef holds the policy closer":
            [0.5 / 1.3535534, 0.3535534 / 1.3535534, 0.5 / 1.3535534],              # factors 1, sqrt(2), 2
        "kl_coef is not used: the factor is exp(score / kl_coef)": [0.25, 0.25, 0.5],
        "you forgot the reference: multiply exp(score / kl_coef) by ref_probs": [1 / 21, 4 / 21, 16 / 21],
        "the sign is wrong: a higher score must give a higher probability":         # factors 1, 1/4, 1/16
            [0.5 / 0.578125, 0.0625 / 0.578125, 0.015625 / 0.578125],
        "inside the softmax belongs the logarithm of ref_probs, not ref_probs itself":
            torch.tensor([0.5, 0.25 + 2 * LN2, 0.25 + 4 * LN2]).softmax(0),
        "all the probability is on the best word: that is the optimum at kl_coef = 0; here the others keep a share": [0.0, 0.0, 1.0],
        "exp is missing: the factor is exp(score / kl_coef), not score / kl_coef": [0.0, 1 / 3, 2 / 3],
        "exp is missing, and the result does not sum to 1: the factor is exp(score / kl_coef)": [0.0, 0.5 * LN2, LN2],
    }, "pi*", formula=lambda i: f"{ref[i]:g} * exp({i} * log(2) / 0.5) / (0.5 * 1 + 0.25 * 4 + 0.25 * 16), "
                                "ref_probs * exp(score / kl_coef) over the sum of all three")
    tiny = optimal_policy(ref, torch.tensor([0.0, 1.0, 2.0]), 0.001)
    if not torch.as_tensor(tiny).isfinite().all():
        raise Mistake("pi* is not finite at kl_coef = 0.001, because exp(2000) overflows: add logarithms and take a softmax")
    compare(tiny, [0.0, 0.0, 1.0], {
        "at kl_coef = 0.001 scores of 1 and 2 count alike: the exponent was clamped; add logarithms and take a softmax":
            [0.0, 0.5, 0.5],
    }, "pi* at kl_coef = 0.001", formula=lambda i: ("0.5 * exp(-2000) / 0.25", "exp(-1000)", "1 - exp(-1000)")[i] + ", the others beside the best word are nothing")
    compare(optimal_policy(ref, scores, 1e6), ref, {}, "pi* at kl_coef = 1000000",
            formula=lambda i: f"{ref[i]:g}, ref_probs: so strong a penalty holds it there")


def check_objective(objective):
    ref, probs = torch.tensor([0.5, 0.25, 0.125, 0.125]), torch.tensor([0.125, 0.5, 0.25, 0.125])
    scores = torch.tensor([0.0, 1.0, 2.0, 4.0])
    # mean score .5 + .5 + .5; log ratios in units of ln 2: -2, 1, 1, 0, so KL = (-.25 + .5 + .25) ln 2
    compare(objective(probs, ref, scores, 2.0), 1.5 - LN2, {
        "the KL is added: it is a penalty, subtract it": 1.5 + LN2,
        "kl_coef is missing in front of the KL": 1.5 - 0.5 * LN2,
        "this KL runs the wrong way: KL(policy || reference) is the mean of log(probs / ref_probs) under the policy":
            1.5 - 1.25 * LN2,                                                       # (1 - .25 - .125) ln 2 = .625 ln 2
        "the logarithms are not weighted: each counts with the probability of its token": 1.5,
        "the scores are not weighted: take their mean under the policy": 1.75 - LN2,
        "you took absolute values: the logarithm of a word that became rarer is negative, and stays so": 1.5 - 2 * LN2,
        "this KL is in bits: take the natural logarithm, not log2": 0.5,
        "kl_div takes the mean over the words: the KL is a sum, already weighted (reduction='sum')": 1.5 - 0.25 * LN2,
        "kl_div(probs.log(), ref_probs) is KL(reference || policy), and takes the mean over the words: kl_div(ref_probs.log(), "
        "probs, reduction='sum')": 1.5 - 0.3125 * LN2,
    }, "the objective", formula="(0.5 + 0.5 + 0.5) - 2 * (-0.25 + 0.5 + 0.25) * log(2), the mean score minus kl_coef times the KL")
    never = objective(torch.tensor([0.0, 0.0, 0.0, 1.0]), ref, scores, 2.0)
    if not torch.as_tensor(never).isfinite().all():
        raise Mistake("a token with probability 0 makes the result not finite, because 0 * log 0 is nan: drop it with torch.where")
    compare(never, 4 - 6 * LN2, {}, "the objective of a policy that is sure of one token",
            formula="4 - 2 * log(1 / 0.125), its score minus kl_coef times the KL")
