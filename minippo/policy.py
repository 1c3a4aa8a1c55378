"""The policy: GPT-2 with a value head, its frozen reference copy, and the log-probabilities of responses.

The alignment rule, which only this file knows (sampling reads a query's last position alone): column t of every (B, R) tensor
belongs to response token t. Its log-probability and its value are read at position `query_length - 1 + t` of the sequence, the
position that predicts it.

    position      0    1    2    3    4    5            query = a b c (3 tokens), response = x y z (3 tokens)
    token         a    b    c    x    y    z
    predicts      b    c    x    y    z                 column t = 0, 1, 2 is read at position 2, 3, 4
                            0    1    2                 so z itself need not be fed to the model at all

Shapes: B batch, R longest response, N real response tokens in the batch, C width, V vocabulary.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from dataclasses import asdict
from typing import NamedTuple, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import hidden_states
from .distributed import rank
from .fast import TokenLogprobs, free_decoders, upload
from .files.hub import PUBLIC_MODELS, push_folder
from .files.model_folder import find_model, read_value_head, save_model
from .generation import generate
from .gpt2 import GPT2, GPT2Config
from .inputs import check_pairs, refuse

CHUNK_LOGITS = 2**28        # logits at a time, a gigabyte in fp32 and four with their gradient; beyond it the head works in chunks


class GPT2WithValueHead(nn.Module):
    """GPT-2 with a second, scalar head on the final hidden state: one trunk that is both the policy and its critic.

    The value head starts at zero, so that the first values are 0 instead of noise (lm-human-preferences, policy.py).
    `dtype` is the precision of the blocks, see GPT2; weights and heads are fp32.
    """

    def __init__(self, config: GPT2Config, dtype: torch.dtype | None = None, generator: torch.Generator | None = None):
        super().__init__()
        self.transformer = GPT2(config, dtype=dtype, generator=generator)
        self.v_head = nn.Linear(config.n_embd, 1)
        nn.init.zeros_(self.v_head.weight)
        nn.init.zeros_(self.v_head.bias)

    @classmethod
    def from_pretrained(cls, name_or_dir: str, device: str | torch.device | None = None,
                        dtype: torch.dtype | None = None) -> GPT2WithValueHead:
        """Load a public model or a model folder, with its value head where it has one; on CUDA where there is one."""
        transformer = GPT2.from_pretrained(name_or_dir, device=device, dtype=dtype)
        with torch.device("meta"):                              # shapes without memory; what was loaded takes their place
            model = cls(transformer.config)
        model.transformer = transformer
        head = read_value_head(find_model(name_or_dir), transformer.config.n_embd)
        if head is None:
            if name_or_dir not in PUBLIC_MODELS:                # which never have one: there is nothing to have got lost
                warnings.warn(f"{name_or_dir} has no value head; it starts at zero", stacklevel=2)
            head = {name: torch.zeros(p.shape, dtype=torch.float32, device="cpu") for name, p in model.v_head.named_parameters()}
        model.v_head.load_state_dict({name: x.to(transformer.device) for name, x in head.items()}, assign=True)
        return model

    def save_pretrained(self, folder: str, tokenizer=None) -> None:
        """Write the model folder of transformers' layout, the value head in a file of its own; see files/model_folder.py."""
        if rank() > 0:                                          # under torchrun the first process writes
            return
        transformer, v_head = (dict(module.named_parameters()) for module in (self.transformer, self.v_head))
        save_model(folder, asdict(self.config), transformer, v_head, tokenizer)

    def push_to_hub(self, repo_id: str, tokenizer=None, token: str | None = None, private: bool = False,
                    commit_message: str = "Upload a GPT-2 trained with minippo") -> str:
        """Share the model folder on the Hugging Face Hub; returns its address. Needs the package huggingface_hub.

        Of several processes the first one does it; "" on the others.
        """
        if rank() > 0:
            return ""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, tokenizer)
            return push_folder(folder, repo_id, token=token, private=private, commit_message=commit_message)

    @property
    def config(self) -> GPT2Config:
        return self.transformer.config

    @property
    def device(self) -> torch.device:
        return self.transformer.device

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) int64 -> logits (B, T, V) and values (B, T), both fp32."""
        hidden = self.transformer.hidden(tokens)                                                # (B, T, C)
        return self.transformer.head(hidden), self.v_head(hidden).squeeze(-1)

    def generate(self, queries: Sequence[Tensor], max_new_tokens: int | Sequence[int] = 20, min_new_tokens: int = 0,
                 min_length: int = -1, do_sample: bool = True, temperature: float = 1.0, top_k: int = 0,
                 top_p: float = 1.0, eos_token_id: int | None = None, pad_token_id: int | None = None,
                 seed: int | None = None, generator: torch.Generator | None = None, rows: Sequence[int] | None = None,
                 **unsupported) -> list[Tensor]:
        """Continue each query; see generation.generate."""
        refuse(unsupported)
        return generate(self.transformer, queries, max_new_tokens, min_new_tokens, min_length, do_sample, temperature, top_k,
                        top_p, eos_token_id, pad_token_id, seed, generator, rows)

    def free_decoders(self) -> None:
        """Give back the memory that `generate` keeps for its next call; see fast.free_decoders."""
        free_decoders(self.transformer)


def create_reference_model(model: GPT2WithValueHead) -> GPT2WithValueHead:
    """A frozen copy: eval mode, no gradients, storage of its own. KL is measured against it, so it must never move.

    Where the blocks compute in 16 bits the copy's blocks are kept so: the same numbers at half the memory.
    """
    reference = copy.deepcopy(model).eval().requires_grad_(False)
    reference.transformer.h.to(model.transformer.compute_dtype)
    return reference


class Evaluation(NamedTuple):
    """What a policy says of given responses; 0 at the padding."""
    logprobs: Tensor    # (B, R) fp32: log-probability of each response token
    values: Tensor      # (B, R) fp32: value of the state before that token
    entropy: Tensor     # (B, R) fp32: entropy of the whole distribution that the token was drawn from, in nats
    mask: Tensor        # (B, R) bool: real response tokens


class Alignment(NamedTuple):
    """Ragged queries and responses as one batch, and where each response token is predicted."""
    tokens: Tensor              # (B, T-1) int64: query then response, right-padded, without the last token, which predicts nothing
    positions: Tensor           # (N,) int64: into the flattened (B * (T-1)), the position that predicts each response token
    targets: Tensor             # (N,) int64: the response tokens
    response_index: Tensor      # (N,) int64: into the flattened (B * R) columns
    mask: Tensor                # (B, R) bool: real response tokens
    real_index: Tensor          # (n,) int64: into the flattened (B * (T-1)), what is not padding
    rows: Tensor                # (B,) int64: which of the queries and responses these are

    def to_columns(self, x: Tensor) -> Tensor:
        """One number per response token as a padded tensor: (N,) -> (B, R), 0 at the padding."""
        flat = torch.zeros(self.mask.numel(), dtype=x.dtype, device=x.device)
        return flat.index_put((self.response_index,), x).view(self.mask.shape)


def response_mask(responses: list[Tensor]) -> Tensor:
    """(B, R) bool on the CPU: the real tokens of ragged responses."""
    lengths = torch.tensor([len(response) for response in responses], device="cpu")[:, None]                    # (B, 1)
    return torch.arange(int(lengths.max()), device="cpu") < lengths


def align(queries: list[Tensor], responses: list[Tensor], device: torch.device, rows: Sequence[int] | None = None) -> Alignment:
    """The alignment rule for these rows, or all; for one pair it is a slice, hidden[len(query) - 1 : len(query) - 1 + len(response)].

    Worked out on the CPU from lengths, so that it costs no host sync and ignores what tokens are; one upload takes it to `device`.
    queries, responses: 1-D tensors, as inputs.check_pairs returns them.
    """
    rows = range(len(queries)) if rows is None else rows
    queries, responses = [queries[row] for row in rows], [responses[row] for row in rows]
    query_lengths = torch.tensor([len(query) for query in queries], device="cpu")[:, None]          # (B, 1)
    response_lengths = torch.tensor([len(response) for response in responses], device="cpu")[:, None]
    position = torch.arange(int((query_lengths + response_lengths).max()) - 1, device="cpu")        # (T-1,)
    input_mask = position < query_lengths + response_lengths - 1                            # (B, T-1): all but the last token
    in_query = position < query_lengths
    predicts = input_mask & (position >= query_lengths - 1)                                 # query_length - 1 + t
    mask = response_mask(responses)                                                         # (B, R)
    tokens = torch.zeros(input_mask.shape, dtype=torch.long, device="cpu")
    tokens[in_query] = torch.cat(queries)
    tokens[input_mask & ~in_query] = torch.cat([response[:-1] for response in responses])
    positions, response_index, real_index = (x.flatten().nonzero().squeeze(-1) for x in (predicts, mask, input_mask))
    index = torch.tensor([*rows], device="cpu")
    return Alignment(*upload([tokens, positions, torch.cat(responses), response_index, mask, real_index, index], device))


def response_hidden(transformer: GPT2, aligned: Alignment) -> Tensor:
    """The hidden state that predicts each response token: (N, C)."""
    return hidden_states(transformer, aligned.tokens, aligned.real_index).flatten(0, 1)[aligned.positions]


def token_logprobs(transformer: GPT2, hidden: Tensor, targets: Tensor, temperature: float,
                   entropy_grad: bool) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and the entropy of its distribution: (N, C), (N,) -> (N,), (N,)."""
    logits = transformer.head(hidden / temperature)                                         # (N, V): as if the logits were divided
    if not entropy_grad:
        return TokenLogprobs.apply(logits, targets)[:2]
    log_probs = logits.log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    return log_probs.gather(-1, targets[:, None]).squeeze(-1), entropy


def evaluate_responses(model: GPT2WithValueHead, aligned: Alignment, temperature: float = 1.0, entropy_grad: bool = False,
                       critic: bool = True) -> Evaluation:
    """Score responses under `model`: one way for rollout, reference and training, so that the first ratio is 1.

    Args:
        aligned: B queries and responses, on the model's device.
        temperature: divides the logits, here as in sampling.
        entropy_grad: let gradients flow through the entropy (for an entropy bonus; otherwise it is only measured).
        critic: evaluate the value head, too; else values are 0.
    """
    hidden = response_hidden(model.transformer, aligned)                                    # (N, C): the head runs here alone
    chunk = max(1, CHUNK_LOGITS // model.config.vocab_size)
    if len(hidden) <= chunk:
        logprobs, entropy = token_logprobs(model.transformer, hidden, aligned.targets, temperature, entropy_grad)
    else:                                                            # recomputed in the backward pass, never held whole
        parts = [checkpoint(token_logprobs, model.transformer, h, t, temperature, entropy_grad, use_reentrant=False)
                 for h, t in zip(hidden.split(chunk), aligned.targets.split(chunk))]
        logprobs, entropy = (torch.cat(part) for part in zip(*parts))
    values = model.v_head(hidden).squeeze(-1) if critic else torch.zeros_like(logprobs)     # (N,)
    return Evaluation(aligned.to_columns(logprobs), aligned.to_columns(values), aligned.to_columns(entropy), aligned.mask)


def response_logprobs(model: GPT2WithValueHead, queries: Sequence[Tensor], responses: Sequence[Tensor],
                      temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities and values of given responses; differentiable unless under torch.no_grad.

    Args:
        queries, responses: B non-empty 1-D integer tensors each, of any lengths.

    Returns:
        logprobs (B, R) fp32, values (B, R) fp32, mask (B, R) bool; 0 where the mask is False.
    """
    queries, responses = check_pairs(queries, responses, model.config.vocab_size, model.config.n_positions)
    evaluation = evaluate_responses(model, align(queries, responses, model.device), temperature)
    return evaluation.logprobs, evaluation.values, evaluation.mask


@torch.no_grad()
def response_kl(model: GPT2WithValueHead, reference: GPT2WithValueHead, aligned: Alignment, temperature: float = 1.0) -> Tensor:
    """The exact KL(policy || reference) of the next-token distributions at each response token: (B, R), at least 0 up to rounding."""
    hidden, ref_hidden = (response_hidden(m.transformer, aligned) for m in (model, reference))
    chunk = max(1, CHUNK_LOGITS // model.config.vocab_size)
    kl = []
    for h, ref_h in zip(hidden.split(chunk), ref_hidden.split(chunk)):
        log_p = (model.transformer.head(h) / temperature).log_softmax(-1)                   # (chunk, V)
        log_q = (reference.transformer.head(ref_h) / temperature).log_softmax(-1)
        kl.append((log_p.exp() * (log_p - log_q)).sum(-1))
    return aligned.to_columns(torch.cat(kl))
