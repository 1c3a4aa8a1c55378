"""Wrong answers to chapter 13; each docstring is in the message that the check must give.

A whole PPO is long, so most of these are the solution with a line changed.
"""

import inspect

import torch

from tutorial.solutions import ex13


def changed(function, says, *changes, **others):
    """The solution's function with pieces of its source exchanged, and other functions around it."""
    source = inspect.getsource(function)
    for old, new in changes:
        assert source.count(old) == 1, f"{function.__name__}: {old!r} stands in it {source.count(old)} times"
        source = source.replace(old, new)
    namespace = vars(ex13) | others
    exec(source, namespace)
    answer = namespace[function.__name__]
    answer.__doc__ = says
    return answer


# --- evaluate ---------------------------------------------------------------------------------------------------------

evaluate__own_position = changed(
    ex13.evaluate, "token t is read at its own position",
    ("len(query) - 1", "len(query)"), ("tokens[row, position + 1]", "tokens[row, position]"))
evaluate__too_early = changed(
    ex13.evaluate, "you read one position too early", ("log_softmax(-1)[row, position,", "log_softmax(-1)[row, (position - 1).clamp(min=0),"))
evaluate__logits = changed(ex13.evaluate, "these are logits", ("logits.log_softmax(-1)", "logits"))
evaluate__probabilities = changed(ex13.evaluate, "these are probabilities", ("log_softmax", "softmax"))
evaluate__padding = changed(ex13.evaluate, "the padding of logprobs is not 0", ("torch.where(mask, logprobs, 0.0)", "logprobs"))
evaluate__value_after_the_token = changed(
    ex13.evaluate, "the values are read one position late", ("values[row, position]", "values[row, position + 1]"))
evaluate__no_gradient = changed(ex13.evaluate, "no gradient flows through logprobs", ("model(tokens)", "[x.detach() for x in model(tokens)]"))
evaluate__upside_down = changed(ex13.evaluate, "the mask is upside down", ("0.0), mask", "0.0), ~mask"))
evaluate__exchanged = changed(
    ex13.evaluate, "the two first results are exchanged",
    ("return torch.where(mask, logprobs, 0.0), torch.where(mask, values[row, position], 0.0)",
     "return torch.where(mask, values[row, position], 0.0), torch.where(mask, logprobs, 0.0)"))
evaluate__two_results = changed(ex13.evaluate, "expected 3 results", (", torch.where(mask, values[row, position], 0.0), mask", ""))


def evaluate__one_length_of_queries(model, queries, responses):
    """all rows are read as if their queries had the same length"""
    longest = max(len(query) for query in queries)
    tokens = torch.nn.utils.rnn.pad_sequence([torch.cat(pair) for pair in zip(queries, responses)], batch_first=True)
    mask = ex13.evaluate(model, queries, responses)[2]
    position = (longest - 1 + torch.arange(mask.shape[1])).clamp(max=tokens.shape[1] - 1).expand(mask.shape)
    logits, values = model(tokens)
    row = torch.arange(len(tokens))[:, None]
    token = tokens[row, (position + 1).clamp(max=tokens.shape[1] - 1)]
    return torch.where(mask, logits.log_softmax(-1)[row, position, token], 0.0), torch.where(mask, values[row, position], 0.0), mask


def evaluate__padded_on_the_left(model, queries, responses):
    """you padded on the left"""
    pairs = [torch.cat(pair) for pair in zip(queries, responses)]
    T, mask = max(map(len, pairs)), ex13.evaluate(model, queries, responses)[2]
    tokens = torch.stack([torch.cat([torch.zeros(T - len(pair), dtype=torch.long), pair]) for pair in pairs])
    starts = torch.tensor([[T - len(response) - 1] for response in responses])
    position, row = torch.where(mask, starts + torch.arange(mask.shape[1]), 0), torch.arange(len(tokens))[:, None]
    logits, values = model(tokens)
    logprobs = logits.log_softmax(-1)[row, position, tokens[row, position + 1]]
    return torch.where(mask, logprobs, 0.0), torch.where(mask, values[row, position], 0.0), mask


# --- minibatches ------------------------------------------------------------------------------------------------------

minibatches__not_shuffled = changed(ex13.minibatches, "the rows are not shuffled", ("torch.randperm(n, generator=generator)", "torch.arange(n)"))
minibatches__own_randomness = changed(ex13.minibatches, "use the generator given", (", generator=generator", ""))
minibatches__seeded_inside = changed(
    ex13.minibatches, "the second epoch has the order of the first",
    ("    order =", "    generator.manual_seed(3)\n    order ="))
minibatches__with_replacement = changed(
    ex13.minibatches, "some rows come twice", ("torch.randperm(n, generator", "torch.randint(n, (n,), generator"))
minibatches__drops_the_last = changed(ex13.minibatches, "3 of 9 rows are missing", ("range(0, n, large)", "range(0, n - large + 1, large)"))
minibatches__no_micro_batches = changed(ex13.minibatches, "each minibatch is one micro-batch", ("minibatch[j:j + small] for j in range(0, len(minibatch), small)", "minibatch"))
minibatches__no_minibatches = changed(
    ex13.minibatches, "without minibatches around them", ("return [", "return sum(["), ("for minibatch in epoch]", "for minibatch in epoch], [])"))
minibatches__accumulates_nothing = changed(
    ex13.minibatches, "a minibatch has mini_batch_size * gradient_accumulation_steps rows", ("small * config.gradient_accumulation_steps", "small"))
minibatches__exchanged = changed(
    ex13.minibatches, "you cut with gradient_accumulation_steps",
    ("small = config.mini_batch_size", "small = config.gradient_accumulation_steps"),
    ("small * config.gradient_accumulation_steps", "small * config.mini_batch_size"))
minibatches__not_cut = changed(
    ex13.minibatches, "minibatches that are not cut into micro-batches",
    ("[minibatch[j:j + small] for j in range(0, len(minibatch), small)] for", "minibatch for"))


# --- rollout ----------------------------------------------------------------------------------------------------------

rollout__policy_twice = changed(ex13.rollout, "ref_logprobs are the policy's", ("evaluate(ref_model", "evaluate(model"))
rollout__exchanged = changed(
    ex13.rollout, "policy and reference are exchanged", ("return logprobs, ref_logprobs", "return ref_logprobs, logprobs"))
rollout__values_of_the_reference = changed(
    ex13.rollout, "these are the reference's values",
    ("    return", "    values = evaluate(ref_model, queries, responses)[1].detach()\n    return"))
rollout__keeps_the_graph = changed(ex13.rollout, "the rollout keeps its graph", ("with torch.no_grad()", "if True"))
rollout__results_in_another_order = changed(
    ex13.rollout, "the results are in another order", ("ref_logprobs, values, mask\n", "values, ref_logprobs, mask\n"))


@torch.no_grad()
def rollout__rows_in_the_order_of_the_micro_batches(model, ref_model, queries, responses, micro_batches):
    """row i of the result belongs to response i"""
    order = [row for rows in micro_batches for row in rows]
    return tuple(x[order] for x in ex13.rollout(model, ref_model, queries, responses, micro_batches))


@torch.no_grad()
def rollout__only_the_last(model, ref_model, queries, responses, micro_batches):
    """only the last micro-batch is there"""
    return ex13.rollout(model, ref_model, queries, responses, micro_batches[-1:])


# --- credit -----------------------------------------------------------------------------------------------------------

LOOP = ("config.gamma * config.lam * next_advantage",)
credit__sign = changed(ex13.credit, "the sign of the KL is wrong", ("-kl_coef", "kl_coef"))
credit__no_kl = changed(ex13.credit, "the KL penalty is missing", ("-kl_coef *", "0 *"))
credit__everywhere = changed(
    ex13.credit, "the score is paid at every token",
    ("rewards[torch.arange(len(scores)), mask.sum(1) - 1] += scores", "rewards = rewards + torch.where(mask, scores[:, None], 0.0)"))
credit__last_column = changed(
    ex13.credit, "the score stands in the last column",
    ("rewards[torch.arange(len(scores)), mask.sum(1) - 1] += scores", "rewards[:, -1] += scores * mask[:, -1]"))
credit__no_gamma = changed(
    ex13.credit, "gamma is not used", ("config.gamma * next_value", "next_value"), (*LOOP, "config.lam * next_advantage"))
credit__no_lam = changed(ex13.credit, "lam is not used", (*LOOP, "config.gamma * next_advantage"))
credit__surprises = changed(ex13.credit, "these are the surprises alone", (" + config.gamma * config.lam * next_advantage", ""))
credit__all_columns = changed(
    ex13.credit, "the padding counted in the whitening", ("real = advantages + values, advantages[mask]", "real = advantages + values, advantages"))
credit__rows = changed(
    ex13.credit, "each row is whitened by itself",
    ("(advantages - real.mean()) * torch.rsqrt(real.var() + 1e-8)",
     "torch.stack([(a - a[m].mean()) / a[m].std() for a, m in zip(advantages, mask)])"))
credit__plain = changed(
    ex13.credit, "the advantages are not whitened", ("(advantages - real.mean()) * torch.rsqrt(real.var() + 1e-8)", "advantages"))
credit__population = changed(ex13.credit, "by n - 1, as torch's var() does", ("real.var()", "real.var(unbiased=False)"))
credit__exchanged = changed(
    ex13.credit, "the two results are exchanged",
    ("return torch.where(mask, (advantages - real.mean()) * torch.rsqrt(real.var() + 1e-8), 0.0), returns",
     "return returns, advantages"))
credit__no_values = changed(ex13.credit, "the returns are the advantages", ("real = advantages + values,", "real = advantages,"))
credit__no_return = changed(ex13.credit, "is the return statement missing?", ("return torch", "torch"))


def credit__whitened_early(scores, logprobs, ref_logprobs, values, mask, kl_coef, config):
    """the returns are made of whitened advantages"""
    advantages, _ = ex13.credit(scores, logprobs, ref_logprobs, values, mask, kl_coef, config)
    return advantages, advantages + values


# --- update -----------------------------------------------------------------------------------------------------------

update__own_mean = changed(ex13.update, "each micro-batch is divided by its own tokens", (".sum() / n_tokens", ".sum() / mask.sum()"))
update__mean_of_means = changed(
    ex13.update, "the mean of the micro-batches' means", (".sum() / n_tokens", ".sum() / mask.sum() / len(minibatch)"))
update__sum = changed(ex13.update, "the sum is not divided", (".sum() / n_tokens", ".sum()"))
update__columns = changed(ex13.update, "you divided by all columns", (".sum() / n_tokens", ".sum() / mask.numel()"))
update__responses = changed(
    ex13.update, "you divided by the number of responses", ("len(responses[row]) for rows in minibatch", "1 for rows in minibatch"))
update__step_a_micro_batch = changed(
    ex13.update, "the optimizer steps after every micro-batch", ("        optimizer.step()", "            optimizer.step()"))
update__cleared_in_between = changed(
    ex13.update, "only the last micro-batch is left in the gradient",
    ("            (policy_loss", "            optimizer.zero_grad()\n            (policy_loss"))
update__never_cleared = changed(ex13.update, "the gradient of the minibatch before is still in it", ("        optimizer.zero_grad()\n", ""))
update__never_steps = changed(ex13.update, "the optimizer never steps", ("        optimizer.step()", "        pass"))
update__recomputed = changed(
    ex13.update, "the old log-probabilities and values were computed again",
    ("            mean =", "            old_logprobs, old_values = new_logprobs.detach(), new_values.detach()\n            mean ="))
update__old_logprobs = changed(
    ex13.update, "the old log-probabilities were computed again",
    ("            mean =", "            old_logprobs = new_logprobs.detach()\n            mean ="))
update__old_values = changed(
    ex13.update, "or not around those of the rollout",
    ("            mean =", "            old_values = new_values.detach()\n            mean ="))
update__no_policy_clip = changed(ex13.update, "the ratios are not clipped", ("clipped * A)", "ratio * A)"))
update__no_value_clip = changed(ex13.update, "the values are not clipped", ("(near - G)", "(new_values - G)"))
update__no_clip = changed(ex13.update, "nothing is clipped", ("clipped * A)", "ratio * A)"), ("(near - G)", "(new_values - G)"))
update__better = changed(ex13.update, "you took the better of the two", ("torch.minimum", "torch.maximum"))
update__upside_down = changed(ex13.update, "the ratio is upside down", ("(new_logprobs - old_logprobs)", "(old_logprobs - new_logprobs)"))
update__sign = changed(ex13.update, "the sign is wrong", ("-mean(", "mean("))
update__no_vf_coef = changed(ex13.update, "vf_coef is missing", ("config.vf_coef * value_loss", "value_loss"))
update__no_value = changed(ex13.update, "the value loss is missing", ("(policy_loss + config.vf_coef * value_loss)", "policy_loss"))
update__no_half = changed(ex13.update, "the half of the value loss is missing", ("0.5 * mean", "mean"))
update__exchanged = changed(
    ex13.update, "advantages and returns are exchanged", ("(logprobs, values, advantages, returns))", "(logprobs, values, returns, advantages))"))
WHITEN = "            A = torch.where(mask, (A - A[mask].mean()) / A[mask].std(), 0.0)\n            mean ="
update__white_micro_batches = changed(ex13.update, "whitened again in each micro-batch", ("            mean =", WHITEN))
update__white_minibatches = changed(
    ex13.update, "whitened again in each minibatch",
    ("        optimizer.zero_grad()", "        whole = torch.cat([advantages[row, :len(responses[row])] for rows in minibatch for row in rows])\n"
                                      "        optimizer.zero_grad()"),
    ("            mean =", "            A = torch.where(mask, (A - whole.mean()) / whole.std(), 0.0)\n            mean ="))
update__first_rows = changed(ex13.update, "the rollout's first rows are used", ("x[rows, :mask", "x[:len(rows), :mask"))
update__no_result = changed(ex13.update, "expected a dict", ("    return {", "    {"))
update__last_losses = changed(
    ex13.update, "those of the last minibatch alone",
    ("        optimizer.zero_grad()", "        losses = torch.zeros(2)\n        optimizer.zero_grad()"), ("losses / len(minibatches_of_all)", "losses"))
EACH_EPOCH = ("    for minibatch in minibatches_of_all:",
              "    for i, minibatch in enumerate(minibatches_of_all):\n        if i % len(epochs[0]) == 0:\n            losses, ratios = torch.zeros(2), ratios")
update__last_epoch = changed(
    ex13.update, "those of the last epoch alone", EACH_EPOCH, ("losses / len(minibatches_of_all)", "losses / len(epochs[0])"))
update__last_epochs_ratios = changed(
    ex13.update, "only the ratios of the last epoch",
    (EACH_EPOCH[0], EACH_EPOCH[1].replace("losses, ratios = torch.zeros(2), ratios", "ratios = []")))
update__sum_of_losses = changed(ex13.update, "the losses are sums over all minibatches", ("losses / len(minibatches_of_all)", "losses"))
update__mean_of_micro_batches = changed(
    ex13.update, "the losses are divided by all micro-batches", ("losses / len(minibatches_of_all)", "losses / sum(map(len, minibatches_of_all))"))
update__weighted_value_loss = changed(
    ex13.update, "the value loss is multiplied by vf_coef", ('"ppo/loss/value": value_loss', '"ppo/loss/value": config.vf_coef * value_loss'))
update__log_ratios = changed(ex13.update, "the ratios are logarithms", ("ratio.detach()[mask]", "ratio.detach()[mask].log()"))
update__padded_ratios = changed(ex13.update, "the ratios hold the padding", ("ratio.detach()[mask]", "ratio.detach().flatten()"))
update__last_ratios = changed(ex13.update, "only the ratios of the last micro-batch", ("torch.cat(ratios)", "ratios[-1]"))


update__values_clipped_as_ratios = changed(
    ex13.update, "look at the clipping",
    ("old_values - config.cliprange_value, old_values + config.cliprange_value", "old_values - config.cliprange, old_values + config.cliprange"))
update__old_values_around_the_new = changed(
    ex13.update, "look at the clipping",
    ("torch.clamp(new_values, old_values - config.cliprange_value, old_values + config.cliprange_value)",
     "torch.clamp(old_values, new_values.detach() - config.cliprange_value, new_values.detach() + config.cliprange_value)"))
update__values_around_themselves = changed(
    ex13.update, "the values are not clipped, or not around those of the rollout",
    ("old_values - config.cliprange_value, old_values + config.cliprange_value",
     "new_values.detach() - config.cliprange_value, new_values.detach() + config.cliprange_value"))


def update__something_else(model, optimizer, queries, responses, logprobs, values, advantages, returns, epochs, config):
    """the direction is right, what did you divide by?"""
    register = [p.register_hook(lambda gradient: 0.7 * gradient) for p in model.parameters()]
    stats = ex13.update(model, optimizer, queries, responses, logprobs, values, advantages, returns, epochs, config)
    for hook in register:
        hook.remove()
    return stats


# --- step -------------------------------------------------------------------------------------------------------------

step__shuffled_once = changed(
    ex13.step, "all epochs have one order",
    ("[minibatches(len(queries), config, generator) for _ in range(config.ppo_epochs)]",
     "[minibatches(len(queries), config, generator)] * config.ppo_epochs"))
step__one_epoch = changed(ex13.step, "the batch is used once", ("range(config.ppo_epochs)", "range(1)"))
step__kl_per_token = changed(
    ex13.step, "the controller was given the KL per token: target",
    ("(logprobs - ref_logprobs).sum(1).mean()", "((logprobs - ref_logprobs).sum() / mask.sum())"))
step__kl_per_token_inside = changed(
    ex13.step, "the controller was given the KL per token, though objective/kl is right",
    ("kl / config.target", "(logprobs - ref_logprobs).sum().item() / int(mask.sum()) / config.target"))
step__mini_batch_size = changed(ex13.step, "the controller was given mini_batch_size for B", ("len(queries) / config", "config.mini_batch_size / config"))
step__no_min = changed(
    ex13.step, "B / horizon is limited to 1", ("min(len(queries) / config.horizon, 1)", "len(queries) / config.horizon"))
step__one_pass = changed(
    ex13.step, "the rollout saw 24 rows at once, the update 4", ("responses, micro_batches)", "responses, [list(range(len(queries)))])"))
step__last_epoch = changed(ex13.step, "the rollout saw other rows together than the first epoch", ("epochs[0]", "epochs[-1]"))
step__epoch_by_epoch = changed(
    ex13.step, "the statistics are those of the last epoch alone",
    ("    stats = update(model, optimizer, queries, responses, logprobs, values, advantages, returns, epochs, config)",
     "    for epoch in epochs:\n        stats = update(model, optimizer, queries, responses, logprobs, values, advantages, returns, [epoch], config)"))
step__kl_afterwards = changed(
    ex13.step, "the KL was measured after the update",
    ("    kl = (logprobs", "    logprobs = rollout(model, ref_model, queries, responses, micro_batches)[0]\n    kl = (logprobs"))
step__not_limited = changed(ex13.step, "the controller's error is not limited", ("min(max(kl / config.target - 1, -0.2), 0.2)", "kl / config.target - 1"))
step__no_horizon = changed(ex13.step, "the controller moves by the whole error", (" * min(len(queries) / config.horizon, 1)", ""))
step__downhill = changed(ex13.step, "the controller moves the wrong way", ("(1 + error", "(1 - error"))
step__always_adapts = changed(ex13.step, "although config.adap_kl_ctrl is False", ("if config.adap_kl_ctrl", "if True"))
step__early = changed(
    ex13.step, "the controller moved before the rewards were made",
    ("    advantages, returns", "    kl = (logprobs - ref_logprobs).sum(1).mean().item()\n    kl_coef = kl_coef * (1 + min(max(kl / config.target - 1, "
                               "-0.2), 0.2) * min(len(queries) / config.horizon, 1))\n    advantages, returns"), ("if config.adap_kl_ctrl", "if False"))
step__reports_the_next = changed(
    ex13.step, "objective/kl_coef is the next one", ("    return stats", "    stats['objective/kl_coef'] = kl_coef\n    return stats"))
step__one_result = changed(ex13.step, "expected 2 results", ("return stats, kl_coef", "return stats"))
step__no_kl = changed(ex13.step, "objective/kl is missing in the statistics", ('"objective/kl": kl, ', ""))


def _other_bits(model, ref_model, queries, responses, micro_batches):
    """A rollout that is right but for the last bits."""
    logprobs, *rest = ex13.rollout(model, ref_model, queries, responses, micro_batches)
    return torch.nextafter(logprobs, torch.zeros(())), *rest


def _noisy(model, ref_model, queries, responses, micro_batches):
    """A rollout of a model with dropout, as it were."""
    logprobs, ref_logprobs, values, mask = ex13.rollout(model, ref_model, queries, responses, micro_batches)
    return torch.where(mask, logprobs + 0.01, 0.0), ref_logprobs, values, mask


step__other_bits = changed(ex13.step, "all is right but for the last bits", rollout=_other_bits)
step__dropout = changed(ex13.step, "the first ratios must be 1, and one is off by 0.01", rollout=_noisy)


# --- train ------------------------------------------------------------------------------------------------------------

train__reference_not_copied = changed(
    ex13.train, "the reference is the policy itself, or copied anew in each step", ("copy.deepcopy(model).eval().requires_grad_(False)", "model"))
train__new_reference = changed(
    ex13.train, "or copied anew in each step. Make one copy.deepcopy of the model, before the loop",
    ("        responses =", "        ref_model = copy.deepcopy(model)\n        responses ="))
train__new_optimizer = changed(
    ex13.train, "the optimizer is made anew in each step",
    ("        responses =", "        optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, eps=config.adam_eps)\n        responses ="))
train__new_generator = changed(
    ex13.train, "the generator is seeded anew in each step", ("        responses =", "        generator.manual_seed(config.seed)\n        responses ="))
train__two_generators = changed(
    ex13.train, "sampling and shuffling have a generator each",
    ("    for _ in", "    other = torch.Generator().manual_seed(config.seed)\n    for _ in"), ("config, generator)", "config, other)"))
train__kl_coef_stays = changed(ex13.train, "kl_coef does not move", ("stats, kl_coef = step", "stats, _ = step"))
train__no_eos = changed(ex13.train, "eos_token_id is not handed to generate", ("eos_token_id=eos_token_id, ", ""))
train__no_eps = changed(ex13.train, "config.adam_eps is not used", (", eps=config.adam_eps", ""))
train__default_learning_rate = changed(ex13.train, "config.learning_rate is not used", (" lr=config.learning_rate,", ""))
train__global_randomness = changed(
    ex13.train, "sample with a generator seeded with config.seed", ("generator=generator)", "seed=99)"))
train__draws_before = changed(
    ex13.train, "and draw nothing from it before", ("    for _ in", "    torch.rand(3, generator=generator)\n    for _ in"))
train__last_statistics = changed(ex13.train, "expected a list of 4 dicts", ("return history", "return history[-1]"))
train__trains_a_copy = changed(
    ex13.train, "the model that you were given has not changed", ("    ref_model =", "    model = copy.deepcopy(model)\n    ref_model ="))


def train__cheats(model, queries, score, config, steps, max_new_tokens, eos_token_id=None):
    """on chapter 1's task the policy ends"""
    return ex13.train(model, queries, score, config, steps if steps == 4 else 1, max_new_tokens, eos_token_id)


# --- find the bug -----------------------------------------------------------------------------------------------------

def find_bug_1__score():
    """score does not tell"""
    return 40, "score"


def find_bug_1__line_alone():
    """the line is right, but entropy does not tell"""
    return 39, "entropy"


def find_bug_1__metric_alone():
    """approxkl tells, but line 43 is not the reason"""
    return 43, "approxkl"


def find_bug_1__unknown_metric():
    """'loss' is none of the metrics that bug1.py prints"""
    return 39, "loss"


def find_bug_1__order():
    """expected a line and a metric"""
    return "clipfrac", 39


def find_bug_2__surprise():
    """the line is right, but surprise does not tell"""
    return 76, "surprise"


def find_bug_2__value_error():
    """value_error does not tell"""
    return 58, "value_error"


def find_bug_2__penalty():
    """kl_coef tells, but line 51 is not the reason"""
    return 51, "kl_coef"


def find_bug_2__no_line():
    """bug2.py has no code at line 900"""
    return 900, "kl_coef"


def find_bug_3__length():
    """the line is right, but length does not tell"""
    return 50, "length"


def find_bug_3__ratio():
    """trained tells, but line 52 is not the reason"""
    return 52, "trained"


def find_bug_3__surprise():
    """surprise does not tell"""
    return 40, "surprise"


def find_bug_3__text():
    """expected a line and a metric"""
    return "line 50, trained"
