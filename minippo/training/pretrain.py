"""Next-token training: how the small built-in model learns to write before PPO teaches it what to write.

Each row of a batch begins where a text begins, as a query does later, and runs on into the texts that follow, with EOS between
them: nothing is padding, and the model learns where texts end. A longer text goes on in a row of its own.
Left out: dropout and early stopping. The held-out loss says when a small model begins to learn by heart.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distributed import in_place, share, start
from ..gpt2 import GPT2
from ..inputs import require
from .data import check_vocabulary, split
from .terminal import Progress


@dataclass(frozen=True)
class PretrainConfig:
    """How long and how fast to train; the defaults suit a model of about a million parameters."""
    steps: int = 300                # optimizer steps; the texts are passed over as often as that takes
    batch_size: int = 32            # rows per step
    block_size: int = 64            # tokens per row; at most the model's n_positions
    learning_rate: float = 2e-3     # of AdamW at its peak: reached after the first 5% of the steps, then a cosine down to 0
    held_out: float = 0.05          # share of the texts that are kept apart for the second of the two losses
    seed: int = 0                   # of the split and of the order of the rows

    def __post_init__(self):
        require(self, "steps batch_size block_size", "a whole number above 0", lambda x: isinstance(x, int) and x > 0)
        require(self, "learning_rate", "a number above 0", lambda x: x > 0)
        require(self, "held_out", "a share from 0 to below 1", lambda x: 0 <= x < 1)


class Losses(NamedTuple):
    """Mean cross-entropy of a token, in nats."""
    train: float        # over the last tenth of the steps
    held_out: float     # over the texts kept apart; nan where there are none


def pack(tokenizer, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
    """The tokens of all texts, each closed by EOS, in one stream (N,), and the places (M,) where the rows begin in it."""
    stream, starts = [], []
    for text in texts:
        tokens = [*tokenizer.encode(text), tokenizer.eos_token_id]
        starts.extend(range(len(stream), len(stream) + len(tokens), length))
        stream.extend(tokens)
    return torch.tensor(stream, device="cpu"), torch.tensor(starts, device="cpu")


def rows_loss(model: GPT2, stream: Tensor, starts: Tensor, length: int) -> Tensor:
    """Mean cross-entropy of each next token in the rows that begin at `starts`; the stream's end runs on at its start."""
    rows = stream[(starts[:, None] + torch.arange(length + 1, device=stream.device)) % len(stream)]      # (B, length + 1)
    return F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())


def learning_rate_at(step: int, config: PretrainConfig) -> float:
    """A linear rise over the first 5% of the steps, then half a cosine that reaches 0 after the last."""
    warmup = max(1, config.steps // 20)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup + 1) / (config.steps - warmup + 1)))


@torch.enable_grad()
def pretrain(model: GPT2, tokenizer, texts: Sequence[str], config: PretrainConfig = PretrainConfig()) -> Losses:
    """Train `model` in place to predict the next token of `texts`, and return the final losses.

    ValueError: tokenizer or block_size do not fit the model. FloatingPointError: a loss is not finite; the weights are as before it.
    """
    if isinstance(texts, str) or not texts:
        raise ValueError(f"pretrain: expected a list of texts, got {texts!r:.60}")
    if config.block_size > model.config.n_positions:
        raise ValueError(f"pretrain: block_size {config.block_size} is more than the model's {model.config.n_positions} positions")
    check_vocabulary(tokenizer, model.config.vocab_size, "pretrain")
    start()
    generator = torch.Generator().manual_seed(config.seed)
    training, held_out = split(texts, config.held_out, generator)
    stream, starts = (x.to(model.device) for x in pack(tokenizer, training, config.block_size))
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), fused=True)
    rows, n = config.steps * config.batch_size, len(starts)
    order = torch.cat([torch.randperm(n, generator=generator, device="cpu") for _ in range(0, rows, n)])[:rows].to(model.device)

    progress, losses = Progress("pretraining", config.steps), []
    for step, batch in enumerate(order.split(config.batch_size)):
        optimizer.zero_grad()
        rows = share(batch)
        loss = rows_loss(model, stream, starts[rows if len(rows) else batch[:1]], config.block_size) * (len(rows) / len(batch))
        loss.backward()
        in_place("the gradient", [*(p.grad for p in model.parameters()), loss])
        losses.append(loss.item())                                 # a host sync: with the backward pass under way already
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"pretrain: the loss is {losses[-1]} at step {step + 1}; lower learning_rate")
        optimizer.param_groups[0]["lr"] = learning_rate_at(step, config)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)    # the first steps of a fresh model are steep
        optimizer.step()
        progress.show(step + 1, f"loss {losses[-1]:.3f}")
    tail, held_out_loss = losses[-max(1, config.steps // 10):], math.nan
    if held_out:
        stream, starts = (x.to(model.device) for x in pack(tokenizer, held_out, config.block_size))
        with torch.no_grad():
            held_out_loss = sum(rows_loss(model, stream, batch, config.block_size).item() * len(batch)
                                for batch in starts.split(config.batch_size)) / len(starts)
    progress.finish(f"loss {sum(tail) / len(tail):.3f}" + (f", on held-out texts {held_out_loss:.3f}" if held_out else ""))
    return Losses(sum(tail) / len(tail), held_out_loss)
