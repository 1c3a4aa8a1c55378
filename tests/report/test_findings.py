"""What the report says about a run in words.

    python -m pytest tests/report/test_findings.py
"""

import math
import random
import re

import pytest
from runs import CONFIG, run_of

from minippo.report import findings


def test_a_healthy_run_gets_one_plain_sentence_with_its_numbers():
    """Score -0.5 to 1.5 and KL 0 to 5 over updates 0 to 19: 2 of 19 after two updates, the mean of the first five; -0.5 + 4 / 19 =
    -0.289 and 1.289, 10 / 19 = 0.526 and 4.474; the mean of five sines of 0.02 is below 0.001."""
    (line,) = findings(run_of(), CONFIG)
    assert line == ("Nothing unusual: updates 1 to 20, score −0.29 to 1.29, KL 0.526 to 4.47 (means of the first and the last "
                    "5 updates).")


@pytest.mark.parametrize("words, span, changed", [
    ("KL negative for 5 updates", "updates 4 to 8, lowest −2", {"objective__kl": lambda s: -2 if 4 <= s <= 8 else 1}),
    ("KL far over its target of 6", "updates 16 to 20, highest 20", {"objective__kl": lambda s: 20 if s > 15 else 5}),
    ("Clip fraction 0 throughout", "updates 1 to 20): learning rate 1.41e-05", {"ppo__policy__clipfrac": lambda s: 0}),
    ("Clip fraction above 0.3", "updates 9 to 12, highest 0.5",
     {"ppo__policy__clipfrac": lambda s: 0.5 if 9 <= s <= 12 else 0.1}),
    ("Score constant at 0.5", "updates 1 to 20", {"ppo__mean_scores": lambda s: 0.5, "ppo__std_scores": lambda s: 0}),
    ("Every response reaches the length limit", "updates 3 to 20", {"tokens__at_limit": lambda s: float(s > 2)}),
    ("half of the responses differ", "updates 6 to 15, at worst a share of 0.1",
     {"samples__distinct": lambda s: 0.1 if 5 < s < 16 else 0.95}),
    ("The score has not risen: 0.22 on average of updates 1 to 5, 0.23 of updates 16 to 20; chance alone moves that by 0.0693", "good from bad?",
     {"ppo__mean_scores": lambda s: 0.2 + 0.1 * (s % 2 - 0.4) + 0.03 * (s > 10)}),
    ("The score has fallen: 0.5 on average of updates 1 to 5, 0 of", "16 to 20", {"ppo__mean_scores": lambda s: 0.5 * (s < 9)}),
    ("Entropy collapsed from 2.5 to 0.1", "updates 1 to 20", {"ppo__policy__entropy": lambda s: 2.5 if s < 9 else 0.1}),
    ("Explained variance negative late (mean −0.4", "updates 16 to 20", {"ppo__val__var_explained": lambda s: -0.4}),
    ("6 minibatches skipped in 3 of 20 updates", "updates 7 to 9", {"ppo__skipped": lambda s: 2 * (7 <= s <= 9)}),
    ("score/model:rm falls from 17 to 2", "(updates 1 to 20): over-opt", {"score__model:rm": lambda s: 20 - s}),
    ("samples/distinct falls from 0.953 to 0.719", "over-optimisation", {"samples__distinct": lambda s: 1 - s / 64}),
    ("Not a number", "updates 5 to 6): ppo/loss/value",
     {"ppo__loss__value": lambda s: math.nan if s in (5, 6) else 1.0}),
])
def test_each_fault_is_found_alone_with_its_numbers_and_updates(words, span, changed):
    """One fault is planted in a healthy run, and one sentence comes out.

    The windows of 20 updates are five at either end: 20 - 3 = 17, 20 - 18 = 2, 1 - 3 / 64 = 0.953, 1 - 18 / 64 = 0.719. A score of 0.26, 0.16,
    0.26, 0.16, 0.26 and one of 0.19, 0.29, 0.19, 0.29, 0.19 have the variance 0.003: 2 * sqrt((0.003 + 0.003) / 5) = 0.0693.
    """
    (line,) = findings(run_of(**changed), CONFIG)
    assert words in line
    assert span in line


def test_what_is_short_or_meant_is_no_finding():
    """Two bad updates are chance, and so is a part that jumps by 3 to 4 and ends 2 lower; KL without a target has no 'over'; values may start badly."""
    twice = run_of(objective__kl=lambda s: -3 if s in (4, 5, 9) else 1,
                   ppo__policy__clipfrac=lambda s: 0.9 if s < 3 else 0.1)
    fixed = {**CONFIG, "ppo": {**CONFIG["ppo"], "adap_kl_ctrl": False}}
    noisy = run_of(**{"score__model:rm": lambda s: 3 * s % 7})
    alike = run_of(samples__distinct=lambda s: 1 - s / 128)  # down by 0.14
    learnt = run_of(ppo__val__var_explained=lambda s: -9 if s < 10 else 0.5)
    for metrics, config in ((twice, CONFIG), (run_of(objective__kl=lambda s: 5 * s), fixed),
                            (noisy, CONFIG), (alike, CONFIG), (learnt, CONFIG)):
        (line,) = findings(metrics, config)
        assert line.startswith("Nothing unusual")


def idle(seed: int, gain: float = 0.04, noise: float = 0.25, **changed) -> list:
    """100 updates of batches of 16 whose scores spread by 1, so that a mean is off by 0.25; clip fraction 0.0003, KL up to 0.6."""
    rng = random.Random(seed)
    return run_of(100, ppo__mean_scores=lambda s: 0.02 + gain * s / 100 + rng.gauss(0, noise), ppo__std_scores=lambda s: 1.0,
                  ppo__policy__clipfrac=lambda s: 0.0003, objective__kl=lambda s: 0.006 * s, **changed)


def test_a_run_that_learnt_nothing_is_told_so():
    """The last update may well be above the first: windows decide. In 20 runs chance makes less than three look as if they rose."""
    told = [findings(idle(seed), CONFIG) for seed in range(20)]
    found = [lines for lines in told if len(lines) == 2]
    assert len(found) > 17
    for score, small in found:
        assert re.match(r"The score has not risen: \S+ on average of updates 1 to 10, \S+ of updates 91 to 100; chance alone moves that by 0.", score)
        assert small == ("Updates too small (updates 1 to 100): clip fraction 0.0003 on average, KL 0.573 at the end, its target 6; "
                         "raise learning_rate 1.41e-05 or ppo_epochs.")


def test_small_updates_are_no_fault_of_a_run_that_learns_or_moves():
    (line,) = findings(idle(0, gain=2), CONFIG)
    assert line.startswith("Nothing unusual")
    far = [{**row, "objective/kl": 3.0} for row in idle(0)]
    assert [line[:23] for line in findings(far, CONFIG)] == ["The score has not risen"]
    fixed = {"ppo": {"adap_kl_ctrl": False}}
    assert [line[:23] for line in findings(far, fixed)] == ["The score has not risen"]
    near = [{**row, "objective/kl": 0.2} for row in idle(0)]
    assert "KL 0.2 at the end; raise" in findings(near, fixed)[1]       # no target to compare with: a quarter of a nat


def test_explained_variance_of_noise_is_said_to_explain_nothing():
    """From the rollout's values it is a little below 0 on scores of pure noise, and 0.1 where something is predicted."""
    (line,) = findings(run_of(ppo__val__var_explained=lambda s: -0.05), CONFIG)
    assert line.startswith("Explained variance negative late (mean −0.05") and "the score is noise to the values" in line
    for little in (0.1, -5e-6):                                         # the second is rounding
        (line,) = findings(run_of(ppo__val__var_explained=lambda s: little), CONFIG)
        assert line.startswith("Nothing unusual")
    (line,) = findings(run_of(ppo__val__var_explained=lambda s: 0.04, ppo__mean_scores=lambda s: s % 2), CONFIG)
    assert ". To the values it is noise: explained variance 0.04. Read" in line       # what 40 updates of N(0, 1) scores gave


@pytest.mark.parametrize("value", [None, math.nan, math.inf, 10**400, -1e200])
def test_values_that_no_run_has_are_gaps_and_named(value):
    """run.py writes NaN and infinity as null."""
    (line,) = findings(run_of(objective__kl=lambda s: value if s == 5 else 1), CONFIG)
    assert line == "Not a number (update 5): objective/kl."
    assert findings(run_of(objective__kl=lambda s: "text"), CONFIG)[0].startswith("Nothing unusual")


def test_findings_of_a_single_update_and_of_missing_metrics():
    assert findings([{"step": 1}], {}) == ["Nothing unusual: update 1."]
    assert findings(run_of()[:1], {})[0].startswith("Nothing unusual: update 1, score")
