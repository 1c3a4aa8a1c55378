"""minippo: PPO fine-tuning of GPT-2, from scratch, to be read.

The reading path: gpt2.py with attention.py -> generation.py -> policy.py -> ppo.py.
"""

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
