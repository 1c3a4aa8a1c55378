"""PPOTrainer.step against TRL 0.11.4, three steps in a row: the numbers of each token, the statistics, every weight.

In double precision the two agree to nine digits or more, in fp32 as far as fp32 goes. Where TRL is faulty a test shows the
fault, and compares ours with TRL after the fault is mended (MendedPPOTrainer in trl_steps.py).
"""

import math

import pytest
import torch

pytest.importorskip("trl", reason="needs trl 0.11.4 to compare with: pip install -r tests/peers/requirements.txt")

import trl_steps as trl  # noqa: E402
from golden.steps import (BATCH, EOS, Problem, Step, assert_numbers_agree, make_policy, make_problem,  # noqa: E402
                          minippo_steps, weight_error)

from minippo import PPOConfig, PPOTrainer  # noqa: E402

RAGGED, EQUAL = make_problem(), make_problem(equal_lengths=True)
LARGE = {"learning_rate": 1e-3}             # the weights move by percents, and the policy with them

AGREE = {
    "defaults": (RAGGED, {}),
    "large steps": (RAGGED, LARGE),
    "small minibatches": (RAGGED, LARGE | {"mini_batch_size": 2}),
    "accumulation": (EQUAL, LARGE | {"mini_batch_size": 2, "gradient_accumulation_steps": 2}),
    "one epoch": (RAGGED, LARGE | {"ppo_epochs": 1}),
    "fixed KL coefficient": (RAGGED, LARGE | {"adap_kl_ctrl": False, "init_kl_coef": 0.7}),
    "quick controller": (RAGGED, LARGE | {"target": 1.0, "horizon": 20.0}),
    "score clip": (RAGGED, LARGE | {"score_clip": 0.3}),
    "narrow clipping": (RAGGED, LARGE | {"cliprange": 0.01, "cliprange_value": 0.01, "vf_coef": 1.0}),
    "discount": (RAGGED, LARGE | {"gamma": 0.9, "lam": 0.5}),
    "whitened rewards": (EQUAL, LARGE | {"whiten_rewards": True}),
    "decaying learning rate": (RAGGED, LARGE | {"lr_decay": 0.5}),
    "early stopping far off": (RAGGED, LARGE | {"early_stopping": True, "target_kl": 100.0}),
}
QUICK = LARGE | {"target": 1.0, "horizon": 20.0}
MENDED = {
    "clipped gradients": (RAGGED, LARGE | {"max_grad_norm": 0.05}),
    "whitened ragged rewards": (RAGGED, LARGE | {"whiten_rewards": True}),
    "KL penalty abs": (RAGGED, QUICK | {"kl_penalty": "abs"}),
    "KL penalty mse": (RAGGED, QUICK | {"kl_penalty": "mse"}),
    "KL penalty full": (RAGGED, QUICK | {"kl_penalty": "full"}),
}
SCALED = {"score scaling": {"use_score_scaling": True}, "score norm": {"use_score_scaling": True, "use_score_norm": True}}


def assert_steps_agree(ours: list[Step], theirs: list[Step]) -> None:
    """In double precision: every number to 1e-9 and every single weight to 1e-8, after each step."""
    for our, their in zip(ours, theirs, strict=True):
        assert_numbers_agree(our, trl.over_the_batch(their), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(our.weights, their.weights, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("name", AGREE)
def test_steps_equal_those_of_trl(name):
    problem, settings = AGREE[name]
    assert_steps_agree(minippo_steps(problem, **settings), trl.trl_steps(problem, **settings))


@pytest.mark.parametrize("name", ["defaults", "small minibatches", "accumulation"])
def test_steps_equal_those_of_trl_in_fp32(name):
    """Both as they are used: 1e-5 relative (1e-6 absolute, for numbers near 0), and each weight tensor to 1e-6 of its norm."""
    problem, settings = AGREE[name]
    ours, theirs = (steps(problem, torch.float32, **settings) for steps in (minippo_steps, trl.trl_steps))
    for our, their in zip(ours, theirs, strict=True):
        assert_numbers_agree(our, trl.over_the_batch(their), rtol=1e-5, atol=1e-6)
        assert weight_error(our, their) < 1e-6


def test_the_problem_reaches_what_it_compares():
    """KL and clipping at work, weights that moved, responses of one token and with EOS: agreement means something."""
    narrow, large = (minippo_steps(*AGREE[name][:1], **AGREE[name][1]) for name in ("narrow clipping", "large steps"))
    assert narrow[0].stats["ppo/policy/clipfrac"] > 0.1 and narrow[0].stats["ppo/val/clipfrac"] > 0.1
    assert all(step.stats["objective/kl"] > 0.2 for step in large)
    start = Step({}, {}, 0.0, {name: w.double() for name, w in RAGGED.weights.items()})
    assert weight_error(large[0], start) > 0.01
    lengths = {len(response) for batch in RAGGED.batches for response in batch.responses}
    assert lengths == {1, 2, 3, 4, 5}
    assert any(EOS in response for batch in RAGGED.batches for response in batch.responses)


# ---------------------------------------------------------------------------------------------------------------------
# where TRL is faulty
# ---------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", MENDED)
def test_steps_equal_those_of_mended_trl(name):
    """Faults that show in the weights; which they are, MendedPPOTrainer says."""
    problem, settings = MENDED[name]
    ours = minippo_steps(problem, **settings)
    assert_steps_agree(ours, trl.trl_steps(problem, mended=True, **settings))
    assert weight_error(ours[-1], trl.trl_steps(problem, **settings)[-1]) > 1e-5


def test_gradients_are_clipped_at_the_first_step_alone():
    settings = LARGE | {"max_grad_norm": 0.05, "ppo_epochs": 1}
    ours, theirs = minippo_steps(RAGGED, **settings), trl.trl_steps(RAGGED, **settings)
    assert_steps_agree(ours[:1], theirs[:1])
    assert weight_error(ours[1], theirs[1]) > 1e-5


@pytest.mark.parametrize("name", SCALED)
def test_scaled_scores_crash(name):
    settings = LARGE | SCALED[name]
    with pytest.raises(AttributeError, match="'float' object has no attribute 'to'"):
        trl.trl_steps(RAGGED, **settings)
    assert_steps_agree(minippo_steps(RAGGED, **settings), trl.trl_steps(RAGGED, mended=True, **settings))


def test_accumulated_gradients_weigh_tokens_unequally():
    """TRL averages the means of micro-batches; ours accumulate to TRL's own result for one minibatch of the same rows."""
    accumulated = LARGE | {"mini_batch_size": 2, "gradient_accumulation_steps": 2}
    ours = minippo_steps(RAGGED, **accumulated)
    assert_steps_agree(ours, trl.trl_steps(RAGGED, **LARGE, mini_batch_size=4))
    assert weight_error(ours[0], trl.trl_steps(RAGGED, **accumulated)[0]) > 1e-5


def test_a_skipped_minibatch_moves_the_weights():
    """A mean ratio above 1.0001 is common after the first update: TRL then sets the loss to 0, and Adam's momentum acts."""
    settings = LARGE | {"mini_batch_size": 4, "ratio_threshold": 1.0001}
    ours = minippo_steps(RAGGED, **settings)
    assert [step.stats["ppo/updates"] + step.stats["ppo/skipped"] for step in ours] == [8, 8, 8]
    assert sum(step.stats["ppo/skipped"] for step in ours) > 3
    for our, mended in zip(ours, trl.trl_steps(RAGGED, mended=True, **settings)):
        torch.testing.assert_close((our.tokens, our.weights), (mended.tokens, mended.weights), rtol=1e-8, atol=1e-11)
    assert weight_error(ours[0], trl.trl_steps(RAGGED, **settings)[0]) > 1e-5


def test_early_stopping_acts_after_the_steps():
    """With a target of nearly 0 the second epoch's KL is too much: ours ends before its optimizer step, TRL takes it.

    So ours equals TRL with a single epoch. TRL looks at the signed k1 estimate, ours at k2, which is never negative.
    """
    stopping = LARGE | {"early_stopping": True, "target_kl": 1e-9}
    ours, one_epoch = minippo_steps(RAGGED, **stopping), trl.trl_steps(RAGGED, **LARGE, ppo_epochs=1)
    assert [(step.stats["ppo/updates"], step.stats["ppo/early_stopped"]) for step in ours] == [(1, 1)] * 3
    assert_steps_agree(ours, one_epoch)
    assert weight_error(ours[0], trl.trl_steps(RAGGED, **stopping)[0]) > 1e-5


def test_left_padding_shifts_the_positions():
    """TRL passes no position ids, so with padding_side="left" the shorter sequences of a batch are scored wrongly."""
    first = Problem(RAGGED.weights, RAGGED.reference, RAGGED.batches[:1])
    ours, left = minippo_steps(first)[0], trl.trl_steps(first, padding_side="left")[0]
    torch.testing.assert_close(ours.tokens["logprobs"], trl.trl_steps(first)[0].tokens["logprobs"], rtol=1e-9, atol=1e-12)
    assert (ours.tokens["logprobs"] - left.tokens["logprobs"]).abs().max() > 0.1


def test_integer_scores_crash_after_the_update():
    first = RAGGED.batches[0]
    integers, floats = (Problem(RAGGED.weights, RAGGED.reference, [first._replace(scores=list(torch.arange(8, dtype=dtype)))])
                        for dtype in (torch.int64, torch.float32))
    trainer = trl.make_trainer(integers, **LARGE)
    with pytest.raises(RuntimeError, match="mean"):
        trainer.step(first.queries, first.responses, integers.batches[0].scores)
    assert not torch.equal(trl.from_hf(trainer.model.state_dict())["v_head.weight"], RAGGED.weights["v_head.weight"])
    assert_steps_agree(minippo_steps(integers, **LARGE), trl.trl_steps(floats, **LARGE))


def test_one_token_turns_all_weights_to_nan():
    """The variance of a single advantage is 0/0 in TRL. Ours is 0, so is the whitened advantage; the value still learns."""
    one = Problem(RAGGED.weights, RAGGED.reference, [RAGGED.batches[0]._replace(
        queries=[torch.tensor([1, 2, 3])], responses=[torch.tensor([EOS])], scores=[torch.tensor(1.0)], orders=[[0]] * 4)])
    settings = LARGE | {"batch_size": 1, "mini_batch_size": 1}
    ours, theirs = minippo_steps(one, **settings)[0], trl.trl_steps(one, **settings)[0]
    assert all(w.isnan().any() for w in theirs.weights.values()) and math.isnan(theirs.stats["ppo/std_scores"])
    assert all(w.isfinite().all() for w in ours.weights.values()) and all(map(math.isfinite, ours.stats.values()))
    assert ours.tokens["advantages"].tolist() == [0.0] and ours.stats["ppo/updates"] == 4
    torch.testing.assert_close(ours.tokens["returns"], theirs.tokens["returns"], rtol=1e-9, atol=0)
    assert ours.weights["v_head.bias"] > RAGGED.weights["v_head.bias"]          # the return, about 1, is above the value


def test_a_batch_of_one_alone_is_refused():
    """The quickstart's {"batch_size": 1} with TRL's default mini_batch_size of 128."""
    with pytest.raises(ValueError, match="multiple"):
        trl.PPOConfig(batch_size=1)
    assert PPOConfig(batch_size=1).batch_size == 1


def test_eos_in_the_query_cuts_the_prompt():
    """With return_prompt=True TRL cuts at the first EOS of query and response together, ours only in the response."""
    theirs, ours = trl.make_trainer(RAGGED), PPOTrainer(PPOConfig(), make_policy(RAGGED.weights, torch.float32))
    query = torch.tensor([EOS, 1, 2])
    kwargs = {"do_sample": False, "max_new_tokens": 4, "pad_token_id": EOS, "eos_token_id": EOS}
    response, = theirs.generate([query], return_prompt=False, **kwargs)
    assert theirs.generate([query], return_prompt=True, **kwargs)[0].tolist() == [EOS]
    assert ours.generate([query], return_prompt=True, **kwargs)[0].tolist() == [EOS, 1, 2, *response.tolist()]


# ---------------------------------------------------------------------------------------------------------------------
# the loop of the quickstart
# ---------------------------------------------------------------------------------------------------------------------

@pytest.mark.filterwarnings("ignore:KL")         # greedy responses are not a sample of the policy
def test_generate_and_step_in_turns():
    """Greedy responses of both trainers are equal before and after each step; they end with the first EOS."""
    theirs = trl.make_trainer(RAGGED, **LARGE)
    ours = PPOTrainer(PPOConfig(batch_size=BATCH, mini_batch_size=BATCH, **LARGE), make_policy(RAGGED.weights, torch.float32),
                      make_policy(RAGGED.reference, torch.float32), tokenizer=theirs.tokenizer)
    queries, seen = RAGGED.batches[0].queries, set()
    for _ in range(3):
        kwargs = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": EOS}
        responses = ours.generate(queries, return_prompt=False, **kwargs)
        expected = theirs.generate(queries, return_prompt=False, eos_token_id=EOS, **kwargs)
        assert [r.tolist() for r in responses] == [r.tolist() for r in expected]
        seen |= {tuple(r.tolist()) for r in responses}
        scores = [torch.tensor(float((r < 10).sum())) for r in responses]
        ours.step(queries, responses, scores)
        theirs.step(queries, responses, scores)
    assert len(seen) > BATCH and any(r[-1] == EOS and len(r) < 8 for r in seen)
