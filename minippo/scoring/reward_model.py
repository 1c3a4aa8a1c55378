"""A reward model: GPT-2 with a scalar head, trained on what people prefer or how they labelled texts.

The score of a text is read at its last token, the one place that has seen all of it. A pair says which of two texts is the
better one, and its loss is -log sigmoid(score of the better - score of the worse) (Bradley and Terry 1952); a label says
good or bad, and its loss is the same with one score in the place of the difference. So both share one training loop.

    model = RewardModel.from_gpt2(GPT2.from_pretrained("gpt2"), load_tokenizer("gpt2"))
    print(train_on_pairs(model, [("This film", " is a joy.", " is a bore."), ...]))
    model.score(["This film"], [" was a delight."])

Sources: Ziegler et al. 2019, section 2.1; openai/lm-human-preferences, rewards.py and train_reward.py: the head's initial
weights, the normalisation before and after training, one epoch, Adam at 5e-5 falling linearly to 0.

Shapes: B texts, T longest text in tokens, C width.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import hidden_states
from ..fast import upload
from ..files.model_folder import as_fp32, save_model
from ..gpt2 import GPT2, GPT2Config
from ..inputs import check_tokens, pad_right
from ..training.pretrain import Progress, split
from ..files.safetensors import read_safetensors
from ..files.tokenizer import load_tokenizer

HEAD_FILE = "reward_head.safetensors"
SCORE_BATCH = 64            # texts per forward pass where no gradient is needed
NORMALIZE_SAMPLES = 256     # texts on which training sets mean 0 and standard deviation 1, as many as OpenAI took

MODEL_CARD = """---
tags: [gpt2, reward-model, rlhf, minippo]
---

A reward model: GPT-2 and, in `reward_head.safetensors`, a linear head that reads a score at the last token of query + response.

    from minippo import RewardModel
    RewardModel.from_pretrained("<this folder>").score(["This film"], [" was a delight."])
"""


# ---------------------------------------------------------------------------------------------------------------------
# the model
# ---------------------------------------------------------------------------------------------------------------------

class RewardModel(nn.Module):
    """GPT-2 and a linear head: score = gain * r_head(hidden state of the last token) + bias.

    `dtype` is the precision of the blocks, see GPT2; weights and head are fp32. `tokenizer` turns texts into tokens for
    `score` and for training; a model of token ids alone can do without (None).
    """

    def __init__(self, config: GPT2Config, dtype: torch.dtype | None = None, generator: torch.Generator | None = None):
        super().__init__()
        self.transformer = GPT2(config, dtype=dtype, generator=generator)
        self.tokenizer = None
        self.reset_head(generator)

    def reset_head(self, generator: torch.Generator | None = None) -> None:
        """A fresh head and gain 1, bias 0. Not zero like a value head: the trunk would get no gradient at first."""
        C, device = self.config.n_embd, self.device
        self.r_head = nn.Linear(C, 1)
        nn.init.normal_(self.r_head.weight, std=1 / math.sqrt(C + 1), generator=generator)
        nn.init.zeros_(self.r_head.bias)
        self.register_buffer("gain", torch.ones(()))
        self.register_buffer("bias", torch.zeros(()))
        self.to(device)

    @classmethod
    def from_gpt2(cls, gpt2: GPT2, tokenizer=None, generator: torch.Generator | None = None) -> RewardModel:
        """A fresh head on a copy of a language model, which stays as it is; the head's weights are drawn by `generator`."""
        trunk = copy.deepcopy(gpt2).float().requires_grad_()      # a frozen reference can be the start, too
        return cls._on(trunk, tokenizer, generator)

    @classmethod
    def _on(cls, trunk: GPT2, tokenizer, generator: torch.Generator | None = None) -> RewardModel:
        with torch.device("meta"):                                 # shapes without memory; the trunk takes their place
            model = cls(trunk.config)
        model.transformer, model.tokenizer = trunk, tokenizer
        model.reset_head(generator)
        return model

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device | None = None,
                        dtype: torch.dtype | None = None) -> RewardModel:
        """Load a folder that save_pretrained wrote, with its tokenizer if it has one; on CUDA where there is one.

        Raises:
            FileNotFoundError: no such folder, or one without a reward head; ValueError: a damaged file, named.
        """
        folder = Path(folder)
        path = folder / HEAD_FILE
        if not path.is_file():
            raise FileNotFoundError(f"{folder} is no reward model: it has no {HEAD_FILE}; train one with "
                                    "`python -m minippo reward-model`")
        tokenizer = load_tokenizer(folder) if (folder / "vocab.json").is_file() else None
        model = cls._on(GPT2.from_pretrained(folder, device=device, dtype=dtype), tokenizer)
        stored, wanted = read_safetensors(path), model.head_state()
        for name in sorted(stored.keys() | wanted.keys()):
            got, expected = (tuple(x[name].shape) if name in x else "nothing" for x in (stored, wanted))
            if got != expected:
                raise ValueError(f"{path}: {name}: expected a tensor of shape {expected}, got {got}")
            wanted[name].copy_(as_fp32(path, name, stored[name]))
        return model

    def save_pretrained(self, folder: str | Path, tokenizer=None) -> None:
        """Write the model folder, the head in a file of its own. In a folder that exists, other files stay as they are."""
        save_model(folder, asdict(self.config), dict(self.transformer.named_parameters()), tokenizer=tokenizer or self.tokenizer,
                   card=MODEL_CARD, more={HEAD_FILE: self.head_state()})

    def head_state(self) -> dict[str, Tensor]:
        """The tensors of HEAD_FILE, in the model's own memory: r_head.weight (1, C), r_head.bias (1,), gain and bias ()."""
        return {name: x for name, x in self.state_dict().items() if not name.startswith("transformer.")}

    @property
    def config(self) -> GPT2Config:
        return self.transformer.config

    @property
    def device(self) -> torch.device:
        return self.transformer.device

    def forward(self, sequences: Sequence[Tensor]) -> Tensor:
        """The score of each of B token sequences, query and response in one: list of B 1-D tensors -> (B,) fp32."""
        sequences = check_tokens("sequences", sequences, self.config.vocab_size)
        for i, sequence in enumerate(sequences):
            if len(sequence) > self.config.n_positions:
                raise ValueError(f"sequences[{i}] has {len(sequence)} tokens, but the model has {self.config.n_positions} "
                                 "positions: keep its last ones")
        lengths = torch.tensor([len(sequence) for sequence in sequences], device="cpu")
        tokens = pad_right(sequences)                                                         # (B, T)
        real_index = (torch.arange(tokens.shape[1], device="cpu") < lengths[:, None]).flatten().nonzero().squeeze(-1)
        last = torch.arange(len(lengths), device="cpu") * tokens.shape[1] + lengths - 1       # not T - 1: that is padding
        tokens, real_index, last = upload([tokens, real_index, last], self.device)
        hidden = hidden_states(self.transformer, tokens, real_index).flatten(0, 1)[last]      # (B, C)
        return self.gain * self.r_head(hidden).squeeze(-1) + self.bias

    @torch.no_grad()
    def evaluate(self, sequences: Sequence[Tensor]) -> Tensor:
        """forward in batches of like lengths, without gradients: -> (B,) fp32 on the CPU, in the order given."""
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        scores = torch.zeros(len(sequences))
        for start in range(0, len(order), SCORE_BATCH):
            batch = order[start:start + SCORE_BATCH]
            scores[batch] = self([sequences[i] for i in batch]).cpu()
        return scores

    def encode(self, text: str, max_tokens: int | None = None) -> Tensor:
        """The last `max_tokens` tokens of a text, at most n_positions (the default): the response stands at the end.

        A text without a token is a single EOS. Query and response are encoded as one text, so that both training and
        scoring meet the tokens that a text has when it is written in one go.
        """
        if self.tokenizer is None:
            raise ValueError("this reward model has no tokenizer: set model.tokenizer, or pass one to from_gpt2")
        limit = min(max_tokens or self.config.n_positions, self.config.n_positions)
        return torch.tensor(self.tokenizer.encode(text)[-limit:] or [self.tokenizer.eos_token_id])

    def score(self, queries: Sequence[str], responses: Sequence[str]) -> list[float]:
        """The score of each response to its query, both as texts. This method is a score function for PPO."""
        if len(queries) != len(responses):
            raise ValueError(f"got {len(queries)} queries and {len(responses)} responses; they come in pairs")
        return self.evaluate([self.encode(query + response) for query, response in zip(queries, responses)]).tolist()

    def normalize(self, sequences: Sequence[Tensor]) -> None:
        """Set gain and bias so that the scores of these reference samples have mean 0 and standard deviation 1.

        "So the KL coefficient always has the same meaning" (lm-human-preferences, train_reward.py). Scores that are all
        the same have no scale to measure: they get gain 1.
        """
        if len(sequences) == 0:
            raise ValueError("normalize: expected samples to measure the scores on, got none")
        raw = ((self.evaluate(sequences) - self.bias.cpu()) / self.gain.cpu()).double()       # r_head's own output
        mean, std = raw.mean().item(), raw.std(correction=0).item()
        if not math.isfinite(std):
            raise FloatingPointError(f"normalize: the scores have mean {mean} and standard deviation {std}; the model's "
                                     "weights hold NaN or infinity")
        gain = 1 / std if std > 1e-6 * (1 + abs(mean)) else 1.0
        self.gain.fill_(gain)
        self.bias.fill_(-mean * gain)


# ---------------------------------------------------------------------------------------------------------------------
# training
# ---------------------------------------------------------------------------------------------------------------------

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
        for name in ("batch_size", "epochs", "max_tokens"):
            value = getattr(self, name)
            if not (type(value) is int and value > 0 or name == "max_tokens" and value is None):
                raise ValueError(f"RewardModelConfig: {name} must be a whole number above 0, got {value!r}")
        for name in ("learning_rate", "adam_eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"RewardModelConfig: {name} must be a number above 0, got {getattr(self, name)!r}")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"RewardModelConfig: held_out must be a share from 0 to below 1, got {self.held_out!r}")


class Result(NamedTuple):
    """What a training came to."""
    accuracy: float     # share of the held-out examples judged right; nan where there are none
    loss: float         # their mean loss in nats (log 2 = 0.693 is a guess); nan where there are none
    held_out: int       # how many they are
    trained: int        # examples trained on
    seconds: float


class Example(NamedTuple):
    """One judgement. texts: (chosen, rejected), with label 1; or (text,), with label 1 for good and 0 for bad."""
    texts: tuple[str, ...]
    label: float


def train_on_pairs(model: RewardModel, pairs: Sequence[tuple[str, str, str]],
                   config: RewardModelConfig = RewardModelConfig()) -> Result:
    """Train `model` in place on preferences, (query, chosen, rejected) as texts, and normalise its scores.

    Raises:
        ValueError: no pairs, or one that prefers nothing; FloatingPointError: the loss is not finite; the weights are then
            those before that step.
    """
    for i, pair in enumerate(pairs):
        if len(pair) != 3 or not all(isinstance(text, str) for text in pair):
            raise ValueError(f"pairs[{i}]: expected three texts (query, chosen, rejected), got {pair!r:.80}")
        if pair[1] == pair[2]:
            raise ValueError(f"pairs[{i}]: chosen and rejected are both {pair[1]!r:.60}: nothing is preferred")
    examples = [Example((query + chosen, query + rejected), 1.0) for query, chosen, rejected in pairs]
    return train(model, examples, config)


def train_on_labels(model: RewardModel, texts: Sequence[str], labels: Sequence[int],
                    config: RewardModelConfig = RewardModelConfig()) -> Result:
    """Train `model` in place on texts labelled 1 (good) or 0 (bad), and normalise its scores; errors as above."""
    if len(texts) != len(labels):
        raise ValueError(f"got {len(texts)} texts and {len(labels)} labels; they come in pairs")
    for i, (text, label) in enumerate(zip(texts, labels)):
        if not isinstance(text, str) or label not in (0, 1):
            raise ValueError(f"texts[{i}]: expected a text and a label 0 or 1, got {text!r:.60} and {label!r:.20}")
    examples = [Example((text,), float(label)) for text, label in zip(texts, labels)]
    if len({example.label for example in examples}) == 1:
        raise ValueError(f"all {len(labels)} labels are {labels[0]}: there is nothing to tell apart")
    return train(model, examples, config)


def batches(lengths: Sequence[int], batch_size: int, generator: torch.Generator) -> list[list[int]]:
    """One epoch as lists of indices: shuffled, sorted by length within windows of 16 batches, the batches shuffled again.

    Texts of like length share a batch and little is spent on padding, but which texts meet is new in each epoch.
    """
    order = torch.randperm(len(lengths), generator=generator).tolist()
    window = 16 * batch_size
    order = [i for start in range(0, len(order), window)
             for i in sorted(order[start:start + window], key=lambda i: lengths[i])]
    cut = [order[start:start + batch_size] for start in range(0, len(order), batch_size)]
    return [cut[i] for i in torch.randperm(len(cut), generator=generator).tolist()]


def preference_loss(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of each example and whether it is judged right: (B, 2) or (B, 1), (B,) -> (B,), (B,) bool.

    With a pair's difference as the logit, and label 1, binary cross-entropy is Bradley and Terry's loss.
    """
    logits = scores[:, 0] - scores[:, 1] if scores.shape[1] == 2 else scores[:, 0]
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none"), (logits > 0) == (labels > 0)


def train(model: RewardModel, examples: list[Example], config: RewardModelConfig) -> Result:
    """The one loop behind train_on_pairs and train_on_labels."""
    if not examples:
        raise ValueError("there is nothing to train on: got no examples")
    started = time.monotonic()
    generator = torch.Generator().manual_seed(config.seed)
    training, held_out = split(examples, config.held_out, generator)
    sequences = [[model.encode(text, config.max_tokens) for text in example.texts] for example in training]
    samples = [model.encode(text, config.max_tokens) for example in held_out + training[:NORMALIZE_SAMPLES]
               for text in example.texts][:NORMALIZE_SAMPLES]      # held-out ones first: they are what new texts look like
    model.normalize(samples)                                       # whatever scale the trunk's hidden states have
    optimizer = torch.optim.Adam(model.parameters(), eps=config.adam_eps, fused=True)
    lengths = [max(len(tokens) for tokens in texts) for texts in sequences]
    schedule = [batch for _ in range(config.epochs) for batch in batches(lengths, config.batch_size, generator)]

    progress = Progress("reward model", len(schedule))
    for step, batch in enumerate(schedule):
        scores = model([tokens for i in batch for tokens in sequences[i]]).view(len(batch), -1)
        labels = torch.tensor([training[i].label for i in batch], device=model.device)
        loss = preference_loss(scores, labels)[0].mean()
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(f"reward model: the loss is {value} at step {step + 1}; lower the learning rate "
                                     f"({config.learning_rate})")
        optimizer.param_groups[0]["lr"] = config.learning_rate * (1 - step / len(schedule))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        progress.show(step + 1, f"loss {value:.3f}")

    accuracy, held_out_loss = judge(model, held_out, config.max_tokens)
    model.normalize(samples)
    progress.finish(f"accuracy {accuracy:.3f} on {len(held_out)} held-out examples" if held_out else "nothing held out")
    return Result(accuracy, held_out_loss, len(held_out), len(training), time.monotonic() - started)


def judge(model: RewardModel, examples: list[Example], max_tokens: int | None = None) -> tuple[float, float]:
    """Accuracy and mean loss on examples; nan where there are none."""
    if not examples:
        return math.nan, math.nan
    scores = model.evaluate([model.encode(text, max_tokens) for example in examples for text in example.texts])
    losses, right = preference_loss(scores.view(len(examples), -1), torch.tensor([example.label for example in examples]))
    return right.float().mean().item(), losses.mean().item()
