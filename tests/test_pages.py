"""The course's pages beside its chapters: their blocks run, their numbers are those of the CSVs, their questions lead to chapters."""

import re
from pathlib import Path

import pytest
import torch

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
    from minippo import PPOConfig
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
    rows = tuning.read_rows(tuning.RUNS)
    names = ("seed", *tuning.DEFAULT)
    wanted = [tuple(str(value) for value in (seed, *run.values())) for seed in tuning.SEEDS for run in tuning.sweep()]
    assert sorted(tuple(row[name] for name in names) for row in rows) == sorted(wanted)
    assert len(tuning.read_rows(tuning.STEPS)) == len(tuning.SHAPES) * len(tuning.SEEDS) * len(tuning.STEP_RATES)


def numbers(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])", text.replace("−", "-")))


def test_numbers_of_the_prose_stand_in_the_tables_or_are_worked_out_there():
    """A decimal number of the text is one of a table's, one of the settings, or part of the arithmetic that stands beside it."""
    prose = re.sub(r"(<!-- table \w+ -->\n\n)(?:\|.*\n)*|!\[.*\n", "", TUNING)
    spread, wide = (f"{tuning.spread(tuning.read_rows(tuning.RUNS), **settings):.2f}" for settings in ({}, tuning.NOISY))
    printed = numbers("\n".join(tuning.tables().values())) | {spread, wide}
    assert f"standard deviation of {spread} at the demo's setting, and of {wide} with minibatches of 8" in prose
    assert numbers(prose) - printed - ON_PAPER == set()


def test_the_arithmetic_of_the_page():
    """Learning rate times steps, halved by a schedule that falls to 0; nats per token."""
    assert 32 * 2 * 2 == 128 and round(128 * 1e-3 / 2, 3) == 0.064
    assert 10**6 // 512 == 1953 and 1953 * 4 == 7812 and round(7812 * 1e-5 / 2, 3) == 0.039
    assert 10**6 // 32 * 4 == 125_000 and 125_000 * 2e-6 / 2 == 0.125
    assert (6 / 24, 18 / 75, 200 * 6 / 24) == (0.25, 0.24, 50) and 7812 / 128 > 60 and 125_000 / 128 < 1000
    for number in ("0.064", "0.039", "0.125", "7812", "1953", "125,000"):
        assert number in TUNING


def test_what_the_page_says_of_the_numbers():
    """The sentences that compare, so that a sweep that is made anew cannot leave them standing by mistake."""
    rows, steps = tuning.read_rows(tuning.RUNS), tuning.read_rows(tuning.STEPS)
    at = lambda name, **settings: tuning.cell(rows, name, **settings)
    settings = [{"learning_rate": rate, "ppo_epochs": epochs} for rate in tuning.RATES for epochs in tuning.EPOCHS]
    best = max(settings, key=lambda one: at("objective", **one))
    assert best["learning_rate"] in (3e-4, 1e-3)
    highest = max(settings, key=lambda one: at("score", **one))
    assert highest["learning_rate"] == 3e-3 and at("true_score", **highest) > at("true_score", **best)
    assert at("objective", learning_rate=3e-3) < at("objective", learning_rate=1e-3) - 0.3
    good = [one for one in settings if at("objective", **one) > 0.8]
    assert len(good) >= 3 and all(at("clipfrac", **one) < 0.03 and at("max_approxkl", **one) < 0.1 for one in good)
    assert at("distinct", learning_rate=1e-2) < 0.05 and at("kl", learning_rate=1e-2, ppo_epochs=4) > 50
    assert max(at("skipped", **one) for one in settings) <= 2
    by_batch = [max(at("objective", learning_rate=rate, **tuning.batch_of(size)) for rate in tuning.SOME_RATES) for size in tuning.BATCHES]
    assert max(by_batch) - min(by_batch) < 0.1
    small, large = (at("objective", learning_rate=3e-3, **tuning.batch_of(size)) for size in (16, 256))
    assert small < 0 and large > 0.3 and at("objective", learning_rate=3e-3, mini_batch_size=8) < 0
    assert at("objective", learning_rate=3e-4, mini_batch_size=8) > max(at("objective", **best), *by_batch)
    stopped = {"ppo_epochs": 4, "target_kl": 0.02}
    assert abs(at("objective", **stopped) - at("objective")) < 0.1 and at("optimizer_steps", learning_rate=1e-2, **stopped) < 64
    for rate, responses in tuning.LONGER:
        longer = {"learning_rate": rate, "responses": responses}
        assert abs(at("score", **longer) - at("score")) < 0.1 and 0.6 < at("kl", **longer) / at("kl") < 0.75
    diagonal = [tuning.target_of(*pair) for pair in zip(tuning.TARGETS, tuning.LENGTHS)]
    drift = [at("kl", **one) / one["length"] for one in diagonal]
    assert max(drift) < 1.4 * min(drift)
    row = [at("score", **tuning.target_of(1.5, length)) for length in tuning.LENGTHS]
    assert row[0] - row[2] > 2 * (at("score", **diagonal[0]) - at("score", **diagonal[2])) > 0
    assert at("kl_coef", **tuning.HASTY) > 100 and at("kl", **tuning.HASTY) > 100
    small, middle, large = (tuning.rate_for(steps, width, 2) for width in (128, 256, 512))
    assert 1.7 < small / middle < 2.5 and 1.7 < middle / large < 2.5 and small / tuning.rate_for(steps, 128, 8) > 2
    assert small / tuning.rate_for(steps, 32, 2) > 0.8


# of the settings, a version, a table's number, and of the arithmetic above: nats per token, learning rate times steps
ON_PAPER = {"2.1", "0.05", "0.064", "0.039", "0.125", "0.25", "0.24", "1.5", "0.1", "2.13", "0.02"}


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
    runs = [tuning.DEFAULT | {"responses": 32, "batch_size": 16, "mini_batch_size": 8} | more
            for more in ({}, {"target": 3, "length": 4, "horizon": 200}, {"target_kl": 1e-9, "ppo_epochs": 4})]
    path = tmp_path / "runs.csv"
    tuning.run_sweep(path, [0], runs[:1], models)
    first = path.read_text()
    tuning.run_sweep(path, [0], runs, models)
    rows = tuning.read_rows(path)
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
