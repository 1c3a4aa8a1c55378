"""Checks of chapter 9: the value of each loss, then its gradient. All ratios are simple fractions; the padding must not show up."""

import torch

from ..check import Mistake, compare


def _gradient(loss, x, name, what):
    """The gradient of `loss` with respect to x; a Mistake where there is none."""
    if not isinstance(loss, torch.Tensor) or not loss.requires_grad:
        raise Mistake(f"the number is right, but no gradient flows through {what}: leave out .item(), .detach() and torch.no_grad()")
    gradient = torch.autograd.grad(loss, x, retain_graph=True, allow_unused=True)[0]
    if gradient is None:
        raise Mistake(f"no gradient reaches {name}: leave out .detach()")
    return gradient


def check_policy_loss(policy_loss):
    ratio = torch.tensor([[1.5, 1.5, 0.5, 0.5], [1.0, 1.125, 0.875, 8.0]])
    advantages = torch.tensor([[2.0, -1.0, 2.0, -2.0], [3.0, -1.0, 4.0, 100.0]])
    mask = torch.tensor([[True] * 4, [True, True, True, False]])
    logprobs = torch.tensor([[-1.0, -2.0, -3.0, -0.5], [-1.5, -2.5, -1.0, -7.0]])
    new_logprobs = (logprobs + ratio.log()).requires_grad_()
    # ratio * A     3    -1.5   1    -1   |  3  -1.125  3.5                   clipped to 0.75 .. 1.25
    # clipped * A   2.5  -1.25  1.5  -1.5 |  3  -1.125  3.5
    # the smaller   2.5  -1.5   1    -1.5 |  3  -1.125  3.5   = 5.875 in all, over 7 tokens
    loss = policy_loss(new_logprobs, logprobs, advantages, mask, 0.25)

    def clipped_loss(ratio):
        smaller = torch.minimum(ratio * advantages, ratio.clamp(0.75, 1.25) * advantages)
        return float(-torch.where(mask, smaller, 0.0).sum() / 7)

    plain, log_ratio = ratio * advantages, torch.where(mask, ratio.log(), 0.0)
    new = logprobs + ratio.log()
    compare(loss, -5.875 / 7, {
        "the sign is wrong: a loss is minimised, so it is minus the objective": 5.875 / 7,
        "you took the better of the two: the objective is the smaller one (of the losses, the larger)": -7.625 / 7,
        "nothing is clipped: take the smaller of ratio * advantage and clipped ratio * advantage": -6.875 / 7,
        "the ratio is clipped on one side only: to 1 - cliprange .. 1 + cliprange": -6.375 / 7,
        "you use the clipped ratio alone: without the minimum, a token pushed the wrong way has no gradient to come back":
            -6.625 / 7,
        # 2 exp(0.25), -1.5, 1, -2 exp(-0.25) | 3, -1.125, 3.5
        "you clipped the logarithm of the ratio: clip the ratio itself": -(2 * 1.2840254 - 1.5 + 1 - 2 * 0.7788008 + 5.375) / 7,
        # 4/3, -0.75, 2.5, -4 | 3, -8/9, 4.5714: the ratios 2/3, 2/3, 2, 2, 1, 8/9, 8/7
        "the ratio is upside down: it is exp(new_logprobs - logprobs)": -(4 / 3 - 0.75 + 2.5 - 4 + 3 - 8 / 9 + 32 / 7) / 7,
        # 2 ln 1.5, -0.75, 2 ln 0.5, -1.5 | 0, -0.75, 4 ln 0.875, all logs being clipped to 0.75
        "that is the logarithm of the ratio: take exp of the difference":
            -(2 * 0.4054651 - 0.75 - 2 * 0.6931472 - 1.5 - 0.75 - 4 * 0.1335314) / 7,
        "you divided by all columns: the mean is over real tokens alone": -5.875 / 8,
        "the padding counted: drop it with torch.where before the sum": -(5.875 + 125) / 7,
        "the padding counted, in the sum and in the mean: use the mask": -(5.875 + 125) / 8,
        "that is the sum: divide by the number of real tokens": -5.875,
        "you averaged each response by itself first: every token counts the same, so sum all and divide once":
            -(0.5 / 4 + 5.375 / 3) / 2,
        "the ratio is one log-probability over the other: it is the exp of their difference": clipped_loss(new / logprobs),
        "you clipped ratio * advantage: clip the ratio, then multiply by the advantage":
            float(-torch.where(mask, torch.minimum(plain, plain.clamp(0.75, 1.25)), 0.0).sum() / 7),
        "the padding counted with a ratio of 1: its log-ratio is 0, but its advantage is not; set that to 0, too": -(5.875 + 100) / 7,
        "the padding counted with a ratio of 1, in the sum and in the mean: set its advantage to 0, too, and divide by the real tokens":
            -(5.875 + 100) / 8,
        "the ratio is that of the whole response: each token has its own": clipped_loss(log_ratio.sum(1, keepdim=True).exp().expand(2, 4)),
        "the ratio is the mean one of the whole response: each token has its own":
            clipped_loss((log_ratio.sum(1) / torch.tensor([4, 3])).exp()[:, None].expand(2, 4)),
        "you divided by the number of responses: divide by the number of real tokens": -5.875 / 2,
        "logprobs is not used: the ratio is new over old, exp(new_logprobs - logprobs)": clipped_loss(new.exp()),
        "there is no ratio: this is REINFORCE's loss, -logprob * advantage": float(-torch.where(mask, new * advantages, 0.0).sum() / 7),
    }, "the policy loss", formula="-(2.5 - 1.5 + 1 - 1.5 + 3 - 1.125 + 3.5) / 7, minus the mean of min(ratio * A, clipped ratio * A)")
    none = torch.zeros(1, 2)
    compare(policy_loss(none, none, torch.tensor([[0.0, 2.0]]), torch.ones(1, 2, dtype=torch.bool), 0.25), -1.0, {
        "a real token with advantage 0 was left out of the mean: count the mask, not what differs from 0": -2.0,
    }, "the policy loss of advantages 0 and 2, both ratios 1,", formula="-(0 + 2) / 2")
    # A token at the smaller, unclipped value: -A * ratio / 7; a clipped one: 0
    compare(_gradient(loss, new_logprobs, "new_logprobs", "the policy loss"),
            [[0, 1.5 / 7, -1 / 7, 0], [-3 / 7, 1.125 / 7, -3.5 / 7, 0]], {
        "the number is right, but the gradient inside the range is halved: let it flow through both terms, also the clipped one":
            [[0, 1.5 / 7, -1 / 7, 0], [-1.5 / 7, 0.5625 / 7, -1.75 / 7, 0]],
    }, "the number is right, but the gradient to new_logprobs", formula=lambda i, t: "0, padding" if not mask[i, t] else
            f"-({plain[i, t]:g}) / 7, -ratio * A / n" if (i, t) not in ((0, 0), (0, 3)) else "0, the clipped ratio is a constant")
    far = (new_logprobs.detach() + torch.where(mask, 0.0, 200.0)).requires_grad_()
    loss = policy_loss(far, logprobs, torch.where(mask, advantages, -100.0), mask, 0.25)
    for name, x in (("loss", loss), ("gradient", _gradient(loss, far, "new_logprobs", "the policy loss"))):
        if not x.isfinite().all():
            raise Mistake(f"rubbish in the padding made the {name} nan or infinite: set the log-ratio to 0 outside the mask before exp")


def check_value_loss(value_loss):
    values = torch.tensor([[0.5, 1.0, 2.0], [-0.5, 1.0, 9.0]])
    new_values = torch.tensor([[0.625, 2.0, 3.0], [0.25, -0.5, 40.0]], requires_grad=True)
    returns = torch.tensor([[1.5, 2.25, 3.0], [-1.0, 0.0, -7.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    # clipped to values +- 0.25     0.625     1.25    2.25   | -0.25   0.75
    # squared error                 0.765625  0.0625  0      | 1.5625  0.25
    # squared error, clipped        0.765625  1       0.5625 | 0.5625  0.5625
    # the larger                    0.765625  1       0.5625 | 1.5625  0.5625   = 4.453125 over 5 tokens, and half of it
    loss = value_loss(new_values, values, returns, mask, 0.25)
    # two tokens, values 0: new values 1 and 1, clipped to 0.25; returns -1 and 1: errors 4 and 0, clipped 1.5625 and 0.5625
    other = value_loss(torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([[-1.0, 1.0]]), torch.ones(1, 2, dtype=torch.bool), 0.25)
    of_means = isinstance(other, torch.Tensor) and other.numel() == 1 and abs(float(other) - 4 / 4) < 1e-4     # 1.140625 is right
    compare(loss, 4.453125 / 10, {
        "the half is missing: 0.5 times the mean": 4.453125 / 5,
        "you took the smaller error: take the larger, so that going beyond the range gains nothing": 1.640625 / 10,
        "clipping changes nothing here: clip new_values around the rollout's values, not the returns, and take the larger error":
            2.640625 / 10,
        ("this is the larger of two means: take the larger error token by token, then one mean" if of_means else
         "you use the clipped error alone: take the larger of the two, token by token"): 3.453125 / 10,
        # clipped to 0.625, 1.25, 2.5 | -0.625, 0.75
        "you clipped to a factor of the old value: the range is values - cliprange_value .. values + cliprange_value": 4.140625 / 10,
        # all clipped to -0.25 .. 0.25: errors 1.5625, 4, 7.5625 | 1.5625, 0.0625
        "you clipped the values around 0: clip them around the rollout's values": 14.9375 / 10,
        # the old values moved within 0.25 of the new: errors 1, 0.25, 0.0625 | 1, 0.0625
        "you clipped the old values around the new: it is the new value that may not go far": 3.125 / 10,
        "you divided by all columns: the mean is over real tokens alone": 4.453125 / 12,
        "the padding counted: drop it with torch.where before the sum": (4.453125 + 47.0**2) / 10,
        "the padding counted, in the sum and in the mean: use the mask": (4.453125 + 47.0**2) / 12,
        "that is half the sum: divide by the number of real tokens": 4.453125 / 2,
        "you averaged each response by itself first: sum all tokens and divide once": (2.328125 / 3 + 2.125 / 2) / 4,
        # the rollout's errors 1, 1.5625, 1 | 0.25, 1
        "the second error is that of the rollout's values: it is that of the new values, clipped around them": 6.125 / 10,
        "you compared with the rollout's values: the target is the return": 4.828125 / 10,
        # absolute errors, the larger: 0.875, 1, 0.75 | 1.25, 0.75
        "you took absolute errors: square them": 4.625 / 10,
        "you took absolute errors, and the half is missing: square them, 0.5 times the mean": 4.625 / 5,
        # 0.3828125, 0.5, 0.28125 | 0.75, 0.28125
        "this is the Huber loss, linear for large errors: take the square": 2.1953125 / 5,
        "this is the Huber loss, and a half too much: take the square": 2.1953125 / 10,
    }, "the value loss", formula="0.5 * (0.875**2 + 1**2 + 0.75**2 + 1.25**2 + 0.75**2) / 5, half the mean of the larger squared errors")
    # a token at its own error: (new_value - return) / 5; a clipped one: 0
    compare(_gradient(loss, new_values, "new_values", "the value loss"), [[-0.175, 0, 0], [0.25, 0, 0]], {
        "the number is right, but the gradient inside the range is halved: let it flow through both terms, also the clipped one":
            [[-0.0875, 0, 0], [0.25, 0, 0]],
    }, "the number is right, but the gradient to new_values", formula=lambda i, t: "0, the clipped value is a constant" if t and mask[i, t]
            else f"({new_values[i, t]:g} - ({returns[i, t]:g})) / 5, the error over n" if mask[i, t] else "0, padding")


def check_ppo_loss(ppo_loss):
    ratio = torch.tensor([[2.0, 1.0], [0.25, 16.0]])
    advantages = torch.tensor([[1.0, -2.0], [4.0, 100.0]])
    logprobs = torch.tensor([[-1.0, -2.0], [-0.5, -3.0]])
    new_logprobs = (logprobs + ratio.log()).requires_grad_()
    values, returns = torch.tensor([[0.0, 1.0], [2.0, 9.0]]), torch.tensor([[2.0, 4.0], [-1.0, 50.0]])
    new_values = torch.tensor([[0.5, 3.0], [2.5, -20.0]], requires_grad=True)
    mask = torch.tensor([[True, True], [True, False]])
    # policy: 1.5 (clipped), -2, 1 (not 2): -0.5 / 3       value: 2.25, 4 (clipped), 12.25: 18.5 / 6, and a quarter of it
    policy, value = -0.5 / 3, 18.5 / 6
    loss = ppo_loss(new_logprobs, new_values, logprobs, values, advantages, returns, mask, 0.5, 1.0, 0.25)
    if isinstance(loss, (tuple, list)):
        raise Mistake("expected one number: return the sum, not its parts")
    compare(loss, policy + 0.25 * value, {
        "vf_coef is missing in front of the value loss": policy + value,
        "the value loss is subtracted: both losses are minimised, add them": policy - 0.25 * value,
        "vf_coef stands in front of the policy loss: it belongs to the value loss": 0.25 * policy + value,
        "vf_coef stands in front of both: it belongs to the value loss alone": 0.25 * (policy + value),
        "the sign of the policy loss is wrong": -policy + 0.25 * value,
        "the value loss lost its half": policy + 0.5 * value,
        "the value loss is not there": policy,
        "the policy loss is not there": 0.25 * value,
        # with 1: 2, -2, 1; with 0.5: 2.25, 6.25, 12.25
        "cliprange and cliprange_value are swapped": -1 / 3 + 0.25 * 20.75 / 6,
        "the policy loss is not clipped": -1 / 3 + 0.25 * value,
        "the value loss is not clipped": policy + 0.25 * 15.5 / 6,
        "the value loss is halved twice: value_loss has its half already": policy + 0.125 * value,
        # ratios 1/2, 1, 4: 0.5, -2, 6
        "old and new are exchanged in the policy loss: new_logprobs comes first": -4.5 / 3 + 0.25 * value,
        # the old values' errors 4, 9, 9; the old, within 1 of the new, 4, 4, 9
        "old and new are exchanged in the value loss: new_values comes first": policy + 0.25 * 22 / 6,
        "old and new are exchanged in both losses: what was just computed comes first": -4.5 / 3 + 0.25 * 22 / 6,
        # 3, 4, -0.5
        "the returns stand where the advantages belong: the policy follows the advantages": -6.5 / 3 + 0.25 * value,
        # errors to 1, -2, 4: 0.25, 25, 2.25, and 16 for the second, clipped
        "the advantages stand where the returns belong: the values learn the returns": policy + 0.25 * 27.5 / 6,
        "advantages and returns are exchanged: the policy follows the advantages, the values learn the returns": -6.5 / 3 + 0.25 * 27.5 / 6,
        # 0, -1, 1: 0, -1, 0.25
        "the advantages were whitened here: they come whitened from the whole batch, leave them": 0.75 / 3 + 0.25 * value,
        "the padding counted: give the mask to both losses": policy - 800 / 3 + 0.25 * value,
    }, "the loss", formula="-(1.5 - 2 + 1) / 3 + 0.25 * 0.5 * (2.25 + 4 + 12.25) / 3, policy loss + vf_coef * value loss")
    compare(_gradient(loss, new_logprobs, "new_logprobs", "the loss"), [[0, 2 / 3], [-1 / 3, 0]], {}, "the gradient to new_logprobs",
            formula=lambda i, t: ("0, a clipped ratio is a constant", "-1 * -2 / 3, -ratio * A / n", "-0.25 * 4 / 3, -ratio * A / n", "0, padding")[2 * i + t])
    compare(_gradient(loss, new_values, "new_values", "the loss"), [[-0.125, 0], [0.875 / 3, 0]], {}, "the gradient to new_values",
            formula=lambda i, t: ("0.25 * (0.5 - 2) / 3, vf_coef * error / n", "0, a clipped value is a constant",
                                  "0.25 * (2.5 - -1) / 3, vf_coef * error / n", "0, padding")[2 * i + t])


check_ppo_loss.builds_on = ("policy_loss", "value_loss")
