"""What a training run is told: its settings, and what of them a run that goes on may change."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from inspect import formatannotation
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import torch

from ..distributed import default_device, world_size
from ..inputs import require
from ..metrics import metric_of
from ..ppo import PPOConfig


def check_types(cls: type, values: dict) -> None:
    """ValueError for a value of another type than its field of the dataclass has; a whole number may stand for a float."""
    for name, value in values.items():
        hint = get_type_hints(cls)[name]
        kinds = {get_origin(kind) or kind for kind in get_args(hint) or [hint]}
        kinds |= {int} if float in kinds else set()
        if not isinstance(value, tuple(kinds)):
            raise ValueError(f"{cls.__name__}: {name} must be {formatannotation(hint)}, got {value!r:.60}")


def place(path: str, what: str) -> Path:
    """A path as a user gives it, "~" expanded, made absolute: a reward that changes the folder does not move it."""
    if not path.strip() or "\0" in path:
        raise ValueError(f"{what}: expected a path, got {path!r}")
    try:
        return Path(os.path.abspath(Path(path).expanduser()))
    except RuntimeError as error:                                       # no such user, or no HOME
        raise ValueError(f"{what} {path!r}: {error}; write the path out") from None


def span(value: int | tuple[int, int]) -> tuple[int, int]:
    """A number or a range as a range, MIN and MAX."""
    return (value, value) if isinstance(value, int) else value


@dataclass(frozen=True)
class RunConfig:
    """What a run trains on and what it writes; PPOConfig holds the algorithm."""
    model: str                          # the policy to start from: a public name such as gpt2, a model folder or a run folder
    prompts: str                        # file of prompts, one a line; .jsonl or .csv with a "query"; or rt-polarity, the folder
    reward: str                         # rule:NAME, model:DIR, module:function, human, or a sum: '0.8*human + 0.2*rule:length'
    out: str                            # the run folder to write
    steps: int = 100                    # updates, of batch_size responses each
    ref_model: str | None = None        # what KL is measured against, named as a model is; none: the model as it is at the start
    query_tokens: int | tuple[int, int] | None = None    # cut prompts to this many tokens, or MIN MAX to draw it; none: whole
    max_new_tokens: int | tuple[int, int] = 20    # limit of a response in tokens, or MIN MAX to draw it for each
    # truncate and penalise (lm-human-preferences, lm_tasks.py): PPO still trains on the whole response
    truncate_at: str | None = None                  # score a response only up to its first token with this text, a full stop say
    truncate_after: int = 0                         # the token may only be found behind this many others
    truncate_penalty: float = -1.0                  # score of a response without such a token
    lr_schedule: str = "constant"       # of the learning rate: constant; or linear or cosine, which fall to 0 over the steps
    warmup: int = 0                     # updates over which the learning rate rises to its full size
    save_every: int = 10                # updates between checkpoints
    keep_checkpoints: int = 2           # the newest ones, which are kept
    sample_every: int = 10              # updates between samples
    samples: int = 3                    # responses shown then
    follow: int = 2                     # responses of the first batch to evaluate again then, token by token
    report_every: int = 10              # updates between writings of report.html, sooner where they take a minute and more
    # evaluation: the same prompts and random numbers each time, so that only the weights count
    eval_prompts: str | None = None     # file of prompts to evaluate the policy on, all of them each time: a hundred new ones, say
    eval_every: int = 10                # updates between evaluations
    eval_samples: int = 1               # responses to each of these prompts
    keep_best: bool = False             # keep the checkpoint of the best evaluation as best/, beside the newest ones
    best_metric: str = "eval/objective"     # what best means, the more the better; this one: eval/score - init_kl_coef * eval/kl
    stop_kl: float | None = None        # end the run, with all saved, once KL has stayed above this for three updates
    one_line: bool = False              # print one line that is rewritten, not a line for each update
    quiet: bool = False                 # print warnings only
    score_everywhere: bool = False      # several processes: own functions score a share on each, not all on the first one
    device: str | None = None           # cpu, cuda or cuda:1, mps (Apple's GPU, not tested there); none: CUDA where there is one
    dtype: str | None = None            # of the blocks: float32, bfloat16, float16; none: bfloat16 on a GPU, if it can

    def __post_init__(self):
        check_types(RunConfig, vars(self))
        require(self, "steps save_every keep_checkpoints sample_every report_every eval_every eval_samples", "a whole number above 0",
                lambda n: n > 0)
        require(self, "stop_kl", "None or a number above 0", lambda x: x > 0, optional=True)
        require(self, "warmup samples follow truncate_after", "a whole number of at least 0", lambda x: x >= 0)
        require(self, "truncate_penalty", "a number that fp32 holds", lambda x: abs(x) < 1e38)
        for name in ("query_tokens", "max_new_tokens"):
            numbers = span(1 if (value := getattr(self, name)) is None else value)
            if len(numbers) != 2 or not all(type(n) is int for n in numbers) or not 1 <= numbers[0] <= numbers[1]:
                raise ValueError(f"RunConfig: {name} must be a whole number above 0, or a pair (MIN, MAX); got {value!r}")
        if self.truncate_at == "":
            raise ValueError("RunConfig: truncate_at must be a text of some length, or none; an empty one is in every token")
        if self.lr_schedule not in ("constant", "linear", "cosine"):
            raise ValueError(f"RunConfig: lr_schedule must be constant, linear or cosine; got {self.lr_schedule!r}")
        if self.keep_best and self.best_metric.startswith("eval/") and self.eval_prompts is None:
            raise ValueError(f"RunConfig: keep_best by {self.best_metric} needs eval_prompts, or another best_metric")
        if metric_of(self.best_metric) is None:
            raise ValueError(f"RunConfig: best_metric must be a key of metrics.jsonl, such as eval/score, got {self.best_metric!r}")


def pick_device(name: str | None) -> torch.device:
    """The device of this name; None: CUDA where there is one. ValueError for one that is not there."""
    try:
        device = torch.device(name) if name else default_device()
        torch.empty(1, device=device).tolist()                          # meta has shapes, but no numbers
    except (RuntimeError, AssertionError) as error:
        mps = ["mps"] * torch.backends.mps.is_available()
        there = ", ".join(["cpu", *mps, *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
        raise ValueError(f"no device {name!r} here; there is {there}") from error
    return device


def pick_dtype(name: str | None) -> torch.dtype | None:
    """The precision of this name; None, the model's own choice, for None."""
    if name not in (None, "float32", "bfloat16", "float16"):
        raise ValueError(f"no dtype {name!r}; expected float32, bfloat16 or float16")
    return name and getattr(torch, name)


def differences(old: dict, new: dict) -> list[str]:
    """What a resumed run would compute otherwise than the run that it continues, in words; both as `describe` makes them."""
    # these reach the computation in no way, but for `steps` under a schedule, see open_folder
    free = ("run ppo prompts out steps save_every keep_checkpoints sample_every samples follow report_every one_line quiet "
            "score_everywhere eval_prompts eval_every eval_samples keep_best best_metric stop_kl").split()
    old, new = ({**record, **record["run"], **record["ppo"]} for record in (old, new))
    names = sorted((old.keys() | new.keys()) - {*free})
    if None in (old.get("threads"), new.get("threads")):                # on a GPU, or several processes: they round otherwise anyway
        names = [name for name in names if name != "threads"]
    return [f"{name}: {old.get(name)!r} -> {new.get(name)!r}" for name in names if old.get(name) != new.get(name)]


def describe(run: RunConfig, config: PPOConfig, prompts: bytes) -> dict:
    """All that the computation depends on, as config.json holds it. prompts: the content of the file."""
    record = {"model": run.model, "reward": run.reward, "steps": run.steps, "seed": config.seed,
              "torch": str(torch.__version__), "threads": torch.get_num_threads() if run.device == "cpu" and world_size() == 1 else None,
              "prompts_sha256": hashlib.sha256(prompts).hexdigest(), "ppo": asdict(config), "run": asdict(run)}
    return json.loads(json.dumps(record))                               # tuples as lists, as they will be read back
