"""One update of a run: the next prompts, responses, their texts and scores, a PPO step, and what is noted of it.

An update is a function of the checkpoint: the sampling generator is the trainer's; prompts and lengths are drawn by generators
that are made anew from the seed and a counter.
"""

import math
import random
import time
from functools import lru_cache

import torch
from torch import Tensor

from ..inputs import check_tokens
from ..ppo import PPOConfig
from .config import RunConfig, span
from .data import cut, text_of
from .evaluate import Job, due, score, traces
from .run_folder import RunState


@lru_cache(maxsize=2)
def shuffled(n: int, seed: int, epoch: int) -> list[int]:
    order = list(range(n))
    random.Random(f"prompts {seed} {epoch}").shuffle(order)
    return order


def next_batch(job: Job, taken: int) -> tuple[list[Tensor], list[int]]:
    """The next queries, each group_size times, and the limits of their responses, after `taken` prompts: that and the seed decide."""
    run, seed, size, queries, limits = job.run, job.config.seed, job.config.group_size, [], []
    rng = random.Random(f"lengths {seed} {taken}")
    for i in range(taken, taken + job.config.batch_size // size):
        epoch, at = divmod(i, len(job.prompts))                         # each pass over the prompts is shuffled anew
        prompt = job.prompts[shuffled(len(job.prompts), seed, epoch)[at]]
        if run.query_tokens is not None:
            prompt = cut(job.tokenizer, prompt, rng.randint(*span(run.query_tokens)))
        queries += [torch.tensor(prompt, device="cpu")] * size
        limits += [rng.randint(*span(run.max_new_tokens)) for _ in range(size)]
    return queries, limits


def learning_rate(run: RunConfig, config: PPOConfig, step: int) -> float:
    """Of update `step`, counted from 1: linear warmup, then the schedule. It never is quite 0."""
    if step <= run.warmup:
        return config.learning_rate * step / run.warmup
    done = (step - 1 - run.warmup) / (run.steps - run.warmup) if run.lr_schedule != "constant" else 0.0
    shape = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
    return config.learning_rate * shape[run.lr_schedule]


def run_update(job: Job, state: RunState, batch: dict) -> tuple[dict, list[dict]]:
    """One update; returns its line of metrics and the samples to keep. `batch` has what there is of it after an error, too."""
    run, trainer, start = job.run, job.trainer, time.perf_counter()
    step = batch["step"] = trainer.steps_done + 1
    for group in trainer.optimizer.param_groups:
        group["lr"] = learning_rate(run, job.config, step)

    queries, limits = next_batch(job, state.prompts_taken)
    batch["queries"] = [text_of(job.tokenizer, query) for query in queries]
    generated = trainer.generate(queries, max_new_tokens=limits, temperature=job.config.temperature)
    responses = check_tokens("responses", generated, trainer.model.config.vocab_size)           # on the CPU, by one copy for all
    score(job, responses, batch)

    samples = []
    if step == 1:
        state.followed = [{"query": query.tolist(), "response": response.tolist(), "score": score}
                          for query, response, score in zip(queries, responses, batch["scores"])][:run.follow]
        samples = traces(trainer, job.tokenizer, state.followed, step=0)                         # before anything was learnt
    stats = batch["stats"] = trainer.step(queries, responses, batch["scores"])
    state.prompts_taken += len(queries) // job.config.group_size
    at_limit = [len(r) == limit and int(r[-1]) != trainer.eos_token_id for r, limit in zip(responses, limits)]
    seconds, n, tokens = time.perf_counter() - start, len(responses), sum(map(len, responses))
    metrics = {"step": step, "time": time.time(), "seconds": seconds, "tokens_per_second": tokens / seconds,
               "samples/distinct": len(set(batch["responses"])) / n, "tokens/at_limit": sum(at_limit) / n}
    parts = batch["parts"] if len(batch["parts"]) > 1 else {}
    metrics |= {f"score/{name}": sum(scores) / len(scores) for name, scores in parts.items()}
    metrics |= {name: value for name, value in stats.items() if not isinstance(value, Tensor)}
    if due(step, run.sample_every, run.steps):
        samples += [{"step": step, "query": batch["queries"][i], "response": batch["responses"][i],
                     "score": batch["scores"][i], "kl": float(stats["objective/kl_dist"][i]),
                     "parts": {name: scores[i] for name, scores in parts.items()}}
                    for i in range(min(run.samples, n))]
        samples += traces(trainer, job.tokenizer, state.followed, step)
    return metrics, samples
