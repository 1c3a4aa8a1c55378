"""Does it learn as well as TRL? Do PPO, REINFORCE, RLOO and GRPO differ? What does each detail of OpenAI's code do?

On a toy, five seeds each: a two-layer GPT-2, pretrained on the built-in film reviews, continues the beginning of a review; the
score is `data.true_score` of the whole text, the share of its opinion words that praise. Everything is drawn anew for each seed: the
reviews, the initial weights, the queries. All start from the same weights and see the same queries in the same order (RLOO and GRPO the
first 16 of each 64, four times each). A run's result is the mean of its last ten updates; what follows a ± is the standard error.

    python tests/peers/learning.py --run frontier       minippo and TRL 0.11.4 at several kl_coef: appends to golden/learning.csv
    python tests/peers/learning.py --run family         the four kinds of advantage at several kl_coef: appends to golden/family.csv
    python tests/peers/learning.py --run details        one detail at a time: appends to golden/details.csv
    python tests/peers/learning.py --summary            minippo and TRL from the CSV, and the figure golden/learning.svg
    python tests/peers/learning.py --family             the family from the CSV, and the figure golden/family.svg
    python tests/peers/learning.py --details-table      the table in the README, from the CSV

Each --run takes about eight minutes on one core. A run that the CSV already has is not repeated: an interrupted series
continues where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import functools
import math
import os
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Callable, NamedTuple, Sequence

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "peers")]

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from minippo import GPT2Config, GPT2WithValueHead, PPOConfig, PPOTrainer  # noqa: E402
from minippo.training.data import make_reviews, review_queries, true_score  # noqa: E402
from minippo.training.pretrain import PretrainConfig, pretrain  # noqa: E402
from minippo.files.tokenizer import Tokenizer  # noqa: E402
from minippo.training.bpe import train_bpe  # noqa: E402

LEARNING, FAMILY, DETAILS = (TESTS / "golden" / name for name in ("learning.csv", "family.csv", "details.csv"))
SEEDS = range(5)
KL_COEFS = (0.02, 0.05, 0.1, 0.3)
DETAIL_KL_COEF = TIME_KL_COEF = 0.1
UPDATES, LAST, WINDOW = 50, 10, 5           # updates of a run; the last ones, its result; those of a point of a curve over time
BATCH, NEW_TOKENS = 64, 16
SIZES = {"n_positions": 64, "n_embd": 48, "n_layer": 2, "n_head": 4}
VOCAB = 768                                 # most words of the reviews are then one token
# chosen with minippo on seed 0, not with TRL: in larger steps on smaller batches, noise alone carries the policy away by nats
PPO = {"batch_size": BATCH, "mini_batch_size": BATCH, "ppo_epochs": 2, "learning_rate": 3e-4, "adap_kl_ctrl": False}


# ---------------------------------------------------------------------------------------------------------------------
# the toy
# ---------------------------------------------------------------------------------------------------------------------

class Toy(NamedTuple):
    """One seed's problem."""
    seed: int
    tokenizer: Tokenizer
    config: GPT2Config
    weights: dict[str, Tensor]      # of the pretrained GPT-2
    queries: list[str]              # BATCH for each update


def make_toy(seed: int, updates: int = UPDATES, reviews: int = 2000, pretraining_steps: int = 400) -> Toy:
    texts = [review.text for review in make_reviews(reviews, seed=seed)]
    tokenizer = train_bpe(texts, VOCAB)
    config = GPT2Config(tokenizer.vocab_size, **SIZES)
    model = GPT2WithValueHead(config, generator=torch.Generator().manual_seed(seed))
    pretrain(model.transformer, tokenizer, texts,
             PretrainConfig(steps=pretraining_steps, block_size=32, learning_rate=5e-3, seed=seed))
    return Toy(seed, tokenizer, config, model.transformer.state_dict(), review_queries(updates * BATCH, seed=1000 + seed))


def make_policy(toy: Toy) -> GPT2WithValueHead:
    model = GPT2WithValueHead(toy.config)
    model.transformer.load_state_dict(toy.weights)
    return model


def minippo_trainer(toy: Toy, **settings) -> PPOTrainer:
    return PPOTrainer(PPOConfig(seed=toy.seed, **PPO | settings), make_policy(toy))


def trl_trainer(toy: Toy, zero_head: bool = False, **settings):
    """TRL as one would use it who knows its faults: padding on the right, no dropout anywhere, none of the broken options.

    Its value head starts as TRL starts it, from U(±1/√C), and minippo's from zero: each side with its own default. With
    `zero_head` TRL starts from zero as well, which shows how much of the difference this one default makes.
    """
    import tokenizers
    import transformers
    import trl
    from gpt2_models import hf_gpt2, to_hf

    vocab, eos = toy.config.vocab_size, toy.tokenizer.eos_token_id
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"token{i}": i for i in range(vocab)}, "token0"))
    padder = transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token=f"token{eos}", pad_token=f"token{eos}",
                                                  padding_side="right")
    gpt2 = hf_gpt2({"vocab_size": vocab, **SIZES}, eos_token_id=eos)
    weights = to_hf({f"transformer.{name}": w for name, w in toy.weights.items()})
    gpt2.load_state_dict(weights | {"lm_head.weight": weights["transformer.wte.weight"]})
    torch.manual_seed(toy.seed)             # TRL draws the value head from the global generator
    model = trl.AutoModelForCausalLMWithValueHead.from_pretrained(gpt2, summary_dropout_prob=0.0)
    if zero_head:
        torch.nn.init.zeros_(model.v_head.summary.weight)
        torch.nn.init.zeros_(model.v_head.summary.bias)
    trainer = trl.PPOTrainer(trl.PPOConfig(seed=toy.seed, **PPO | settings), model, None, padder)
    trainer.generate = functools.partial(trainer.generate, batch_size=BATCH)
    return trainer


def texts_of(toy: Toy, queries: Sequence[str], responses: Sequence[Tensor]) -> list[str]:
    return [query + toy.tokenizer.decode(r.tolist(), skip_special_tokens=True) for query, r in zip(queries, responses)]


class Point(NamedTuple):
    """Means over a batch, before its update; or over several batches of a run."""
    score: float        # true_score
    kl: float           # of a response, in nats
    stopped: float      # share of the responses with a full stop
    seconds: float      # of CPU since the run began, this batch and its update included


def learn(trainer, toy: Toy, reward: Callable[[str, str], float] = lambda query, text: true_score(text)) -> list[Point]:
    """Train on the toy's queries. The loop is the same for both sides: minippo has TRL's interface.

    reward: what is trained on, a function of the query and the whole text; what is recorded is always true_score.
    """
    eos = toy.tokenizer.eos_token_id
    sampling = {"min_length": -1, "top_k": 0.0, "top_p": 1.0, "do_sample": True, "pad_token_id": eos, "eos_token_id": eos,
                "max_new_tokens": NEW_TOKENS}
    history, began, group_size = [], time.process_time(), getattr(trainer.config, "group_size", 1)
    for start in range(0, len(toy.queries), BATCH):
        queries = [query for query in toy.queries[start:start + BATCH // group_size] for _ in range(group_size)]
        query_tokens = [torch.tensor(toy.tokenizer.encode(query)) for query in queries]
        responses = trainer.generate(query_tokens, return_prompt=False, **sampling)
        texts = texts_of(toy, queries, responses)
        stats = trainer.step(query_tokens, responses, [torch.tensor(reward(q, text)) for q, text in zip(queries, texts)])
        history.append(Point(statistics.fmean(map(true_score, texts)), float(stats["objective/kl"]),
                             statistics.fmean("." in text[len(q):] for q, text in zip(queries, texts)),
                             time.process_time() - began))
    return history


# ---------------------------------------------------------------------------------------------------------------------
# the details of lm-human-preferences, each alone
# ---------------------------------------------------------------------------------------------------------------------

def random_head(toy: Toy) -> PPOTrainer:
    """The value head that nn.Linear and TRL draw, U(±1/√C), in place of minippo's zeros."""
    trainer = minippo_trainer(toy, init_kl_coef=DETAIL_KL_COEF)
    bound, generator = 1 / math.sqrt(toy.config.n_embd), torch.Generator().manual_seed(toy.seed)
    with torch.no_grad():
        for parameter in trainer.model.v_head.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
    return trainer


def annealed(toy: Toy) -> PPOTrainer:
    """The learning rate falls linearly, from its whole value at the first update towards 0 behind the last."""
    updates = len(toy.queries) // BATCH
    config, model = PPOConfig(seed=toy.seed, init_kl_coef=DETAIL_KL_COEF, **PPO), make_policy(toy)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 1 - update / updates)
    return PPOTrainer(config, model, optimizer=optimizer, lr_scheduler=scheduler)


def normalised(toy: Toy) -> Callable[[str, str], float]:
    """The score, shifted and scaled so that 256 samples of the reference have mean 0 and standard deviation 1."""
    queries = review_queries(256, seed=2000 + toy.seed)
    responses = make_policy(toy).generate([torch.tensor(toy.tokenizer.encode(query)) for query in queries],
                                          max_new_tokens=NEW_TOKENS, eos_token_id=toy.tokenizer.eos_token_id, seed=toy.seed)
    scores = [true_score(text) for text in texts_of(toy, queries, responses)]
    mean, std = statistics.fmean(scores), statistics.stdev(scores)
    return lambda query, text: (true_score(text) - mean) / std


def truncate_and_penalise(query: str, text: str) -> float:
    """The score of the text up to the response's first full stop; -1 where there is none."""
    stop = text.find(".", len(query))
    return true_score(text[:stop + 1]) if stop >= 0 else -1.0


class Detail(NamedTuple):
    how: str
    what: str
    source: str                         # in openai/lm-human-preferences, where no other is named
    make: Callable[[Toy], tuple]        # -> trainer, and the reward where it is another


def setting(**settings) -> Callable[[Toy], tuple]:
    return lambda toy: (minippo_trainer(toy, **{"init_kl_coef": DETAIL_KL_COEF} | settings),)


DETAIL_TABLE = {
    "default": Detail("", "the value head starts at zero, as in OpenAI's code", "policy.py", setting()),
    "random value head": Detail("`model.v_head.reset_parameters()`", "it starts from U(±1/√C)", "TRL 0.11",
                                lambda toy: (random_head(toy),)),
    "TRL, zero value head": Detail("`v_head.summary` set to 0", "TRL 0.11.4, from zero as well", "",
                                   lambda toy: (trl_trainer(toy, zero_head=True, init_kl_coef=DETAIL_KL_COEF),)),
    "reward whitening": Detail("`whiten_rewards=True`", "rewards of the tokens to variance 1, their mean kept", "train_policy.py",
                               setting(whiten_rewards=True)),
    "temperature": Detail("`temperature=0.7`", "divides the logits, in sampling and in scoring", "policy.py",
                          setting(temperature=0.7)),
    "adam eps": Detail("`adam_eps=1e-5`", "damps Adam's first updates", "utils/core.py", setting(adam_eps=1e-5)),
    "annealing": Detail('`lr_scheduler`, in a run `lr_schedule="linear"`', "learning rate linearly to 0", "train_policy.py",
                        lambda toy: (annealed(toy),)),
    "score normalisation": Detail("in the score function; `RewardModel.normalize`", "mean 0 and std 1 on 256 reference samples",
                                  "train_reward.py", lambda toy: (*setting()(toy), normalised(toy))),
    "truncate and penalise": Detail("in the score function; in a run `truncate_at=\".\"`", "score up to the first full stop, -1 without one", "lm_tasks.py",
                                    lambda toy: (*setting()(toy), truncate_and_penalise)),
    "gradient clipping": Detail("`max_grad_norm=0.5`", "bounds the norm at every step", "not in it", setting(max_grad_norm=0.5)),
}


# ---------------------------------------------------------------------------------------------------------------------
# runs
# ---------------------------------------------------------------------------------------------------------------------

def read_rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append_rows(path: Path, rows: list[dict]) -> None:
    """One finished run, in one write."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


SIDES = {"minippo": minippo_trainer, "trl": trl_trainer}
GROUP_SIZES = {"gae": 1, "reinforce": 1, "rloo": 4, "grpo": 4}      # of each kind of advantage: 64 queries an update, or 16


def run_series(path: Path, seeds: Sequence[int], names: Sequence[str], runs: dict[tuple[str, ...], Callable[[Toy], tuple]],
               columns: Sequence[str], toy_for: Callable[[int], Toy]) -> None:
    """Append to the CSV each run that it lacks: for every seed those of `runs`, {values of the columns `names`: a Detail.make}."""
    for seed in seeds:
        done = {tuple(row[name] for name in names) for row in read_rows(path) if int(row["seed"]) == seed}
        wanted = [key for key in runs if key not in done]
        toy = toy_for(seed) if wanted else None
        for key in wanted:
            trainer, *reward = runs[key](toy)
            history = learn(trainer, toy, *reward)
            append_rows(path, [{"seed": seed} | dict(zip(names, key)) | {"update": i}
                               | {name: f"{getattr(point, name):.4f}" for name in columns} for i, point in enumerate(history)])
            print(f"seed {seed}, {', '.join(key)}: {history[-1].seconds:.0f} s of CPU", flush=True)


def run_frontier(path: Path = LEARNING, seeds: Sequence[int] = SEEDS, kl_coefs: Sequence[float] = KL_COEFS,
                 sides: Sequence[str] = tuple(SIDES), toy_for: Callable[[int], Toy] = make_toy) -> None:
    runs = {(side, str(kl_coef)): lambda toy, side=side, kl_coef=kl_coef: (SIDES[side](toy, init_kl_coef=kl_coef),)
            for kl_coef in kl_coefs for side in sides}
    run_series(path, seeds, ("side", "kl_coef"), runs, ("score", "kl"), toy_for)


def run_family(path: Path = FAMILY, seeds: Sequence[int] = SEEDS, kl_coefs: Sequence[float] = KL_COEFS,
               toy_for: Callable[[int], Toy] = make_toy) -> None:
    runs = {(kind, str(kl_coef)): setting(advantage=kind, group_size=group_size, init_kl_coef=kl_coef)
            for kl_coef in kl_coefs for kind, group_size in GROUP_SIZES.items()}
    run_series(path, seeds, ("kind", "kl_coef"), runs, ("score", "kl", "seconds"), toy_for)


def run_details(path: Path = DETAILS, seeds: Sequence[int] = SEEDS, names: Sequence[str] = tuple(DETAIL_TABLE),
                toy_for: Callable[[int], Toy] = make_toy) -> None:
    run_series(path, seeds, ("detail",), {(name,): DETAIL_TABLE[name].make for name in names}, ("score", "kl", "stopped"), toy_for)


# ---------------------------------------------------------------------------------------------------------------------
# what came out
# ---------------------------------------------------------------------------------------------------------------------

class Mean(NamedTuple):
    """Over the seeds."""
    value: float
    error: float        # standard error

    def show(self, digits: int, sign: str = "") -> str:
        """Its text; sign "+" for a difference."""
        return f"{self.value:{sign}.{digits}f} ± {self.error:.{digits}f}"


def mean(numbers: Sequence[float]) -> Mean:
    return Mean(statistics.fmean(numbers), statistics.stdev(numbers) / math.sqrt(len(numbers)))


def results(rows: list[dict[str, str]], *keys: str, updates: slice | None = None) -> dict[tuple[str, ...], list[Point]]:
    """{values of the keys: one Point a seed, the mean of these updates, by default the last, in the order of the seeds}."""
    runs: dict[tuple, list[dict]] = {}
    for row in rows:
        runs.setdefault((*(row[key] for key in keys), row["seed"]), []).append(row)
    grouped: dict[tuple, list[Point]] = {}
    for (*group, _), run in sorted(runs.items(), key=lambda item: int(item[0][-1])):
        some = sorted(run, key=lambda row: int(row["update"]))[updates or slice(-LAST, None)]
        columns = [statistics.fmean(float(row.get(name, "nan")) for row in some) for name in Point._fields]
        grouped.setdefault(tuple(group), []).append(Point(*columns))
    return grouped


def score_at(points: Sequence[Point], x: float, axis: str = "kl") -> float | None:
    """The score of one seed's points at this KL (or second), on the straight line between its neighbours; None outside them."""
    points = sorted((getattr(point, axis), point.score) for point in points)
    for (left, low), (right, high) in zip(points, points[1:]):
        if left <= x <= right:
            return low + (high - low) * (x - left) / (right - left)
    return None


class Comparison(NamedTuple):
    """What a CSV compares."""
    key: str                    # the column with its names
    labels: dict[str, str]      # of these names
    base: str                   # the one that the others are compared with


SIDE = Comparison("side", {"minippo": "minippo", "trl": "TRL 0.11.4"}, base="trl")
KIND = Comparison("kind", {"gae": "PPO", "reinforce": "REINFORCE", "rloo": "RLOO", "grpo": "GRPO"}, base="gae")


def kl_coefs_of(rows: list[dict[str, str]]) -> list[str]:
    return sorted({row["kl_coef"] for row in rows}, key=float)


def compare(rows: list[dict[str, str]], key: str = "side", ours: str = "minippo", theirs: str = "trl") -> dict[str, dict[float, Mean]]:
    """Ours minus theirs, seed by seed: in score - kl_coef * KL, which is maximised, at each kl_coef; in the score at equal KL."""
    runs, kl_coefs = results(rows, key, "kl_coef"), kl_coefs_of(rows)
    objective = {float(kl_coef): mean([our.score - their.score - float(kl_coef) * (our.kl - their.kl)
                                       for our, their in zip(runs[ours, kl_coef], runs[theirs, kl_coef])])
                 for kl_coef in kl_coefs}
    frontiers = [list(zip(*[runs[name, kl_coef] for kl_coef in kl_coefs])) for name in (ours, theirs)]     # one for each seed
    equal_kl = {}
    for kl in range(1, 20):
        pairs = [(score_at(our, kl), score_at(their, kl)) for our, their in zip(*frontiers)]
        if all(None not in pair for pair in pairs):                                                 # all frontiers reach it
            equal_kl[kl] = mean([our - their for our, their in pairs])
    return {"objective": objective, "equal KL": equal_kl}


def summary(rows: list[dict[str, str]], of: Comparison = SIDE) -> str:
    """The frontiers as a Markdown table, and the differences from the base."""
    runs = results(rows, of.key, "kl_coef")
    lines = ["| kl_coef | | score | KL | score - kl_coef * KL |", "|---|---|---|---|---|"]
    for kl_coef in kl_coefs_of(rows):
        for name, label in of.labels.items():
            score, kl, objective = (mean(column) for column in zip(*[(run.score, run.kl, run.score - float(kl_coef) * run.kl)
                                                                     for run in runs[name, kl_coef]]))
            lines.append(f"| {kl_coef} | {label} | {score.show(3)} | {kl.show(2)} | {objective.show(3)} |")
    for name in [name for name in of.labels if name != of.base]:
        differences = compare(rows, of.key, name, of.base)
        lines += ["", f"{of.labels[name]} - {of.labels[of.base]}, seed by seed"]
        lines += [f"  score - kl_coef * KL, kl_coef {kl_coef}: {m.show(3, '+')}" for kl_coef, m in differences["objective"].items()]
        lines += [f"  score at a KL of {kl}: {m.show(3, '+')}" for kl, m in differences["equal KL"].items()]
    return "\n".join(lines)


def over_time(rows: list[dict[str, str]]) -> dict[str, list[list[Point]]]:
    """{kind of advantage: how it learns at TIME_KL_COEF: of every WINDOW updates a Point a seed, their mean}."""
    some = [row for row in rows if float(row["kl_coef"]) == TIME_KL_COEF]
    updates = 1 + max(int(row["update"]) for row in some)
    windows = [results(some, "kind", updates=slice(i, i + WINDOW)) for i in range(0, updates, WINDOW)]
    return {name: [window[name,] for window in windows] for name in KIND.labels}


def time_summary(rows: list[dict[str, str]]) -> str:
    """The score against the seconds."""
    lines = [f"kl_coef {TIME_KL_COEF}: seconds of CPU that a run takes, and the score after so many of them"]
    whole = results(rows, "kind", "kl_coef", updates=slice(-1, None))
    for name, windows in over_time(rows).items():
        curves, cells = list(zip(*windows)), [mean([run.seconds for run in whole[name, str(TIME_KL_COEF)]]).show(2)]
        for second in range(1, 60):
            scores = [score_at(curve, second, "seconds") for curve in curves]
            cells += [] if None in scores else [f"{second} s: {mean(scores).show(3)}"]
        lines.append(f"  {KIND.labels[name]}: {'; '.join(cells)}")
    return "\n".join(lines)


def gain(runs: dict[tuple[str, ...], list[Point]], name: str) -> Mean:
    """How much more of what is maximised, score - kl_coef * KL, a detail reaches than the default, seed by seed."""
    objectives = [[run.score - DETAIL_KL_COEF * run.kl for run in runs[which,]] for which in (name, "default")]
    return mean([detail - default for detail, default in zip(*objectives)])


def details_table(rows: list[dict[str, str]]) -> str:
    """Markdown: each detail alone, against the default."""
    runs = results(rows, "detail")
    columns = ["detail", "how", "what it is", "source", "score", "KL", "full stops", f"score - {DETAIL_KL_COEF} KL, gain"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, detail in DETAIL_TABLE.items():
        score, kl, stopped = (mean([getattr(run, field) for run in runs[name,]]) for field in ("score", "kl", "stopped"))
        cells = [name, detail.how, detail.what, detail.source, score.show(3), kl.show(2), f"{stopped.value:.0%}",
                 "" if name == "default" else gain(runs, name).show(3, "+")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------------
# the figure
# ---------------------------------------------------------------------------------------------------------------------

WIDTH, HEIGHT = 360, 310                    # of a panel on a phone; everything below is in these units
LEFT, RIGHT, TOP, BOTTOM = 44, 348, 60, 268
# of each name in turn: its colour on white and on black, its dashes, its mark; told apart without colours, too
LOOKS = [("#0072b2", "#5db7ea", "none", ""), ("#c75300", "#ff9a55", "5 4", "-.9,-.9 .9,-.9 .9,.9 -.9,.9"),
         ("#00795c", "#42c99b", "2 3", "0,-1.2 1.2,.9 -1.2,.9"), ("#8a4a94", "#dc9fe0", "8 3 2 3", "0,-1.3 1.3,0 0,1.3 -1.3,0")]
Panel = NamedTuple("Panel", [("x_label", str), ("seeds", dict), ("means", dict)])       # {name: [(x, y)]}, {name: [(Mean, Mean)]}


def marker(corners: str, x: float, y: float, size: float, more: str = "") -> str:
    """A circle, or the polygon with these corners."""
    if not corners:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}"{more}/>'
    points = " ".join(f"{x + size * float(dx):.1f},{y + size * float(dy):.1f}" for dx, dy in (corner.split(",") for corner in corners.split()))
    return f'<polygon points="{points}"{more}/>'


def draw(panel: Panel) -> list[str]:
    """Scores against something: small marks are seeds, large ones means with one standard error either way."""
    points = [(x.value + x.error, y.value - y.error) for means in panel.means.values() for x, y in means]
    points += [point for seeds in panel.seeds.values() for point in seeds]
    x_step = next(step for step in (0.01, 0.1, 0.5, 1, 2, 5, 10, 20, 50, 100, 1000) if max(x for x, _ in points) <= 8 * step)
    x_max, y_min = x_step * math.ceil(max(x for x, _ in points) / x_step), math.floor(10 * min(y for _, y in points)) / 10
    x_of = lambda x: LEFT + (RIGHT - LEFT) * x / x_max
    y_of = lambda score: BOTTOM - (BOTTOM - TOP) * (score - y_min) / (1 - y_min)
    svg = [f'<text x="{x_of(i * x_step):.1f}" y="{BOTTOM + 17}" text-anchor="middle">{i * x_step:g}</text>'
           for i in range(round(x_max / x_step) + 1)]
    for i in range(round(10 * (1 - y_min)) + 1):
        y = y_of(y_min + i / 10)
        svg.append(f'<line class="grid" stroke="#d9dbd7" x1="{LEFT}" y1="{y:.1f}" x2="{RIGHT}" y2="{y:.1f}"/>'
                   f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{y_min + i / 10:.1f}</text>')
    svg.append(f'<text x="{(LEFT + RIGHT) / 2}" y="{BOTTOM + 34}" text-anchor="middle">{panel.x_label}</text>'
               f'<text x="{LEFT - 30}" y="{TOP - 16}">score</text>')
    for number, (name, means) in enumerate(panel.means.items()):
        colour, _, dashes, corners = LOOKS[number]
        svg.append(f'<g class="look{number}" fill="{colour}" stroke="{colour}">')
        svg += [marker(corners, x_of(x), y_of(y), 2, ' opacity=".35" stroke="none"') for x, y in panel.seeds.get(name, [])]
        path = " ".join(f"{x_of(x.value):.1f},{y_of(y.value):.1f}" for x, y in means)
        svg.append(f'<polyline points="{path}" fill="none" stroke-width="2" stroke-dasharray="{dashes}"/>')
        for x, y in means:
            dx, dy = x_of(x.error) - LEFT, BOTTOM - y_of(y_min + y.error)
            svg += [f'<path d="M{x_of(x.value) - dx:.1f} {y_of(y.value):.1f}h{2 * dx:.1f}M{x_of(x.value):.1f} {y_of(y.value) - dy:.1f}'
                    f'v{2 * dy:.1f}" stroke-width="1.5"/>', marker(corners, x_of(x.value), y_of(y.value), 3.5)]
        svg.append("</g>")
    return svg


def figure(title: str, labels: dict[str, str], *panels: Panel) -> str:
    """An SVG of the panels, one below the other. Its attributes are the light theme; the style sheet only knows the dark one."""
    height = HEIGHT * len(panels)
    dark = " ".join(f".look{i} {{ fill: {look[1]}; stroke: {look[1]} }}" for i, look in enumerate(LOOKS[:len(labels)]))
    svg = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{1.4 * WIDTH:.0f}" height="{1.4 * height:.0f}" '
           'role="img" fill="#1c2024" font-family="system-ui, sans-serif" font-size="12">', f"<title>{title}</title>",
           "<style>@media (prefers-color-scheme: dark) "
           f"{{ svg {{ fill: #e7e9eb }} .card {{ fill: #191d21 }} .grid {{ stroke: #343b41 }} {dark} }}</style>",
           f'<rect class="card" width="{WIDTH}" height="{height}" rx="8" fill="#fff"/>']
    widths = [34 + 7.2 * len(label) for label in labels.values()]
    for number, label in enumerate(labels.values()):
        x = (WIDTH - sum(widths)) / 2 + sum(widths[:number]) + 12
        svg.append(f'<g class="look{number}" fill="{LOOKS[number][0]}">{marker(LOOKS[number][3], x, 18, 4)}</g>'
                   f'<text x="{x + 9:.1f}" y="22">{label}</text>')
    for number, panel in enumerate(panels):
        svg += [f'<g transform="translate(0 {HEIGHT * number})">', *draw(panel), "</g>"]
    return "\n".join([*svg, "</svg>"]) + "\n"


def frontier_panel(rows: list[dict[str, str]], of: Comparison) -> Panel:
    runs, kl_coefs = results(rows, of.key, "kl_coef"), kl_coefs_of(rows)
    return Panel("KL of a response, nats",
                 {name: [(p.kl, p.score) for kl_coef in kl_coefs for p in runs[name, kl_coef]] for name in of.labels},
                 {name: [(mean([p.kl for p in runs[name, kl_coef]]), mean([p.score for p in runs[name, kl_coef]]))
                         for kl_coef in kl_coefs] for name in of.labels})


def time_panel(rows: list[dict[str, str]]) -> Panel:
    return Panel(f"seconds of CPU, kl_coef {TIME_KL_COEF}", {},
                 {name: [(mean([p.seconds for p in points]), mean([p.score for p in points])) for points in windows]
                  for name, windows in over_time(rows).items()})


def learning_figure(rows: list[dict[str, str]]) -> str:
    return figure("Score against KL, minippo and TRL 0.11.4, five seeds", SIDE.labels, frontier_panel(rows, SIDE))


def family_figure(rows: list[dict[str, str]]) -> str:
    return figure("Score against KL and against seconds: PPO, REINFORCE, RLOO, GRPO, five seeds", KIND.labels,
                  frontier_panel(rows, KIND), time_panel(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", choices=["frontier", "family", "details"], help="train what the CSV does not have yet")
    parser.add_argument("--summary", action="store_true", help="print the frontier and draw the figure")
    parser.add_argument("--family", action="store_true", help="print how the four kinds of advantage compare, and draw their figure")
    parser.add_argument("--details-table", action="store_true", help="print the table of details, Markdown")
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if args.run:
        warnings.simplefilter("ignore")                 # TRL's, on every call
        {"frontier": run_frontier, "family": run_family, "details": run_details}[args.run]()
    if args.summary:
        print(summary(read_rows(LEARNING)))
        LEARNING.with_suffix(".svg").write_text(learning_figure(read_rows(LEARNING)), encoding="utf-8")
    if args.family:
        print(summary(read_rows(FAMILY), KIND), time_summary(read_rows(FAMILY)), sep="\n\n")
        FAMILY.with_suffix(".svg").write_text(family_figure(read_rows(FAMILY)), encoding="utf-8")
    if args.details_table:
        print(details_table(read_rows(DETAILS)))
    if not (args.run or args.summary or args.family or args.details_table):
        parser.print_help()


if __name__ == "__main__":
    main()
