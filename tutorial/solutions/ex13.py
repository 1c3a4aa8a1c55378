"""Chapter 13, solved: PPO for a language model, all of it. B responses, b in a micro-batch, R tokens in the longest of them."""

import copy

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def evaluate(model, queries: list[Tensor], responses: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    tokens = pad_sequence([torch.cat(pair) for pair in zip(queries, responses)], batch_first=True)      # (b, T), padded on the right
    mask = pad_sequence([torch.ones(len(r), dtype=torch.bool) for r in responses], batch_first=True)    # (b, R)
    starts = torch.tensor([[len(query) - 1] for query in queries])                      # (b, 1): the query's last token predicts token 0
    position = torch.where(mask, starts + torch.arange(mask.shape[1]), 0)               # (b, R): padding could point beyond the end
    row = torch.arange(len(tokens))[:, None]
    logits, values = model(tokens)                                                      # (b, T, V), (b, T)
    logprobs = logits.log_softmax(-1)[row, position, tokens[row, position + 1]]         # (b, R)
    return torch.where(mask, logprobs, 0.0), torch.where(mask, values[row, position], 0.0), mask


def minibatches(n: int, config, generator: torch.Generator) -> list[list[list[int]]]:
    order = torch.randperm(n, generator=generator).tolist()                             # one draw an epoch, and no other
    small = config.mini_batch_size
    large = small * config.gradient_accumulation_steps
    epoch = [order[i:i + large] for i in range(0, n, large)]
    return [[minibatch[j:j + small] for j in range(0, len(minibatch), small)] for minibatch in epoch]


def rollout(model, ref_model, queries: list[Tensor], responses: list[Tensor],
            micro_batches: list[list[int]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, R = len(responses), max(len(response) for response in responses)
    logprobs, ref_logprobs, values = (torch.zeros(B, R) for _ in range(3))
    mask = torch.zeros(B, R, dtype=torch.bool)
    for rows in micro_batches:              # those of the first epoch: the same shapes give the same last bits, so the ratio is 1
        some = [queries[row] for row in rows], [responses[row] for row in rows]
        with torch.no_grad():
            of_policy, of_values, real = evaluate(model, *some)
            of_reference, _, _ = evaluate(ref_model, *some)
        width = real.shape[1]               # the longest of this micro-batch
        logprobs[rows, :width], values[rows, :width], mask[rows, :width] = of_policy, of_values, real
        ref_logprobs[rows, :width] = of_reference
    return logprobs, ref_logprobs, values, mask


def credit(scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, values: Tensor, mask: Tensor, kl_coef: float,
           config) -> tuple[Tensor, Tensor]:
    rewards = -kl_coef * (logprobs - ref_logprobs)                                      # (B, R): 0 at the padding
    rewards[torch.arange(len(scores)), mask.sum(1) - 1] += scores                       # on each last real token
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = torch.zeros(len(scores))                              # nothing comes after the end
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + config.gamma * next_value - values[:, t]
        advantages[:, t] = delta + config.gamma * config.lam * next_advantage           # padding: 0, and passes 0 on
        next_value, next_advantage = values[:, t], advantages[:, t]
    returns, real = advantages + values, advantages[mask]                               # returns are made before whitening
    return torch.where(mask, (advantages - real.mean()) * torch.rsqrt(real.var() + 1e-8), 0.0), returns


def update(model, optimizer, queries: list[Tensor], responses: list[Tensor], logprobs: Tensor, values: Tensor,
           advantages: Tensor, returns: Tensor, epochs: list[list[list[list[int]]]], config) -> dict:
    minibatches_of_all = [minibatch for epoch in epochs for minibatch in epoch]
    losses, ratios = torch.zeros(2), []
    for minibatch in minibatches_of_all:
        n_tokens = sum(len(responses[row]) for rows in minibatch for row in rows)       # of the whole minibatch
        optimizer.zero_grad()
        for rows in minibatch:
            new_logprobs, new_values, mask = evaluate(model, [queries[row] for row in rows], [responses[row] for row in rows])
            old_logprobs, old_values, A, G = (x[rows, :mask.shape[1]] for x in (logprobs, values, advantages, returns))
            mean = lambda x: torch.where(mask, x, 0.0).sum() / n_tokens                 # this micro-batch's part of the mean
            ratio = (new_logprobs - old_logprobs).exp()
            clipped = ratio.clamp(1 - config.cliprange, 1 + config.cliprange)
            policy_loss = -mean(torch.minimum(ratio * A, clipped * A))
            near = torch.clamp(new_values, old_values - config.cliprange_value, old_values + config.cliprange_value)
            value_loss = 0.5 * mean(torch.maximum((new_values - G)**2, (near - G)**2))
            (policy_loss + config.vf_coef * value_loss).backward()                      # gradients add up
            losses += torch.stack([policy_loss, value_loss]).detach()
            ratios.append(ratio.detach()[mask])
        optimizer.step()                                                                # once a minibatch
    policy_loss, value_loss = (losses / len(minibatches_of_all)).tolist()
    return {"ppo/loss/policy": policy_loss, "ppo/loss/value": value_loss, "ppo/policy/ratio": torch.cat(ratios)}


def step(model, ref_model, optimizer, queries: list[Tensor], responses: list[Tensor], scores: Tensor, kl_coef: float,
         config, generator: torch.Generator) -> tuple[dict, float]:
    epochs = [minibatches(len(queries), config, generator) for _ in range(config.ppo_epochs)]           # each shuffled anew
    micro_batches = [rows for minibatch in epochs[0] for rows in minibatch]
    logprobs, ref_logprobs, values, mask = rollout(model, ref_model, queries, responses, micro_batches)
    advantages, returns = credit(scores, logprobs, ref_logprobs, values, mask, kl_coef, config)
    stats = update(model, optimizer, queries, responses, logprobs, values, advantages, returns, epochs, config)
    kl = (logprobs - ref_logprobs).sum(1).mean().item()                                 # at rollout, in nats per response
    stats |= {"ppo/mean_scores": scores.mean().item(), "objective/kl": kl, "objective/kl_coef": kl_coef}
    if config.adap_kl_ctrl:
        error = min(max(kl / config.target - 1, -0.2), 0.2)
        kl_coef = kl_coef * (1 + error * min(len(queries) / config.horizon, 1))         # for the next step
    return stats, kl_coef


def train(model, queries: list[Tensor], score, config, steps: int, max_new_tokens: int, eos_token_id: int | None = None) -> list[dict]:
    ref_model = copy.deepcopy(model).eval().requires_grad_(False)                       # stays as it is
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, eps=config.adam_eps)
    generator, kl_coef, history = torch.Generator().manual_seed(config.seed), config.init_kl_coef, []
    for _ in range(steps):
        responses = model.generate(queries, max_new_tokens=max_new_tokens, eos_token_id=eos_token_id, generator=generator)
        scores = torch.tensor([float(score(response)) for response in responses])
        stats, kl_coef = step(model, ref_model, optimizer, queries, responses, scores, kl_coef, config, generator)
        history.append(stats)
    return history


def find_bug_1() -> tuple[int, str]:
    return 39, "clipfrac"       # mend it: old_logprob = logprob[rows], which the rollout kept


def find_bug_2() -> tuple[int, str]:
    return 76, "kl_coef"        # mend it: kl.sum(1).mean(), the KL of a response, as in its target


def find_bug_3() -> tuple[int, str]:
    return 50, "trained"        # mend it: without the - 1, as in the rollout's mask
