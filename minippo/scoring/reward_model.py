"""A reward model: GPT-2 with a scalar head, trained on what people prefer or how they labelled texts.

The score of a text is read at its last token, the one place that has seen all of it. training/reward_training.py trains it.

    model = RewardModel.from_gpt2(GPT2.from_pretrained("gpt2"), load_tokenizer("gpt2"))
    model.score(["This film"], [" was a delight."])

Sources: Ziegler et al. 2019, section 2.1; openai/lm-human-preferences, rewards.py and train_reward.py: the head's initial
weights, the normalisation before and after training.
Shapes: B texts, T longest text in tokens, C width.
"""

import copy
import math
from dataclasses import asdict
from pathlib import Path
from typing import Sequence

import torch
from torch import Tensor, nn

from ..attention import hidden_states
from ..distributed import rank
from ..fast import torch_modes, upload
from ..files.model_folder import as_fp32, save_model
from ..files.safetensors import read_safetensors
from ..files.tokenizer import load_tokenizer
from ..gpt2 import GPT2, GPT2Config
from ..inputs import check_tokens, pad_right

HEAD_FILE = "reward_head.safetensors"
SCORE_BATCH = 64            # texts per forward pass where no gradient is needed


class RewardModel(nn.Module):
    """GPT-2 and a linear head: score = gain * r_head(hidden state of the last token) + bias.

    gpt2: is trained, too, see from_gpt2. tokenizer: for `score` and for training; None for a model of token ids alone.
    """

    def __init__(self, gpt2: GPT2, tokenizer=None, generator: torch.Generator | None = None):
        super().__init__()
        self.transformer, self.tokenizer, C = gpt2, tokenizer, gpt2.config.n_embd
        if (known := getattr(tokenizer, "vocab_size", 0)) > self.config.vocab_size:
            raise ValueError(f"the tokenizer has {known} tokens, the reward model {self.config.vocab_size}: give it its own")
        self.r_head = nn.Linear(C, 1, device="cpu", dtype=torch.float32)        # not zero: the trunk would get no gradient at first
        nn.init.normal_(self.r_head.weight, std=1 / math.sqrt(C + 1), generator=generator)
        nn.init.zeros_(self.r_head.bias)
        self.register_buffer("gain", torch.ones((), device="cpu"))
        self.register_buffer("bias", torch.zeros((), device="cpu"))
        self.to(self.transformer.wte.weight)    # its device and precision

    @classmethod
    def from_gpt2(cls, gpt2: GPT2, tokenizer=None, generator: torch.Generator | None = None) -> "RewardModel":
        """A fresh head, drawn by `generator`, on a copy of a language model, frozen or not, which stays as it is."""
        return cls(copy.deepcopy(gpt2).float().requires_grad_(), tokenizer, generator)

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device | None = None,
                        dtype: torch.dtype | None = None) -> "RewardModel":
        """Load a folder that save_pretrained wrote, with its tokenizer if it has one; on CUDA where there is one.

        FileNotFoundError: no such folder, or one without a reward head. ValueError: a damaged file, named.
        """
        folder = Path(folder)
        path = folder / HEAD_FILE
        if not path.is_file():
            raise FileNotFoundError(f"{folder} is no reward model: it has no {HEAD_FILE}; `minippo reward-model` trains one")
        tokenizer = load_tokenizer(folder) if (folder / "vocab.json").is_file() else None
        model = cls(GPT2.from_pretrained(folder, device, dtype), tokenizer)
        stored, wanted = read_safetensors(path), model.head_state()
        for name in sorted(stored.keys() | wanted.keys()):
            got, expected = (tuple(x[name].shape) if name in x else "nothing" for x in (stored, wanted))
            if got != expected:
                raise ValueError(f"{path}: {name}: expected a tensor of shape {expected}, got {got}")
            wanted[name].copy_(as_fp32(path, name, stored[name]))
        return model

    def save_pretrained(self, folder: str | Path, tokenizer=None) -> None:
        """Write the model folder, the head in a file of its own. In a folder that exists, other files stay as they are."""
        if rank() > 0:                          # under torchrun the first process writes
            return
        save_model(folder, asdict(self.config), dict(self.transformer.named_parameters()),
                   tokenizer=tokenizer or self.tokenizer, more={HEAD_FILE: self.head_state()})

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
        with torch_modes(self.device, self.transformer.compute_dtype):
            hidden = hidden_states(self.transformer, tokens, real_index).flatten(0, 1)[last]  # (B, C)
            return self.gain * self.r_head(hidden).squeeze(-1) + self.bias

    @torch.no_grad()
    def evaluate(self, sequences: Sequence[Tensor]) -> Tensor:
        """forward in batches of like lengths, without gradients: -> (B,) fp32 on the CPU, in the order given."""
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        scores = torch.zeros(len(sequences), dtype=torch.float32, device="cpu")
        for start in range(0, len(order), SCORE_BATCH):
            batch = order[start:start + SCORE_BATCH]
            scores[batch] = self([sequences[i] for i in batch]).float().cpu()
        return scores

    def encode(self, text: str, max_tokens: int | None = None) -> Tensor:
        """The last `max_tokens` tokens of a text, at most n_positions (the default): the response stands at the end.

        A text without a token is a single EOS. Query and response are encoded as one text, in training and in scoring.
        """
        if self.tokenizer is None:
            raise ValueError("this reward model has no tokenizer: set model.tokenizer, or pass one to from_gpt2")
        limit = min(max_tokens or self.config.n_positions, self.config.n_positions)
        return torch.tensor(self.tokenizer.encode(text)[-limit:] or [self.tokenizer.eos_token_id], device="cpu")

    def score(self, queries: Sequence[str], responses: Sequence[str]) -> list[float]:
        """The score of each response to its query, both as texts. This method is a score function for PPO."""
        if isinstance(queries, str) or isinstance(responses, str):
            raise ValueError("expected lists of texts, got one text; put it into a list")
        if len(queries) != len(responses):
            raise ValueError(f"got {len(queries)} queries and {len(responses)} responses; they come in pairs")
        return self.evaluate([self.encode(query + response) for query, response in zip(queries, responses)]).tolist()

    def normalize(self, sequences: Sequence[Tensor]) -> None:
        """Set gain and bias so that the scores of these reference samples have mean 0 and standard deviation 1.

        "So the KL coefficient always has the same meaning" (lm-human-preferences, train_reward.py). Equal scores get gain 1.
        """
        if len(sequences) == 0:
            raise ValueError("normalize: expected samples to measure the scores on, got none")
        raw = ((self.evaluate(sequences) - self.bias.cpu()) / self.gain.cpu()).double()       # r_head's own output
        mean, std = raw.mean().item(), raw.std(correction=0).item()
        if not math.isfinite(std):
            raise FloatingPointError(f"normalize: scores of mean {mean}, deviation {std}: the weights hold NaN or infinity")
        gain = 1 / std if std > 1e-6 * (1 + abs(mean)) else 1.0
        self.gain.fill_(gain)
        self.bias.fill_(-mean * gain)
