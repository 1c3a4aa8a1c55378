"""GPT-2, by hand: tokens -> hidden states -> logits.

Sources: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; openai/gpt-2, src/model.py. Modules carry
the names of the public checkpoint (wte, wpe, h, ln_1, attn.c_attn, mlp.c_fc, ln_f), so loading it is a copy.

What was left out, and why:
1. Dropout. PPO compares two forward passes over the same tokens; with dropout they differ and the ratio is noise.
2. Attention masks and position ids as inputs. Sequences are padded on the right, so causal attention already hides the padding.
3. Cross-attention, head pruning, ...: not GPT-2.

Shapes: B batch, T sequence length, V vocabulary, C width (n_embd).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import Context, causal_attention
from .distributed import default_device
from .fast import linear
from .files.model_folder import find_model, read_config, read_weights, save_model


@dataclass(frozen=True)
class GPT2Config:
    """The sizes of a GPT-2, under config.json's names; the defaults are GPT-2 small (124M)."""
    vocab_size: int = 50257
    n_positions: int = 1024            # the longest sequence: wpe has this many rows
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    layer_norm_epsilon: float = 1e-5
    eos_token_id: int | None = None    # recorded for config.json; the model itself never looks at it

    def __post_init__(self):
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
            size = getattr(self, name)
            if type(size) is not int or size < 1:
                raise ValueError(f"GPT2Config: {name} must be a positive integer, got {size!r}")
        if self.n_embd % self.n_head:
            raise ValueError(f"GPT2Config: n_embd {self.n_embd} is not divisible by n_head {self.n_head}")
        epsilon = self.layer_norm_epsilon
        if type(epsilon) not in (int, float) or not 0 < epsilon < 1:
            raise ValueError(f"GPT2Config: layer_norm_epsilon must be a number between 0 and 1, got {epsilon!r}")


class Linear(nn.Linear):
    """nn.Linear that computes in the dtype of its input: fp32 master weights, a bf16 product where the body runs in bf16."""

    def reset_parameters(self) -> None:
        pass                            # GPT2.init_weights draws every weight, once

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm with input, weights and result in the dtype of its input; the kernel computes in fp32."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class Attention(nn.Module):
    def __init__(self, config: GPT2Config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd)                    # query, key, value in one product
        self.c_proj = Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        qkv = self.c_attn(x)                                                      # (B, T, 3C)
        y = causal_attention(qkv, self.n_head) if context is None else context.attend(qkv, self.n_head)
        return self.c_proj(y)


class MLP(nn.Module):
    def __init__(self, config: GPT2Config):
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))              # GPT-2 used the tanh form


class Block(nn.Module):
    def __init__(self, config: GPT2Config):
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.ln_2 = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        x = x + self.attn(self.ln_1(x), context)                                  # pre-LN: the residual stream stays as it is
        return x + self.mlp(self.ln_2(x))


class GPT2(nn.Module):
    """The language model. Parameters are fp32 masters; `dtype` is the precision in which the blocks compute.

    Args:
        dtype: torch.float32, bfloat16 or float16 for the blocks; None: bf16 on a GPU that has it natively, else fp32. The final
            layer norm, the head and all that follows are fp32 (on CUDA with TF32 products, see fast.torch_modes): a bf16 logit
            of GPT-2, about -30 to -100, is off by up to a quarter of a nat.
        generator: draws the initial weights; None uses torch's default generator.
    """

    def __init__(self, config: GPT2Config, dtype: torch.dtype | None = None, generator: torch.Generator | None = None):
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.gradient_checkpointing = False     # recompute each block in the backward pass: less memory, a third more work
        self.skip_padding = True                # in attention.hidden_states; off for torch.compile, which wants few shapes
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)                 # token embedding, and the head: tied
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)                # position embedding
        self.h = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.ln_f = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.init_weights(generator)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """As transformers and nanoGPT do: N(0, 0.02), projections into the residual stream scaled by 1 / sqrt(2 * n_layer)."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif "ln_" in name:
                parameter.fill_(1.0)
            else:
                std = 0.02 / math.sqrt(2 * self.config.n_layer) if "c_proj" in name else 0.02
                parameter.normal_(0.0, std, generator=generator)

    @classmethod
    def from_pretrained(cls, name_or_dir: str, device: str | torch.device | None = None,
                        dtype: torch.dtype | None = None) -> GPT2:
        """Load a public model ("gpt2", "gpt2-medium", ...) or a model folder; on CUDA where there is one.

        FileNotFoundError: no such folder or file; ValueError: a foreign or damaged file, named with what was expected.
        """
        folder = find_model(name_or_dir)
        device = device or default_device()
        config = GPT2Config(**read_config(folder))
        with torch.device("meta"):                                                # shapes without memory, for the file's tensors
            model = cls(config, dtype=dtype)
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        weights = {name: tensor.to(device) for name, tensor in read_weights(folder, shapes)}
        model.load_state_dict(weights, assign=True)
        return model

    def save_pretrained(self, folder: str, tokenizer=None) -> None:
        """Write a model folder, which transformers' AutoModelForCausalLM loads."""
        save_model(folder, asdict(self.config), dict(self.named_parameters()), tokenizer=tokenizer)

    @property
    def device(self) -> torch.device:
        return self.wte.weight.device

    @property
    def compute_dtype(self) -> torch.dtype:
        """The precision of the blocks, resolved for the device the weights are on."""
        if self.dtype is not None:
            return self.dtype
        native = self.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else self.wte.weight.dtype

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Token and position embeddings, in the precision of the blocks: (B, T) int64, (T,) or (B, T) int64 -> (B, T, C)."""
        return (self.wte(tokens) + self.wpe(positions)).to(self.compute_dtype)

    def blocks(self, x: Tensor, contexts: list[Context] | None = None) -> Tensor:
        """All blocks, each in its context of attention.py, and the final layer norm: (B, T, C) -> (B, T, C) fp32."""
        for block, context in zip(self.h, contexts or [None] * len(self.h)):
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, context, use_reentrant=False)
            else:
                x = block(x, context)
        return self.ln_f(x.to(self.wte.weight.dtype))                             # fp32, as the weights

    def head(self, hidden: Tensor) -> Tensor:
        """Logits, through the transposed token embedding: (N, C) -> (N, V), or (B, T, C) -> (B, T, V); fp32."""
        return linear(hidden, self.wte.weight)

    def hidden(self, tokens: Tensor) -> Tensor:
        """The final hidden states: (B, T) int64 -> (B, T, C) fp32."""
        if tokens.dim() != 2 or tokens.is_floating_point() or tokens.shape[1] > self.config.n_positions:
            raise ValueError(f"expected tokens (B, T) of an integer type, T at most the model's {self.config.n_positions} positions; "
                             f"got {tuple(tokens.shape)} {tokens.dtype}")
        return self.blocks(self.embed(tokens, torch.arange(tokens.shape[1], device=tokens.device)))

    def forward(self, tokens: Tensor) -> Tensor:
        """Next-token logits: (B, T) int64 -> (B, T, V) fp32."""
        return self.head(self.hidden(tokens))
