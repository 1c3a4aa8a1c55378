"""The course's pages beside its chapters: their blocks run, their numbers are those of the CSVs, their questions lead to chapters."""

import math
import re
from pathlib import Path

import pytest
import torch

from minippo import PPOConfig
from tutorial import build, figures, tuning
from tutorial.build import HERE

ROOT = HERE.parent
TUNING, BEYOND, FAQ = ((HERE / f"{name}.md").read_text(encoding="utf-8") for name in ("tuning", "beyond", "faq"))
CHAPTER = re.compile(r"\]\((\w+\.md)(?:#[\w-]+)?\)")
# the questions that forums ask again and again, by what their headings begin with
FORUMS = ["KL between which two models", "Is it per token or per response", "There is a KL penalty, and there is clipping",
          "Why a value head? Would subtracting the mean", "Should the ratio be 1 at first", "Why is the KL negative",
          "The reward goes up, but so does the KL", "How do I choose `target` for another length",
          "Which learning rate, batch size and number of epochs", "The score stays flat", "Why do others pad on the left",
          "PPO, RLOO, REINFORCE, GRPO, DPO", "Can I train a bigger model", "Can I train Llama or Qwen"]


def entries() -> dict[str, str]:
    """{question: answer} of the FAQ."""
    return dict(part.split("\n", 1) for part in re.split(r"^### ", re.sub(r"^## .*$", "", FAQ, flags=re.M), flags=re.M)[1:])


# --- the questions ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("question", entries())
def test_every_answer_leads_to_a_chapter_or_a_page(question):
    pages = CHAPTER.findall(entries()[question])
    assert pages and all((HERE / page).exists() for page in pages), pages


@pytest.mark.parametrize("start", FORUMS)
def test_the_questions_of_forums_are_asked(start):
    assert len([question for question in entries() if question.startswith(start)]) == 1


def test_the_credit_without_values_is_what_the_answer_says():
    from minippo.ppo import compute_advantages
    rewards, mask = torch.tensor([[0.0, 0.0, 1.0]]), torch.ones(1, 3)
    advantages, _ = compute_advantages(torch.zeros(1, 3), rewards, mask, PPOConfig.gamma, PPOConfig.lam)
    assert [round(a, 4) for a in advantages[0].tolist()] == [0.9025, 0.95, 1]
    assert "0.9025, 0.95 and 1" in next(text for question, text in entries().items() if question.startswith("What is the value head"))


# --- beyond GPT-2 -----------------------------------------------------------------------------------------------------

def test_the_blocks_of_beyond_print_what_the_page_shows(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for cell, printed in build.run(HERE / "beyond.md")[1]:
        assert printed == cell.output, f"beyond.md:{cell.line}"


# --- tuning -----------------------------------------------------------------------------------------------------------

def test_the_tables_are_those_that_the_command_prints():
    assert set(re.findall(r"<!-- table (\w+) -->", TUNING)) == set(tuning.tables())
    assert tuning.with_tables(TUNING) == TUNING, "python -m tutorial.tuning --draw"


def test_figures_are_drawn_from_the_csv():
    for name, picture in tuning.figures().items():
        assert f"](images/{name})" in TUNING
        assert figures.same_picture((HERE / "images" / name).read_text(encoding="utf-8"), picture), "python -m tutorial.tuning --draw"


def test_every_run_of_the_sweep_is_in_the_csv_once():
    for path, sweep in ((tuning.RUNS, tuning.sweep()), (tuning.STEPS, tuning.step_sweep())):
        rows = tuning.read_rows(path)
        assert len(rows) == len(sweep) and all(len(tuning.select(rows, **settings)) == 1 for settings in sweep)


# what is neither in a table of its section nor a result: a setting, a version, a source, and what the arithmetic below holds
ON_PAPER = ("torch 2.13", "which began at 0.05", "halved by the schedule: 0.064", "halved: 0.039", "halved: 0.125", "table 2.1",
            "`approxkl` exceeds 0.1", "exceeds 1.5 · `target_kl`", "a largest `approxkl` above 1.5", "a `target_kl` of 0.02",
            "6 / 24 = 0.25 nats per token, 18 / 75 = 0.24", "if only by 0.05", "by 0.01 in the objective", "and by 0.26 with minibatches",
            "clip fraction above 0.1, `approxkl` of some update above 0.1", "`ppo/policy/approxkl` is above 0.1",
            "`kl_coef` stays at 0.15", "score − 0.15 · KL", "a two-layer GPT-2 of 0.57 million")


def numbers(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])", text))


def test_numbers_of_the_prose_stand_in_a_table_of_their_section():
    """Or in one of the phrases of ON_PAPER."""
    assert [phrase for phrase in ON_PAPER if phrase not in TUNING] == []
    for section in re.split(r"^## ", TUNING, flags=re.M):
        prose, _ = re.subn(r"(<!-- table \w+ -->\n\n)(?:\|.*\n)*|!\[.*\n", "", section)
        for phrase in ON_PAPER:
            prose = prose.replace(phrase, "")
        shown = [tuning.tables()[name] for name in re.findall(r"<!-- table (\w+) -->", section)]
        assert numbers(prose) <= numbers("\n".join(shown)), section[:40]


def found(pattern: str) -> list[float]:
    """The numbers of a sentence of the page."""
    return [float(number.replace(",", "")) for number in re.search(pattern, TUNING).groups()]


def test_the_arithmetic_of_the_page():
    """Learning rate times steps, halved by a schedule that falls to 0; nats per token."""
    default = tuning.DEFAULT
    updates, epochs, parts, steps, rate, distance = found(
        r"take (\d+) updates · (\d) epochs · (\d) minibatches = (\d+) steps of (\S+), halved by the schedule: ([\d.]+\d)")
    assert (updates, epochs) == (default["responses"] // default["batch_size"], default["ppo_epochs"])
    assert (parts, rate) == (default["batch_size"] // default["mini_batch_size"], default["learning_rate"])
    assert steps == updates * epochs * parts and distance == round(steps * rate / 2, 3)

    rate, batch, updates, epochs, style_steps, style = found(
        r"takes (\S+) for a million responses in batches of (\d+): (\d+) updates · (\d) epochs = (\d+) steps, halved: ([\d.]+\d)")
    assert updates == 10**6 // batch and style_steps == updates * epochs and style == round(style_steps * rate / 2, 3)
    rate, batch, summary_steps, summary = found(r"For summaries, (\S+) with batches of (\d+): ([\d,]+) steps, halved: ([\d.]+\d)")
    assert summary_steps == 10**6 / batch * epochs and summary == round(summary_steps * rate / 2, 3)
    assert round(style_steps / steps, -1) == 60 and round(summary_steps / steps, -2) == 1000
    assert max(distance, style, summary) < 10 * min(distance, style, summary)
    for rate, responses in tuning.LONGER:
        assert rate * responses == pytest.approx(default["learning_rate"] * default["responses"], rel=0.15)

    target, length, other, other_length = found(r"`target` (\d+) for (\d+) tokens, and (\d+) for summaries of (\d+)")
    assert target == PPOConfig.target == found(r"minippo's default of (\d+) is")[0]
    assert found(r"6 / 24 = (\S+) nats per token, 18 / 75 = (\S+)\.") == [target / length, other / other_length]
    assert found(r"For (\d+) tokens it would be (\d+)") == [200, 200 * target / length]
    assert PPOConfig.target_kl == found(r"The default `target_kl` of (\d+) nat")[0]


# the sentences that compare, so that a sweep that is made anew cannot leave them standing by mistake

ROWS, STEPS = tuning.read_rows(tuning.RUNS), tuning.read_rows(tuning.STEPS)
FIXED = [{name: row[name] for name in tuning.DEFAULT} for row in tuning.select(ROWS, seed=0, target="", target_kl="")]
SHORT = [settings for settings in FIXED if settings["responses"] == str(tuning.DEFAULT["responses"])]


def at(name: str, **settings) -> float:
    return tuning.cell(ROWS, name, **settings)


def test_how_far_the_seeds_are_apart():
    here, noisy = (tuning.spread(ROWS, **settings) for settings in ({}, tuning.NOISY))
    assert f"differ by {here:.2f} in the objective at the demo's setting, and by {noisy:.2f} with minibatches of 8" in TUNING


def test_what_the_page_says_of_learning_rate_and_epochs():
    each = {rate: [{"learning_rate": rate, "ppo_epochs": epochs} for epochs in tuning.EPOCHS] for rate in tuning.RATES}
    best = {rate: max(some, key=lambda one: at("objective", **one))["ppo_epochs"] for rate, some in each.items()}
    assert (best[1e-4], best[3e-4], best[1e-3], best[3e-3]) == (4, 4, 1, 1)                             # the diagonal
    above, fast = each[1e-4] + each[3e-4] + each[1e-3], each[3e-3]
    for name in ("score", "true_score"):
        assert min(at(name, **one) for one in fast) > max(at(name, **one) for one in above)
    assert max(at("distinct", **one) for one in fast) < min(at("distinct", **one) for one in above)
    assert all(at("objective", **one) < at("objective", **slower) for one, slower in zip(fast, each[1e-3]))
    assert at("kl", learning_rate=1e-2, ppo_epochs=4) > 100                                             # beyond all bounds


def test_what_the_page_says_of_its_guards():
    good = [one for one in SHORT if at("objective", **one) > 0.8]
    assert max(at("clipfrac", **one) for one in good) < 0.035 and max(at("max_approxkl", **one) for one in good) < 0.1
    assert max(at("skipped", **one) for one in FIXED) <= 1


def test_what_the_page_says_of_the_frontier():
    """The rings: no shorter run with as much KL has such a score."""
    rings = [one for one in FIXED if one not in SHORT]
    assert len(rings) == len(tuning.LONGER)
    for ring in rings:
        assert at("score", **ring) > max(at("score", **one) for one in SHORT if at("kl", **one) <= at("kl", **ring))


def test_what_the_page_says_of_minibatch_and_batch():
    assert at("objective", learning_rate=3e-3, mini_batch_size=8) < 0 and at("distinct", learning_rate=3e-3, mini_batch_size=8) < 0.05
    many = {name: str(value) for name, value in (tuning.DEFAULT | {"learning_rate": 3e-4, "mini_batch_size": 8}).items()}
    others = [one for one in SHORT if one != many]
    assert min(tuning.values(ROWS, "objective", **many)) > max(max(tuning.values(ROWS, "objective", **one)) for one in others)
    assert round(at("objective", **many) - max(at("objective", **one) for one in others), 2) == 0.05
    of_batch = [{rate: at("objective", learning_rate=rate, **tuning.batch_of(size)) for rate in tuning.SOME_RATES}
                for size in tuning.BATCHES]
    assert [max(one, key=one.get) for one in of_batch] == [3e-4, 1e-3, 1e-3]
    best = [max(one.values()) for one in of_batch]
    assert max(best) - min(best) < 0.05 and of_batch[0][3e-3] < 0 and of_batch[2][3e-3] > 0.4


def test_what_the_page_says_of_early_stopping():
    stopped = {"ppo_epochs": 4, "target_kl": 0.02}
    assert at("score", **stopped) == pytest.approx(at("score"), abs=0.02) and at("kl", **stopped) == pytest.approx(at("kl"), abs=0.1)
    assert at("early_stopped", learning_rate=1e-2, **stopped) > 31 and at("optimizer_steps", learning_rate=1e-2, **stopped) < 2 * 32
    assert round(max(at("objective", **one) for one in FIXED if at("max_approxkl", **one) > 1.5), 2) == 0.10


def test_what_the_page_says_of_longer_runs():
    longer = [{"learning_rate": rate, "responses": responses} for rate, responses in tuning.LONGER]
    assert [at("score", **one) for one in longer] == pytest.approx([at("score")] * 2, abs=0.03)
    assert [round(100 * (1 - at("kl", **one) / at("kl")), -1) for one in longer] == [30, 40]


def test_what_the_page_says_of_the_size_of_models():
    assert {round(tuning.steps_of(STEPS, "step", *shape, 1e-3), 4) for shape in tuning.SHAPES} == {0.0021}
    rates = {shape: tuning.rate_for(STEPS, *shape) for shape in tuning.SHAPES}
    assert rates[128, 2] > 0.9 * rates[32, 2]
    assert rates[128, 2] / rates[256, 2] == pytest.approx(2, abs=0.2) and rates[256, 2] / rates[512, 2] == pytest.approx(2, abs=0.2)
    deeper = rates[128, 2] / rates[128, 8]
    assert 2 < deeper < 4 and 6 * deeper ** math.log(6, 4) == pytest.approx(20, abs=2)                  # GPT-2's 768 and 12 layers
    moved = lambda shape, rate: tuning.steps_of(STEPS, "approxkl", *shape, rate)
    growth = [moved(shape, 1e-4) / moved(shape, 1e-5) for shape in tuning.SHAPES]
    assert (round(min(growth), -1), round(max(growth), -1)) == (60, 90)


def test_what_the_page_says_of_target_and_length():
    grid = [[tuning.target_of(target, length) for length in tuning.LENGTHS] for target in tuning.TARGETS]
    drift = lambda one: at("kl", **one) / one["length"]
    for short, middle, long in grid:
        assert drift(short) > drift(middle) > drift(long) and at("score", **short) > at("score", **middle) > at("score", **long)
    diagonal = [grid[i][i] for i in range(3)]
    assert max(map(drift, diagonal)) < 1.3 * min(map(drift, diagonal))
    assert 0 < at("score", **diagonal[0]) - at("score", **diagonal[2]) < (at("score", **grid[0][0]) - at("score", **grid[0][2])) / 2
    every = [one for row in grid for one in row]
    assert sum(at("kl", **one) < one["target"] for one in every) > 6
    coefs = [at("kl_coef", **one) for one in every]
    assert round(tuning.SMALL_KL_COEF / min(coefs)) == 6 and round(max(coefs) / tuning.SMALL_KL_COEF) == 18
    assert at("kl_coef", **tuning.HASTY) > 100 and at("kl", **tuning.HASTY) > 100


# --- the sweep itself -------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The demo's models, hardly trained."""
    from minippo.training import demo
    out, config = tmp_path_factory.mktemp("tuning"), demo.DemoConfig(width=32, reviews=300, pretrain_steps=2, pairs=40)
    demo.make_writer(config, out)
    demo.make_reward_model(config, out)
    return out


def test_a_tiny_sweep_is_resumed_and_not_run_again(models, tmp_path, capsys):
    runs = [{"seed": 0} | tuning.DEFAULT | {"responses": 32, "batch_size": 16, "mini_batch_size": 8} | more
            for more in ({}, {"target": 3, "length": 4, "horizon": 200}, {"target_kl": 1e-9, "ppo_epochs": 4})]
    path = tmp_path / "runs.csv"
    tuning.fill(path, runs[:1], lambda run: tuning.train(run, models))
    first = path.read_text()
    tuning.fill(path, runs, lambda run: tuning.train(run, models))
    rows = tuning.read_rows(path)
    assert list(rows[0]) == list(tuning.read_rows(tuning.RUNS)[0])                      # the columns of the CSV of the page
    assert path.read_text().startswith(first) and len(rows) == 3 and len(capsys.readouterr().out.splitlines()) == 3
    plain, with_target, stopped = rows
    assert plain["kl_coef"] == str(tuning.KL_COEF) and float(plain["kl"]) != 0 and plain["optimizer_steps"] == "8"
    assert with_target["tokens"] == "4" and with_target["score"] == with_target["true_score"]
    assert stopped["early_stopped"] == "2" and stopped["optimizer_steps"] == "2"        # the first minibatch's KL is 0


def test_one_update_is_measured(models, tmp_path):
    """The first step of Adam moves every weight by the learning rate; four of them at most by about four times that."""
    folder = tuning.make_sized(32, 2, models, steps=1)
    small, large = (tuning.measure_step(folder, rate, 0, n=16) for rate in (1e-5, 1e-4))
    assert 0.5e-5 < small["step"] < 4e-5 and small["approxkl"] < large["approxkl"]
    assert large["relative"] == pytest.approx(10 * small["relative"], rel=0.2)


def test_the_rate_between_two_others_is_read_off_the_line(monkeypatch):
    """approxkl 1e-4 at 1e-4 and 1e-2 at 1e-3: 1e-3 is half-way in logarithms, so at 10^-3.5."""
    monkeypatch.setattr(tuning, "STEP_RATES", (1e-4, 1e-3))
    rows = [{"width": "32", "layers": "2", "learning_rate": str(rate), "approxkl": str(kl)} for rate, kl in ((1e-4, 1e-4), (1e-3, 1e-2))]
    assert tuning.rate_for(rows, 32, 2, 1e-3) == pytest.approx(10**-3.5)
    with pytest.raises(ValueError, match="enclose"):
        tuning.rate_for(rows, 32, 2, 0.1)
