"""The sweep behind tuning.md: what the learning rate, the epochs, the minibatch, the batch and the KL target do to the demo.

    python -m tutorial.tuning               # print the tables of the page from tests/golden/tuning.csv and tuning_step.csv
    python -m tutorial.tuning --draw        # draw its figures from them, images/tuning_*.svg, and refresh its tables
    python -m tutorial.tuning --run         # measure what they lack; all of it takes about twenty minutes of one core for each seed

Everything is the demo's (minippo/training/demo.py): its writer and its reward model with seed 0, made once into runs/tuning, its
settings, its schedule of the learning rate. Different from it: 32 updates, 40 there; a fixed kl_coef, so that all settings maximise
the same thing, score - kl_coef * KL; and what a row of the CSV names. `seed` is that of PPO: other queries, other samples. A result
is a mean over the last 512 responses. Each row is written when its run is over, and what the CSV has is not run again.
"""

from __future__ import annotations

import argparse
import csv
import math
import re
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Callable, Sequence

import torch

from minippo import GPT2Config, GPT2WithValueHead, PPOConfig, PPOTrainer, load_tokenizer
from minippo.policy import response_logprobs
from minippo.scoring.reward_model import RewardModel
from minippo.training.batch import learning_rate
from minippo.training.data import make_reviews, review_queries, true_score
from minippo.training.demo import RESPONSE_TOKENS, DemoConfig, make_reward_model, make_writer, plan_ppo
from minippo.training.pretrain import PretrainConfig, pretrain

from . import figures as fig
from .build import HERE

GOLDEN = HERE.parent / "tests" / "golden"
PAGE = HERE / "tuning.md"
RUNS, STEPS = GOLDEN / "tuning.csv", GOLDEN / "tuning_step.csv"
WORK = Path("runs/tuning")                  # the models that are made once
SEEDS = range(2)
LAST = 512                                  # responses, the last ones of a run, its result
KL_COEF, SMALL_KL_COEF = 0.15, 0.05         # fixed; the first one with a target
DEFAULT = {"responses": 2048, "learning_rate": 1e-3, "ppo_epochs": 2, "batch_size": 64, "mini_batch_size": 32,
           "target": "", "length": "", "horizon": "", "target_kl": ""}
RATES, EPOCHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), (1, 2, 4)
SOME_RATES, MINIBATCHES, BATCHES = (3e-4, 1e-3, 3e-3), (8, 32, 64), (16, 64, 256)
TARGETS, LENGTHS = (1.5, 3, 6), (12, 24, 48)
LONGER = ((3e-4, 6144), (1e-4, 20480))      # about as much learning rate times steps as 1e-3 and 2048


def batch_of(size: int) -> dict:
    return {"batch_size": size, "mini_batch_size": size // 2}


def target_of(target: float, length: int) -> dict:
    return {"responses": 4096, "target": target, "length": length, "horizon": 200}


NOISY = {"mini_batch_size": 8}
HASTY = target_of(TARGETS[0], LENGTHS[-1]) | {"horizon": 50}        # a controller that is too quick


# the runs, by what they differ in from DEFAULT
BY_EPOCHS = [{"learning_rate": rate, "ppo_epochs": epochs} for rate in RATES for epochs in EPOCHS]
BY_MINIBATCH = [{"learning_rate": rate, "mini_batch_size": size} for rate in SOME_RATES for size in MINIBATCHES]
BY_BATCH = [{"learning_rate": rate} | batch_of(size) for rate in SOME_RATES for size in BATCHES]
BY_STOPPING = [{"learning_rate": rate, "ppo_epochs": 4, "target_kl": target_kl} for rate in RATES[2:] for target_kl in ("", 0.02)]
BY_TARGET = [target_of(target, length) for target in TARGETS for length in LENGTHS]
BY_RESPONSES = [{"learning_rate": rate, "responses": responses} for rate, responses in ((1e-3, 2048), *LONGER)]


def sweep() -> list[dict]:
    """All of them with all seeds, each once; empty: fixed kl_coef; until EOS; no early stopping."""
    runs = BY_EPOCHS + BY_MINIBATCH + BY_BATCH + BY_STOPPING + BY_TARGET + [HASTY] + BY_RESPONSES
    rows = [{"seed": seed} | DEFAULT | run for seed in SEEDS for run in runs]
    return list({tuple(row.items()): row for row in rows}.values())


# --- the CSVs ---------------------------------------------------------------------------------------------------------

def read_rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def select(rows: list[dict[str, str]], **settings) -> list[dict[str, str]]:
    """The rows with these settings."""
    return [row for row in rows if all(row[name] == str(value) for name, value in settings.items())]


def fill(path: Path, wanted: Sequence[dict], measure: Callable[[dict], dict]) -> None:
    """Measure the rows that the CSV lacks, and append each when it is there."""
    done = read_rows(path)
    for settings in wanted:
        if not select(done, **settings):
            results = {name: x if isinstance(x, int) else f"{x:.5g}" for name, x in measure(settings).items()}
            print(*(f"{name} {value}" for name, value in (settings | results).items() if value != ""), flush=True)
            new = not path.exists()
            with path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, settings | results, lineterminator="\n")
                if new:
                    writer.writeheader()
                writer.writerow(settings | results)


# --- one run ----------------------------------------------------------------------------------------------------------

def make_models(out: Path = WORK) -> None:
    """The demo's writer and reward model, where they are not there yet."""
    out.mkdir(parents=True, exist_ok=True)
    for make, folder in ((make_writer, "pretrained"), (make_reward_model, "reward-model")):
        if not (out / folder).exists():
            make(DemoConfig(), out)


def train(settings: dict, out: Path = WORK) -> dict:
    """PPO from the demo's writer with these settings; returns what the CSV keeps of it.

    With a length there is no EOS, so that every response has that many tokens, and the score is true_score, as the reward model
    knows whole reviews only; with a target a controller that is quick enough for so few responses moves kl_coef.
    """
    judge, tokenizer = RewardModel.from_pretrained(out / "reward-model"), load_tokenizer(out / "pretrained")
    seed, size, length, target = (settings[name] for name in ("seed", "batch_size", "length", "target"))
    steps = settings["responses"] // size
    run, config = plan_ppo(DemoConfig(seed=seed, steps=steps, batch_size=size, kl_coef=KL_COEF if target == "" else SMALL_KL_COEF), out)
    config = replace(config, learning_rate=settings["learning_rate"], ppo_epochs=settings["ppo_epochs"],
                     mini_batch_size=settings["mini_batch_size"], adap_kl_ctrl=target != "", target=float(target or 6),
                     horizon=float(settings["horizon"] or 1),
                     early_stopping=settings["target_kl"] != "", target_kl=float(settings["target_kl"] or 1))
    trainer = PPOTrainer(config, GPT2WithValueHead.from_pretrained(str(out / "pretrained")), tokenizer=tokenizer)
    openings, history = review_queries(settings["responses"], seed=4 * seed + 2), []
    for step in range(steps):
        trainer.optimizer.param_groups[0]["lr"] = learning_rate(run, config, step + 1)
        some = openings[step * size:(step + 1) * size]
        queries = [torch.tensor(tokenizer.encode(opening)) for opening in some]
        sampled = trainer.generate(queries, max_new_tokens=length or RESPONSE_TOKENS,
                                   eos_token_id=None if length else tokenizer.eos_token_id)
        texts = [tokenizer.decode(response.tolist(), skip_special_tokens=True) for response in sampled]
        true_scores = [true_score(opening + text) for opening, text in zip(some, texts)]
        scores = true_scores if length else judge.score(some, texts)
        stats = trainer.step(queries, sampled, scores)
        history.append({"score": statistics.fmean(scores), "true_score": statistics.fmean(true_scores), "kl": stats["objective/kl"],
                        "kl_coef": stats["objective/kl_coef"], "tokens": statistics.fmean(map(len, sampled)),
                        "distinct": len(set(texts)) / size, "clipfrac": stats["ppo/policy/clipfrac"],
                        "approxkl": stats["ppo/policy/approxkl"], "skipped": stats["ppo/skipped"],
                        "early_stopped": stats["ppo/early_stopped"], "optimizer_steps": stats["ppo/updates"]})
    mean = lambda rows, name: statistics.fmean(row[name] for row in rows)
    return ({name: mean(history[-(LAST // size):], name) for name in ("score", "true_score", "kl", "kl_coef", "tokens", "distinct")}
            | {"clipfrac": mean(history, "clipfrac"), "max_approxkl": max(row["approxkl"] for row in history)}
            | {name: sum(row[name] for row in history) for name in ("skipped", "early_stopped", "optimizer_steps")})


# --- one update of models of several sizes ------------------------------------------------------------------------------

SHAPES = ((32, 2), (64, 2), (128, 2), (256, 2), (512, 2), (128, 8))        # width, layers
STEP_RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)


def make_sized(width: int, layers: int, out: Path = WORK, steps: int = 300) -> Path:
    """A writer like the demo's, of this width, half as long trained; wider and deeper ones in smaller steps."""
    folder = out / f"width-{width}-{layers}"
    if not folder.exists():
        tokenizer, generator = load_tokenizer(out / "pretrained"), torch.Generator().manual_seed(0)
        model = GPT2WithValueHead(GPT2Config(tokenizer.vocab_size, 64, width, n_layer=layers, n_head=width // 32), generator=generator)
        texts = [review.text for review in make_reviews(DemoConfig.reviews, seed=0)]
        rate = 5e-3 * min(1, 128 / width) * (2 / layers) ** 0.5
        pretrain(model.transformer, tokenizer, texts, PretrainConfig(steps, batch_size=16, block_size=40, learning_rate=rate))
        model.save_pretrained(str(folder), tokenizer)
    return folder


def measure_step(folder: Path, rate: float, seed: int, n: int = 128) -> dict:
    """One update of four optimizer steps on n responses: how far the weights went, and how far what they say, by approxkl."""
    tokenizer, model = load_tokenizer(folder), GPT2WithValueHead.from_pretrained(str(folder))
    trainer = PPOTrainer(PPOConfig(batch_size=n, mini_batch_size=n // 4, ppo_epochs=1, learning_rate=rate, seed=seed, vf_coef=0.5),
                         model, tokenizer=tokenizer)
    openings = review_queries(n, seed=4 * seed + 2)
    queries = [torch.tensor(tokenizer.encode(opening)) for opening in openings]
    responses = trainer.generate(queries, max_new_tokens=RESPONSE_TOKENS)
    texts = [opening + tokenizer.decode(response.tolist(), skip_special_tokens=True) for opening, response in zip(openings, responses)]
    trainer.step(queries, responses, [true_score(text) for text in texts])
    with torch.no_grad():
        (new, _, mask), (old, _, _) = (response_logprobs(policy, queries, responses) for policy in (model, trainer.ref_model))
        moved, weights = (torch.cat([x.flatten() for x in tensors]) for tensors in (
            [p - q for p, q in zip(model.transformer.parameters(), trainer.ref_model.transformer.parameters())],
            trainer.ref_model.transformer.parameters()))
    return {"weights": weights.numel(), "step": moved.square().mean().sqrt().item(),
            "relative": (moved.norm() / weights.norm()).item(), "approxkl": (0.5 * (new - old)[mask].square().mean()).item()}


def step_sweep() -> list[dict]:
    return [{"width": width, "layers": layers, "seed": seed, "learning_rate": rate}
            for width, layers in SHAPES for seed in SEEDS for rate in STEP_RATES]


# --- what came out ----------------------------------------------------------------------------------------------------

def values(rows: list[dict[str, str]], name: str, **settings) -> list[float]:
    """A result of each seed, for the default settings but for these; "objective" is score - KL_COEF * KL."""
    return [float(row["score"]) - KL_COEF * float(row["kl"]) if name == "objective" else float(row[name])
            for row in select(rows, **DEFAULT | settings)]


def cell(rows: list[dict[str, str]], name: str, **settings) -> float:
    """Their mean."""
    return statistics.fmean(values(rows, name, **settings))


def spread(rows: list[dict[str, str]], **settings) -> float:
    """By how much the seeds differ in the objective, the largest less the smallest."""
    objectives = values(rows, "objective", **settings)
    return max(objectives) - min(objectives)


def in_threes(rows: list[dict[str, str]], name: str, runs: Sequence[dict]) -> list[list[float]]:
    """Their results as the rows of a heat map."""
    results = [cell(rows, name, **settings) for settings in runs]
    return [results[i:i + 3] for i in range(0, len(results), 3)]


def markdown(head: Sequence[str], lines: Sequence[Sequence]) -> str:
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in [head, ["---"] * len(head), *lines])


def exponent(x: float) -> str:
    """1e-3, and not 0.001 or 1e-03."""
    return f"{x:.0e}".replace("e-0", "e-")


def fixed(number: float, digits: int) -> str:
    """With so many digits, and never -0.00."""
    return f"{round(number, digits) + 0.0:.{digits}f}"


SHOWN = {"score": ("score", 2), "true_score": ("true score", 2), "kl": ("KL", 1), "objective": (f"score - {KL_COEF} KL", 2),
         "distinct": ("distinct", 2), "clipfrac": ("clip fraction", 3), "max_approxkl": ("largest approxkl", 3),
         "early_stopped": ("updates stopped, of 32", 1), "optimizer_steps": ("optimizer steps, of 256", 0), "skipped": ("skipped", 1)}
USUAL = ("score", "true_score", "kl", "objective", "distinct", "clipfrac", "max_approxkl", "skipped")
OF_STOPPING = ("score", "kl", "objective", "early_stopped", "optimizer_steps", "skipped")


def run_table(rows: list[dict[str, str]], head: str, label: Callable[[dict], str], runs: Sequence[dict],
              names: Sequence[str] = USUAL) -> str:
    """A line for each run: its learning rate and its label, then its results."""
    lines = [[f"{exponent(run['learning_rate'])}, {label(DEFAULT | run)}",
              *(fixed(cell(rows, name, **run), SHOWN[name][1]) for name in names)] for run in runs]
    return markdown([f"learning rate, {head}", *(SHOWN[name][0] for name in names)], lines)


def target_table(rows: list[dict[str, str]]) -> str:
    lines = []
    for settings in BY_TARGET + [HASTY]:
        target, length, horizon = (settings[name] for name in ("target", "length", "horizon"))
        score, kl, kl_coef = (cell(rows, name, **settings) for name in ("score", "kl", "kl_coef"))
        lines.append([target, length, horizon, f"{target / length:.3f}", f"{kl:.2f}", f"{kl / length:.3f}", f"{kl_coef:.3f}",
                      f"{score:.2f}"])
    return markdown(["target", "tokens", "horizon", "target / tokens", "KL", "KL / tokens", "kl_coef", "score"], lines)


def steps_of(rows: list[dict[str, str]], name: str, width: int, layers: int, rate: float) -> float:
    """The geometric mean over the seeds."""
    return statistics.geometric_mean(float(row[name]) for row in select(rows, width=width, layers=layers, learning_rate=rate))


def rate_for(rows: list[dict[str, str]], width: int, layers: int, approxkl: float = 0.001) -> float:
    """The learning rate whose update moves the policy this far, on the straight line between its neighbours, in logarithms."""
    points = [(math.log(steps_of(rows, "approxkl", width, layers, rate)), math.log(rate)) for rate in STEP_RATES]
    for (low, left), (high, right) in zip(points, points[1:]):
        if low <= math.log(approxkl) <= high:
            return math.exp(left + (right - left) * (math.log(approxkl) - low) / (high - low))
    raise ValueError(f"no two learning rates enclose an approxkl of {approxkl} at width {width}")


def width_table(rows: list[dict[str, str]]) -> str:
    lines = []
    for shape in SHAPES:
        million = steps_of(rows, "weights", *shape, 1e-3) / 1e6
        step, relative = (steps_of(rows, name, *shape, 1e-3) for name in ("step", "relative"))
        small, large = (steps_of(rows, "approxkl", *shape, rate) for rate in (1e-4, 1e-3))
        lines.append([*shape, f"{million:.2f} M", f"{step:.4f}", f"{relative:.3f}", f"{small:.1e}", f"{large:.1e}",
                      f"{rate_for(rows, *shape):.1e}"])
    return markdown(["width", "layers", "weights", "change of a weight at 1e-3", "relative change at 1e-3", "approxkl at 1e-4",
                     "approxkl at 1e-3", "learning rate for an approxkl of 0.001"], lines)


def tables() -> dict[str, str]:
    """All that the page shows, by the names that stand before its tables."""
    rows, steps = read_rows(RUNS), read_rows(STEPS)
    sizes = BY_MINIBATCH + [run for run in BY_BATCH if run["batch_size"] != DEFAULT["batch_size"]]
    return {"rate": run_table(rows, "epochs", lambda run: run["ppo_epochs"], BY_EPOCHS),
            "size": run_table(rows, "batch in minibatches", lambda run: f"{run['batch_size']} in {run['mini_batch_size']}s", sizes),
            "stopping": run_table(rows, "early stopping", lambda run: "yes" if run["target_kl"] else "no", BY_STOPPING, OF_STOPPING),
            "longer": run_table(rows, "responses", lambda run: run["responses"], BY_RESPONSES),
            "width": width_table(steps), "target": target_table(rows)}


def with_tables(page: str) -> str:
    """The page with today's tables behind its marks."""
    today = tables()
    return re.sub(r"(<!-- table (\w+) -->\n\n)(?:\|.*\n)*", lambda mark: f"{mark[1]}{today[mark[2]]}\n", page)


# --- figures ----------------------------------------------------------------------------------------------------------

def two_maps(maps: Sequence[tuple], row_names: Sequence[str], rows_are: str, title: str) -> str:
    """Two heat maps of three columns side by side: (title, rows, column names, what they are, colour, limit, decimals) each."""
    height, parts = 84 + 30 * len(row_names), [fig.text(14, 66, rows_are, 12, fig.MUTED)]
    for left, (name, rows, columns, columns_are, color, limit, decimals) in zip((74, 256), maps):
        parts += [fig.text(left, 26, name, 13, bold=True), fig.text(left, 44, columns_are, 12, fig.MUTED)]
        parts += fig.heatmap(left, 72, rows, row_names if left < 100 else [""] * len(row_names), columns, color, limit, (50, 30), decimals)
    return fig.svg(height, parts, title)


def figure_rate(rows: list[dict[str, str]]) -> str:
    objective, kl = (in_threes(rows, name, BY_EPOCHS) for name in ("objective", "kl"))
    names = [str(epochs) for epochs in EPOCHS]
    return two_maps([(f"score − {KL_COEF} · KL", objective, names, "PPO epochs", fig.COLORS["scores"], 1.8, 2),
                     ("KL, nats", kl, names, "PPO epochs", fig.COLORS["kl"], 25, 1)],
                    [exponent(rate) for rate in RATES], "rate", "Heat maps: objective and KL by learning rate and epochs")


def figure_frontier(rows: list[dict[str, str]]) -> str:
    """Every run with a fixed kl_coef: score over KL, a colour for each learning rate; rings are the longer runs."""
    axes = fig.Axes(48, 58, 350, 230, (0, 14), (0, 2.2))
    parts = axes.frame((0, 2, 4, 6, 8, 10, 12, 14), (0, 0.5, 1, 1.5, 2), "KL of a response, nats", "score, by the reward model")
    colors = dict(zip(map(str, RATES), ("#6d7883", "#56b4e9", fig.COLORS["logprobs"], fig.COLORS["rewards"], fig.COLORS["kl"])))
    for row in rows:
        if row["target"] == "" and row["target_kl"] == "" and float(row["kl"]) <= 14:
            x, y, color = axes.x(float(row["kl"])), axes.y(float(row["score"])), colors[row["learning_rate"]]
            parts.append(fig.dot(x, y, color, 4, 0.75))
            if row["responses"] != str(DEFAULT["responses"]):
                parts.append(f'<circle cx="{fig.n(x)}" cy="{fig.n(y)}" r="7" fill="none" stroke="{color}" stroke-width="1.5"/>')
    return fig.svg(350, parts + [fig.text(14, 24, "learning rate", 12, fig.MUTED)]
                   + fig.legend(100, 24, [(exponent(float(rate)), color) for rate, color in colors.items()], 18),
                   "Dots: score over KL of every run with a fixed kl_coef, a colour for each learning rate")


def figure_size(rows: list[dict[str, str]]) -> str:
    return two_maps([("minibatch, of 64", in_threes(rows, "objective", BY_MINIBATCH),
                      [str(size) for size in MINIBATCHES], f"score − {KL_COEF} · KL", fig.COLORS["scores"], 1.8, 2),
                     ("batch, in halves", in_threes(rows, "objective", BY_BATCH),
                      [str(size) for size in BATCHES], f"score − {KL_COEF} · KL", fig.COLORS["scores"], 1.8, 2)],
                    [exponent(rate) for rate in SOME_RATES], "rate", "Heat maps: objective by learning rate, minibatch and batch")


def figure_target(rows: list[dict[str, str]]) -> str:
    score, kl = (in_threes(rows, name, BY_TARGET) for name in ("score", "kl"))
    drift, names = [[x / length for x, length in zip(row, LENGTHS)] for row in kl], [str(length) for length in LENGTHS]
    return two_maps([("KL per token", drift, names, "tokens of a response", fig.COLORS["kl"], 0.7, 3),
                     ("score", score, names, "tokens of a response", fig.COLORS["scores"], 1.8, 2)],
                    [f"{target:g}" for target in TARGETS], "target", "Heat maps: KL per token and score by target and length")


def figure_width(steps: list[dict[str, str]]) -> str:
    """Both axes in powers of ten."""
    axes = fig.Axes(58, 66, 338, 220, (-5.1, math.log10(3e-3) + 0.1), (-5, 1.8))
    parts = axes.frame(x_label="learning rate", y_label="approxkl after one update")
    parts += [fig.text(axes.x(e), axes.top + axes.height + 15, f"1e{e}", 11, fig.MUTED, "middle") for e in (-5, -4, -3)]
    for e in (-4, -2, 0):
        parts += [fig.line([(axes.left, axes.y(e)), (axes.left + axes.width, axes.y(e))], width=1),
                  fig.text(axes.left - 6, axes.y(e) + 4, f"1e{e}" if e else "1", 11, fig.MUTED, "end")]
    colors = ["#8fbbdc", "#4a90c4", "#0072b2", "#004a80", "#00233f", fig.COLORS["rewards"]]
    for (width, layers), color in zip(SHAPES, colors):
        ys = [math.log10(steps_of(steps, "approxkl", width, layers, rate)) for rate in STEP_RATES]
        parts.append(axes.curve([math.log10(rate) for rate in STEP_RATES], ys, color, dash=layers > 2))
    entries = [(str(width) if layers == 2 else f"{width}, {layers} layers", color) for (width, layers), color in zip(SHAPES, colors)]
    return fig.svg(348, parts + [fig.text(14, 24, "width", 12, fig.MUTED)] + fig.legend(58, 24, entries, 12),
                   "Curves: approxkl of one update over the learning rate, for models of several widths and depths")


def figures() -> dict[str, str]:
    """All figures of the page: file name -> SVG."""
    rows, steps = read_rows(RUNS), read_rows(STEPS)
    return {"tuning_rate.svg": figure_rate(rows), "tuning_frontier.svg": figure_frontier(rows), "tuning_size.svg": figure_size(rows),
            "tuning_target.svg": figure_target(rows), "tuning_width.svg": figure_width(steps)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tutorial.tuning", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="measure what the CSVs lack")
    parser.add_argument("--draw", action="store_true", help="draw the figures, refresh the tables of tuning.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.run:
        make_models()
        fill(RUNS, sweep(), train)
        fill(STEPS, step_sweep(), lambda row: measure_step(make_sized(row["width"], row["layers"]), row["learning_rate"], row["seed"]))
    if arguments.draw:
        for name, picture in figures().items():
            (HERE / "images" / name).write_text(picture, encoding="utf-8")
        PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    if not (arguments.run or arguments.draw):
        print("\n\n".join(f"{name}\n{table}" for name, table in tables().items()))
        here, noisy = (spread(read_rows(RUNS), **settings) for settings in ({}, NOISY))
        print(f"\nThe {len(SEEDS)} seeds differ in score - {KL_COEF} KL by {here:.2f} with the demo's setting, "
              f"by {noisy:.2f} with minibatches of {NOISY['mini_batch_size']}")


if __name__ == "__main__":
    main()
