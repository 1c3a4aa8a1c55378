"""Does it learn as well as TRL, and what does each detail of OpenAI's code do? Both on a toy, five seeds each.

The toy: a two-layer GPT-2, pretrained on the built-in film reviews, continues the beginning of a review; the score is
`data.true_score` of the whole text, the share of its opinion words that praise. Everything is drawn anew for each seed: the
reviews, the initial weights, the queries. Both sides start from the same weights and see the same queries in the same order.
A run's result is the mean of its last ten updates; what follows a ± is the standard error over the seeds.

    python tests/peers/learning.py --run frontier       minippo and TRL 0.11.4 at several kl_coef: appends to golden/learning.csv
    python tests/peers/learning.py --run details        one detail at a time: appends to golden/details.csv
    python tests/peers/learning.py --summary            the frontier from the CSV, and the figure golden/learning.svg
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

LEARNING, DETAILS, FIGURE = (TESTS / "golden" / name for name in ("learning.csv", "details.csv", "learning.svg"))
SEEDS = range(5)
KL_COEFS = (0.02, 0.05, 0.1, 0.3)
DETAIL_KL_COEF = 0.1
UPDATES, LAST = 50, 10                      # updates of a run; the last ones, over which its result is averaged
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
    """Means over a batch, before its update; or over the last batches of a run."""
    score: float        # true_score
    kl: float           # of a response, in nats
    stopped: float      # share of the responses with a full stop


def learn(trainer, toy: Toy, reward: Callable[[str, str], float] = lambda query, text: true_score(text)) -> list[Point]:
    """Train on the toy's queries. The loop is the same for both sides: minippo has TRL's interface.

    reward: what is trained on, a function of the query and the whole text; what is recorded is always true_score.
    """
    eos = toy.tokenizer.eos_token_id
    sampling = {"min_length": -1, "top_k": 0.0, "top_p": 1.0, "do_sample": True, "pad_token_id": eos, "eos_token_id": eos,
                "max_new_tokens": NEW_TOKENS}
    history = []
    for start in range(0, len(toy.queries), BATCH):
        queries = toy.queries[start:start + BATCH]
        query_tokens = [torch.tensor(toy.tokenizer.encode(query)) for query in queries]
        responses = trainer.generate(query_tokens, return_prompt=False, **sampling)
        texts = texts_of(toy, queries, responses)
        stats = trainer.step(query_tokens, responses, [torch.tensor(reward(q, text)) for q, text in zip(queries, texts)])
        history.append(Point(statistics.fmean(map(true_score, texts)), float(stats["objective/kl"]),
                             statistics.fmean("." in text[len(q):] for q, text in zip(queries, texts))))
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
    return lambda toy: (minippo_trainer(toy, init_kl_coef=DETAIL_KL_COEF, **settings),)


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


def run_frontier(path: Path = LEARNING, seeds: Sequence[int] = SEEDS, kl_coefs: Sequence[float] = KL_COEFS,
                 sides: Sequence[str] = tuple(SIDES), toy_for: Callable[[int], Toy] = make_toy) -> None:
    for seed in seeds:
        done = {(row["side"], float(row["kl_coef"])) for row in read_rows(path) if int(row["seed"]) == seed}
        wanted = [(side, kl_coef) for kl_coef in kl_coefs for side in sides if (side, kl_coef) not in done]
        toy = toy_for(seed) if wanted else None
        for side, kl_coef in wanted:
            started = time.process_time()
            history = learn(SIDES[side](toy, init_kl_coef=kl_coef), toy)
            append_rows(path, [{"seed": seed, "side": side, "kl_coef": kl_coef, "update": i, "score": f"{point.score:.4f}",
                                "kl": f"{point.kl:.4f}"} for i, point in enumerate(history)])
            print(f"seed {seed}, {side}, kl_coef {kl_coef}: {time.process_time() - started:.0f} s of CPU", flush=True)


def run_details(path: Path = DETAILS, seeds: Sequence[int] = SEEDS, names: Sequence[str] = tuple(DETAIL_TABLE),
                toy_for: Callable[[int], Toy] = make_toy) -> None:
    for seed in seeds:
        done = {row["detail"] for row in read_rows(path) if int(row["seed"]) == seed}
        wanted = [name for name in names if name not in done]
        toy = toy_for(seed) if wanted else None
        for name in wanted:
            started = time.process_time()
            trainer, *reward = DETAIL_TABLE[name].make(toy)
            history = learn(trainer, toy, *reward)
            append_rows(path, [{"seed": seed, "detail": name, "update": i, "score": f"{point.score:.4f}",
                                "kl": f"{point.kl:.4f}", "stopped": f"{point.stopped:.4f}"} for i, point in enumerate(history)])
            print(f"seed {seed}, {name}: {time.process_time() - started:.0f} s of CPU", flush=True)


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


def results(rows: list[dict[str, str]], *keys: str) -> dict[tuple[str, ...], list[Point]]:
    """{values of the keys: one Point a seed, the mean of its last updates, in the order of the seeds}."""
    runs: dict[tuple, list[dict]] = {}
    for row in rows:
        runs.setdefault((*(row[key] for key in keys), row["seed"]), []).append(row)
    grouped: dict[tuple, list[Point]] = {}
    for (*group, _), run in sorted(runs.items(), key=lambda item: int(item[0][-1])):
        last = sorted(run, key=lambda row: int(row["update"]))[-LAST:]
        columns = [statistics.fmean(float(row.get(name, "nan")) for row in last) for name in Point._fields]
        grouped.setdefault(tuple(group), []).append(Point(*columns))
    return grouped


def score_at(points: Sequence[Point], kl: float) -> float | None:
    """The score of one seed's frontier at this KL, on the straight line between its neighbours; None outside it."""
    points = sorted(points, key=lambda point: point.kl)
    for left, right in zip(points, points[1:]):
        if left.kl <= kl <= right.kl:
            return left.score + (right.score - left.score) * (kl - left.kl) / (right.kl - left.kl)
    return None


def compare(rows: list[dict[str, str]]) -> dict[str, dict[float, Mean]]:
    """minippo minus TRL, seed by seed: in score - kl_coef * KL, which is maximised, at each kl_coef; in the score at equal KL."""
    runs = results(rows, "side", "kl_coef")
    kl_coefs = sorted({row["kl_coef"] for row in rows}, key=float)
    objective = {float(kl_coef): mean([ours.score - theirs.score - float(kl_coef) * (ours.kl - theirs.kl)
                                       for ours, theirs in zip(runs["minippo", kl_coef], runs["trl", kl_coef])])
                 for kl_coef in kl_coefs}
    ours, theirs = (list(zip(*[runs[side, kl_coef] for kl_coef in kl_coefs])) for side in SIDES)    # a frontier for each seed
    equal_kl = {}
    for kl in range(1, 20):
        pairs = [(score_at(our, kl), score_at(their, kl)) for our, their in zip(ours, theirs)]
        if all(None not in pair for pair in pairs):                                                 # all ten frontiers reach it
            equal_kl[kl] = mean([our - their for our, their in pairs])
    return {"objective": objective, "equal KL": equal_kl}


def summary(rows: list[dict[str, str]]) -> str:
    """The two frontiers as a table, and minippo's differences from TRL."""
    runs, differences = results(rows, "side", "kl_coef"), compare(rows)
    lines = ["kl_coef " + "".join(f"{side + ': score':>24}{'KL':>15}" for side in SIDES)]
    for kl_coef in sorted({row["kl_coef"] for row in rows}, key=float):
        cells = [mean([getattr(run, name) for run in runs[side, kl_coef]]).show(digits)
                 for side in SIDES for name, digits in (("score", 3), ("kl", 2))]
        lines.append("{:8}{:>24}{:>15}{:>24}{:>15}".format(kl_coef, *cells))
    lines += ["", "minippo - TRL, seed by seed"]
    lines += [f"  score - kl_coef * KL, kl_coef {kl_coef}: {m.show(3, '+')}" for kl_coef, m in differences["objective"].items()]
    lines += [f"  score at a KL of {kl}: {m.show(3, '+')}" for kl, m in differences["equal KL"].items()]
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
        score, kl, stopped = (mean([getattr(run, field) for run in runs[name,]]) for field in Point._fields)
        cells = [name, detail.how, detail.what, detail.source, score.show(3), kl.show(2), f"{stopped.value:.0%}",
                 "" if name == "default" else gain(runs, name).show(3, "+")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------------
# the figure
# ---------------------------------------------------------------------------------------------------------------------

WIDTH, HEIGHT = 360, 330                    # of a phone; everything below is in these units
LEFT, RIGHT, TOP, BOTTOM = 44, 348, 40, 268
STYLE = """
text { font: 12px system-ui, sans-serif; fill: var(--ink) }
svg { --card: #fff; --ink: #1c2024; --line: #d9dbd7; --minippo: #0072b2; --trl: #c75300 }
@media (prefers-color-scheme: dark) { svg { --card: #191d21; --ink: #e7e9eb; --line: #343b41; --minippo: #5db7ea; --trl: #ff9a55 } }
.card { fill: var(--card) } .grid { stroke: var(--line) }
.minippo { fill: var(--minippo); stroke: var(--minippo) } .trl { fill: var(--trl); stroke: var(--trl) }
polyline { stroke-width: 2; fill: none !important } polyline.trl { stroke-dasharray: 5 4 }
.bar { stroke-width: 1.5 } .seed { opacity: .35; stroke: none }
"""
LABELS = {"minippo": "minippo", "trl": "TRL 0.11.4"}


def marker(side: str, x: float, y: float, size: float, more: str = "") -> str:
    """A circle for minippo, a square for TRL: told apart without colours, too."""
    if side == "minippo":
        return f'<circle class="{side}{more}" cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}"/>'
    return f'<rect class="{side}{more}" x="{x - size:.1f}" y="{y - size:.1f}" width="{2 * size:.1f}" height="{2 * size:.1f}"/>'


def figure(rows: list[dict[str, str]]) -> str:
    """Score against KL as an SVG: small marks are seeds, large ones their means with one standard error either way."""
    runs = results(rows, "side", "kl_coef")
    everything = [point for points in runs.values() for point in points]
    x_step, y_step = 2, 0.1
    x_max = x_step * math.ceil(max(point.kl for point in everything) / x_step)
    y_min = y_step * math.floor(min(point.score for point in everything) / y_step)

    def x_of(kl: float) -> float:
        return LEFT + (RIGHT - LEFT) * kl / x_max

    def y_of(score: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (score - y_min) / (1 - y_min)

    svg = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
           "<title>Score against KL, minippo and TRL 0.11.4, five seeds</title>", f"<style>{STYLE}</style>",
           f'<rect class="card" width="{WIDTH}" height="{HEIGHT}" rx="8"/>']
    for kl in range(0, x_max + 1, x_step):
        svg.append(f'<text x="{x_of(kl):.1f}" y="{BOTTOM + 17}" text-anchor="middle">{kl}</text>')
    for i in range(round((1 - y_min) / y_step) + 1):
        y = y_of(y_min + i * y_step)
        svg.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{RIGHT}" y2="{y:.1f}"/>'
                   f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{y_min + i * y_step:.1f}</text>')
    svg.append(f'<text x="{(LEFT + RIGHT) / 2}" y="{BOTTOM + 34}" text-anchor="middle">KL of a response, nats</text>'
               f'<text x="{LEFT - 30}" y="{TOP - 20}">score</text>')
    for number, (side, label) in enumerate(LABELS.items()):
        groups = [points for key, points in runs.items() if key[0] == side]
        svg += [marker(side, x_of(p.kl), y_of(p.score), 2, " seed") for points in groups for p in points]
        means = sorted((mean([p.kl for p in points]), mean([p.score for p in points])) for points in groups)
        path = " ".join(f"{x_of(kl.value):.1f},{y_of(score.value):.1f}" for kl, score in means)
        svg.append(f'<polyline class="{side}" points="{path}"/>')
        for kl, score in means:
            x, y, dx, dy = x_of(kl.value), y_of(score.value), x_of(kl.error) - LEFT, BOTTOM - y_of(y_min + score.error)
            svg += [f'<path class="{side} bar" d="M{x - dx:.1f} {y:.1f}H{x + dx:.1f}M{x:.1f} {y - dy:.1f}V{y + dy:.1f}"/>',
                    marker(side, x, y, 4)]
        x = LEFT + 60 + 110 * number
        svg.append(marker(side, x, HEIGHT - 14, 4) + f'<text x="{x + 10}" y="{HEIGHT - 10}">{label}</text>')
    return "\n".join([*svg, "</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", choices=["frontier", "details"], help="train what the CSV does not have yet")
    parser.add_argument("--summary", action="store_true", help="print the frontier and draw the figure")
    parser.add_argument("--details-table", action="store_true", help="print the table of details, Markdown")
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if args.run:
        warnings.simplefilter("ignore")                 # TRL's, on every call
        {"frontier": run_frontier, "details": run_details}[args.run]()
    if args.summary:
        print(summary(read_rows(LEARNING)))
        FIGURE.write_text(figure(read_rows(LEARNING)), encoding="utf-8")
    if args.details_table:
        print(details_table(read_rows(DETAILS)))
    if not (args.run or args.summary or args.details_table):
        parser.print_help()


if __name__ == "__main__":
    main()
