"""Our numbers against those recorded from TRL 0.11.4 and transformers 4.46.3 (tests/golden/make.py), without either.

Three PPO steps on a tiny GPT-2: what each token got, every statistic and every weight after each step. tests/peers/ compares
the same live, with more settings.
"""

import json
from pathlib import Path

import pytest
import torch
from golden.steps import EOS, SIZES, Batch, Problem, Step, assert_numbers_agree, make_policy, minippo_steps, weight_error

from minippo import read_safetensors
from minippo.generation import Sampling

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def recorded():
    return (json.loads((GOLDEN / "trl_0_11_4.json").read_text()), read_safetensors(GOLDEN / "trl_0_11_4.safetensors"),
            json.loads((GOLDEN / "transformers_4_46_3.json").read_text()))


def weights_at(tensors: dict[str, torch.Tensor], place: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(place): w for name, w in tensors.items() if name.startswith(place)}


@pytest.fixture(scope="module")
def problem(recorded):
    numbers, tensors, _ = recorded
    batches = [Batch(*([torch.tensor(row) for row in batch[name]] for name in ("queries", "responses", "scores")),
                     batch["orders"]) for batch in numbers["batches"]]
    return Problem(weights_at(tensors, "weights/"), weights_at(tensors, "reference/"), batches)


def recorded_steps(recorded, case: str) -> tuple[dict, list[Step]]:
    numbers, tensors, _ = recorded
    steps = [Step({name: torch.tensor(x, dtype=torch.float64) for name, x in step["tokens"].items()}, step["stats"],
                  step["kl_coef"], weights_at(tensors, f"{case}/{i}/"))
             for i, step in enumerate(numbers["cases"][case]["steps"])]
    return numbers["cases"][case]["settings"], steps


@pytest.mark.parametrize("case", ["whole batches", "small minibatches"])
def test_steps_equal_those_recorded_from_trl(recorded, problem, case):
    """In double precision: each number to 1e-9, each weight to the rounding of its fp32 record."""
    settings, theirs = recorded_steps(recorded, case)
    assert len(theirs) == 3
    for our, their in zip(minippo_steps(problem, **settings), theirs, strict=True):
        assert_numbers_agree(our, their, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(our.weights, their.weights, rtol=1e-6, atol=1e-9, check_dtype=False)


@pytest.mark.parametrize("case", ["whole batches", "small minibatches"])
def test_steps_in_fp32_equal_those_recorded_from_trl(recorded, problem, case):
    """As they are used: each number to 1e-5 (1e-6 near 0), each weight tensor to 1e-6 of its norm."""
    settings, theirs = recorded_steps(recorded, case)
    for our, their in zip(minippo_steps(problem, torch.float32, **settings), theirs, strict=True):
        assert_numbers_agree(our, their, rtol=1e-5, atol=1e-6)
        assert weight_error(our, their) < 1e-6


def test_logits_equal_those_recorded_from_transformers(recorded, problem):
    numbers, model = recorded[2], make_policy(problem.weights, torch.float32).transformer
    with torch.no_grad():
        logits = torch.stack([model(torch.tensor([query]))[0, -1] for query in numbers["queries"]])
    torch.testing.assert_close(logits, torch.tensor(numbers["logits"]), rtol=0, atol=1e-4)


def test_greedy_responses_equal_those_recorded_from_transformers(recorded, problem):
    numbers, model = recorded[2], make_policy(problem.weights, torch.float32)
    queries = [torch.tensor(query) for query in numbers["queries"]]
    for eos, name in ((None, "greedy"), (EOS, "greedy_until_eos")):
        responses = model.generate(queries, do_sample=False, max_new_tokens=8, eos_token_id=eos)
        assert [response.tolist() for response in responses] == numbers[name]
    assert numbers["greedy"] != numbers["greedy_until_eos"]


def test_filtered_distributions_equal_those_recorded_from_transformers(recorded):
    logits = torch.tensor([recorded[2]["filter_logits"]])
    for case in recorded[2]["filtered"]:
        probs = Sampling(top_k=case.get("top_k", 0), top_p=case.get("top_p", 1.0)).filter(logits.clone()).softmax(-1)
        torch.testing.assert_close(probs, torch.tensor([case["probs"]]), rtol=1e-5, atol=1e-9)
        assert 0 < (probs == 0).sum() < SIZES["vocab_size"]
