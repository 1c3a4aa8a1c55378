"""Score functions: rules by hand, what a function may return, the parser."""

import sys
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch

from minippo.scoring import rewards
from minippo.scoring.rewards import Reward, RewardError, check_scores, own_functions, parse_reward


# --- rules ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("rule, response, score", [
    (rewards.sentiment, " a great film, GREAT but dull", 1 / 3),        # (2 good - 1 bad) / 3
    (rewards.sentiment, " dull", -1.0),
    (rewards.sentiment, " gladness", 0.0),                              # whole words only
    (rewards.sentiment, "", 0.0),
    (rewards.length, " one two, three", 0.25),                          # 1 - |3 - 12| / 12
    (rewards.length, "", 0.0),
    (rewards.length, "word " * 12, 1.0),
    (rewards.length, "word " * 15, 0.75),
    (rewards.length, "word " * 40, 0.0),                                # never below 0
    (rewards.no_repeat, " a b a b a", 0.5),                             # ab ba ab ba: 2 of 4 are new
    (rewards.no_repeat, " All new. all", 1.0),
    (rewards.no_repeat, " word", 0.0),
    (rewards.no_repeat, "", 0.0),
    (rewards.full_stop, " It ends. ", 1.0),
    (rewards.full_stop, " It trails off...", 0.0),
    (rewards.full_stop, " no", 0.0),
    (rewards.full_stop, "", 0.0),
])
def test_rules_by_hand(rule, response, score):
    assert rule(["q", "q"], [response, response]) == pytest.approx([score, score])


def test_length_takes_a_target():
    assert rewards.length(["q"], ["one two three"], target=4) == [0.75]


# --- what a score function may return -------------------------------------------------------------

@pytest.mark.parametrize("scores", [
    [1, 2], (1.0, 2.0), [True, 2], [Fraction(1), np.float32(2)], (value for value in [1, 2]),
    torch.tensor([1, 2]), np.array([1.0, 2.0]), [torch.tensor(1.0), torch.tensor([2.0])],
    torch.tensor([1.0, 2.0], dtype=torch.bfloat16, requires_grad=True),
])
def test_numbers_of_all_kinds_become_floats(scores):
    checked = check_scores(scores, "mine", ["a", "b"])
    assert checked == [1.0, 2.0] and all(type(score) is float for score in checked)


def test_scores_on_a_gpu_become_floats(gpu):
    scores = torch.tensor([1.0, 2.0], device="cuda")
    for form in (scores, list(scores)):
        assert check_scores(form, "mine", ["a", "b"]) == [1.0, 2.0]


@pytest.mark.parametrize("bad", [
    None, "1.0", float("nan"), float("inf"), 10**400, 1j, [1.0], {}, torch.tensor([1.0, 2.0]),
    np.float64("nan"), torch.tensor(float("-inf")), np.array(["x"])[0],
])
def test_anything_else_is_refused_by_function_and_query(bad):
    with pytest.raises(RewardError, match="reward mine, query 'second': expected a finite number, got"):
        check_scores([1.0, bad], "mine", ["first", "second"])


def test_the_wrong_number_of_scores_is_refused():
    for scores in ([1.0] * 7, torch.ones(7), np.ones((7, 8))):
        with pytest.raises(RewardError, match="reward mine: expected 8 scores, got 7"):
            check_scores(scores, "mine", ["q"] * 8)
    for scores in (None, 1.0, "12345678", {}, {1.0}, frozenset({1.0}), {1.0: 1}.keys(), torch.tensor(1.0)):
        with pytest.raises(RewardError, match="reward mine: expected 8 scores, got [a-zA-Z_]+ "):
            check_scores(scores, "mine", ["q"] * 8)


def failing(queries, responses):
    raise KeyError("lost")


def failing_late(queries, responses):
    yield 1.0
    raise KeyError("lost")


@pytest.mark.parametrize("score_fn", [failing, failing_late])
def test_an_exception_inside_a_reward_names_it_and_the_query(score_fn):
    reward = Reward([(1.0, "mine", score_fn)])
    message = "reward mine raised KeyError: 'lost' .*a batch of 2, the first query 'ask'"
    with pytest.raises(RewardError, match=message) as info:
        reward(["ask", "b"], ["c", "d"])
    assert isinstance(info.value.__cause__, KeyError)


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt(), GeneratorExit()], ids=repr)
def test_whatever_a_reward_raises_is_its_error(error):
    def leaving(queries, responses):
        raise error
    with pytest.raises(RewardError, match=f"reward mine raised {type(error).__name__}") as raised:
        Reward([(1.0, "mine", leaving)])(["q"], ["r"])
    assert raised.value.__cause__ is error


def test_a_module_that_ends_the_program_when_it_is_imported_is_named(parse, tmp_path):
    (tmp_path / "quitting.py").write_text("import sys; sys.exit(0)")
    with pytest.raises(ValueError, match="cannot import 'quitting:score' .*SystemExit: 0"):
        parse("quitting:score")


@pytest.mark.parametrize("score, ok", [(3.4e38, True), (-3.4e38, True), (3.5e38, False), (1e39, False), (10**400, False)])
def test_a_score_must_fit_into_fp32(score, ok):
    if ok:
        assert check_scores([score], "mine", ["q"]) == [score]
    else:
        with pytest.raises(RewardError, match="expected a finite number, got .*; fp32, which keeps it, ends at 3.4e\\+38"):
            check_scores([score], "mine", ["q"])


def test_a_reward_cannot_change_the_batch():
    queries, responses = ["a"], ["b"]
    with pytest.raises(RewardError):
        Reward([(1.0, "mine", lambda q, r: q.clear() or r.clear())])(queries, responses)
    assert (queries, responses) == (["a"], ["b"])


# --- weighted sums --------------------------------------------------------------------------------

def load_model(folder):
    """A stand-in for a reward model: the number of characters of the folder's name."""
    return lambda queries, responses: [float(len(folder))] * len(queries)


@pytest.fixture
def parse(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return partial(parse_reward, load_model=load_model, labels=tmp_path / "labels.jsonl")


@pytest.mark.parametrize("spec, weights, names", [
    ("rule:length", [1], ["rule:length"]),
    ("0.8*model:DIR + 0.2*rule:length", [0.8, 0.2], ["model:DIR", "rule:length"]),
    ("  -2 * rule:length -.5*rule:no_repeat  ", [-2, -0.5], ["rule:length", "rule:no_repeat"]),
    ("1e-3*model:runs/a-b+c.d  +  human", [1e-3, 1], ["model:runs/a-b+c.d", "human"]),
    ('3.*model:"my runs/rm" + rule:length=24', [3, 1], ["model:my runs/rm", "rule:length=24"]),
    ("0*os.path:join", [0], ["os.path:join"]),
])
def test_good_specs(parse, spec, weights, names):
    reward = parse(spec)
    assert [weight for weight, _, _ in reward.terms] == weights and [name for _, name, _ in reward.terms] == names


@pytest.mark.parametrize("spec, column, problem", [
    ("", 1, r"expected \[number \*\] source"),
    ("rule:length + ", 15, r"expected \[number \*\] source"),
    ("rule:length rule:no_repeat", 12, "after . or -"),
    ("rule:length * 2", 12, "after . or -"),
    ("0.5*rule:lenght", 5, "no source 'rule:lenght'; known: rule:sentiment, rule:length"),
    ("rule:length+0.2*human", 1, "need a space before"),
    ("2*rule:length=0", 3, "no source 'rule:length=0'; known: .*rule:length=WORDS .1 or more"),
    ("rule:sentiment=3", 1, "no source 'rule:sentiment=3'; known: "),
    ("rule:length + nonsense", 15, "no source 'nonsense'; known: .*human"),
    ("0.5*", 1, "no source '0.5"),
    ("model:", 1, "no source 'model:'"),
    ("1e999*rule:length", 7, "a weight that is finite"),
    ("rule:length - rule:length", 15, "rule:length only once"),
    ("my_missing:score", 1, "cannot import 'my_missing:score'"),
    ("math:scores", 1, "AttributeError: module 'math' has no attribute 'scores'"),
    ("math:pi", 1, "math:pi is no function, but 3.14"),
])
def test_bad_specs_show_the_column(parse, spec, column, problem):
    with pytest.raises(ValueError, match=f"reward, column {column}: .*{problem}") as info:
        parse(spec)
    assert str(info.value).endswith(f"\n    {spec}\n    {' ' * (column - 1)}^")


def test_the_sources_that_import_code_are_known_without_importing_it():
    assert own_functions('model:"a b" - 2*os:getcwd + rule:length + human + 0*a.b:c') == ["os:getcwd", "a.b:c"]
    assert own_functions("rule:length=3 + model:x:y") == [] and "a.b" not in sys.modules


def test_a_weighted_sum_by_hand(parse):
    """model:DIR gives 3, rule:length 3 of 12 words = 0.25: 0.5*3 - 2*0.25 = 1."""
    scores, parts = parse("0.5*model:DIR - 2*rule:length").parts(["q"], ["one two three"])
    assert scores == [1.0]
    assert parts == {"model:DIR": [3.0], "rule:length": [0.25]}
    assert parse("0.5*model:DIR - 2*rule:length")(["q"], ["one two three"]) == [1.0]


def test_a_sum_that_overflows_is_refused(parse):
    huge = Reward([(1e300, "mine", lambda queries, responses: [1e30])])
    with pytest.raises(RewardError, match="mine, query 'q': expected a finite number, got float inf"):
        huge(["q"], ["r"])


def test_functions_of_your_own(parse, tmp_path):
    (tmp_path / "my_own_rewards.py").write_text("def score(qs, rs):\n    return map(len, rs)\n")
    (tmp_path / "my_broken_rewards.py").write_text("1 / 0\n")
    assert parse("2*my_own_rewards:score")(["q", "q"], ["four", "to"]) == [8.0, 4.0]
    with pytest.raises(ValueError, match="module 'my_own_rewards' has no attribute 'scores'"):
        parse("my_own_rewards:scores")
    with pytest.raises(ValueError, match="ZeroDivisionError"):
        parse("my_broken_rewards:score")
