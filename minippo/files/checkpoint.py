"""A checkpoint: all that a trainer's next step depends on, in one folder that is there whole or not at all.

    the files of a model folder     the policy; from_pretrained and transformers load it
    trainer.safetensors             the optimizer's moments, the reference, the generator, tensors of a scheduler
    trainer.json                    the numbers: steps, kl_coef, running moments, and where each tensor belongs
    manifest.json                   name, size and sha256 of every other file, written last

No pickle: JSON keeps the types that a state_dict has, see `pack`. A checkpoint is state, not settings: learning rate, eps, a fixed
kl_coef and so on are those of the trainer that loads it; where a scheduler moves it, the learning rate is state.
"""

from __future__ import annotations

import inspect
import math
import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .atomic import MAX_JSON, TEMPORARY, find_folder, new_folder, read_json, sha256, write_json
from .model_folder import check_layers, read_config, read_value_head, read_weights, write_model
from .safetensors import read_safetensors, write_safetensors

OFTEN = "use an earlier checkpoint"
FILES = {"config.json", "model.safetensors", "value_head.safetensors", "trainer.safetensors", "trainer.json"}
DESKTOP = {".DS_Store", "Thumbs.db", "desktop.ini"}     # a folder that someone has looked at is still ours
SCHEDULED = ("lr", "betas", "momentum")                 # of an optimizer's group: state where a scheduler moves them, else settings


# --- values with their types, in JSON -------------------------------------------------------------------------------

def pack(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """`value` as JSON that `unpack` turns back, types included. Its tensors go into `tensors`; their names begin with `name`."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        while name in tensors:                          # the keys 1 and "1" look alike in a name
            name += "'"
        tensors[name] = value.detach()
        return {"tensor": name}
    if type(value) in (list, tuple):
        items = [pack(item, tensors, f"{name}.{i}") for i, item in enumerate(value)]
        return items if type(value) is list else {"tuple": items}
    if isinstance(value, dict):                         # as pairs: JSON would make texts of whole numbers as keys
        kind = "counter" if isinstance(value, Counter) else "dict"
        return {kind: [[pack(key, tensors, name), pack(item, tensors, f"{name}.{key}")] for key, item in value.items()]}
    raise TypeError(f"{name} is a {type(value).__name__}, which a checkpoint cannot hold; it holds numbers, texts, tensors, None, "
                    "and lists, tuples, dictionaries and counters of them")


def unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """What `pack` packed."""
    if isinstance(value, list):
        return [unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError(f"trainer.json holds {sorted(value)[:3]}, which is not what this version writes")
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
    if not (folder / "manifest.json").exists():
        raise FileNotFoundError(f"{folder} holds no manifest.json, so it is no checkpoint of minippo")
    try:
        manifest = read_json(folder / "manifest.json")
        files = {str(name): (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / 'manifest.json'} is damaged ({error!r}); {OFTEN}") from error
    if missing := sorted(FILES - files.keys()):
        raise ValueError(f"{folder}: the manifest does not name {missing}; {OFTEN}")
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
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    there = {name for name in names if not TEMPORARY.fullmatch(name)} - DESKTOP
    if not there:
        return
    try:
        ours = {"manifest.json", *read_json(folder / "manifest.json")["files"]}
    except (OSError, ValueError, LookupError, TypeError):
        ours = set()
    if not FILES <= ours:
        raise ValueError(f"{folder} is neither empty nor a checkpoint: nothing was written; choose another folder")
    if foreign := sorted(there - ours):
        raise ValueError(f"{folder} is a checkpoint, but holds {foreign[:3]} as well, which would be lost: nothing was written; "
                         "move that away, or choose another folder")


# --- saving and loading ---------------------------------------------------------------------------------------------

def group_names(trainer) -> list[list[str]]:
    """The names of the parameters in each of the optimizer's groups."""
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    return [[names.get(id(p), "not the model's") for p in group["params"]] for group in trainer.optimizer.param_groups]


def save_state(folder: str | os.PathLike, trainer, extra: Any = None) -> None:
    """Write a checkpoint. `extra` is the caller's own (what `pack` takes), and comes back from load_state.

    ValueError for a folder that holds anything else; OSError leaves what was there as it was.
    """
    check_place(Path(os.path.realpath(folder)))
    model, reference, scheduler = trainer.model, trainer.ref_model, trainer.lr_scheduler
    tensors = {"generator": trainer.generator.get_state()}
    tensors |= {f"ref_model.{name}": value for name, value in reference.state_dict().items()}
    state = {"model": asdict(model.config), "reference": asdict(reference.config), "torch": torch.__version__,
             "steps_done": trainer.steps_done, "kl_coef": trainer.kl_controller.value, "moments": dict(vars(trainer.moments)),
             "optimizer_class": type(trainer.optimizer).__name__, "optimizer_parameters": group_names(trainer),
             "optimizer": trainer.optimizer.state_dict(),
             "scheduler_class": scheduler and type(scheduler).__name__, "lr_scheduler": scheduler and scheduler.state_dict(),
             "extra": {} if extra is None else extra}
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
        state = unpack(read_json(folder / "trainer.json", 256 * MAX_JSON), tensors)
        extra, optimizer = state["extra"], state["optimizer"]
        compare(trainer, state)
        check_numbers(trainer, state)
        torch.Generator().set_state(tensors["generator"])
        sizes = read_config(folder)
        check_layers(folder, sizes["n_layer"])
        shapes = {name: tuple(p.shape) for name, p in trainer.model.transformer.named_parameters()}
        policy = {f"transformer.{name}": p for name, p in read_weights(folder, shapes)}
        policy |= {f"v_head.{name}": p for name, p in (read_value_head(folder, sizes["n_embd"]) or {}).items()}
        reference = {name: tensors[f"ref_model.{name}"] for name in trainer.ref_model.state_dict()}
        check_tensors(trainer, policy, reference, optimizer["state"])
        groups = with_own_settings(trainer, optimizer["param_groups"])
        load_scheduler(trainer.lr_scheduler, state["lr_scheduler"])         # can only be tried; after it nothing fails
    except (LookupError, TypeError, AttributeError, RuntimeError, RecursionError) as error:
        raise ValueError(f"{folder} is no checkpoint that this version reads ({error!r}); nothing was loaded") from error
    except ValueError as error:
        raise ValueError(f"{folder}: {error}; nothing was loaded") from error

    trainer.optimizer.load_state_dict({"state": optimizer["state"], "param_groups": groups})
    trainer.model.load_state_dict(policy)
    trainer.ref_model.load_state_dict(reference)
    trainer.generator.set_state(tensors["generator"])
    trainer.steps_done = state["steps_done"]
    if trainer.config.adap_kl_ctrl:
        trainer.kl_controller.value = state["kl_coef"]
    vars(trainer.moments).update(state["moments"])
    return extra


def load_scheduler(scheduler, state: dict | None) -> None:
    """Load a scheduler's state; one that it cannot take leaves it as it was."""
    if scheduler is not None:
        own = scheduler.state_dict()
        try:
            scheduler.load_state_dict(state)
        except Exception:
            scheduler.load_state_dict(own)
            raise


def with_own_settings(trainer, saved: list[dict]) -> list[dict]:
    """The optimizer's groups of a checkpoint, with this trainer's settings.

    What the optimizer's constructor takes is a setting, what it keeps in its groups besides is state: torch's own keep nothing
    there, schedule-free ones their counts.
    """
    settings = {"params", *inspect.signature(type(trainer.optimizer)).parameters}
    settings -= set(SCHEDULED) if trainer.lr_scheduler is not None else set()
    own = trainer.optimizer.state_dict()["param_groups"]
    return [{**ours, **theirs, **{name: value for name, value in ours.items() if name in settings}}
            for theirs, ours in zip(saved, own, strict=True)]


def compare(trainer, state: dict) -> None:
    """ValueError where the checkpoint is of another model, reference, optimizer or scheduler than the trainer has."""
    def kinds(state: dict | None) -> set:
        return {(name, "number" if isinstance(x, (int, float)) else type(x).__name__) for name, x in (state or {}).items()}

    scheduler = trainer.lr_scheduler
    theirs, ours = kinds(state["lr_scheduler"]), kinds(scheduler and scheduler.state_dict())
    pairs = {f"the {kind}'s {name}": (state[kind][name], own)
             for kind, model in (("model", trainer.model), ("reference", trainer.ref_model))
             for name, own in asdict(model.config).items() if name != "eos_token_id"}
    pairs |= {"the optimizer": (state["optimizer_class"], type(trainer.optimizer).__name__),
              "the learning rate scheduler": (state["scheduler_class"], scheduler and type(scheduler).__name__),
              "the scheduler's numbers": (sorted(theirs - ours)[:3], sorted(ours - theirs)[:3])}
    saved, own = state["optimizer_parameters"], group_names(trainer)
    if saved != own:
        saved, own = ({name for group in groups for name in group} for groups in (saved, own))
        pairs["the optimizer's parameters"] = (sorted(saved - own)[:3] or "the others in other groups", sorted(own - saved)[:3])
    for what, (saved, own) in pairs.items():
        if saved != own:
            raise ValueError(f"{what}: {saved} in the checkpoint, {own} in this trainer; build it with the model (sizes and "
                             "frozen parameters), optimizer and lr_scheduler that were saved")


def check_numbers(trainer, state: dict) -> None:
    """ValueError for numbers that no trainer can have."""
    moments = state["moments"]
    if moments.keys() != vars(trainer.moments).keys():
        raise ValueError(f"moments are {moments!r:.80}, expected {sorted(vars(trainer.moments))}")
    for name, value in {"kl_coef": state["kl_coef"], "steps_done": state["steps_done"], **moments}.items():
        if type(value) not in (int, float) or not math.isfinite(value) or value < 0 and name != "mean":
            raise ValueError(f"{name} is {value!r:.80}, which no trainer has")
    if type(state["steps_done"]) is not int:
        raise ValueError(f"steps_done is {state['steps_done']!r}, expected a whole number")
    for group, own in zip(state["optimizer"]["param_groups"], trainer.optimizer.param_groups, strict=True):
        for name in [name for name in SCHEDULED if name in group]:
            x, like = (torch.as_tensor(each[name], dtype=torch.float64) for each in (group, own))
            if x.shape != like.shape or not torch.isfinite(x).all() or x.min() < 0 or name != "lr" and x.max() >= 1:
                raise ValueError(f"the optimizer's {name} is {group[name]!r:.80}, which no scheduler sets")


def check_tensors(trainer, policy: dict, reference: dict, moments: dict) -> None:
    """ValueError for tensors that are missing, misshapen, of another type or not finite: fused Adam reads what it is told to."""
    wanted = {f"the policy's {name}": (policy[name], p.shape, p.dtype) for name, p in trainer.model.state_dict().items()}
    wanted |= {f"the reference's {name}": (reference[name], p.shape, p.dtype)
               for name, p in trainer.ref_model.state_dict().items()}
    optimizer = trainer.optimizer
    parameters = dict(enumerate((p, group) for group in optimizer.param_groups for p in group["params"]))
    torchs = tuple(kind for kind in vars(torch.optim).values() if isinstance(kind, type) and kind is not Optimizer)
    for i, slot in moments.items():
        p, group = parameters[i]
        if isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)):
            names = {"step", "exp_avg", "exp_avg_sq"} | ({"max_exp_avg_sq"} if group["amsgrad"] else set())
            if slot.keys() != names or not all(isinstance(x, Tensor) for x in slot.values()):
                raise ValueError(f"the optimizer's state of parameter {i} is {sorted(slot)}, expected tensors {sorted(names)}")
        for name, x in slot.items():
            if isinstance(x, Tensor) and isinstance(optimizer, torchs):         # others may keep tables, or 8-bit moments
                # a count of steps, a row's or column's factor of Adafactor, or one number a weight
                like = x if x.dim() == 0 or name in ("row_var", "col_var") else p
                wanted[f"the optimizer's {name} of parameter {i}"] = (x, like.shape, like.dtype)
    for name, (x, shape, dtype) in wanted.items():
        if x.shape != shape or x.dtype != dtype or not torch.isfinite(x).all():
            raise ValueError(f"{name} is {tuple(x.shape)} {x.dtype}, expected finite numbers {tuple(shape)} {dtype}")
