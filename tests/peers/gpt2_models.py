"""transformers' GPT-2 beside ours: random models, and the two naming schemes of the same weights."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")      # theirs are (in, out), ours nn.Linear's (out, in)


def hf_gpt2(sizes: dict[str, int], seed: int = 0, eos_token_id: int | None = None) -> GPT2LMHeadModel:
    """A random GPT-2 without dropout; every weight and bias is drawn, so that no tensor could be missing unnoticed."""
    model = GPT2LMHeadModel(GPT2Config(**sizes, embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0, bos_token_id=eos_token_id,
                                       eos_token_id=eos_token_id)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.2)
    return model


def to_hf(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a GPT2WithValueHead under the names and in the layout of transformers and TRL."""
    return {name.replace("v_head.", "v_head.summary."): w.T.contiguous() if name.endswith(TRANSPOSED) else w
            for name, w in weights.items()}


def from_hf(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The way back; the head of the language model is the token embedding and has no name of its own here."""
    return {name.replace("v_head.summary.", "v_head."): (w.T if name.endswith(TRANSPOSED) else w).detach().clone()
            for name, w in weights.items() if name != "lm_head.weight"}
