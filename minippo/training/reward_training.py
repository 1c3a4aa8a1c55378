"""Training a reward model on what people prefer or how they labelled texts.

A pair says which of two texts is the better one, and its loss is -log sigmoid(score of the better - score of the worse)
(Bradley and Terry 1952); a label says good or bad, and its loss is the same with one score in place of the difference.

    model = RewardModel.from_gpt2(GPT2.from_pretrained("gpt2"), load_tokenizer("gpt2"))
    print(train_on_pairs(model, [("This film", " is a joy.", " is a bore."), ...]))

Sources: Ziegler et al. 2019, section 2.1; openai/lm-human-preferences, train_reward.py: normalisation before and after, Adam.
"""

import math
import time
from dataclasses import dataclass
from typing import NamedTuple, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distributed import in_place, share, start
from ..inputs import require
from ..scoring.reward_model import RewardModel
from .data import split
from .terminal import Progress

NORMALIZE_SAMPLES = 256     # texts on which training sets mean 0 and standard deviation 1, as many as OpenAI took


@dataclass(frozen=True)
class RewardModelConfig:
    """How a reward model is trained; the defaults are OpenAI's and suit the public GPT-2 models."""
    learning_rate: float = 5e-5         # of Adam at the first step, falls linearly to 0; a small fresh model needs 1e-3
    adam_eps: float = 1e-5              # OpenAI's; larger than Adam's 1e-8, it damps the first steps, as there is no warmup
    batch_size: int = 32                # pairs or labelled texts per optimizer step
    epochs: int = 1                     # times that each example is used; a second one mostly learns by heart
    max_tokens: int | None = None       # train on this many last tokens of a text, to save memory; None: n_positions
    held_out: float = 0.1               # share of the examples that are kept apart to measure the accuracy on
    seed: int = 0                       # of the split and of the order of the examples

    def __post_init__(self):
        require(self, "batch_size epochs", "a whole number above 0", lambda x: isinstance(x, int) and x > 0)
        require(self, "max_tokens", "None or a whole number above 0", lambda x: isinstance(x, int) and x > 0, optional=True)
        require(self, "learning_rate adam_eps", "a number above 0", lambda x: x > 0)
        require(self, "held_out", "a share from 0 to below 1", lambda x: 0 <= x < 1)


class Result(NamedTuple):
    """What a training came to."""
    accuracy: float     # share of the held-out examples judged right; nan where there are none
    loss: float         # their mean loss in nats (log 2 = 0.693 is a guess); nan where there are none
    held_out: int       # how many they are
    trained: int        # examples trained on
    seconds: float


def train_on_pairs(model: RewardModel, pairs: Sequence[tuple[str, str, str]],
                   config: RewardModelConfig = RewardModelConfig()) -> Result:
    """Train `model` in place on preferences, (query, chosen, rejected) as texts, and normalise its scores.

    ValueError: no pairs, or one that prefers nothing. FloatingPointError: a loss is not finite; the weights are those before it.
    """
    for i, pair in enumerate(pairs):
        if len(pair) != 3 or not all(isinstance(text, str) for text in pair):
            raise ValueError(f"pairs[{i}]: expected three texts (query, chosen, rejected), got {pair!r:.80}")
        if pair[1] == pair[2]:
            raise ValueError(f"pairs[{i}]: chosen and rejected are both {pair[1]!r:.60}: nothing is preferred")
    return train(model, [((query + chosen, query + rejected), 1.0) for query, chosen, rejected in pairs], config)


def train_on_labels(model: RewardModel, texts: Sequence[str], labels: Sequence[int],
                    config: RewardModelConfig = RewardModelConfig()) -> Result:
    """Train `model` in place on texts labelled 1 (good) or 0 (bad), and normalise its scores; errors as above."""
    if len(texts) != len(labels):
        raise ValueError(f"got {len(texts)} texts and {len(labels)} labels; they come in pairs")
    for i, (text, label) in enumerate(zip(texts, labels)):
        if not isinstance(text, str) or label not in (0, 1):
            raise ValueError(f"texts[{i}]: expected a text and a label 0 or 1, got {text!r:.60} and {label!r:.20}")
    if len(set(map(float, labels))) == 1:
        raise ValueError(f"all {len(labels)} labels are {labels[0]}: there is nothing to tell apart")
    return train(model, [((text,), float(label)) for text, label in zip(texts, labels)], config)


def batches(lengths: Sequence[int], batch_size: int, generator: torch.Generator) -> list[list[int]]:
    """One epoch as lists of indices: shuffled, sorted by length within windows of 16 batches, the batches shuffled again."""
    # texts of like length share a batch and little is spent on padding, but which texts meet is new in each epoch
    order, window = torch.randperm(len(lengths), generator=generator, device="cpu").tolist(), 16 * batch_size
    order = [i for start in range(0, len(order), window) for i in sorted(order[start:start + window], key=lambda i: lengths[i])]
    cut = [order[start:start + batch_size] for start in range(0, len(order), batch_size)]
    return [cut[i] for i in torch.randperm(len(cut), generator=generator, device="cpu").tolist()]


def preference_loss(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of each example and whether it is judged right: (B, 2) or (B, 1), (B,) -> (B,), (B,) bool."""
    # with a pair's difference as the logit, and label 1, binary cross-entropy is Bradley and Terry's loss
    logits = scores[:, 0] - scores[:, 1] if scores.shape[1] == 2 else scores[:, 0]
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none"), (logits > 0) == (labels > 0)


@torch.enable_grad()
def train(model: RewardModel, examples: list[tuple[tuple[str, ...], float]], config: RewardModelConfig) -> Result:
    """The one loop behind train_on_pairs and train_on_labels. examples: ((chosen, rejected), 1.0), or ((text,), its label)."""
    started = time.monotonic()
    start()
    generator = torch.Generator().manual_seed(config.seed)
    training, held_out = split(examples, config.held_out, generator)
    sequences = [[model.encode(text, config.max_tokens) for text in texts] for texts, _ in training]
    samples = [model.encode(text, config.max_tokens) for texts, _ in held_out + training[:NORMALIZE_SAMPLES]
               for text in texts][:NORMALIZE_SAMPLES]      # held-out ones first: they are what new texts look like
    model.normalize(samples)                                       # whatever scale the trunk's hidden states have
    optimizer = torch.optim.Adam(model.parameters(), eps=config.adam_eps, fused=True)
    lengths = [max(map(len, texts)) for texts in sequences]
    schedule = [batch for _ in range(config.epochs) for batch in batches(lengths, config.batch_size, generator)]

    progress = Progress("reward model", len(schedule))
    for step, batch in enumerate(schedule):
        optimizer.zero_grad()
        rows = share(batch) or batch[:1]                           # more processes than rows: this one's part of the sum is 0
        scores = model([tokens for i in rows for tokens in sequences[i]]).view(len(rows), -1)
        labels = torch.tensor([training[i][1] for i in rows], device="cpu").to(model.device, non_blocking=model.device.type == "cuda")
        loss = preference_loss(scores, labels)[0].mean() * (len(share(batch)) / len(batch))
        loss.backward()
        in_place("the gradient", [*(p.grad for p in model.parameters()), loss])
        if not math.isfinite(value := loss.item()):                # a host sync: with the backward pass under way already
            raise FloatingPointError(f"reward model: the loss is {value} at step {step + 1}; lower learning_rate")
        optimizer.param_groups[0]["lr"] = config.learning_rate * (1 - step / len(schedule))
        optimizer.step()
        progress.show(step + 1, f"loss {value:.3f}")

    accuracy = held_out_loss = math.nan
    if held_out:
        scores = model.evaluate([model.encode(text, config.max_tokens) for texts, _ in held_out for text in texts])
        losses, right = preference_loss(scores.view(len(held_out), -1), torch.tensor([label for _, label in held_out], device="cpu"))
        accuracy, held_out_loss = right.float().mean().item(), losses.mean().item()
    model.normalize(samples)
    progress.finish(f"accuracy {accuracy:.3f} on {len(held_out)} held-out examples" if held_out else "nothing held out")
    return Result(accuracy, held_out_loss, len(held_out), len(training), time.monotonic() - started)
