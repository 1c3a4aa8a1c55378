"""The names of the statistics and what each means; how they are computed; time and memory."""

from __future__ import annotations

import math
import re
import sys
import time
from pathlib import Path

import torch
from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x where mask is True; 0 where there is nothing."""
    mask = mask.bool()
    return torch.where(mask, x, 0.0).sum() / mask.sum().clamp(min=1)        # where, not multiply: 0 * nan is nan


def masked_var(x: Tensor, mask: Tensor) -> Tensor:
    """Variance with n - 1 of x where mask is True; 0 for a single element, where TRL's NaN reached the weights."""
    mask = mask.bool()
    squares = torch.where(mask, (x - masked_mean(x, mask)) ** 2, 0.0)
    return squares.sum() / (mask.sum() - 1).clamp(min=1)


def std(x: Tensor) -> Tensor:
    """Standard deviation with n - 1; 0 for a single number, where torch gives NaN."""
    return x.std() if x.numel() > 1 else torch.zeros_like(x).sum()


def mean_of(records: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each statistic over minibatches."""
    return {name: sum(record[name] for record in records) / len(records) for name in records[0]}


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


def batch_stats(batch) -> dict:
    """Statistics of the batch before the update. KL here is k1, summed over a response, whatever the penalty kind."""
    mask, returns = batch.mask, batch.returns
    kl = torch.where(mask, batch.logprobs - batch.ref_logprobs, 0.0).sum(1)                 # (B,)
    scores = batch.scores.to(mask.device)
    scores = scores if scores.dim() == 1 else scores.sum(1)                                 # (B,)
    unexplained, variance = masked_var(returns - batch.values, mask), masked_var(returns, mask)
    scalars = {
        "objective/kl": kl.mean(),
        "objective/entropy": torch.where(mask, -batch.logprobs, 0.0).sum(1).mean(),         # sampled; per response
        "objective/score_total": (scores + batch.non_score_reward.sum(1)).mean(),           # what is maximised
        "ppo/mean_non_score_reward": masked_mean(batch.non_score_reward, mask),
        "ppo/mean_scores": scores.mean(),
        "ppo/std_scores": std(scores),
        "ppo/returns/mean": masked_mean(returns, mask),
        "ppo/returns/var": variance,
        "ppo/val/mean": masked_mean(batch.values, mask),
        "ppo/val/var": masked_var(batch.values, mask),
        "ppo/val/var_explained": torch.where(variance > 0, 1 - unexplained / variance, 0.0),    # by the values of the rollout
    }
    stats = dict(zip(scalars, torch.stack(list(scalars.values())).tolist()))                # one host sync
    for name, sequences in (("queries", batch.queries), ("responses", batch.responses)):
        lengths = torch.tensor([len(sequence) for sequence in sequences], dtype=torch.float64, device="cpu")
        stats |= {f"tokens/{name}_len_mean": float(lengths.mean()), f"tokens/{name}_len_std": float(std(lengths)),
                  f"tokens/{name}_dist": lengths}
    return stats | {"objective/kl_dist": kl.cpu(), "objective/logprobs": batch.logprobs.cpu(),
                    "objective/ref_logprobs": batch.ref_logprobs.cpu(), "ppo/policy/advantages": batch.advantages[mask].cpu()}


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
