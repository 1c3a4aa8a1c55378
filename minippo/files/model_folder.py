"""A model folder in the layout of transformers, as plain sizes and tensors; gpt2.py makes a model of them.

    config.json                 the sizes, under GPT2Config's names
    generation_config.json      EOS once more, where transformers' generate looks for it
    model.safetensors           names `transformer.*`, linear weights as (in, out), no lm_head: it is wte
    value_head.safetensors      apart, so that AutoModelForCausalLM loads the rest without a word
    vocab.json, merges.txt      and what else the tokenizer writes
    README.md                   a short model card

Read as well: names without the prefix, mask buffers of old files, an lm_head that equals wte, F16 and BF16, a value head
inside model.safetensors as TRL kept it, weights in parts that model.safetensors.index.json lists.
"""

import os
import re
from pathlib import Path
from typing import Iterator

import torch
from torch import Tensor

from .atomic import new_folder, read_json, write_json, write_text
from .hub import resolve_model
from .safetensors import TensorInfo, iter_safetensors, read_header, write_safetensors

WEIGHTS, INDEX, VALUE_HEAD = "model.safetensors", "model.safetensors.index.json", "value_head.safetensors"
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")    # stored as (in, out)
PARAMETER = re.compile(r"w[tp]e\.weight|(ln_f|h\.\d+\.(ln_[12]|attn\.c_(attn|proj)|mlp\.c_(fc|proj)))\.(weight|bias)")
# the largest sizes that are read: generous for a GPT-2 (gpt2-xl: 50257, 1024, 1600, 48, 25), and no shape of them overflows
SIZES = {"vocab_size": 2**24, "n_positions": 2**24, "n_embd": 2**17, "n_layer": 1000, "n_head": 2**17}
# settings that change what GPT-2 computes; other values than these are another model
UNCHANGEABLE = {"activation_function": ("gelu_new", "gelu_pytorch_tanh"), "scale_attn_weights": (True,),
                "scale_attn_by_inverse_layer_idx": (False,), "reorder_and_upcast_attn": (False,),
                "add_cross_attention": (False,), "tie_word_embeddings": (True,)}


def find_model(name_or_dir: str | os.PathLike) -> Path:
    """The folder of a public model or a model folder, downloaded where it must be."""
    name = os.fspath(name_or_dir)
    try:
        return resolve_model(name, ("config.json", WEIGHTS), (VALUE_HEAD,))
    except FileNotFoundError as error:
        try:
            parts = part_names(resolve_model(name, ("config.json", INDEX)) / INDEX)
        except OSError:
            if os.path.exists(os.path.join(os.path.expanduser(name), "pytorch_model.bin")):
                raise FileNotFoundError(f"""{error}
pytorch_model.bin is a pickle, which can run any code, and is never opened here. If you trust it, transformers converts it:
    from transformers import AutoModelForCausalLM
    AutoModelForCausalLM.from_pretrained({name!r}).save_pretrained({name!r}, safe_serialization=True)""") from None
            raise error from None
    return resolve_model(name, ("config.json", INDEX, *parts), (VALUE_HEAD,))


def part_names(index: Path) -> list[str]:
    """The files that an index lists; ValueError for anything but plain names of safetensors files."""
    content = read_json(index, 2**24)
    try:
        names = list(content["weight_map"].values())
        bad = [name for name in names if not re.fullmatch(r"\w[\w.-]*\.safetensors", name, re.ASCII)]
    except (LookupError, TypeError, AttributeError) as error:
        bad = [error]
    if bad:
        raise ValueError(f"{index}: expected weight_map, tensor -> name of a .safetensors file, got {bad[0]!r:.80}")
    return sorted(set(names))


def stored_tensors(folder: Path) -> dict[str, tuple[Path, TensorInfo]]:
    """Where each tensor of the folder's weights lies and what its file's header says of it; nothing else is read."""
    in_parts, stored = (folder / INDEX).exists() and not (folder / WEIGHTS).exists(), {}
    for file in part_names(folder / INDEX) if in_parts else [WEIGHTS]:
        for name, info in read_header(folder / file).items():
            if name in stored:
                raise ValueError(f"{folder / file}: unexpected tensor {name}, which is in {stored[name][0].name} already")
            stored[name] = folder / file, info
    return stored


def read_config(folder: Path) -> dict:
    """The arguments of GPT2Config, which checks them, too; ValueError for what this GPT-2 would compute differently."""
    path = folder / "config.json"
    raw = read_json(path)
    kind = raw.get("model_type", "gpt2") if isinstance(raw, dict) else type(raw).__name__
    if kind != "gpt2":
        raise ValueError(f"{path}: expected a model of type gpt2, got {kind!r:.80}; minippo runs GPT-2 only")
    for name, largest in SIZES.items():
        if type(raw.get(name)) is not int or not 1 <= raw[name] <= largest:
            raise ValueError(f"{path}: {name} must be a whole number from 1 to {largest:,}, got {raw.get(name)!r:.80}")
    for name, allowed in (UNCHANGEABLE | {"n_inner": (None, 4 * raw["n_embd"])}).items():
        if raw.get(name, allowed[0]) not in allowed:
            raise ValueError(f"{path}: {name} is {raw[name]!r:.80}, but this GPT-2 computes with {allowed[0]!r} only")
    eos = raw.get("eos_token_id")
    if eos is not None and type(eos) is not int:
        raise ValueError(f"{path}: eos_token_id must be one integer or null, got {eos!r:.80}")
    epsilon = raw.get("layer_norm_epsilon", 1e-5)
    return {name: raw[name] for name in SIZES} | {"layer_norm_epsilon": epsilon, "eos_token_id": eos}


def as_fp32(path: Path, name: str, tensor: Tensor) -> Tensor:
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"{path}: {name} is {tensor.dtype}, expected one of float32, float16, bfloat16")
    tensor = tensor.float()
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{path}: {name} holds NaN or infinity; the file is damaged or the training run had diverged")
    return tensor


def read_weights(folder: Path, shapes: dict[str, tuple]) -> Iterator[tuple[str, Tensor]]:
    """(name, fp32 CPU tensor) of each parameter of GPT2, one at a time: the model is never held twice.

    shapes: what is wanted, linear weights as (out, in); names and shapes are compared before any tensor is read.
    """
    stored, chosen, tied = stored_tensors(folder), {}, []
    for file_name, (path, info) in stored.items():
        name = file_name.removeprefix("transformer.")
        if name.endswith((".attn.bias", ".attn.masked_bias")) or name.startswith("v_head."):
            continue                                               # causal mask buffers of old files; the value head of TRL's
        shape = shapes.get("wte.weight" if name == "lm_head.weight" else name)
        shape = shape[::-1] if shape and name.endswith(TRANSPOSED) else shape
        if info.shape != shape or name in chosen:
            raise ValueError(f"{path}: unexpected tensor {file_name} of shape {info.shape}; config.json asks for {shape}, once")
        chosen[name] = file_name
    if missing := sorted(shapes.keys() - chosen.keys()):
        raise ValueError(f"{folder}: {len(missing)} tensors are missing, among them {missing[:3]}")
    names = {file_name: name for name, file_name in chosen.items()}
    for path in dict.fromkeys(path for path, _ in stored.values()):
        for file_name, tensor in iter_safetensors(path, names):
            name, tensor = names[file_name], as_fp32(path, file_name, tensor)
            if name in ("wte.weight", "lm_head.weight") and "lm_head.weight" in chosen:
                tied.append(tensor)
            if name != "lm_head.weight":
                yield name, tensor.T.contiguous() if name.endswith(TRANSPOSED) else tensor
            del tensor
    if tied and not torch.equal(*tied):
        raise ValueError(f"{folder}: lm_head.weight differs from wte.weight, but GPT-2's head is its token embedding")


def read_value_head(folder: Path, n_embd: int) -> dict[str, Tensor] | None:
    """{"weight": (1, C), "bias": (1,)}; None where the folder has none."""
    path, head = folder / VALUE_HEAD, {}
    stored = {name: (path, info) for name, info in read_header(path).items()} if path.exists() else stored_tensors(folder)
    if not any(name.startswith("v_head.") for name in stored):     # TRL kept it inside model.safetensors
        return None
    for leaf, shape in (("weight", (1, n_embd)), ("bias", (1,))):
        name = f"v_head.summary.{leaf}"
        path, info = stored.get(name, (path, None))
        if info is None or info.shape != shape:
            raise ValueError(f"{path}: {name} has shape {info and info.shape}, but the model needs {shape}")
        (_, tensor), = iter_safetensors(path, (name,))
        head[leaf] = as_fp32(path, name, tensor)
    return head


MODEL_CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [gpt2, ppo, rlhf, minippo]
---

A GPT-2 ({n_layer} layers, width {n_embd}, {n_head} heads, {parameters:,} parameters) trained by minippo.

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained("<this folder or repository>")

Heads lie apart. `value_head.safetensors`: of a policy that PPO trained, for minippo's GPT2WithValueHead.from_pretrained;
`reward_head.safetensors`: of a reward model, for its RewardModel.from_pretrained.
"""


def write_model(folder: Path, config: dict, weights: dict[str, Tensor], v_head: dict[str, Tensor] | None = None,
                tokenizer=None) -> None:
    """Write a model folder's files into a folder that exists. config: GPT2Config's fields; weights: GPT2's parameters."""
    if odd := next((name for name in weights if not PARAMETER.fullmatch(name)), None):
        raise ValueError(f"{odd} is no parameter of GPT-2, and nothing could load it: nothing was written; take off what wraps the module "
                         "(torch.compile, a parametrization, an adapter)")
    eos = getattr(tokenizer, "eos_token_id", None)
    eos = config["eos_token_id"] if eos is None else eos
    eos = 50256 if eos is None and config["vocab_size"] == 50257 else eos                  # GPT-2's <|endoftext|>
    stored = {f"transformer.{name}": p.detach().T if name.endswith(TRANSPOSED) else p.detach() for name, p in weights.items()}
    write_safetensors(folder / WEIGHTS, stored)
    if v_head is not None:
        write_safetensors(folder / VALUE_HEAD, {f"v_head.summary.{name}": p.detach() for name, p in v_head.items()})
    write_json(folder / "config.json", {name: config[name] for name in (*SIZES, "layer_norm_epsilon")} | {
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": eos,
        "embd_pdrop": 0.1, "eos_token_id": eos, "initializer_range": 0.02, "model_type": "gpt2", "n_ctx": config["n_positions"],
        "resid_pdrop": 0.1, "tie_word_embeddings": True, "torch_dtype": "float32"})
    write_json(folder / "generation_config.json", {"bos_token_id": eos, "eos_token_id": eos})
    if tokenizer is not None:
        tokenizer.save_pretrained(str(folder))
    write_text(folder / "README.md", MODEL_CARD.format(**config, parameters=sum(p.numel() for p in weights.values())))


def save_model(folder: str | os.PathLike, config: dict, weights: dict[str, Tensor], v_head: dict[str, Tensor] | None = None,
               tokenizer=None, more: dict[str, dict[str, Tensor]] | None = None) -> None:
    """Write a model folder, see write_model; more: further files of tensors, by name.

    A new folder appears whole. In one that exists each file is replaced in one step; other files and a README.md stay.
    ValueError where config.json there is no model's: it may be that of an application, or of a run.
    """
    folder = Path(os.path.expanduser(folder))
    there = folder / "config.json"
    if there.exists() and not (isinstance(content := read_json(there), dict) and "model_type" in content):
        raise ValueError(f"{there} is not a model's and would be lost: nothing was written; choose another folder")
    with new_folder(folder, whole=False) as temporary:
        write_model(temporary, config, weights, v_head, tokenizer)
        for name, tensors in (more or {}).items():
            write_safetensors(temporary / name, tensors)
        if (folder / "README.md").exists():
            (temporary / "README.md").unlink()
