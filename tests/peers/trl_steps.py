"""TRL 0.11.4's side of tests/golden/steps.py: the same problem through its PPOTrainer, as it is and with its faults mended."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from unittest.mock import patch

import numpy as np
import torch
from golden.steps import BATCH, EOS, SIZES, Batch, Problem, Step, double_precision, scalars
from gpt2_models import from_hf, hf_gpt2, to_hf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer
from trl.core import masked_mean, masked_whiten
from trl.models import modeling_value_head
from trl.trainer import RunningMoments, ppo_trainer


class TensorMoments(RunningMoments):
    """Running moments as `step` expects them: since TRL 0.10 it crashes on their floats."""

    def update(self, xs):
        moments = super().update(xs)
        self.mean, self.std = torch.tensor(self.mean), torch.tensor(self.std)
        return moments


class MendedPPOTrainer(PPOTrainer):
    """TRL's trainer with the faults corrected that stand between it and ours, one method each."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # an iterator in the original, used up by the first optimizer step: no clipping ever after
        self.model_params = list(self.model.parameters())
        self.running = TensorMoments(self.accelerator)

    def compute_advantages(self, values, rewards, mask):
        """Whitened rewards are masked again; the original lets the mean leak out of the padding into shorter responses."""
        if not self.config.whiten_rewards:
            return super().compute_advantages(values, rewards, mask)
        with patch.object(self.config, "whiten_rewards", False):
            return super().compute_advantages(values, masked_whiten(rewards * mask, mask, shift_mean=False), mask)

    def train_minibatch(self, old_logprobs, values, logprobs, logits, vpreds, mask, advantages, returns):
        """A skipped minibatch is skipped; the original makes its loss 0, and Adam's momentum moves the weights."""
        skip = masked_mean((logprobs - old_logprobs).exp(), mask) > self.config.ratio_threshold
        with patch.object(self.optimizer, "step", lambda: None) if skip else nullcontext():
            return super().train_minibatch(old_logprobs, values, logprobs, logits, vpreds, mask, advantages, returns)

    def record_step_stats(self, kl_coef, **data):
        """KL is logprob - ref_logprob, in the log and for the controller; the original takes abs, mse or full where set."""
        return super().record_step_stats(kl_coef, **data | {"kls": data["logprobs"] - data["ref_logprobs"]})


def make_tokenizer(padding_side: str = "right") -> PreTrainedTokenizerFast:
    """TRL asks for a tokenizer, though all it does with it here is padding."""
    words = {f"token{i}": i for i in range(SIZES["vocab_size"])}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, "token0")), eos_token=f"token{EOS}",
                                   pad_token=f"token{EOS}", padding_side=padding_side)


def make_policy(weights: dict[str, Tensor], dtype: torch.dtype) -> AutoModelForCausalLMWithValueHead:
    """The same weights in TRL's model; the dropout before its value head is off."""
    model = AutoModelForCausalLMWithValueHead.from_pretrained(hf_gpt2(SIZES), summary_dropout_prob=0.0).to(dtype)
    hf = to_hf(weights)
    head = {name.removeprefix("v_head."): hf.pop(name) for name in list(hf) if name.startswith("v_head.")}
    model.v_head.load_state_dict(head)
    model.pretrained_model.load_state_dict(hf | {"lm_head.weight": hf["transformer.wte.weight"]})
    return model


def make_trainer(problem: Problem, dtype: torch.dtype = torch.float32, mended: bool = False, lr_decay: float | None = None,
                 padding_side: str = "right", **settings) -> PPOTrainer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                             # deprecated, and has no data set
        config = PPOConfig(**{"batch_size": BATCH, "mini_batch_size": BATCH, **settings}, accelerator_kwargs={"cpu": True})
        model, optimizer, scheduler = make_policy(problem.weights, dtype), None, None
        if lr_decay is not None:
            optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
            scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, lr_decay)
        return (MendedPPOTrainer if mended else PPOTrainer)(
            config, model, make_policy(problem.reference, dtype), make_tokenizer(padding_side), optimizer=optimizer,
            lr_scheduler=scheduler)


def trl_steps(problem: Problem, dtype: torch.dtype = torch.float64, **settings) -> list[Step]:
    """The problem's steps by TRL; for the arguments see make_trainer."""
    with double_precision(ppo_trainer, modeling_value_head) if dtype == torch.float64 else nullcontext():
        trainer = make_trainer(problem, dtype, **settings)
        return [trl_step(trainer, batch) for batch in problem.batches]


def trl_step(trainer: PPOTrainer, batch: Batch) -> Step:
    """One step, with a look at what passes between its parts: TRL's (B, T-1) columns, of which the mask picks the response."""
    seen, orders = {}, iter(batch.orders)
    compute_rewards, compute_advantages = trainer.compute_rewards, trainer.compute_advantages

    def see_rewards(*args):
        seen["rewards"], *rest = compute_rewards(*args)
        return seen["rewards"], *rest

    def see_advantages(values, rewards, mask):
        seen["mask"] = mask.bool()
        seen["values"], seen["advantages"], seen["returns"] = compute_advantages(values, rewards, mask)
        return seen["values"], seen["advantages"], seen["returns"]

    with (patch.object(trainer, "compute_rewards", see_rewards), patch.object(trainer, "compute_advantages", see_advantages),
          patch.object(np.random, "permutation", lambda n: np.array(next(orders))), warnings.catch_warnings()):
        warnings.simplefilter("ignore")                             # skipped minibatches, negative KL
        scores = [score.to(torch.get_default_dtype()) for score in batch.scores]
        stats = trainer.step(batch.queries, batch.responses, scores)
    mask = seen.pop("mask")
    seen |= {name: torch.as_tensor(stats[f"objective/{name}"]) for name in ("logprobs", "ref_logprobs")}
    return Step({name: x[mask] for name, x in seen.items()}, scalars(stats), float(trainer.kl_ctl.value),
                from_hf(trainer.model.state_dict()))


def over_the_batch(step: Step) -> Step:
    """TRL averages the means and variances of its minibatches, of any token counts; ours are those of the whole batch."""
    values, returns = step.tokens["values"], step.tokens["returns"]
    stats = {"ppo/val/mean": float(values.mean()), "ppo/val/var": float(values.var()),
             "ppo/returns/mean": float(returns.mean()), "ppo/returns/var": float(returns.var()),
             "ppo/val/var_explained": 1 - step.stats["ppo/val/error"] / float(returns.var())}
    return step._replace(stats=step.stats | stats)
