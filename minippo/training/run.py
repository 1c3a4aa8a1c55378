"""A training run: prompts in; a folder of metrics, samples, checkpoints and a report out.

    python -m minippo train --model gpt2 --prompts prompts.txt --reward rule:sentiment --out runs/x

    runs/x/config.json           every setting of the run
           metrics.jsonl         one object an update
           samples.jsonl         responses with their scores; the followed ones token by token
           checkpoint-000010/    the newest few; each one is a model folder, too
           labels.jsonl          the ratings of a human reward
           crash-step-000011.json    the batch that stopped the run, if one did
           report.html           all of it to look at

A run that was killed at any moment continues with resume=True, and then writes the same metrics and the same weights as one
that was not (on a CPU with the same number of threads; times aside). For that an update is a function of the checkpoint: the
sampling generator is the trainer's, and prompts and lengths are drawn by generators made anew from the seed and a counter.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Iterator, NamedTuple

import torch
from torch import Tensor

from ..files.atomic import beside, remove_leftovers, write_json
from ..files.checkpoint import load_state, save_state, verify_folder
from .data import load_prompts
from ..policy import GPT2WithValueHead
from .pretrain import Progress
from ..ppo import PPOConfig, PPOTrainer, compute_advantages, compute_rewards
from ..report import write_report
from ..scoring.reward_model import RewardModel
from ..scoring.rewards import Reward, RewardError, ScoreFn, StopRun, parse_reward
from ..files.tokenizer import Tokenizer, load_tokenizer


# ---------------------------------------------------------------------------------------------------------------------
# configuration
# ---------------------------------------------------------------------------------------------------------------------

def span(value: int | tuple[int, int]) -> tuple[int, int]:
    """A number or a range as a range, MIN and MAX."""
    return (value, value) if isinstance(value, int) else value


@dataclass(frozen=True)
class RunConfig:
    """What a run trains on and what it writes; PPOConfig holds the algorithm."""
    # what
    model: str                          # the policy to start from: a public name such as gpt2, or a model folder
    prompts: str                        # file of prompts: one a line, or .jsonl objects with "query"
    reward: str                         # rule:NAME, model:DIR, module:function, human, or a sum: '0.8*human + 0.2*rule:length'
    out: str                            # the run folder to write
    steps: int = 100                    # updates, of batch_size responses each
    # texts
    query_tokens: int | tuple[int, int] | None = None    # cut prompts to this many tokens, or MIN MAX to draw it; none: whole
    max_new_tokens: int | tuple[int, int] = 20    # limit of a response in tokens, or MIN MAX to draw it for each
    # truncate and penalise (lm-human-preferences, lm_tasks.py): PPO still trains on the whole response
    truncate_at: str | None = None                  # score a response only up to its first token with this text, a full stop say
    truncate_after: int = 0                         # the token may only be found behind this many others
    truncate_penalty: float = -1.0                  # score of a response without such a token
    # learning rate
    lr_schedule: str = "constant"       # constant; or linear or cosine, which fall to 0 over the steps
    warmup: int = 0                     # updates over which the learning rate rises to its full size
    # what is written
    save_every: int = 10                # updates between checkpoints
    keep_checkpoints: int = 2           # the newest ones, which are kept
    sample_every: int = 10              # updates between samples
    samples: int = 3                    # responses shown then
    follow: int = 2                     # responses of the first batch to evaluate again then, token by token
    report_every: int = 10              # updates between writings of report.html
    one_line: bool = False              # print one line that is rewritten, not a line for each update
    quiet: bool = False                 # print warnings only
    # machine
    device: str | None = None           # cpu, cuda or cuda:1; none: CUDA where there is one
    dtype: str | None = None            # of the blocks: float32, bfloat16, float16; none: bfloat16 on a GPU, if it can

    def __post_init__(self):
        positive = ("steps", "save_every", "keep_checkpoints", "sample_every", "report_every")
        for name in (*positive, "warmup", "samples", "follow", "truncate_after"):
            value, least = getattr(self, name), int(name in positive)
            if type(value) is not int or value < least:
                raise ValueError(f"RunConfig: {name} must be a whole number of at least {least}, got {value!r}")
        for name in ("query_tokens", "max_new_tokens"):
            value = getattr(self, name)
            numbers = span(value) if isinstance(value, (int, tuple)) else ()
            whole = len(numbers) == 2 and all(type(n) is int for n in numbers) and 1 <= numbers[0] <= numbers[1]
            if not whole and not (name == "query_tokens" and value is None):
                raise ValueError(f"RunConfig: {name} must be a whole number above 0, or a pair (MIN, MAX); got {value!r}")
        if self.lr_schedule not in ("constant", "linear", "cosine"):
            raise ValueError(f"RunConfig: lr_schedule must be constant, linear or cosine; got {self.lr_schedule!r}")


# what a resumed run may change freely, since none of it reaches the computation; so may `steps` where the schedule is constant
FREE = {"run", "ppo", "prompts", "out", "save_every", "keep_checkpoints", "sample_every", "samples", "follow", "report_every",
        "one_line", "quiet"}


def pick_device(name: str | None) -> torch.device:
    """The device of this name; None: CUDA where there is one. ValueError for one that is not there."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        has = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        raise ValueError(f"no device {name!r} here; there is {', '.join(['cpu', *has])}") from error
    return device


def pick_dtype(name: str | None) -> torch.dtype | None:
    """The precision of this name; None, the model's own choice, for None."""
    known = {None: None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise ValueError(f"no dtype {name!r}; expected float32, bfloat16 or float16")
    return known[name]


def load_reward(spec: str, device: torch.device, dtype: torch.dtype | None, labels: Path) -> Reward:
    """The reward that `spec` describes, its reward models on `device`; labels: the file for a person's ratings."""
    return parse_reward(spec, lambda folder: RewardModel.from_pretrained(folder, device, dtype).score, labels)


def differences(old: dict, new: dict) -> list[str]:
    """What a resumed run would compute otherwise than the run that it continues, in words; both as `describe` makes them."""
    def flat(record):
        return {**record, **record["run"], **record["ppo"]}
    old, new = flat(old), flat(new)
    constant = old.get("lr_schedule") == new["lr_schedule"] == "constant"
    names = sorted((old.keys() | new.keys()) - FREE - ({"steps"} if constant else set()))
    return [f"{name}: {old.get(name)!r} -> {new.get(name)!r}" for name in names if old.get(name) != new.get(name)]


def describe(run: RunConfig, config: PPOConfig) -> dict:
    """All that the computation depends on, as config.json holds it."""
    record = {"model": run.model, "reward": run.reward, "steps": run.steps, "seed": config.seed, "torch": torch.__version__,
              "threads": torch.get_num_threads() if run.device == "cpu" else None,
              "prompts_sha256": hashlib.sha256(Path(run.prompts).read_bytes()).hexdigest(),
              "ppo": asdict(config), "run": asdict(run)}
    return json.loads(json.dumps(record))                               # tuples as lists, as they will be read back


# ---------------------------------------------------------------------------------------------------------------------
# files of the run folder
# ---------------------------------------------------------------------------------------------------------------------

def say(text: str, file=None) -> None:
    """Print; a terminal that went away does not stop the run."""
    file = file or sys.stdout
    encoding = getattr(file, "encoding", None) or "utf-8"
    with suppress(OSError, ValueError):
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=file, flush=True)


def warn(text: str) -> None:
    say(f"warning: {text}", sys.stderr)


def plain(value):
    """`value` as JSON has it: tensors as lists, NaN and infinity as null."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Log:
    """A file of JSON lines, of whole lines only. A full disk does not stop the run: lines wait until there is room."""

    def __init__(self, path: Path, size: int):
        self.path, self.waiting, self.warned = path, b"", False
        self.file = open(path, "ab", buffering=0)
        if self.size() > size:                                          # updates that will be done again, or half a line
            self.file.truncate(size)

    def size(self) -> int:
        return os.fstat(self.file.fileno()).st_size

    def write(self, records: list[dict]) -> None:
        self.waiting += b"".join(json.dumps(plain(record)).encode() + b"\n" for record in records)
        size, rest = self.size(), self.waiting
        try:
            while rest:
                rest = rest[self.file.write(rest):]
            self.waiting = b""
        except OSError as error:
            self.fail(error)
            with suppress(OSError):
                self.file.truncate(size)

    def sync(self) -> int:
        """Wait until the lines are on the disk; returns the file's size."""
        try:
            os.fsync(self.file.fileno())
        except OSError as error:
            self.fail(error)
        return self.size()

    def fail(self, error: OSError) -> None:
        if not self.warned:
            warn(f"cannot write {self.path} ({error}); training goes on, and its lines wait in memory")
        self.warned = True


@contextmanager
def lock(out: Path) -> Iterator[None]:
    """Keep other runs out of this folder; the lock ends with the process, however it ends."""
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file; the run needs a folder: choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise BlockingIOError(f"{out} is in use: process {file.read().strip() or 'unknown'} trains in it; wait for it, "
                                  "or choose another --out") from None
        except OSError as error:
            warn(f"{out} lies on a file system without locks ({error}); do not start a second run in it")
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


# ---------------------------------------------------------------------------------------------------------------------
# checkpoints
# ---------------------------------------------------------------------------------------------------------------------

@dataclass
class RunState:
    """What a checkpoint holds beside the trainer's own state."""
    prompts_taken: int = 0                                              # where the next batch begins
    followed: list[dict] = field(default_factory=list)                  # {"query": token ids, "response": ..., "score": ...}
    sizes: dict[str, int] = field(default_factory=dict)                 # bytes of each log that belong to the updates so far


OURS = re.compile(r"checkpoint-\d{6,}|config\.json|report\.html|crash-step-\d{6,}\.json")      # what a run writes whole


def checkpoints(out: Path) -> list[Path]:
    """The checkpoint folders, oldest first."""
    found = [path for path in out.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d{6,}", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def newest_checkpoint(out: Path) -> Path | None:
    """The newest checkpoint whose files are as its manifest says; None where there is none, ValueError if all are bad."""
    for folder in reversed(checkpoints(out)):
        try:
            verify_folder(folder)
            return folder
        except (OSError, ValueError) as error:
            warn(f"{folder.name} is damaged and passed over: {error}")
    if checkpoints(out):
        raise ValueError(f"no checkpoint in {out} is whole; move them away to start from the beginning")
    return None


def remove_old_checkpoints(out: Path, keep: int) -> None:
    for folder in checkpoints(out)[:-keep]:
        doomed = beside(folder, "tmp")
        os.rename(folder, doomed)                                       # in one step: half a checkpoint is never seen
        shutil.rmtree(doomed)


def open_folder(out: Path, record: dict, resume: bool, allow_config_change: bool) -> Path | None:
    """The checkpoint to start from, None for the beginning; ValueError where this run must not go into this folder."""
    stored = {}
    if (out / "config.json").exists():
        with suppress(ValueError):
            stored = json.loads((out / "config.json").read_bytes())
        if not isinstance(stored, dict) or not {"run", "ppo"} <= stored.keys():
            raise ValueError(f"{out / 'config.json'} is not the config.json of a run; choose another --out")
    metrics = out / "metrics.jsonl"
    if not resume and (checkpoints(out) or metrics.exists() and metrics.stat().st_size):
        raise ValueError(f"{out} already holds a run: continue it with --resume, or choose another --out")
    changed = differences(stored, record) if resume and stored else []
    if changed and not allow_config_change:
        raise ValueError(f"{out} was begun with other settings (then -> now): {'; '.join(changed)}. Give them as they were, "
                         "or --allow-config-change to go on with the new ones")
    for change in changed:
        warn(f"changed: {change}")
    remove_leftovers(out, OURS)                                         # of processes that died: under the lock none is alive
    newest = newest_checkpoint(out)
    for damaged in [folder for folder in checkpoints(out) if newest and folder.name > newest.name]:
        os.rename(damaged, out / f"damaged-{damaged.name}.{os.getpid()}")       # out of the way of the next one of that update
    return newest


# ---------------------------------------------------------------------------------------------------------------------
# a batch
# ---------------------------------------------------------------------------------------------------------------------

class Job(NamedTuple):
    """What stays the same during a run."""
    run: RunConfig
    config: PPOConfig
    out: Path
    prompts: list[list[int]]            # token ids
    tokenizer: Tokenizer
    reward: Reward
    trainer: PPOTrainer


@lru_cache(maxsize=2)
def shuffled(n: int, seed: int, epoch: int) -> list[int]:
    order = list(range(n))
    random.Random(f"prompts {seed} {epoch}").shuffle(order)
    return order


def next_batch(job: Job, taken: int) -> tuple[list[Tensor], list[int]]:
    """The next batch_size queries and the limits of their responses, in tokens. Each pass over the prompts is shuffled anew.

    `taken`: how many prompts the batches before this one took. It and the seed decide everything here.
    """
    run, seed, queries, limits = job.run, job.config.seed, [], []
    rng = random.Random(f"lengths {seed} {taken}")
    for i in range(taken, taken + job.config.batch_size):
        epoch, at = divmod(i, len(job.prompts))
        prompt = job.prompts[shuffled(len(job.prompts), seed, epoch)[at]]
        if run.query_tokens is not None:
            prompt = prompt[:rng.randint(*span(run.query_tokens))]
        queries.append(torch.tensor(prompt))
        limits.append(rng.randint(*span(run.max_new_tokens)))
    return queries, limits


def learning_rate(run: RunConfig, config: PPOConfig, step: int) -> float:
    """Of update `step`, counted from 1: linear warmup, then the schedule. It never is quite 0."""
    if step <= run.warmup:
        return config.learning_rate * step / run.warmup
    done = (step - 1 - run.warmup) / (run.steps - run.warmup) if run.lr_schedule != "constant" else 0.0
    shape = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
    return config.learning_rate * shape[run.lr_schedule]


def text_of(job: Job, tokens: list[int] | Tensor) -> str:
    """A response as the score function reads it: without the EOS that ends it."""
    return job.tokenizer.decode(tokens, skip_special_tokens=True)


def scored_part(job: Job, response: Tensor) -> Tensor | None:
    """What of a response is scored: all of it, or up to the token that holds truncate_at; None where that never comes."""
    if job.run.truncate_at is None:
        return response
    texts = [job.tokenizer.decode([token]) for token in response.tolist()]
    end = next((i for i, text in enumerate(texts) if i >= job.run.truncate_after and job.run.truncate_at in text), None)
    return None if end is None else response[:end + 1]


def traces(job: Job, state: RunState, step: int) -> list[dict]:
    """The followed responses under the policy as it is now: every number that each of their tokens meets in PPO."""
    config, trainer, followed = job.config, job.trainer, state.followed
    if not followed:
        return []
    queries, responses = ([torch.tensor(pair[name]) for pair in followed] for name in ("query", "response"))
    rollout = trainer.rollout(queries, responses, [[row] for row in range(len(followed))])
    rewards, _, kl = compute_rewards([pair["score"] for pair in followed], rollout.logprobs, rollout.ref_logprobs,
                                     rollout.mask, trainer.kl_controller.value, config.kl_penalty, rollout.full_kl)
    advantages, returns = compute_advantages(rollout.values, rewards, rollout.mask, config.gamma, config.lam)
    columns = {"logprob": rollout.logprobs, "ref_logprob": rollout.ref_logprobs, "kl": kl, "reward": rewards,
               "value": rollout.values, "advantage": advantages, "return": returns}
    records = []
    for row, pair in enumerate(followed):
        n = len(pair["response"])
        trace = {"token": [job.tokenizer.decode([token]) for token in pair["response"]]}
        trace |= {name: [round(x, 6) for x in column[row, :n].tolist()] for name, column in columns.items()}
        records.append({"step": step, "follow": row, "query": job.tokenizer.decode(pair["query"]),
                        "response": text_of(job, pair["response"]), "score": pair["score"], "trace": trace})
    return records


def run_update(job: Job, state: RunState, batch: dict) -> tuple[dict, list[dict]]:
    """One update: queries, responses, scores, PPO. Returns its line of metrics and the samples to keep.

    `batch` receives the batch as it comes about, so that after an error there is something to look at.
    """
    run, trainer, start = job.run, job.trainer, time.perf_counter()
    step = batch["step"] = trainer.steps_done + 1
    for group in trainer.optimizer.param_groups:
        group["lr"] = learning_rate(run, job.config, step)

    queries, limits = next_batch(job, state.prompts_taken)
    batch["queries"] = [job.tokenizer.decode(query) for query in queries]
    responses = trainer.generate(queries, max_new_tokens=limits, temperature=job.config.temperature)
    responses = [response.cpu() for response in responses]
    batch["responses"] = [text_of(job, response) for response in responses]
    parts_scored = [scored_part(job, response) for response in responses]
    texts = [text_of(job, response if part is None else part) for response, part in zip(responses, parts_scored)]
    scores, batch["parts"] = job.reward.parts(batch["queries"], texts)
    batch["scores"] = [run.truncate_penalty if part is None else score for part, score in zip(parts_scored, scores)]

    samples = []
    if step == 1:
        state.followed = [{"query": query.tolist(), "response": response.tolist(), "score": score}
                          for query, response, score in zip(queries, responses, batch["scores"])][:run.follow]
        samples = traces(job, state, step=0)                            # before anything was learnt
    stats = batch["stats"] = trainer.step(queries, responses, batch["scores"])
    state.prompts_taken += len(queries)

    at_limit = [len(r) == limit and int(r[-1]) != trainer.eos_token_id for r, limit in zip(responses, limits)]
    seconds = time.perf_counter() - start
    metrics = {"step": step, "time": time.time(), "seconds": seconds,
               "tokens_per_second": sum(len(r) for r in responses) / seconds,
               "samples/distinct": len(set(batch["responses"])) / len(responses),
               "tokens/at_limit": sum(at_limit) / len(responses)}
    parts = batch["parts"] if len(batch["parts"]) > 1 else {}
    metrics |= {f"score/{name}": sum(scores) / len(scores) for name, scores in parts.items()}
    metrics |= {name: value for name, value in stats.items() if not isinstance(value, Tensor)}
    if step in (1, run.steps) or step % run.sample_every == 0:
        samples += [{"step": step, "query": batch["queries"][i], "response": batch["responses"][i],
                     "score": batch["scores"][i], "kl": float(stats["objective/kl_dist"][i]),
                     "parts": {name: scores[i] for name, scores in parts.items()}}
                    for i in range(min(run.samples, len(responses)))]
        samples += traces(job, state, step)
    return metrics, samples


# ---------------------------------------------------------------------------------------------------------------------
# the loop
# ---------------------------------------------------------------------------------------------------------------------

class Stop:
    """Within, the first SIGINT or SIGTERM is remembered until the update is over; a second one ends the process at once."""

    def __init__(self):
        self.signum = None

    def __enter__(self) -> Stop:
        main = threading.current_thread() is threading.main_thread()    # only it may set handlers
        self.before = {signum: signal.signal(signum, self.remember)
                       for signum in ((signal.SIGINT, signal.SIGTERM) if main else ())}
        return self

    def __exit__(self, *error) -> None:
        for signum, handler in self.before.items():
            signal.signal(signum, handler or signal.SIG_DFL)

    def remember(self, signum: int, frame) -> None:
        if self.signum is not None:
            os._exit(128 + signum)                                      # every file is whole at any moment
        self.signum = signum
        with suppress(OSError):
            os.write(2, b"\nfinishing this update, then saving; a second signal stops at once\n")   # print is not reentrant


class Result(NamedTuple):
    """How a run ended. status: 0, or 128 + the signal that stopped it."""
    status: int
    steps_done: int
    checkpoint: Path | None             # the newest one: the policy as a model folder, and all that --resume needs


def save(job: Job, state: RunState, logs: dict[str, Log]) -> Path:
    """Write a checkpoint, then remove the oldest; OSError leaves the old ones as they were."""
    state.sizes = {name: log.sync() for name, log in logs.items()}      # on the disk before the checkpoint that counts on them
    folder = job.out / f"checkpoint-{job.trainer.steps_done:06d}"
    save_state(folder, job.trainer, asdict(state))
    remove_old_checkpoints(job.out, job.run.keep_checkpoints)
    return folder


def update_report(out: Path) -> None:
    """Write report.html; without one the run is as good as with one."""
    try:
        if (out / "metrics.jsonl").stat().st_size:
            write_report(out)
    except (OSError, ValueError) as error:
        warn(f"no report: {error}")


def where_saved(out: Path) -> str:
    newest = checkpoints(out)[-1:]
    return f"the newest checkpoint is {newest[0]}" if newest else "there is no checkpoint yet"


def not_finite(job: Job, batch: dict, reason: str) -> FloatingPointError:
    """Write the batch down for inspection; returns the error to raise."""
    path = job.out / f"crash-step-{batch['step']:06d}.json"
    try:
        write_json(path, plain(batch | {"error": reason}))
        written = f"the batch is in {path}"
    except OSError as error:
        written = f"the batch could not be written ({error})"
    return FloatingPointError(f"update {batch['step']}: {reason}; {written}, {where_saved(job.out)}. What helps is a lower "
                              "learning_rate, max_grad_norm, or scores of a smaller size (--resume --allow-config-change)")


def out_of_memory(error: BaseException) -> bool:
    text = str(error)
    return (isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text
            or "not enough memory" in text)


def status_line(run: RunConfig, metrics: dict, seconds_left: float) -> str:
    """One update in one line."""
    left = f"{seconds_left // 3600:.0f}:{seconds_left % 3600 // 60:02.0f}:{seconds_left % 60:02.0f}"
    return (f"update {metrics['step']:{len(str(run.steps))}}/{run.steps}  score {metrics['ppo/mean_scores']:7.3f}  "
            f"kl {metrics['objective/kl']:6.2f}  entropy {metrics['ppo/policy/entropy']:5.2f}  "
            f"clipfrac {metrics['ppo/policy/clipfrac']:.3f}  value error {metrics['ppo/val/error']:7.3f}  "
            f"{metrics['tokens_per_second']:6.0f} tokens/s  {left} left")


def sample_line(sample: dict) -> str:
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in f"{sample['query']} |{sample['response']}")
    return f"    score {sample['score']:7.3f}  kl {sample['kl']:6.2f}  {text}"


def guarded_update(job: Job, state: RunState, stop: Stop) -> tuple[dict, list[dict]] | None:
    """run_update, and what its failures mean for the run. None: a person at the terminal wants to stop.

    What fails before the PPO step leaves the run as it was before the update, so that it can be saved and resumed.
    """
    trainer, batch = job.trainer, {}
    before = trainer.generator.get_state()
    try:
        metrics, samples = run_update(job, state, batch)
    except StopRun as error:
        trainer.generator.set_state(before)
        say(f"\n{error}")
        stop.signum = stop.signum or error.signum
        return None
    except RewardError as error:
        trainer.generator.set_state(before)
        raise RewardError(f"update {batch['step']}: {error}") from error.__cause__
    except FloatingPointError as error:
        raise not_finite(job, batch, str(error)) from error
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise MemoryError(
            f"update {batch['step']}: out of memory ({str(error).splitlines()[0]:.120}); {where_saved(job.out)}. Divide "
            "mini_batch_size by what you multiply gradient_accumulation_steps with (the update stays the same), take fewer "
            "max_new_tokens or query_tokens, or turn on gradient_checkpointing (--resume --allow-config-change)") from error
    if metrics["ppo/skipped_nonfinite"]:
        raise not_finite(job, batch, "the loss is not finite")
    return metrics, samples


def loop(job: Job, state: RunState, logs: dict[str, Log], stop: Stop) -> Result:
    """Updates until the last one, a signal or a failure: lines for each, and every so often a checkpoint and a report."""
    run, trainer = job.run, job.trainer
    first, start, saved = trainer.steps_done, time.monotonic(), trainer.steps_done
    failure, progress = None, Progress("PPO", run.steps, first)
    while trainer.steps_done < run.steps and stop.signum is None:
        try:
            update = guarded_update(job, state, stop)
        except RewardError as error:                                    # what was learnt before it is saved below
            failure, update = error, None
        if update is None:
            break
        metrics, samples = update
        step = metrics["step"]
        logs["metrics.jsonl"].write([metrics])
        logs["samples.jsonl"].write(samples)
        if run.one_line and not run.quiet:
            brief = f"score {metrics['ppo/mean_scores']:.3f}, KL {metrics['objective/kl']:.2f}"
            progress.show(step, brief) if step < run.steps else progress.finish(brief)
        elif not run.quiet:
            pace = (time.monotonic() - start) / (step - first)
            say("\n".join([status_line(run, metrics, pace * (run.steps - step)),
                           *(sample_line(sample) for sample in samples if "trace" not in sample)]))
        if step % run.save_every == 0 and step < run.steps:
            try:
                save(job, state, logs)
                saved = step
            except OSError as error:
                warn(f"no checkpoint of update {step}: {error}; training goes on, {where_saved(job.out)}")
        if step % run.report_every == 0 and step < run.steps:
            update_report(job.out)
    if run.one_line and not run.quiet and trainer.steps_done < run.steps:
        progress.write(f"PPO: {trainer.steps_done} of {run.steps} steps are done", last=True)
    if trainer.steps_done > saved:
        save(job, state, logs)                                          # the last one: here a full disk is an error
    if failure is not None:
        raise RewardError(f"{failure}; {where_saved(job.out)}: mend the reward and --resume") from failure.__cause__
    return Result(128 + stop.signum if stop.signum else 0, trainer.steps_done, next(reversed(checkpoints(job.out)), None))


def prepare(run: RunConfig, config: PPOConfig, source: str, score_fn: ScoreFn | None) -> Job:
    """Load prompts, reward and model, the cheapest first. source: what to load the policy from."""
    out, device, dtype = Path(run.out), torch.device(run.device), pick_dtype(run.dtype)
    texts = load_prompts(run.prompts)
    tokenizer = load_tokenizer(source)
    prompts = [tokenizer.encode(text) for text in texts]
    reward = (load_reward(run.reward, device, dtype, out / "labels.jsonl") if score_fn is None
              else Reward([(1.0, run.reward, score_fn)]))
    model = GPT2WithValueHead.from_pretrained(source, device=device, dtype=dtype)
    longest = max(range(len(prompts)), key=lambda i: len(prompts[i]))
    n, limit, n_positions = len(prompts[longest]), span(run.max_new_tokens)[1], model.config.n_positions
    if run.query_tokens is not None:
        n = min(n, span(run.query_tokens)[1])
    if n + limit > n_positions:
        raise ValueError(f"the prompt {texts[longest]!r:.60} comes to {n} tokens, and {n} + {limit} (max_new_tokens) are more "
                         f"than the model's {n_positions} positions: cut prompts with query_tokens, or lower max_new_tokens")
    return Job(run, config, out, prompts, tokenizer, reward, PPOTrainer(config, model, tokenizer=tokenizer))


def restore(job: Job, checkpoint: Path | None) -> RunState:
    """Continue from a checkpoint; settings that were changed since then hold from here on."""
    if checkpoint is None:
        return RunState()
    state = RunState(**load_state(checkpoint, job.trainer))
    for group in job.trainer.optimizer.param_groups:
        group["eps"] = job.config.adam_eps
    if not job.config.adap_kl_ctrl:
        job.trainer.kl_controller.value = job.config.init_kl_coef
    return state


def train(run: RunConfig, config: PPOConfig, resume: bool = False, allow_config_change: bool = False,
          score_fn: ScoreFn | None = None) -> Result:
    """Run PPO as `run` and `config` say, into the folder run.out.

    Args:
        resume: continue the run in that folder from its newest whole checkpoint; from the beginning if it has none yet.
        allow_config_change: let a resumed run go on with other settings than it was begun with.
        score_fn: (queries, responses) -> scores, in the place of run.reward, which then is only its name.

    SIGINT or SIGTERM, or a person who stops at the terminal, end it early with everything saved; see Result.

    Raises:
        ValueError, OSError: bad settings or files, before the first update; OSError also if the last checkpoint cannot be
        written. RewardError: the score function failed; all updates before are saved. FloatingPointError: the loss or the
        logits are not finite. MemoryError: with advice. After the last two the newest checkpoint is as it was.
    """
    run = replace(run, device=str(pick_device(run.device)))
    out, record = Path(run.out), describe(run, config)
    with lock(out):
        checkpoint = open_folder(out, record, resume, allow_config_change)
        job = prepare(run, config, str(checkpoint or run.model), score_fn)
        state = restore(job, checkpoint)
        write_json(out / "config.json", record)
        logs = {name: Log(out / name, state.sizes.get(name, 0)) for name in ("metrics.jsonl", "samples.jsonl")}
        talk = not (run.quiet or run.one_line)
        if talk:
            say(f"{run.model} on {run.device}, {len(job.prompts)} prompts, reward {run.reward}, {config.batch_size} responses "
                f"an update; {job.trainer.steps_done} of {run.steps} updates are done -> {out}")
        with Stop() as stop:
            try:
                result = loop(job, state, logs, stop)
            finally:
                update_report(out)
                for log in logs.values():
                    log.file.close()
        if talk:
            saved = f"the policy is the model folder {result.checkpoint}, the report {out / 'report.html'}"
            say(f"{result.steps_done} of {run.steps} updates are done; {saved if result.checkpoint else 'nothing was saved'}")
    return result
