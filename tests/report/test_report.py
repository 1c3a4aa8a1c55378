"""report.html: what it finds in a run's numbers, and that it shows them whole, escaped and alone on the page.

    python -m pytest tests/test_report.py
"""

import json
import math
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from conftest import make_policy, make_ragged

from minippo.report import page as report
from minippo.ppo import PPOConfig, PPOTrainer
from minippo.report.page import METRICS, findings, metric_of, write_report

CONFIG = {"model": "gpt2", "reward": "0.8*model:rm + 0.2*rule:length", "steps": 20, "seed": 7,
          "ppo": {"batch_size": 64, "learning_rate": 1.41e-5, "target": 6, "adap_kl_ctrl": True}, "run": {"out": "x"}}
TOKENS = [" so", " good", "\n", "<script>", "</script>", "\"'&"]
VOID = {"meta", "input"}


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


class Page(HTMLParser):
    """Reads a page strictly: every tag is closed in order; keeps the tags, the texts and the scripts."""

    def __init__(self, path: Path):
        super().__init__()
        self.open, self.tags, self.texts, self.scripts = [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> inside {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        (self.scripts if self.open[-1:] == ["script"] else self.texts).append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    def having(self, name: str) -> list:
        return [attrs for _, attrs in self.tags if name in attrs]

    def data(self) -> dict:
        return next(json.loads(script) for script in self.scripts if script.startswith("{"))


# ---- the metric table ----


def test_the_table_explains_every_scalar_that_a_step_returns():
    """What PPOTrainer.step logs is in METRICS; else the report and the tutorial would pass over it in silence."""
    trainer = PPOTrainer(PPOConfig(batch_size=2, mini_batch_size=2, ppo_epochs=1), make_policy(n_layer=1))
    stats = trainer.step(make_ragged([3, 4]), make_ragged([5, 6], seed=1), [1.0, 0.0])
    scalars = [key for key, value in stats.items() if not (isinstance(value, torch.Tensor) and value.dim())]
    assert len(scalars) > 25
    assert [key for key in scalars if metric_of(key) is None] == []


def test_the_table_is_complete_and_without_doubles():
    keys = [metric.key for metric in METRICS]
    assert len(keys) == len(set(keys))
    assert all(all(metric) for metric in METRICS), "a field is empty"
    assert {metric.group for metric in METRICS} == set(report._GROUPS)
    assert metric_of("score/rule:length").title == "Score: rule:length"
    assert metric_of("step") is None


# ---- findings ----


def test_a_healthy_run_gets_one_plain_sentence_with_its_numbers():
    """Score -0.5 to 1.5 and KL 0 to 5, up to the sine of 0.02."""
    (line,) = findings(run_of(), CONFIG)
    assert line.startswith("Nothing unusual: updates 1 to 20, score −0.519 to 1.49, KL −0.0192 to 4.99")


@pytest.mark.parametrize("words, span, changed", [
    ("KL negative for 5 updates", "updates 4 to 8, lowest −2", {"objective__kl": lambda s: -2 if 4 <= s <= 8 else 1}),
    ("KL far over its target of 6", "updates 16 to 20, highest 20", {"objective__kl": lambda s: 20 if s > 15 else 5}),
    ("Clip fraction 0 throughout", "updates 1 to 20): learning rate 1.41e-05", {"ppo__policy__clipfrac": lambda s: 0}),
    ("Clip fraction above 0.3", "updates 9 to 12, highest 0.5",
     {"ppo__policy__clipfrac": lambda s: 0.5 if 9 <= s <= 12 else 0.1}),
    ("Score constant at 0.5", "updates 1 to 20", {"ppo__mean_scores": lambda s: 0.5, "ppo__std_scores": lambda s: 0}),
    ("Every response reaches the length limit", "updates 3 to 20", {"tokens__at_limit": lambda s: float(s > 2)}),
    ("answers every query alike", "updates 11 to 20): at worst a share of 0.1",
     {"samples__distinct": lambda s: 0.1 if s > 10 else 0.55, "ppo__mean_scores": lambda s: math.sin(s)}),
    ("Entropy collapsed from 2.5 to 0.1", "updates 1 to 20", {"ppo__policy__entropy": lambda s: 2.5 if s < 9 else 0.1}),
    ("Explained variance negative late (mean −0.4", "updates 16 to 20", {"ppo__val__var_explained": lambda s: -0.4}),
    ("6 minibatches skipped in 3 of 20 updates", "updates 7 to 9", {"ppo__skipped": lambda s: 2 * (7 <= s <= 9)}),
    ("score/model:rm falls from 18.5 to 0.5", "(updates 1 to 20): over-opt", {"score__model:rm": lambda s: 20 - s}),
    ("samples/distinct falls from 0.977 to 0.695", "over-optimisation", {"samples__distinct": lambda s: 1 - s / 64}),
    ("Not a number", "updates 5 to 6): ppo/loss/value",
     {"ppo__loss__value": lambda s: math.nan if s in (5, 6) else 1.0}),
])
def test_each_fault_is_found_alone_with_its_numbers_and_updates(words, span, changed):
    """One fault is planted in a healthy run, and one sentence comes out.

    The first and last tenth of 20 updates are two values each: (19 + 18) / 2 = 18.5, 1 - 1.5 / 64 = 0.977.
    """
    (line,) = findings(run_of(**changed), CONFIG)
    assert words in line
    assert span in line


def test_what_is_short_or_meant_is_no_finding():
    """Two bad updates are chance, and so is a part that jumps by 3 to 4 and ends 2 lower; equal means of unequal
    scores are a signal; KL without a target has no 'over'; values may start badly; a part may fall with the score."""
    twice = run_of(objective__kl=lambda s: -3 if s in (4, 5, 9) else 1,
                   ppo__policy__clipfrac=lambda s: 0.9 if s < 3 else 0.1)
    equal = run_of(ppo__mean_scores=lambda s: 0.5)  # the spread within a batch is 0.8: there is a signal
    fixed = {**CONFIG, "ppo": {**CONFIG["ppo"], "adap_kl_ctrl": False}}
    falling = run_of(ppo__mean_scores=lambda s: -s, **{"score__model:rm": lambda s: -s})
    noisy = run_of(**{"score__model:rm": lambda s: 3 * s % 7})
    alike = run_of(samples__distinct=lambda s: 1 - s / 128)  # down by 0.14
    learnt = run_of(ppo__val__var_explained=lambda s: -9 if s < 10 else 0.5)
    for metrics, config in ((twice, CONFIG), (equal, CONFIG), (run_of(objective__kl=lambda s: 5 * s), fixed),
                            (falling, CONFIG), (noisy, CONFIG), (alike, CONFIG), (learnt, CONFIG)):
        (line,) = findings(metrics, config)
        assert line.startswith("Nothing unusual")


def test_findings_of_a_single_update_and_of_missing_metrics():
    assert findings([{"step": 1}], {}) == ["Nothing unusual: update 1."]
    assert findings(run_of()[:1], {})[0].startswith("Nothing unusual: update 1, score")


# ---- the page ----


def test_the_page_is_well_formed_and_holds_the_runs_numbers(tmp_path):
    path = write_report(make_run(tmp_path / "first"))
    page = Page(path)
    assert path == tmp_path / "first" / "report.html"
    for said in ("first", "0.8*model:rm + 0.2*rule:length", "20 of 20", "KL target", "1.41e-05", "40 s", "Nothing unusual",
                 "Explained variance", "Policy loss", "Value loss", "Tokens per second", "Start", "Middle", "End",
                 "update 1", "update 10", "update 20", "0.10", "2.00", "model:rm 0.125", "target 6"):
        assert said in page.text, said
    assert "Rises, then levels off while the KL stays bounded." in page.text  # what healthy looks like
    charts = page.having("data-chart")
    assert len(charts) == len(set(healthy(1)) - {"step", "time"})
    scores = next(json.loads(c["data-chart"]) for c in charts if c["aria-label"].startswith("Score by"))
    assert scores["curves"][0][-1] == [20, pytest.approx(1.5 + 0.02 * math.sin(100), abs=1e-4)]
    assert "last 1.49" in next(c["aria-label"] for c in charts if c["aria-label"].startswith("Score by"))


def test_the_page_fetches_nothing(tmp_path):
    """No address, no source, no import; and its own content policy would refuse one."""
    path = write_report(make_run(tmp_path))
    page, text = Page(path), path.read_text(encoding="utf-8")
    assert not page.having("src") and not page.having("href")
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttp|import\(", text)
    assert any(tag.get("content", "").startswith("default-src 'none'") for _, tag in page.tags)


def test_texts_are_escaped_and_line_ends_and_spaces_visible(tmp_path):
    """Tokens and samples hold markup, quotes, a line end, a NUL and half a surrogate pair; none becomes markup."""
    odd = TOKENS + ["\x00", "\ud800", "é"]
    sample = {"step": 1, "query": "<i>q", "response": "a\nb\tc", "score": 1, "parts": {"<u>p": 1}}
    run = make_run(tmp_path / "a&<u>", samples=[followed(1, odd), sample], config={**CONFIG, "<u>k": "<u>v"})
    page = Page(write_report(run))
    assert len([tag for tag, _ in page.tags if tag == "script"]) == 2  # the trace's data and the page's own
    assert not [tag for tag, _ in page.tags if tag == "u"]
    for said in ("a&<u>", "<i>q", "a⏎b⇥c", "·so", "·good", "⏎", "<script>", "</script>", "\"'&", "␀", "é"):
        assert said in page.texts, said
    assert page.data()["traces"][0]["token"][3:5] == ["<script>", "</script>"]


def test_the_trace_carries_every_quantity_of_every_update(tmp_path):
    """Token k: logprob -k - step / 100; the title of the last update says all seven numbers."""
    page = Page(write_report(make_run(tmp_path)))
    (trace,) = page.data()["traces"]
    assert trace["steps"] == [1, 10, 20]
    assert trace["values"]["logprob"][1] == pytest.approx([-k - 0.1 for k in range(6)])
    assert set(trace["values"]) == {"logprob", "ref_logprob", "kl", "reward", "value", "advantage", "return"}
    titles = [tag["title"] for tag in page.having("title") if tag["title"].startswith("“")]
    assert titles[1] == ("“·good” at update 20: Logprob −1.2, Reference logprob −1, KL −0.2, Reward 0, Value −1.2, "
                         "Advantage −1, Return −1.2")
    assert [tag["value"] for tag in page.having("name") if tag["name"] == "q"] == list(trace["values"])
    assert page.data()["scales"]["reward"] == 1.5
    assert page.data()["scales"]["ref_logprob"] == page.data()["scales"]["logprob"] == 5.2  # one scale, to compare


def test_colours_are_signed_and_the_square_root_of_the_share(tmp_path):
    """KL -0.01 at update 1 beside -0.04 at update 4 and 0: the share 1/4 has depth 1/2."""
    row = followed(4, ["a", "b", "c", "d"])
    row["trace"]["kl"] = [-0.04, 0.01, 0, None]
    page = Page(write_report(make_run(tmp_path, samples=[row])))
    tokens = [tag for tag in page.having("style") if tag["title"]]
    assert re.search("a −0.04 b 0.01 c 0.00 d –", page.text)
    assert [(tag["class"], tag["style"]) for tag in tokens] == \
        [("tok neg", "--a:1.00"), ("tok pos", "--a:0.50"), ("tok", "--a:0.00"), ("tok", "--a:0.00")]


def test_a_long_run_keeps_its_spikes_and_its_ends_in_few_points(tmp_path):
    """10,000 updates with one spike of 50 and a gap: at most 600 points, the spike among them; 60 updates a trace."""
    values = [(step, 50.0 if step == 5003 else None if step < 100 else 1.0) for step in range(1, 10001)]
    kept = report._thin(values)
    assert len(kept) <= 600 and (5003, 50.0) in kept and kept[0] == (1, None)
    assert kept == sorted(kept, key=lambda point: point[0])
    page = Page(write_report(make_run(tmp_path, samples=[followed(step) for step in range(1, 501)])))
    steps = page.data()["traces"][0]["steps"]
    assert len(steps) == 60 and (steps[0], steps[-1]) == (1, 500)


def test_gaps_and_single_updates_are_drawn(tmp_path):
    """NaN, null and infinity break the line instead of the page; one update is a dot in the middle."""
    kl = {3: math.nan, 4: None, 5: math.inf}
    page = Page(write_report(make_run(tmp_path / "gaps", run_of(objective__kl=lambda s: kl.get(s, 1.0)))))
    chart = next(json.loads(c["data-chart"]) for c in page.having("data-chart") if c["aria-label"].startswith("KL to"))
    assert [value for _, value in chart["curves"][0][:6]] == [1.0, 1.0, None, None, None, 1.0]
    assert report._path([(1, 0), (2, 1), (3, None), (4, 2)], float, float) == "M1.0 0.0h0L2.0 1.0M4.0 2.0h0"
    page = Page(write_report(make_run(tmp_path / "one", run_of()[:1], samples=[])))
    assert "1 of 20" in page.text and "None written." in page.text and "No response was followed." in page.text


@pytest.mark.parametrize("low, high", [(0, 1), (-0.02, 0.0301), (0, 50257), (1.1e-5, 1.5e-5), (-3e7, 5)])
def test_axis_ticks_are_few_round_and_inside(low, high):
    ticks = report._ticks(low, high)
    assert 3 <= len(ticks) <= 6
    assert low <= ticks[0] and ticks[-1] <= high
    assert all(float(f"{tick:.2g}") == pytest.approx(tick) for tick in ticks)


@pytest.mark.parametrize("value, said", [(None, "–"), (0.0, "0"), (-0.12345, "−0.123"), (999.7, "1,000"),
                                         (50257.4, "50,257"), (1.41e-5, "1.41e−05")])
def test_numbers_are_written_for_people(value, said):
    assert report._num(value) == said


def test_axes_start_at_zero_and_cut_useless_explained_variance():
    """0.95 to 1 is no cliff; -300 in the first update does not flatten the rest. 6 % of margin at either end."""
    assert report._range("samples/distinct", [0.95, 1.0]) == pytest.approx((-0.06, 1.06))
    assert report._range("ppo/val/var_explained", [-300.0, 1.0]) == pytest.approx((-1.12, 1.12))
    assert report._range("ppo/skipped", [0.0, 0.0]) == pytest.approx((-0.06, 1.06))


def test_several_runs_side_by_side(tmp_path):
    """Both names, both last scores, two curves a chart, findings apart, and the setting that differs marked."""
    other = {**CONFIG, "ppo": {**CONFIG["ppo"], "adap_kl_ctrl": False, "init_kl_coef": 0.0}}
    hacked = run_of(ppo__mean_scores=lambda s: float(s), samples__distinct=lambda s: 1 - s / 25)
    first, second = make_run(tmp_path / "first"), make_run(tmp_path / "second", hacked[:15], config=other)
    path = write_report(first, second)
    page = Page(path)
    assert path == first / "comparison.html" and not (first / "report.html").exists()
    assert "Nothing unusual" in page.text and "over-optimisation?" in page.text
    score = next(c for c in page.having("data-chart") if c["aria-label"].startswith("Score by"))
    assert score["aria-label"].endswith("first: last 1.49; second: last 15")
    assert [len(curve) for curve in json.loads(score["data-chart"])["curves"]] == [20, 15]
    assert [trace["run"] for trace in page.data()["traces"]] == [0, 1]
    assert len([tag for tag in page.having("class") if tag["class"] == "differs"]) == 2
    assert write_report(first, second, out=tmp_path / "both.html") == tmp_path / "both.html"


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    a, b = make_run(tmp_path / "a" / "run"), make_run(tmp_path / "b" / "run")
    assert f"{a} and {b}" in Page(write_report(a, b)).text


# ---- faults ----


@pytest.mark.parametrize("tail", ['{"step": 21, "ppo/mean_sc', '{"step": 21, "query": "caf\\', "{"])
def test_a_torn_last_line_is_left_out(tmp_path, tail):
    assert "20 of 20" in Page(write_report(make_run(tmp_path, tail=tail))).text


def test_a_bad_line_in_the_middle_is_named(tmp_path):
    run = make_run(tmp_path, tail='{"step": 21\n' + json.dumps(healthy(22)) + "\n")
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 21: expected a JSON object"):
        write_report(run)


@pytest.mark.parametrize("file, content, error, words", [
    ("metrics.jsonl", None, FileNotFoundError, "not a run folder: it has no metrics.jsonl"),
    ("metrics.jsonl", "", ValueError, "holds no whole update yet"),
    ("metrics.jsonl", '{"step": 1, "pp', ValueError, "holds no whole update yet"),
    ("config.json", "{", ValueError, "config.json is not JSON"),
])
def test_a_folder_without_a_run_is_refused_before_anything_is_written(tmp_path, file, content, error, words):
    run = make_run(tmp_path / "run")
    (run / file).unlink() if content is None else (run / file).write_text(content)
    before = sorted(os.listdir(run))
    with pytest.raises(error, match=words):
        write_report(run)
    assert sorted(os.listdir(run)) == before


def test_a_crash_while_writing_leaves_the_old_report_and_no_litter(tmp_path, monkeypatch):
    run = make_run(tmp_path)
    old = write_report(run).read_bytes()
    before = sorted(os.listdir(run))

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(run)
    assert (run / "report.html").read_bytes() == old
    assert sorted(os.listdir(run)) == before
