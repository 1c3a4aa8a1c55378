"""How the policy of a run does: its responses scored, the same prompts evaluated every so often, followed responses token by token."""

from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from ..fast import training_modes
from ..files.tokenizer import Tokenizer
from ..inputs import check_tokens
from ..ppo import Batch, PPOConfig, PPOTrainer, compute_advantages, compute_rewards
from ..scoring.rewards import Reward
from .config import RunConfig, span
from .data import text_of


class Job(NamedTuple):
    """What stays the same during a run."""
    run: RunConfig
    config: PPOConfig
    out: Path
    prompts: list[list[int]]            # token ids
    eval_prompts: list[list[int]]       # the same, cut already
    tokenizer: Tokenizer
    reward: Reward
    trainer: PPOTrainer


def due(step: int, every: int, steps: int) -> bool:
    """Whether what happens every so often happens in this update: the first and the last always count."""
    return step in (1, steps) or step % every == 0


def scored_part(job: Job, response: Tensor) -> Tensor | None:
    """What of a response is scored: all of it, or up to the token that holds truncate_at; None where that never comes."""
    if job.run.truncate_at is None:
        return response
    texts = [text_of(job.tokenizer, [token]) for token in response.tolist()]
    end = next((i for i, text in enumerate(texts) if i >= job.run.truncate_after and job.run.truncate_at in text), None)
    return None if end is None else response[:end + 1]


def score(job: Job, responses: list[Tensor], batch: dict) -> None:
    """Add to `batch`, which has the texts of "queries": those of "responses", the "parts" of their reward, their "scores"."""
    batch["responses"] = [text_of(job.tokenizer, response, True) for response in responses]     # without the EOS at its end
    scored = [scored_part(job, response) for response in responses]
    texts = [text if part is None else text_of(job.tokenizer, part, True) for text, part in zip(batch["responses"], scored)]
    scores, batch["parts"] = job.reward.parts(batch["queries"], texts)
    batch["scores"] = [job.run.truncate_penalty if part is None else score for part, score in zip(scored, scores)]


@training_modes
def forward(trainer: PPOTrainer, queries: list[Tensor], responses: list[Tensor], scores: list[float], size: int) -> Batch:
    """What policy and reference say of given responses, `size` rows at a time."""
    batch = Batch(queries, responses, trainer.config.temperature, torch.tensor(scores, device="cpu"))
    rows = [*range(len(queries))]
    trainer.forward_pass(batch, [rows[at:at + size] for at in range(0, len(rows), size)])
    return batch


def evaluate(job: Job, metrics: dict, samples: list[dict]) -> None:
    """Add eval/... to an update's metrics and a few responses to its samples.

    Prompts and random numbers are the same each time, and the trainer's generator is left alone: only the weights count, and
    what is trained is the same without it.
    """
    run, config, responses = job.run, job.config, []
    queries = [torch.tensor(prompt, device="cpu") for prompt in job.eval_prompts * run.eval_samples]
    for at in range(0, len(queries), config.batch_size):
        some = job.trainer.generate(queries[at:at + config.batch_size], max_new_tokens=span(run.max_new_tokens)[1],
                                    temperature=config.temperature, seed=config.seed + at)
        responses += check_tokens("responses", some, job.trainer.model.config.vocab_size)       # on the CPU, by one copy for all
    noted = {"queries": [text_of(job.tokenizer, query) for query in queries]}
    score(job, responses, noted)
    batch = forward(job.trainer, queries, responses, noted["scores"], config.mini_batch_size)
    kl, texts = (batch.logprobs - batch.ref_logprobs).sum(1).tolist(), noted["responses"]
    mean_score, mean_kl = fmean(noted["scores"]), fmean(kl)
    metrics |= {"eval/score": mean_score, "eval/kl": mean_kl, "eval/objective": mean_score - config.init_kl_coef * mean_kl,
                "eval/length": fmean(map(len, responses)), "eval/distinct": len(set(texts)) / len(texts)}
    samples += [{"step": metrics["step"], "eval": i, "query": noted["queries"][i], "response": texts[i],
                 "score": noted["scores"][i], "kl": kl[i]} for i in range(min(run.samples, len(texts)))]


def traces(trainer: PPOTrainer, tokenizer: Tokenizer, followed: list[dict], step: int) -> list[dict]:
    """A record for each followed response, with every number that each of its tokens meets in PPO under the policy as it is now."""
    if not followed:
        return []
    queries, responses = ([torch.tensor(pair[name], device="cpu") for pair in followed] for name in ("query", "response"))
    config, batch = trainer.config, forward(trainer, queries, responses, [pair["score"] for pair in followed], 1)
    rewards, _, kl = compute_rewards(batch.scores, batch.logprobs, batch.ref_logprobs, batch.mask, trainer.kl_controller.value,
                                     config.kl_penalty, batch.kl)
    values = batch.values if trainer.critic else torch.full_like(rewards, torch.nan)             # nobody estimates them
    advantages, returns = compute_advantages(values, rewards, batch.mask, config.gamma, config.lam)
    columns = {"logprob": batch.logprobs, "ref_logprob": batch.ref_logprobs, "kl": kl, "reward": rewards,
               "value": values, "advantage": advantages, "return": returns}
    records = []
    for row, pair in enumerate(followed):
        n = len(pair["response"])
        trace = {"token": [text_of(tokenizer, [token]) for token in pair["response"]]}
        trace |= {name: [round(x, 6) for x in column[row, :n].tolist()] for name, column in columns.items()}
        records.append({"step": step, "follow": row, "query": text_of(tokenizer, pair["query"]),
                        "response": text_of(tokenizer, pair["response"], True), "score": pair["score"], "trace": trace})
    return records
