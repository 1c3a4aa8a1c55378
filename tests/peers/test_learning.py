"""The learning comparison itself: its arithmetic on made-up rows, a tiny run of each part, and what its committed CSVs say."""

import re
from xml.etree import ElementTree

import pytest
import torch

import learning as L

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def toy():
    return L.make_toy(seed=0, updates=2, reviews=300, pretraining_steps=2)


def rows(side, kl_coef, points):
    """Runs of three updates, the first of which (score 9) lies before the last two; one run a seed."""
    return [{"seed": str(seed), "side": side, "kl_coef": str(kl_coef), "update": str(update), "score": str(score), "kl": str(kl)}
            for seed, (mean, kl) in enumerate(points) for update, score in enumerate([9, mean - 0.25, mean + 0.25])]


@pytest.fixture
def made_up(monkeypatch):
    """Two seeds, frontiers through (KL, score) = (1, .25) and (3, .75) by us, (1, .25) and (5, .75) by TRL."""
    monkeypatch.setattr(L, "LAST", 2)
    return (rows("minippo", 0.5, [(0.25, 1), (0.25, 1)]) + rows("minippo", 0.25, [(0.75, 3), (0.75, 3)])
            + rows("trl", 0.5, [(0.25, 1), (0.25, 1)]) + rows("trl", 0.25, [(0.75, 5), (0.5, 5)]))


def test_a_result_is_the_mean_of_the_last_updates(made_up):
    made_up.reverse()                                                   # the order of the rows does not matter
    result = L.results(made_up, "side", "kl_coef")["trl", "0.25"]
    assert [(seed.score, seed.kl) for seed in result] == [(0.75, 5), (0.5, 5)]


def test_mean_and_standard_error():
    """1, 3: mean 2, standard deviation sqrt(2), over sqrt(2) seeds."""
    assert L.mean([1.0, 3.0]) == pytest.approx((2, 1))
    assert L.mean([1.0, 3.0]).show(2, "+") == "+2.00 ± 1.00"


def test_score_at_equal_kl_is_read_off_the_line(made_up):
    points = [point for (side, _), seeds in L.results(made_up, "side", "kl_coef").items() if side == "trl" for point in seeds[:1]]
    assert L.score_at(points, 3) == 0.5 and L.score_at(points, 5) == 0.75
    assert L.score_at(points, 0.5) is None and L.score_at(points, 6) is None


def test_differences_are_taken_seed_by_seed(made_up):
    """Objective at 0.25: seed 0: (.75 - .25 * 3) - (.75 - .25 * 5) = .5, seed 1: 0 - (.5 - 1.25) = .75: mean .625, error .125.
    At a KL of 3: ours .75, theirs half-way: .5 and .375, so .25 and .375 more. Beyond 3 ours has no score."""
    differences = L.compare(made_up)
    assert differences["objective"] == {0.25: pytest.approx((0.625, 0.125)), 0.5: (0, 0)}
    assert set(differences["equal KL"]) == {1, 2, 3}
    assert differences["equal KL"][3] == pytest.approx((0.3125, 0.0625))
    assert "score - kl_coef * KL, kl_coef 0.25: +0.625 ± 0.125" in L.summary(made_up)
    assert "| 0.25 | TRL 0.11.4 | 0.625 ± 0.125 | 5.00 ± 0.00 | -0.625 ± 0.125 |" in L.summary(made_up)


def test_an_interrupted_series_continues(toy, tmp_path):
    path = tmp_path / "learning.csv"
    L.run_frontier(path, seeds=[0], kl_coefs=[0.1], sides=["minippo"], toy_for=lambda seed: toy)
    first = L.read_rows(path)
    assert [row["update"] for row in first] == ["0", "1"] and first[0]["kl"] == "0.0000" and float(first[1]["kl"]) != 0
    L.run_frontier(path, seeds=[0], kl_coefs=[0.1, 0.2], sides=["minippo"], toy_for=lambda seed: toy)
    again = L.read_rows(path)
    assert again[:2] == first and [row["kl_coef"] for row in again] == ["0.1"] * 2 + ["0.2"] * 2


class Recorder:
    """A trainer that notes the queries of a step, and writes nothing."""
    config, steps = L.PPOConfig(advantage="rloo", group_size=4), []

    def generate(self, queries, **kwargs):
        return [torch.tensor([0]) for _ in queries]

    def step(self, queries, responses, scores):
        self.steps.append([tuple(query.tolist()) for query in queries])
        return {"objective/kl": 0.0}


def test_groups_are_the_first_queries_of_each_batch_four_times(toy):
    """So that all kinds sample 64 responses an update, and 16 of the queries are those that PPO has at the same time."""
    recorder = Recorder()
    L.learn(recorder, toy)
    expected = [[tuple(toy.tokenizer.encode(toy.queries[start + i // 4])) for i in range(64)] for start in (0, 64)]
    assert recorder.steps == expected


@pytest.fixture(scope="module")
def family_rows(toy, tmp_path_factory):
    """Two updates of each kind, and another seed with the same numbers."""
    path = tmp_path_factory.mktemp("family") / "family.csv"
    L.run_family(path, seeds=[0, 1], kl_coefs=[L.TIME_KL_COEF], toy_for=lambda seed: toy)
    return L.read_rows(path)


def test_a_tiny_family(family_rows):
    """The same first batch for PPO and REINFORCE, another second one; the CPU's seconds rise."""
    runs = {kind: [row for row in family_rows if (row["kind"], row["seed"]) == (kind, "0")] for kind in L.GROUP_SIZES}
    assert all([row["update"] for row in run] == ["0", "1"] and run[0]["kl"] == "0.0000" for run in runs.values())
    assert all(0 < float(run[0]["seconds"]) < float(run[1]["seconds"]) for run in runs.values())
    assert runs["gae"][0]["score"] == runs["reinforce"][0]["score"] and runs["rloo"][0]["score"] == runs["grpo"][0]["score"]
    assert len({run[1]["kl"] for run in runs.values()}) == 4
    assert all(name in L.summary(family_rows, L.KIND) for name in ("| 0.1 | PPO |", "RLOO - PPO, seed by seed", "GRPO - PPO"))


def test_the_score_over_time():
    """Windows of five updates: seconds 1..5 are 3 on average, 6..10 are 8; the scores .2 and .6, so .36 after 5 seconds.
    The second seed is .1 better, so .41 +- .05."""
    rows = [{"seed": str(seed), "kind": kind, "kl_coef": str(L.TIME_KL_COEF), "update": str(i), "kl": "1", "seconds": str(i + 1),
             "score": str((0.2 if i < 5 else 0.6) + seed / 10)} for kind in L.KIND.labels for seed in (0, 1) for i in range(10)]
    assert [[round(point.score, 6) for point in window] for window in L.over_time(rows)["rloo"]] == [[0.2, 0.3], [0.6, 0.7]]
    assert "RLOO: 10.00 ± 0.00; 3 s: 0.250 ± 0.050; 4 s: 0.330 ± 0.050; 5 s: 0.410 ± 0.050" in L.time_summary(rows)


def test_figures_need_no_style_sheet(family_rows, made_up):
    """Every mark, line and text has its colour without it (it is the dark theme alone), and each name another."""
    for svg, names in ((L.family_figure(family_rows), 4), (L.learning_figure(made_up), 2)):
        plain = ElementTree.fromstring(re.sub("<style>.*?</style>", "", svg, flags=re.DOTALL))
        assert len(plain.findall(".//*[@class]")) > names
        groups = [group for group in plain.iter(f"{SVG}g") if group.get("class", "").startswith("look")]
        assert len({group.get("fill") for group in groups}) == names and all(group.get("fill") for group in groups)
        for tag, attribute in (("line", "stroke"), ("rect", "fill")):
            assert all(element.get(attribute) for element in plain.iter(SVG + tag))
        for line in plain.iter(f"{SVG}polyline"):
            assert line.get("fill") == "none"
        assert plain.get("fill") and {group.get("class") for group in groups} == {f"look{i}" for i in range(names)}


def test_both_sides_start_alike(toy):
    """TRL's trainer holds minippo's weights: the same log-probabilities, and another value head."""
    pytest.importorskip("trl", reason="needs trl 0.11.4 to compare with: pip install -r tests/peers/requirements.txt")
    ours, theirs = L.minippo_trainer(toy), L.trl_trainer(toy)
    tokens = torch.tensor([toy.tokenizer.encode(toy.queries[0])])
    with torch.no_grad():
        logits, values = ours.model(tokens)
        trl_logits, _, trl_values = theirs.model(input_ids=tokens)
    torch.testing.assert_close(trl_logits, logits, rtol=0, atol=1e-5)
    assert (values == 0).all() and (trl_values != 0).all()
    history = L.learn(theirs, toy)
    assert len(history) == 2 and abs(history[0].kl) < 1e-4 and all(0 <= update.score <= 1 for update in history)


def two_updates(toy, name):
    trainer, *reward = L.DETAIL_TABLE[name].make(toy)
    history = L.learn(trainer, toy, *reward)
    return trainer, history, torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.fixture(scope="module")
def default_weights(toy):
    return two_updates(toy, "default")[2]


@pytest.mark.parametrize("name", L.DETAIL_TABLE)
def test_every_detail_is_switched_on(toy, default_weights, name):
    """It leads to other weights than the default does; the default itself to the same, bit for bit."""
    if name.startswith("TRL"):
        pytest.importorskip("trl", reason="needs trl 0.11.4 to compare with: pip install -r tests/peers/requirements.txt")
    trainer, history, weights = two_updates(toy, name)
    assert len(history) == 2 and torch.isfinite(weights).all()
    if name == "gradient clipping":                                         # this model's gradients are smaller than the bound
        assert trainer.config.max_grad_norm == 0.5
    else:
        assert torch.equal(weights, default_weights) == (name == "default")
    if name == "annealing":
        assert trainer.optimizer.param_groups[0]["lr"] == 0                 # behind the last update


def test_truncate_and_penalise():
    assert L.truncate_and_penalise("This film", "This film is great. It is boring.") == 1.0
    assert L.truncate_and_penalise("This. film", "This. film is great") == -1.0         # the stop is not in the response


def test_normalised_scores_have_mean_0_and_std_1(toy):
    reward = L.normalised(toy)
    step = reward("", "great") - reward("", "boring")                       # true scores 1 and 0
    assert step > 1 and reward("", "boring") < 0 < reward("", "great")


# --- the committed results ------------------------------------------------------------------------------------------

def test_committed_runs_are_whole():
    frontier, family, details = (L.read_rows(path) for path in (L.LEARNING, L.FAMILY, L.DETAILS))
    assert {(row["seed"], row["side"], float(row["kl_coef"])) for row in frontier} == {
        (str(seed), side, kl_coef) for seed in L.SEEDS for side in L.SIDES for kl_coef in L.KL_COEFS}
    assert len(frontier) == len(L.SEEDS) * len(L.SIDES) * len(L.KL_COEFS) * L.UPDATES
    assert {(row["seed"], row["kind"], float(row["kl_coef"])) for row in family} == {
        (str(seed), kind, kl_coef) for seed in L.SEEDS for kind in L.GROUP_SIZES for kl_coef in L.KL_COEFS}
    assert len(family) == len(L.SEEDS) * len(L.GROUP_SIZES) * len(L.KL_COEFS) * L.UPDATES
    assert {row["detail"] for row in details} == set(L.DETAIL_TABLE)
    assert len(details) == len(L.SEEDS) * len(L.DETAIL_TABLE) * L.UPDATES


def test_minippo_is_at_least_as_good_as_trl():
    """At every kl_coef and at every KL that both reach: no worse than TRL by more than two standard errors."""
    for differences in L.compare(L.read_rows(L.LEARNING)).values():
        assert differences
        for difference in differences.values():
            assert difference.value > -2 * difference.error


def test_the_difference_is_the_value_head():
    """TRL started from zero is level with ours, and ours started at random falls behind as TRL does."""
    runs = L.results(L.read_rows(L.DETAILS), "detail")
    level, behind = L.gain(runs, "TRL, zero value head"), L.gain(runs, "random value head")
    assert abs(level.value) < 2 * level.error
    assert behind.value < -3 * behind.error


def test_readme_has_the_numbers_of_the_csvs():
    readme = (L.TESTS.parent / "README.md").read_text(encoding="utf-8")
    assert L.details_table(L.read_rows(L.DETAILS)) in readme
    runs = L.results(L.read_rows(L.FAMILY), "kind", "kl_coef")
    for kind, label in L.KIND.labels.items():
        means = [L.mean([run.score - kl_coef * run.kl for run in runs[kind, str(kl_coef)]]) for kl_coef in L.KL_COEFS]
        assert re.search(rf"\| {label}[^|]*\| {' . '.join(m.show(3) for m in means)} \|", readme)


def test_figures_are_those_of_the_csvs():
    assert L.LEARNING.with_suffix(".svg").read_text(encoding="utf-8") == L.learning_figure(L.read_rows(L.LEARNING))
    assert L.FAMILY.with_suffix(".svg").read_text(encoding="utf-8") == L.family_figure(L.read_rows(L.FAMILY))
