"""What users hand in, checked once at the door."""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor


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
