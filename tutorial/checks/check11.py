"""Checks of chapter 11."""

import math

import torch

from ..check import Mistake, compare

# two queries, three answers each: means 2 and 4, of all 3; deviations sqrt 3 and sqrt 12
TOTALS = torch.tensor([4.0, 1.0, 1.0, 0.0, 6.0, 6.0])
CENTRED = torch.tensor([2.0, -1.0, -1.0, -4.0, 2.0, 2.0])
LESS_ALL = [1.0, -2.0, -2.0, -3.0, 3.0, 3.0]
ROOT = math.sqrt(3)


def _others(i):
    """The sum of the two other answers to a query, as words."""
    return "(" + " + ".join(f"{TOTALS[j]:g}" for j in range(i // 3 * 3, i // 3 * 3 + 3) if j != i) + ")"


def _interleaved(centre):
    """What `centre`, a function of groups in rows, gives where every second response is taken for a neighbour."""
    return centre(TOTALS.view(3, 2).T).T.reshape(-1)


def check_group_advantages(group_advantages):
    def got(kind, totals=TOTALS, size=3):
        return group_advantages(totals.clone(), size, kind)

    rloo = CENTRED * 1.5
    grpo = CENTRED / torch.tensor([ROOT] * 3 + [2 * ROOT] * 3)
    rows, pairs = "view(group_size, -1) makes groups of another size: a group is a row of group_size neighbours", TOTALS.view(3, 2)
    sign = "the sign is wrong: a score above the others is an advantage above 0"
    shape = "expected one number a response, (B,): put the groups in a row again"
    for kind, wanted in (("reinforce", LESS_ALL), ("rloo", rloo), ("grpo", grpo)):
        if tuple(torch.as_tensor(got(kind)).shape) in ((2, 3), (3, 2), (1, 6), (6, 1)):
            raise Mistake(shape)
    compare(got("reinforce"), LESS_ALL, {
        "reinforce compares with the whole batch, not with the query's own group": CENTRED,
        "reinforce leaves nothing out: that mean of the others is rloo's": [x * 1.2 for x in LESS_ALL],
        "reinforce does not divide by a standard deviation": torch.tensor(LESS_ALL) / TOTALS.std(),
        "the mean is not subtracted": TOTALS,
        sign: [-x for x in LESS_ALL],
    }, "reinforce", formula=lambda i: f"{TOTALS[i]:g} - 3, the score less the batch's mean")
    compare(got("rloo"), rloo, {
        "your mean for rloo includes the response itself: leave it out, or multiply by n / (n - 1)": CENTRED,
        "n / (n - 1) is upside down": CENTRED * 2 / 3,
        "the others' sum includes the response itself: take its own off": [1.0, -2.0, -2.0, -6.0, 0.0, 0.0],
        rows: (pairs - pairs.mean(1, keepdim=True)).reshape(-1) * 1.5,
        rows + ", and n - 1 of the others": (pairs - (pairs.sum(1, keepdim=True) - pairs) / 2).reshape(-1),
        "you divided the others' sum by n: there are n - 1 others": [4 - 2 / 3, 1 - 5 / 3, 1 - 5 / 3, -4.0, 4.0, 4.0],
        "rloo compares with the others of the query, not of the batch": [x * 1.2 for x in LESS_ALL],
        "rloo does not divide by the standard deviation; grpo does": grpo,
        "the groups are interleaved: neighbours belong together, view(-1, group_size)":
            _interleaved(lambda rows: (rows - rows.mean(1, keepdim=True)) * 1.5),
        sign: -rloo,
    }, "rloo", formula=lambda i: f"{TOTALS[i]:g} - {_others(i)} / 2, the score less the mean of the query's others")
    compare(got("grpo"), grpo, {
        "you divided by the deviation with n: ours has n - 1, as torch.std": CENTRED / torch.tensor([ROOT] * 3 + [2 * ROOT] * 3) * math.sqrt(1.5),
        "you divided by the variance: divide by its square root": CENTRED / torch.tensor([3.0] * 3 + [12.0] * 3),
        "grpo also divides by the group's standard deviation": CENTRED,
        "grpo's mean includes the response itself; leaving it out is rloo's": grpo * 1.5,
        "mean and deviation are those of the batch: grpo takes the query's own group": torch.tensor(LESS_ALL) / TOTALS.std(),
        "the mean is the group's, but the deviation the whole batch's": CENTRED / TOTALS.std(),
        "the deviation is the group's, but the mean the whole batch's": torch.tensor(LESS_ALL) / torch.tensor([ROOT] * 3 + [2 * ROOT] * 3),
        rows: ((pairs - pairs.mean(1, keepdim=True)) / (pairs.std(1, keepdim=True) + 1e-6)).reshape(-1),
        "the groups are interleaved: neighbours belong together, view(-1, group_size)":
            _interleaved(lambda rows: (rows - rows.mean(1, keepdim=True)) / rows.std(1, keepdim=True)),
        "the mean is not subtracted": TOTALS / torch.tensor([ROOT] * 3 + [2 * ROOT] * 3),
        sign: -grpo,
    }, "grpo", formula=lambda i: f"({TOTALS[i]:g} - {2 + i // 3 * 2}) / sqrt({3 + i // 3 * 9}), the score less its group's mean, over its deviation")
    equal = torch.as_tensor(got("grpo", torch.full((4,), 2.0), 2))
    if not equal.isfinite().all():
        raise Mistake("a group of equal scores gives nan: 0 / 0; add 1e-6 to the deviation")
    compare(equal, [0.0] * 4, {}, "grpo for equal scores", formula=lambda i: "0, the scores less their mean")


LOGPROBS = torch.tensor([[-1.0, -2.0, -5.0], [-1.0, -0.5, -2.0]])
REF = torch.tensor([[-1.5, -1.0, -9.0], [-2.0, -2.5, -1.0]])       # differences .5, -1 | 1, 2, -1
MASK = torch.tensor([[True, True, False], [True, True, True]])


def check_implicit_reward(implicit_reward):
    compare(implicit_reward(LOGPROBS.clone(), REF.clone(), MASK.clone(), 0.25), [-0.125, 0.5], {
        "the padding counts: drop what is outside the mask": [0.875, 0.5],
        "the reference is missing: it is log(policy / reference), not log(policy)": [-0.75, -0.875],
        "beta is missing": [-0.5, 2.0],
        "you divided by beta: the reward is beta times the log-ratio": [-2.0, 8.0],
        "the sign is wrong: policy minus reference": [0.125, -0.5],
        "you took the mean over the tokens: a text's log-probability is the sum": [-0.0625, 0.5 / 3],
        "you took the mean over the columns: a text's log-probability is the sum": [-0.125 / 3, 0.5 / 3],
        "you took the ratio of the probabilities: it is the logarithm of it": [0.25 * math.exp(-0.5), 0.25 * math.exp(2)],
        "you divided the log-probabilities: the logarithm of a ratio is their difference": [2 / 3, 0.675],
        "one number a token: sum over the tokens of each text": [[0.125, -0.25, 0.0], [0.25, 0.5, -0.25]],
        "one number for all: sum over the tokens of each text, dim 1": 0.375,
    }, "the implicit rewards", 1e-5, lambda i: f"0.25 * ({['0.5 - 1', '1 + 2 - 1'][i]}), beta times the sum of logprob - ref_logprob")
    holes = (torch.where(MASK, x, torch.nan) for x in (LOGPROBS, REF))
    if not torch.as_tensor(implicit_reward(*holes, MASK.clone(), 0.25)).isfinite().all():
        raise Mistake("padding may hold nan, and 0 * nan is nan: drop it with torch.where, not by multiplying with the mask")
    logprobs = LOGPROBS.clone().requires_grad_()
    if not torch.as_tensor(implicit_reward(logprobs, REF.clone(), MASK.clone(), 0.25)).requires_grad:
        raise Mistake("no gradient reaches logprobs, and DPO trains through this reward: detach nothing")


def check_dpo_loss(dpo_loss):
    # differences log 3, 0, -2 log 3: sigmoid 3/4, 1/2, 1/10
    difference = torch.tensor([math.log(3), 0.0, -2 * math.log(3)])
    chosen, rejected = torch.tensor([2.0, 1.0, 0.5]), torch.tensor([2.0, 1.0, 0.5]) - difference
    losses = torch.tensor([math.log(4 / 3), math.log(2), math.log(10)])
    turned = torch.tensor([math.log(4), math.log(2), math.log(10 / 9)])
    compare(dpo_loss(chosen.clone(), rejected.clone()), losses.mean(), {
        "chosen and rejected are exchanged: this loss teaches the worse text": turned.mean(),
        "the sign is wrong: a loss is minimised, so it is minus the log-probability of the label": -losses.mean(),
        "the logarithm is missing: it is -log sigmoid(...)": -difference.sigmoid().mean(),
        "the loss is a mean over the pairs, not a sum": losses.sum(),
        "one loss a pair: take their mean": losses,
        "the sigmoid is missing: a pair that is told apart must stop pulling": -difference.mean(),
        "the mean comes last: you took the loss of the mean difference": math.log(1 + math.exp(-difference.mean())),
        "the rejected text is missing": torch.log1p((-chosen).exp()).mean(),
    }, "the loss", 1e-5, "(log(4 / 3) + log(2) + log(10)) / 3, the mean of -log sigmoid(chosen - rejected)")
    far = dpo_loss(torch.tensor([-500.0]), torch.tensor([500.0]))
    if not torch.as_tensor(far).isfinite().all():
        raise Mistake("a difference of -1000 gives inf: sigmoid(-1000) is 0 in floats; use torch.nn.functional.logsigmoid")
    if abs(float(far) - 1000) > 1:
        raise Mistake(f"a difference of -1000 gives {float(far):.1f}, expected 1000: with an epsilon or a clamp the pairs that are most wrong "
                      "teach nothing; use torch.nn.functional.logsigmoid")
