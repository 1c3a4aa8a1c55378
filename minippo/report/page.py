"""report.html: a training run as one page that needs nothing else, and the table that explains every metric.

A run folder (config.json, metrics.jsonl, samples.jsonl) becomes findings in words, learning curves, samples
and the token trace: every token of a followed response with its logprob, KL, reward, value, advantage and
return, over the updates. Several folders are laid side by side. Standard library only; the page fetches
nothing, reads without JavaScript, and is written whole or not at all.

    python -m minippo report runs/x            # writes runs/x/report.html
    python -m minippo report runs/x runs/y     # writes runs/x/comparison.html

Left out: 1. smoothing, because jitter is information at this size; 2. a plotting package: a curve is one SVG path.
"""

import json
import math
from html import escape
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from ..files.atomic import write_text

# ---- the metrics: what run.py logs, what this page and the tutorial explain ----


class Metric(NamedTuple):
    """One scalar of metrics.jsonl, explained; a key that ends in "/" stands for all that begin with it."""

    key: str
    title: str
    what: str
    formula: str
    healthy: str
    moves: str  # what it means when it moves
    group: str  # curves of one group stand together


_STAGES = {"prepare": "checks and copies", "forward_pass": "log-probabilities and values at rollout",
           "compute_rewards": "the KL reward", "compute_advantages": "GAE", "optimize_step": "all minibatches",
           "calc_stats": "the statistics", "total": "the whole of step(), without sampling"}

METRICS = [
    Metric("ppo/mean_scores", "Score", "mean score of the batch's responses", "mean(scores)",
           "Rises, then levels off while the KL stays bounded.",
           "Flat: no signal. Up while the samples get worse: the score is being gamed.", "reward"),
    Metric("ppo/std_scores", "Score spread", "standard deviation of the scores in a batch",
           "std(scores) with n - 1", "Above 0; shrinks slowly as the responses become good.",
           "At 0 every response scores the same, and nothing is left to learn from.", "reward"),
    Metric("score/", "Score part", "mean of one part of a combined reward, before its weight", "mean(part)",
           "No part falls while the whole rises.",
           "A part that falls while the score rises is being traded away.", "reward"),
    Metric("objective/score_total", "Score less KL penalty", "what PPO maximises",
           "mean(score + sum_t non_score_reward_t)", "Rises with the score.",
           "Falls while the score rises: the gain costs more KL than it brings.", "reward"),
    Metric("ppo/mean_non_score_reward", "KL penalty per token",
           "the KL part of the reward, averaged over tokens", "masked_mean(-kl_coef * kl)",
           "Small and negative.", "Positive means negative KL: what is sampled is not what is scored.",
           "reward"),
    Metric("objective/kl", "KL to the reference", "distance from the reference, in nats per response",
           "mean over responses of sum_t (logprob_t - ref_logprob_t)",
           "Starts at 0, rises and settles near its target; often between 0 and 10.",
           "Negative: top-k, top-p or a minimum length is on. Rising without end: language is lost.",
           "drift"),
    Metric("objective/kl_coef", "KL coefficient", "weight of the KL penalty in this update",
           "last * (1 + clip(kl / target - 1, -0.2, 0.2) * n / horizon)",
           "Moves slowly; constant with a fixed controller.", "Up: KL is above its target. Down: below.",
           "drift"),
    Metric("objective/entropy", "Entropy per response", "surprise of a response's tokens, summed",
           "mean over responses of sum_t -logprob_t", "Falls gently, in step with the response length.",
           "A sudden fall: the responses become alike.", "drift"),
    Metric("ppo/policy/entropy", "Entropy", "uncertainty about the next token, in nats per token",
           "masked_mean(-sum_v p_v log p_v)", "Falls gently and stays well above 0.",
           "Near 0 the policy always says the same thing; rising towards log(vocabulary): noise.", "drift"),
    Metric("ppo/policy/clipfrac", "Clip fraction", "share of tokens whose ratio was clipped",
           "masked_mean(-A * clip(ratio) > -A * ratio)", "Between about 0.02 and 0.3.",
           "0: steps too small to matter. Above 0.3: too large; lower learning_rate or ppo_epochs.",
           "update"),
    Metric("ppo/policy/approxkl", "KL of the update", "how far one update moves the policy",
           "0.5 * masked_mean((new_logprob - logprob)^2)", "Below about 0.1, steady.",
           "Growing: the batch is reused too hard; fewer ppo_epochs.", "update"),
    Metric("ppo/policy/policykl", "KL of the update, k1", "the same, plain estimator",
           "masked_mean(logprob - new_logprob)", "Close to 0.", "Large: see the approximate KL.", "update"),
    Metric("ppo/policy/ratio_mean", "Mean ratio", "new over old probability of a token",
           "masked_mean(exp(new_logprob - logprob))", "Close to 1.",
           "Far above 1: past ratio_threshold the minibatch is skipped.", "update"),
    Metric("ppo/loss/policy", "Policy loss", "the clipped surrogate; its size says little",
           "masked_mean(max(-A * ratio, -A * clip(ratio, 1 - c, 1 + c)))",
           "Slightly below 0, small and noisy.", "A spike: ratios far from 1.", "update"),
    Metric("ppo/loss/value", "Value loss", "error of the value head, clipped",
           "0.5 * masked_mean(max((v - R)^2, (clip(v) - R)^2))", "Falls from its first values and stays low.",
           "Growing: returns too large or too changeable; scale the score.", "update"),
    Metric("ppo/loss/total", "Total loss", "what the optimizer descends",
           "policy loss + vf_coef * value loss - entropy_coef * entropy", "Small; it need not fall.",
           "Follow its two parts instead.", "update"),
    Metric("ppo/policy/advantages_mean", "Mean advantage", "mean of the whitened advantages",
           "masked_mean(A)", "Close to 0.", "Away from 0: whitening was done over something else.", "update"),
    Metric("ppo/grad_norm", "Gradient norm", "length of the gradient before clipping, mean over minibatches",
           "sqrt(sum(grad^2))", "Steady, without spikes.",
           "A spike comes before a broken run: set max_grad_norm.", "update"),
    Metric("ppo/learning_rate", "Learning rate", "of the optimizer in this update", "lr",
           "As the schedule says.", "Only the schedule moves it.", "update"),
    Metric("ppo/updates", "Optimizer steps", "minibatches that changed the weights",
           "ppo_epochs * minibatches - skipped", "Constant.", "Fewer: skipped minibatches or an early stop.",
           "update"),
    Metric("ppo/skipped", "Skipped minibatches",
           "left out because ratio_threshold was passed or the loss was not finite", "count", "Stays at 0.",
           "Above 0: the steps are too large.", "update"),
    Metric("ppo/skipped_nonfinite", "Skipped as not finite",
           "of these, the ones whose loss or gradient was not finite", "count", "Stays at 0.",
           "Above 0: look for NaN in scores and weights.", "update"),
    Metric("ppo/early_stopped", "Stopped early", "1 where the update ended early on its KL",
           "approximate KL of a minibatch > 1.5 * target_kl", "Mostly 0.",
           "Always 1: most of each batch goes unused; lower the learning rate.", "update"),
    Metric("ppo/val/var_explained", "Explained variance", "how much of the returns the value head predicts",
           "1 - val/error / returns/var", "Climbs from about 0 towards 1.",
           "Below 0 late in a run: the values are worse than a constant.", "value"),
    Metric("ppo/val/error", "Value error", "squared error of the values, not clipped",
           "masked_mean((v - R)^2)", "Falls.", "Growing: the returns move faster than the value head learns.",
           "value"),
    Metric("ppo/val/clipfrac", "Value clip fraction", "share of tokens whose value was clipped",
           "masked_mean(clipped error > error)", "Small.",
           "Large: the returns are wide beside cliprange_value.", "value"),
    Metric("ppo/val/vpred", "New values", "mean value during the update", "masked_mean(new_values)",
           "Follows the mean return.", "Apart from the mean return: the value head lags.", "value"),
    Metric("ppo/val/mean", "Values", "mean value at rollout", "masked_mean(values)",
           "Follows the mean return.", "As the new values.", "value"),
    Metric("ppo/val/var", "Variance of the values", "spread of the values at rollout", "masked_var(values)",
           "Grows towards that of the returns.", "At 0: the value head says the same everywhere.", "value"),
    Metric("ppo/returns/mean", "Mean return", "mean of advantage + value, before whitening",
           "masked_mean(returns)", "Rises with the score.", "Moves with score and KL penalty.", "value"),
    Metric("ppo/returns/var", "Variance of the returns", "spread of the returns", "masked_var(returns)",
           "Of order 1.", "Very large or small: scale the score.", "value"),
    Metric("tokens/responses_len_mean", "Response length", "mean number of response tokens", "mean(R)",
           "Steady, unless length is what the score rewards.",
           "Creeping to the limit: long responses pay, or none ends.", "text"),
    Metric("tokens/responses_len_std", "Spread of the response lengths", "standard deviation",
           "std(R) with n - 1", "Above 0 where responses end by themselves.", "At 0: all end at the limit.",
           "text"),
    Metric("tokens/at_limit", "Responses at the limit", "share of responses cut at the length limit",
           "count(R = limit) / B", "Low where responses are meant to end; 1 where their length is fixed.",
           "Rising to 1: the policy has unlearnt to stop.", "text"),
    Metric("tokens/queries_len_mean", "Query length", "mean number of query tokens", "mean(Q)",
           "As the data.", "Only the data moves it.", "text"),
    Metric("tokens/queries_len_std", "Spread of the query lengths", "standard deviation", "std(Q) with n - 1",
           "As the data.", "Only the data moves it.", "text"),
    Metric("samples/distinct", "Distinct responses", "share of different responses in the batch",
           "count(distinct) / B", "Close to 1; above one half at least.",
           "Falling: one answer to every query.", "text"),
    Metric("seconds", "Seconds per update", "sampling, scoring and step together", "wall time", "Steady.",
           "Growing with the response length is natural.", "speed"),
    Metric("tokens_per_second", "Tokens per second", "response tokens of the batch over the update's time",
           "sum(R) / seconds", "Steady.", "Falling: something else uses the machine.", "speed"),
    *(Metric(f"time/ppo/{stage}", f"Time: {stage}", what, "seconds", "Steady.", "Grows with the tokens.", "speed")
      for stage, what in _STAGES.items()),
]
_GROUPS = {"reward": "Reward", "drift": "Distance from the reference", "update": "The update", "value": "Values",
           "text": "Text", "speed": "Speed"}
_HEADLINES = ("ppo/mean_scores", "objective/kl", "ppo/policy/entropy", "samples/distinct", "ppo/policy/clipfrac",
              "ppo/val/var_explained", "tokens/responses_len_mean", "ppo/loss/policy", "ppo/loss/value")


def metric_of(key: str) -> "Metric | None":
    """The table's entry for a key of metrics.jsonl; None for step, time and keys that the table does not know."""
    for metric in METRICS:
        if key == metric.key:
            return metric
        if metric.key.endswith("/") and key.startswith(metric.key):
            return metric._replace(key=key, title=f"Score: {key[len(metric.key):]}")
    return None


# ---- reading a run folder ----


class Run(NamedTuple):
    """What a run folder says."""

    name: str
    config: dict
    metrics: list  # one dict per update, in order
    samples: list  # {"step", "query", "response", "score", ...}
    followed: list  # the same with "follow" and "trace"


def _settings(config: dict) -> dict:
    """The configuration flattened: the fields of "run" and "ppo" beside the rest."""
    flat = {**config, **config.get("run", {}), **config.get("ppo", {})}
    return {key: value for key, value in flat.items() if key not in ("run", "ppo")}


def _kl_target(config: dict) -> "float | None":
    """The KL that the adaptive controller steers to; None where the coefficient is fixed."""
    settings = _settings(config)
    return _finite(settings.get("target")) if settings.get("adap_kl_ctrl", True) else None


def _read_jsonl(path: Path) -> list:
    """One dict per line; a last line torn by a crash is left out, any other bad line is a ValueError."""
    lines = path.read_bytes().splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            row["step"]
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise ValueError(f'{path}, line {number}: expected a JSON object with a "step", got {line[:60]!r}; '
                             "mend or remove that line") from error
        rows.append(row)
    return rows


def _read_run(run_dir) -> Run:
    """A run folder as a Run; FileNotFoundError or ValueError where there is nothing to report."""
    folder = Path(run_dir)
    if not (folder / "metrics.jsonl").is_file():
        raise FileNotFoundError(f"{folder} is not a run folder: it has no metrics.jsonl; "
                                "give a folder that `python -m minippo train --out` wrote")
    metrics = _read_jsonl(folder / "metrics.jsonl")
    if not metrics:
        raise ValueError(f"{folder / 'metrics.jsonl'} holds no whole update yet; run at least one")
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'} is not JSON ({error}); mend it") from error
    samples = _read_jsonl(folder / "samples.jsonl") if (folder / "samples.jsonl").is_file() else []
    return Run(folder.resolve().name, config, metrics, [row for row in samples if "trace" not in row],
               [row for row in samples if "trace" in row])


def _finite(value) -> "float | None":
    """A float, or None for what a curve must leave a gap for: NaN, infinity, null, nothing."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _series(metrics: list, key: str) -> list:
    """[(step, value)] of the finite values under a key."""
    return [(row["step"], value) for row in metrics if (value := _finite(row.get(key))) is not None]


def _num(value: "float | None", form: str = ".3g") -> str:
    """A number for people: three digits, a real minus sign, an en dash for none."""
    if value is None:
        return "–"
    return f"{value:{',.0f' if abs(value) >= 999.5 else form}}".replace("-", "−")


# ---- findings ----

_PERSIST = 3  # updates that a condition must hold in a row before it is worth a sentence


def _longest(points: list, test) -> list:
    """The longest stretch of neighbouring points whose value passes the test; [] where it is below _PERSIST."""
    stretches = [list(group) for passed, group in groupby(points, lambda point: test(point[1])) if passed]
    best = max(stretches, key=len, default=[])
    return best if len(best) >= _PERSIST else []


def _span(points: list) -> str:
    first, last = points[0][0], points[-1][0]
    return f"update {first}" if first == last else f"updates {first} to {last}"


def _ends(points: list) -> tuple:
    """Mean of the first tenth, mean of the last tenth, and whether they differ by more than the curve's jitter."""
    values = [value for _, value in points]
    if len(values) <= _PERSIST:
        return 0.0, 0.0, False
    k = max(1, len(values) // 10)
    early, late = fmean(values[:k]), fmean(values[-k:])
    return early, late, abs(late - early) > 2 * fmean(abs(b - a) for a, b in zip(values, values[1:]))


_STRETCHES = (  # key, what is worth a sentence when it persists, the worst value of the stretch, the sentence
    ("objective/kl", lambda v: v < -0.1, min,
     "KL negative for {n} updates ({span}, lowest {worst}): is top-k, top-p or a minimum length on? Then what is "
     "scored is not what was sampled."),
    ("ppo/policy/clipfrac", lambda v: v > 0.3, max,
     "Clip fraction above 0.3 for {n} updates ({span}, highest {worst}): steps too large; lower learning_rate or "
     "ppo_epochs."),
    ("samples/distinct", lambda v: v < 0.5, min,
     "The policy answers every query alike for {n} updates ({span}): at worst a share of {worst} of a batch's "
     "responses is distinct."),
    ("tokens/at_limit", lambda v: v >= 0.99, min,
     "Every response reaches the length limit for {n} updates ({span}, a share of at least {worst}): fine where "
     "the length is meant to be fixed; else raise max_new_tokens, or reward an ending."),
)


def _persistent(metrics: list, config: dict) -> list:
    """What held for several updates in a row."""
    target = _kl_target(config)
    over = ("objective/kl", lambda v: v > 2 * target, max, f"KL far over its target of {_num(target)} for {{n}} "
            "updates ({span}, highest {worst}): raise init_kl_coef, or lower horizon or learning_rate.")
    rules = [*_STRETCHES, over] if target else _STRETCHES
    return [text.format(n=len(stretch), span=_span(stretch), worst=_num(worst(v for _, v in stretch)))
            for key, test, worst, text in rules if (stretch := _longest(_series(metrics, key), test))]


def _overall(metrics: list) -> list:
    """What only the whole run shows: no clipping, useless values, lost entropy, skipped minibatches, NaN."""
    found, clipfrac = [], _series(metrics, "ppo/policy/clipfrac")
    if len(clipfrac) >= _PERSIST and not any(v for _, v in clipfrac):
        rates = "".join(f" {rate:g}" for _, rate in _series(metrics, "ppo/learning_rate")[-1:])
        found.append(f"Clip fraction 0 throughout ({_span(clipfrac)}): learning rate{rates} too small? With one "
                     "minibatch and one pass it is always 0.")
    explained = _series(metrics, "ppo/val/var_explained")
    late = explained[-max(_PERSIST, len(explained) // 4):]
    if len(explained) > _PERSIST and (mean := fmean(v for _, v in late)) < -0.05:  # a little below 0 is noise
        found.append(f"Explained variance negative late (mean {_num(mean)}, {_span(late)}): the values predict "
                     "worse than a constant would; raise vf_coef, scale the scores or train longer.")
    entropy = _series(metrics, "ppo/policy/entropy")
    start, end, moved = _ends(entropy)
    if moved and end < 0.25 * start:
        found.append(f"Entropy collapsed from {_num(start)} to {_num(end)} nats per token ({_span(entropy)}): the "
                     "policy hardly chooses any more; more KL penalty, an entropy bonus or fewer updates.")
    if skipped := [point for point in _series(metrics, "ppo/skipped") if point[1]]:
        found.append(f"{sum(v for _, v in skipped):.0f} minibatches skipped in {len(skipped)} of {len(metrics)} "
                     f"updates ({_span(skipped)}): ratio over ratio_threshold or not finite; lower learning_rate.")
    bad = [(row["step"], key) for row in metrics for key, value in row.items()
           if isinstance(value, float) and not math.isfinite(value)]
    if bad:
        found.append(f"Not a number ({_span(bad)}): {', '.join(sorted({key for _, key in bad}))}.")
    return found


def _of_score(metrics: list) -> list:
    """A score that says nothing, or that rises while something else is lost."""
    found, score = [], _series(metrics, "ppo/mean_scores")
    spread = dict(_series(metrics, "ppo/std_scores"))
    level = [(step, round(value, 6) if spread.get(step, 0.0) < 1e-6 else None) for step, value in score]
    stretches = [list(group) for value, group in groupby(level, itemgetter(1)) if value is not None]
    same = max(stretches, key=len, default=[])
    if len(same) >= 5:
        found.append(f"Score constant at {_num(same[0][1])} for {len(same)} updates ({_span(same)}), the same for "
                     "every response: no signal, only the KL penalty acts.")
    start, end, moved = _ends(score)
    lost = []
    parts = sorted({key for row in metrics for key in row if key.startswith("score/")})
    for key in [*parts, "samples/distinct"]:
        before, after, fell = _ends(_series(metrics, key))
        if fell and after < before - (0.2 if key == "samples/distinct" else 0):
            lost.append(f"{key} falls from {_num(before)} to {_num(after)}")
    if moved and end > start and lost:
        found.append(f"Score up from {_num(start)} to {_num(end)} while {' and '.join(lost)} ({_span(score)}): "
                     "over-optimisation? Read the samples; raise init_kl_coef or lower target.")
    return found


def findings(metrics: list, config: dict) -> list:
    """What the metrics say in words: one sentence a finding, each with its numbers and its updates.

    metrics: the rows of metrics.jsonl; config: config.json. Where nothing is found, one sentence says so.
    """
    found = _of_score(metrics) + _persistent(metrics, config) + _overall(metrics)
    said = ""
    for name, key in (("score", "ppo/mean_scores"), ("KL", "objective/kl")):
        if points := _series(metrics, key):
            said += f", {name} {_num(points[0][1])} to {_num(points[-1][1])}"
    return found or [f"Nothing unusual: {_span([(row['step'],) for row in metrics])}{said}."]


# ---- curves ----

_W, _H = 380, 176  # of a chart, in its own units
_LEFT, _RIGHT, _TOP, _BASE = 46, _W - 12, 10, _H - 24  # of its plot
_COLOURS = 6  # of runs, in _STYLE


def _thin(points: list, bins: int = 300) -> list:
    """At most two points a bin, its lowest and its highest: a long run draws fast and keeps its spikes."""
    if len(points) <= 2 * bins:
        return points
    cuts = [len(points) * b // bins for b in range(bins + 1)]
    kept = []
    for start, stop in zip(cuts, cuts[1:]):
        known = [point for point in points[start:stop] if point[1] is not None]
        ends = {min(known, key=itemgetter(1)), max(known, key=itemgetter(1))} if known else {points[start]}
        kept += sorted(ends)  # a bin of None stays a gap
    return kept


def _range(key: str, values: list) -> tuple:
    """The span of the value axis: from 0 for what is never negative, lest a small change look like a large one.

    Explained variance is cut at -1, below which it only says 'useless'.
    """
    low, high = min(values + [0.0]), max(values)
    if key == "ppo/val/var_explained":
        low, high = max(low, -1.0), max(high, 0.0)
    if high - low <= 1e-9 * abs(low):  # one value only, zero or below
        low, high = (0.0, 1.0) if low == 0 else (low * 1.5, low * 0.5)
    pad = (high - low) * 0.06
    return low - pad, high + pad


def _ticks(low: float, high: float) -> list:
    """Three to six round numbers within [low, high]."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _path(points: list, x, y) -> str:
    """The d of an SVG path; None breaks the line, and a lone point becomes a dot (round caps)."""
    parts, pen = [], "M"
    for step, value in points:
        if value is not None:
            parts.append(f"{pen}{x(step):.1f} {y(value):.1f}" + ("h0" if pen == "M" else ""))
        pen = "M" if value is None else "L"
    return "".join(parts)


def _chart(runs: list, key: str) -> str:
    """One metric of all runs as a figure: last values, curves, what healthy looks like; "" where no run has it."""
    metric = metric_of(key)
    curves = [_thin([(row["step"], _finite(row.get(key))) for row in run.metrics]) for run in runs]
    values = [value for curve in curves for _, value in curve if value is not None]
    if not values:
        return ""
    targets = {_kl_target(run.config) for run in runs} - {None} if key == "objective/kl" else set()
    low, high = _range(key, values + list(targets))
    first, last = min(run.metrics[0]["step"] for run in runs), max(run.metrics[-1]["step"] for run in runs)

    def x(step):
        return _LEFT + (_RIGHT - _LEFT) * ((step - first) / (last - first) if last > first else 0.5)

    def y(value):
        return _TOP + (_BASE - _TOP) * (high - max(value, low)) / (high - low)

    now, marks, label = "", "", f"{metric.title} by update"
    for t in _ticks(low, high):
        marks += (f'<path class="grid" d="M{_LEFT} {y(t):.1f}H{_RIGHT}"/>'
                  f'<text class="end" x="{_LEFT - 7}" y="{y(t) + 4:.1f}">{_num(t, ".4g")}</text>')
    for step in sorted({first, (first + last) // 2, last}):
        marks += f'<text class="mid" x="{x(step):.1f}" y="{_H - 6}">{step:,}</text>'
    for t in sorted(targets):
        marks += (f'<path class="target" d="M{_LEFT} {y(t):.1f}H{_RIGHT}"/>'
                  f'<text class="end" x="{_RIGHT}" y="{y(t) - 5:.1f}">target {_num(t)}</text>')
    for i, (run, curve) in enumerate(zip(runs, curves)):
        at, value = (_series(run.metrics, key) or [(first, None)])[-1]
        dot = "" if value is None else f'<circle cx="{x(at):.1f}" cy="{y(value):.1f}" r="2.6"/>'
        marks += f'<g class="curve r{i % _COLOURS}"><path d="{_path(curve, x, y)}"/>{dot}</g>'
        now += f'<b class="r{i % _COLOURS}" title="{escape(run.name)}">{_num(value)}</b>'
        label += f"; {run.name}: last {_num(value)}"
    data = {"box": [_LEFT, _RIGHT, _TOP, _BASE], "steps": [first, last],
            "curves": [[(step, _short(value)) for step, value in curve] for curve in curves]}
    title, what = escape(metric.title), escape(metric.what[0].upper() + metric.what[1:])
    return f"""
<figure><figcaption><h4 title="{title}">{title}</h4><span class="now">{now}<i></i></span></figcaption>
<svg viewBox="0 0 {_W} {_H}" role="img" aria-label="{escape(label)}" data-chart="{escape(json.dumps(data))}">
{marks}<path class="cursor" d=""/></svg>
<p>{escape(metric.healthy)}</p>
<details><summary>What it is</summary><p>{what}. {escape(metric.moves)}</p>
<code>{escape(key)} = {escape(metric.formula)}</code></details></figure>"""


def _curves(runs: list) -> str:
    """The headline curves, and all others folded away, group by group."""
    logged = dict.fromkeys(key for run in runs for row in run.metrics for key in row)
    parts = [key for key in logged if key.startswith("score/")]
    headlines = [_HEADLINES[0], *parts, *_HEADLINES[1:]]
    others = ""
    known = {key: metric.group for key in logged if (metric := metric_of(key)) and key not in headlines}
    for group, title in _GROUPS.items():
        charts = "".join(_chart(runs, key) for key in known if known[key] == group)
        others += f'<h3>{title}</h3><div class="charts">{charts}</div>' if charts else ""
    return (f'<div class="charts">{"".join(_chart(runs, key) for key in headlines)}</div>'
            f'<details class="fold"><summary>All other metrics</summary>{others or "<p>None.</p>"}</details>')


# ---- samples ----

_SHOWN = 5  # samples of one update in the table


def _visible(text: str, space: str = " ") -> str:
    """Text as HTML, its line ends, tabs and control characters as signs that one can see."""
    signs = {"\n": "⏎", "\t": "⇥", " ": space}
    return escape("".join(signs.get(c) or (chr(0x2400 + ord(c)) if c < " " else c) for c in text))


def _samples(run: Run) -> str:
    """A table of samples at the start, in the middle and at the end of a run."""
    steps = sorted({row["step"] for row in run.samples})
    stages = {steps[at]: name for at, name in ((len(steps) // 2, "Middle"), (0, "Start"), (-1, "End")) if steps}
    body = ""
    for step in sorted(stages):
        body += f'<tbody><tr><th colspan="3" scope="rowgroup">{stages[step]} <span>update {step}</span></th></tr>'
        for row in [row for row in run.samples if row["step"] == step][:_SHOWN]:
            parts = " · ".join(f"{name} {_num(_finite(value))}" for name, value in row.get("parts", {}).items())
            body += (f'<tr><td><span class="query">{_visible(row["query"])}</span>{_visible(row["response"])}'
                     f'<small>{escape(parts)}</small></td><td>{_num(_finite(row.get("score")), ".2f")}</td>'
                     f'<td>{_num(_finite(row.get("kl")), ".2f")}</td></tr>')
        body += "</tbody>"
    head = '<th scope="col">Query and response</th><th scope="col">Score</th><th scope="col">KL</th>'
    table = f'<table class="samples"><thead><tr>{head}</tr></thead>{body}</table>'
    return table if body else "<p>None written.</p>"


# ---- token trace ----

_QUANTITIES = {"logprob": "Logprob", "ref_logprob": "Reference logprob", "kl": "KL", "reward": "Reward",
               "value": "Value", "advantage": "Advantage", "return": "Return"}
_FIRST = "kl"  # what is coloured at first, and without JavaScript
_KEPT = 60  # updates of a followed response that the page carries


def _short(value) -> "float | None":
    """Five digits are enough for a colour and a label, and keep the page small."""
    value = _finite(value)
    return None if value is None else float(f"{value:.5g}")


def _traces(runs: list) -> list:
    """The followed responses: dicts of run, query, score, token, steps, values (quantity -> one row a step)."""
    grouped = {}
    for at, run in enumerate(runs):
        for row in run.followed:
            grouped.setdefault((at, row["follow"], row["query"], tuple(row["trace"]["token"])), []).append(row)
    traces = []
    for (at, _, query, tokens), rows in grouped.items():
        kept = [rows[k] for k in sorted({round(k * (len(rows) - 1) / (_KEPT - 1)) for k in range(_KEPT)})]
        values = {q: [[_short(v) for v in row["trace"][q]] for row in kept] for q in _QUANTITIES}
        traces.append({"run": at, "query": query, "score": _finite(kept[-1]["score"]), "token": tokens,
                       "steps": [row["step"] for row in kept], "values": values})
    return traces


def _scales(traces: list) -> dict:
    """The value of the deepest colour, over all updates and runs, shared by quantities that one compares."""
    scales = {q: max((abs(v or 0) for trace in traces for row in trace["values"][q] for v in row), default=0)
              for q in _QUANTITIES}
    for one, other in (("logprob", "ref_logprob"), ("value", "return")):
        scales[one] = scales[other] = max(scales[one], scales[other])
    return scales


def _chip(text: str, value: "float | None", scale: float, title: str = "") -> str:
    """A coloured token over its number; depth follows the square root, so small values show beside a large one."""
    sign = "" if not value else " pos" if value > 0 else " neg"
    depth = math.sqrt(abs(value or 0) / (scale or 1))
    return (f'<span class="tok{sign}" style="--a:{depth:.2f}" title="{title}">{text}'
            f'<small>{_num(value, ".2f")}</small></span>')


def _trace_block(trace: dict, runs: list, scale: float) -> str:
    """One followed response at the last update: each token coloured, its number under it, all numbers as title."""
    chips = ""
    for k, token in enumerate(trace["token"]):
        text, last = _visible(token, "·"), {q: rows[-1][k] for q, rows in trace["values"].items()}
        numbers = ", ".join(f"{name} {_num(last[q])}" for q, name in _QUANTITIES.items())
        chips += _chip(text, last[_FIRST], scale, f"“{text}” at update {trace['steps'][-1]}: {numbers}")
    run = f'<b class="r{trace["run"] % _COLOURS}">{escape(runs[trace["run"]].name)}</b>' if len(runs) > 1 else ""
    return f"""
<article class="trace"><header>{run}<span class="query">{_visible(trace["query"])}</span>
<span class="when">score {_num(trace["score"])} · update {trace["steps"][-1]}</span></header>
<p class="tokens">{chips}</p>
<div class="detail"><p aria-live="polite">Point at a token to read all its numbers.</p></div></article>"""


def _trace(runs: list) -> str:
    """The followed responses: controls, legend, one block a response, and the data for the script."""
    traces = _traces(runs)
    if not traces:
        return "<p>No response was followed.</p>"
    scales = _scales(traces)
    radios = "".join(f'<label><input type="radio" name="q" value="{q}"{" checked" if q == _FIRST else ""}>'
                     f"<span>{name}</span></label>" for q, name in _QUANTITIES.items())
    legend = "".join(_chip("", share * scales[_FIRST], scales[_FIRST]) for share in (-1, -0.25, 0, 0.25, 1))
    data = json.dumps({"names": _QUANTITIES, "scales": scales, "traces": traces}).replace("<", "\\u003c")
    return f"""
<form id="controls"><fieldset><legend>Colour by</legend>{radios}</fieldset>
<label class="slide">Update <output></output><input type="range" name="at" min="0" value="0"></label></form>
<p class="legend"><noscript>{_QUANTITIES[_FIRST]} </noscript><span id="legend">{legend}</span>
blue below zero, orange above</p>
<div class="traces">{"".join(_trace_block(trace, runs, scales[_FIRST]) for trace in traces)}</div>
<script type="application/json" id="data">{data}</script>"""


# ---- the page ----


def _facts(run: Run) -> str:
    """What the run was, in one line."""
    settings, target = _settings(run.config), _kl_target(run.config)
    seconds = sum(value for _, value in _series(run.metrics, "seconds"))
    facts = {"": settings.get("model"), "reward": settings.get("reward"),
             "updates": f"{len(run.metrics)} of {settings.get('steps', '?')}", "batch": settings.get("batch_size"),
             "learning rate": settings.get("learning_rate"), "KL target": target and _num(target),
             "fixed KL coefficient": settings.get("init_kl_coef") if target is None else None,
             "seed": settings.get("seed"),
             "time": f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"}
    given = {name: value for name, value in facts.items() if value is not None}
    return "".join(f"<span>{name} <b>{escape(str(value))}</b></span>" for name, value in given.items())


def _tiles(runs: list) -> str:
    """First and last value of the metrics that one looks at first."""
    tiles = ""
    for key in (*_HEADLINES[:5], "tokens/responses_len_mean"):
        lines = "".join(f'<b class="r{i % _COLOURS}"><span>{_num(points[0][1])} → </span>{_num(points[-1][1])}</b>'
                        for i, run in enumerate(runs) if (points := _series(run.metrics, key)))
        tiles += f"<div><h3>{metric_of(key).title}</h3>{lines}</div>" if lines else ""
    return f'<div class="tiles">{tiles}</div>'


def _configuration(runs: list) -> str:
    """Every setting of every run; rows in which the runs differ stand out."""
    settings = [_settings(run.config) for run in runs]
    rows = f'<tr><th></th>{"".join(f"<th>{escape(run.name)}</th>" for run in runs)}</tr>'
    for key in dict.fromkeys(key for one in settings for key in one):
        cells = [json.dumps(one[key], ensure_ascii=False) if key in one else "–" for one in settings]
        differs = ' class="differs"' if len(set(cells)) > 1 else ""
        rows += f'<tr{differs}><th>{escape(key)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
    return f'<details class="fold"><summary>Configuration</summary><table class="config">{rows}</table></details>'


def _each(runs: list, body) -> str:
    """body(run) for every run, side by side under its name where there are several."""
    cards = ""
    for i, run in enumerate(runs):
        name = f'<h3 class="run r{i % _COLOURS}">{escape(run.name)}</h3>' if len(runs) > 1 else ""
        cards += f'<div class="card">{name}{body(run)}</div>'
    return f'<div class="runs">{cards}</div>'


def _found(run: Run) -> str:
    return f'<ul>{"".join(f"<li>{escape(line)}</li>" for line in findings(run.metrics, run.config))}</ul>'


def _page(runs: list) -> str:
    """The whole document. Its content policy forbids every request, so it cannot fetch anything."""
    title, heads = " and ".join(escape(run.name) for run in runs), ""
    for i, run in enumerate(runs):
        name = f'<b class="r{i % _COLOURS}">{escape(run.name)}</b>' if len(runs) > 1 else ""
        heads += f'<p class="facts">{name}{_facts(run)}</p>'
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark"><title>{title} · minippo</title><style>{_STYLE}</style></head>
<body><main>
<header><p class="eyebrow">minippo run report</p><h1>{title}</h1>{heads}{_tiles(runs)}</header>
<section><h2>Findings</h2>{_each(runs, _found)}</section>
<section><h2>Curves</h2><p class="lead">Under each curve: what a healthy run looks like.</p>
{_curves(runs)}</section>
<section><h2>Samples</h2><p class="lead">Grey is the query, the rest is the policy's.</p>
{_each(runs, _samples)}</section>
<section><h2>Token trace</h2><p class="lead">The same responses, evaluated again under the policy of each shown
update. The number under a token is its own; · is a space, ⏎ a line end.</p>
{_trace(runs)}</section>
{_configuration(runs)}</main><script>{_SCRIPT}</script></body></html>
"""


_STYLE = """
:root { --bg: #f7f7f5; --card: #fff; --ink: #1c2024; --muted: #5f6871; --line: #e4e5e2;
  --pos: 230 97 1; --neg: 33 113 181; --deep: .62; /* orange and blue: told apart by every kind of colour vision */
  --r0: #0072b2; --r1: #c75300; --r2: #00805d; --r3: #a4458a; --r4: #8a6d00; --r5: #56606a }
@media (prefers-color-scheme: dark) { :root { --bg: #111417; --card: #191d21; --ink: #e7e9eb; --muted: #9ba5ae;
  --line: #2b3137; --pos: 240 130 40; --neg: 70 150 230; --deep: .55;
  --r0: #5db7ea; --r1: #ff9a55; --r2: #35cfa1; --r3: #e59ccb; --r4: #e3c646; --r5: #b3bcc5 } }
.r0 { --c: var(--r0) } .r1 { --c: var(--r1) } .r2 { --c: var(--r2) }
.r3 { --c: var(--r3) } .r4 { --c: var(--r4) } .r5 { --c: var(--r5) }
* { box-sizing: border-box }
body { margin: 0; background: var(--bg); color: var(--ink); overflow-wrap: anywhere;
  font: 15px/1.5 ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  font-variant-numeric: tabular-nums }
main { max-width: 1200px; margin: 0 auto; padding: 36px 24px 64px }
h1, h2, h3, h4, p, ul, figure { margin: 0 }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -.015em }
h2 { font-size: 20px; letter-spacing: -.01em; margin-bottom: 12px }
h3, h4 { font-size: 14px; font-weight: 600 }
section { margin-top: 48px }
.eyebrow, .lead, .facts, .query, figure p, small, summary, .when, .detail, .legend { color: var(--muted) }
.eyebrow, figure p, figure details, .legend, .when, .detail, legend, .slide { font-size: 13px }
.lead { max-width: 75ch; margin: -10px 0 14px }
.facts { margin-top: 8px; font-size: 14px; display: flex; flex-wrap: wrap; gap: 2px 18px }
.facts span b { font-weight: 500; color: var(--ink) }
.facts > b, .run, .trace header b, .now b, .tiles b { font-weight: 600; color: var(--c) }
.tiles div, figure, .card, .trace { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  min-width: 0 }
.tiles, .runs, .charts, .traces { display: grid; gap: 16px }
.tiles { grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-top: 24px }
.tiles div { padding: 12px 16px }
.tiles h3 { font-size: 13px; font-weight: 500; color: var(--muted) }
.tiles b { display: block; font-size: 22px; line-height: 1.3 }
.tiles b span { font-size: 14px; font-weight: 400; color: var(--muted) }
.runs, .traces { grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)) }
.card, .trace { padding: 16px 20px }
.card ul { padding-left: 18px; max-width: 85ch }
.card li + li { margin-top: 6px }
.run { margin-bottom: 8px }
.charts { grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)) }
figure { padding: 14px 16px 12px }
figcaption { display: flex; justify-content: space-between; gap: 12px; align-items: baseline }
h4 { flex: 1 1 0; min-width: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
.now { display: flex; flex-wrap: wrap; justify-content: end; gap: 0 10px }
.now i { order: -1; font-style: normal; font-size: 13px; color: var(--muted) }
.now i:empty, [hidden] { display: none !important }
svg { display: block; width: 100%; overflow: visible; margin: 6px 0 4px; touch-action: pan-y }
svg text { font-size: 11.5px; fill: var(--muted) }
.end { text-anchor: end } .mid { text-anchor: middle }
.grid { stroke: var(--line) }
.cursor, .target { stroke: var(--muted) }
.target { stroke-dasharray: 5 4 }
.curve path, polyline { fill: none; stroke: var(--c); stroke-width: 1.75; stroke-linecap: round;
  stroke-linejoin: round }
circle { fill: var(--c) }
summary { cursor: pointer }
code, .tok { font: 12px/1.5 ui-monospace, "SF Mono", Consolas, monospace }
.fold { margin-top: 20px }
.fold h3 { margin: 20px 0 10px }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: 7px 0; font-weight: 400;
  border-top: 1px solid var(--line) }
thead th { border: 0; padding-top: 0; font-size: 13px; color: var(--muted) }
.samples td + td, .samples th + th { text-align: right; padding-left: 14px; width: 1%; white-space: nowrap }
th[colspan] { padding-top: 18px; font-weight: 600 }
th span { font-weight: 400; color: var(--muted); margin-left: 6px }
small { display: block; font-size: 12px }
.config { margin-top: 8px; font-size: 13px }
.config th, .config td { padding: 4px 16px 4px 0 }
.differs > * { font-weight: 600 }
#controls { display: none; flex-wrap: wrap; gap: 12px 32px; align-items: end }
.js #controls { display: flex }
fieldset { border: 0; padding: 0; margin: 0; display: flex; flex-wrap: wrap; gap: 6px; min-width: 0 }
legend, .slide { color: var(--muted) }
legend { padding: 0 0 6px }
fieldset input { position: absolute; opacity: 0 }
fieldset span { display: block; padding: 3px 11px; border: 1px solid var(--line); border-radius: 99px;
  background: var(--card); cursor: pointer; font-size: 14px; color: var(--ink) }
input:checked + span { background: var(--ink); border-color: var(--ink); color: var(--bg) }
input:focus-visible + span { outline: 2px solid var(--r0); outline-offset: 2px }
.slide { flex: 1 1 240px }
.slide output { color: var(--ink); font-weight: 600 }
.slide input { display: block; width: 100%; margin: 8px 0 4px; accent-color: var(--r0) }
.legend { margin: 14px 0 }
#legend .tok { min-width: 46px }
.trace header { display: flex; flex-wrap: wrap; gap: 2px 14px }
.when { margin-left: auto }
.tokens { margin: 10px 0; display: flex; flex-wrap: wrap; gap: 3px }
.tok { display: inline-block; max-width: 100%; padding: 2px 6px; border-radius: 4px; text-align: center; unicode-bidi: isolate;
  font-size: 13px; background: rgb(128 128 128 / .07) }
.tok small { font-size: 10.5px; line-height: 1.3; color: var(--ink) }
.tok.pos { background: rgb(var(--pos) / calc(var(--a) * var(--deep))) }
.tok.neg { background: rgb(var(--neg) / calc(var(--a) * var(--deep))) }
.tok.on { outline: 2px solid var(--ink) }
.detail { border-top: 1px solid var(--line); padding-top: 8px }
.spark { display: flex; align-items: center; gap: 10px; margin-top: 6px; --c: var(--ink) }
.spark svg { flex: 1; min-width: 0; height: 36px; margin: 0 }
@media (max-width: 600px) { main { padding: 24px 16px 48px } section { margin-top: 36px } h1 { font-size: 25px }
  .tiles { grid-template-columns: 1fr 1fr; gap: 8px } .tiles b { font-size: 19px }
  .card, .trace { padding: 14px } }
"""

_SCRIPT = """
document.documentElement.classList.add('js');
const sign = text => text.replace('-', '−');
const short = v => Math.abs(v) >= 1000 ? Math.round(v).toLocaleString('en') : `${+v.toPrecision(3)}`;
const fmt = v => v == null ? '–' : sign(short(v));

// curves: the values under the pointer stand where the last values stood
for (const svg of document.querySelectorAll('[data-chart]')) {
  const {box: [left, right, top, base], steps: [first, last], curves} = JSON.parse(svg.dataset.chart);
  const cursor = svg.querySelector('.cursor'), texts = [...svg.closest('figure').querySelector('.now').children];
  const rest = texts.map(text => text.textContent);
  const move = event => {
    const at = event.offsetX / svg.clientWidth * svg.viewBox.baseVal.width;
    const want = first + Math.min(1, Math.max(0, (at - left) / (right - left))) * (last - first);
    const closer = (a, b) => Math.abs(b[0] - want) < Math.abs(a[0] - want) ? b : a;
    const near = curves.map(curve => curve.reduce(closer)), step = near.reduce(closer)[0];
    const x = left + (right - left) * (last > first ? (step - first) / (last - first) : .5);
    cursor.setAttribute('d', `M${x} ${top}V${base}`);
    texts.forEach((text, i) => text.textContent = i < near.length ? fmt(near[i][1]) : `update ${step}`);
  };
  const leave = () => {
    cursor.setAttribute('d', '');
    texts.forEach((text, i) => text.textContent = rest[i]);
  };
  svg.addEventListener('pointermove', move);
  svg.addEventListener('pointerdown', move);
  svg.addEventListener('pointerleave', event => event.pointerType === 'mouse' && leave());
}

// token trace: the same responses in the colours of another quantity or another update
const data = document.getElementById('data');
if (data) {
  const {names, scales, traces} = JSON.parse(data.textContent), form = document.getElementById('controls');
  const blocks = [...document.querySelectorAll('.trace')], legend = document.getElementById('legend');
  const steps = [...new Set(traces.flatMap(t => t.steps))].sort((a, b) => a - b);
  const paint = (chip, v, scale) => {
    chip.classList.toggle('pos', v > 0);
    chip.classList.toggle('neg', v < 0);
    chip.style.setProperty('--a', Math.sqrt(Math.abs(v || 0) / (scale || 1)).toFixed(2));
    chip.querySelector('small').textContent = v == null ? '–' : sign(v.toFixed(2));
  };
  const detail = (block, t) => {  // the chosen token: all its numbers, and the quantity over the updates
    const chips = [...block.querySelectorAll('.tok')], k = chips.findIndex(chip => chip.classList.contains('on'));
    if (k < 0) return;
    const q = form.q.value, line = t.values[q].map((row, j) => [t.steps[j], row[k]]).filter(p => p[1] != null);
    block.querySelector('.detail p').textContent = chips[k].title;
    block.querySelector('.spark')?.remove();
    if (line.length < 2) return;
    const [first, last] = [line[0], line.at(-1)], ys = line.map(p => p[1]), low = Math.min(...ys);
    const wide = 400 / (last[0] - first[0]), tall = 32 / (Math.max(...ys) - low || 1);
    const points = line.map(([x, y]) => [(x - first[0]) * wide, 34 - (y - low) * tall]);
    block.querySelector('.detail').insertAdjacentHTML('beforeend', `<div class="spark">${names[q]} ${fmt(first[1])}
      <svg viewBox="0 0 400 36" preserveAspectRatio="none"><polyline vector-effect="non-scaling-stroke"
      points="${points}"/></svg>${fmt(last[1])}</div>`);
  };
  const draw = () => {
    const q = form.q.value, step = steps[form.at.value], all = traces.flatMap(t => t.values[q].flat());
    form.querySelector('output').textContent = `${step} of ${steps.at(-1)}`;
    traces.forEach((t, b) => {
      const j = t.steps.reduce((best, s, j) => s <= step ? j : best, 0);
      blocks[b].querySelector('.when').textContent = `score ${fmt(t.score)} · update ${t.steps[j]}`;
      blocks[b].querySelectorAll('.tok').forEach((chip, k) => {
        paint(chip, t.values[q][j][k], scales[q]);
        const numbers = Object.keys(names).map(n => `${names[n]} ${fmt(t.values[n][j][k])}`);
        chip.title = `“${chip.firstChild.textContent}” at update ${t.steps[j]}: ${numbers.join(', ')}`;
      });
      detail(blocks[b], t);
    });
    [-1, -.25, 0, .25, 1].forEach((share, i) => {
      paint(legend.children[i], share * scales[q], scales[q]);
      legend.children[i].hidden = share && !all.some(v => v * share > 0);
    });
  };
  blocks.forEach((block, b) => {
    const choose = event => {
      const chip = event.target.closest('.tok');
      if (!chip) return;
      block.querySelector('.on')?.classList.remove('on');
      chip.classList.add('on');
      detail(block, traces[b]);
    };
    block.addEventListener('pointerover', choose);
    block.addEventListener('click', choose);
    const sizes = traces[b].values[form.q.value].at(-1).map(v => Math.abs(v || 0));
    block.querySelectorAll('.tok')[sizes.indexOf(Math.max(...sizes))]?.classList.add('on');
  });
  form.at.max = form.at.value = steps.length - 1;
  form.addEventListener('input', draw);
  draw();
}
"""


def write_report(run_dir, *more_dirs, out=None) -> Path:
    """Write the report of one run folder, or of several side by side, and return its path.

    out: the file to write; by default report.html in the folder, or comparison.html in the first of several.
    Raises FileNotFoundError for a folder without metrics or config, ValueError for files that are not JSON.
    """
    folders = [run_dir, *more_dirs]
    runs = [_read_run(folder) for folder in folders]
    if len({run.name for run in runs}) < len(runs):
        runs = [run._replace(name=str(folder)) for run, folder in zip(runs, folders)]
    path = Path(out) if out else Path(run_dir) / ("comparison.html" if more_dirs else "report.html")
    write_text(path, _page(runs))
    return path
