"""report.html: a training run as one page that needs nothing else.

A run folder (config.json, metrics.jsonl, samples.jsonl) becomes findings in words, learning curves, samples and the token
trace: every token of a followed response with all its numbers, over the updates. Several folders are laid side by side.
Standard library only; the page fetches nothing and reads without JavaScript.

    python -m minippo report runs/x            # writes runs/x/report.html
    python -m minippo report runs/x runs/y     # writes runs/x/comparison.html

A run folder is data, and may come from anyone: each line is checked as it is read, every text of it reaches the page through
`_text`, and the page's policy lets no script run but page.js, by its hash. Runs that differ in nothing but their seed share a
colour, and a curve: their mean, in a band of one standard deviation. Left out: a plotting package; a curve is one SVG path.
"""

import json
import math
import time
import unicodedata
from base64 import b64encode
from hashlib import sha256
from html import escape
from itertools import accumulate, groupby
from operator import itemgetter
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from ..files.atomic import read_text, write_text
from ..metrics import GROUPS, metric_of
from .findings import findings, finite, kl_target, number, settings

_HEADLINES = ("ppo/mean_scores", "objective/kl", "ppo/policy/entropy", "samples/distinct", "ppo/policy/clipfrac",
              "ppo/val/var_explained", "tokens/responses_len_mean", "ppo/loss/policy", "ppo/loss/value")
_QUANTITIES = {"logprob": "Logprob", "ref_logprob": "Reference logprob", "kl": "KL", "reward": "Reward",
               "value": "Value", "advantage": "Advantage", "return": "Return"}
_FIRST = "kl"  # what is coloured at first, and without JavaScript
_ASIDE = {"seed", "out", "quiet", "one_line", "report_every", "save_every", "keep_checkpoints", "keep_best"}
_SHOWN, _KEPT, _COLOURS = 5, 60, 6  # samples of an update in the table, updates of a response, colours of runs in page.css
_W, _H, _LEFT, _RIGHT, _TOP, _BASE = 380, 176, 46, 368, 10, 152  # of a chart, in its own units, and of its plot
_SIGNS = {**{chr(c): chr(0x2400 + c) for c in range(32)}, "\n": "⏎", "\t": "⇥", "\x7f": "␡"}
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control and direction characters, half pairs, line ends; \u200c and \u200d join


class Run(NamedTuple):  # what a run folder says
    name: str
    config: dict
    metrics: list  # one dict per update, in order
    samples: list  # {"step", "query", "response", "score", ...}
    evaluated: list  # the same with "eval", which of the responses to the evaluation prompts
    followed: list  # the same with "follow" and "trace"
    colour: int = 0


def _json(text: bytes):
    """What the text says; None where it is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # RecursionError: a hundred thousand brackets
        return None


def _is_update(row) -> bool:
    """A line of metrics.jsonl; what is no number in it is left out of the curves."""
    return isinstance(row, dict) and type(row.get("step")) is int and 0 <= row["step"] < 2**53


def _is_sample(row) -> bool:
    """A line of samples.jsonl; a trace is a list of tokens, and for each quantity one as long, of numbers or what else."""
    if not (_is_update(row) and all(isinstance(row.get(key), str) for key in ("query", "response"))):
        return False
    trace = row.get("trace", {name: [] for name in ("token", *_QUANTITIES)})
    columns = [trace.get(name) if isinstance(trace, dict) else None for name in ("token", *_QUANTITIES)]
    return (isinstance(row.get("parts", {}), dict) and type(row.get("eval", 0)) is int
            and ("trace" not in row or type(row.get("follow")) is int)
            and all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns)
            and all(isinstance(token, str) for token in columns[0]))


def _read_jsonl(path: Path, fits, wanted: str) -> list:
    """One dict a line, by their steps. A last line torn by a crash is left out; ValueError if any other does not fit."""
    *lines, tail = path.read_bytes().split(b"\n")
    lines += [tail] if _json(tail) is not None else []  # whole, but for its newline
    rows = [_json(line) for line in lines]
    for at, (line, row) in enumerate(zip(lines, rows), start=1):
        if not fits(row):
            raise ValueError(f"{path}, line {at}: expected a JSON object with {wanted}, got {line[:60]!r}; mend it")
    return sorted(rows, key=itemgetter("step"))


def _read_run(run_dir) -> Run:
    """A run folder as a Run; FileNotFoundError or ValueError where there is nothing to report."""
    folder, samples = Path(run_dir), []
    if not (path := folder / "metrics.jsonl").is_file():
        raise FileNotFoundError(f"{folder} is not a run folder: it has no metrics.jsonl; give one that `train --out` wrote")
    if not (metrics := _read_jsonl(path, _is_update, 'a "step", a whole number')):
        raise ValueError(f"{path} holds no whole update yet; run at least one")
    config = _json(text := read_text(folder / "config.json", 2**24))  # a pipe would keep us waiting for ever
    if not (isinstance(config, dict) and all(isinstance(config.get(part, {}), dict) for part in ("run", "ppo"))):
        raise ValueError(f"{folder / 'config.json'}: expected a run's JSON object of settings, got {text[:60]!r}; mend it")
    if (path := folder / "samples.jsonl").is_file():
        samples = _read_jsonl(path, _is_sample, 'a "step", a "query", a "response" and, if any, a whole "trace"')
    kinds = {kind: [row for row in samples if ("trace" if "trace" in row else "eval" if "eval" in row else "") == kind]
             for kind in ("", "eval", "trace")}
    return Run(folder.resolve().name, config, metrics, *kinds.values())


def _groups(runs: list) -> list:
    """The runs in their colours: groups that differ in nothing but their seed and what never reaches the numbers, as given."""
    groups = {}
    for run in runs:
        given = {key: value for key, value in settings(run.config).items() if key not in _ASIDE}
        groups.setdefault(json.dumps(given, sort_keys=True), []).append(run)
    return [[run._replace(colour=i % _COLOURS) for run in group] for i, group in enumerate(groups.values())]


def _means(group: list, key: str) -> list:
    """[(step, mean, deviation)] over the runs of a group, at the updates that all of them have; None where one lacks the value."""
    columns = [{row["step"]: finite(row.get(key)) for row in run.metrics if key in row or key[:5] != "eval/"} for run in group]
    rows = [(step, [column[step] for column in columns]) for step in columns[0] if all(step in column for column in columns)]
    return [(step, None if None in values else fmean(values), stdev(values) if len(values) > 1 and None not in values else 0.0)
            for step, values in rows]


def _evenly(rows: list, most: int) -> list:
    """At most so many of them, evenly apart, the first and the last among them."""
    return [rows[k] for k in sorted({round(k * (len(rows) - 1) / (most - 1)) for k in range(most)})] if rows else []


def _text(text: str, space: str = " ") -> str:
    """Any text as HTML that is shown and not obeyed: markup is escaped, what cannot be seen becomes a sign that can."""
    hidden = {c: repr(c)[1:-1] for c in set(text) - {"\u200c", "\u200d"} if unicodedata.category(c) in _HIDDEN} | _SIGNS
    return escape("".join(hidden.get(c, c) for c in text).replace(" ", space))


def _names(groups: list) -> list:
    """The groups in their colours, each under the name of its first run; "" for a run that is alone."""
    return [f'<b class="name r{group[0].colour}">{_text(group[0].name)}{f", mean of {len(group)}" if len(group) > 1 else ""}</b>'
            for group in groups] if len(groups) > 1 or len(groups[0]) > 1 else [""]


def _thin(points: list) -> list:
    """Of more than 600 points the lowest and the highest of each bin: a long run draws fast and keeps its spikes."""
    kept, n = [], len(points)
    for b in range(300 if n > 600 else 0):
        near = points[n * b // 300:n * (b + 1) // 300]
        known = [point for point in near if point[1] is not None] or near[:1]  # of None alone: stays a gap
        kept += sorted({min(known, key=itemgetter(1)), max(known, key=itemgetter(1))})
    return kept or points


def _range(key: str, values: list) -> tuple:
    """The span of the value axis: from 0 for what is never negative, lest a small change look like a large one."""
    low, high = min(values + [0.0]), max(values)
    if key == "ppo/val/var_explained":  # below -1 it only says 'useless'
        low, high = max(low, -1.0), max(high, 0.0)
    if high - low <= 1e-9 * abs(low):  # one value only, zero or below
        low, high = (0.0, 1.0) if low == 0 else (low * 1.5, low * 0.5)
    return low - (high - low) * 0.06, high + (high - low) * 0.06


def _ticks(low: float, high: float) -> list:
    """Three to six round numbers within [low, high]."""
    power = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= (high - low) / 5 * 0.999)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _path(points: list, x, y) -> str:
    """The d of an SVG path; None breaks the line, and a lone point becomes a dot (round caps)."""
    stretches = [list(group) for known, group in groupby(points, lambda point: point[1] is not None) if known]
    return "".join(f"M{'L'.join(f'{x(step):.1f} {y(value):.1f}' for step, value, *_ in stretch)}h0" for stretch in stretches)


def _chart(groups: list, key: str) -> str:
    """One metric of all runs as a figure: last values, curves, what healthy looks like; "" where no run has it."""
    metric, runs = metric_of(key), [run for group in groups for run in group]
    curves = [_thin(_means(group, key)) for group in groups]
    values = [end for curve in curves for _, value, off in curve if value is not None for end in (value - off, value + off)]
    if not values:
        return ""
    targets = {kl_target(run.config) for run in runs} - {None} if key == "objective/kl" else set()
    low, high = _range(key, values + list(targets))
    first, last = min(run.metrics[0]["step"] for run in runs), max(run.metrics[-1]["step"] for run in runs)

    def x(step):
        return _LEFT + (_RIGHT - _LEFT) * ((step - first) / (last - first) if last > first else 0.5)

    def y(value):
        return _TOP + (_BASE - _TOP) * (high - max(value, low)) / (high - low)

    now, label = "", f"{metric.title} by update"
    marks = "".join(f'<path class="grid" d="M{_LEFT} {y(t):.1f}H{_RIGHT}"/><text class="end" x="{_LEFT - 7}" '
                    f'y="{y(t) + 4:.1f}">{number(t, ".4g")}</text>' for t in _ticks(low, high))
    for step in sorted({first, (first + last) // 2, last}):
        marks += f'<text class="mid step" x="{x(step):.1f}" y="{_H - 6}">{step:,}</text>'
    for group, curve in zip(groups, curves):
        known = [point for point in curve if point[1] is not None]
        edges = [(s, v + off) for s, v, off in known] + [(s, v - off) for s, v, off in reversed(known)] if len(group) > 1 else []
        band = f'<path class="band" d="M{"L".join(f"{x(s):.1f} {y(v):.1f}" for s, v in edges)}Z"/>' if edges else ""
        dot = "".join(f'<circle cx="{x(s):.1f}" cy="{y(v):.1f}" r="2.6"/>' for s, v, _ in known[-1:])
        marks += f'<g class="curve r{group[0].colour}">{band}<path d="{_path(curve, x, y)}"/>{dot}</g>'
        said = number(known[-1][1] if known else None) + (f" ± {number(known[-1][2], '.2g')}" if known and len(group) > 1 else "")
        now += f'<b class="r{group[0].colour}" title="{_text(group[0].name)}">{said}</b>'
        label += f"; {group[0].name}: last {said}"
    marks += "".join(f'<path class="target" d="M{_LEFT} {y(t):.1f}H{_RIGHT}"/>'
                     f'<text class="end" x="{_RIGHT}" y="{y(t) - 5:.1f}">target {number(t)}</text>' for t in sorted(targets))
    data = {"box": [_LEFT, _RIGHT, _TOP, _BASE], "steps": [first, last], "range": [low, high],
            "curves": [[(step, _short(value)) for step, value, _ in curve] for curve in curves]}
    return f"""
<figure><figcaption><h4>{_text(metric.title)}</h4><span class="now">{now}</span></figcaption>
<svg viewBox="0 0 {_W} {_H}" role="img" aria-label="{_text(label)}" data-chart="{escape(json.dumps(data))}">
{marks}<path class="cursor" d=""/><text class="at mid" y="{_H - 6}"></text></svg>
<p>{escape(metric.healthy)}</p>
<details><summary>What it is</summary><p>{escape(metric.what[0].upper() + metric.what[1:])}. {escape(metric.moves)}</p>
<code>{_text(key)} = {escape(metric.formula)}</code></details></figure>"""


def _curves(groups: list) -> tuple:
    """The headline curves, and all others folded away, kind by kind; and the curves of the evaluations."""
    logged = dict.fromkeys(key for group in groups for run in group for row in run.metrics for key in row)
    headlines = [_HEADLINES[0], *(key for key in logged if key.startswith("score/")), *_HEADLINES[1:]]
    kinds = {kind: "".join(_chart(groups, key) for key in logged if key not in headlines and (metric := metric_of(key))
                           and metric.group == kind) for kind in GROUPS}
    evaluated = kinds.pop("eval")
    others = "".join(f'<h3>{GROUPS[kind]}</h3><div class="charts">{charts}</div>' for kind, charts in kinds.items() if charts)
    times = [_evenly([*zip([row[0] for row in seconds], accumulate(row[1] or 0.0 for row in seconds))], 300)
             for seconds in (_means(group, "seconds") for group in groups)]
    return (f'<div class="charts" id="headlines" data-times="{json.dumps(times)}">{"".join(_chart(groups, key) for key in headlines)}</div>'
            f'<details class="fold"><summary>All other metrics</summary>{others or "<p>None.</p>"}</details>'), evaluated


def _evaluated(run: Run) -> str:
    """The same evaluation prompts over the updates: a row for each, a column for each of a few updates."""
    cells, table = {(row["eval"], row["step"]): row for row in run.evaluated}, ""
    steps = _evenly(sorted({step for _, step in cells}), _SHOWN)
    for i, query in sorted({row["eval"]: row["query"] for row in run.evaluated}.items()):
        table += f'<tr><td><bdi class="query">{_text(query)}</bdi></td>'
        for row in (cells.get((i, step), {}) for step in steps):
            score, kl = (number(finite(row.get(key)), ".2f") for key in ("score", "kl"))
            table += f'<td><bdi>{_text(row.get("response", ""))}</bdi><small>score {score} · KL {kl}</small></td>'
        table += "</tr>"
    head = "".join(f'<th scope="col">{title}</th>' for title in ("Prompt", *(f"Update {step}" for step in steps)))
    return f'<div class="wide"><table class="evals"><tr>{head}</tr>{table}</table></div>'


def _samples(run: Run) -> str:
    """A table of samples at the start, in the middle and at the end of a run."""
    steps = sorted({row["step"] for row in run.samples})
    if not steps:
        return "<p>None written.</p>"
    stages = {steps[at]: name for at, name in ((len(steps) // 2, "Middle"), (0, "Start"), (-1, "End"))}
    head = "".join(f'<th scope="col">{title}</th>' for title in ("Query and response", "Score", "KL"))
    table = f'<table class="samples"><thead><tr>{head}</tr></thead>'
    for step in sorted(stages):
        rows = [row for row in run.samples if row["step"] == step]
        few = f", showing {_SHOWN} of {len(rows)}" if len(rows) > _SHOWN else ""
        table += f'<tbody><tr><th colspan="3" scope="rowgroup">{stages[step]} <span>update {step}{few}</span></th></tr>'
        for row in rows[:_SHOWN]:
            parts = " · ".join(f"{name} {number(finite(value))}" for name, value in row.get("parts", {}).items())
            score, kl = (number(finite(row.get(key)), ".2f") for key in ("score", "kl"))
            table += (f'<tr><td><bdi class="query">{_text(row["query"])}</bdi><bdi>{_text(row["response"])}</bdi>'
                      f'<small>{_text(parts)}</small></td><td>{score}</td><td>{kl}</td></tr>')
        table += "</tbody>"
    left = f'<p class="lead left">Left out: samples of {len(steps) - 3} updates between these.</p>' if len(steps) > 3 else ""
    return f"{table}</table>{left}"


def _short(value) -> "float | None":
    """Five digits are enough for a colour and a label, and keep the page small."""
    return finite(value) and float(f"{finite(value):.5g}")


def _traces(runs: list) -> list:
    """The followed responses: dicts of run, query, score, token, steps, values (quantity -> one row a step)."""
    grouped = {}
    for at, run in enumerate(runs):
        for row in run.followed:
            grouped.setdefault((at, row["follow"], row["query"], tuple(row["trace"]["token"])), []).append(row)
    traces = []
    for (at, _, query, tokens), rows in grouped.items():
        kept = _evenly(rows, _KEPT)
        values = {q: [[_short(v) for v in row["trace"][q]] for row in kept] for q in _QUANTITIES}
        traces.append({"run": at, "query": query, "score": finite(kept[-1].get("score")), "token": tokens,
                       "steps": [row["step"] for row in kept], "rows": len(rows), "values": values})
    return traces


def _chip(text: str, value: "float | None", scale: float, title: str = "") -> str:
    """A coloured token over its number; depth follows the square root, so small values show beside a large one."""
    sign = "" if not value else " pos" if value > 0 else " neg"
    depth = math.sqrt(abs(value or 0) / (scale or 1))
    said = number(value, ".2f")
    return f'<span class="tok{sign}" style="--a:{depth:.2f}" title="{title}">{text}<small>{said}</small></span>'


def _trace(runs: list) -> str:
    """The followed responses at their last updates, all numbers as titles; controls, legend, and the data for the script."""
    traces = _traces(runs)
    if not traces:
        return "<p>No response was followed.</p>"
    scales = {q: max((abs(v or 0) for trace in traces for row in trace["values"][q] for v in row), default=0)
              for q in _QUANTITIES}  # of the deepest colour, over all updates and runs
    for one, other in (("logprob", "ref_logprob"), ("value", "return")):  # which one compares
        scales[one] = scales[other] = max(scales[one], scales[other])
    scale, names, blocks = scales[_FIRST], _names([[run] for run in runs]), ""
    for trace in traces:
        chips, step = "", trace["steps"][-1]
        for k, token in enumerate(trace["token"]):
            text, last = _text(token, "·"), {q: rows[-1][k] for q, rows in trace["values"].items()}
            numbers = ", ".join(f"{name} {number(last[q])}" for q, name in _QUANTITIES.items())
            chips += _chip(text, last[_FIRST], scale, f"“{text}” at update {step}: {numbers}")
        blocks += f"""
<article class="trace"><header>{names[trace["run"]]}<bdi class="query">{_text(trace["query"])}</bdi>
<span class="when">score {number(trace["score"])} · update {step}</span></header>
<p class="tokens">{chips}</p>
<div class="detail"><p aria-live="polite">Point at a token to read all its numbers.</p></div></article>"""
    radios = "".join(f'<label><input type="radio" name="q" value="{q}"{" checked" if q == _FIRST else ""}>'
                     f"<span>{name}</span></label>" for q, name in _QUANTITIES.items())
    legend = "".join(_chip("", share * scale, scale) for share in (-1, -0.25, 0, 0.25, 1))
    most = max(trace["rows"] for trace in traces)
    few = f' <p class="lead left">Showing {_KEPT} of {most} updates, evenly apart.</p>' if most > _KEPT else ""
    data = json.dumps({"names": _QUANTITIES, "scales": scales, "traces": traces}).replace("<", "\\u003c")
    return f"""
<form id="controls"><fieldset><legend>Colour by</legend>{radios}</fieldset>
<label class="slide">Update <output></output><input type="range" name="at" min="0" value="0"></label></form>
<p class="legend"><noscript>{_QUANTITIES[_FIRST]} </noscript><span id="legend">{legend}</span>
blue below zero, orange above</p>{few}
<div class="traces">{blocks}</div><script type="application/json" id="data">{data}</script>"""


def _heads(groups: list) -> str:
    """The facts: what all runs share once, then the groups with what they differ in, under colours that stay in sight."""
    def told(run: Run) -> dict:
        given, target = settings(run.config), kl_target(run.config)
        seconds = sum(finite(row.get("seconds")) or 0.0 for row in run.metrics)
        facts = {"": given.get("model"), "reward": given.get("reward"),
                 "updates": f"{len(run.metrics)} of {given.get('steps', '?')}", "batch": given.get("batch_size"),
                 "learning rate": given.get("learning_rate"), "KL target": target and number(target),
                 "fixed KL coefficient": given.get("init_kl_coef") if target is None else None, "seed": given.get("seed"),
                 "time": f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"}
        return {name: str(value) for name, value in facts.items() if value is not None}

    facts, heads = [[told(run) for run in group] for group in groups], ""
    shared = {k: v for k, v in facts[0][0].items() if all(one.get(k) == v for group in facts for one in group)}
    own = [{k: ", ".join(dict.fromkeys(one.get(k, "–") for one in group)) for k in group[0] if k not in shared} for group in facts]
    for name, several in zip(["", *_names(groups)], [shared, *own]):
        spans = "".join(f"<span>{k} <b>{_text(v)}</b></span>" for k, v in several.items())
        heads += f'<p class="facts">{name}{spans}</p>' if name or spans else ""
    return heads


def _configuration(runs: list) -> str:
    """Every setting: those in which the runs differ beside each other, in bold, then once what they share."""
    given, rows = [settings(run.config) for run in runs], {True: "", False: ""}
    for key in dict.fromkeys(key for one in given for key in one):
        cells = [_text(json.dumps(one[key], ensure_ascii=False)) if key in one else "–" for one in given]
        same = len(set(cells)) == 1
        told = "".join(f"<td>{cell}</td>" for cell in cells[:1 if same else None])
        rows[same] += f'<tr class="{"same" if same else "differs"}"><th>{_text(key)}</th>{told}</tr>'
    head = "".join(f"<th>{name}</th>" for name in ["", *_names([[run] for run in runs])])
    differing = rows[False] and f'<div class="wide"><table class="config"><tr>{head}</tr>{rows[False]}</table></div>'
    shared = f'{"<h3>The same in all</h3>" if len(runs) > 1 else ""}<table class="config">{rows[True]}</table>'
    return f'<details class="fold"><summary>Every setting</summary>{differing}{shared}</details>'


def _each(runs: list, body) -> str:
    """body(run) for every run, side by side under its name where there are several."""
    heads = [f'<h3 class="run">{name}</h3>' if name else "" for name in _names([[run] for run in runs])]
    cards = "".join(f'<div class="card">{head}{body(run)}</div>' for head, run in zip(heads, runs))
    return f'<div class="runs">{cards}</div>'


def write_report(run_dir, *more_dirs, out=None, live=0) -> Path:
    """Write the report of one run folder, or of several side by side, and return its path.

    out: the file to write; by default report.html in the folder, or comparison.html in the first of several.
    live: of a run that goes on: seconds after which an open page loads itself again; 0, of one that is over: never.
    Raises FileNotFoundError for a folder without metrics or config, ValueError for files that are not a run's, by line.
    """
    runs = [_read_run(folder) for folder in (run_dir, *more_dirs)]
    if len({run.name for run in runs}) < len(runs):
        runs = [run._replace(name=str(folder)) for run, folder in zip(runs, (run_dir, *more_dirs))]
    again = f'<meta http-equiv="refresh" content="{live}">' if live else ""
    written = f" · updated at {time.strftime('%H:%M:%S')}, looks again every {live} s while the run goes on" if live else ""
    groups = _groups(runs)
    runs = [run for group in groups for run in group]
    style, script = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    ours = b64encode(sha256(script.encode()).digest()).decode()
    title = " and ".join(_text(run.name) for run in runs) if len(runs) < 3 else f"{len(runs)} runs"
    found = _each(runs, lambda run: f"<ul><li>{'</li><li>'.join(map(_text, findings(run.metrics, run.config)))}</li></ul>")
    heading = " and ".join(f"<bdi>{_text(run.name)}</bdi>" for run in runs) if len(runs) < 3 else title
    key = f'<nav class="key">{"".join(_names(groups))}</nav>' if len(runs) > 1 else ""
    curves, evaluated = _curves(groups)
    evaluated = evaluated and f'<div class="charts">{evaluated}</div>{_each(runs, _evaluated)}'
    sections = {"Findings": found, "Curves": f'<p class="lead">Under each curve: what a healthy run looks like.</p>{curves}',
                "Evaluation": evaluated and f'<p class="lead">The same prompts and random numbers each time.</p>{evaluated}',
                "Samples": f'<p class="lead">Grey is the query, the rest is the policy\'s.</p>{_each(runs, _samples)}',
                "Token trace": f"""<p class="lead">The same responses, evaluated again under the policy of each shown
update. The number under a token is its own; · is a space, ⏎ a line end.</p>{_trace(runs)}""", "Configuration": _configuration(runs)}
    sections = {title: body for title, body in sections.items() if body}
    contents = "".join(f'<a href="#{title.replace(" ", "-")}">{title}</a>' for title in sections)
    body = "".join(f'<section id="{title.replace(" ", "-")}"><h2>{title}</h2>{text}</section>' for title, text in sections.items())
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{ours}'">{again}
<meta name="color-scheme" content="light dark"><title>{title} · minippo</title><style>{style}</style></head>
<body{' class="several"' if len(runs) > 1 else ""}><main>
<header><p class="eyebrow">minippo run report{written}</p><h1>{heading}</h1>{_heads(groups)}</header>
<nav class="contents">{contents}</nav>{key}{body}</main><script>{script}</script></body></html>"""
    path = Path(out) if out else Path(run_dir) / ("comparison.html" if more_dirs else "report.html")
    write_text(path, page)
    return path
