"""PPO fine-tuning of a language model (RLHF): the whole algorithm, in the order in which it happens.

One `PPOTrainer.step` is one iteration of Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences":

    rollout      log-probabilities of the responses under the policy and under the frozen reference, and values
    scores       one number per response, from outside: a function, a model, a person
    KL reward    reward of token t = -kl_coef * (logprob - ref_logprob), plus the score on the last token
    advantages   GAE (Schulman et al. 2016): how much better than expected did it go from token t on?
    update       several epochs of minibatches with the clipped losses of PPO (Schulman et al. 2017)
    controller   kl_coef moves so that the KL of a response approaches its target

It mirrors the classic PPOTrainer of TRL <= 0.11, with its names and defaults. Run it: `python -m minippo`.

What was left out, and why:
1. Several GPUs, adapters, trackers: this file is the algorithm; run.py writes a run's files.
2. Terminal bootstrap: a response is over after its last token, also when the length limit cut it. The value behind it is 0.
3. Dropout: the model has none, so the first ratio of every step is exactly 1.

Shapes, the same in every line: B batch, b micro-batch, R longest response. Column t of a (B, R) tensor belongs to response
token t; `mask` (B, R) is True at real tokens. *Score* is per response, *reward* per token; `logprobs` without a prefix are
those of the rollout, `new_` those recomputed during the update.
"""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass
from numbers import Real
from typing import Callable, NamedTuple, Sequence

import torch
from torch import Tensor

from .files.checkpoint import load_state, save_state
from .policy import Evaluation, GPT2WithValueHead, check_pairs, create_reference_model, evaluate_responses, response_kl


# --- configuration --------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class PPOConfig:
    """Names and defaults of TRL 0.11's PPOConfig where the field still means something; the last group is ours."""
    # batches
    batch_size: int = 128                   # responses per step; step() takes any number, this is what a run collects
    mini_batch_size: int = 128              # responses per forward and backward pass: what must fit into memory
    gradient_accumulation_steps: int = 1    # passes per optimizer step; exact, also where token counts differ
    ppo_epochs: int = 4                     # times that each batch is used
    # optimizer
    learning_rate: float = 1.41e-5          # of Adam
    adam_eps: float = 1e-8                  # OpenAI's TensorFlow code used 1e-5, which damps the first updates
    max_grad_norm: float | None = None      # clip the gradient's norm at every optimizer step; none: no clipping
    # KL penalty
    kl_penalty: str = "kl"                  # kl: logprob - ref_logprob; abs: its absolute value; mse: half its square; full: exact
    adap_kl_ctrl: bool = True               # adapt kl_coef so that KL approaches `target`; off: init_kl_coef stays
    init_kl_coef: float = 0.2               # the first kl_coef
    target: float = 6.0                     # KL of a whole response, in nats, that the controller steers to
    horizon: float = 10000.0                # responses over which it acts: larger is slower
    # advantages
    gamma: float = 1.0                      # discount: a token is not worth less for coming later
    lam: float = 0.95                       # GAE: 0 trusts the values alone, 1 the sampled return alone
    whiten_rewards: bool = False            # rewards to variance 1, their mean kept
    # losses
    cliprange: float = 0.2                  # the ratio gains nothing outside 1 +- cliprange
    cliprange_value: float = 0.2            # a value moves at most this far from the rollout's
    vf_coef: float = 0.1                    # weight of the value loss
    entropy_coef: float = 0.0               # bonus for entropy; KL against the reference usually does this work
    # guards
    ratio_threshold: float = 10.0           # a minibatch whose mean ratio exceeds this is skipped whole
    early_stopping: bool = False            # end the step when a minibatch's KL to the rollout policy exceeds 1.5 * target_kl
    target_kl: float = 1.0                  # for early_stopping, in nats per token
    # scores
    use_score_scaling: bool = False         # divide scores by their running standard deviation
    use_score_norm: bool = False            # subtract their running mean first; needs use_score_scaling
    score_clip: float | None = None         # clip the scores, scaled or not, to +- this; none: no clipping
    missing_eos_penalty: float | None = None    # taken off the score of a response that did not end with EOS
    # sampling and reproducibility
    temperature: float = 1.0                # divides the logits, when sampling and when scoring alike
    seed: int = 0                           # of the one generator behind sampling and shuffling
    # memory and speed
    gradient_checkpointing: bool = False    # recompute the blocks in the backward pass
    compile: bool = False                   # torch.compile each block: worth it on a GPU for long runs

    def __post_init__(self):
        def require(names: str, wanted: str, holds: Callable[[float], bool]) -> None:
            for name in names.split():
                value = getattr(self, name)
                if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or not holds(value):
                    raise ValueError(f"PPOConfig: {name} must be {wanted}, got {value!r}")

        require("batch_size mini_batch_size gradient_accumulation_steps ppo_epochs", "a whole number above 0",
                lambda x: isinstance(x, int) and x > 0)
        require("adam_eps target horizon cliprange cliprange_value ratio_threshold target_kl temperature", "a number above 0",
                lambda x: x > 0)
        require("learning_rate init_kl_coef vf_coef entropy_coef", "a number of at least 0", lambda x: x >= 0)
        require("gamma lam", "a number from 0 to 1", lambda x: 0 <= x <= 1)
        optional = "max_grad_norm score_clip missing_eos_penalty"
        require(" ".join(name for name in optional.split() if getattr(self, name) is not None), "None or a number above 0",
                lambda x: x > 0)
        if self.kl_penalty not in ("kl", "abs", "mse", "full"):
            raise ValueError(f"PPOConfig: kl_penalty must be one of kl, abs, mse, full; got {self.kl_penalty!r}")
        if self.use_score_norm and not self.use_score_scaling:
            raise ValueError("PPOConfig: use_score_norm needs use_score_scaling=True; alone it would do nothing")


# --- masked statistics: the mean of real tokens, each with the same weight ------------------------------------------

def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x where mask is True; 0 where there is nothing."""
    mask = mask.bool()
    return torch.where(mask, x, 0.0).sum() / mask.sum().clamp(min=1)        # where, not multiply: 0 * nan is nan


def masked_var(x: Tensor, mask: Tensor) -> Tensor:
    """Variance with n - 1 of x where mask is True; 0 for a single element, where TRL's NaN reached the weights."""
    mask = mask.bool()
    squares = torch.where(mask, (x - masked_mean(x, mask)) ** 2, 0.0)
    return squares.sum() / (mask.sum() - 1).clamp(min=1)


def masked_whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """x with mean 0 (or its own mean, if shift_mean is False) and variance 1 inside the mask, 0 outside."""
    wide = x.double()                   # in fp32 equal numbers differ from their mean by rounding, which a variance of 0 blows up
    mean, var = masked_mean(wide, mask), masked_var(wide, mask)
    whitened = (wide - mean) * torch.rsqrt(var + 1e-8)
    return torch.where(mask.bool(), whitened if shift_mean else whitened + mean, 0.0).to(x.dtype)


# --- scores ---------------------------------------------------------------------------------------------------------

def check_scores(scores: Sequence | Tensor, responses: list[Tensor]) -> Tensor:
    """Scores as an fp32 tensor: (B,) for one number a response, (B, R) for one reward a token; ValueError otherwise."""
    if isinstance(scores, (str, bytes)) or not hasattr(scores, "__len__") or (isinstance(scores, Tensor) and scores.dim() == 0):
        raise ValueError(f"scores: expected a list of {len(responses)} numbers or a tensor of that length, got {scores!r:.80}")
    if len(scores) != len(responses):
        raise ValueError(f"expected {len(responses)} scores, one for each response, got {len(scores)}")
    scores = scores.detach().cpu() if isinstance(scores, Tensor) else scores        # one host sync, not one a row
    rows = []
    for i, score in enumerate(scores):
        if not isinstance(score, (Real, Tensor)):
            raise ValueError(f"scores[{i}]: expected a number or a tensor, got {type(score).__name__} {score!r:.40}")
        row = torch.as_tensor(score).detach().to("cpu", torch.float32)
        if not torch.isfinite(row).all():
            raise ValueError(f"scores[{i}] is not finite: {row.tolist()!r:.80}; check the score function on this response")
        rows.append(row)
    if all(row.numel() == 1 for row in rows):
        return torch.stack([row.reshape(()) for row in rows])
    for i, (row, response) in enumerate(zip(rows, responses)):
        if row.shape != response.shape:
            raise ValueError(f"scores[{i}]: expected one number, or {len(response)} per-token rewards for the {len(response)} "
                             f"tokens of its response, got shape {tuple(row.shape)}")
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


class RunningMoments:
    """Mean and variance of all scores so far, merged batch by batch (Chan et al. 1979)."""

    def __init__(self, mean: float = 0.0, var: float = 0.0, count: float = 0.0):
        self.mean, self.var, self.count = mean, var, count

    def update(self, x: Tensor) -> None:
        x = x.double()                  # in fp32 equal scores would have a tiny variance, and dividing by it blows them up
        n, mean, var = x.numel(), float(x.mean()), float(x.var(unbiased=False))
        total, delta = self.count + n, mean - self.mean
        self.var = (self.var * self.count + var * n + delta**2 * self.count * n / total) / total
        self.mean += delta * n / total
        self.count = total

    @property
    def std(self) -> float:
        """With n - 1; 1 while all scores were equal, so that a constant score is not blown up."""
        std = math.sqrt(self.var * self.count / max(1.0, self.count - 1))
        return std if std > 0 else 1.0


# --- KL reward ------------------------------------------------------------------------------------------------------

def kl_penalty(logprobs: Tensor, ref_logprobs: Tensor, kind: str) -> Tensor:
    """How far the policy is from the reference at each token.

    kl: the k1 estimate logprob - ref_logprob, right on average and negative for single tokens (Schulman, "Approximating KL
    divergence", 2020); abs: its absolute value; mse: half its square (k2); full: the exact KL(policy || reference), for
    which both arguments are whole log-distributions (..., V) and the result is (...).
    """
    difference = logprobs - ref_logprobs
    if kind == "kl":
        return difference
    if kind == "abs":
        return difference.abs()
    if kind == "mse":
        return 0.5 * difference**2
    if kind == "full":
        return (logprobs.exp() * difference).sum(-1)
    raise ValueError(f"kl_penalty: expected one of kl, abs, mse, full, got {kind!r}")


_token_kl = kl_penalty          # compute_rewards has an argument of that name


class Rewards(NamedTuple):
    rewards: Tensor             # (B, R): what each token earned
    non_score_reward: Tensor    # (B, R): the part of it that is the KL penalty, -kl_coef * kl
    kl: Tensor                  # (B, R): the penalty before its coefficient


def compute_rewards(scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, kl_coef: float,
                    kl_penalty: str = "kl", kl: Tensor | None = None) -> Rewards:
    """Per-token rewards: the KL penalty at every token, the score on the last real one (Ziegler et al. 2019, eq. 2).

    Args:
        scores: (B,) one score a response, or (B, R) rewards per token, which are added where they stand.
        logprobs, ref_logprobs: (B, R); (B, R, V) log-distributions for kl_penalty="full".
        mask: (B, R), True at real response tokens.
        kl: (B, R) the penalty where it is already known; exact KL is computed without keeping (B, R, V) tensors.
    """
    mask = mask.bool()
    kl = _token_kl(logprobs, ref_logprobs, kl_penalty) if kl is None else kl
    kl = torch.where(mask, kl, 0.0)
    non_score_reward = -kl_coef * kl
    scores = torch.as_tensor(scores, dtype=kl.dtype, device=kl.device)
    if scores.dim() == 1:
        columns = torch.arange(mask.shape[1], device=mask.device)
        last = torch.where(mask, columns, -1).amax(1, keepdim=True)         # (B, 1): EOS, or the token at the length limit
        scores = torch.where(columns == last, scores[:, None], 0.0)
    return Rewards(non_score_reward + torch.where(mask, scores, 0.0), non_score_reward, kl)


# --- advantages -----------------------------------------------------------------------------------------------------

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
    returns = advantages + values                                           # before whitening: the values learn real returns
    return advantages, returns


# --- losses ---------------------------------------------------------------------------------------------------------

def ppo_loss(new_logprobs: Tensor, new_values: Tensor, logprobs: Tensor, values: Tensor, advantages: Tensor, returns: Tensor,
             mask: Tensor, cliprange: float = 0.2, cliprange_value: float = 0.2, vf_coef: float = 0.1,
             entropy: Tensor | None = None, entropy_coef: float = 0.0,
             n_tokens: Tensor | int | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """The clipped policy loss (Schulman et al. 2017, eq. 7) and value loss (OpenAI baselines, ppo2), averaged over real tokens.

    Args:
        new_logprobs, new_values: (b, R) under the weights being trained, with gradients.
        logprobs, values, advantages, returns: (b, R) from the rollout, fixed; advantages are whitened already.
        entropy: (b, R) entropy of the new distributions, measured, and rewarded by entropy_coef.
        n_tokens: what sums are divided by; the token count of the whole minibatch when this is one micro-batch of it, so
            that the micro-batches add up to the exact gradient. Default: the tokens given.

    Returns:
        the loss, and detached statistics under TRL's keys, each a sum over these tokens divided by n_tokens.
    """
    mask = mask.bool()
    n_tokens = mask.sum().clamp(min=1) if n_tokens is None else n_tokens
    values, returns = torch.where(mask, values, 0.0), torch.where(mask, returns, 0.0)
    advantages = torch.where(mask, advantages, 0.0)
    new_values = torch.where(mask, new_values, 0.0)
    log_ratio = torch.where(mask, new_logprobs - logprobs, 0.0)

    def mean(x: Tensor) -> Tensor:
        return torch.where(mask, x, 0.0).sum() / n_tokens

    ratio = log_ratio.exp()
    pg_losses = -advantages * ratio
    pg_losses_clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    pg_loss = mean(torch.maximum(pg_losses, pg_losses_clipped))             # the worse of the two: no gain from going too far

    values_clipped = torch.clamp(new_values, values - cliprange_value, values + cliprange_value)
    vf_losses, vf_losses_clipped = (new_values - returns) ** 2, (values_clipped - returns) ** 2
    vf_loss = 0.5 * mean(torch.maximum(vf_losses, vf_losses_clipped))

    loss = pg_loss + vf_coef * vf_loss
    if entropy is not None and entropy_coef:
        loss = loss - entropy_coef * mean(entropy)
    stats = {
        "ppo/loss/policy": pg_loss,
        "ppo/loss/value": vf_loss,
        "ppo/loss/total": loss,
        "ppo/policy/entropy": mean(entropy if entropy is not None else torch.zeros_like(ratio)),
        "ppo/policy/approxkl": 0.5 * mean(log_ratio**2),                    # k2, between rollout policy and new policy
        "ppo/policy/policykl": mean(-log_ratio),                            # k1
        "ppo/policy/clipfrac": mean((pg_losses_clipped > pg_losses).float()),
        "ppo/policy/advantages_mean": mean(advantages),
        "ppo/policy/ratio_mean": mean(ratio),
        "ppo/val/vpred": mean(new_values),
        "ppo/val/error": mean(vf_losses),
        "ppo/val/clipfrac": mean((vf_losses_clipped > vf_losses).float()),
    }
    return loss, {name: value.detach() for name, value in stats.items()}


# --- KL controllers -------------------------------------------------------------------------------------------------

class AdaptiveKLController:
    """Moves kl_coef in proportion to the error, at most 20 % per `horizon` responses (Ziegler et al. 2019, section 2.2)."""

    def __init__(self, init_kl_coef: float, target: float, horizon: float):
        self.value, self.target, self.horizon = init_kl_coef, target, horizon

    def update(self, kl: float, n_steps: int) -> None:
        """kl: nats per response, averaged over n_steps responses."""
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.value *= 1 + error * min(n_steps / self.horizon, 1)        # a batch beyond the horizon must not turn the sign


class FixedKLController:
    def __init__(self, kl_coef: float):
        self.value = kl_coef

    def update(self, kl: float, n_steps: int) -> None:
        pass


# --- the trainer ----------------------------------------------------------------------------------------------------

def std(x: Tensor) -> Tensor:
    """Standard deviation with n - 1; 0 for a single number, where torch gives NaN."""
    return x.std() if x.numel() > 1 else torch.zeros_like(x).sum()


class Stopwatch:
    """Seconds of each phase; on CUDA it waits for the device, so that a phase is charged with its own work."""

    def __init__(self, device: torch.device):
        self.device, self.times = device, {}
        self.start = self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.times |= {name: now - self.last, "time/ppo/total": now - self.start}
        self.last = now


class Rollout(NamedTuple):
    """What the policy and the reference said of the responses before the update."""
    logprobs: Tensor        # (B, R)
    ref_logprobs: Tensor    # (B, R)
    values: Tensor          # (B, R): of the state before each token
    mask: Tensor            # (B, R) bool
    full_kl: Tensor | None  # (B, R): exact KL, for kl_penalty="full" alone


class PPOTrainer:
    """Trains `model` with PPO: `generate` responses, score them, `step`.

    Args:
        config: the settings.
        model: the policy with its value head; trained in place.
        ref_model: what KL is measured against; None makes a frozen copy of `model` as it is now.
        tokenizer: only for its eos_token_id and to save it beside the model; None: token ids in, token ids out.
        optimizer: over model.parameters(); None: fused Adam.
        lr_scheduler: a scheduler of that optimizer, stepped once per step().
    """

    def __init__(self, config: PPOConfig, model: GPT2WithValueHead, ref_model: GPT2WithValueHead | None = None,
                 tokenizer=None, optimizer: torch.optim.Optimizer | None = None, lr_scheduler=None):
        if ref_model is not None and ref_model.config.vocab_size != model.config.vocab_size:
            raise ValueError(f"the model has {model.config.vocab_size} tokens, the reference {ref_model.config.vocab_size}")
        if lr_scheduler is not None and optimizer is None:
            raise ValueError("lr_scheduler was given without the optimizer that it schedules: pass both")
        if isinstance(lr_scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise ValueError("lr_scheduler: ReduceLROnPlateau needs a metric at every step: keep it apart and call it with yours")
        if ref_model is model:
            raise ValueError("ref_model is the model itself and would move with it: pass create_reference_model(model) or None")
        self.config, self.model, self.tokenizer = config, model, tokenizer
        self.ref_model = create_reference_model(model) if ref_model is None else ref_model.eval().requires_grad_(False)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = optimizer or torch.optim.Adam(self.parameters, lr=config.learning_rate, eps=config.adam_eps, fused=True)
        self.lr_scheduler = lr_scheduler
        self.kl_controller = (AdaptiveKLController(config.init_kl_coef, config.target, config.horizon)
                              if config.adap_kl_ctrl else FixedKLController(config.init_kl_coef))
        self.moments = RunningMoments()
        self.generator = torch.Generator().manual_seed(config.seed)     # the only source of randomness, on every device
        self.temperature = config.temperature                           # of the latest sampling, for step() to score with
        self.eos_token_id = getattr(tokenizer, "eos_token_id", None)    # of the latest sampling, for missing_eos_penalty
        self.steps_done = 0
        self.warned_of_filters = False
        model.transformer.gradient_checkpointing = config.gradient_checkpointing
        if config.compile:
            for block in [*model.transformer.h, *self.ref_model.transformer.h]:
                block.compile()
            model.transformer.skip_padding = self.ref_model.transformer.skip_padding = False
        if model.device.type == "cuda" and model.transformer.compute_dtype != torch.float32:
            torch.set_float32_matmul_precision("high")                  # the fp32 head in TF32, 3 bits more than bf16; process-wide

    # --- 1. sampling --------------------------------------------------------------------------------------------------

    def generate(self, queries: Sequence[Tensor], return_prompt: bool = False, length_sampler: Callable[[], int] | None = None,
                 **generation_kwargs) -> list[Tensor]:
        """Sample a response to each query: a list of 1-D tensors, each up to and including its first EOS.

        Args:
            queries: B 1-D token tensors.
            return_prompt: put the query before each response. `step` wants the responses alone.
            length_sampler: called once per query for its max_new_tokens.
            generation_kwargs: those of model.generate. EOS is the tokenizer's unless eos_token_id is given, None included.
                `step` scores at the temperature of the latest sampling here: sample for an evaluation with model.generate.
        """
        kwargs = {"eos_token_id": getattr(self.tokenizer, "eos_token_id", None), "temperature": self.config.temperature,
                  **generation_kwargs}
        if kwargs.get("seed") is None:
            kwargs.setdefault("generator", self.generator)
        if length_sampler is not None:
            kwargs["max_new_tokens"] = [int(length_sampler()) for _ in queries]
        filtered = [name for name in ("top_k", "min_length", "min_new_tokens") if (kwargs.get(name) or 0) > 0]
        filtered += ["top_p"] if (kwargs.get("top_p") or 1) < 1 else []
        if filtered and not self.warned_of_filters:
            self.warned_of_filters = True
            warnings.warn(f"{', '.join(filtered)}: the responses no longer come from the distribution that step() scores, so KL can "
                          "turn negative and be 'earned'; for training sample with top_k=0, top_p=1.0, min_length=-1", stacklevel=2)
        responses = self.model.generate(queries, **kwargs)
        if kwargs.get("do_sample", True):
            self.temperature, self.eos_token_id = kwargs["temperature"], kwargs["eos_token_id"]
        if return_prompt:
            return [torch.cat([torch.as_tensor(q).to(r), r]) for q, r in zip(queries, responses)]
        return responses

    # --- 2. one PPO step ----------------------------------------------------------------------------------------------

    def step(self, queries: Sequence[Tensor], responses: Sequence[Tensor], scores: Sequence | Tensor) -> dict:
        """One PPO iteration on B >= 1 scored responses. Nothing has changed yet when bad input raises.

        Args:
            queries, responses: B non-empty 1-D token tensors each; responses without the query.
            scores: B numbers, or a (B,) tensor; or B tensors (R_i,) of per-token rewards.

        Returns:
            statistics under TRL's keys; report.METRICS says what each one means.
        """
        config, clock = self.config, Stopwatch(self.model.device)
        queries, responses = check_pairs(self.model, queries, responses)
        scores = self.process_scores(check_scores(scores, responses), responses)
        epochs = self.shuffle([len(q) + len(r) for q, r in zip(queries, responses)])
        clock.lap("time/ppo/prepare")

        rollout = self.rollout(queries, responses, [rows for minibatch in epochs[0] for rows in minibatch])
        clock.lap("time/ppo/forward_pass")

        scores = scores.to(rollout.mask.device)
        rewards, non_score_reward, kl = compute_rewards(scores, rollout.logprobs, rollout.ref_logprobs, rollout.mask,
                                                        self.kl_controller.value, config.kl_penalty, rollout.full_kl)
        if config.whiten_rewards:
            rewards = masked_whiten(rewards, rollout.mask, shift_mean=False)
        clock.lap("time/ppo/compute_rewards")

        advantages, returns = compute_advantages(rollout.values, rewards, rollout.mask, config.gamma, config.lam)
        advantages = masked_whiten(advantages, rollout.mask)                # after the returns, and once over the batch
        clock.lap("time/ppo/compute_advantages")

        update_stats = self.update(queries, responses, rollout, advantages, returns, epochs)
        clock.lap("time/ppo/optimize_step")

        stats = self.rollout_stats(queries, responses, scores, rollout, non_score_reward, returns) | update_stats
        variance = stats["ppo/returns/var"]
        stats["ppo/val/var_explained"] = 1 - stats["ppo/val/error"] / variance if variance > 0 else 0.0
        stats["ppo/policy/advantages"] = advantages[rollout.mask].cpu()     # (N,), one number a real token
        stats["ppo/learning_rate"] = float(self.optimizer.param_groups[0]["lr"])
        self.kl_controller.update(stats["objective/kl"], len(queries))
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        self.steps_done += 1
        if stats["objective/kl"] < -1:
            warnings.warn(f"KL is {stats['objective/kl']:.2f} nats per response: sampling and scoring disagree (top_k, top_p, "
                          "min_length, another temperature, responses of another model?)", stacklevel=2)
        clock.lap("time/ppo/calc_stats")
        return stats | clock.times

    def process_scores(self, scores: Tensor, responses: list[Tensor]) -> Tensor:
        """The scores as they are rewarded: penalty for a missing EOS, running scale and mean, clip."""
        config = self.config
        if config.missing_eos_penalty is not None:
            if self.eos_token_id is None:
                raise ValueError("missing_eos_penalty needs to know the EOS token: give the trainer a tokenizer, or "
                                 "eos_token_id to generate")
            for i, response in enumerate(responses):
                if int(response[-1]) != self.eos_token_id:
                    scores[(i,) if scores.dim() == 1 else (i, len(response) - 1)] -= config.missing_eos_penalty
        if config.use_score_scaling:
            if scores.dim() > 1:
                raise ValueError("use_score_scaling works on one score per response, but per-token rewards were given")
            self.moments.update(scores)
            scores = (scores - self.moments.mean if config.use_score_norm else scores) / self.moments.std
        if config.score_clip is not None:
            scores = scores.clamp(-config.score_clip, config.score_clip)
        return scores

    def shuffle(self, lengths: list[int]) -> list[list[list[list[int]]]]:
        """Epochs of minibatches of micro-batches of row numbers; a minibatch is one optimizer step.

        Each epoch shuffles the rows anew. Inside a minibatch the rows are sorted by length, so that a micro-batch, padded to
        its own longest row, wastes little; the order inside a minibatch does not matter to its gradient.
        """
        config, epochs = self.config, []
        size = config.mini_batch_size * config.gradient_accumulation_steps
        for _ in range(config.ppo_epochs):
            order = torch.randperm(len(lengths), generator=self.generator).tolist()
            minibatches = [sorted(order[i:i + size], key=lambda row: lengths[row]) for i in range(0, len(order), size)]
            epochs.append([[rows[i:i + config.mini_batch_size] for i in range(0, len(rows), config.mini_batch_size)]
                           for rows in minibatches])
        return epochs

    @torch.no_grad()
    def rollout(self, queries: list[Tensor], responses: list[Tensor], micro_batches: list[list[int]]) -> Rollout:
        """Score the responses under the policy and under the reference, in the given micro-batches.

        They are those of the first epoch: the same rows in the same shapes go through the same kernels, so that the ratio of
        the first minibatch is 1 to the last bit, in every precision.
        """
        B, R = len(queries), max(len(response) for response in responses)
        columns = {name: torch.zeros(B, R, device=self.model.device) for name in ("logprobs", "ref_logprobs", "values", "kl")}
        mask = torch.zeros(B, R, dtype=torch.bool, device=self.model.device)
        for rows in micro_batches:
            q, r = [queries[row] for row in rows], [responses[row] for row in rows]
            with torch.set_grad_enabled(self.config.compile):           # a compiled block has another graph without gradients
                policy = evaluate_responses(self.model, q, r, self.temperature)
            policy = Evaluation(*(x.detach() for x in policy))          # frees that graph
            reference = evaluate_responses(self.ref_model, q, r, self.temperature)
            index, width = torch.tensor(rows).to(mask.device, non_blocking=True), policy.mask.shape[1]
            mask[index, :width] = policy.mask
            columns["logprobs"][index, :width] = policy.logprobs
            columns["values"][index, :width] = policy.values
            columns["ref_logprobs"][index, :width] = reference.logprobs
            if self.config.kl_penalty == "full":
                columns["kl"][index, :width] = response_kl(self.model, self.ref_model, q, r, self.temperature)
        return Rollout(columns["logprobs"], columns["ref_logprobs"], columns["values"], mask,
                       columns["kl"] if self.config.kl_penalty == "full" else None)

    def update(self, queries: list[Tensor], responses: list[Tensor], rollout: Rollout, advantages: Tensor, returns: Tensor,
               epochs: list) -> dict:
        """The optimization: for every minibatch its gradient, the guards, an optimizer step. Returns averaged statistics."""
        config, history, ratios = self.config, [], []
        counts = {"ppo/updates": 0, "ppo/skipped": 0, "ppo/skipped_nonfinite": 0, "ppo/early_stopped": 0}
        self.model.zero_grad()                                          # what an interrupted step left, or a backward() of yours
        for minibatch in (minibatch for epoch in epochs for minibatch in epoch):
            record, minibatch_ratios, grad_norm = self.minibatch_gradient(queries, responses, rollout, advantages, returns, minibatch)
            ratios += minibatch_ratios
            finite = math.isfinite(record["ppo/loss/total"]) and math.isfinite(record["ppo/grad_norm"])
            skip = not finite or record["ppo/policy/ratio_mean"] > config.ratio_threshold
            stop = config.early_stopping and record["ppo/policy/approxkl"] > 1.5 * config.target_kl
            history.append((record, not (skip or stop)))
            if stop:                                                    # before the optimizer moves: nothing is to be undone
                counts["ppo/early_stopped"] = 1
            elif skip:                                                  # whole: neither the weights nor Adam's moments see it
                counts["ppo/skipped"] += 1
                counts["ppo/skipped_nonfinite"] += not finite
            else:
                if config.max_grad_norm is not None:
                    torch.nn.utils.clip_grads_with_norm_(self.parameters, config.max_grad_norm, grad_norm)
                self.optimizer.step()
                counts["ppo/updates"] += 1
            self.model.zero_grad()
            if stop:
                break
        records = [record for record, applied in history if applied] or [record for record, _ in history]
        means = {name: sum(record[name] for record in records) / len(records) for name in records[0]}
        return means | counts | {"ppo/policy/ratio": torch.cat([ratio.cpu()[mask.cpu()] for ratio, mask in ratios])}

    def minibatch_gradient(self, queries: list[Tensor], responses: list[Tensor], rollout: Rollout, advantages: Tensor,
                           returns: Tensor, minibatch: list[list[int]]) -> tuple[dict[str, float], list, Tensor]:
        """Sum the gradients of the micro-batches; returns statistics, ratios and mask (b, R) of each, and the gradient's norm."""
        config, totals, ratios = self.config, [], []
        n_tokens = sum(len(responses[row]) for rows in minibatch for row in rows)
        for rows in minibatch:
            new = evaluate_responses(self.model, [queries[row] for row in rows], [responses[row] for row in rows],
                                     self.temperature, entropy_grad=config.entropy_coef > 0)
            index, width = torch.tensor(rows).to(new.mask.device, non_blocking=True), new.mask.shape[1]
            logprobs, values, A, G = (x[index, :width] for x in (rollout.logprobs, rollout.values, advantages, returns))
            loss, stats = ppo_loss(new.logprobs, new.values, logprobs, values, A, G, new.mask, config.cliprange,
                                   config.cliprange_value, config.vf_coef, new.entropy, config.entropy_coef, n_tokens)
            loss.backward()
            totals.append(torch.stack(list(stats.values())))
            ratios.append(((new.logprobs.detach() - logprobs).exp(), new.mask))     # cut out later: indexing here would sync
        grad_norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        numbers = torch.cat([torch.stack(totals).sum(0), grad_norm[None]]).tolist()     # the one host sync of a minibatch
        return dict(zip([*stats, "ppo/grad_norm"], numbers)), ratios, grad_norm

    def rollout_stats(self, queries: list[Tensor], responses: list[Tensor], scores: Tensor, rollout: Rollout,
                      non_score_reward: Tensor, returns: Tensor) -> dict:
        """Statistics of the batch before the update. KL here is k1, summed over a response, whatever the penalty kind."""
        mask = rollout.mask
        kl = torch.where(mask, rollout.logprobs - rollout.ref_logprobs, 0.0).sum(1)         # (B,)
        scores = scores if scores.dim() == 1 else scores.sum(1)                             # (B,)
        lengths = {"queries": torch.tensor([float(len(q)) for q in queries]),
                   "responses": torch.tensor([float(len(r)) for r in responses])}
        scalars = {
            "objective/kl": kl.mean(),
            "objective/entropy": torch.where(mask, -rollout.logprobs, 0.0).sum(1).mean(),   # sampled; per response
            "objective/score_total": (scores + non_score_reward.sum(1)).mean(),             # what is maximised
            "ppo/mean_non_score_reward": masked_mean(non_score_reward, mask),
            "ppo/mean_scores": scores.mean(),
            "ppo/std_scores": std(scores),
            "ppo/returns/mean": masked_mean(returns, mask),
            "ppo/returns/var": masked_var(returns, mask),
            "ppo/val/mean": masked_mean(rollout.values, mask),
            "ppo/val/var": masked_var(rollout.values, mask),
        }
        stats = dict(zip(scalars, torch.stack(list(scalars.values())).tolist()))            # one host sync
        stats["objective/kl_coef"] = self.kl_controller.value
        for name, x in lengths.items():
            stats |= {f"tokens/{name}_len_mean": float(x.mean()), f"tokens/{name}_len_std": float(std(x)),
                      f"tokens/{name}_dist": x}
        return stats | {"objective/kl_dist": kl.cpu(), "objective/logprobs": rollout.logprobs.cpu(),
                        "objective/ref_logprobs": rollout.ref_logprobs.cpu()}

    # --- 3. saving ----------------------------------------------------------------------------------------------------

    def save_checkpoint(self, folder: str) -> None:
        """Write all that the next step depends on; the folder is also a model folder that from_pretrained loads."""
        save_state(folder, self)

    def load_checkpoint(self, folder: str) -> None:
        """Continue from a checkpoint, bit for bit. It is read and checked whole before anything here changes."""
        load_state(folder, self)
