"""The followed responses of a run, evaluated again under the policy as it is now: how it sees each of their tokens."""

import torch

from ..fast import training_modes
from ..files.tokenizer import Tokenizer
from ..ppo import Batch, PPOTrainer, compute_advantages, compute_rewards
from .data import text_of


@training_modes
def traces(trainer: PPOTrainer, tokenizer: Tokenizer, followed: list[dict], step: int) -> list[dict]:
    """A record for each followed response, with every number that each of its tokens meets in PPO.

    followed: {"query": token ids, "response": token ids, "score": a number}, as RunState has them.
    """
    if not followed:
        return []
    config = trainer.config
    queries, responses = ([torch.tensor(pair[name], device="cpu") for pair in followed] for name in ("query", "response"))
    batch = Batch(queries, responses, config.temperature, torch.tensor([pair["score"] for pair in followed], device="cpu"))
    trainer.forward_pass(batch, [[row] for row in range(len(followed))])
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
