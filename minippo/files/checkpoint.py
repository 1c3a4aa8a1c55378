"""A checkpoint: all that a trainer's next step depends on, in one folder that is there whole or not at all.

    the files of a model folder     the policy; from_pretrained and transformers load it
    trainer.safetensors             the optimizer's moments, the reference, the generator, tensors of a scheduler
    trainer.json                    the numbers: steps, kl_coef, running moments, and where each tensor belongs
    manifest.json                   name, size and sha256 of every other file, written last

No pickle: JSON keeps the types that a state_dict has, see `pack`. A checkpoint is state, not settings: learning rate, eps, a fixed
kl_coef and so on are those of the trainer that loads it.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .atomic import find_folder, new_folder, sha256, write_json
from .model_folder import check_layers, read_config, read_value_head, read_weights, write_model
from .safetensors import read_safetensors, write_safetensors

OFTEN = "use an earlier checkpoint"
SCHEDULED = ("lr", "betas", "momentum")         # of an optimizer's group: state where a scheduler moves them, else a setting


# --- values with their types, in JSON -------------------------------------------------------------------------------

def pack(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """`value` as JSON that `unpack` turns back, types included; its tensors go into `tensors`, under names that begin with `name`."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor):
        tensors[name] = value.detach()
        return {"tensor": name}
    if type(value) in (list, tuple):
        items = [pack(item, tensors, f"{name}.{i}") for i, item in enumerate(value)]
        return items if type(value) is list else {"tuple": items}
    if type(value) in (dict, Counter):              # pairs: JSON would make texts of whole numbers as keys
        kind = "dict" if type(value) is dict else "counter"
        return {kind: [[pack(key, tensors, name), pack(item, tensors, f"{name}.{key}")] for key, item in value.items()]}
    raise TypeError(f"{name} is a {type(value).__name__}, which a checkpoint cannot hold; it holds numbers, texts, tensors, None, "
                    "and lists, tuples, dictionaries and counters of them")


def unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """What `pack` packed."""
    if isinstance(value, list):
        return [unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    (kind, content), = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(unpack(item, tensors) for item in content)
    return {"dict": dict, "counter": Counter}[kind]({unpack(key, tensors): unpack(item, tensors) for key, item in content})


# --- the manifest ---------------------------------------------------------------------------------------------------

def verify_folder(folder: str | os.PathLike) -> dict:
    """The manifest of a checkpoint whose files all have the sizes and hashes it names; ValueError for the first that has not."""
    folder = find_folder(folder)
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        files = {str(name): (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except FileNotFoundError:
        raise FileNotFoundError(f"{folder} holds no manifest.json, so it is no checkpoint of minippo") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{folder / 'manifest.json'} is damaged ({error!r}); {OFTEN}") from error
    for name, (size, digest) in files.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise ValueError(f"{folder}: the manifest names {name!r}, which is not there; {OFTEN}")
        if path.stat().st_size != size:
            raise ValueError(f"{path} has {path.stat().st_size} bytes, its manifest says {size}; {OFTEN}")
        if sha256(path) != digest:
            raise ValueError(f"{path} is damaged: its sha256 is not the manifest's; {OFTEN}")
    return manifest


def check_place(folder: Path) -> None:
    """ValueError where something else than a checkpoint of ours lies at `folder`, which saving would replace."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    try:
        ours = {"manifest.json", *json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{folder} is neither empty nor a checkpoint: nothing was written; choose another folder") from None
    if foreign := sorted(path.name for path in folder.iterdir() if path.name not in ours):
        raise ValueError(f"{folder} is a checkpoint, but holds {foreign[:3]} as well, which would be lost: nothing was written; move "
                         "that away, or choose another folder")


# --- saving and loading ---------------------------------------------------------------------------------------------

def group_names(trainer) -> list[list[str]]:
    """The names of the parameters in each of the optimizer's groups."""
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    return [[names.get(id(p), "not the model's") for p in group["params"]] for group in trainer.optimizer.param_groups]


def save_state(folder: str | os.PathLike, trainer, extra: dict | None = None) -> None:
    """Write a checkpoint. `extra` is the caller's own (what `pack` takes), and comes back from load_state.

    ValueError for a folder that holds anything else; OSError leaves what was there as it was.
    """
    check_place(Path(os.path.realpath(folder)))
    tensors = {"generator": trainer.generator.get_state()}
    tensors |= {f"ref_model.{name}": value for name, value in trainer.ref_model.state_dict().items()}
    scheduler, model = trainer.lr_scheduler, trainer.model
    state = {"config": asdict(trainer.config), "model": asdict(model.config), "torch": str(torch.__version__),
             "steps_done": trainer.steps_done, "kl_coef": trainer.kl_controller.value, "moments": vars(trainer.moments),
             "optimizer_class": type(trainer.optimizer).__name__, "optimizer_parameters": group_names(trainer),
             "optimizer": trainer.optimizer.state_dict(), "lr_scheduler": scheduler and scheduler.state_dict(), "extra": extra or {}}
    packed = pack(state, tensors, "state")
    with new_folder(folder, whole=True) as temporary:
        write_model(temporary, asdict(model.config), dict(model.transformer.named_parameters()),
                    dict(model.v_head.named_parameters()), trainer.tokenizer)
        write_safetensors(temporary / "trainer.safetensors", tensors)
        write_json(temporary / "trainer.json", packed)
        files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(temporary.iterdir())}
        write_json(temporary / "manifest.json", {"files": files, "step": trainer.steps_done})


def load_state(folder: str | os.PathLike, trainer) -> Any:
    """Bring `trainer` to the state of a checkpoint, bit for bit, and return what was passed as `extra`.

    Everything is read, verified and compared with the trainer before anything changes; ValueError says what does not fit.
    """
    folder = find_folder(folder)
    verify_folder(folder)
    try:
        tensors = read_safetensors(folder / "trainer.safetensors")
        state = unpack(json.loads((folder / "trainer.json").read_text(encoding="utf-8")), tensors)
        check_numbers(state)
        generator = torch.Generator()
        generator.set_state(tensors["generator"])
        compare(trainer, state)
        sizes = read_config(folder)
        check_layers(folder, sizes["n_layer"])
        shapes = {name: tuple(p.shape) for name, p in trainer.model.transformer.named_parameters()}
        policy = {f"transformer.{name}": p for name, p in read_weights(folder, shapes)}
        policy |= {f"v_head.{name}": p for name, p in (read_value_head(folder, sizes["n_embd"]) or {}).items()}
        reference = {name: tensors[f"ref_model.{name}"] for name in trainer.ref_model.state_dict()}
        check_tensors(trainer, policy, reference, state["optimizer"]["state"])
    except (KeyError, TypeError, AttributeError, RuntimeError, RecursionError) as error:
        raise ValueError(f"{folder} is no checkpoint that this version reads ({error!r}); nothing was loaded") from error
    except ValueError as error:
        raise ValueError(f"{folder}: {error}; nothing was loaded") from error

    groups = [{**saved, **{name: own[name] for name in own if name != "params" and (name not in SCHEDULED or not trainer.lr_scheduler)}}
              for saved, own in zip(state["optimizer"]["param_groups"], trainer.optimizer.param_groups)]
    trainer.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
    trainer.model.load_state_dict(policy)
    trainer.ref_model.load_state_dict(reference)
    trainer.generator.set_state(tensors["generator"])
    trainer.steps_done = state["steps_done"]
    if trainer.config.adap_kl_ctrl:
        trainer.kl_controller.value = state["kl_coef"]
    vars(trainer.moments).update(state["moments"])
    if trainer.lr_scheduler is not None:
        trainer.lr_scheduler.load_state_dict(state["lr_scheduler"])
    return state["extra"]


def check_numbers(state: dict) -> None:
    """ValueError for numbers that no trainer can have."""
    numbers = {"kl_coef": state["kl_coef"], **{name: state["moments"][name] for name in ("mean", "var", "count")}}
    for name, value in numbers.items():
        if type(value) not in (int, float) or not math.isfinite(value) or value < 0 and name != "mean":
            raise ValueError(f"{name} is {value!r}, which no trainer writes")
    if type(state["steps_done"]) is not int or state["steps_done"] < 0 or state["moments"].keys() != {"mean", "var", "count"}:
        raise ValueError(f"steps_done {state['steps_done']!r} and moments {state['moments']!r:.80} are not what a trainer writes")


def compare(trainer, state: dict) -> None:
    """ValueError where the checkpoint is of another model, optimizer or scheduler than the trainer has."""
    pairs = {f"the model's {name}": (state["model"].get(name), own) for name, own in asdict(trainer.model.config).items()
             if name != "eos_token_id"}
    pairs |= {"the optimizer": (state["optimizer_class"], type(trainer.optimizer).__name__),
              "a learning rate scheduler": (state["lr_scheduler"] is not None, trainer.lr_scheduler is not None),
              "the optimizer's parameters": (state["optimizer_parameters"], group_names(trainer))}
    for what, (saved, own) in pairs.items():
        if saved != own:
            if what == "the optimizer's parameters":
                saved, own = (sorted({name for group in groups for name in group} - {name for group in others for name in group})[:3]
                              or "in another order" for groups, others in ((saved, own), (own, saved)))
            raise ValueError(f"{what}: {saved} in the checkpoint, {own} in this trainer; build it with the model (sizes and frozen "
                             "parameters), optimizer and lr_scheduler that were saved")


def check_tensors(trainer, policy: dict, reference: dict, moments: dict) -> None:
    """ValueError for tensors that are missing, misshapen, of another type or not finite: fused Adam reads what it is told to."""
    wanted = {f"policy {name}": (p.shape, policy[name], p.dtype) for name, p in trainer.model.state_dict().items()}
    wanted |= {f"reference {name}": (p.shape, reference[name], p.dtype) for name, p in trainer.ref_model.state_dict().items()}
    parameters = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    for i, slot in moments.items():
        for name, x in slot.items():
            if isinstance(x, Tensor):                   # a count of steps, a row's or column's factor of Adafactor, or one a weight
                like = x if x.dim() == 0 or name in ("row_var", "col_var") else parameters[i]
                wanted[f"optimizer {i} {name}"] = (like.shape, x, like.dtype)
    for name, (shape, x, dtype) in wanted.items():
        if x.shape != shape or x.dtype != dtype or not torch.isfinite(x).all():
            raise ValueError(f"{name} is {tuple(x.shape)} {x.dtype}, expected finite numbers {tuple(shape)} {dtype}")
