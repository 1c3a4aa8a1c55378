"""Shared by all tests: one thread, so that numbers are the same on every run, and tiny models."""

import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from fakecuda import FakeCuda
from minippo.gpt2 import GPT2Config
from minippo.policy import GPT2WithValueHead

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE / "files"), str(HERE / "scoring"), str(HERE / "training")]       # some tests use the helpers of others
torch.set_num_threads(1)
for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):     # ignored under nohup or behind &, and
    if getattr(signal, name, None) and signal.getsignal(getattr(signal, name)) is signal.SIG_IGN:    # a test would wait for ever
        signal.signal(getattr(signal, name), handler)
SHARED_BPE = HERE.parents[1] / "shared" / "tiktoken-cache"
if SHARED_BPE.is_dir():
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(SHARED_BPE))


def make_policy(vocab_size: int = 61, n_positions: int = 64, n_embd: int = 32, n_layer: int = 2, n_head: int = 4, seed: int = 0,
                scale: float = 4.0, **kwargs) -> GPT2WithValueHead:
    """A random policy whose weights are `scale` times GPT-2's initial ones, so that its distributions are far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    model = GPT2WithValueHead(GPT2Config(vocab_size, n_positions, n_embd, n_layer, n_head), generator=generator, **kwargs)
    with torch.no_grad():
        for parameter in model.transformer.parameters():
            parameter.mul_(scale if parameter.dim() > 1 else 1.0)
        model.v_head.weight.normal_(0, 0.5, generator=generator)
    return model


def make_ragged(lengths, vocab_size: int = 61, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, vocab_size, (n,), generator=generator) for n in lengths]


@pytest.fixture
def gpu():
    """`cuda` for a test: the GPU that is there, or tests/fakecuda.py."""
    with nullcontext() if torch.cuda.is_available() else FakeCuda() as gpu:
        yield gpu


@pytest.fixture
def policy() -> GPT2WithValueHead:
    return make_policy()
