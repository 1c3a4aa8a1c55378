"""A training run: prompts in; a folder of metrics, samples, checkpoints and a report out (run_folder.py lists its files).

    python -m minippo train --model gpt2 --prompts prompts.txt --reward rule:sentiment --out runs/x

A run that was killed at any moment continues with resume=True, and then writes the same metrics and weights as one that was not
(on a CPU with as many threads; times aside). Whatever else ends it, what was learnt is saved, if an update was not cut in two.
"""

import math
import os
import re
import signal
import sys
import time
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Callable, NamedTuple, NoReturn

import torch

from ..distributed import of_each, rank, start, world_size
from ..files.atomic import write_json
from ..files.checkpoint import load_state
from ..files.tokenizer import load_tokenizer
from ..policy import GPT2WithValueHead, create_reference_model
from ..ppo import PPOConfig, PPOTrainer
from ..report import write_report
from ..scoring.human import signals_call
from ..scoring.reward_model import RewardModel
from ..scoring.rewards import Reward, RewardError, ScoreFn, StopRun, parse_reward
from .batch import run_update
from .config import RunConfig, describe, pick_device, pick_dtype, place, span
from .data import check_vocabulary, cut, load_prompts, read_bytes
from .evaluate import Job, due, evaluate
from .run_folder import (LOGS, OURS, Log, RunState, check_folder, checkpoints, lock, model_source, open_folder, plain,
                         read_record, save, where_saved)
from .terminal import Progress, sample_line, say, status_line, warn


class Stop:
    """The first signal is remembered until the update is over; a second one ends the process at once."""
    signum, asked = None, 0

    def agreed(self) -> bool:
        """Whether to stop now: on all processes after the same update."""
        agreed = max(of_each("the next update", self.signum or 0))      # one that comes meanwhile is for the next time
        self.signum = agreed or self.signum
        return agreed > 0

    def __call__(self, signum: int, frame) -> None:
        self.asked += signal.Signals(signum).name != "SIGHUP"           # which comes more than once, or with a SIGTERM
        if self.asked > 1 and world_size() == 1:                        # torchrun repeats what a terminal has sent already
            os._exit(128 + signum)                                      # every file is whole at any moment
        self.signum = self.signum or signum
        if sys.stderr is not None and rank() == 0:                      # else 2 may be the number of any file
            with suppress(OSError):                                     # print is not reentrant
                os.write(2, b"\nfinishing this update, then saving; a second signal stops at once\n")


class Result(NamedTuple):
    """How a run ended. status: 0, or 128 + the signal that stopped it."""
    status: int
    steps_done: int
    checkpoint: Path | None             # the newest one: the policy as a model folder, and all that --resume needs


def update_report(out: Path, live: int = 0) -> None:
    """Write report.html; without one the run is as good as with one. live: see write_report."""
    try:
        if rank() == 0 and (out / "metrics.jsonl").stat().st_size:
            write_report(out, live=live)
    except Exception as error:
        warn(f"no report: {error!r}")


def fail(job: Job, batch: dict, error: BaseException) -> NoReturn:
    """Raise what ended the run again, in words: what happened, what is saved, what helps."""
    step, saved, cause = batch.get("step", job.trainer.steps_done), where_saved(job.out), error
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, RewardError):
        kind, text, cause = RewardError, f"{error}; {saved}: mend the reward", error.__cause__
    elif isinstance(error, FloatingPointError):
        crash = job.out / f"crash-step-{step:06d}.json"
        with suppress(OSError):                                         # where there is no room for it
            write_json(crash, plain(batch | {"error": str(error)}))
            saved = f"the batch is in {crash}, {saved}"
        kind, text = FloatingPointError, f"{error}; {saved}. Lower learning_rate or max_grad_norm, or take smaller scores"
    elif isinstance(error, (MemoryError, torch.OutOfMemoryError)) or re.search("(can't allocate|not enough) memory", str(error)):
        kind, text = MemoryError, (
            f"out of memory ({reason:.120}); {saved}. Divide mini_batch_size by what you multiply gradient_accumulation_steps with "
            "(the update stays the same), take fewer max_new_tokens or query_tokens, or turn on gradient_checkpointing")
    elif job.config.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        kind, text = OSError, (f"torch.compile failed ({type(error).__name__}: {reason:.200}); {saved}. Install a C++ compiler, "
                               "on a GPU Triton, too, or leave --compile out")
    else:
        warn(f"update {step} failed; {saved}")
        raise error
    raise kind(f"update {step}: {text}, then --resume (a changed setting needs --allow-config-change)") from cause


def loop(job: Job, state: RunState, logs: dict[str, Log], stop: Stop, on_update: Callable[[dict], object] | None) -> Result:
    """Updates until the last one, a signal or a failure: lines for each, and every so often a checkpoint and a report.

    A failure before the optimizer's first step leaves the run as before the update, to be saved and resumed; after it, or with
    numbers that are not finite, the newest checkpoint stays as it is.
    """
    run, trainer, failure, batch, moved = job.run, job.trainer, None, {}, []
    progress, saved, reported = Progress("PPO", run.steps, trainer.steps_done), trainer.steps_done, -math.inf
    trainer.optimizer.register_step_pre_hook(lambda *args: moved.append(True))

    def checkpoint(must: bool, best: bool = False) -> bool:
        nonlocal saved
        try:
            save(job.out, trainer, state, logs, None if best else run.keep_checkpoints)
            saved = saved if best else trainer.steps_done
            return True
        except Exception as error:                                      # a full disk, say
            if must:
                raise OSError(f"update {trainer.steps_done} is not saved: {error}; {where_saved(job.out)}. Make room, then --resume") from error
            warn(f"no checkpoint of update {trainer.steps_done}: {error}; {where_saved(job.out)}")
            return False

    def far() -> bool:                                                  # KL has stayed above stop_kl
        return run.stop_kl is not None and len(state.kls) == 3 and min(state.kls) > run.stop_kl

    try:
        while trainer.steps_done < run.steps and not stop.agreed() and not far():
            batch, generator = {}, trainer.generator.get_state()
            metrics, samples = run_update(job, state, batch)
            if metrics["ppo/skipped_nonfinite"]:
                raise FloatingPointError("the loss is not finite")
            moved.clear()
            step, state.kls = metrics["step"], [*state.kls, metrics["objective/kl"]][-3:]
            try:
                if job.eval_prompts and due(step, run.eval_every, run.steps):
                    evaluate(job, metrics, samples)
            finally:
                logs["metrics.jsonl"].write([metrics])
                logs["samples.jsonl"].write(samples)
            if run.one_line and not run.quiet:
                brief = f"score {metrics['ppo/mean_scores']:.3f}, KL {metrics['objective/kl']:.2f}"
                progress.show(step, brief) if step < run.steps else progress.finish(brief)
            elif not run.quiet:
                shown = [sample_line(sample) for sample in samples if not {"trace", "eval"} & sample.keys()]
                if "eval/score" in metrics:
                    evaluated = (f"{name} {metrics[f'eval/{name}']:.3f}" for name in ("score", "kl", "length", "distinct"))
                    shown.append(f"    evaluation: {'  '.join(evaluated)}")
                say("\n".join([status_line(metrics, run.steps, progress.seconds_left(step)), *shown]))
            if run.keep_best and metrics.get(run.best_metric, -math.inf) > state.best.get(run.best_metric, -math.inf):
                before, state.best = state.best, state.best | {run.best_metric: metrics[run.best_metric]}
                state.best = state.best if checkpoint(must=False, best=True) else before
            if step % run.save_every == 0 and step < run.steps:
                checkpoint(must=False)
            if step < run.steps and (step % run.report_every == 0 or time.monotonic() - reported > 60):
                update_report(job.out, live=30)
                reported = time.monotonic()
            if on_update is not None and rank() == 0:
                on_update(metrics)
    except BaseException as error:                                      # SystemExit, too: what was learnt is saved below
        failure = error
        if batch.get("step") == trainer.steps_done + 1:                 # this update is not done
            trainer.generator.set_state(generator)
    if isinstance(failure, StopRun):                                    # a person at the terminal
        say(f"\n{failure}")
        stop.signum, failure = stop.signum or failure.signum, None
    if far() and trainer.steps_done < run.steps:
        warn(f"KL was {', '.join(f'{kl:.3g}' for kl in state.kls)} in the last three updates, above --stop-kl {run.stop_kl:g}: this is "
             "the end; --resume goes on with --stop-kl none or a larger one")
    if run.one_line and not run.quiet and trainer.steps_done < run.steps:
        progress.write(f"PPO: {trainer.steps_done} of {run.steps} steps are done", last=True)
    if trainer.steps_done > saved and not moved and not isinstance(failure, FloatingPointError):
        checkpoint(must=failure is None)
    if failure is not None:
        fail(job, batch, failure)
    return Result(128 + stop.signum if stop.signum else 0, trainer.steps_done, next(reversed(checkpoints(job.out)), None))


def load_reward(spec: str, device: torch.device, dtype: torch.dtype | None, labels: Path, shared: bool = False) -> Reward:
    """The reward that `spec` describes, its reward models on `device`; labels: the file for a person's ratings."""
    return parse_reward(spec, lambda folder: RewardModel.from_pretrained(place(folder, "model:"), device, dtype).score, labels, shared)


def load_policy(source: str, device: torch.device, dtype: torch.dtype | None) -> tuple:
    """Tokenizer and policy of a model folder or public name; ValueError where they do not fit each other."""
    with warnings.catch_warnings():                                     # PPO begins with a value head of zeros, sampling needs none
        warnings.filterwarnings("ignore", ".* has no value head")
        tokenizer, model = load_tokenizer(source), GPT2WithValueHead.from_pretrained(source, device, dtype)
    check_vocabulary(tokenizer, model.config.vocab_size, source)
    return tokenizer, model


def prepare(run: RunConfig, config: PPOConfig, texts: list[str], source: str, score_fn: ScoreFn | None) -> Job:
    """Load reward and models. texts: the prompts; source: what to load the policy from."""
    out, device, dtype = Path(run.out), torch.device(run.device), pick_dtype(run.dtype)
    reward = score_fn or load_reward(run.reward, device, dtype, out / "labels.jsonl", run.score_everywhere)
    reward = reward if isinstance(reward, Reward) else Reward([(1.0, run.reward, score_fn)], run.score_everywhere)
    tokenizer, model = load_policy(source, device, dtype)
    reference = run.ref_model and load_policy(model_source(run.ref_model, "--ref-model"), device, dtype)[1]
    limit, longest = span(run.max_new_tokens)[1], span(run.query_tokens or sys.maxsize)[1]
    eval_texts = load_prompts(run.eval_prompts) if run.eval_prompts else []
    prompts, eval_prompts = ([tokenizer.encode(text) for text in some] for some in (texts, eval_texts))
    eval_prompts = [cut(tokenizer, tokens, longest) for tokens in eval_prompts]
    n, text = max((len(cut(tokenizer, tokens, longest)), text) for tokens, text in zip(prompts + eval_prompts, texts + eval_texts))
    if n + limit > model.config.n_positions:
        raise ValueError(f"the prompt {text!r:.60} comes to {n} tokens, and {n} + {limit} (max_new_tokens) are more than the "
                         f"model's {model.config.n_positions} positions: cut prompts with query_tokens, or lower max_new_tokens")
    trainer = PPOTrainer(config, model, reference and create_reference_model(reference), tokenizer)
    return Job(run, config, out, prompts, eval_prompts, tokenizer, reward, trainer)


def train(run: RunConfig, config: PPOConfig, resume: bool = False, allow_config_change: bool = False,
          score_fn: ScoreFn | Reward | None = None, on_update: Callable[[dict], object] | None = None) -> Result:
    """Run PPO as `run` and `config` say, into the folder run.out.

    resume: continue the run there from its newest whole checkpoint, or from the beginning if it has none yet.
    allow_config_change: let a resumed run go on with other settings than it was begun with.
    score_fn: (queries, responses) -> scores, or a Reward, in the place of run.reward, which then is only its name.
    on_update: called after each update with its line of metrics.jsonl, a dictionary of numbers; README has examples.
    SIGINT, SIGTERM, SIGHUP, or a person who stops at the terminal, end it early with everything saved; see Result.

    ValueError, OSError: bad settings or files, before the first update; OSError also if the last checkpoint cannot be written.
    RewardError: the score function raised; all updates before are saved. FloatingPointError: the loss or the logits are not
    finite; the newest checkpoint is as it was. MemoryError: with advice.
    """
    start()                                                             # of several processes, where torchrun started them
    run = replace(run, device=str(pick_device(run.device)), out=str(place(run.out, "--out")))
    out, prompts = Path(run.out), read_bytes(run.prompts)
    texts, record = load_prompts(run.prompts, prompts), describe(run, config, prompts)
    if rank() == 0:
        check_folder(out, OURS, bool(read_record(out)), "run's folder")
    with lock(out):
        checkpoint = open_folder(out, record, resume, allow_config_change) if rank() == 0 else None
        checkpoint = of_each("the run's folder", checkpoint)[0]
        job = prepare(run, config, texts, str(checkpoint or model_source(run.model)), score_fn)
        state = RunState() if checkpoint is None else RunState(**load_state(checkpoint, job.trainer))
        if rank() == 0:
            write_json(out / "config.json", record)
        logs = {name: Log(out / name, state.sizes.get(name, 0)) for name in LOGS}
        stop, talk = Stop(), say if not (run.quiet or run.one_line) else lambda text: None
        talk(f"{run.model} on {run.device}, {len(texts)} prompts, {run.reward}; updates: {job.trainer.steps_done}/{run.steps}")
        with signals_call(stop, always=(signal.SIGINT, signal.SIGTERM)):
            try:
                result = loop(job, state, logs, stop, on_update)
            finally:
                update_report(out)
                for log in logs.values():
                    log.file.close()
        report = f"; the report is {out / 'report.html'}" if (out / "report.html").exists() else ""
        talk(f"updates: {result.steps_done}/{run.steps}; {where_saved(out)}{report}")
    return result
