"""Chapter 13: the capstone, all of PPO. Check yourself with `python -m tutorial.check 13`.

B responses, b of them in a micro-batch, R tokens in the longest. `config` is a minippo.PPOConfig, which has the defaults;
`model` a GPT2WithValueHead: model(tokens) gives logits (b, T, V) and values (b, T), and
model.generate(queries, max_new_tokens=..., eos_token_id=..., generator=generator) samples a list of responses. What you
wrote in earlier chapters you may import from there: `from .ex08 import compute_advantages`.

All of it runs on the CPU, and statistics are Python floats, but for the tensor of ratios. Of config you need:

    mini_batch_size              responses of a micro-batch
    gradient_accumulation_steps  micro-batches of a minibatch
    ppo_epochs                   how often a step uses its responses
    gamma, lam                   of the advantages, 0 to 1
    cliprange, cliprange_value   how far a ratio may be from 1, and a value from the rollout's
    vf_coef                      weight of the value loss
    init_kl_coef                 the first kl_coef: score for a nat
    adap_kl_ctrl                 whether the controller moves it
    target                       of the controller: nats per response, not per token
    horizon                      of the controller: responses; B of them move kl_coef by min(B / horizon, 1) of the error
    learning_rate, adam_eps      of Adam, over model.parameters(), with torch's betas
    seed                         of the one generator
"""

import torch
from torch import Tensor


def evaluate(model, queries: list[Tensor], responses: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """What a model says of given responses: one way for rollout, reference and update. Gradients flow through it.

    Args:
        queries, responses: b 1-D tensors of token ids each, of any lengths.

    Returns:
        logprobs (b, R) of each response token, values (b, R) of the state before it, both 0 at the padding; mask (b, R) bool.
    """
    raise NotImplementedError


def minibatches(n: int, config, generator: torch.Generator) -> list[list[list[int]]]:
    """One epoch over n rows: a list of minibatches, each a list of micro-batches, each a list of row numbers.

    The order is that of one torch.randperm(n, generator=generator), cut from the front. A micro-batch has mini_batch_size rows,
    a minibatch gradient_accumulation_steps micro-batches; the last ones may be smaller.
    """
    raise NotImplementedError


def rollout(model, ref_model, queries: list[Tensor], responses: list[Tensor],
            micro_batches: list[list[int]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What policy and reference say of B responses before the update, without gradients.

    Args:
        micro_batches: lists of row numbers, each row once; what goes through a model at once.

    Returns:
        logprobs, ref_logprobs, values, mask, all (B, R): row i belongs to response i, and the padding is 0.
    """
    raise NotImplementedError


def credit(scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, values: Tensor, mask: Tensor, kl_coef: float,
           config) -> tuple[Tensor, Tensor]:
    """KL reward, GAE with config.gamma and config.lam, whitening over the whole batch: chapters 7 and 8.

    One mean and one variance over all real tokens; the variance, as torch's var(), has n - 1 below.

    Args:
        scores: (B,); the tensors (B, R) are those of the rollout.

    Returns:
        advantages, whitened, and returns, both (B, R) and 0 at the padding.
    """
    raise NotImplementedError


def update(model, optimizer, queries: list[Tensor], responses: list[Tensor], logprobs: Tensor, values: Tensor,
           advantages: Tensor, returns: Tensor, epochs: list[list[list[list[int]]]], config) -> dict:
    """Train the model: one optimizer step a minibatch, with the gradient of the mean loss over the minibatch's tokens.

    The loss is chapter 9's, with config.cliprange, config.cliprange_value and config.vf_coef.

    Args:
        logprobs, values, advantages, returns: (B, R), fixed since the rollout.
        epochs: what minibatches() returned, once for each epoch.

    Returns:
        ppo/loss/policy and ppo/loss/value, each the mean over all minibatches of all epochs (before vf_coef); ppo/policy/ratio:
        1-D, the ratio of every real token in every micro-batch, in the order of the loop.
    """
    raise NotImplementedError


def step(model, ref_model, optimizer, queries: list[Tensor], responses: list[Tensor], scores: Tensor, kl_coef: float,
         config, generator: torch.Generator) -> tuple[dict, float]:
    """One PPO step on B scored responses: rollout, credit, update, controller.

    All config.ppo_epochs epochs are drawn first, one after the other; the rollout runs in the micro-batches of the first.

    Returns:
        update's statistics and ppo/mean_scores, objective/kl (nats per response, at the rollout), objective/kl_coef (the one
        used in this step); and the kl_coef of the next step, which the controller has moved if config.adap_kl_ctrl:
        kl_coef * (1 + clip(KL / target - 1, -0.2, 0.2) * min(B / horizon, 1)).
    """
    raise NotImplementedError


def train(model, queries: list[Tensor], score, config, steps: int, max_new_tokens: int, eos_token_id: int | None = None) -> list[dict]:
    """Sample, score, step, again and again; the model is trained in place.

    Args:
        max_new_tokens, eos_token_id: of model.generate, which takes the generator, too.
        score: a function, response -> number.

    Returns:
        the statistics of each step. There is one generator, seeded with config.seed, for sampling and shuffling and nothing
        else, and one Adam over model.parameters() with config.learning_rate and config.adam_eps; kl_coef starts at
        config.init_kl_coef.
    """
    raise NotImplementedError


def find_bug_1() -> tuple[int, str]:
    """The wrong line of tutorial/bugs/bug1.py and a metric that tells: (23, "score")."""
    raise NotImplementedError


def find_bug_2() -> tuple[int, str]:
    """The wrong line of tutorial/bugs/bug2.py and a metric that tells."""
    raise NotImplementedError


def find_bug_3() -> tuple[int, str]:
    """The wrong line of tutorial/bugs/bug3.py and a metric that tells."""
    raise NotImplementedError
