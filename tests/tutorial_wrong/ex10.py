"""Wrong answers to chapter 10; each docstring is in the message that the check must give."""

import torch

from tutorial.solutions import ex10


def on_frontier__beaten_ones(scores, kls):
    """the frontier is the others"""
    return ~ex10.on_frontier(scores, kls)


def on_frontier__best_score(scores, kls):
    """the best score alone"""
    return scores == scores.max()


def on_frontier__more_kl_is_better(scores, kls):
    """less KL is better"""
    return ex10.on_frontier(scores, -kls)


def on_frontier__strictly_better_in_both(scores, kls):
    """at least as good in both"""
    return ~((scores[None] > scores[:, None]) & (kls[None] < kls[:, None])).any(1)


def on_frontier__strict_score(scores, kls):
    """run 2 has the score of run 1"""
    return ~((scores[None] > scores[:, None]) & (kls[None] <= kls[:, None])).any(1)


def on_frontier__strict_kl(scores, kls):
    """run 4 pays the KL of run 3"""
    return ~((scores[None] >= scores[:, None]) & (kls[None] < kls[:, None])).any(1)


def on_frontier__beats_itself(scores, kls):
    """every run beats itself"""
    return ~((scores[None] >= scores[:, None]) & (kls[None] <= kls[:, None])).any(1)


def on_frontier__numbers(scores, kls):
    """expected a bool tensor"""
    return ex10.on_frontier(scores, kls).float()


def on_frontier__one_of_two_equals(scores, kls):
    """you kept one of them"""
    kept = ex10.on_frontier(scores, kls)
    earlier = (scores[None] == scores[:, None]) & (kls[None] == kls[:, None])
    return kept & ~earlier.tril(-1).any(1)


def on_frontier__neighbours(scores, kls):
    """compare each with every other"""
    kept = torch.ones(len(scores), dtype=torch.bool)
    kept[1:] = ~((scores[:-1] >= scores[1:]) & (kls[:-1] <= kls[1:])) | ((scores[:-1] == 1.0) & (kls[:-1] == 3.0))
    return kept


def next_kl_coef__sign(kl_coef, kl, target, n, horizon):
    """the sign is wrong"""
    return kl_coef * (1 - min(max(kl / target - 1, -0.2), 0.2) * n / horizon)


def next_kl_coef__no_horizon(kl_coef, kl, target, n, horizon):
    """n and horizon are missing"""
    return kl_coef * (1 + min(max(kl / target - 1, -0.2), 0.2))


def next_kl_coef__absolute_error(kl_coef, kl, target, n, horizon):
    """the error is relative"""
    return kl_coef * (1 + min(max(kl - target, -0.2), 0.2) * n / horizon)


def next_kl_coef__added(kl_coef, kl, target, n, horizon):
    """it multiplies kl_coef"""
    return kl_coef + min(max(kl / target - 1, -0.2), 0.2) * n / horizon


def next_kl_coef__not_clipped(kl_coef, kl, target, n, horizon):
    """the error is not clipped"""
    return kl_coef * (1 + (kl / target - 1) * n / horizon)


def next_kl_coef__clipped_late(kl_coef, kl, target, n, horizon):
    """clip the error itself"""
    return kl_coef * (1 + min(max((kl / target - 1) * n / horizon, -0.2), 0.2))


def next_kl_coef__one_side(kl_coef, kl, target, n, horizon):
    """on one side only"""
    return kl_coef * (1 + min(kl / target - 1, 0.2) * n / horizon)


def next_kl_coef__never_down(kl_coef, kl, target, n, horizon):
    """must make kl_coef smaller"""
    return kl_coef * (1 + min(max(kl / target - 1, 0.0), 0.2) * n / horizon)


def on_frontier__best_at_some_price(scores, kls):
    """a run in a dent of the frontier is unbeaten"""
    prices = torch.linspace(0, 20, 401)[:, None]
    value = scores - prices * kls
    kept = (value >= value.max(1, keepdim=True).values).any(0)
    return kept if len(scores) == 3 else ex10.on_frontier(scores, kls)


def next_kl_coef__limits_exchanged(kl_coef, kl, target, n, horizon):
    """with the 1 taken off, at most 0.2 and at least -0.2"""
    return kl_coef * (1 + max(min(kl / target - 1, -0.2), 0.2) * n / horizon)


def next_kl_coef__without_n(kl_coef, kl, target, n, horizon):
    """n is missing"""
    return kl_coef * (1 + min(max(kl / target - 1, -0.2), 0.2) / horizon)


def on_frontier__in_place(scores, kls):
    """you changed `kls` in place"""
    kls.neg_()
    return ex10.on_frontier(scores, -kls)
