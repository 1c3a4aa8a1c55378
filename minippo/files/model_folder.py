"""A model folder in the layout of transformers, as plain sizes and tensors; gpt2.py makes a model of them.

    config.json                 the sizes, under GPT2Config's names
    generation_config.json      EOS once more, where transformers' generate looks for it
    model.safetensors           names `transformer.*`, linear weights as (in, out), no lm_head: it is wte
    value_head.safetensors      apart, so that AutoModelForCausalLM loads the rest without a word
    vocab.json, merges.txt      and what else the tokenizer writes
    README.md                   a short model card

Reading is wider than writing: names without the prefix, mask buffers of old files, an lm_head that equals wte, F16 and BF16, a
value head inside model.safetensors as TRL kept it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Iterator

import torch
from torch import Tensor

from .atomic import new_folder, write_json, write_text
from .hub import resolve_model
from .safetensors import iter_safetensors, read_header, read_safetensors, write_safetensors

TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")    # stored as (in, out)
SIZES = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
# settings that change what GPT-2 computes; other values than these are another model
UNCHANGEABLE = {"activation_function": ("gelu_new", "gelu_pytorch_tanh"), "scale_attn_weights": (True,),
                "scale_attn_by_inverse_layer_idx": (False,), "reorder_and_upcast_attn": (False,),
                "add_cross_attention": (False,), "tie_word_embeddings": (True,), "n_inner": (None,)}


def find_model(name_or_dir: str | os.PathLike) -> Path:
    """The folder of a public model or a model folder, downloaded where it must be."""
    return resolve_model(str(name_or_dir), ("config.json", "model.safetensors"),
                         optional=("generation_config.json", "value_head.safetensors"))


# --- config.json ----------------------------------------------------------------------------------------------------

def read_config(folder: Path) -> dict:
    """The arguments of GPT2Config; ValueError for anything that this GPT-2 would compute differently."""
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); fetch the file again") from error
    if not isinstance(raw, dict) or raw.get("model_type", "gpt2") != "gpt2":
        kind = raw.get("model_type") if isinstance(raw, dict) else type(raw).__name__
        raise ValueError(f"{path}: expected a model of type gpt2, got {kind!r}; minippo runs GPT-2 only")
    missing = [name for name in SIZES if name not in raw]
    if missing:
        raise ValueError(f"{path}: {', '.join(missing)} missing; a GPT-2 config.json names its sizes")
    for name, allowed in UNCHANGEABLE.items():
        value = raw.get(name, allowed[0])
        if value not in allowed and not (name == "n_inner" and value == 4 * raw["n_embd"]):
            raise ValueError(f"{path}: {name} is {value!r}, but this GPT-2 computes with {allowed[0]!r} only")
    eos = raw.get("eos_token_id", 50256 if raw["vocab_size"] == 50257 else None)
    if eos is not None and type(eos) is not int:
        raise ValueError(f"{path}: eos_token_id must be one integer or null, got {eos!r}")
    return {name: raw[name] for name in SIZES} | {"layer_norm_epsilon": raw.get("layer_norm_epsilon", 1e-5), "eos_token_id": eos}


def config_json(config: dict, eos: int | None) -> dict:
    sizes = {name: config[name] for name in (*SIZES, "layer_norm_epsilon")}
    return sizes | {"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": eos,
                    "embd_pdrop": 0.1, "eos_token_id": eos, "initializer_range": 0.02, "model_type": "gpt2",
                    "n_ctx": config["n_positions"], "resid_pdrop": 0.1, "tie_word_embeddings": True, "torch_dtype": "float32"}


# --- weights --------------------------------------------------------------------------------------------------------

def as_fp32(path: Path, name: str, tensor: Tensor) -> Tensor:
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"{path}: {name} is {tensor.dtype}, expected one of float32, float16, bfloat16")
    tensor = tensor.float()
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{path}: {name} holds NaN or infinity; the file is damaged or the training run had diverged")
    return tensor


def read_weights(folder: Path, shapes: dict[str, tuple]) -> Iterator[tuple[str, Tensor]]:
    """(name, fp32 CPU tensor) of each parameter of GPT2, one at a time: the model is never held twice.

    shapes: what is wanted, linear weights as (out, in). ValueError for a missing, extra, misshapen, non-float or non-finite
    tensor, which is named with what was expected.
    """
    path, wanted, lm_head, wte = folder / "model.safetensors", dict(shapes), None, None
    for file_name, tensor in iter_safetensors(path):
        name = file_name.removeprefix("transformer.")
        if name.endswith((".attn.bias", ".attn.masked_bias")) or name.startswith("v_head."):
            continue                                               # causal mask buffers of old files; the value head of TRL's
        if name == "lm_head.weight":
            lm_head = as_fp32(path, file_name, tensor)
            continue
        if name not in wanted:
            raise ValueError(f"{path}: unexpected tensor {file_name} of shape {tuple(tensor.shape)}, or a second one of that "
                             "name; config.json describes another model")
        shape = wanted.pop(name)
        stored = shape[::-1] if name.endswith(TRANSPOSED) else shape
        if tuple(tensor.shape) != stored:
            raise ValueError(f"{path}: {file_name} has shape {tuple(tensor.shape)}, but config.json asks for {stored}")
        tensor = as_fp32(path, file_name, tensor)
        tensor = tensor.T.contiguous() if name.endswith(TRANSPOSED) else tensor
        wte = tensor if name == "wte.weight" else wte
        yield name, tensor
        del tensor
    if wanted:
        raise ValueError(f"{path}: {len(wanted)} tensors are missing, among them {sorted(wanted)[:3]}")
    if lm_head is not None and not torch.equal(lm_head, wte):
        raise ValueError(f"{path}: lm_head.weight differs from wte.weight, but GPT-2's head is its token embedding")


def check_layers(folder: Path, n_layer: int) -> None:
    """ValueError where the file holds another number of layers: said before a model of that size is built."""
    layers = sum(name.endswith(".ln_1.weight") for name in read_header(folder / "model.safetensors")[0])
    if layers != n_layer:
        raise ValueError(f"{folder}: config.json says n_layer {n_layer}, but model.safetensors holds {layers} layers; one of the "
                         "files belongs to another model, or tensors are missing")


def read_value_head(folder: Path, n_embd: int) -> dict[str, Tensor] | None:
    """{"weight": (1, C), "bias": (1,)}; None where the folder has none."""
    path = folder / "value_head.safetensors"
    if path.exists():
        stored = read_safetensors(path)
    else:                                                          # TRL kept it inside model.safetensors
        path = folder / "model.safetensors"
        stored = {name: tensor for name, tensor in iter_safetensors(path) if name.startswith("v_head.")}
    if not stored:
        return None
    head = {}
    for leaf, shape in (("weight", (1, n_embd)), ("bias", (1,))):
        name = f"v_head.summary.{leaf}"
        if name not in stored:
            raise ValueError(f"{path}: {name} is missing; it holds {sorted(stored)}")
        head[leaf] = as_fp32(path, name, stored[name])
        if tuple(head[leaf].shape) != shape:
            raise ValueError(f"{path}: {name} has shape {tuple(head[leaf].shape)}, but the model needs {shape}")
    return head


# --- writing --------------------------------------------------------------------------------------------------------

MODEL_CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [gpt2, ppo, rlhf, minippo]
---

A GPT-2 ({n_layer} layers, width {n_embd}, {n_head} heads, {parameters:,} parameters) fine-tuned with PPO by minippo.

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained("<this folder or repository>")

`value_head.safetensors` holds the value head of the training run; minippo's GPT2WithValueHead.from_pretrained loads it too.
"""


def write_model(folder: Path, config: dict, weights: dict[str, Tensor], v_head: dict[str, Tensor] | None = None,
                tokenizer=None, card: str = MODEL_CARD) -> None:
    """Write the files of a model folder into a folder that exists. config: GPT2Config's fields; weights: GPT2's parameters."""
    eos = getattr(tokenizer, "eos_token_id", None)
    eos = config["eos_token_id"] if eos is None else eos
    eos = 50256 if eos is None and config["vocab_size"] == 50257 else eos                  # GPT-2's <|endoftext|>
    stored = {f"transformer.{name}": p.detach().T if name.endswith(TRANSPOSED) else p.detach() for name, p in weights.items()}
    write_safetensors(folder / "model.safetensors", stored, {"format": "pt"})              # transformers asks for the format
    if v_head is not None:
        head = {f"v_head.summary.{name}": p.detach() for name, p in v_head.items()}
        write_safetensors(folder / "value_head.safetensors", head, {"format": "pt"})
    write_json(folder / "config.json", config_json(config, eos))
    write_json(folder / "generation_config.json", {"bos_token_id": eos, "eos_token_id": eos})
    if tokenizer is not None:
        tokenizer.save_pretrained(str(folder))
    write_text(folder / "README.md", card.format(**config, parameters=sum(p.numel() for p in weights.values())))


def save_model(folder: str | os.PathLike, config: dict, weights: dict[str, Tensor], v_head: dict[str, Tensor] | None = None,
               tokenizer=None, card: str = MODEL_CARD, more: dict[str, dict[str, Tensor]] | None = None) -> None:
    """Write a model folder, see write_model; more: further files of tensors, by name.

    A new folder appears whole. In one that exists each file is replaced in one step; other files and a README.md stay.
    """
    with new_folder(folder, whole=False) as temporary:
        write_model(temporary, config, weights, v_head, tokenizer, card)
        for name, tensors in (more or {}).items():
            write_safetensors(temporary / name, tensors)
        if (Path(folder) / "README.md").exists():
            (temporary / "README.md").unlink()
