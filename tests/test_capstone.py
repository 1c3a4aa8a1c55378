"""Chapter 13: the hundred lines are PPOTrainer on other batches, too, and in each program with a fault a metric tells it."""

import inspect
import os
import subprocess
import sys

import pytest
import torch
from conftest import make_policy, make_ragged

from minippo import PPOConfig, PPOTrainer
from tutorial.build import HERE
from tutorial.check import verdict
from tutorial.checks.check13 import BUGS, KEYS, _run, _source, check_find_bug_2, check_step
from tutorial.solutions import ex13

slow = pytest.mark.skipif(not os.environ.get("MINIPPO_SLOW"), reason="trains for seconds: set MINIPPO_SLOW=1")


@pytest.mark.parametrize("B, micro, several, seed", [(10, 4, 2, 0), (7, 2, 3, 1), (5, 8, 1, 2)])
def test_a_hundred_lines_give_the_metrics_of_the_trainer(B, micro, several, seed):
    """Ragged queries and responses; the last minibatch and the last micro-batch are smaller than the others."""
    def score(response):
        return float((response == 4).sum()) - 0.1 * len(response)

    def policy():
        return make_policy(vocab_size=13, n_positions=16, n_embd=16, n_layer=1, n_head=2, seed=seed, scale=2.0)
    config = PPOConfig(mini_batch_size=micro, gradient_accumulation_steps=several, ppo_epochs=3, learning_rate=3e-3, adam_eps=1e-4,
                       seed=seed, target=0.5, horizon=40)
    queries = make_ragged([1 + i % 3 for i in range(B)], 13, seed=seed)
    history = ex13.train(policy(), queries, score, config, 3, 6, eos_token_id=3)
    trainer = PPOTrainer(config, policy())
    for stats in history:
        responses = trainer.generate(queries, max_new_tokens=6, eos_token_id=3)
        wanted = trainer.step(queries, responses, [score(response) for response in responses])
        assert [stats[key] for key in KEYS] == pytest.approx([wanted[key] for key in KEYS], abs=1e-4)


def test_the_ratio_of_the_first_minibatch_is_exactly_one():
    config, n = PPOConfig(mini_batch_size=3, gradient_accumulation_steps=2), 16
    model, queries = make_policy(), make_ragged([1 + i % 5 for i in range(n)])
    responses = make_ragged([1 + i % 7 for i in range(n)], seed=1)
    optimizer, generator = torch.optim.SGD(model.parameters(), lr=0.1), torch.Generator().manual_seed(3)
    first = [row for rows in ex13.minibatches(n, config, torch.Generator().manual_seed(3))[0] for row in rows]
    stats, _ = ex13.step(model, make_policy(seed=1), optimizer, queries, responses, torch.arange(n) / n, 0.2, config, generator)
    tokens = sum(len(responses[row]) for row in first)
    assert (stats["ppo/policy/ratio"][:tokens] == 1).all() and (stats["ppo/policy/ratio"][tokens:] != 1).any()


def test_a_batch_longer_than_the_horizon_moves_kl_coef_by_the_whole_error():
    config, queries, responses = PPOConfig(mini_batch_size=4, target=100.0, horizon=5), make_ragged([2] * 8), make_ragged([3] * 8, seed=1)
    model = make_policy()
    optimizer, generator = torch.optim.SGD(model.parameters(), lr=0.0), torch.Generator().manual_seed(3)
    assert ex13.step(model, make_policy(), optimizer, queries, responses, torch.arange(8) / 8, 0.5, config, generator)[1] == pytest.approx(0.4)


def detached(*given):
    """A step whose rollout has no torch.no_grad() and cuts the graph afterwards."""
    namespace = dict(vars(ex13))
    source = inspect.getsource(ex13.rollout).replace("with torch.no_grad()", "if True")
    exec(source.replace("return logprobs, ref_logprobs, values, mask", "return logprobs.detach(), ref_logprobs, values.detach(), mask"), namespace)
    exec(inspect.getsource(ex13.step), namespace)
    return namespace["step"](*given)


def backwards(*given):
    """A step whose rollout takes the first epoch's micro-batches from the end."""
    namespace = dict(vars(ex13))
    exec(inspect.getsource(ex13.step).replace("responses, micro_batches)", "responses, micro_batches[::-1])"), namespace)
    return namespace["step"](*given)


@pytest.mark.parametrize("step", [detached, backwards])
def test_the_check_of_step_accepts_other_ways_to_the_same_bits(step):
    assert verdict(check_step, step) is None


@pytest.mark.parametrize("metric", ["kl", "kl_coef"])
def test_both_metrics_of_bug2_are_accepted(metric):
    def find_bug_2():
        return 76, metric
    assert verdict(check_find_bug_2, find_bug_2) is None


@slow
@pytest.mark.parametrize("number", BUGS)
def test_a_program_with_a_fault_runs_prints_and_differs_by_one_line(number):
    done = subprocess.run([sys.executable, "-W", "error", "-m", f"tutorial.bugs.bug{number}"], cwd=HERE.parent, env=os.environ,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.splitlines()[0].split() == ["step", *_run(number)[0]] and len(done.stdout.splitlines()) >= 8
    assert sum(a != b for a, b in zip(_source(number).splitlines(), _source(number, mended=True).splitlines())) == 1


@pytest.fixture(scope="module", params=[0, pytest.param(1, marks=slow)], ids="seed{}".format)
def runs(request):
    """Each program with its fault and without, from one seed: {number: (faulty, mended)}."""
    def run(number, mended):
        namespace = {"__name__": f"bug{number}"}
        exec(_source(number, mended).replace("manual_seed(0)", f"manual_seed({request.param})"), namespace)
        return namespace["run"]()
    return {number: (run(number, False), run(number, True)) for number in BUGS}


def test_the_score_rises_in_all_of_them(runs):
    """In the faulty ones, too: that is what makes a fault silent."""
    for both in runs.values():
        for history in both:
            assert history[-1]["score"] > history[0]["score"] + 0.3


def test_only_with_the_fault_nothing_is_clipped_in_bug1(runs):
    faulty, mended = runs[1]
    assert all(step["clipfrac"] == 0 and step["approxkl"] < 1e-9 for step in faulty)
    assert mended[0]["clipfrac"] > 0.2 and all(step["approxkl"] > 1e-6 for step in mended)


def test_only_with_the_fault_kl_coef_falls_while_the_kl_is_above_its_target_in_bug2(runs):
    target = 2.0
    for history, falls in zip(runs[2], (True, False)):
        above = [(step["kl_coef"], after["kl_coef"]) for step, after in zip(history, history[1:]) if step["kl"] > target]
        assert len(above) > 8 and all((after < before) == falls for before, after in above)
    assert runs[2][0][-1]["kl"] > 12 and all(0.65 < step["kl"] < 4.15 for step in runs[2][1][10:])


def test_only_with_the_fault_a_token_of_each_response_is_never_trained_in_bug3(runs):
    for history, missing in zip(runs[3], (1, 0)):
        assert [step["trained"] for step in history] == pytest.approx([step["length"] - missing for step in history])
