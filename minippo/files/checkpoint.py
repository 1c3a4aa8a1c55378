"""A checkpoint: all that a trainer's next step depends on, in one folder that is there whole or not at all.

    the files of a model folder     the policy; from_pretrained and transformers load it
    trainer.safetensors             the optimizer's moments, the reference where it differs, the generator, tensors of a scheduler
    trainer.json                    the numbers: steps, kl_coef, running moments, and where each tensor belongs
    manifest.json                   name, size and sha256 of every other file, written last

No pickle: JSON keeps the types that a state_dict has, see `pack`. A checkpoint is state, not settings: learning rate, eps, a
fixed kl_coef are those of the trainer that loads it; where a scheduler moves it, the learning rate is state.
"""

import inspect
import math
import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .atomic import MAX_JSON, TEMPORARY, find_folder, new_folder, read_json, sha256, write_json
from .model_folder import read_value_head, read_weights, write_model
from .safetensors import read_safetensors, write_safetensors

FILES = {"config.json", "model.safetensors", "value_head.safetensors", "trainer.safetensors", "trainer.json"}
DESKTOP = {".DS_Store", "Thumbs.db", "desktop.ini"}     # a folder that someone has looked at is still ours
SCHEDULED = {"lr", "betas", "momentum"}                 # of a group: state where a scheduler moves them, else settings


def pack(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """`value` as JSON that `unpack` turns back, types included; its tensors go into `tensors`, as `name` and what follows."""
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
    raise TypeError(f"{name} is a {type(value).__name__}, which a checkpoint cannot hold; it takes numbers, tensors, lists, ...")


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


def verify_folder(folder: str | os.PathLike) -> dict:
    """The manifest of a checkpoint, when all files have the sizes and hashes it names; else ValueError for the first."""
    folder = find_folder(folder)
    if not (folder / "manifest.json").exists():
        raise FileNotFoundError(f"{folder} holds no manifest.json, so it is no checkpoint of minippo")
    try:
        manifest = read_json(folder / "manifest.json")
        files = {name: manifest["files"][name] for name in sorted(FILES | manifest["files"].keys())}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / 'manifest.json'} is damaged ({error!r}); use an earlier checkpoint") from error
    for name, entry in files.items():
        path = folder / name
        if Path(name).name != name or not path.is_file() or entry != {"bytes": path.stat().st_size, "sha256": sha256(path)}:
            raise ValueError(f"{path} is damaged: it is not the file of the manifest; use an earlier checkpoint")
    return manifest


def check_place(folder: Path) -> None:
    """ValueError where something else than a checkpoint of ours lies at `folder`, which saving would replace."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    there = {name for name in names if not TEMPORARY.fullmatch(name)} - DESKTOP
    try:
        ours = {"manifest.json", *read_json(folder / "manifest.json")["files"]} if there else FILES
    except (OSError, ValueError, LookupError, TypeError):
        ours = set()
    if not FILES <= ours:
        raise ValueError(f"{folder} is neither empty nor a checkpoint: nothing was written; choose another folder")
    if foreign := sorted(there - ours):
        raise ValueError(f"{folder} holds {foreign[:3]} beside a checkpoint, which would be lost; move that, or choose another")


def identity(trainer) -> dict[str, Any]:
    """What a checkpoint and the trainer that loads it must share: sizes, kinds, each parameter's index in the optimizer."""
    scheduler, names = trainer.lr_scheduler, {id(p): name for name, p in trainer.model.named_parameters()}
    sizes = {f"the {kind}'s {name}": size for kind, model in (("model", trainer.model), ("reference", trainer.ref_model))
             for name, size in asdict(model.config).items() if name != "eos_token_id"}
    places = {f"the optimizer's index of {names.get(id(p), 'a parameter of another model')}": (i, j)
              for i, group in enumerate(trainer.optimizer.param_groups) for j, p in enumerate(group["params"])}
    return sizes | places | {"the optimizer": type(trainer.optimizer).__name__,
                             "the learning rate scheduler": scheduler and type(scheduler).__name__}


def with_own_settings(trainer, saved: list[dict]) -> list[dict]:
    """The optimizer's groups of a checkpoint, with this trainer's settings: what its constructor takes; the rest is state."""
    settings = {"params", *inspect.signature(type(trainer.optimizer)).parameters}
    settings -= SCHEDULED if trainer.lr_scheduler is not None else set()
    own = trainer.optimizer.state_dict()["param_groups"]
    return [{**ours, **theirs, **{name: value for name, value in ours.items() if name in settings}}
            for theirs, ours in zip(saved, own, strict=True)]


def check_state(trainer, state: dict) -> None:
    """ValueError for the state of a trainer of other sizes or kinds, and for numbers that no trainer can have."""
    saved, own = state["identity"], identity(trainer)
    if differ := [what for what in saved | own if saved.get(what) != own.get(what)]:
        raise ValueError(f"{differ[0]}: {saved.get(differ[0])} in the checkpoint, {own.get(differ[0])} in this trainer; "
                         "build it with the model (sizes and frozen parameters), optimizer and lr_scheduler that were saved")
    saved, own = ({name: "number" if type(x) in (int, float) else type(x).__name__ for name, x in (each or {}).items()}
                  for each in (state["lr_scheduler"], trainer.lr_scheduler and trainer.lr_scheduler.state_dict()))
    if saved != own:
        raise ValueError(f"the scheduler's numbers differ from this trainer's in {sorted(saved.items() ^ own.items())!r:.200}")
    numbers = [("kl_coef", state["kl_coef"], 0.0), ("steps_done", state["steps_done"], 0)]
    numbers += [(name, state["moments"][name], 0.0) for name in vars(trainer.moments)]
    groups = zip(state["optimizer"]["param_groups"], trainer.optimizer.param_groups, strict=True)
    numbers += [(name, theirs[name], ours[name]) for theirs, ours in groups for name in SCHEDULED & ours.keys()]
    for name, value, like in numbers:
        x, like = (torch.as_tensor(number, dtype=torch.float64, device="cpu") for number in (value, like))
        low, high = -math.inf if name == "mean" else 0, 1 if name in ("betas", "momentum") else math.inf
        if x.shape != like.shape or not ((low <= x) & (x < high)).all() or name == "steps_done" and type(value) is not int:
            raise ValueError(f"{name} is {value!r:.80}, which no trainer has")


def check_tensors(trainer, reference: dict, moments: dict) -> None:
    """ValueError for tensors of another shape or type, or not finite: a fused optimizer reads past the end of short ones."""
    pairs = {f"the reference's {name}": (reference[name], p) for name, p in trainer.ref_model.state_dict().items()}
    parameters = dict(enumerate((p, group) for group in trainer.optimizer.param_groups for p in group["params"]))
    adam = isinstance(trainer.optimizer, (torch.optim.Adam, torch.optim.AdamW))
    fused = adam or isinstance(trainer.optimizer, (torch.optim.SGD, torch.optim.Adagrad))       # may be: those have such kernels
    for i, slot in moments.items():
        p, group = parameters[i]
        names = ("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")[:4 if group["amsgrad"] else 3] if adam else slot
        for name in names:
            if isinstance(slot[name], Tensor) or adam:              # others may keep None, tables, 8 bits
                like = slot[name] if not fused else p if name != "step" else slot[name].reshape(())
                pairs[f"the optimizer's {name} of parameter {i}"] = (slot[name], like)
    for name, (x, like) in pairs.items():
        if x.shape != like.shape or x.dtype != like.dtype or not torch.isfinite(x).all():
            raise ValueError(f"{name} is {tuple(x.shape)} {x.dtype}, expected finite numbers {tuple(like.shape)} {like.dtype}")


def save_state(folder: str | os.PathLike, trainer, extra: Any = None) -> None:
    """Write a checkpoint; `extra` is the caller's own, what `pack` takes. ValueError for a folder with anything else in it."""
    if not trainer.is_main_process:                                         # of several: all have the same state
        return
    check_place(Path(os.path.realpath(os.path.expanduser(folder))))
    model, reference, scheduler = trainer.model, trainer.ref_model, trainer.lr_scheduler
    tensors = {"generator": trainer.generator.get_state()}
    own, theirs = model.state_dict(), reference.state_dict()
    shared = [name for name, x in theirs.items() if name in own and x.dtype == own[name].dtype and torch.equal(x, own[name])]    # frozen
    tensors |= {f"ref_model.{name}": value for name, value in theirs.items() if name not in shared}
    state = {"identity": identity(trainer), "steps_done": trainer.steps_done, "kl_coef": trainer.kl_controller.value,
             "shared": shared, "moments": dict(vars(trainer.moments)), "optimizer": trainer.optimizer.state_dict(),
             "lr_scheduler": scheduler and scheduler.state_dict(), "extra": {} if extra is None else extra}
    packed = pack(state, tensors, "state")
    with new_folder(folder, whole=True) as temporary:
        write_model(temporary, asdict(model.config), dict(model.transformer.named_parameters()),
                    dict(model.v_head.named_parameters()), trainer.tokenizer)
        write_safetensors(temporary / "trainer.safetensors", tensors)
        write_json(temporary / "trainer.json", packed)
        files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(temporary.iterdir())}
        write_json(temporary / "manifest.json", {"files": files, "step": trainer.steps_done})


@torch.inference_mode(False)                            # whose tensors no step could change
def load_state(folder: str | os.PathLike, trainer) -> Any:
    """Bring `trainer` to the state of a checkpoint, on a CPU bit for bit, and return the caller's `extra`.

    Everything is read, verified and compared with the trainer before anything changes; ValueError says what does not fit.
    """
    folder = find_folder(folder)
    verify_folder(folder)
    try:
        tensors = read_safetensors(folder / "trainer.safetensors")
        state = unpack(read_json(folder / "trainer.json", 256 * MAX_JSON), tensors)
        moments = {name: state["moments"][name] for name in vars(trainer.moments)}
        extra, optimizer = state["extra"], state["optimizer"]
        check_state(trainer, state)
        torch.Generator().set_state(tensors["generator"])
        shapes = {name: tuple(p.shape) for name, p in trainer.model.transformer.named_parameters()}
        policy = {f"transformer.{name}": p for name, p in read_weights(folder, shapes)}
        policy |= {f"v_head.{name}": p for name, p in read_value_head(folder, trainer.model.config.n_embd).items()}
        reference = {name: policy[name] if name in state.get("shared", ()) else tensors[f"ref_model.{name}"]
                     for name in trainer.ref_model.state_dict()}
        check_tensors(trainer, reference, optimizer["state"])
        groups = with_own_settings(trainer, optimizer["param_groups"])
        if (scheduler := trainer.lr_scheduler) is not None:                # can only be tried; after it nothing fails
            before = scheduler.state_dict()
            try:
                scheduler.load_state_dict(state["lr_scheduler"])
            except Exception:
                scheduler.load_state_dict(before)
                raise
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError, RecursionError) as error:
        raise ValueError(f"{folder} is not of this trainer, or of another version: {error}; nothing was loaded") from error

    trainer.optimizer.load_state_dict({"state": optimizer["state"], "param_groups": groups})
    trainer.model.load_state_dict(policy)
    trainer.ref_model.load_state_dict(reference)
    trainer.generator.set_state(tensors["generator"])
    trainer.steps_done = state["steps_done"]
    if trainer.config.adap_kl_ctrl:
        trainer.kl_controller.value = state["kl_coef"]
    vars(trainer.moments).update(moments)
    return extra
