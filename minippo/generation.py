"""Sampling responses to ragged queries with a key/value cache.

Queries are padded on the right; each row writes its next token at its own column `pos[b]` of the cache and attends to the
columns up to it, so there is no left padding, no position id and no attention mask to get wrong. All uniform random
numbers of a rollout are drawn beforehand, on the CPU, from an explicit generator: the same seed gives the same draws on
every device, and the decode step holds no randomness and no host sync, so that on CUDA it is captured once as a graph and
then replayed token by token.

Shapes: B batch, Q longest query, R most new tokens, S cache length >= Q + R, V vocabulary.
"""

from __future__ import annotations

import copy
import operator
import weakref
from dataclasses import dataclass
from typing import Sequence

import torch
from torch import Tensor

from .gpt2 import GPT2, KVCache


def check_tokens(name: str, sequences: Sequence, vocab_size: int) -> list[Tensor]:
    """`sequences` as a list of non-empty 1-D int64 CPU tensors, every token inside the vocabulary; ValueError otherwise."""
    if isinstance(sequences, Tensor) and sequences.dim() < 2:
        raise ValueError(f"{name}: expected a list of 1-D token tensors, got one tensor of shape "
                         f"{tuple(sequences.shape)}; wrap it in a list")
    if isinstance(sequences, (str, bytes)) or not hasattr(sequences, "__len__") or not hasattr(sequences, "__iter__"):
        raise ValueError(f"{name}: expected a list of 1-D token tensors, got {type(sequences).__name__}")
    if len(sequences) == 0:
        raise ValueError(f"{name}: expected at least one sequence, got an empty list")
    checked: list[Tensor] = []
    for i, sequence in enumerate(sequences):
        if isinstance(sequence, (str, bytes)):
            raise ValueError(f"{name}[{i}] is text; encode it first: torch.tensor(tokenizer.encode(text))")
        try:
            tokens = torch.as_tensor(sequence)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{name}[{i}]: expected a 1-D tensor of token ids, got {sequence!r:.80}") from error
        if tokens.dim() != 1 or tokens.numel() == 0:
            raise ValueError(f"{name}[{i}]: expected a non-empty 1-D tensor of token ids, got shape {tuple(tokens.shape)}")
        if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
            raise ValueError(f"{name}[{i}]: token ids are integers, got {tokens.dtype}")
        checked.append(tokens.detach().to(checked[0].device if checked else tokens.device, torch.long))
    flat = torch.cat(checked).cpu()                                                          # one host sync for all rows
    ragged = list(flat.split([len(tokens) for tokens in checked]))
    if flat.min() < 0 or flat.max() >= vocab_size:
        i, bad = next((i, token) for i, tokens in enumerate(ragged) for token in tokens.tolist() if not 0 <= token < vocab_size)
        raise ValueError(f"{name}[{i}]: token id {bad} is outside the vocabulary of {vocab_size} tokens; is this the model's "
                         "own tokenizer?")
    return ragged


def pad_right(sequences: list[Tensor], device: torch.device) -> tuple[Tensor, list[int]]:
    """Ragged sequences as one (B, T) tensor, zeros on the right, and their lengths.

    Zero is an ordinary token: padding is known from the lengths alone, never from token ids.
    """
    padded = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    return padded.to(device), [len(sequence) for sequence in sequences]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the logits."""
    do_sample: bool = True
    temperature: float = 1.0       # divides the logits
    top_k: int = 0                 # keep the k most likely tokens; 0 keeps all
    top_p: float = 1.0             # keep the smallest set of tokens that holds this much probability; 1 keeps all
    eos_token_id: int | None = None

    def check(self, vocab_size: int) -> None:
        if not self.temperature > 0 or self.temperature == float("inf"):
            raise ValueError(f"generate: temperature must be a positive number, got {self.temperature}; "
                             "for the most likely token use do_sample=False")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"generate: top_p must lie in (0, 1], got {self.top_p}; 1.0 keeps every token")
        if self.top_k < 0 or self.top_k != int(self.top_k):
            raise ValueError(f"generate: top_k must be a whole number >= 0, got {self.top_k}; 0 keeps every token")
        if self.eos_token_id is not None and not 0 <= self.eos_token_id < vocab_size:
            raise ValueError(f"generate: eos_token_id {self.eos_token_id} is outside the vocabulary of {vocab_size} tokens")

    def filter(self, logits: Tensor) -> Tensor:
        """Temperature, then top-k, then top-p: (B, V) -> (B, V) with -inf at the tokens left out."""
        logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            kth = logits.topk(int(self.top_k)).values[:, -1:]
            logits = logits.masked_fill(logits < kth, -torch.inf)
        if self.top_p < 1:
            ordered, order = logits.sort(descending=True)
            probs = ordered.softmax(-1)
            tail = probs.cumsum(-1) - probs >= self.top_p          # the mass before this token is enough already
            logits = logits.masked_fill(tail.scatter(-1, order, tail), -torch.inf)
        return logits


def inverse_cdf(logits: Tensor, uniform: Tensor) -> Tensor:
    """Sample one token a row: the first whose cumulative probability exceeds the row's uniform number.

    (B, V), (B, 1) -> (B, 1). One uniform a row, where multinomial draws V: faster, and from the same uniform on every device.
    """
    cdf = logits.softmax(-1).cumsum(-1)
    return torch.searchsorted(cdf, uniform * cdf[:, -1:], right=True).clamp_max(logits.shape[-1] - 1)


class Decoder:
    """The decode loop for one shape: static buffers, and a step that touches nothing but them."""

    def __init__(self, model: GPT2, sampling: Sampling, batch_size: int, length: int, max_new_tokens: int):
        device = model.device
        self.sampling = sampling
        self.cache = KVCache(model.config, batch_size, length, device, model.compute_dtype)
        self.token = torch.zeros(batch_size, 1, dtype=torch.long, device=device)     # the newest token of each row
        self.pos = torch.zeros(batch_size, dtype=torch.long, device=device)          # its column
        self.last_pos = torch.zeros_like(self.pos)                                   # the last column a row may fill
        self.min_new = torch.zeros_like(self.pos)                                    # no EOS before this many tokens
        self.failed_at = torch.zeros_like(self.pos)                                  # first step with non-finite logits
        self.step_index = torch.zeros(1, 1, dtype=torch.long, device=device)
        self.uniforms = torch.zeros(batch_size, max_new_tokens, device=device)
        self.output = torch.zeros(batch_size, max_new_tokens, dtype=torch.long, device=device)
        self.graph = self.capture(model) if device.type == "cuda" else None

    def reset(self, lengths: Tensor, limits: Tensor, min_new: Tensor, uniforms: Tensor) -> None:
        self.pos.copy_(lengths - 1)
        self.last_pos.copy_(lengths + limits - 1)
        self.min_new.copy_(min_new)
        self.uniforms[:, :uniforms.shape[1]] = uniforms
        self.failed_at.fill_(self.output.shape[1])
        self.step_index.zero_()
        self.output.fill_(-1)                                                        # no token: 0 may be EOS

    def choose(self, logits: Tensor) -> None:
        """Choose each row's next token from its logits (B, V) and move one column on."""
        j = self.step_index
        eos = self.sampling.eos_token_id
        if eos is not None:
            logits[:, eos].masked_fill_(j[0] < self.min_new, -torch.inf)
        if self.sampling.do_sample:
            logits = self.sampling.filter(logits)
            token = inverse_cdf(logits, self.uniforms.gather(1, j.expand(len(logits), 1)))
        else:
            token = logits.argmax(-1, keepdim=True)
        finite = logits.amax(-1).isfinite()                                          # False for NaN, and when all are -inf
        self.failed_at.copy_(torch.where(finite, self.failed_at, self.failed_at.minimum(j[0])))
        self.output.scatter_(1, j.expand(len(logits), 1), token)
        self.token.copy_(token)
        self.pos.copy_(torch.minimum(self.pos + 1, self.last_pos))                   # a finished row stays where it is
        self.step_index.add_(1)

    def step(self, model: GPT2) -> None:
        """Run the newest token of each row through the model and choose the next one."""
        self.choose(model.head(model.hidden(self.token, self.cache, self.pos)[:, 0]).contiguous())

    def capture(self, model: GPT2) -> torch.cuda.CUDAGraph:
        """Record the step as a CUDA graph; the warm-up steps and the recording change only buffers that reset() sets again."""
        with torch.cuda.device(model.device):                                        # not always the current one: cuda:1
            stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    self.step_index.zero_()
                    self.step(model)
            torch.cuda.current_stream().wait_stream(stream)
            self.step_index.zero_()
            with torch.cuda.graph(graph, stream=stream):
                self.step(model)
            return graph

    def run(self, model: GPT2, tokens: Tensor, lengths: Tensor, R: int) -> Tensor:
        """Prefill the queries (B, Q), then decode until every row has its EOS or R tokens."""
        eos = self.sampling.eos_token_id
        check_every = 1 if tokens.device.type == "cpu" else 16                       # looking is a host sync on a GPU
        hidden = model.hidden(tokens, self.cache)
        self.choose(model.head(hidden[self.cache.rows, lengths - 1]))                # only each query's last position is scored
        for j in range(1, R):
            if eos is not None and j % check_every == 0 and bool((self.output == eos).any(1).all()):
                break
            self.graph.replay() if self.graph else self.step(model)
        return self.output


KEPT_DECODERS = 2           # shapes whose decoder is kept on CUDA; each holds a cache and the memory of its graph

_snapshots: weakref.WeakKeyDictionary[GPT2, GPT2] = weakref.WeakKeyDictionary()
_decoders: weakref.WeakKeyDictionary[GPT2, dict] = weakref.WeakKeyDictionary()


def compute_snapshot(model: GPT2) -> GPT2:
    """The model with its blocks' weights in the compute dtype, refreshed in place; the model itself where that is fp32.

    Casting the masters in every layer of every decode step would move three times the bytes. Embedding and head stay shared.
    """
    if model.compute_dtype == torch.float32:
        return model
    masters = list(model.h.parameters())
    twin = _snapshots.get(model)
    if twin is None or twin.dtype != model.compute_dtype or next(twin.h.parameters()).device != model.device:
        twin = copy.copy(model)                                    # shares wte, wpe and ln_f ...
        twin._modules = dict(model._modules)
        twin.h = copy.deepcopy(model.h).to(model.compute_dtype).requires_grad_(False)      # ... but not the blocks
        twin.dtype = model.compute_dtype
        _snapshots[model] = twin
    torch._foreach_copy_(list(twin.h.parameters()), masters)
    return twin


def decoder_for(model: GPT2, snapshot: GPT2, sampling: Sampling, batch_size: int, length: int,
                max_new_tokens: int) -> Decoder:
    """A Decoder of this shape. On CUDA the newest are kept, since recording a graph costs as much as many steps."""
    if model.device.type == "cpu":
        return Decoder(snapshot, sampling, batch_size, length, max_new_tokens)
    kept = _decoders.setdefault(model, {})
    addresses = tuple(parameter.data_ptr() for parameter in snapshot.parameters())        # a graph replays on addresses
    key = (sampling, batch_size, length, max_new_tokens, addresses)
    if key not in kept:
        while len(kept) >= KEPT_DECODERS:
            kept.pop(next(iter(kept)))
        kept[key] = Decoder(snapshot, sampling, batch_size, length, max_new_tokens)
    return kept[key]


@torch.no_grad()
def generate(model: GPT2, queries: Sequence[Tensor], max_new_tokens: int | Sequence[int] = 20, min_new_tokens: int = 0,
             min_length: int = -1, do_sample: bool = True, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
             eos_token_id: int | None = None, pad_token_id: int | None = None, seed: int | None = None,
             generator: torch.Generator | None = None) -> list[Tensor]:
    """Continue each query; returns the responses alone, a list of B 1-D int64 tensors on the model's device.

    A response ends with its first EOS, which is kept, or after `max_new_tokens`. The defaults sample from the model's own
    distribution, which is what PPO scores; top_k, top_p and a minimum length change the sampled distribution only.

    Args:
        queries: B non-empty 1-D integer tensors (or lists) of any lengths.
        max_new_tokens: one limit for all rows, or one for each.
        min_new_tokens, min_length: EOS is held back while the response (query plus response) has fewer tokens; <= 0: never.
        do_sample: False takes the most likely token; temperature, top_k and top_p then do nothing.
        eos_token_id: where a response ends; None never stops early.
        pad_token_id: accepted for the classic keyword dictionary and not needed: responses come back ragged.
        seed, generator: where the random numbers come from (CPU); with neither, torch's default generator.

    Raises:
        ValueError: for bad arguments, before anything runs; FloatingPointError: the model gave NaN logits.
    """
    queries = check_tokens("queries", queries, model.config.vocab_size)
    top_k, top_p, min_length = top_k or 0, 1.0 if top_p is None else top_p, -1 if min_length is None else min_length
    if temperature is None or isinstance(eos_token_id, (list, tuple)):
        raise ValueError(f"generate: expected one temperature and one eos_token_id, got {temperature!r} and {eos_token_id!r}")
    sampling = Sampling(bool(do_sample), float(temperature), int(top_k) if top_k == int(top_k) else top_k, float(top_p),
                        eos_token_id)
    sampling.check(model.config.vocab_size)
    if seed is not None and generator is not None:
        raise ValueError("generate: give a seed or a generator, not both")
    several = isinstance(max_new_tokens, Sequence) or isinstance(max_new_tokens, Tensor) and max_new_tokens.dim() > 0
    try:
        limits = [operator.index(n) for n in (max_new_tokens if several else [max_new_tokens] * len(queries))]
    except TypeError as error:
        raise ValueError("generate: max_new_tokens must be a whole number, or a list of one for each query, "
                         f"got {max_new_tokens!r}") from error
    if len(limits) != len(queries):
        raise ValueError(f"generate: got {len(limits)} values of max_new_tokens for {len(queries)} queries")
    min_new = [max(0, min_new_tokens, min_length - len(query)) for query in queries]
    for i, (query, limit) in enumerate(zip(queries, limits)):
        if limit < 1:
            raise ValueError(f"generate: max_new_tokens must be at least 1, got {limit}")
        if min_new[i] > limit:
            raise ValueError(f"generate: a minimum of {min_new[i]} new tokens is more than max_new_tokens={limit}")
        if len(query) + limit > model.config.n_positions:
            raise ValueError(f"generate: queries[{i}] has {len(query)} tokens and may grow by {limit}, but the model has "
                             f"{model.config.n_positions} positions: shorten the query or lower max_new_tokens")

    device = model.device
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
    tokens, lengths = pad_right(queries, device)
    longest = max(length + limit for length, limit in zip(lengths, limits))
    uniforms = torch.rand(len(queries), max(limits), generator=generator)
    snapshot = compute_snapshot(model)
    S, R = (-(-length // 16) * 16 for length in (longest, max(limits)))                     # 16, 32, 48, ...: few shapes
    decoder = decoder_for(model, snapshot, sampling, len(queries), S, R)
    length_tensor = torch.tensor(lengths, device=device)
    decoder.reset(length_tensor, torch.tensor(limits, device=device), torch.tensor(min_new, device=device), uniforms)
    output = decoder.run(snapshot, tokens, length_tensor, max(limits))

    rows, failed_at = output.tolist(), decoder.failed_at.tolist()
    ends = [row.index(eos_token_id) + 1 if eos_token_id in row else len(row) for row in rows]
    ends = [min(end, limit) for end, limit in zip(ends, limits)]
    for i, (end, failed) in enumerate(zip(ends, failed_at)):
        if failed < end:
            _decoders.pop(model, None)              # its cache may hold NaN, which a mask does not stop: 0 * nan
            raise FloatingPointError(f"generate: the model's logits are not finite at token {failed} of row {i}; its weights "
                                     "hold NaN or infinity, or overflow in this precision: go back to an earlier checkpoint")
    return [output[i, :end].clone() for i, end in enumerate(ends)]
