"""PPO fine-tuning of a language model (RLHF): the whole algorithm, in the order in which it happens.

One `PPOTrainer.step` is one iteration of Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences":

    scores       one number per response, from outside: a function, a model, a person
    forward pass log-probabilities of the responses under the policy and under the frozen reference, and values
    KL reward    reward of token t = -kl_coef * (logprob - ref_logprob), plus the score on the last token
    advantages   GAE (Schulman et al. 2016): how much better than expected did it go from token t on? No critic: than others
    update       several epochs of minibatches with the clipped losses of PPO (Schulman et al. 2017)
    controller   kl_coef moves so that the KL of a response approaches its target

It mirrors the classic PPOTrainer of TRL <= 0.11, with its names and defaults. Run it: `python -m minippo`. Left out, and why:
1. Adapters, trackers, files of a run: this file is the algorithm; training/run.py is the loop around it.
2. Terminal bootstrap: a response is over after its last token, also when the length limit cut it. The value behind it is 0.
3. Dropout: the model has none, so the ratio of the first minibatch of every step is exactly 1.

Shapes: B batch, b micro-batch, R longest response. Column t of a (B, R) tensor belongs to response token t; `mask` is True at
real tokens. *Score* is per response, *reward* per token; `logprobs` are those of the rollout, `new_` those of the update.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable, NamedTuple, Sequence

import torch
from torch import Tensor

from .distributed import check_same, in_place, interleave, of_each, share, start
from .fast import prepare_models, training_modes, upload
from .files.checkpoint import load_state, save_state
from .inputs import (check_groups, check_models, check_pairs, check_ppo_config, check_scores, check_temperature, check_trainable,
                     penalise_missing_eos, warn_of_filters, warn_of_negative_kl)
from .metrics import RunningMoments, Stopwatch, batch_stats, masked_mean, masked_var, masked_whiten, mean_of
from .policy import GPT2WithValueHead, align, create_reference_model, evaluate_responses, response_kl, response_mask


@dataclass(frozen=True)
class PPOConfig:
    """Names and defaults of TRL 0.11's PPOConfig where the field still means something."""
    batch_size: int = 128                   # responses per step; step() takes any number, this is what a run collects
    mini_batch_size: int = 128              # responses per forward and backward pass, a micro-batch: what must fit into memory
    gradient_accumulation_steps: int = 1    # micro-batches of a minibatch, that is of an optimizer step; exact for ragged ones, too
    ppo_epochs: int = 4                     # times that each batch is used
    learning_rate: float = 1.41e-5          # of Adam
    adam_eps: float = 1e-8                  # OpenAI's TensorFlow code used 1e-5, which damps the first updates
    max_grad_norm: float | None = None      # clip the gradient's norm at every optimizer step; none: no clipping
    kl_penalty: str = "kl"                  # kl: logprob - ref_logprob; abs, mse, k3: never negative; full: exact
    adap_kl_ctrl: bool = True               # adapt kl_coef so that KL approaches `target`; off: init_kl_coef stays
    init_kl_coef: float = 0.2               # the first kl_coef
    target: float = 6.0                     # KL of a whole response, in nats, that the controller steers to
    horizon: float = 10000.0                # responses over which it acts: larger is slower
    advantage: str = "gae"                  # gae: with a value head; reinforce, rloo, grpo: without, see compute_group_advantages
    group_size: int = 1                     # consecutive responses to each query; rloo and grpo need 2 or more
    gamma: float = 1.0                      # of gae: discount; 1: a token is not worth less for coming later
    lam: float = 0.95                       # GAE: 0 trusts the values alone, 1 the sampled return alone
    whiten_rewards: bool = False            # rewards to variance 1, their mean kept
    cliprange: float = 0.2                  # the ratio gains nothing outside 1 +- cliprange
    cliprange_value: float = 0.2            # a value moves at most this far from the rollout's
    vf_coef: float = 0.1                    # weight of the value loss
    entropy_coef: float = 0.0               # bonus for entropy; KL against the reference usually does this work
    ratio_threshold: float = 10.0           # a minibatch whose mean ratio exceeds this is skipped whole
    early_stopping: bool = False            # end the step when a minibatch's KL to the rollout policy exceeds 1.5 * target_kl
    target_kl: float = 1.0                  # for early_stopping, in nats per token
    use_score_scaling: bool = False         # divide scores by their running standard deviation
    use_score_norm: bool = False            # subtract their running mean first; needs use_score_scaling
    score_clip: float | None = None         # clip the scores, scaled or not, to +- this; none: no clipping
    missing_eos_penalty: float | None = None    # taken off the score of a response that did not end with EOS
    temperature: float = 1.0                # divides the logits, when sampling and when scoring alike
    seed: int = 0                           # of the one generator behind sampling and shuffling
    gradient_checkpointing: bool = False    # recompute the blocks in the backward pass
    compile: bool = False                   # torch.compile each block: worth it on a GPU for long runs

    def __post_init__(self):
        check_ppo_config(self, kinds_of_kl=tuple(KL_PENALTIES))


KL_PENALTIES = {    # log-probabilities p under the policy, q under the reference (Schulman, "Approximating KL divergence", 2020)
    "kl": lambda p, q: p - q,                               # k1: right on average, negative for single tokens
    "abs": lambda p, q: (p - q).abs(),
    "mse": lambda p, q: 0.5 * (p - q)**2,                   # k2
    "k3": lambda p, q: (q - p).exp() - 1 - (q - p),         # right on average and never negative
    "full": lambda p, q: (p.exp() * (p - q)).sum(-1),       # exact, from whole distributions (..., V)
}


def kl_penalty(logprobs: Tensor, ref_logprobs: Tensor, kind: str) -> Tensor:
    """How far the policy is from the reference at each token, by one of KL_PENALTIES; (..., V) -> (...) for "full"."""
    if kind not in KL_PENALTIES:
        raise ValueError(f"kl_penalty: expected one of {', '.join(KL_PENALTIES)}, got {kind!r}")
    return KL_PENALTIES[kind](logprobs, ref_logprobs)


# (B, R) each: what a token earned; the part of it that is the KL penalty, -kl_coef * kl; the penalty before its coefficient
Rewards = NamedTuple("Rewards", [("rewards", Tensor), ("non_score_reward", Tensor), ("kl", Tensor)])


def compute_rewards(scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, kl_coef: float,
                    kl_penalty: str = "kl", kl: Tensor | None = None) -> Rewards:
    """Per-token rewards: the KL penalty at every token, the score on the last real one (Ziegler et al. 2019, eq. 2).

    Args:
        scores: (B,) one score a response, or (B, R) rewards per token, which are added where they stand.
        logprobs, ref_logprobs, mask: (B, R); log-distributions (B, R, V) for kl_penalty="full".
        kl: (B, R) the penalty where it is already known; exact KL is computed without keeping (B, R, V) tensors.
    """
    mask = mask.bool()
    kl = torch.where(mask, KL_PENALTIES[kl_penalty](logprobs, ref_logprobs) if kl is None else kl, 0.0)
    non_score_reward = -kl_coef * kl
    scores = torch.as_tensor(scores, dtype=kl.dtype, device=getattr(scores, "device", "cpu")).to(kl.device, non_blocking=kl.is_cuda)
    if scores.dim() == 1:
        columns = torch.arange(mask.shape[1], device=mask.device)
        last = torch.where(mask, columns, -1).amax(1, keepdim=True)         # (B, 1): EOS, or the token at the length limit
        scores = torch.where(columns == last, scores[:, None], 0.0)
    return Rewards(non_score_reward + torch.where(mask, scores, 0.0), non_score_reward, kl)


def compute_advantages(values: Tensor, rewards: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16): all (B, R) -> advantages, returns, both (B, R).

        delta_t = reward_t + gamma * value_{t+1} - value_t,    advantage_t = delta_t + gamma * lam * advantage_{t+1}

    The value behind the last token is 0. Masked columns are 0 and pass nothing on. Not whitened.
    """
    mask = mask.bool()
    values, rewards = torch.where(mask, values, 0.0), torch.where(mask, rewards, 0.0)
    advantages = torch.zeros_like(values)
    next_value = next_advantage = torch.zeros_like(values[:, 0])            # (B,): nothing comes after the last token
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantages[:, t] = torch.where(mask[:, t], delta + gamma * lam * next_advantage, 0.0)
        next_value, next_advantage = values[:, t], advantages[:, t]
    return advantages, advantages + values                                  # before whitening: the values learn real returns


def compute_group_advantages(rewards: Tensor, mask: Tensor, group_size: int, kind: str) -> Tensor:
    """Advantages without a critic: a response's total reward less a baseline, the same at each of its tokens, (B, R) -> (B, R).

        reinforce   less the mean of the batch (Williams 1992)
        rloo        less the mean of the query's other responses (Kool et al. 2019; Ahmadian et al. 2024)
        grpo        less the mean of all the query's responses, over their standard deviation (Shao et al. 2024, "DeepSeekMath")

    Responses to one query are neighbours, group_size of them. Not whitened. Left out: GRPO's KL in the loss instead of the rewards;
    clipping other than PPO's, dual (Ye et al. 2020) or asymmetric (Yu et al. 2025, "DAPO").
    """
    totals = torch.where(mask.bool(), rewards, 0.0).sum(1)                  # (B,)
    groups = totals.view(-1, len(totals) if kind == "reinforce" else group_size)
    groups = groups - groups[:, :1]                                         # equal rewards: 0 exactly, nothing for grpo to scale up
    advantages = groups - groups.mean(1, keepdim=True)
    if kind == "rloo":
        advantages = advantages * (group_size / (group_size - 1))           # leaves a response's own reward out of its baseline
    elif kind == "grpo":
        advantages = advantages / (groups.std(1, keepdim=True) + 1e-6)
    return torch.where(mask.bool(), advantages.view(-1, 1), 0.0)


def ppo_loss(new_logprobs: Tensor, new_values: Tensor | None, logprobs: Tensor, values: Tensor | None, advantages: Tensor,
             returns: Tensor | None, mask: Tensor, cliprange: float = 0.2, cliprange_value: float = 0.2, vf_coef: float = 0.1,
             entropy: Tensor | None = None, entropy_coef: float = 0.0,
             n_tokens: Tensor | int | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """The clipped policy loss (Schulman et al. 2017, eq. 7) and value loss (OpenAI baselines, ppo2), means over real tokens.

    Args:
        new_logprobs, new_values: (b, R) under the weights being trained, with gradients; no values, no value loss: no critic.
        logprobs, values, advantages, returns: (b, R) from the rollout, fixed; advantages are scaled already.
        entropy: (b, R) entropy of the new distributions, measured, and rewarded by entropy_coef.
        n_tokens: what sums are divided by: of a micro-batch the tokens of its minibatch, so that they add up to the exact gradient.

    Returns: the loss, and detached statistics under TRL's keys, each a sum over these tokens divided by n_tokens.
    """
    mask = mask.bool()
    n_tokens = mask.sum().clamp(min=1) if n_tokens is None else n_tokens
    log_ratio, advantages = torch.where(mask, new_logprobs - logprobs, 0.0), torch.where(mask, advantages, 0.0)
    mean = lambda x: torch.where(mask, x, 0.0).sum() / n_tokens
    ratio = log_ratio.exp()
    pg_losses = -advantages * ratio
    pg_losses_clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    pg_loss = mean(torch.maximum(pg_losses, pg_losses_clipped))             # the worse of the two: no gain from going too far
    loss, critic = pg_loss, {}
    if new_values is not None:
        new_values, values, returns = (torch.where(mask, x, 0.0) for x in (new_values, values, returns))
        values_clipped = torch.clamp(new_values, values - cliprange_value, values + cliprange_value)
        vf_losses, vf_losses_clipped = (new_values - returns) ** 2, (values_clipped - returns) ** 2
        vf_loss = 0.5 * mean(torch.maximum(vf_losses, vf_losses_clipped))
        loss = pg_loss + vf_coef * vf_loss
        critic = {"ppo/loss/value": vf_loss, "ppo/val/vpred": mean(new_values), "ppo/val/error": mean(vf_losses),
                  "ppo/val/clipfrac": mean((vf_losses_clipped > vf_losses).float())}
    if entropy is not None and entropy_coef:
        loss = loss - entropy_coef * mean(entropy)
    stats = critic | {
        "ppo/loss/policy": pg_loss, "ppo/loss/total": loss,
        "ppo/policy/entropy": mean(entropy if entropy is not None else torch.zeros_like(ratio)),
        "ppo/policy/approxkl": 0.5 * mean(log_ratio**2),                    # k2, between rollout policy and new policy
        "ppo/policy/policykl": mean(-log_ratio),                            # k1
        "ppo/policy/clipfrac": mean((pg_losses_clipped > pg_losses).float()),
        "ppo/policy/advantages_mean": mean(advantages),
        "ppo/policy/ratio_mean": mean(ratio),
    }
    return loss, {name: value.detach() for name, value in stats.items()}


class AdaptiveKLController:
    """Moves kl_coef in proportion to the error, at most 20 % per `horizon` responses (Ziegler et al. 2019, section 2.2)."""

    def __init__(self, init_kl_coef: float, target: float, horizon: float):
        self.value, self.target, self.horizon = init_kl_coef, target, horizon

    def update(self, kl: float, n_steps: int) -> None:
        """kl: k1 in nats per response, averaged over n_steps responses; not finite: nothing is known of the drift."""
        error = min(max(kl / self.target - 1, -0.2), 0.2) if math.isfinite(kl) else 0.0
        self.value *= 1 + error * min(n_steps / self.horizon, 1)        # a batch beyond the horizon must not turn the sign


class FixedKLController:
    def __init__(self, kl_coef: float):
        self.value = kl_coef

    def update(self, kl: float, n_steps: int) -> None:
        pass


@dataclass
class Batch:
    """B scored responses, and what `step` makes of them, in the order of the algorithm; (B, R) where nothing else is said."""
    queries: list[Tensor]                       # B 1-D int64 tensors
    responses: list[Tensor]                     # B 1-D int64 tensors, the longest of R tokens
    temperature: float                          # at which they are scored
    scores: Tensor | None = None                # (B,), or one reward a token (B, R)
    mask: Tensor | None = None                  # bool: real response tokens
    logprobs: Tensor | None = None              # under the policy before the update
    ref_logprobs: Tensor | None = None          # under the reference
    values: Tensor | None = None                # of the state before each token; 0 without a critic
    kl: Tensor | None = None                    # penalty of each token, before its coefficient
    non_score_reward: Tensor | None = None      # -kl_coef * kl
    rewards: Tensor | None = None               # that plus the score
    returns: Tensor | None = None               # what the values learn
    advantages: Tensor | None = None            # whitened, but for grpo's


class PPOTrainer:
    """Trains `model` with PPO: `generate` responses, score them, `step`.

    Args:
        model: the policy with its value head; trained in place.
        ref_model: what KL is measured against; None makes a frozen copy of `model` as it is now.
        tokenizer: only for its eos_token_id and to save it beside the model; None: token ids in, token ids out.
        optimizer, lr_scheduler: over model.parameters(); of that optimizer, stepped once per step(). None: fused Adam, no schedule.
    """

    def __init__(self, config: PPOConfig, model: GPT2WithValueHead, ref_model: GPT2WithValueHead | None = None,
                 tokenizer=None, optimizer: torch.optim.Optimizer | None = None, lr_scheduler=None):
        check_models(model, ref_model, tokenizer, optimizer, lr_scheduler)
        self.is_main_process, self.world_size = start()                 # True and 1, unless torchrun started several processes
        self.config, self.model, self.tokenizer, self.lr_scheduler = config, model, tokenizer, lr_scheduler
        self.ref_model = create_reference_model(model) if ref_model is None else ref_model.eval().requires_grad_(False)
        self.trainable = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = optimizer or torch.optim.Adam(self.trainable, lr=config.learning_rate, eps=config.adam_eps, fused=True)
        self.kl_controller = (AdaptiveKLController(config.init_kl_coef, config.target, config.horizon)
                              if config.adap_kl_ctrl else FixedKLController(config.init_kl_coef))
        self.moments = RunningMoments()                                 # of the scores
        self.generator = torch.Generator().manual_seed(config.seed)     # the only source of randomness, on every device
        self.eos_token_id = getattr(tokenizer, "eos_token_id", None)    # where responses end, unless generate is told another
        self.sampled_at = config.temperature                            # of the latest sampling; step() warns of another
        self.steps_done, self.warned_of_filters, self.critic = 0, False, config.advantage == "gae"
        check_same("configuration", config, model.config)
        in_place("the weights", [*model.parameters(), *self.ref_model.parameters()], from_first=True)
        prepare_models(model, self.ref_model, config.gradient_checkpointing, config.compile)

    def generate(self, queries: Sequence[Tensor], return_prompt: bool = False, length_sampler: Callable[[], int] | None = None,
                 **generation_kwargs) -> list[Tensor]:
        """Sample a response to each query: a list of 1-D tensors, each up to and including its first EOS.

        Args:
            return_prompt: put the query before each response; `step` wants the responses alone.
            length_sampler: called once per query for its max_new_tokens.
            generation_kwargs: those of model.generate. EOS is the tokenizer's unless eos_token_id is given, None included.
        """
        kwargs = {"eos_token_id": self.eos_token_id, "temperature": self.config.temperature, **generation_kwargs}
        if kwargs.get("seed") is None and kwargs.get("generator") is None:
            kwargs["generator"] = self.generator
        if length_sampler is not None:
            kwargs["max_new_tokens"] = of_each("the limits", [int(length_sampler()) for _ in queries])[0]
        self.warned_of_filters = self.warned_of_filters or warn_of_filters(kwargs)
        own = self.model.generate(queries, rows=share(range(len(queries))), **kwargs)
        check_same("queries", *queries)
        each = of_each("the responses", own if self.world_size == 1 else [response.cpu() for response in own])
        responses = [response.to(self.model.device) for response in interleave(each)]
        self.sampled_at = kwargs["temperature"] if kwargs.get("do_sample", True) else self.sampled_at
        return [torch.cat([torch.as_tensor(q).to(r), r]) for q, r in zip(queries, responses)] if return_prompt else responses

    @training_modes
    def step(self, queries: Sequence[Tensor], responses: Sequence[Tensor], scores: Sequence | Tensor,
             temperature: float | None = None) -> dict:
        """One PPO iteration on B >= 1 scored responses. Bad input raises before anything changes; an error or Ctrl+C later leaves
        the optimizer steps that were taken, and all else as it was.

        Args:
            queries, responses: B non-empty 1-D token tensors each; responses without the query.
            scores: B numbers, or a (B,) tensor; a tensor (R_i,) in the place of a number holds one reward a token.
            temperature: at which the responses were sampled; None: config.temperature.

        Returns: statistics under TRL's keys; metrics.METRICS says what each one means.
        """
        config, clock = self.config, Stopwatch(self.model.device)
        check_trainable(self.model, self.trainable, self.optimizer)
        batch = Batch(*check_pairs(queries, responses, self.model.config.vocab_size, self.model.config.n_positions),
                      check_temperature(config.temperature if temperature is None else temperature, self.sampled_at))
        check_groups(batch.queries, config.group_size)
        generator, moments = self.generator.clone_state(), RunningMoments(**vars(self.moments))
        check_same("queries, responses or random numbers", *batch.queries, *batch.responses, generator.get_state())
        scores = of_each("the scores", check_scores(scores, batch.responses))[0]    # a judge may not say the same to each process
        batch.scores = self.process_scores(scores, batch.responses, moments)
        epochs = [self.minibatches(batch, generator) for _ in range(config.ppo_epochs)]
        clock.lap("time/ppo/prepare")

        self.forward_pass(batch, epochs[0])
        clock.lap("time/ppo/forward_pass")

        rewards, batch.non_score_reward, batch.kl = compute_rewards(batch.scores, batch.logprobs, batch.ref_logprobs, batch.mask,
                                                                    self.kl_controller.value, config.kl_penalty, batch.kl)
        batch.rewards = masked_whiten(rewards, batch.mask, shift_mean=False) if config.whiten_rewards else rewards
        clock.lap("time/ppo/compute_rewards")

        if self.critic:
            advantages, batch.returns = compute_advantages(batch.values, batch.rewards, batch.mask, config.gamma, config.lam)
        else:
            advantages = compute_group_advantages(batch.rewards, batch.mask, config.group_size, config.advantage)
            batch.returns = batch.values                                # both 0: no critic
        batch.advantages = advantages if config.advantage == "grpo" else masked_whiten(advantages, batch.mask)
        clock.lap("time/ppo/compute_advantages")

        stats = self.update(batch, [minibatch for epoch in epochs for minibatch in epoch])
        clock.lap("time/ppo/optimize_step")
        stats |= batch_stats(batch, config) | {"objective/kl_coef": self.kl_controller.value,
                                               "ppo/learning_rate": float(self.optimizer.param_groups[0]["lr"])}
        self.kl_controller.update(stats["objective/kl"], len(batch.queries))
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        self.generator.set_state(generator.get_state())                 # the step has succeeded: keep what it moved
        self.moments, self.steps_done = moments, self.steps_done + 1
        clock.lap("time/ppo/calc_stats")
        warn_of_negative_kl(stats["objective/kl"])
        return stats | clock.seconds()

    def process_scores(self, scores: Tensor, responses: list[Tensor], moments: RunningMoments) -> Tensor:
        """The scores as they are rewarded, (B,) or (B, R): penalty for a missing EOS, running scale and mean, clip."""
        config = self.config
        if config.missing_eos_penalty is not None:
            scores = penalise_missing_eos(scores, responses, self.eos_token_id, config.missing_eos_penalty)
        if config.use_score_scaling:
            scores = moments.scale(scores, center=config.use_score_norm)
        return scores if config.score_clip is None else scores.clamp(-config.score_clip, config.score_clip)

    def minibatches(self, batch: Batch, generator: torch.Generator) -> list[list[int]]:
        """One epoch: minibatches of row numbers, shuffled; within each the rows are sorted by length."""
        lengths = [len(query) + len(response) for query, response in zip(batch.queries, batch.responses)]
        order = torch.randperm(len(lengths), generator=generator, device="cpu").tolist()
        size = self.config.mini_batch_size * self.config.gradient_accumulation_steps
        return [sorted(order[i:i + size], key=lengths.__getitem__) for i in range(0, len(order), size)]

    def micro_batches(self, minibatch: list[int]) -> list[list[int]]:
        """What goes through the model at once: rows of like length share a micro-batch, so that there is little padding."""
        rows, size = share(minibatch), self.config.mini_batch_size
        return [rows[i:i + size] for i in range(0, len(rows), size)]

    @torch.no_grad()
    def forward_pass(self, batch: Batch, minibatches: list[list[int]]) -> None:
        """Fill in what policy and reference say of the responses. In the micro-batches of the first epoch: the same rows in the
        same shapes go through the same kernels, so the first minibatch's ratio is 1 to the last bit, in every precision."""
        (batch.mask,) = upload([response_mask(batch.responses)], self.model.device)
        full = self.config.kl_penalty == "full"
        columns = self.model.v_head.weight.new_zeros(4 if full else 3, *batch.mask.shape)
        batch.logprobs, batch.ref_logprobs, batch.values = columns[:3]                                  # views of it
        batch.kl = columns[3] if full else None
        for rows in (rows for minibatch in minibatches for rows in self.micro_batches(minibatch)):
            aligned = align(batch.queries, batch.responses, self.model.device, rows)
            index, width = aligned.rows, aligned.mask.shape[1]
            with torch.set_grad_enabled(self.config.compile):           # a compiled block has another graph without gradients
                policy = evaluate_responses(self.model, aligned, batch.temperature, critic=self.critic)
            batch.logprobs[index, :width], batch.values[index, :width] = policy.logprobs.detach(), policy.values.detach()
            del policy                                                  # and with it the graph of a compiled block
            reference = evaluate_responses(self.ref_model, aligned, batch.temperature, critic=False)
            batch.ref_logprobs[index, :width] = reference.logprobs
            if full:
                batch.kl[index, :width] = response_kl(self.model, self.ref_model, aligned, batch.temperature)
        in_place("the forward pass", [columns])                         # the rows of other processes were 0 so far

    def update(self, batch: Batch, minibatches: list[list[int]]) -> dict:
        """The optimization: for each minibatch its gradient, the guards, an optimizer step. Returns means over those applied."""
        config, records, applied, ratios = self.config, [], [], []
        counts = {"ppo/skipped": 0, "ppo/skipped_nonfinite": 0, "ppo/early_stopped": 0}
        for minibatch in minibatches:
            record, grad_norm, of_minibatch = self.backward(batch, minibatch)
            records.append(record)
            ratios += of_minibatch
            finite = math.isfinite(record["ppo/loss/total"]) and math.isfinite(record["ppo/grad_norm"])
            if config.early_stopping and record["ppo/policy/approxkl"] > 1.5 * config.target_kl:
                counts["ppo/early_stopped"] = 1                         # before the optimizer moves: nothing is to be undone
                break
            if not finite or record["ppo/policy/ratio_mean"] > config.ratio_threshold:
                counts["ppo/skipped"] += 1                              # whole: neither the weights nor Adam's moments see it
                counts["ppo/skipped_nonfinite"] += not finite
                continue
            if config.max_grad_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(self.trainable, config.max_grad_norm, grad_norm)
            self.optimizer.step()
            applied.append(record)
        self.model.zero_grad()                                          # give the gradients' memory back
        ratio, mask = torch.cat([torch.stack(pair).flatten(1) for pair in ratios], 1).cpu()     # one host sync, mask as 0 and 1
        return mean_of(applied or records) | counts | {"ppo/updates": len(applied), "ppo/policy/ratio": ratio[mask.bool()]}

    def backward(self, batch: Batch, minibatch: list[int]) -> tuple[dict, Tensor, list[tuple[Tensor, Tensor]]]:
        """The gradient of a minibatch. Returns its statistics, the norm, and ratio and mask (b, R) of this process's micro-batches."""
        config, totals, ratios = self.config, [], []
        n_tokens = sum(len(batch.responses[row]) for row in minibatch)
        scale = 2.0 ** n_tokens.bit_length() if self.model.transformer.compute_dtype == torch.float16 else 1.0
        self.model.zero_grad()                                          # also of an interrupted step, or a backward() of yours
        n_tokens = n_tokens if share(minibatch) else math.inf           # no row for this process: it takes one, divided to 0
        for rows in self.micro_batches(minibatch) or [minibatch[:1]]:
            aligned = align(batch.queries, batch.responses, self.model.device, rows)
            new = evaluate_responses(self.model, aligned, batch.temperature, config.entropy_coef > 0, self.critic)
            logprobs, values, advantages, returns = (
                x[aligned.rows, :new.mask.shape[1]] for x in (batch.logprobs, batch.values, batch.advantages, batch.returns))
            loss, stats = ppo_loss(new.logprobs, new.values if self.critic else None, logprobs, values, advantages, returns, new.mask,
                                   config.cliprange, config.cliprange_value, config.vf_coef, new.entropy, config.entropy_coef, n_tokens)
            (loss * scale).backward()                                   # fp16 has no numbers for a mean over many tokens
            totals.append(torch.stack(list(stats.values())))
            ratios.append(((new.logprobs.detach() - logprobs).exp(), new.mask & (n_tokens < math.inf)))     # cut out later: it syncs
        gradients, totals = [p.grad for p in self.trainable if p.grad is not None], torch.stack(totals).sum(0)
        in_place("the gradient", [*gradients, totals])
        if scale != 1.0:
            torch._foreach_div_(gradients, scale)
        grad_norm = torch.nn.utils.get_total_norm(gradients)
        numbers = torch.cat([totals, grad_norm[None]]).tolist()         # the one host sync of a minibatch
        return dict(zip([*stats, "ppo/grad_norm"], numbers)), grad_norm, ratios

    def save_checkpoint(self, folder: str) -> None:
        """Write all that the next step depends on; the folder is also a model folder that from_pretrained loads."""
        save_state(folder, self)

    def load_checkpoint(self, folder: str) -> None:
        """Continue from a checkpoint, on a CPU bit for bit. It is read and checked whole before anything here changes."""
        load_state(folder, self)
