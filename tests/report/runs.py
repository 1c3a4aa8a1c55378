"""Run folders for the tests of the report: what `train` would have written, made up."""

import json
import math
from pathlib import Path

CONFIG = {"model": "gpt2", "reward": "0.8*model:rm + 0.2*rule:length", "steps": 20, "seed": 7,
          "ppo": {"batch_size": 64, "learning_rate": 1.41e-5, "target": 6, "adap_kl_ctrl": True}, "run": {"out": "x"}}
TOKENS = [" so", " good", "\n", "<script>", "</script>", "\"'&"]


def healthy(step: int, n: int = 20) -> dict:
    """One update of a run without faults: score -0.5 to 1.5, KL 0 to 5, one part that rises with the score."""
    x = (step - 1) / (n - 1)
    wave = 0.02 * math.sin(5 * step)
    return {"step": step, "time": 1.7e9 + step, "seconds": 2.0, "tokens_per_second": 640.0,
            "ppo/mean_scores": -0.5 + 2 * x + wave, "ppo/std_scores": 0.8, "score/model:rm": 2 * x + wave,
            "objective/kl": 5 * x + wave, "ppo/policy/entropy": 2.5 - x + wave, "ppo/policy/clipfrac": 0.1 + wave,
            "ppo/val/var_explained": -0.5 + 1.3 * x, "ppo/loss/policy": -0.02 + wave, "ppo/loss/value": 0.5 - 0.4 * x,
            "ppo/learning_rate": 1.41e-5, "ppo/skipped": 0, "tokens/responses_len_mean": 18.0,
            "tokens/at_limit": 0.4, "samples/distinct": 0.95}


def run_of(n: int = 20, **changed) -> list:
    """A healthy run in which some metrics are a function of the update; a key's "__" stands for "/"."""
    changes = {key.replace("__", "/"): value for key, value in changed.items()}
    return [{**healthy(step, n), **{key: value(step) for key, value in changes.items()}} for step in range(1, n + 1)]


def followed(step: int, tokens=TOKENS, follow: int = 0) -> dict:
    """A followed response; token k has logprob -k - step / 100 and a reward only at its end."""
    numbers = [-k - step / 100 for k in range(len(tokens))]
    trace = {"token": tokens, "logprob": numbers, "ref_logprob": [-k for k in range(len(tokens))],
             "kl": [-step / 100] * len(tokens), "reward": [0] * (len(tokens) - 1) + [1.5], "value": numbers,
             "advantage": [k - 2 for k in range(len(tokens))], "return": numbers}
    return {"step": step, "follow": follow, "query": "the film", "response": "".join(tokens), "score": 1.5, "trace": trace}


def make_run(folder: Path, metrics=None, samples=None, config=CONFIG, tail: str = "") -> Path:
    """A run folder; `tail` is what a crash left at the end of metrics.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    metrics = run_of() if metrics is None else metrics
    if samples is None:
        shown = {"query": "the film", "response": " <b>was</b> & is\n", "kl": 0.25, "parts": {"model:rm": 0.125}}
        samples = [{"step": step, **shown, "score": step / 10} for step in (1, 5, 10, 15, 20)]
        samples += [followed(step) for step in (1, 10, 20)]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics) + tail)
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    return folder
