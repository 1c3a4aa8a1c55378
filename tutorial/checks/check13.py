"""Checks of chapter 13. The right numbers are minippo's own, from ragged batches and random weights; the wrong ones are those of
the usual mistakes, made on purpose. The answers to "find the bug" stand at the end: do not scroll down before you have yours.
"""

import copy
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from minippo import GPT2Config, GPT2WithValueHead, PPOConfig, PPOTrainer, ppo
from minippo.policy import response_logprobs

from ..check import Mistake, compare
from ..solutions import ex13 as ours

BUGS_FOLDER = Path(__file__).resolve().parents[1] / "bugs"


# --- models and ragged batches ----------------------------------------------------------------------------------------

def _model(seed: int = 0, vocab_size: int = 13, n_embd: int = 16) -> GPT2WithValueHead:
    """A random policy with a head that says something and distributions far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    model = GPT2WithValueHead(GPT2Config(vocab_size, 24, n_embd, 1, 2), generator=generator)
    with torch.no_grad():
        for parameter in model.transformer.parameters():
            parameter.mul_(4.0 if parameter.dim() > 1 else 1.0)
        model.v_head.weight.normal_(0, 0.5, generator=generator)
    return model


def _ragged(lengths, seed: int, vocab_size: int = 13) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, vocab_size, (n,), generator=generator) for n in lengths]


def _several(got, n: int, names: str):
    if got is None:
        raise Mistake("the result is None: is the return statement missing?")
    if not isinstance(got, (tuple, list)) or len(got) != n:
        raise Mistake(f"expected {n} results: return {names}")
    return got


def _padding_is_0(got, mask, what: str) -> None:
    if isinstance(got, Tensor) and got.shape == mask.shape and bool((got.detach()[~mask] != 0).any()):
        raise Mistake(f"the padding of {what} is not 0: set it with torch.where(mask, x, 0.0)")


# --- evaluate ---------------------------------------------------------------------------------------------------------

def check_evaluate(evaluate):
    model, queries, responses = _model(), _ragged([2, 4, 1], 1), _ragged([3, 1, 2], 2)
    logprobs, values, mask = (x.detach() for x in response_logprobs(model, queries, responses))
    tokens = torch.nn.utils.rnn.pad_sequence([torch.cat(pair) for pair in zip(queries, responses)], batch_first=True)

    def read(shift=0, starts=(2, 4, 1), tokens=tokens, of=lambda logits: logits.log_softmax(-1)):
        """Log-probabilities and values read `shift` positions late, and with other lengths of the queries."""
        columns = torch.tensor(starts)[:, None] - 1 + torch.arange(3)
        position, row = (columns + shift).clamp(0, tokens.shape[1] - 1), torch.arange(3)[:, None]
        token = tokens[row, (columns + 1).clamp(max=tokens.shape[1] - 1)]
        with torch.no_grad():
            logits, said = model(tokens)
        return [torch.where(mask, x, 0.0) for x in (of(logits)[row, position, token], said[row, position])]

    left = torch.stack([torch.cat([torch.zeros(5 - len(q) - len(r), dtype=torch.long), q, r]) for q, r in zip(queries, responses)])
    pushed = read(starts=[5 - len(response) for response in responses], tokens=left)
    late, early, longest = read(1), read(-1), read(starts=(4, 4, 4))
    got = _several(evaluate(model, queries, responses), 3, "logprobs, values, mask")
    compare(got[2], mask.int(), {"the mask is upside down: True is a real token": (~mask).int()}, "the mask",
            formula=lambda i, t: f"whether row {i} has a response token {t}")
    for x, what in zip(got, ("logprobs", "values")):
        _padding_is_0(x, mask, what)
    compare(got[0], logprobs, {
        "token t is read at its own position, where the model speaks of the next one: read it one earlier, at len(query) - 1 + t": late[0],
        "you read one position too early: it is len(query) - 1 + t": early[0],
        "these are logits: take log_softmax first": read(of=lambda logits: logits)[0],
        "these are probabilities: log_softmax, not softmax": read(of=lambda logits: logits.softmax(-1))[0],
        "all rows are read as if their queries had the same length: each row has its own len(query)": longest[0],
        "you padded on the left, so that every position is shifted: pad on the right": pushed[0],
        "the two first results are exchanged: return logprobs, values, mask": values,
    }, "logprobs", formula=lambda i, t: f"the log-softmax at position {len(queries[i]) - 1 + t}" if mask[i, t] else "0, padding")
    compare(got[1], values, {
        "the values are read one position late, where the token is known already: read them where the log-probabilities are": late[1],
        "the values are read one position early": early[1],
        "the values of all rows are read as if their queries had the same length": longest[1],
    }, "values", formula=lambda i, t: f"the value at position {len(queries[i]) - 1 + t}" if mask[i, t] else "0, padding")
    for x, what in zip(got, ("logprobs", "values")):
        if not x.requires_grad:
            raise Mistake(f"no gradient flows through {what}, and the update needs it: no_grad belongs into rollout, not here")


# --- minibatches ------------------------------------------------------------------------------------------------------

def check_minibatches(minibatches):
    config, generator = PPOConfig(mini_batch_size=2, gradient_accumulation_steps=3), torch.Generator().manual_seed(3)

    def cut(order, small=2, large=6):
        return [[order[j:min(j + small, i + large)] for j in range(i, min(i + large, len(order)), small)]
                for i in range(0, len(order), large)]

    def as_lists(x):
        return x.tolist() if isinstance(x, Tensor) else [as_lists(y) for y in x] if isinstance(x, (list, tuple)) else int(x)

    def flatten(x):
        return [row for y in x for row in flatten(y)] if isinstance(x, list) else [x]

    state = generator.get_state()
    first, second = (torch.randperm(9, generator=generator).tolist() for _ in range(2))
    generator.set_state(state)
    got = [minibatches(9, config, generator) for _ in range(2)]
    if got[0] is None:
        raise Mistake("the result is None: is the return statement missing?")
    try:
        got = [as_lists(epoch) for epoch in got]
    except (TypeError, ValueError) as error:
        raise Mistake("expected a list of minibatches, each a list of micro-batches, each a list of row numbers") from error
    if got == [cut(first), cut(second)]:
        return
    flat = [flatten(epoch) for epoch in got]
    if got[0] == cut(first) and got[1] == got[0]:
        raise Mistake("the second epoch has the order of the first: draw anew in each call, and do not seed in here")
    if flat[0] == list(range(9)):
        raise Mistake("the rows are not shuffled: the order is torch.randperm(n, generator=generator)")
    if len(flat[0]) < 9:
        raise Mistake(f"{9 - len(flat[0])} of 9 rows are missing: the last minibatch and the last micro-batch may be smaller")
    if sorted(flat[0]) != list(range(9)):
        raise Mistake("some rows come twice and others not at all: an epoch sees each row once")
    if flat[0] != first:
        raise Mistake("the rows have another order than torch.randperm(n, generator=generator): use the generator given, once")
    small = [rows for minibatch in cut(first) for rows in minibatch]
    for message, wrong in {
        "these are micro-batches without minibatches around them: a list of lists of lists": small,
        "these are minibatches that are not cut into micro-batches: a list of lists of lists": [flatten(part) for part in cut(first)],
        "each minibatch is one micro-batch: cut it into pieces of mini_batch_size": cut(first, 6),
        "a minibatch has mini_batch_size * gradient_accumulation_steps rows: yours have mini_batch_size": cut(first, 2, 2),
        "mini_batch_size is the size of a micro-batch: you cut with gradient_accumulation_steps": cut(first, 3),
    }.items():
        if got[0] == wrong:
            raise Mistake(message)
    raise Mistake(f"of the order {first}, in micro-batches of 2 and minibatches of 3 of them, you made {got[0]}, expected {cut(first)}")


# --- rollout ----------------------------------------------------------------------------------------------------------

def check_rollout(rollout):
    model, reference = _model(0), _model(5)
    queries, responses, micro_batches = _ragged([2, 4, 1, 3, 2], 1), _ragged([3, 1, 2, 4, 2], 2), [[2, 0], [4, 1], [3]]
    with torch.no_grad():
        logprobs, values, mask = response_logprobs(model, queries, responses)
        ref_logprobs, ref_values, _ = response_logprobs(reference, queries, responses)
    got = _several(rollout(model, reference, queries, responses, micro_batches), 4, "logprobs, ref_logprobs, values, mask")
    order = [row for rows in micro_batches for row in rows]
    places = "the rows stand in the order of the micro-batches: row i of the result belongs to response i"
    lost = "only the last micro-batch is there: fill its rows into one tensor, logprobs[rows, :width] = ..."
    last = torch.tensor([[False], [False], [False], [True], [False]])

    def row(i, t):
        return f"what evaluate says of response {i}, token {t}" if mask[i, t] else "0, padding"
    compare(got[3], mask.int(), {places: mask[order].int(), lost: (mask & last).int()}, "the mask", formula=row)
    compare(got[0], logprobs, {places: logprobs[order], lost: torch.where(last, logprobs, 0.0),
                               "policy and reference are exchanged: logprobs come first": ref_logprobs}, "logprobs", formula=row)
    compare(got[1], ref_logprobs, {
        "ref_logprobs are the policy's: evaluate ref_model, too": logprobs, places: ref_logprobs[order],
        "the results are in another order: logprobs, ref_logprobs, values, mask": values}, "ref_logprobs", formula=row)
    compare(got[2], values, {"these are the reference's values: the critic is the policy's value head": ref_values,
                             places: values[order]}, "values", formula=row)
    if any(isinstance(x, Tensor) and x.requires_grad for x in got):
        raise Mistake("the rollout keeps its graph: put it under torch.no_grad(), or the old log-probabilities are trained as well")


check_rollout.builds_on = ("evaluate",)


# --- credit -----------------------------------------------------------------------------------------------------------

def _credit(scores, logprobs, ref_logprobs, values, mask, kl_coef, gamma, lam, mistake=""):
    """credit(), with a mistake in it."""
    rewards = -kl_coef * (logprobs - ref_logprobs) * (-1 if mistake == "sign" else 0 if mistake == "no kl" else 1)
    last = torch.full((len(scores),), mask.shape[1] - 1) if mistake == "last column" else mask.sum(1) - 1
    if mistake == "everywhere":
        rewards = rewards + torch.where(mask, scores[:, None], 0.0)
    else:
        rewards[torch.arange(len(scores)), last] += scores
    if mistake == "last column":
        rewards = torch.where(mask, rewards, 0.0)
    advantages, returns = ppo.compute_advantages(values, rewards, mask, 1.0 if mistake == "gamma" else gamma,
                                                 {"lam": 1.0, "td": 0.0}.get(mistake, lam))
    if mistake == "all columns":
        white = torch.where(mask, (advantages - advantages.mean()) / advantages.std(), 0.0)
    elif mistake == "rows":
        white = torch.stack([ppo.masked_whiten(a[None], m[None])[0] for a, m in zip(advantages, mask)])
    else:
        white = advantages if mistake == "plain" else ppo.masked_whiten(advantages, mask)
        n = int(mask.sum())
        white = white * (n / (n - 1))**0.5 if mistake == "population" else white
    return white, white + values if mistake == "early" else advantages if mistake == "returns" else returns


def check_credit(credit):
    mask = torch.tensor([[True, True, True], [True, True, False]])
    # with kl_coef 1/2 the penalties are -.25 .25 -.5 | -.5 -.25, the rewards -.25 .25 1.5 | -.5 .75
    # the surprises, gamma = 1/2: -.25 + .125 - .5, .25 + .5 - .25, 1.5 - 1 | -.5 + .25 - 1, .75 - .5 = -.625 .5 .5 | -1.25 .25
    # lam = 1/2 carries 1/4: -.46875 .625 .5 | -1.1875 .25, of mean -.05625 and standard deviation .761116
    advantages = torch.tensor([[-0.46875, 0.625, 0.5], [-1.1875, 0.25, 0.0]])
    logprobs = torch.tensor([[-1.0, -2.0, -0.5], [-1.0, -0.5, 0.0]])
    ref_logprobs = logprobs - torch.tensor([[0.5, -0.5, 1.0], [1.0, 0.5, 0.0]])
    given = (torch.tensor([2.0, 1.0]), logprobs, ref_logprobs, torch.tensor([[0.5, 0.25, 1.0], [1.0, 0.5, 0.0]]), mask, 0.5)
    wanted = torch.where(mask, (advantages + 0.05625) / 0.7611155, 0.0), [[0.03125, 0.875, 1.5], [-0.1875, 0.75, 0.0]]
    wrong = {name: _credit(*(x.clone() if isinstance(x, Tensor) else x for x in given), 0.5, 0.5, name) for name in
             ("sign", "no kl", "last column", "everywhere", "gamma", "lam", "td", "all columns", "rows", "plain", "population", "early", "returns")}
    got = _several(credit(*given, PPOConfig(gamma=0.5, lam=0.5)), 2, "advantages, returns")
    shared = {
        "the sign of the KL is wrong: drifting away costs, -kl_coef * (logprobs - ref_logprobs)": "sign",
        "the KL penalty is missing": "no kl",
        "the score stands in the last column, which is padding in the shorter row: it belongs to the last real token": "last column",
        "the score is paid at every token: it belongs to the last real one alone": "everywhere",
        "gamma is not used: config.gamma": "gamma",
        "lam is not used: config.gamma * config.lam carries the next advantage": "lam",
        "these are the surprises alone: add gamma * lam times the next advantage": "td",
    }
    compare(got[0], wanted[0], {message: wrong[name][0] for message, name in shared.items()} | {
        "the padding counted in the whitening: mean and variance are over the mask": wrong["all columns"][0],
        "each row is whitened by itself: it is one mean and one variance for the whole batch": wrong["rows"][0],
        "the advantages are not whitened": wrong["plain"][0],
        "the variance is divided by n: divide the sum of squares by n - 1, as torch's var() does": wrong["population"][0],
        "the two results are exchanged: return advantages, returns": wanted[1],
    }, "the advantages", formula=lambda i, t: f"({advantages[i, t]:g} + 0.05625) / 0.761116, whitened" if mask[i, t] else "0, padding")
    compare(got[1], wanted[1], {
        "the returns are made of whitened advantages: add the values first": wrong["early"][1],
        "the returns are the advantages: add the values": wrong["returns"][1],
    }, "the returns", formula=lambda i, t: f"{advantages[i, t]:g} + {given[3][i, t]:g}, advantage + value" if mask[i, t] else "0, padding")


# --- update -----------------------------------------------------------------------------------------------------------

class _Recorder(torch.optim.SGD):
    """An optimizer that writes gradients down and moves nothing, so that each minibatch can be looked at by itself."""

    def __init__(self, model):
        super().__init__(model.parameters(), lr=0.0)
        self.gradients = []

    def step(self, closure=None):
        parameters = self.param_groups[0]["params"]
        self.gradients.append(torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]))


def _update(model, queries, responses, old, epochs, config, mistake=""):
    """The gradients at each optimizer step, and both losses of each minibatch, with a mistake in them."""
    optimizer, losses = _Recorder(model), []
    model.zero_grad()
    for minibatch in (minibatch for epoch in epochs for minibatch in epoch):
        total = torch.zeros(2)
        n_tokens, n_rows = sum(len(responses[row]) for rows in minibatch for row in rows), sum(map(len, minibatch))
        if mistake != "never cleared":
            model.zero_grad()
        for rows in minibatch:
            new_logprobs, new_values, mask = response_logprobs(model, [queries[i] for i in rows], [responses[i] for i in rows])
            index = list(range(len(rows))) if mistake == "first rows" else rows
            logprobs, values, A, G = (x[index, :mask.shape[1]] for x in old)
            if mistake in ("old logprobs", "recomputed"):
                logprobs = new_logprobs.detach()
            if mistake == "recomputed":
                values = new_values.detach()
            if mistake == "upside down":
                logprobs, new_logprobs = new_logprobs, logprobs
            if mistake == "white micro":
                A = ppo.masked_whiten(A, mask)
            if mistake == "white mini":
                whole = [row for rows in minibatch for row in rows]
                real = torch.arange(old[2].shape[1]) < torch.tensor([[len(responses[row])] for row in whole])
                A = ppo.masked_whiten(old[2][whole], real)[[whole.index(row) for row in rows], :mask.shape[1]]
            if mistake == "exchanged":
                A, G = G, A
            near = 1e9 if mistake in ("no clip", "no policy clip") else config.cliprange
            near_values = 1e9 if mistake in ("no clip", "no value clip") else config.cliprange_value
            count = {"own mean": mask.sum(), "mean of means": mask.sum() * len(minibatch), "sum": 1,
                     "columns": mask.numel(), "rows": n_rows}.get(mistake, n_tokens)
            policy, value = _parts(new_logprobs, new_values, logprobs, values, A, G, mask, near, near_values, count)
            if mistake == "better":
                ratio = torch.where(mask, new_logprobs - logprobs, 0.0).exp()
                policy = -torch.where(mask, torch.maximum(ratio * A, ratio.clamp(1 - near, 1 + near) * A), 0.0).sum() / count
            vf_coef = {"no vf_coef": 1.0, "no value": 0.0, "twice": 2 * config.vf_coef}.get(mistake, config.vf_coef)
            if mistake == "last micro":
                model.zero_grad()
            ((-policy if mistake == "sign" else policy) + vf_coef * value).backward()
            total += torch.stack([policy, value]).detach()
        optimizer.step()
        losses.append(total)
    return optimizer.gradients, torch.stack(losses)


def _parts(*given):
    """Policy loss and value loss with their gradients, out of ppo_loss, which adds them up."""
    *tensors, near, near_values, count = given
    policy, _ = ppo.ppo_loss(*tensors, near, near_values, 0.0, n_tokens=count)
    both, _ = ppo.ppo_loss(*tensors, near, near_values, 1.0, n_tokens=count)
    return policy, both - policy


UPDATE_MISTAKES = {
    "each micro-batch is divided by its own tokens, and their gradients add up to too much: divide by the tokens of the whole minibatch":
        "own mean",
    "that is the mean of the micro-batches' means, in which a token of a short micro-batch counts more: divide each micro-batch's sum "
    "by the tokens of the whole minibatch": "mean of means",
    "the sum is not divided: divide by the tokens of the minibatch": "sum",
    "you divided by all columns: the mean is over real tokens": "columns",
    "you divided by the number of responses: every token counts the same, divide by the tokens": "rows",
    "only the last micro-batch is left in the gradient: zero_grad belongs before the first one of a minibatch": "last micro",
    "the gradient of the minibatch before is still in it: optimizer.zero_grad() before each minibatch": "never cleared",
    "the old log-probabilities and values were computed again: they are those of the rollout, or no ratio ever leaves 1": "recomputed",
    "the old log-probabilities were computed again: they are those of the rollout, or no ratio ever leaves 1": "old logprobs",
    "nothing is clipped, neither ratios nor values": "no clip",
    "the ratios are not clipped: the smaller of ratio * A and clipped ratio * A": "no policy clip",
    "the values are not clipped, or not around those of the rollout": "no value clip",
    "you took the better of the two: the objective is the smaller one": "better",
    "the ratio is upside down: it is exp(new - old)": "upside down",
    "the sign is wrong: a loss is minus the objective": "sign",
    "vf_coef is missing": "no vf_coef",
    "the value loss is missing": "no value",
    "the half of the value loss is missing": "twice",
    "advantages and returns are exchanged": "exchanged",
    "the advantages are whitened again in each minibatch: credit() has done it once, for the whole batch": "white mini",
    "the advantages are whitened again in each micro-batch: credit() has done it once, for the whole batch": "white micro",
    "the rollout's first rows are used in every micro-batch: take x[rows]": "first rows",
}


def _update_case():
    """Arguments of an update: tokens that have drifted from the rollout, two epochs of two minibatches of two micro-batches."""
    model, queries, responses = _model(), _ragged([2, 4, 1, 3, 2, 1], 1), _ragged([3, 1, 2, 5, 2, 4], 2)
    epochs = [[[[0, 1], [2]], [[3, 4], [5]]], [[[5, 0], [2]], [[1, 4], [3]]]]
    with torch.no_grad():
        logprobs, values, mask = response_logprobs(model, queries, responses)
    generator = torch.Generator().manual_seed(4)
    drift, gap, A, G = (torch.where(mask, torch.randn(mask.shape, generator=generator), 0.0) for _ in range(4))
    return model, queries, responses, (logprobs - 0.3 * drift, values + 0.3 * gap, A, G), epochs, mask, (0.3 * drift).exp()


UPDATE_CONFIG = PPOConfig(cliprange=0.25, cliprange_value=0.125, vf_coef=0.25)


@cache
def _updated(mistake: str = ""):
    return _update(*_update_case()[:5], UPDATE_CONFIG, mistake)


def check_update(update):
    model, queries, responses, old, epochs, mask, ratios = _update_case()
    config = UPDATE_CONFIG
    recorder = _Recorder(model)
    stats = update(model, recorder, queries, responses, *old, epochs, config)
    n, steps = len(recorder.gradients), 4
    per_micro = sum(len(minibatch) for epoch in epochs for minibatch in epoch)
    if n != steps:
        raise Mistake({0: "the optimizer never steps: optimizer.step() after each minibatch",
                       per_micro: "the optimizer steps after every micro-batch: once a minibatch, when the gradients of all are added up",
                       2: "the optimizer steps once an epoch: once a minibatch"}.get(
                           n, f"the optimizer took {n} steps, expected {steps}: two epochs of two minibatches"))

    def fits(wanted):
        return all(torch.allclose(x, y, rtol=1e-3, atol=1e-5 * float(y.norm())) for x, y in zip(recorder.gradients, wanted))
    wanted, losses = _updated()
    if not fits(wanted):
        for message, mistake in UPDATE_MISTAKES.items():
            if fits(_updated(mistake)[0]):
                raise Mistake(message)
        i = next(i for i in range(steps) if not fits(wanted[:i + 1]))
        got, right = recorder.gradients[i], wanted[i]
        cosine, length = float(torch.cosine_similarity(got, right, dim=0)), float(got.norm() / right.norm())
        ask = ""
        if cosine > 0.98 and abs(length - 1) < 0.1:
            ask = (": nearly right, so look at the clipping. Ratios stay within cliprange of 1, new values within cliprange_value of the rollout's, "
                   "not the other way round; of the two policy objectives the smaller counts, of the two value losses the larger")
        elif cosine > 0.999:
            ask = ": the direction is right, what did you divide by?"
        raise Mistake(f"the gradient of minibatch {i + 1} is {length:.2f} times as long as that of its mean loss, and the cosine between "
                      f"the two is {cosine:.2f}{ask}")
    if not isinstance(stats, dict):
        raise Mistake("the gradients are right; expected a dict with ppo/loss/policy, ppo/loss/value and ppo/policy/ratio as the result")
    for i, key in enumerate(("ppo/loss/policy", "ppo/loss/value")):
        if key not in stats:
            raise Mistake(f"the gradients are right; {key} is missing in the result")
        compare(stats[key], losses[:, i].mean(), {
            "the gradients are right; the losses are those of the last minibatch alone: return the mean over all": losses[-1, i],
            "the gradients are right; the losses are those of the last epoch alone: return the mean over all epochs": losses[2:, i].mean(),
            "the gradients are right; the losses are sums over all minibatches: return the mean": losses[:, i].sum(),
            "the gradients are right; the losses are divided by all micro-batches: divide by the number of minibatches":
                losses[:, i].sum() / per_micro,
            "the gradients are right; the value loss is multiplied by vf_coef: return it without": config.vf_coef * losses[:, i].mean(),
        }, f"the gradients are right; {key}")
    order = [rows for epoch in epochs for minibatch in epoch for rows in minibatch]
    real = torch.cat([ratios[rows][mask[rows]] for rows in order])
    compare(stats.get("ppo/policy/ratio"), real, {
        "the ratios are logarithms: take exp": real.log(),
        "the ratios hold the padding: ratio[mask]": torch.cat([ratios[rows, :int(mask[rows].sum(1).max())].flatten() for rows in order]),
        "only the ratios of the last epoch are there: those of all epochs": torch.cat([ratios[rows][mask[rows]] for rows in order[per_micro // 2:]]),
        "only the ratios of the last micro-batch are there: those of every one": ratios[order[-1]][mask[order[-1]]],
    }, "the gradients are right; ppo/policy/ratio", formula=lambda i: f"new over old probability of real token {i}, in the order of the micro-batches")


check_update.builds_on = ("evaluate",)


# --- step -------------------------------------------------------------------------------------------------------------

def _step(model, ref_model, optimizer, queries, responses, scores, kl_coef, config, generator, mistake=""):
    """step(), with a mistake in it."""
    draws = 1 if mistake in ("one epoch", "shuffled once") else config.ppo_epochs
    epochs = [ours.minibatches(len(queries), config, generator) for _ in range(draws)]
    epochs = epochs * config.ppo_epochs if mistake == "shuffled once" else epochs
    rows = [rows for minibatch in epochs[0] for rows in minibatch]
    logprobs, ref_logprobs, values, mask = ours.rollout(model, ref_model, queries, responses, rows)
    kl = (logprobs - ref_logprobs).sum(1).mean().item()
    measured = (logprobs - ref_logprobs).sum().item() / int(mask.sum()) if mistake in ("per token", "per token inside") else kl
    before = kl_coef
    error = measured / config.target - 1
    error = error if mistake == "not limited" else min(max(error, -0.2), 0.2)
    part = (config.mini_batch_size if mistake == "small B" else len(queries)) / config.horizon
    part = 1 if mistake == "no horizon" else part if mistake == "no min" else min(part, 1)
    moved = kl_coef * (1 + error * part * (-1 if mistake == "downhill" else 1))
    advantages, returns = ours.credit(scores, logprobs, ref_logprobs, values, mask, moved if mistake == "early" else kl_coef, config)
    stats = ours.update(model, optimizer, queries, responses, logprobs, values, advantages, returns, epochs, config)
    if mistake == "kl afterwards":
        kl = (ours.rollout(model, ref_model, queries, responses, rows)[0] - ref_logprobs).sum(1).mean().item()
        moved = before * (1 + min(max(kl / config.target - 1, -0.2), 0.2) * part)
    stats |= {"ppo/mean_scores": scores.mean().item(), "objective/kl": measured if mistake == "per token" else kl,
              "objective/kl_coef": moved if mistake in ("early", "next in stats") else before}
    return stats, moved if config.adap_kl_ctrl or mistake == "always" else before


KEYS = ("ppo/mean_scores", "objective/kl", "ppo/loss/policy", "ppo/loss/value", "objective/kl_coef")
STEP_MISTAKES = {
    "all epochs have one order: draw a new one for each of config.ppo_epochs": "shuffled once",
    "the batch is used once: it is used config.ppo_epochs times": "one epoch",
    "the controller moved before the rewards were made: this step still pays the kl_coef that came in": "early",
    "the controller was given the KL per token: target is in nats per response": "per token",
    "the controller was given the KL per token, though objective/kl is right: target, too, is in nats per response": "per token inside",
    "the KL was measured after the update, with the new weights: it is that of the rollout": "kl afterwards",
    "the controller's error is not limited to 20 % on either side": "not limited",
    "the controller moves by the whole error: B / horizon of it a step": "no horizon",
    "the controller was given mini_batch_size for B: B is the number of all responses of the step": "small B",
    "B / horizon is limited to 1: a batch longer than the horizon moves kl_coef by the whole error, not by more": "no min",
    "the controller moves the wrong way: a KL above the target makes kl_coef larger": "downhill",
    "objective/kl_coef is the next one: report the one that this step used": "next in stats",
}


def _steps(step, config, n=2, apart=0.0) -> tuple[Tensor, list[dict], list[tuple[list, bool]]]:
    """n steps on fixed responses, from a reference that is `apart` from the model.

    Returns:
        a row of KEYS and the next kl_coef for each step; the statistics; each forward pass of the model in the first step: the rows
        that it sees, sorted, and whether for a gradient.
    """
    model, queries = _model(n_embd=32), _ragged([1 + i % 4 for i in range(24)], 1)
    start, reference = (copy.deepcopy(model).eval().requires_grad_(False) for _ in range(2))
    noise = torch.Generator().manual_seed(5)
    for parameter in reference.transformer.parameters():
        parameter += apart * torch.randn(parameter.shape, generator=noise)
    optimizer, generator, kl_coef = torch.optim.Adam(model.parameters(), lr=3e-3, eps=1e-4), torch.Generator().manual_seed(7), 0.25
    table, all_stats, passes = [], [], []

    def look(module, given):
        if given:
            passes.append((sorted(given[0].tolist()), torch.is_grad_enabled()))
    hook = model.register_forward_pre_hook(look)
    for i in range(n):
        responses = start.generate(queries, max_new_tokens=7, eos_token_id=0, seed=i)
        scores = torch.tensor([float((response == 4).sum()) - 0.1 * len(response) for response in responses])
        got = _several(step(model, reference, optimizer, queries, responses, scores, kl_coef, config, generator), 2, "stats, kl_coef")
        hook.remove()
        stats, kl_coef = got
        missing = [key for key in (*KEYS, "ppo/policy/ratio") if not isinstance(stats, dict) or key not in stats]
        if missing:
            raise Mistake(f"{missing[0]} is missing in the statistics")
        table.append([float(stats[key]) for key in KEYS] + [float(kl_coef)])
        all_stats.append(stats)
    return torch.tensor(table), all_stats, passes


def _as_trainer(model, reference, optimizer, queries, responses, scores, kl_coef, config, generator):
    """The same step by PPOTrainer."""
    trainer = PPOTrainer(config, model, reference, optimizer=optimizer)
    trainer.generator.set_state(generator.get_state())
    trainer.kl_controller.value = kl_coef
    stats = trainer.step(queries, responses, scores)
    generator.set_state(trainer.generator.get_state())
    return stats, trainer.kl_controller.value


STEP_CONFIG = PPOConfig(mini_batch_size=4, gradient_accumulation_steps=2, ppo_epochs=3, adap_kl_ctrl=True, target=0.25, horizon=96)
APART = 0.05                    # of a reference so far from the model that the first KL, 0.57, is about the target: no error is clipped
NEAR_CONFIG = PPOConfig(mini_batch_size=4, gradient_accumulation_steps=2, ppo_epochs=1, adap_kl_ctrl=True, target=0.5, horizon=96)
SHORT_CONFIG = PPOConfig(mini_batch_size=4, gradient_accumulation_steps=2, ppo_epochs=1, adap_kl_ctrl=True, target=0.5, horizon=12)
ROWS = ("step 1", "step 2", "a step from another reference", "a step of more responses than the horizon")


@cache
def _stepped(mistake: str = "") -> Tensor:
    """The right table of ROWS, by PPOTrainer, or that of a mistake."""
    def step(*given):
        return _step(*given, mistake=mistake) if mistake else _as_trainer(*given)
    return torch.cat([_steps(step, STEP_CONFIG)[0]] + [_steps(step, config, 1, APART)[0] for config in (NEAR_CONFIG, SHORT_CONFIG)])


def _same_batches(passes: list[tuple[list, bool]], config) -> None:
    """Mistake unless the rollout ran in the batches of the update's first epoch; recorded, as rounding may hide it."""
    old, new = ([rows for rows, grad in passes if grad == wanted] for wanted in (False, True))
    if new and not old:                                         # a rollout that detaches afterwards: its passes come first
        n = config.ppo_epochs * -(-24 // config.mini_batch_size)
        old, new = new[:-n], new[-n:]
    first = new[:len(new) // config.ppo_epochs]
    if any(rows not in first for rows in old):
        sizes = [sorted({len(rows) for rows in batches}) for batches in (old, first)]
        how = (f"{sizes[0][-1]} rows at once, the update {sizes[1][-1]}" if sizes[0] != sizes[1] else "other rows together than the first epoch")
        raise Mistake(f"the numbers are right, but the rollout saw {how}, and on another machine the first ratios may not be exactly 1. Let it "
                      "run in the micro-batches of the first epoch, epochs[0]: the same rows in the same shapes give the same bits")


def check_step(step):
    config = STEP_CONFIG
    got, stats, passes = _steps(step, config)
    wanted = _stepped()
    first = [row for rows in ours.minibatches(24, config, torch.Generator().manual_seed(7))[0] for row in rows]
    lengths = [len(response) for response in _model(n_embd=32).generate(_ragged([1 + i % 4 for i in range(24)], 1), max_new_tokens=7,
                                                                        eos_token_id=0, seed=0)]
    ratios = torch.as_tensor(stats[0]["ppo/policy/ratio"])
    ratio = ratios[:sum(lengths[row] for row in first)]
    off = float((ratio - 1).abs().max()) if len(ratio) else 0.0
    if off > 1e-5 and len(ratios) == sum(lengths):
        raise Mistake("the statistics are those of the last epoch alone: losses are the mean over all epochs, and the ratios those of all. "
                      "Give update the list of all epochs, once")
    if off > 1e-5:
        raise Mistake(f"the first ratios must be 1, and one is off by {off:.2g}: rollout and update do not say the same of the same tokens")

    got = torch.cat([got] + [_steps(step, config, 1, APART)[0] for config in (NEAR_CONFIG, SHORT_CONFIG)])

    def fits(numbers):
        return torch.allclose(got, numbers, rtol=1e-3, atol=1e-4)
    if not fits(wanted):
        for message, mistake in STEP_MISTAKES.items():
            if fits(_stepped(mistake)):
                raise Mistake(message)
        row, column = ((got - wanted).abs() > 1e-4 + 1e-3 * wanted.abs()).nonzero()[0].tolist()
        raise Mistake(f"{(*KEYS, 'the next kl_coef')[column]} of {ROWS[row]} is {got[row, column]:.6f}, PPOTrainer's {wanted[row, column]:.6f}")
    _same_batches(passes, config)
    if off > 0:
        raise Mistake(f"all is right but for the last bits: the first ratios are off by {off:.1g}, not exactly 1. Let the rollout run in the "
                      "micro-batches of the first epoch, epochs[0]: the same rows in the same shapes give the same bits")
    fixed = PPOConfig(mini_batch_size=4, gradient_accumulation_steps=2, ppo_epochs=1, adap_kl_ctrl=False)
    if abs(_steps(step, fixed, 1)[0][0, -1] - 0.25) > 1e-6:
        raise Mistake("kl_coef moved although config.adap_kl_ctrl is False")


check_step.builds_on = ("evaluate", "minibatches", "rollout", "credit", "update")


# --- train ------------------------------------------------------------------------------------------------------------

def _train(model, queries, score, config, steps, max_new_tokens, eos_token_id=None, mistake=""):
    """train(), with a mistake in it."""
    reference = model if mistake == "reference" else copy.deepcopy(model).eval().requires_grad_(False)
    settings = {"lr": 1e-3 if mistake == "default lr" else config.learning_rate, "eps": 1e-8 if mistake == "eps" else config.adam_eps}
    optimizer, generator = torch.optim.Adam(model.parameters(), **settings), torch.Generator().manual_seed(config.seed)
    shuffling = torch.Generator().manual_seed(config.seed) if mistake == "two generators" else generator
    kl_coef, history = config.init_kl_coef, []
    for _ in range(steps):
        if mistake == "new optimizer":
            optimizer = torch.optim.Adam(model.parameters(), **settings)
        if mistake == "new generator":
            generator = shuffling = torch.Generator().manual_seed(config.seed)
        responses = model.generate(queries, max_new_tokens=max_new_tokens, generator=generator,
                                   eos_token_id=None if mistake == "no eos" else eos_token_id)
        scores = torch.tensor([float(score(response)) for response in responses])
        stats, next_kl_coef = ours.step(model, reference, optimizer, queries, responses, scores, kl_coef, config, shuffling)
        kl_coef = kl_coef if mistake == "kl_coef" else next_kl_coef
        history.append(stats)
    return history


TRAIN_MISTAKES = {
    "the KL is 0 in every step: the reference is the policy itself, or copied anew in each step. Make one copy.deepcopy of the model, before "
    "the loop": "reference",
    "the optimizer is made anew in each step and forgets Adam's moments: make one before the loop": "new optimizer",
    "the generator is seeded anew in each step, so that the same random numbers come again: make one before the loop": "new generator",
    "sampling and shuffling have a generator each: one serves both": "two generators",
    "kl_coef does not move: hand the one that step returns to the next step": "kl_coef",
    "eos_token_id is not handed to generate: no response ends by itself": "no eos",
    "config.adam_eps is not used": "eps",
    "config.learning_rate is not used": "default lr",
}


TRAIN_CONFIG = PPOConfig(mini_batch_size=4, gradient_accumulation_steps=2, ppo_epochs=2, learning_rate=3e-3, adam_eps=1e-3, seed=3,
                         init_kl_coef=0.25, target=0.5, horizon=48)


def _train_case():
    """Arguments of train: four steps on twelve ragged queries."""
    return [_ragged([1 + i % 4 for i in range(12)], 1), lambda response: float((response == 4).sum()) - 0.1 * len(response),
            TRAIN_CONFIG, 4, 6, 0]


def _curves(history) -> Tensor:
    return torch.tensor([[float(stats[key]) for key in KEYS] for stats in history])


@cache
def _trained(mistake: str = "") -> tuple[Tensor, GPT2WithValueHead]:
    """The right metrics of four steps and the model, by PPOTrainer, or those of a mistake."""
    model, (queries, score, config, steps, max_new_tokens, eos) = _model(), _train_case()
    if mistake:
        return _curves(_train(model, queries, score, config, steps, max_new_tokens, eos, mistake)), model
    trainer, history = PPOTrainer(config, model), []
    for _ in range(steps):
        responses = trainer.generate(queries, max_new_tokens=max_new_tokens, eos_token_id=eos)
        history.append(trainer.step(queries, responses, [score(response) for response in responses]))
    return _curves(history), model


def check_train(train):
    policy = _model()
    history = train(policy, *_train_case())
    if not isinstance(history, list) or len(history) != 4:
        raise Mistake("expected a list of 4 dicts, the statistics of each step" + (": you returned None" if history is None else ""))
    got, (wanted, trained) = _curves(history), _trained()

    def fits(numbers):
        return torch.allclose(got, numbers, rtol=1e-3, atol=1e-4)
    if not fits(wanted):
        for message, mistake in TRAIN_MISTAKES.items():
            if fits(_trained(mistake)[0]):
                raise Mistake(message)
        if abs(got[0, 0] - wanted[0, 0]) > 1e-4:
            raise Mistake(f"the mean score of the first step is {got[0, 0]:.4f}, PPOTrainer's {wanted[0, 0]:.4f}: sample with a generator "
                          "seeded with config.seed and draw nothing from it before, and score the responses")
        row, column = ((got - wanted).abs() > 1e-4 + 1e-3 * wanted.abs()).nonzero()[0].tolist()
        raise Mistake(f"{KEYS[column]} of step {row + 1} is {got[row, column]:.6f}, PPOTrainer's {wanted[row, column]:.6f}")
    weights = [torch.cat([p.detach().flatten() for p in model.parameters()]) for model in (policy, trained, _model())]
    if torch.equal(weights[0], weights[2]):
        raise Mistake("the metrics are right, but the model that you were given has not changed: train it, and copy the reference")
    if not torch.allclose(weights[0], weights[1], atol=1e-3):
        raise Mistake("the metrics are right, but the model is not the one that PPOTrainer ends with")

    scores, query = torch.tensor([0.0, 1.0, -1.0, 0.5, 0.2, -0.3]), torch.tensor([1])      # chapter 1: what must come out is known

    def probabilities(model):
        with torch.no_grad():
            return model(query[None])[0][0, -1].softmax(-1)
    policy = _model(vocab_size=6)
    optimum = (probabilities(policy).log() + scores / 0.5).softmax(0)
    train(policy, [query] * 256, lambda response: float(scores[response[0]]),
          PPOConfig(mini_batch_size=256, ppo_epochs=2, learning_rate=5e-3, adam_eps=1e-4, init_kl_coef=0.5, adap_kl_ctrl=False), 30, 1)
    distance = 0.5 * float((probabilities(policy) - optimum).abs().sum())
    if not distance < 0.1:
        raise Mistake(f"the metrics are right, but on chapter 1's task the policy ends {distance:.2f} away from pi*; below 0.1 is right")


check_train.builds_on = ("evaluate", "minibatches", "rollout", "credit", "update", "step")


# --- find the bug: the answers ----------------------------------------------------------------------------------------

class Bug(NamedTuple):
    """A planted fault: its line, what the line should be, the metrics that tell, and what to think of."""
    wrong: str
    mended: str
    metrics: tuple[str, ...]
    look: str
    hint: str


BUGS = {
    1: Bug("old_logprob = Categorical(logits=policy.detach()[question]).log_prob(word)[rows]", "old_logprob = logprob[rows]",
           ("clipfrac", "approxkl"),
           "which number cannot stay where it is through twelve optimizer steps, if the batch is used four times?",
           "ask of each quantity whether it is fixed since the rollout or computed anew"),
    2: Bug("drift = (kl.mean() / TARGET - 1).clamp(-0.2, 0.2).item()", "drift = (kl.sum(1).mean() / TARGET - 1).clamp(-0.2, 0.2).item()",
           ("kl_coef", "kl"),
           "two columns belong together, and one of them goes the wrong way while the other is far above its target",
           "ask of each number in which unit it is: per token or per response?"),
    3: Bug("real = torch.arange(width) < lengths[rows, None] - 1", "real = torch.arange(width) < lengths[rows, None]", ("trained",),
           "two columns must be equal in every step, and are not, from the first step on",
           "which token of a response does the loss never see?"),
}


def _source(number: int, mended: bool = False) -> str:
    text = (BUGS_FOLDER / f"bug{number}.py").read_text(encoding="utf-8")
    return text.replace(BUGS[number].wrong, BUGS[number].mended) if mended else text


@cache
def _run(number: int, mended: bool = False) -> list[dict]:
    namespace = {"__name__": f"bug{number}"}
    exec(compile(_source(number, mended), f"bug{number}.py", "exec"), namespace)
    return namespace["run"]()


def _check_bug(number: int, find_bug) -> None:
    bug, lines, answer = BUGS[number], _source(number).splitlines(), find_bug()
    if not isinstance(answer, tuple) or len(answer) != 2 or type(answer[0]) is not int or not isinstance(answer[1], str):
        raise Mistake(f'expected a line and a metric, such as (23, "score"), got {answer!r}')
    line, metric = answer
    faulty = _run(number)
    if metric not in faulty[0]:
        raise Mistake(f"{metric!r} is none of the metrics that bug{number}.py prints: {', '.join(faulty[0])}")
    if not 1 <= line <= len(lines) or not lines[line - 1].strip():
        raise Mistake(f"bug{number}.py has no code at line {line}")
    if metric not in bug.metrics:
        ends = [f"{run[0][metric]:.2f} at first and {run[-1][metric]:.2f} at last" for run in (faulty, _run(number, mended=True))]
        found = "the line is right, but " if bug.wrong in lines[line - 1] else ""
        raise Mistake(f"{found}{metric} does not tell: {ends[0]} (mended: {ends[1]}), which a run without a fault could print, too. "
                      f"Look again: {bug.look}")
    if bug.wrong not in lines[line - 1]:
        raise Mistake(f"{metric} tells, but line {line} is not the reason: `{lines[line - 1].strip()}` is right. Look again: {bug.hint}")


def check_find_bug_1(find_bug_1):
    _check_bug(1, find_bug_1)


def check_find_bug_2(find_bug_2):
    _check_bug(2, find_bug_2)


def check_find_bug_3(find_bug_3):
    _check_bug(3, find_bug_3)
