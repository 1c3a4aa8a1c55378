"""minippo: PPO fine-tuning of GPT-2, from scratch, to be read.

The reading path: gpt2.py -> generation.py -> policy.py -> ppo.py.
"""

from . import ppo, rewards
from .gpt2 import GPT2, GPT2Config
from .policy import GPT2WithValueHead, create_reference_model
from .ppo import PPOConfig, PPOTrainer
from .reward_model import RewardModel
from .safetensors import read_safetensors, write_safetensors
from .tokenizer import load_tokenizer

__all__ = ["GPT2Config", "GPT2", "GPT2WithValueHead", "create_reference_model", "load_tokenizer", "PPOConfig", "PPOTrainer",
           "RewardModel", "read_safetensors", "write_safetensors", "ppo", "rewards"]
