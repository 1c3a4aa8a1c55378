"""Evaluation during a run: the same prompts each time, the best checkpoint, an end on KL; and what a hook is told."""

import os
import shutil
import warnings
from statistics import fmean
from types import SimpleNamespace

import pytest
import torch

from minippo.files.checkpoint import verify_folder
from minippo.files.safetensors import read_safetensors
from minippo.files.tokenizer import load_tokenizer
from minippo.policy import GPT2WithValueHead, response_logprobs
from minippo.scoring.rewards import RewardError, length, no_repeat, parse_reward
from minippo.training import run_folder
from minippo.training.data import cut
from minippo.training.run import load_policy
from test_run import TIMES, base, history, lines, no_fsync, start  # noqa: F401: base and no_fsync are fixtures

WEIGHTS = ("model.safetensors", "trainer.safetensors", "value_head.safetensors")
EVALUATED = ["eval/distinct", "eval/kl", "eval/length", "eval/objective", "eval/score"]


def evaluation(base, **changes) -> dict:
    """Settings: two prompts, three responses to each, after updates 1, 2 and 4."""
    (base / "eval.jsonl").write_text('{"query": "the star is"}\n{"text": "a joy"}\n')
    return dict(eval_prompts=str(base / "eval.jsonl"), eval_every=2, eval_samples=3, keep_best=True) | changes


@pytest.fixture(scope="module")
def evaluated(base):
    """The reference run again, evaluated."""
    start(base, base / "evaluated", **evaluation(base))
    return base / "evaluated"


def test_an_evaluation_changes_nothing_of_the_training(base, evaluated):
    plain, metrics = history(base / "reference"), lines(evaluated / "metrics.jsonl")
    assert [line["step"] for line in metrics if "eval/score" in line] == [1, 2, 4]
    unevaluated = [{key: x for key, x in line.items() if key not in (*TIMES, *EVALUATED) and not key.startswith("time/")} for line in metrics]
    assert unevaluated == plain["metrics"]
    samples = lines(evaluated / "samples.jsonl")
    assert [line for line in samples if "eval" not in line] == plain["samples"]
    assert history(evaluated)["tensors"] == plain["tensors"]
    shown = [line for line in samples if "eval" in line]                # cut to the three tokens that queries have at most
    assert [(line["step"], line["eval"], line["query"]) for line in shown[:3]] == [(1, 0, "the star"), (1, 1, "a joy"), (1, 2, "the star")]


def test_the_numbers_of_an_evaluation_worked_out_anew(base, evaluated):
    """Two prompts, three responses to each, at update 4: the last checkpoint against the model that the run began with."""
    last, tokenizer = lines(evaluated / "metrics.jsonl")[-1], load_tokenizer(base / "model")
    policy, reference = (GPT2WithValueHead.from_pretrained(str(folder), "cpu") for folder in (evaluated / "checkpoint-000004", base / "model"))
    queries = [torch.tensor(tokenizer.encode(text)[:3]) for text in ("the star is", "a joy")] * 3       # query_tokens is 1 to 3
    responses = [response for at in (0, 4) for response in                                              # batches of 4, seeds 0 and 4
                 policy.generate(queries[at:at + 4], 5, seed=at, eos_token_id=tokenizer.eos_token_id)]
    texts = [tokenizer.decode(response, True) for response in responses]
    kl = sum(sign * response_logprobs(model, queries, responses)[0].sum().item() for sign, model in ((1, policy), (-1, reference))) / 6
    shown = [row for row in lines(evaluated / "samples.jsonl") if "eval" in row and row["step"] == 4]
    assert [row["response"] for row in shown] == texts[:3]
    assert last["eval/score"] == pytest.approx(fmean(length([], texts, 2)) + 0.5 * fmean(no_repeat([], texts)))
    assert last["eval/kl"] == pytest.approx(kl, abs=1e-5) and kl != 0
    assert last["eval/length"] == fmean(map(len, responses)) and last["eval/distinct"] == len(set(texts)) / 6
    assert last["eval/objective"] == pytest.approx(last["eval/score"] - 0.2 * last["eval/kl"])


def test_a_resumed_run_evaluates_as_if_nothing_had_happened(base, evaluated, tmp_path):
    """The run stops during update 3: its scores raise; the best so far is known from the checkpoint."""
    reward, calls = parse_reward("rule:length=2 + 0.5*rule:no_repeat", None, tmp_path / "labels.jsonl"), []

    def fails(queries, responses):
        calls.append(1)
        if len(calls) == 5:                                             # training 1, evaluation 1, 2, 2, then training 3
            raise OSError("the server is gone")
        return length(queries, responses, 2)
    reward.terms[0] = (1.0, "rule:length=2", fails)
    with pytest.raises(RewardError):
        start(base, tmp_path / "x", score_fn=reward, **evaluation(base))
    start(base, tmp_path / "x", resume=True, **evaluation(base))
    assert history(tmp_path / "x") == history(evaluated)
    resumed, whole = (verify_folder(out / "best") for out in (tmp_path / "x", evaluated))
    assert resumed["step"] == whole["step"] and all(resumed["files"][name] == whole["files"][name] for name in WEIGHTS)


def scripted(scores):
    """A score function whose n-th call gives n-th of `scores` to each response."""
    calls = iter(scores)
    return lambda queries, responses: [next(calls)] + [0.0] * (len(responses) - 1)


def test_best_holds_the_checkpoint_of_the_best_evaluation(base, tmp_path):
    """Every second call is an evaluation: 1, 3, 2 for the updates 1 to 3."""
    changes = evaluation(base, eval_every=1, best_metric="eval/score", steps=3, save_every=100)
    start(base, tmp_path / "x", score_fn=scripted([9.0, 1.0, 9.0, 3.0, 9.0, 2.0]), **changes)
    manifest = verify_folder(tmp_path / "x" / "best")
    assert manifest["step"] == 2 and load_policy(str(tmp_path / "x" / "best"), torch.device("cpu"), None)[1].config.n_embd == 16
    assert {path.name for path in (tmp_path / "x").glob("*best*")} == {"best"}
    assert run_folder.where_saved(tmp_path / "x").endswith(f"x/checkpoint-000003, the best {tmp_path / 'x' / 'best'}")
    start(base, tmp_path / "x", resume=True, score_fn=scripted([9.0, 2.5]), **changes | {"steps": 4})
    assert verify_folder(tmp_path / "x" / "best") == manifest                          # 2.5 is less than 3, which is remembered
    start(base, tmp_path / "x", resume=True, score_fn=scripted([0.0, 0.0]), **changes | {"steps": 5, "best_metric": "ppo/mean_scores"})
    assert verify_folder(tmp_path / "x" / "best")["step"] == 5                         # the first that is known of another metric
    assert (tmp_path / "x" / "checkpoint-000005").exists()                             # best/ is no reason to leave it out


@pytest.mark.parametrize("changes, message", [
    (dict(keep_best=True), "keep_best by eval/objective needs eval_prompts"), (dict(best_metric="score"), "a key of metrics.jsonl.*'score'"),
    (dict(eval_every=0), "eval_every must be a whole number above 0"), (dict(stop_kl=0.0), "stop_kl must be None or a number above 0")])
def test_settings_that_cannot_be(base, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        start(base, tmp_path / "x", **changes)
    assert not (tmp_path / "x").exists()


def test_an_evaluation_that_fails_loses_nothing(base, tmp_path):
    """Its update is done and saved, and has its line."""
    def fails(queries, responses):
        if len(responses) == 6:                                         # an evaluation; a batch has 4
            raise OSError("the server is gone")
        return [1.0, 0.0, 0.0, 0.0]
    with pytest.raises(RewardError, match="the server is gone"):
        start(base, tmp_path / "x", score_fn=fails, save_every=100, **evaluation(base, keep_best=False))
    assert [line["step"] for line in lines(tmp_path / "x" / "metrics.jsonl")] == [1] and (tmp_path / "x" / "checkpoint-000001").exists()


def test_a_run_whose_kl_stays_too_high_ends_saved_and_says_why(base, tmp_path, capsys):
    """KL is 0 in the first update and far above 1e-6 ever after: the third of those, update 4, is the last."""
    changes = dict(steps=9, lr_schedule="constant", stop_kl=1e-6, target=6.0, learning_rate=0.03, batch_size=8)
    result = start(base, tmp_path / "x", **changes)
    kls = [line["objective/kl"] for line in lines(tmp_path / "x" / "metrics.jsonl")]
    assert kls[0] <= 1e-6 < min(kls[1:4])
    assert (result.status, result.steps_done, result.checkpoint.name) == (0, 4, "checkpoint-000004")
    assert "in the last three updates, above --stop-kl 1e-06" in capsys.readouterr().err
    assert start(base, tmp_path / "x", resume=True, **changes).steps_done == 4
    assert start(base, tmp_path / "x", resume=True, **changes | {"stop_kl": None, "steps": 5}).steps_done == 5


def test_three_updates_and_no_fewer_end_a_run_on_kl(base, tmp_path):
    """Its reference is another model: the KL is above 0.01 from the first update on."""
    result = start(base, tmp_path / "x", model=str(base / "reference"), ref_model=str(base / "model"), steps=9, stop_kl=0.01, batch_size=32)
    assert result.steps_done == 3 and min(line["objective/kl"] for line in lines(tmp_path / "x" / "metrics.jsonl")) > 0.01


# --- a reference of one's own ---------------------------------------------------------------------

def test_a_second_stage_keeps_the_first_reference(base, tmp_path):
    """At its start the policy is the last of the first stage, the reference is the model before it: the KL is there at once."""
    start(base, tmp_path / "x", model=str(base / "reference"), ref_model=str(base / "model"), steps=2)
    first = next(line["trace"] for line in lines(tmp_path / "x" / "samples.jsonl") if "trace" in line)
    assert first["logprob"] != first["ref_logprob"]
    wte, kept = "transformer.wte.weight", read_safetensors(tmp_path / "x" / "checkpoint-000002" / "trainer.safetensors")
    assert torch.equal(kept[f"ref_model.{wte}"], read_safetensors(base / "model" / "model.safetensors")[wte])
    with pytest.raises(ValueError, match="ref_model: '.*model' -> None"):
        start(base, tmp_path / "x", model=str(base / "reference"), steps=3, resume=True)


def test_a_model_without_a_value_head_is_no_reason_to_warn_where_none_is_needed(base, tmp_path, monkeypatch):
    shutil.copytree(base / "model", tmp_path / "gpt2")
    os.unlink(tmp_path / "gpt2" / "value_head.safetensors")
    shutil.copytree(tmp_path / "gpt2", tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_policy("mine", torch.device("cpu"), None)                  # of a command
        GPT2WithValueHead.from_pretrained("gpt2", "cpu")                # the public model never had one
    with pytest.warns(UserWarning, match="mine has no value head"):
        GPT2WithValueHead.from_pretrained("mine", "cpu")


# --- a hook ---------------------------------------------------------------------------------------

def test_a_hook_gets_each_line_of_the_metrics(base, tmp_path):
    told = []
    start(base, tmp_path / "x", on_update=told.append, **evaluation(base))
    assert told == lines(tmp_path / "x" / "metrics.jsonl") and all(type(x) in (int, float) for line in told for x in line.values())


def test_a_hook_that_fails_ends_the_run_with_its_update_saved(base, tmp_path):
    with pytest.raises(ZeroDivisionError):
        start(base, tmp_path / "x", on_update=lambda line: 1 / (2 - line["step"]), save_every=100)
    assert (tmp_path / "x" / "checkpoint-000002").exists() and len(lines(tmp_path / "x" / "metrics.jsonl")) == 2


# --- prompts that are cut -------------------------------------------------------------------------

BYTES = SimpleNamespace(vocab_size=256, decode=lambda ids, skip: bytes(ids).decode("utf-8", "replace"))     # a token is a byte


@pytest.mark.parametrize("text, most, kept", [
    ("né😀", 1, "n"), ("né😀", 2, "n"), ("né😀", 3, "né"), ("né😀", 6, "né"), ("né😀", 7, "né😀"), ("né😀", 99, "né😀"),
    ("😀é", 2, "😀"), ("ab", 1, "a")])
def test_a_cut_falls_between_characters(text, most, kept):
    """é has 2 bytes, 😀 has 4; a first character that is longer than the cut is kept whole."""
    assert bytes(cut(BYTES, list(text.encode()), most)).decode() == kept
