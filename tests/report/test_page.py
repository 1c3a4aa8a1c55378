"""report.html: it shows a run's numbers whole, escaped and alone on the page, and obeys nothing that the run's files say.

    python -m pytest tests/report/test_page.py
"""

import json
import math
import os
import re
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import pytest
from runs import CONFIG, TOKENS, followed, healthy, make_run, run_of

from minippo.report import page as report
from minippo.report import write_report
from minippo.report.findings import number

VOID = {"meta", "input"}


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


def own_places(page: Page) -> list:
    """Where a link may lead: to a section of the page."""
    return [f"#{attrs['id']}" for tag, attrs in page.tags if tag == "section"]


def test_the_page_fetches_nothing(tmp_path):
    """No address, no source, no import; and its own content policy would refuse one."""
    path = write_report(make_run(tmp_path))
    page, text = Page(path), path.read_text(encoding="utf-8")
    assert not page.having("src") and own_places(page) == [attrs["href"] for attrs in page.having("href")]
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttp|import\(", text)
    assert any(tag.get("content", "").startswith("default-src 'none'") for _, tag in page.tags)


def test_a_page_loads_itself_again_while_the_run_goes_on_and_not_afterwards(tmp_path):
    run = make_run(tmp_path)
    page = Page(write_report(run, live=30))
    assert [tag["content"] for tag in page.having("http-equiv") if tag["http-equiv"] == "refresh"] == ["30"]
    assert re.search(r"updated at \d\d:\d\d:\d\d, looks again every 30 s while", page.text)
    page = Page(write_report(run))
    assert "refresh" not in [tag["http-equiv"] for tag in page.having("http-equiv")] and "updated at" not in page.text


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


EVIL = "</script><img src=x onerror=alert(1)>\"'><script>alert(2)</script>\u202e"


def crafted(folder: Path) -> Path:
    """A run folder in which every text, every name and every number that may be a text is EVIL."""
    trace = followed(1, [EVIL, EVIL])
    trace["trace"].update(kl=[EVIL, 1], value=[None, EVIL])
    sample = {"step": 1, "query": EVIL, "response": EVIL, "score": EVIL, "kl": EVIL, "parts": {EVIL: EVIL}}
    metrics = [{**healthy(1), f"score/{EVIL}": 1.0, EVIL: EVIL, "objective/kl": EVIL, "seconds": EVIL, "ppo/policy/entropy": None}]
    config = {"model": EVIL, "reward": {EVIL: [EVIL]}, "steps": EVIL, "seed": EVIL, EVIL: EVIL,
              "ppo": {"target": EVIL, "batch_size": EVIL, "learning_rate": EVIL, "init_kl_coef": EVIL, EVIL: EVIL}, "run": {"out": EVIL}}
    return make_run(folder, metrics, [sample, {**trace, "query": EVIL, "score": EVIL}], config)


def test_a_crafted_run_folder_runs_no_script(tmp_path):
    """Nothing of it becomes a tag, an attribute or a direction, and the page's policy allows one script by its hash: page.js."""
    name = EVIL.replace("/", "\u2215")
    paths = [write_report(crafted(tmp_path / name)), write_report(crafted(tmp_path / "a" / name), crafted(tmp_path / "b" / ("<u>" + name)))]
    for path in paths:
        page, script = Page(path), Path(report.__file__).with_name("page.js").read_text(encoding="utf-8")
        assert not {tag for tag, _ in page.tags} & {"img", "u", "iframe", "object", "base"}
        assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on") or name in ("src", "srcdoc")]
        assert own_places(page) == [attrs["href"] for attrs in page.having("href")]
        assert [text == script for text in page.scripts] == [False, True] and "<" not in page.scripts[0]
        (policy,) = [tag["content"] for tag in page.having("content") if "default-src" in tag["content"]]
        digest = b64encode(sha256(script.encode()).digest()).decode()
        assert policy.split("; ")[2] == f"script-src 'sha256-{digest}'"
        assert "\u202e" not in path.read_text(encoding="utf-8")
        assert page.text.count("\\u202e") > 10                          # shown


@pytest.mark.parametrize("file, line", [
    ("metrics", "[]"), ("metrics", "1"), ("metrics", "null"), ("metrics", "{}"), ("metrics", ""), ("metrics", "\x00"),
    *[("metrics", json.dumps({"step": step})) for step in ("<img src=x onerror=alert(1)>", None, True, 1.5, -1, 10**400, 2**53, [1])],
    ("metrics", '{"step": ' + "9" * 5000 + "}"), ("metrics", "[" * 100_000),
    *[("samples", json.dumps({"step": 1, "query": "q", "response": "r", **changed})) for changed in (
        {"step": "<img>"}, {"eval": "<img>"}, {"query": None}, {"response": ["r"]}, {"parts": [1]}, {"parts": None}, {"trace": None}, {"trace": {}},
        {"trace": followed(1)["trace"]}, {**followed(1), "follow": "<img>"}, {**followed(1), "trace": {**followed(1)["trace"], "kl": [1]}},
        {**followed(1), "trace": {**followed(1)["trace"], "token": [1] * 6}}, {**followed(1), "trace": {"token": TOKENS}})],
    ("samples", '{"step": 1}'), ("samples", '{"text": "good", "label": 1}'), ("samples", "42"),
], ids=str)
def test_a_line_that_no_run_writes_is_one_clear_error(tmp_path, file, line):
    """Whether it is the last line or not: only a last line that is no JSON and has no end was torn by a crash."""
    run = make_run(tmp_path)
    path = run / f"{file}.jsonl"
    good = path.read_text()
    for text in (good + line + "\n", line + "\n" + good):
        path.write_text(text)
        at = 1 if text.startswith(line + "\n") else good.count("\n") + 1
        with pytest.raises(ValueError, match=rf'{file}\.jsonl, line {at}: expected a JSON object with a "step"') as info:
            write_report(run)
        assert len(str(info.value).splitlines()) == 1 and len(str(info.value)) < 600
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("config", ["[]", "null", '{"run": 1}', '{"ppo": null}', "[" * 100_000, "\x00", '"text"'], ids=range(7))
def test_a_config_that_is_no_runs_is_one_clear_error(tmp_path, config):
    run = make_run(tmp_path)
    (run / "config.json").write_text(config)
    with pytest.raises(ValueError, match="config.json: expected a run's JSON object of settings, got "):
        write_report(run)


def test_a_pipe_in_place_of_a_config_is_never_waited_for(tmp_path):
    run = make_run(tmp_path)
    (run / "config.json").unlink()
    os.mkfifo(run / "config.json")
    with pytest.raises(ValueError, match="config.json has 0 bytes or is not a file"):
        write_report(run)


@pytest.mark.parametrize("size", [10**400, -10**400, 1e308, 5e-324, 1e99, -1e-99, 1e20, "text", [1], {}, True, None, math.nan],
                         ids=range(13))
def test_numbers_of_absurd_size_and_no_numbers_draw_a_page(tmp_path, size):
    metrics = run_of(**{key: (lambda s: size if s % 2 else 1) for key in healthy(1) if key != "step"})
    row = followed(1)
    row["trace"].update(kl=[size] * 6, score=size)
    samples = [row, {"step": 1, "query": "q", "response": "r", "score": size, "kl": size, "parts": {"p": size}},
               {"step": 2, "query": "only", "response": "texts"}]
    page = Page(write_report(make_run(tmp_path, metrics, samples, {"steps": size, "ppo": {"target": size}})))
    drawn = " ".join(value for _, attrs in page.tags for name, value in attrs.items() if name in ("d", "x", "y", "cx", "cy", "style"))
    assert "only" in page.texts and not re.search("nan|inf|e[+-]", drawn.lower()) and len(drawn) < 100_000
    page = Page(write_report(make_run(tmp_path, [{"step": 0}, {"step": 2**53 - 1, "objective/kl": size}, {"step": 5}])))
    assert page.having("data-chart") or not isinstance(size, (int, float)) or not abs(size) < 1e100


@pytest.mark.parametrize("text, shown", [
    ("a\u202eb", "a\\u202eb"), ("\u2066a\u2069", "\\u2066a\\u2069"), ("\u200f\u061c", "\\u200f\\u061c"), ("\x1b[2J\x7f\x9b", "␛[2J␡\\x9b"),
    ("\u2028\ufeff\xad", "\\u2028\\ufeff\\xad"), ("\U000e0041", "\\U000e0041"), ("\ud800", "\\ud800"),
    ("é 日本 שלום 👩\u200d👧 \xa0", "é 日本 שלום 👩\u200d👧 \xa0"), ("\r\n\t", "␍⏎⇥"),
])
def test_control_and_direction_characters_are_shown_not_obeyed(text, shown):
    assert report._text(text) == shown


def test_right_to_left_texts_stay_in_their_own_place(tmp_path):
    """A query in Hebrew does not move the response, the score or the name beside it."""
    page = Page(write_report(make_run(tmp_path / "a", samples=[{"step": 1, "query": "שלום", "response": " x"}, followed(1)])))
    assert len([tag for tag, attrs in page.tags if tag == "bdi"]) == 4   # heading, query, response, query of the trace
    assert re.search(r"\.facts b, \.name \{ unicode-bidi: isolate", Path(report.__file__).with_name("page.css").read_text())


def test_the_page_says_what_it_leaves_out(tmp_path):
    samples = [{"step": step, "query": f"q{k}", "response": "r"} for step in (1, 2, 3, 4, 5) for k in range(13 if step == 1 else 5)]
    page = Page(write_report(make_run(tmp_path, samples=samples + [followed(step) for step in range(1, 501)])))
    assert page.texts.count("update 1, showing 5 of 13") == 1 and "update 3" in page.texts and "q5" not in page.texts
    assert "Left out: samples of 2 updates between these." in page.text
    assert "Showing 60 of 500 updates, evenly apart." in page.text
    text = Page(write_report(make_run(tmp_path))).text.lower()
    assert "showing" not in text


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
    assert report._path([(1, 0), (2, 1), (3, None), (4, 2)], float, float) == "M1.0 0.0L2.0 1.0h0M4.0 2.0h0"
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
    assert number(value) == said


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


def test_six_runs_say_once_what_they_share_and_their_names_stay(tmp_path):
    """Of seven facts only the learning rate differs; titles wrap and are never cut; the legend is sticky."""
    runs = [make_run(tmp_path / f"run{k}", config={**CONFIG, "ppo": {**CONFIG["ppo"], "learning_rate": k / 1000}}) for k in range(6)]
    page = Page(write_report(*runs))
    assert page.texts.count("0.8*model:rm + 0.2*rule:length") == 1 and page.texts.count("6 runs") == 1
    assert [page.texts.count(f"0.00{k}") for k in range(1, 6)] == [2] * 5          # the head, the table of differences
    assert len([tag for tag in page.having("class") if tag["class"] == "differs"]) == 1
    (key,) = [at for at, (tag, attrs) in enumerate(page.tags) if tag == "nav" and attrs["class"] == "key"]
    assert [attrs["class"] for _, attrs in page.tags[key + 1:key + 7]] == [f"name r{k}" for k in range(6)]
    style = Path(report.__file__).with_name("page.css").read_text()
    assert ".key { position: sticky; top: 0" in style
    assert "nowrap" not in re.search(r"\nh4 \{.*\}", style)[0] and "ellipsis" not in re.search(r"\nfigcaption \{.*\}", style)[0]


def test_runs_that_differ_in_their_seed_are_one_curve_of_means_with_its_spread(tmp_path):
    """Scores 1, 2, 6 at the last common update: mean 3, variance (4 + 1 + 9) / 2 = 7; the fourth run is of another configuration."""
    seeds = [make_run(tmp_path / f"s{k}", run_of(22 - k, ppo__mean_scores=lambda step, k=k: {20: (1.0, 2.0, 6.0)[k]}.get(step, 0.0)),
                      config={**CONFIG, "seed": k, "run": {"out": f"s{k}", "quiet": k == 1}}) for k in range(3)]
    page = Page(write_report(*seeds[:2], make_run(tmp_path / "other", config={**CONFIG, "steps": 30}), seeds[2]))
    score = next(c for c in page.having("data-chart") if c["aria-label"].startswith("Score by"))
    assert score["aria-label"].endswith("s0: last 3 ± 2.6; other: last 1.49")
    assert json.loads(score["data-chart"])["curves"][0] == [[step, 3.0 if step == 20 else 0.0] for step in range(1, 21)]
    assert len([tag for tag in page.having("class") if tag["class"] == "band"]) == len(page.having("data-chart"))
    key = next(at for at, (tag, attrs) in enumerate(page.tags) if attrs.get("class") == "key")
    assert [attrs["class"] for _, attrs in page.tags[key + 1:key + 3]] == ["name r0", "name r1"]
    assert "s0, mean of 3" in page.texts and "0, 1, 2" in page.texts
    cards = [attrs["class"] for at, (tag, attrs) in enumerate(page.tags) if page.tags[at - 1][1].get("class") == "run"][:4]
    assert cards == ["name r0"] * 3 + ["name r1"]                      # the seeds of one stand together, and share a colour
    high = json.loads(score["data-chart"])["range"][1]
    assert high == pytest.approx(5.646 + 0.06 * (5.646 - min(0.0, -0.5)), abs=0.2)     # 3 + sqrt(7): the band is inside


def test_the_time_axis_has_the_seconds_of_all_updates(tmp_path):
    """Two seconds an update; of a long run at most 300 places, the last among them."""
    page = Page(write_report(make_run(tmp_path / "a", run_of(1000)), make_run(tmp_path / "b", config={**CONFIG, "steps": 7})))
    long, short = json.loads(next(iter(page.having("data-times")))["data-times"])
    assert short == [[step, 2.0 * step] for step in range(1, 21)]
    assert len(long) == 300 and long[0] == [1, 2.0] and long[-1] == [1000, 2000.0]


def test_an_evaluation_is_laid_over_the_updates(tmp_path):
    """A row for each prompt, a column for each of at most five updates, the first and the last among them; and its curves."""
    metrics = [row | ({"eval/score": row["step"] / 10, "eval/kl": 1.0} if row["step"] % 2 else {}) for row in run_of()]
    samples = [{"step": step, "eval": i, "query": f"<q{i}>", "response": f"r{i} at {step}", "score": step, "kl": 0.5}
               for step in range(1, 20, 2) for i in range(2)]
    page = Page(write_report(make_run(tmp_path / "x", metrics, samples)))
    assert page.texts.count("<q0>") == page.texts.count("<q1>") == 1
    assert [text for text in page.texts if text.startswith("Update ")][-5:] == [f"Update {step}" for step in (1, 5, 9, 15, 19)]
    assert "r1 at 15" in page.texts and "r1 at 11" not in page.texts and "None written." in page.texts     # ordinary samples
    chart = next(json.loads(c["data-chart"]) for c in page.having("data-chart") if c["aria-label"].startswith("Evaluation: score"))
    assert chart["curves"] == [[[step, step / 10] for step in range(1, 20, 2)]]        # no gap between evaluations
    assert "#Evaluation" in own_places(page) and "#Evaluation" not in own_places(Page(write_report(make_run(tmp_path / "y"))))


def test_the_contents_lead_to_every_section(tmp_path):
    page = Page(write_report(make_run(tmp_path)))
    assert own_places(page) == ["#Findings", "#Curves", "#Samples", "#Token-trace", "#Configuration"]


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
    ("config.json", "{", ValueError, "config.json: expected a run's JSON object of settings, got "),
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
