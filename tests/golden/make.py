"""Record the numbers of TRL 0.11.4 and transformers that tests/test_golden.py compares ours with.

    pip install -r tests/peers/requirements.txt
    python tests/golden/make.py            # rewrites the files beside it and prints what has changed

trl_0_11_4.json          three PPO steps with two settings: the inputs, the numbers of each token, the statistics
trl_0_11_4.safetensors   the weights before, of the reference, and after the steps
transformers_4_46_3.json logits, greedy responses and filtered distributions of the policy before the steps

TRL runs in double precision, so that the numbers hold on every machine.
"""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import version
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent), str(HERE.parent / "peers")]

import trl_steps as trl  # noqa: E402
from golden.steps import EOS, Problem, make_problem  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import TopKLogitsWarper, TopPLogitsWarper  # noqa: E402

CASES = {
    "whole batches": {"learning_rate": 1e-3},
    "small minibatches": {"learning_rate": 1e-3, "mini_batch_size": 2, "gamma": 0.95, "lam": 0.8, "cliprange": 0.05,
                          "cliprange_value": 0.01, "vf_coef": 0.5, "score_clip": 1.0, "target": 1.0, "horizon": 50.0},
}
FILTERS = [{"top_k": 5}, {"top_p": 0.8}, {"top_k": 12, "top_p": 0.5}]


def rounded(x: torch.Tensor | float) -> list | float:
    """Twelve digits, more than the comparison asks for."""
    return [rounded(item) for item in x] if isinstance(x, list) else float(f"{x:.12g}")


def record_trl(problem: Problem) -> tuple[dict, dict[str, torch.Tensor]]:
    batches = [{"queries": [q.tolist() for q in batch.queries], "responses": [r.tolist() for r in batch.responses],
                "scores": [float(score) for score in batch.scores], "orders": batch.orders} for batch in problem.batches]
    cases = {}
    tensors = {f"{role}/{name}": w for role in ("weights", "reference") for name, w in getattr(problem, role).items()}
    for case, settings in CASES.items():
        steps = [trl.over_the_batch(step) for step in trl.trl_steps(problem, **settings)]
        cases[case] = {"settings": settings, "steps": [
            {"tokens": {name: rounded(x.tolist()) for name, x in sorted(step.tokens.items())},
             "stats": {name: rounded(x) for name, x in sorted(step.stats.items())},
             "kl_coef": rounded(step.kl_coef)} for step in steps]}
        for i, step in enumerate(steps):
            tensors |= {f"{case}/{i}/{name}": w.float() for name, w in step.weights.items()}
    return {"batches": batches, "cases": cases}, tensors


def greedy(model, query: torch.Tensor, eos: int | None) -> list[int]:
    rows = model.generate(query[None], attention_mask=torch.ones_like(query)[None], do_sample=False, max_new_tokens=8,
                          eos_token_id=eos, pad_token_id=0)
    return rows[0, len(query):].tolist()


def record_transformers(problem: Problem) -> dict:
    model = trl.make_policy(problem.weights, torch.float64).pretrained_model
    queries = problem.batches[0].queries
    logits = 3 * torch.randn(31, generator=torch.Generator().manual_seed(0))
    filtered = []
    for kept in FILTERS:
        row = TopKLogitsWarper(kept["top_k"])(None, logits[None]) if "top_k" in kept else logits[None]
        row = TopPLogitsWarper(kept["top_p"])(None, row) if "top_p" in kept else row
        filtered.append(kept | {"probs": rounded(row.softmax(-1)[0].tolist())})
    with torch.no_grad():
        last = [model(query[None]).logits[0, -1] for query in queries]
    return {"queries": [query.tolist() for query in queries], "eos_token_id": EOS,
            "logits": [rounded(row.tolist()) for row in last],
            "greedy": [greedy(model, query, None) for query in queries],
            "greedy_until_eos": [greedy(model, query, EOS) for query in queries],
            "filter_logits": logits.tolist(), "filtered": filtered}


def differences(old, new, place: str = "") -> list[str]:
    """What changed between two JSON values, one line a place."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = [f"{place}/{key}: {'new' if key not in old else 'gone'}" for key in sorted(old.keys() ^ new.keys())]
        return lines + [line for key in sorted(old.keys() & new.keys())
                        for line in differences(old[key], new[key], f"{place}/{key}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [line for i, pair in enumerate(zip(old, new)) for line in differences(*pair, f"{place}[{i}]")]
    return [] if old == new else [f"{place}: {old} -> {new}"]


def write_json(path: Path, content: dict) -> None:
    versions = {name: version(name) for name in ("accelerate", "numpy", "torch", "transformers", "trl")}
    content = {"versions": versions, **content}
    text = json.dumps(content, indent=1)
    text = re.sub(r"\[([^][{}]*)\]", lambda match: "[" + " ".join(match[1].split()) + "]", text)      # a list, a line
    changed = differences(json.loads(path.read_text()), content) if path.exists() else ["new"]
    path.write_text(text + "\n", encoding="utf-8")
    print(path.name, *(changed or ["unchanged"]), sep="\n  ")


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    old = load_file(path) if path.exists() else {}
    save_file({name: w.contiguous() for name, w in tensors.items()}, path)
    kept = [name for name, w in tensors.items() if name in old and old[name].shape == w.shape]
    changed = [f"{name}: gone, new, or of another shape" for name in sorted((old.keys() | tensors.keys()) - set(kept))]
    changed += [f"{name}: by {(old[name] - tensors[name]).abs().max():.3g}" for name in kept
                if not torch.equal(old[name], tensors[name])]
    print(path.name, *(changed or ["unchanged"]), sep="\n  ")


if __name__ == "__main__":
    problem = make_problem()
    trl_numbers, weights = record_trl(problem)
    write_json(HERE / "trl_0_11_4.json", trl_numbers)
    write_tensors(HERE / "trl_0_11_4.safetensors", weights)
    write_json(HERE / "transformers_4_46_3.json", record_transformers(problem))
