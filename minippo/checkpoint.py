"""Model folders and training states on disk.

A model folder has the layout of transformers: config.json, generation_config.json, model.safetensors, the tokenizer's files
and a short README.md; the value head lies in value_head.safetensors, so that AutoModelForCausalLM loads the rest silently.
A state folder (a checkpoint) is a model folder plus the trainer's tensors and numbers plus a manifest of sizes and hashes.
No pickle anywhere: tensors are safetensors, everything else is JSON.

Every folder is written under a temporary name beside its place, synced to the disk and then renamed: a reader sees the old
folder or the new one, never half of either.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Iterator

import torch
from torch import Tensor, nn

from .gpt2 import GPT2, GPT2Config
from .hub import resolve_model
from .safetensors import iter_safetensors, read_header, read_safetensors, write_safetensors

MODEL_FILES = ("config.json", "model.safetensors")
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")    # stored as (in, out)
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
# settings that change what GPT-2 computes; other values than these are another model
UNCHANGEABLE = {"activation_function": ("gelu_new", "gelu_pytorch_tanh"), "scale_attn_weights": (True,),
                "scale_attn_by_inverse_layer_idx": (False,), "reorder_and_upcast_attn": (False,),
                "add_cross_attention": (False,), "tie_word_embeddings": (True,), "n_inner": (None,)}


# ---------------------------------------------------------------------------------------------------------------------
# config.json
# ---------------------------------------------------------------------------------------------------------------------

def read_config(path: Path) -> GPT2Config:
    """GPT2Config from a config.json; ValueError for anything that this GPT-2 would compute differently."""
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); fetch the file again") from error
    if not isinstance(raw, dict) or raw.get("model_type", "gpt2") != "gpt2":
        kind = raw.get("model_type") if isinstance(raw, dict) else type(raw).__name__
        raise ValueError(f"{path}: expected a model of type gpt2, got {kind!r}; minippo runs GPT-2 only")
    sizes = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
    missing = [name for name in sizes if name not in raw]
    if missing:
        raise ValueError(f"{path}: {', '.join(missing)} missing; a GPT-2 config.json names its sizes")
    for name, allowed in UNCHANGEABLE.items():
        value = raw.get(name, allowed[0])
        if value not in allowed and not (name == "n_inner" and value == 4 * raw["n_embd"]):
            raise ValueError(f"{path}: {name} is {value!r}, but this GPT-2 computes with {allowed[0]!r} only")
    eos = raw.get("eos_token_id", 50256 if raw["vocab_size"] == 50257 else None)
    if eos is not None and type(eos) is not int:
        raise ValueError(f"{path}: eos_token_id must be one integer or null, got {eos!r}")
    try:
        return GPT2Config(*(raw[name] for name in sizes), raw.get("layer_norm_epsilon", 1e-5), eos)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def config_json(config: GPT2Config, eos: int | None) -> dict:
    return {"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": eos,
            "embd_pdrop": 0.1, "eos_token_id": eos, "initializer_range": 0.02,
            "layer_norm_epsilon": config.layer_norm_epsilon, "model_type": "gpt2", "n_ctx": config.n_positions,
            "n_embd": config.n_embd, "n_head": config.n_head, "n_layer": config.n_layer,
            "n_positions": config.n_positions, "resid_pdrop": 0.1, "tie_word_embeddings": True,
            "torch_dtype": "float32", "vocab_size": config.vocab_size}


# ---------------------------------------------------------------------------------------------------------------------
# reading a model folder
# ---------------------------------------------------------------------------------------------------------------------

def load_gpt2(name_or_dir: str, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> GPT2:
    """GPT-2 from a public name or a model folder.

    The weights become fp32 on `device` (default: CUDA where there is one), one tensor at a time, so that the model is never
    held twice. Read are names with and without the prefix `transformer.`, and F32, F16 and BF16 tensors.

    Raises:
        FileNotFoundError: no such folder or file. ValueError: a foreign or damaged file; a missing, extra, misshapen,
        non-float or non-finite tensor, named with what was expected.
    """
    folder = resolve_model(name_or_dir, MODEL_FILES, optional=("generation_config.json", "value_head.safetensors"))
    device = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    config, path = read_config(folder / "config.json"), folder / "model.safetensors"
    layers = sum(name.endswith(".ln_1.weight") for name in read_header(path)[0])
    if layers != config.n_layer:
        raise ValueError(f"{folder}: config.json says n_layer {config.n_layer}, but model.safetensors holds {layers} layers; one of "
                         "the files belongs to another model, or tensors are missing")
    with torch.device("meta"):                                     # shapes without memory; the file's tensors take their place
        model = GPT2(config, dtype=dtype)
    wanted = dict(model.named_parameters())
    lm_head = None
    for file_name, tensor in iter_safetensors(path):
        name = file_name.removeprefix("transformer.")
        if name.endswith((".attn.bias", ".attn.masked_bias")) or name.startswith("v_head."):
            continue                                               # causal mask buffers of old files; the value head of TRL's
        if name == "lm_head.weight":
            lm_head = tensor
            continue
        if name not in wanted:
            raise ValueError(f"{path}: unexpected tensor {file_name} of shape {tuple(tensor.shape)}, or a second one of that "
                             f"name; this folder's config.json describes {model.config}")
        parameter = wanted.pop(name)
        tensor = as_fp32(path, file_name, tensor)
        if name.endswith(TRANSPOSED):
            tensor = tensor.T                                      # the file's (in, out) to nn.Linear's (out, in)
        if tensor.shape != parameter.shape:
            stored = tuple(reversed(parameter.shape)) if name.endswith(TRANSPOSED) else tuple(parameter.shape)
            got = tuple(reversed(tensor.shape)) if name.endswith(TRANSPOSED) else tuple(tensor.shape)
            raise ValueError(f"{path}: {file_name} has shape {got}, but config.json asks for {stored}")
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor.to(device).contiguous()))
    if wanted:
        raise ValueError(f"{path}: {len(wanted)} tensors are missing, among them {sorted(wanted)[:3]}")
    if lm_head is not None and not torch.equal(as_fp32(path, "lm_head.weight", lm_head), model.wte.weight.detach().cpu()):
        raise ValueError(f"{path}: lm_head.weight differs from wte.weight, but GPT-2's head is its token embedding")
    return model


def as_fp32(path: Path, name: str, tensor: Tensor) -> Tensor:
    if tensor.dtype not in FLOATS:
        raise ValueError(f"{path}: {name} is {tensor.dtype}, expected one of float32, float16, bfloat16")
    tensor = tensor.float()
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{path}: {name} holds NaN or infinity; the file is damaged or the training run had diverged")
    return tensor


def load_value_head(name_or_dir: str, n_embd: int) -> dict[str, Tensor]:
    """The value head's {"weight": (1, C), "bias": (1,)}; zeros, with one warning, where the folder has none."""
    folder = resolve_model(name_or_dir, MODEL_FILES, optional=("generation_config.json", "value_head.safetensors"))
    path = folder / "value_head.safetensors"
    if path.exists():
        stored = read_safetensors(path)
    else:                                                          # TRL kept it inside model.safetensors
        path = folder / "model.safetensors"
        stored = {name: tensor for name, tensor in iter_safetensors(path) if name.startswith("v_head.")}
    if not stored:
        warnings.warn(f"{name_or_dir} has no value head; it starts at zero", stacklevel=3)
        return {"weight": torch.zeros(1, n_embd), "bias": torch.zeros(1)}
    head = {}
    for leaf, shape in (("weight", (1, n_embd)), ("bias", (1,))):
        name = f"v_head.summary.{leaf}"
        if name not in stored:
            raise ValueError(f"{path}: {name} is missing; it holds {sorted(stored)}")
        head[leaf] = as_fp32(path, name, stored[name])
        if tuple(head[leaf].shape) != shape:
            raise ValueError(f"{path}: {name} has shape {tuple(head[leaf].shape)}, but the model needs {shape}")
    return head


# ---------------------------------------------------------------------------------------------------------------------
# writing folders
# ---------------------------------------------------------------------------------------------------------------------

def sync(path: Path) -> None:
    """Wait until a file or a folder's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def new_folder(folder: Path, whole: bool) -> Iterator[Path]:
    """Yields a temporary folder beside `folder`; when the block ends without an error, its files are in `folder`.

    A new folder appears by one rename. Where one exists already, `whole` puts the new one in its place (the old one is set
    aside first and removed last, see find_folder); otherwise each file is replaced in one step and foreign files stay.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} exists and is not a folder; choose another place")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    aside = folder.with_name(f"{folder.name}.old-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.iterdir():
            sync(path)
        sync(temporary)
        if folder.exists() and not whole:
            for path in temporary.iterdir():
                os.replace(path, folder / path.name)
            temporary.rmdir()
            sync(folder)
        else:
            if folder.exists():
                os.rename(folder, aside)
            os.rename(temporary, folder)
            shutil.rmtree(aside, ignore_errors=True)
        sync(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


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


def write_model(folder: Path, model: GPT2, v_head: nn.Linear | None, tokenizer) -> None:
    """Write the files of a model folder into a folder that exists."""
    eos = getattr(tokenizer, "eos_token_id", None)
    eos = model.config.eos_token_id if eos is None else eos
    eos = 50256 if eos is None and model.config.vocab_size == 50257 else eos               # GPT-2's <|endoftext|>
    weights = {f"transformer.{name}": p.detach().T if name.endswith(TRANSPOSED) else p.detach()
               for name, p in model.named_parameters()}
    write_safetensors(folder / "model.safetensors", weights, {"format": "pt"})             # transformers asks for the format
    if v_head is not None:
        head = {f"v_head.summary.{name}": p.detach() for name, p in v_head.named_parameters()}
        write_safetensors(folder / "value_head.safetensors", head, {"format": "pt"})
    write_json(folder / "config.json", config_json(model.config, eos))
    write_json(folder / "generation_config.json", {"bos_token_id": eos, "eos_token_id": eos})
    if tokenizer is not None:
        tokenizer.save_pretrained(str(folder))
    card = MODEL_CARD.format(**vars(model.config), parameters=sum(p.numel() for p in model.parameters()))
    (folder / "README.md").write_text(card, encoding="utf-8")


def save_model(folder: str | Path, model: GPT2, v_head: nn.Linear | None = None, tokenizer=None) -> None:
    """Write a model folder. In a folder that exists, other files and a README.md stay as they are."""
    with new_folder(Path(folder), whole=False) as temporary:
        write_model(temporary, model, v_head, tokenizer)
        if (Path(folder) / "README.md").exists():
            (temporary / "README.md").unlink()


# ---------------------------------------------------------------------------------------------------------------------
# training states
# ---------------------------------------------------------------------------------------------------------------------

def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def verify_folder(folder: str | Path) -> dict:
    """The manifest of a checkpoint whose files all have the sizes and hashes it names; ValueError for the first that has not."""
    folder = find_folder(Path(folder))
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        files = {str(name): (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except FileNotFoundError:
        raise FileNotFoundError(f"{folder} holds no manifest.json, so it is no checkpoint of minippo") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / 'manifest.json'} is damaged ({error!r}); use an earlier checkpoint") from error
    for name, (size, digest) in files.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise ValueError(f"{folder}: the manifest names {name!r}, which is not there; use an earlier checkpoint")
        if path.stat().st_size != size:
            raise ValueError(f"{path} has {path.stat().st_size} bytes, its manifest says {size}; use an earlier checkpoint")
        if sha256(path) != digest:
            raise ValueError(f"{path} is damaged: its sha256 is not the manifest's; use an earlier checkpoint")
    return manifest


def find_folder(folder: Path) -> Path:
    """`folder`, put back if a crash came between setting the old one aside and putting the new one in its place."""
    if not folder.exists():
        for aside in sorted(folder.parent.glob(f"{folder.name}.old-*")):
            os.rename(aside, folder)
            break
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no checkpoint folder {folder}")
    return folder


def save_state(folder: str | Path, trainer, extra: dict | None = None) -> None:
    """Write a checkpoint: the policy as a model folder, then all else that the next step depends on, last the manifest.

    trainer.safetensors holds Adam's moments, the reference and the generator's state; trainer.json the numbers.
    `extra` (JSON) is the caller's own and comes back from load_state.
    """
    optimizer = trainer.optimizer.state_dict()
    tensors, numbers = {"generator": trainer.generator.get_state()}, {}
    for i, slot in optimizer["state"].items():
        for name, value in slot.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{i}.{name}"] = value
            else:
                numbers[f"{i}.{name}"] = value
    tensors |= {f"ref_model.{name}": value for name, value in trainer.ref_model.state_dict().items()}
    scheduler = trainer.lr_scheduler
    state = {"config": asdict(trainer.config), "steps_done": trainer.steps_done, "kl_coef": trainer.kl_controller.value,
             "moments": vars(trainer.moments), "temperature": trainer.temperature, "eos_token_id": trainer.eos_token_id,
             "optimizer": type(trainer.optimizer).__name__, "optimizer_groups": optimizer["param_groups"], "optimizer_numbers": numbers,
             "lr_scheduler": None if scheduler is None else scheduler.state_dict(), "torch": torch.__version__,
             "extra": extra or {}}
    with new_folder(Path(folder), whole=True) as temporary:
        write_model(temporary, trainer.model.transformer, trainer.model.v_head, trainer.tokenizer)
        write_safetensors(temporary / "trainer.safetensors", tensors)
        write_json(temporary / "trainer.json", state)
        files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(temporary.iterdir())}
        write_json(temporary / "manifest.json", {"files": files, "step": trainer.steps_done})


def load_state(folder: str | Path, trainer) -> dict:
    """Bring `trainer` to the state of a checkpoint, bit for bit, and return what was passed as `extra`.

    Everything is read, verified and compared with the trainer's shapes and optimizer before anything changes. The configuration
    stays the trainer's own.
    """
    folder = find_folder(Path(folder))
    verify_folder(folder)
    state = json.loads((folder / "trainer.json").read_text(encoding="utf-8"))
    tensors = read_safetensors(folder / "trainer.safetensors")
    gpt2 = load_gpt2(str(folder), device="cpu")
    model = {f"transformer.{name}": p for name, p in gpt2.state_dict().items()}
    model |= {f"v_head.{name}": p for name, p in load_value_head(str(folder), gpt2.config.n_embd).items()}
    reference = {name.removeprefix("ref_model."): p for name, p in tensors.items() if name.startswith("ref_model.")}
    for module, new in ((trainer.model, model), (trainer.ref_model, reference)):
        for name, old in module.state_dict().items():
            if name not in new or new[name].shape != old.shape:
                got = tuple(new[name].shape) if name in new else "missing"
                raise ValueError(f"{folder}: {name} is {got} in the checkpoint and {tuple(old.shape)} in this trainer: build the "
                                 "trainer with a model of the sizes that the checkpoint was made with")
    optimizer = type(trainer.optimizer).__name__
    for what, saved, own in (("optimizer", state.get("optimizer", optimizer), optimizer),
                             ("lr_scheduler", state["lr_scheduler"] is not None, trainer.lr_scheduler is not None)):
        if saved != own:
            raise ValueError(f"{folder}: {what} is {saved} in the checkpoint and {own} in this trainer: build the trainer as the "
                             "one that was saved")
    slots: dict[int, dict] = {}
    numbers = {f"optimizer.{name}": value for name, value in state["optimizer_numbers"].items()}
    for name, value in [*tensors.items(), *numbers.items()]:
        if name.startswith("optimizer."):
            _, i, key = name.split(".", 2)
            slots.setdefault(int(i), {})[key] = value
    trainer.optimizer.load_state_dict({"state": slots, "param_groups": state["optimizer_groups"]})
    trainer.model.load_state_dict(model)
    trainer.ref_model.load_state_dict(reference)
    trainer.generator.set_state(tensors["generator"])
    trainer.kl_controller.value, trainer.steps_done = state["kl_coef"], state["steps_done"]
    trainer.temperature, trainer.eos_token_id = state["temperature"], state["eos_token_id"]
    vars(trainer.moments).update(state["moments"])
    if trainer.lr_scheduler is not None:
        trainer.lr_scheduler.load_state_dict(state["lr_scheduler"])
    return state["extra"]
