"""The course keeps its promises: every block runs and prints what the text shows, every check knows the usual mistakes.

Chapters are found by their file names. Those marked `<!-- slow -->` run only where MINIPPO_SLOW=1 is set.
"""

import importlib
import inspect
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from tutorial import build, check, figures, swap
from tutorial.build import HERE

CHAPTERS = build.chapters()
BY_NAME = {path.stem: path for path in CHAPTERS}
NUMBERS = [path.name[:2] for path in CHAPTERS]
PAGES = sorted(HERE.glob("*.md"))
SECTIONS = ["The question", "On paper", "The formula", "The code", "Run it", "What goes wrong", "Exercises", "Quiz", "New words", "Elsewhere"]
QUESTION = re.compile(r"^\*\*(\d)\.\*\* .+?\n\n((?:- [a-d]\) [^\n]+\n)+)\n<details><summary>Answer</summary>\n\n\*\*([a-d])\.\*\* (.+?)\n\n</details>$", re.M | re.S)
SHAPE = re.compile(r"\[([^\]]*)\]\(([^)\s]+)(?: \"[^\"]*\")?\)")


@cache
def executed(stem: str):
    """A chapter's namespace and printed output; one run serves all tests of it."""
    path = BY_NAME[stem]
    if "<!-- slow -->" in path.read_text(encoding="utf-8") and os.environ.get("MINIPPO_SLOW") != "1":
        pytest.skip("a slow chapter: set MINIPPO_SLOW=1")
    try:
        return build.run(path)
    finally:
        swap.use_originals()


def prose(text: str) -> str:
    """What is read of a chapter: without code, output and what is folded away."""
    text = re.sub(r"<details>.*?</details>|^## Quiz$.*?(?=^## )", "", text, flags=re.S | re.M)
    text = re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)
    return re.sub(r"\]\([^)]*\)|<!--.*?-->", "", text)


# --- chapters ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("stem", BY_NAME)
def test_every_block_prints_what_the_text_shows(stem):
    for cell, printed in executed(stem)[1]:
        assert printed == cell.output, f"{stem}.md:{cell.line}"


@pytest.mark.parametrize("stem", BY_NAME)
def test_figures_are_drawn_from_the_chapters_own_tensors(stem):
    text = BY_NAME[stem].read_text(encoding="utf-8")
    namespace = executed(stem)[0] if figures.drawings(stem[:2]) else {}
    for name, picture in figures.figures(stem[:2], namespace).items():
        assert f"](images/{name})" in text, f"{name} is drawn but not shown"
        within = getattr(figures.drawings(stem[:2]).get(name), "within", 1)
        assert figures.same_picture((HERE / "images" / name).read_text(encoding="utf-8"), picture, within), f"python -m tutorial.figures {stem[:2]}"


@pytest.mark.parametrize("stem", BY_NAME)
def test_the_shape_of_a_chapter(stem):
    text, number = BY_NAME[stem].read_text(encoding="utf-8"), int(stem[:2])
    unfenced = re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)
    assert text.startswith(f"# {number}. ") and f"(images/loop_{number:02d}.svg)" in text
    assert re.findall(r"^## (.*)$", unfenced, re.M) == SECTIONS
    assert 800 <= len(prose(text).split()) <= 1500
    assert all(len(line) <= 100 for cell in build.split(text) if cell.kind == "code" for line in cell.text.splitlines())


@pytest.mark.parametrize("stem", BY_NAME)
def test_exercises_have_a_stub_a_solution_a_check_and_folded_help(stem):
    text, number = BY_NAME[stem].read_text(encoding="utf-8"), stem[:2]
    headings = re.findall(rf"^### {int(number)}\.\d+ .+ \(\d+ minutes, (?:easy|medium|hard)\)$", text, re.M)
    stubs, solutions = (build.functions_of(HERE / folder / f"ex{number}.py") for folder in ("exercises", "solutions"))
    folded = [name for block in build.SOLUTION.findall(text) for name in re.findall(r"^def (\w+)", block[1], re.M)]
    assert len(headings) >= 2 and text.count("<details><summary>Hint") >= 2
    assert len(stubs) >= 2 and list(stubs) == list(check.checks_of(int(number)))
    assert sorted(folded) == sorted(stubs) and set(stubs) <= set(solutions)
    for name, source in stubs.items():
        assert source.splitlines()[0] == solutions[name].splitlines()[0], "the stub and the solution take the same arguments"
        assert "raise NotImplementedError" in source and '"""' in source and f"`{name}`" in text


@pytest.mark.parametrize("stem", BY_NAME)
def test_a_quiz_has_five_questions_and_says_why_the_other_options_are_wrong(stem):
    quiz = re.search(r"^## Quiz$(.*?)^## ", BY_NAME[stem].read_text(encoding="utf-8"), re.M | re.S)[1]
    questions = QUESTION.findall(quiz)
    assert [number for number, *_ in questions] == list("12345")
    assert len({right for _, _, right, _ in questions}) >= 3, "the right answers stand at different letters"
    for number, options, right, answer in questions:
        letters = re.findall(r"^- ([a-d])\)", options, re.M)
        assert letters == list("abcd"[:len(letters)]) and len(letters) >= 3 and right in letters
        assert {letter for letter in letters if re.search(rf"\b{letter}\)", answer)} == set(letters) - {right}, f"question {number}"


# --- checks -----------------------------------------------------------------------------------------------------------

def solved(number):
    return [(number, name) for name in check.checks_of(int(number))]


def planted(number):
    """Wrong answers: functions called NAME__what_is_wrong whose docstring is in the message that the check must give."""
    module = importlib.import_module(f"tutorial_wrong.ex{number}")
    return [(number, name, f) for name, f in vars(module).items() if "__" in name.strip("_") and inspect.isfunction(f)]


@pytest.mark.parametrize("number, name", [case for number in NUMBERS for case in solved(number)])
def test_a_check_passes_the_solution_and_knows_an_empty_stub(number, name):
    checks = check.checks_of(int(number))
    answer, stub = (getattr(importlib.import_module(f"tutorial.{folder}.ex{number}"), name) for folder in ("solutions", "exercises"))
    assert check.verdict(checks[name], answer) is None
    assert check.verdict(checks[name], stub) == "not written yet"
    assert len([f for _, wrong, f in planted(number) if wrong.startswith(name + "__")]) >= 4


@pytest.mark.parametrize("number, name, wrong", [case for number in NUMBERS for case in planted(number)])
def test_a_check_names_the_mistake(number, name, wrong):
    said = check.verdict(check.checks_of(int(number))[name.split("__")[0]], wrong)
    assert said is not None, "the check lets this wrong answer pass"
    assert wrong.__doc__ in said


def test_the_command_names_the_mistake_and_what_builds_on_it(tmp_path):
    """In a process, with a wrong answer in the stub's place: the module under -m is not the one that the checks import."""
    shutil.copytree(HERE, tmp_path / "tutorial", ignore=shutil.ignore_patterns("__pycache__", "notebooks", "images"))
    wrong = (HERE / "solutions" / "ex09.py").read_text().replace("return -torch.minimum", "return torch.minimum")
    (tmp_path / "tutorial" / "exercises" / "ex09.py").write_text(wrong)
    done = subprocess.run([sys.executable, "-m", "tutorial.check", "9"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(HERE.parent)},
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines() == ["policy_loss: the sign is wrong: a loss is minimised, so it is minus the objective",
                                        "value_loss: right", "ppo_loss: builds on policy_loss: mend that first"]


def test_compare_names_what_is_not_a_number_of_the_right_shape():
    for got, message in [(None, "return statement"), ("three", "expected the result to be a tensor"), ([1.0], "has shape (1,), expected (2,)"),
                         ([1.0, 2.5], "the result at [1]: got 2.5, expected 2"), ([float("nan"), 2.0], "got nan, expected 1"),
                         ([2.0, 1.0], "turned round")]:
        with pytest.raises(check.Mistake, match=re.escape(message)):
            check.compare(got, [1.0, 2.0], {"turned round": [2.0, 1.0]})
    check.compare([1.0, 2.0], [1.0, 2.0], {})


def test_where_no_mistake_fits_the_first_wrong_number_is_told_with_its_formula():
    def td_errors(values, rewards, mask, gamma):
        right = importlib.import_module("tutorial.solutions.ex08").td_errors(values, rewards, mask, gamma)
        return right + torch.tensor([[0.0, 0.0, 1.0], [0.5, 0.0, 0.0]])
    assert check.verdict(check.checks_of(8)["td_errors"], td_errors) == (
        "the TD errors at row 0, column 2: got 3, expected 2 = 3 + 0.5 * 0 - 1, reward + gamma * next value - value (the first of 2 that differ)")
    with pytest.raises(check.Mistake, match=re.escape("the sum: got 4, expected 3 = 1 + 2")):
        check.compare(4, 3, {}, "the sum", formula="1 + 2")


@pytest.mark.parametrize("number", NUMBERS)
def test_every_formula_gives_the_number_expected_and_no_two_mistakes_look_alike(number, monkeypatch):
    """Formulas begin with arithmetic, up to the first comma that is followed by words, or are words altogether."""
    names = {name: getattr(math, name) for name in ("exp", "log", "sqrt", "tanh", "pi")}
    module = importlib.import_module(f"tutorial.checks.check{number}")
    if not hasattr(module, "compare"):
        return
    calls = []

    def compare(got, wanted, mistakes, what="the result", tolerance=1e-4, formula=""):
        calls.append(what)
        wanted = torch.as_tensor(wanted).double()
        assert formula or wanted.numel() == 1, what
        for index in torch.ones(wanted.shape).nonzero().tolist():
            words = formula(*index) if callable(formula) else formula
            if re.match(r"[-\d(]|log|exp", words):
                assert eval(words.split(", ")[0], names) == pytest.approx(wanted[tuple(index)].item(), abs=tolerance), (what, words)
        results = [("right", wanted)] + [(message, torch.as_tensor(numbers).double()) for message, numbers in mistakes.items()]
        for (one, x), (other, y) in itertools.combinations(results, 2):
            assert x.shape != y.shape or not torch.allclose(x, y, rtol=0, atol=2 * tolerance), f"{what}: {one} / {other}"
        check.compare(got, wanted, mistakes, what, tolerance)
    monkeypatch.setattr(module, "compare", compare)
    for number, name in solved(number):
        assert check.verdict(check.checks_of(int(number))[name], getattr(importlib.import_module(f"tutorial.solutions.ex{number}"), name)) is None
    assert calls


def test_an_answer_works_on_clones_and_is_named_if_it_writes_into_them():
    given, rows = torch.tensor([1.0, float("nan")]), [[1, 2]]

    def answer(x, lists, n=1):
        x += n
        return x
    with pytest.raises(check.Mistake, match="you changed `x` in place"):
        check.guarded(answer)(given, rows)
    with pytest.raises(check.Mistake, match="you changed `lists` in place"):
        check.guarded(lambda x, lists: lists[0].append(3))(given, rows)
    assert given[0] == 1 and rows == [[1, 2]]
    assert check.guarded(lambda x, lists, n=1: n)(given, lists=rows, n=2) == 2
    leaf = torch.ones(2, requires_grad=True)
    check.guarded(lambda x: (2 * x).sum())(leaf).backward()
    assert leaf.grad.tolist() == [2.0, 2.0]


def test_an_error_in_the_learners_code_is_told_with_its_line():
    def answer(x):
        return x / 0
    line = inspect.getsourcelines(answer)[1] + 1
    said = check.verdict(lambda f: f(1), answer)
    assert said == f"it stopped with an error: line {line}: ZeroDivisionError: division by zero"


def test_check_takes_the_files_or_functions_given_to_it(capsys):
    def td_errors(values, rewards, mask, gamma):
        raise NotImplementedError
    assert check.check(8, folder="solutions") and not check.check(8) and not check.check(8, td_errors)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "td_errors: right" and said[3] == "td_errors: not written yet" and len(said) == 7
    with pytest.raises(ValueError, match="chapter 1 has no exercise td_errors; it has optimal_policy, objective"):
        check.check(1, td_errors)


# --- pages in step ----------------------------------------------------------------------------------------------------

def test_links_solutions_notebooks_and_the_metrics_page_are_in_step():
    assert build.build(check=True) == [], "run python -m tutorial.build"


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [path.name for path in PAGES])
def test_every_link_leads_somewhere(page):
    for words, target in SHAPE.findall((HERE / page).read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        if target.startswith("https://"):
            continue
        path = (HERE / file).resolve() if file else HERE / page
        assert path.exists(), f"{page}: [{words}]({target})"
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path), f"{page}: [{words}]({target})"
        if path.suffix == ".py" and words.startswith("`"):
            assert re.fullmatch(r"L\d+(-L\d+)?", anchor), f"{page}: [{words}]({target}) names no line"


@pytest.mark.parametrize("stem", BY_NAME)
def test_a_notebook_is_valid_and_holds_the_chapters_code(stem):
    made = json.loads((HERE / "notebooks" / f"{stem}.ipynb").read_text(encoding="utf-8"))
    code = ["".join(cell["source"]) for cell in made["cells"] if cell["cell_type"] == "code"]
    cells = [cell for cell in build.split(BY_NAME[stem].read_text(encoding="utf-8")) if cell.kind == "code"]
    assert made["nbformat"] == 4 and len({cell["id"] for cell in made["cells"]}) == len(made["cells"])
    assert code == [build.FIRST_CELL, *(cell.text.strip("\n") for cell in cells)]


def test_a_notebooks_first_cell_finds_the_package_or_says_what_to_do(tmp_path):
    def first_cell(folder):
        return subprocess.run([sys.executable, "-I", "-c", build.FIRST_CELL + "\nimport tutorial.check"], cwd=folder,
                              capture_output=True, text=True, timeout=60)
    assert first_cell(HERE / "notebooks").stdout == "minippo found\n"
    (tmp_path / "clone").symlink_to(HERE.parent)
    assert first_cell(tmp_path).stdout == "minippo found\n"
    assert "clone the repository" in first_cell(tmp_path.parent).stderr


# --- build.py itself --------------------------------------------------------------------------------------------------

def test_a_chapter_is_split_into_cells():
    text = "# T\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n\nend\n\n<details>\n```python\nno()\n```\n</details>\n```\nx = y\n```\n"
    cells = build.split(text)
    assert [(cell.kind, cell.line, cell.output) for cell in cells] == [("markdown", 1, ""), ("code", 4, "1\n"), ("markdown", 10, "")]
    assert "no()" in cells[2].text and "x = y" in cells[2].text
    for bad in ("```text\n1\n```\n", "```python\n1\n```\nwords\n```text\n1\n```\n", "```js\n1\n```\n", "```python\n1\n"):
        with pytest.raises(ValueError, match="block"):
            build.split(bad)


def test_links_follow_the_lines_of_their_symbols():
    source = (HERE / "../minippo/ppo.py").resolve().read_text(encoding="utf-8").splitlines()
    refreshed = build.refresh_links('[`compute_advantages`](../minippo/ppo.py#L1) [`PPOConfig.lam`](../minippo/ppo.py#L1) '
                                    '[here](../minippo/ppo.py#L1 "return advantages, advantages + values") [all](../minippo/ppo.py)', "page")
    first, last, field, snippet = (int(number) for number in re.findall(r"L(\d+)", refreshed))
    assert source[first - 1].startswith("def compute_advantages(") and source[last - 1] .startswith("    return advantages, advantages + values")
    assert source[field - 1].startswith("    lam: float") and "return advantages, advantages + values" in source[snippet - 1]
    assert refreshed.endswith("[all](../minippo/ppo.py)")
    for bad in ("[`no_such_function`](../minippo/ppo.py#L1)", '[x](../minippo/ppo.py#L1 "import")'):
        with pytest.raises(ValueError, match="found none or several"):
            build.refresh_links(bad, "page")


def test_a_picture_is_compared_with_a_pixels_tolerance():
    one = '<rect x="10" y="20.5"/><text x="3" y="4">0.50</text><polyline points="1,2 3,4"/>'
    assert figures.same_picture(one, one.replace("20.5", "20.9").replace("3,4", "3.5,4"))
    for other in (one.replace("20.5", "22"), one.replace("0.50", "0.51"), one.replace("3,4", "3,6"), one + "<g/>"):
        assert not figures.same_picture(one, other)
    assert figures.same_picture(one, one.replace("20.5", "25"), 5) and not figures.same_picture(one, one.replace("20.5", "26"), 5)


# --- the learner's functions in the real trainer ----------------------------------------------------------------------

def test_the_learners_functions_train_exactly_as_ours(capsys):
    """The folded solutions, put into ppo.py, make the same update to the last bits; a stub is refused."""
    from conftest import make_policy, make_ragged
    from minippo.ppo import PPOConfig, PPOTrainer

    def weights():
        policy = make_policy()
        # not Adam: the keys' biases have gradient 0 but for rounding, and it makes a step of full size out of that
        trainer = PPOTrainer(PPOConfig(mini_batch_size=2, gradient_accumulation_steps=2), policy,
                             optimizer=torch.optim.SGD(policy.parameters(), lr=0.01))
        trainer.step(make_ragged([3, 2, 4]), make_ragged([4, 1, 2], seed=1), [1.0, -1.0, 0.5])
        return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])
    expected = weights()
    try:
        assert swap.use_exercises() == [] and "not written yet" in capsys.readouterr().out
        assert swap.use_exercises("solutions") == list(swap.SWAPS)
        assert torch.allclose(weights(), expected, atol=1e-6)
    finally:
        swap.use_originals()
    assert torch.equal(weights(), expected)


def test_swap_refuses_a_function_that_writes_into_its_inputs_and_stops_a_run_in_which_it_does(monkeypatch, capsys):
    from conftest import make_policy, make_ragged
    from minippo.ppo import PPOConfig, PPOTrainer
    solutions = importlib.import_module("tutorial.solutions.ex07")
    right = solutions.compute_rewards

    def refused(scores, logprobs, ref_logprobs, mask, kl_coef):
        rewards = right(scores, logprobs, ref_logprobs, mask, kl_coef)
        logprobs -= ref_logprobs
        return rewards

    def sly(scores, logprobs, ref_logprobs, mask, kl_coef):
        rewards = right(scores, logprobs, ref_logprobs, mask, kl_coef)
        return rewards if len(scores) == 2 else (logprobs.zero_(), rewards)[1]          # the check has two responses
    try:
        monkeypatch.setattr(solutions, "compute_rewards", refused)
        assert "compute_rewards" not in swap.use_exercises("solutions")
        assert "compute_rewards: ours; yours: you changed `logprobs` in place" in capsys.readouterr().out
        monkeypatch.setattr(solutions, "compute_rewards", sly)
        assert "compute_rewards" in swap.use_exercises("solutions")
        with pytest.raises(check.Mistake, match="you changed `logprobs` in place"):
            PPOTrainer(PPOConfig(), make_policy()).step(make_ragged([3, 2, 4]), make_ragged([4, 1, 2], seed=1), [1.0, -1.0, 0.5])
    finally:
        swap.use_originals()
