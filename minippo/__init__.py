"""minippo: PPO fine-tuning of GPT-2, from scratch, to be read.

The reading path: gpt2.py -> generation.py -> policy.py -> ppo.py.
"""

import ctypes
import os
import sys

from . import ppo
from .gpt2 import GPT2, GPT2Config
from .policy import GPT2WithValueHead, create_reference_model
from .ppo import PPOConfig, PPOTrainer
from .scoring.reward_model import RewardModel
from .files.safetensors import read_safetensors, write_safetensors
from .files.tokenizer import load_tokenizer
from .scoring import rewards

__all__ = ["GPT2Config", "GPT2", "GPT2WithValueHead", "create_reference_model", "load_tokenizer", "PPOConfig", "PPOTrainer",
           "RewardModel", "read_safetensors", "write_safetensors", "ppo", "rewards"]

sys.modules[f"{__name__}.rewards"] = rewards          # `import minippo.rewards`, wherever the file lies


def _keep_freed_memory() -> None:
    """Let glibc keep freed memory instead of returning it to the kernel; MINIPPO_MALLOC=0 in the environment switches this off.

    A training step on a CPU frees and asks again for hundreds of megabytes; faulting those pages in anew costs half of the
    backward pass. The setting holds for the whole process and raises its peak memory by about a tenth.
    """
    try:
        glibc = os.confstr("CS_GNU_LIBC_VERSION")
    except (AttributeError, ValueError, OSError):                     # another C library, or none
        return
    if glibc and os.environ.get("MINIPPO_MALLOC") != "0":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)                                           # M_MMAP_MAX: take large blocks from the heap as well
        libc.mallopt(-1, -1)                                          # M_TRIM_THRESHOLD: never give its top back
        libc.mallopt(-2, 256 * 2**20)                                 # M_TOP_PAD: and grow it by this much at a time


_keep_freed_memory()
