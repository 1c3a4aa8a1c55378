"""The statistics of a step: how they are computed, and one table of what each of them means, for trainer, report and course.

`PPOTrainer.step` returns most of these, a training run adds text, speed and the parts of a reward. TRL 0.11's names, where it has
the statistic.
"""

import math
import re
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor


# --- means of real tokens, each with the same weight ------------------------------------------------------------------

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
    x, mask, device = (x.cpu(), mask.cpu(), x.device) if x.device.type == "mps" else (x, mask, x.device)     # no fp64 there
    wide = x.double()                   # in fp32 equal numbers differ from their mean by rounding, which a variance of 0 blows up
    mean, var = masked_mean(wide, mask), masked_var(wide, mask)
    whitened = (wide - mean) * torch.rsqrt(var + 1e-8)
    return torch.where(mask.bool(), whitened if shift_mean else whitened + mean, 0.0).to(device, x.dtype)


def std(x: Tensor) -> Tensor:
    """Standard deviation with n - 1; 0 for a single number, where torch gives NaN."""
    return x.std() if x.numel() > 1 else torch.zeros_like(x).sum()


def mean_of(records: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each statistic over minibatches: those that were applied, or all where none was."""
    return {name: sum(record[name] for record in records) / len(records) for name in records[0]}


class RunningMoments:
    """Mean and variance of all scores so far, merged batch by batch (Chan et al. 1979)."""

    def __init__(self, mean: float = 0.0, var: float = 0.0, count: float = 0.0):
        self.mean, self.var, self.count = mean, var, count

    def scale(self, scores: Tensor, center: bool) -> Tensor:
        """Take scores (B,) in, and return them over the standard deviation of all so far, less their mean if asked to."""
        if scores.dim() > 1:
            raise ValueError("use_score_scaling works on one score per response, but per-token rewards were given")
        x = scores.double()             # in fp32 equal scores would have a tiny variance, and dividing by it blows them up
        n, mean, var = x.numel(), float(x.mean()), float(x.var(unbiased=False))
        total, delta = self.count + n, mean - self.mean
        self.var = (self.var * self.count + var * n + delta**2 * self.count * n / total) / total
        self.mean += delta * n / total
        self.count = total
        std = math.sqrt(self.var * self.count / max(1.0, self.count - 1))
        return (scores - self.mean if center else scores) / (std if std > 0 else 1.0)       # constant ones are not blown up


def batch_stats(batch, config) -> dict:
    """Statistics of the batch before the update. KL here is k1, summed over a response, whatever the penalty kind."""
    columns = torch.stack([batch.mask, batch.logprobs, batch.ref_logprobs, batch.values, batch.returns, batch.non_score_reward,
                           batch.advantages]).cpu()                                         # one host sync, the rest on the CPU
    mask, (logprobs, ref_logprobs, values, returns, non_score_reward, advantages) = columns[0].bool(), columns[1:]
    kl = torch.where(mask, logprobs - ref_logprobs, 0.0).sum(1)                             # (B,)
    scores = batch.scores if batch.scores.dim() == 1 else batch.scores.sum(1)               # (B,)
    scalars = {
        "objective/kl": kl.mean(),
        "objective/entropy": torch.where(mask, -logprobs, 0.0).sum(1).mean(),               # sampled; per response
        "objective/score_total": (scores + non_score_reward.sum(1)).mean(),                 # what is maximised
        "ppo/mean_non_score_reward": masked_mean(non_score_reward, mask),
        "ppo/mean_scores": scores.mean(),
        "ppo/std_scores": std(scores),
    }
    if config.group_size > 1:                                                               # the responses to one query
        groups = scores.view(-1, config.group_size)
        scalars |= {"ppo/groups/std_scores": groups.std(1).mean(),
                    "ppo/groups/equal": (groups == groups[:, :1]).all(1).float().mean()}    # where there is only KL to learn from
    if config.advantage == "gae":                                                           # there is a critic
        unexplained, variance = masked_var(returns - values, mask), masked_var(returns, mask)
        scalars |= {"ppo/returns/mean": masked_mean(returns, mask),
                    "ppo/returns/var": variance,
                    "ppo/val/mean": masked_mean(values, mask),
                    "ppo/val/var": masked_var(values, mask),
                    "ppo/val/var_explained": torch.where(variance > 0, 1 - unexplained / variance, 0.0)}  # by the rollout's values
    stats = {name: float(value) for name, value in scalars.items()}
    for name, sequences in (("queries", batch.queries), ("responses", batch.responses)):
        lengths = torch.tensor([len(sequence) for sequence in sequences], dtype=torch.float64, device="cpu")
        stats |= {f"tokens/{name}_len_mean": float(lengths.mean()), f"tokens/{name}_len_std": float(std(lengths)),
                  f"tokens/{name}_dist": lengths}
    return stats | {"objective/kl_dist": kl, "objective/logprobs": logprobs, "objective/ref_logprobs": ref_logprobs,
                    "ppo/policy/advantages": advantages[mask]}


# --- what each statistic means ----------------------------------------------------------------------------------------

class Metric(NamedTuple):
    """One scalar of metrics.jsonl, explained; a key that ends in "/" stands for all that begin with it."""
    key: str
    title: str
    what: str
    formula: str
    healthy: str
    moves: str  # what it means when it moves
    group: str  # curves of one group stand together


_STAGES = {"prepare": "checks and copies", "forward_pass": "log-probabilities and values at rollout",
           "compute_rewards": "the KL reward", "compute_advantages": "GAE", "optimize_step": "all minibatches",
           "calc_stats": "the statistics", "total": "the whole of step(), without sampling"}

METRICS = [
    Metric("ppo/mean_scores", "Score", "mean score of the batch's responses", "mean(scores)",
           "Rises, then levels off while the KL stays bounded.",
           "Flat: no signal. Up while the samples get worse: the score is being gamed.", "reward"),
    Metric("ppo/std_scores", "Score spread", "standard deviation of the scores in a batch", "std(scores) with n - 1",
           "Above 0; shrinks slowly as the responses become good.",
           "At 0 every response scores the same, and nothing is left to learn from.", "reward"),
    Metric("ppo/groups/std_scores", "Score spread in a group", "standard deviation of the scores of one query's responses, mean over queries",
           "mean over groups of std(scores) with n - 1", "Above 0.", "At 0 the responses to a query are worth the same.", "reward"),
    Metric("ppo/groups/equal", "Groups of equal scores", "share of the queries whose responses all score the same", "count(equal) / groups",
           "Low.", "Rising: those scores teach nothing any more; take harder queries or a finer score.", "reward"),
    Metric("score/", "Score part", "mean of one part of a combined reward, before its weight", "mean(part)",
           "No part falls while the whole rises.", "A part that falls while the score rises is being traded away.", "reward"),
    Metric("objective/score_total", "Score less KL penalty", "what PPO maximises", "mean(score + sum_t non_score_reward_t)",
           "Rises with the score.", "Falls while the score rises: the gain costs more KL than it brings.", "reward"),
    Metric("ppo/mean_non_score_reward", "KL penalty per token", "the KL part of the reward, averaged over tokens",
           "masked_mean(-kl_coef * kl)", "Small and negative.",
           "Positive means negative KL: what is sampled is not what is scored.", "reward"),
    Metric("objective/kl", "KL to the reference", "distance from the reference, in nats per response",
           "mean over responses of sum_t (logprob_t - ref_logprob_t)",
           "Starts at 0, rises and settles near its target; often between 0 and 10.",
           "Negative: top-k, top-p or a minimum length is on. Rising without end: language is lost.", "drift"),
    Metric("objective/kl_coef", "KL coefficient", "weight of the KL penalty in this update",
           "last * (1 + clip(kl / target - 1, -0.2, 0.2) * n / horizon)", "Moves slowly; constant with a fixed controller.",
           "Up: KL is above its target. Down: below.", "drift"),
    Metric("objective/entropy", "Entropy per response", "surprise of a response's tokens, summed",
           "mean over responses of sum_t -logprob_t", "Falls gently, in step with the response length.",
           "A sudden fall: the responses become alike.", "drift"),
    Metric("ppo/policy/entropy", "Entropy", "uncertainty about the next token, in nats per token",
           "masked_mean(-sum_v p_v log p_v)", "Falls gently and stays well above 0.",
           "Near 0 the policy always says the same thing; rising towards log(vocabulary): noise.", "drift"),
    Metric("ppo/policy/clipfrac", "Clip fraction", "share of tokens whose ratio was clipped",
           "masked_mean(-A * clip(ratio) > -A * ratio)", "Between about 0.02 and 0.3.",
           "0: steps too small to matter. Above 0.3: too large; lower learning_rate or ppo_epochs.", "update"),
    Metric("ppo/policy/approxkl", "KL of the update", "how far one update moves the policy",
           "0.5 * masked_mean((new_logprob - logprob)^2)", "Below about 0.1, steady.",
           "Growing: the batch is reused too hard; fewer ppo_epochs.", "update"),
    Metric("ppo/policy/policykl", "KL of the update, k1", "the same, plain estimator", "masked_mean(logprob - new_logprob)",
           "Close to 0.", "Large: see the approximate KL.", "update"),
    Metric("ppo/policy/ratio_mean", "Mean ratio", "new over old probability of a token",
           "masked_mean(exp(new_logprob - logprob))", "Close to 1.",
           "Far above 1: past ratio_threshold the minibatch is skipped.", "update"),
    Metric("ppo/loss/policy", "Policy loss", "the clipped surrogate; its size says little",
           "masked_mean(max(-A * ratio, -A * clip(ratio, 1 - c, 1 + c)))", "Slightly below 0, small and noisy.",
           "A spike: ratios far from 1.", "update"),
    Metric("ppo/loss/value", "Value loss", "error of the value head, clipped",
           "0.5 * masked_mean(max((v - returns)^2, (clip(v) - returns)^2))", "Falls from its first values and stays low.",
           "Growing: returns too large or too changeable; scale the score.", "update"),
    Metric("ppo/loss/total", "Total loss", "what the optimizer descends",
           "policy loss + vf_coef * value loss - entropy_coef * entropy", "Small; it need not fall.",
           "Follow its two parts instead.", "update"),
    Metric("ppo/policy/advantages_mean", "Mean advantage", "mean of the advantages, whitened but for grpo's", "masked_mean(A)", "Close to 0.",
           "Away from 0, where it is not grpo: whitening was done over something else.", "update"),
    Metric("ppo/grad_norm", "Gradient norm", "length of the gradient before clipping, mean over minibatches",
           "sqrt(sum(grad^2))", "Steady, without spikes.", "A spike comes before a broken run: set max_grad_norm.", "update"),
    Metric("ppo/learning_rate", "Learning rate", "of the optimizer in this update", "lr", "As the schedule says.",
           "Only the schedule moves it.", "update"),
    Metric("ppo/updates", "Optimizer steps", "minibatches that changed the weights", "ppo_epochs * minibatches - skipped",
           "Constant.", "Fewer: skipped minibatches or an early stop.", "update"),
    Metric("ppo/skipped", "Skipped minibatches", "left out because ratio_threshold was passed or the loss was not finite",
           "count", "Stays at 0.", "Above 0: the steps are too large.", "update"),
    Metric("ppo/skipped_nonfinite", "Skipped as not finite", "of these, the ones whose loss or gradient was not finite",
           "count", "Stays at 0.", "Above 0: look for NaN in scores and weights.", "update"),
    Metric("ppo/early_stopped", "Stopped early", "1 where the update ended early on its KL",
           "early_stopping and approximate KL of a minibatch > 1.5 * target_kl", "Mostly 0; always, unless early_stopping is set.",
           "Always 1: most of each batch goes unused; lower the learning rate. The default target_kl of 1.0 is a last resort, "
           "it fires at 1.5 nats a token: 0.07 fires at about 0.1.", "update"),
    Metric("ppo/val/var_explained", "Explained variance", "how much of the returns the values at rollout predict",
           "1 - var(returns - values) / var(returns)", "Climbs from about 0 towards 1.",
           "Near 0 or below late in a run: the values predict no better than a constant; on pure noise it stays there.", "value"),
    Metric("ppo/val/error", "Value error", "squared error of the values, not clipped", "masked_mean((v - returns)^2)", "Falls.",
           "Growing: the returns move faster than the value head learns.", "value"),
    Metric("ppo/val/clipfrac", "Value clip fraction", "share of tokens whose value was clipped",
           "masked_mean(clipped error > error)", "Small.", "Large: the returns are wide beside cliprange_value.", "value"),
    Metric("ppo/val/vpred", "New values", "mean value during the update", "masked_mean(new_values)", "Follows the mean return.",
           "Apart from the mean return: the value head lags.", "value"),
    Metric("ppo/val/mean", "Values", "mean value at rollout", "masked_mean(values)", "Follows the mean return.",
           "As the new values.", "value"),
    Metric("ppo/val/var", "Variance of the values", "spread of the values at rollout", "masked_var(values)",
           "Grows towards that of the returns.", "At 0: the value head says the same everywhere.", "value"),
    Metric("ppo/returns/mean", "Mean return", "mean of advantage + value, before whitening", "masked_mean(returns)",
           "Rises with the score.", "Moves with score and KL penalty.", "value"),
    Metric("ppo/returns/var", "Variance of the returns", "spread of the returns", "masked_var(returns)", "Of order 1.",
           "Very large or small: scale the score.", "value"),
    Metric("tokens/responses_len_mean", "Response length", "mean number of response tokens", "mean(R)",
           "Steady, unless length is what the score rewards.", "Creeping to the limit: long responses pay, or none ends.",
           "text"),
    Metric("tokens/responses_len_std", "Spread of the response lengths", "standard deviation", "std(R) with n - 1",
           "Above 0 where responses end by themselves.", "At 0: all end at the limit.", "text"),
    Metric("tokens/at_limit", "Responses at the limit", "share of responses cut at the length limit", "count(R = limit) / B",
           "Low where responses are meant to end; 1 where their length is fixed.",
           "Rising to 1: the policy has unlearnt to stop.", "text"),
    Metric("tokens/queries_len_mean", "Query length", "mean number of query tokens", "mean(Q)", "As the data.",
           "Only the data moves it.", "text"),
    Metric("tokens/queries_len_std", "Spread of the query lengths", "standard deviation", "std(Q) with n - 1", "As the data.",
           "Only the data moves it.", "text"),
    Metric("samples/distinct", "Distinct responses", "share of different responses in the batch", "count(distinct) / B",
           "Close to 1 where responses are long. It may fall with the number of good answers: 0.2 to 0.4 is healthy for the "
           "course's toys, which have 32 sentences or fewer worth saying.",
           "Below a tenth, or falling while the score stands still: one answer to every query.", "text"),
    *(Metric(f"eval/{name}", f"Evaluation: {title}", what + ", on the evaluation prompts", formula, healthy, moves, "eval")
      for name, title, what, formula, healthy, moves in (
          ("score", "score", "mean score of the responses", "mean(scores)", "Rises with the score of training.",
           "Falls while that rises: the policy learns the training prompts, not the task."),
          ("kl", "KL", "distance from the reference, in nats per response", "mean over responses of sum_t (logprob_t - ref_logprob_t)",
           "As the KL of training.", "Far above it: the policy leaves the reference on prompts that it has not seen."),
          ("objective", "score less KL cost", "the gain with the first kl_coef, so that updates compare",
           "eval/score - init_kl_coef * eval/kl", "Rises, then levels off; keep_best keeps its highest.",
           "Falls: the score costs more KL than it brings."),
          ("length", "length", "mean number of response tokens", "mean(R)", "Steady.", "As the response length."),
          ("distinct", "distinct responses", "share of different responses", "count(distinct) / n", "Close to 1.",
           "Falling: one answer to every prompt."))),
    Metric("seconds", "Seconds per update", "sampling, scoring and step together", "wall time", "Steady.",
           "Growing with the response length is natural.", "speed"),
    Metric("tokens_per_second", "Tokens per second", "response tokens of the batch over the update's time", "sum(R) / seconds",
           "Steady.", "Falling: something else uses the machine.", "speed"),
    *(Metric(f"time/ppo/{stage}", f"Time: {stage}", what, "seconds", "Steady.", "Grows with the tokens.", "speed")
      for stage, what in _STAGES.items()),
]
GROUPS = {"reward": "Reward", "drift": "Distance from the reference", "update": "The update", "value": "Values",
           "text": "Text", "eval": "Evaluation", "speed": "Speed"}


def metric_of(key: str) -> Metric | None:
    """The table's entry for a key of metrics.jsonl; None for step, time and keys that the table does not know."""
    for metric in METRICS:
        if key == metric.key:
            return metric
        if metric.key.endswith("/") and key.startswith(metric.key):
            return metric._replace(key=key, title=f"Score: {key[len(metric.key):]}")
    return None


# --- time and memory -------------------------------------------------------------------------------------------------

class Stopwatch:
    """Seconds of each phase. On CUDA the phases are marked in the stream of work and read at the end: no phase waits for another."""

    def __init__(self, device: torch.device):
        self.device, self.marks = device, []
        self.lap("start")

    def lap(self, name: str) -> None:
        """The phase of this name, which began at the mark before, is over."""
        mark = time.perf_counter()
        if self.device.type == "cuda":
            mark = torch.cuda.Event(enable_timing=True)
            mark.record(torch.cuda.current_stream(self.device))
        self.marks.append((name, mark))

    def seconds(self) -> dict[str, float]:
        """Seconds of each phase by name, and of all together under "time/ppo/total"."""
        def between(start, end) -> float:
            return start.elapsed_time(end) / 1000 if self.device.type == "cuda" else end - start
        if self.device.type == "cuda":
            self.marks[-1][1].synchronize()
        times = {name: between(start, end) for (_, start), (name, end) in zip(self.marks, self.marks[1:])}
        return times | {"time/ppo/total": between(self.marks[0][1], self.marks[-1][1])}


def peak_memory(device: torch.device) -> int:
    """Most bytes so far: of tensors on CUDA, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")                                  # Linux, where ru_maxrss begins at what the parent held
    high = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    if high:
        return 1024 * int(high[1])
    try:
        import resource
    except ImportError:                                                 # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)       # else KiB
