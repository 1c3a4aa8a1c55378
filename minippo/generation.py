"""Sampling responses to ragged queries with a key/value cache.

Queries are padded on the right; each row writes its next token at its own column of the cache and attends to the columns up
to it, so there is no left padding, and no position id or attention mask for a caller to get wrong. All uniform random numbers
of a rollout are drawn beforehand, on the CPU: the same seed gives the same draws on every device, and the decode step holds no
randomness and no host sync, so that on CUDA it is recorded once as a graph and then replayed.

The loop stands in `Decoder.run`.

Shapes: B batch, Q longest query, R most new tokens, S cache length, for each query and its limit, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import torch
from torch import Tensor

from .attention import KVCache
from .fast import compute_snapshot, decoder_for, hooked, torch_modes, upload
from .gpt2 import GPT2
from .inputs import check_limits, check_sampling, check_tokens, pad_right


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the logits."""
    do_sample: bool = True         # False: the most likely token
    temperature: float = 1.0       # divides the logits
    top_k: int = 0                 # keep the k most likely tokens; 0 keeps all
    top_p: float = 1.0             # keep the smallest set of tokens that holds this much probability; 1 keeps all
    eos_token_id: int | None = None

    def filter(self, logits: Tensor) -> Tensor:
        """Temperature, then top-k, then top-p: (B, V) -> (B, V) with -inf at the tokens left out."""
        logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            kth = logits.topk(self.top_k).values[:, -1:]
            logits = logits.masked_fill(logits < kth, -torch.inf)
        if self.top_p < 1:
            ordered, order = logits.sort(descending=True)
            probs = ordered.softmax(-1)
            tail = probs.cumsum(-1) - probs >= self.top_p          # the mass before this token is enough already
            logits = logits.masked_fill(tail.scatter(-1, order, tail), -torch.inf)
        return logits


def sample(logits: Tensor, uniform: Tensor) -> Tensor:
    """One token a row: the first whose cumulative probability exceeds the uniform number, (B, V), (B, 1) -> (B, 1).

    It is the inverse CDF: one uniform a row, where torch.multinomial draws V; faster, and from the same uniform on every device.
    """
    cdf = logits.softmax(-1).cumsum(-1)
    return torch.searchsorted(cdf, uniform * cdf[:, -1:], right=True).clamp_max(logits.shape[-1] - 1)


class Decoder:
    """Decoding at one batch size and cache length: buffers that stay where they are, since a CUDA graph replays on addresses."""

    def __init__(self, model: GPT2, sampling: Sampling, batch_size: int, length: int, max_new_tokens: int):
        device = model.device
        self.sampling = sampling
        self.cache = KVCache(model.config, batch_size, length, device, model.compute_dtype)
        self.token = torch.zeros(batch_size, 1, dtype=torch.long, device=device)     # the newest token of each row
        self.input_pos = torch.zeros(batch_size, dtype=torch.long, device=device)    # its column
        self.last_pos = torch.zeros_like(self.input_pos)                             # the last column a row may fill
        self.min_new = torch.zeros_like(self.input_pos)                              # no EOS before this many tokens
        self.failed_at = torch.zeros_like(self.input_pos)                            # first step with non-finite logits
        self.step_index = torch.zeros(1, 1, dtype=torch.long, device=device)
        self.uniforms = torch.zeros(batch_size, max_new_tokens, dtype=torch.float32, device=device)
        self.output = torch.zeros(batch_size, max_new_tokens, dtype=torch.long, device=device)
        self.graph = self.record(model) if device.type == "cuda" and not hooked(model) else None

    def run(self, model: GPT2, queries: Tensor, lengths: Tensor, R: int) -> Tensor:
        """Continue the queries, (B, Q) padded on the right, until every row has its EOS or R tokens: (B, R or more)."""
        hidden = model.blocks(model.embed(queries, self.cache.columns[:queries.shape[1]]), self.cache.prefill())
        self.choose(model.head(hidden[self.cache.rows, lengths - 1]))                # read at each query's last token
        for j in range(1, R):
            if self.finished(j):
                break
            self.graph.replay() if self.graph else self.step(model)
        return self.output

    def step(self, model: GPT2) -> None:
        """Run the newest token of each row through the model and choose the next one."""
        hidden = model.blocks(model.embed(self.token, self.input_pos[:, None]), self.cache.decode(self.input_pos))
        self.choose(model.head(hidden[:, 0]))

    def choose(self, logits: Tensor) -> None:
        """Choose each row's next token from its logits (B, V) and move one column on."""
        j, eos = self.step_index, self.sampling.eos_token_id
        if eos is not None:
            logits[:, eos].masked_fill_(j[0] < self.min_new, -torch.inf)
        if self.sampling.do_sample:
            logits = self.sampling.filter(logits)
            token = sample(logits, self.uniforms.gather(1, j.expand(len(logits), 1)))
        else:
            token = logits.argmax(-1, keepdim=True)
        finite = logits.amax(-1).isfinite()                                          # False for NaN, and when all are -inf
        self.failed_at.copy_(torch.where(finite, self.failed_at, self.failed_at.minimum(j[0])))
        self.output.scatter_(1, j.expand(len(logits), 1), token)
        self.token.copy_(token)
        self.input_pos.copy_(torch.minimum(self.input_pos + 1, self.last_pos))       # a row at its limit stays where it is
        self.step_index.add_(1)

    def finished(self, j: int) -> bool:
        """Whether every row has its EOS or its last token. Looking is a host sync on a GPU: there at every 16th token alone."""
        eos, look_every = self.sampling.eos_token_id, 1 if self.output.device.type == "cpu" else 16
        if eos is None or j % look_every:
            return False
        return bool(((self.output == eos).any(1) | (self.input_pos == self.last_pos)).all())

    def reset(self, lengths: Tensor, limits: Tensor, min_new: Tensor, uniforms: Tensor) -> None:
        """Ready for other queries of the same shape: (B,) int64 each, uniforms (B, R)."""
        self.input_pos.copy_(lengths - 1)
        self.last_pos.copy_(lengths + limits - 1)
        self.min_new.copy_(min_new)
        self.uniforms[:, :uniforms.shape[1]] = uniforms
        self.failed_at.fill_(self.output.shape[1])
        self.step_index.zero_()
        self.output.fill_(-1)                                                        # no token: 0 may be EOS

    def record(self, model: GPT2) -> torch.cuda.CUDAGraph:
        """The step as a CUDA graph; the warm-up steps and the recording change only buffers that reset() sets again."""
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


def round_up(n: int) -> int:
    """16, 32, 48, ...: few shapes, so that kept graphs fit."""
    return -(-n // 16) * 16


@torch.no_grad()
def generate(model: GPT2, queries: Sequence[Tensor], max_new_tokens: int | Sequence[int] = 20, min_new_tokens: int = 0,
             min_length: int = -1, do_sample: bool = True, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
             eos_token_id: int | None = None, pad_token_id: int | None = None, seed: int | None = None,
             generator: torch.Generator | None = None, rows: Sequence[int] | None = None) -> list[Tensor]:
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
        rows: continue only these queries, each with the random numbers that it has among all (a process's share of the work).

    Raises:
        ValueError: for bad arguments, before anything runs; FloatingPointError: the model gave NaN logits.

    On CUDA one call at a time: calls with the same model share its buffers.
    """
    queries = check_tokens("queries", queries, model.config.vocab_size)
    sampling = Sampling(**check_sampling(do_sample, temperature, top_k, top_p, eos_token_id, model.config.vocab_size))
    limits, min_new = check_limits(queries, max_new_tokens, min_new_tokens, min_length, model.config.n_positions)
    if seed is not None and generator is not None:
        raise ValueError("generate: give a seed or a generator, not both")
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
    rows, R = range(len(queries)) if rows is None else rows, max(limits)
    uniforms = torch.rand(len(queries), R, generator=generator, dtype=torch.float32, device="cpu")[list(rows)]
    queries, limits, min_new = ([x[row] for row in rows] for x in (queries, limits, min_new))
    if not queries:
        return []
    lengths = [len(query) for query in queries]

    with torch_modes(model.device, model.compute_dtype):
        numbers = torch.tensor([lengths, limits, min_new], device="cpu")             # (3, B)
        padded, numbers, bits = upload([pad_right(queries), numbers, uniforms.view(torch.int32)], model.device)
        S = round_up(max(length + limit for length, limit in zip(lengths, limits)))
        snapshot = compute_snapshot(model)
        decoder = decoder_for(model, snapshot, Decoder, sampling, len(queries), S, round_up(R))
        decoder.reset(*numbers, bits.view(torch.float32))
        output = decoder.run(snapshot, padded, numbers[0], R)
        table = torch.cat([output, decoder.failed_at[:, None]], 1).tolist()          # one host sync

        responses, output = [], output.clone()                                       # the decoder's own serves its next call
        for i, (*row, failed_at) in enumerate(table):
            end = row.index(sampling.eos_token_id) + 1 if sampling.eos_token_id in row else len(row)
            end = min(end, limits[i])
            if failed_at < end:
                raise FloatingPointError(
                    f"generate: the model's logits are not finite at token {failed_at} of row {rows[i]}; its weights hold NaN or "
                    "infinity, or overflow in this precision: go back to an earlier checkpoint")
            responses.append(output[i, :end])
        return responses
