"""Training runs: what they write, and that no kill, signal, full disk or bad reward harms them."""

import contextlib
import json
import os
import pty
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from minippo.files import checkpoint
from minippo.training import run as run_module
from minippo.files.checkpoint import verify_folder
from minippo.gpt2 import GPT2Config
from minippo.policy import GPT2WithValueHead
from minippo.ppo import PPOConfig, PPOTrainer
from minippo.scoring.rewards import Reward, RewardError, StopRun
from minippo.training import batch as batch_module
from minippo.training import evaluate, run_folder
from minippo.training.config import RunConfig
from minippo.training.run import train
from minippo.files.safetensors import read_safetensors
from minippo.files.tokenizer import load_tokenizer
from minippo.training.bpe import train_bpe

REVIEWS = ["the film is a joy", "the film is a bore", "this story is dull and long", "a dog and a boat", "it is fun",
           "a long dull evening", "joy and fun for all", "the boat is the star"]
TIMES = ("time", "seconds", "tokens_per_second")


def write_model(folder: Path) -> None:
    """A model of some 5,000 parameters with its tokenizer, and prompts.txt."""
    tokenizer = train_bpe(REVIEWS * 3, 290)
    config = GPT2Config(tokenizer.vocab_size, n_positions=16, n_embd=16, n_layer=1, n_head=2,
                        eos_token_id=tokenizer.eos_token_id)
    GPT2WithValueHead(config, generator=torch.Generator().manual_seed(0)).save_pretrained(folder / "model", tokenizer)
    (folder / "prompts.txt").write_text("\n".join(REVIEWS))


def start(base: Path, out: Path, resume: bool = False, allow_config_change: bool = False, score_fn=None, on_update=None,
          **changes):
    """train() with small settings, and `changes` to the fields of both configurations."""
    values = dict(model=str(base / "model"), prompts=str(base / "prompts.txt"), reward="rule:length=2 + 0.5*rule:no_repeat",
                  out=str(out), steps=4, query_tokens=(1, 3), max_new_tokens=(2, 5), save_every=1, sample_every=2, follow=1,
                  lr_schedule="linear", warmup=1, quiet=True, device="cpu", batch_size=4, mini_batch_size=2, ppo_epochs=2,
                  learning_rate=0.01, target=0.1, horizon=50, use_score_scaling=True, use_score_norm=True) | changes
    run, config = ({f.name: values[f.name] for f in fields(cls) if f.name in values} for cls in (RunConfig, PPOConfig))
    return train(RunConfig(**run), PPOConfig(**config), resume, allow_config_change, score_fn, on_update)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def history(out: Path) -> dict:
    """All that must not depend on interruptions: metrics without times, samples, and every tensor of the last checkpoint."""
    newest = run_folder.newest_checkpoint(out)
    metrics = [{key: value for key, value in line.items() if key not in TIMES and not key.startswith("time/")}
               for line in lines(out / "metrics.jsonl")]
    return {"metrics": metrics, "samples": lines(out / "samples.jsonl"), "checkpoint": newest.name,
            "tensors": [path.read_bytes() for path in sorted(newest.glob("*.safetensors"))]}


def forked(function) -> int:
    """Fork a child that runs function(); returns its process id. Its status is 0 if the function returned."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
            os._exit(0)
        except BaseException as error:
            print(f"child: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)
    return pid


def status_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture(autouse=True, scope="module")
def no_fsync():
    """It guards against power cuts, not against what is tested here, and is most of the time of so small a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_model(folder)
    start(folder, folder / "reference")
    return folder


@pytest.fixture(scope="module")
def reference(base) -> dict:
    return history(base / "reference")


# --- what a run writes ----------------------------------------------------------------------------

def test_the_run_folder_holds_what_was_promised(base, capsys):
    out = base / "reference"
    config = json.loads((out / "config.json").read_text())
    metrics, samples = lines(out / "metrics.jsonl"), lines(out / "samples.jsonl")
    assert config["model"].endswith("model") and config["steps"] == 4 and config["seed"] == 0
    assert config["ppo"]["batch_size"] == 4 and config["run"]["query_tokens"] == [1, 3]
    assert [line["step"] for line in metrics] == [1, 2, 3, 4]
    for line in metrics:
        assert {"time", "seconds", "tokens_per_second", "objective/kl", "ppo/policy/clipfrac", "time/ppo/total"} <= line.keys()
        assert 0 < line["samples/distinct"] <= 1 and 0 <= line["tokens/at_limit"] <= 1
        assert {"score/rule:length=2", "score/rule:no_repeat"} <= line.keys()
    shown = [line for line in samples if "trace" not in line]
    assert [line["step"] for line in shown] == [1, 1, 1, 2, 2, 2, 4, 4, 4]
    for line in shown:
        assert line["score"] == pytest.approx(line["parts"]["rule:length=2"] + 0.5 * line["parts"]["rule:no_repeat"])
    assert sorted(path.name for path in out.iterdir()) == [".lock", "checkpoint-000003", "checkpoint-000004", "config.json",
                                                           "metrics.jsonl", "report.html", "samples.jsonl"]
    assert "</html>" in (out / "report.html").read_text()
    GPT2WithValueHead.from_pretrained(str(out / "checkpoint-000004"))                  # each checkpoint is a model folder


@pytest.mark.parametrize("kind", ["reinforce", "grpo"])
def test_a_run_without_a_critic(base, tmp_path, kind):
    """The page shows no values, the groups' spread is noted, a second half continues the first."""
    groups = {"advantage": kind, "group_size": 2, "max_new_tokens": 5}
    start(base, tmp_path / "whole", **groups)
    start(base, tmp_path / "halves", **groups | {"steps": 2, "lr_schedule": "constant"})
    start(base, tmp_path / "halves", resume=True, **groups | {"lr_schedule": "constant"})
    start(base, tmp_path / "constant", **groups | {"lr_schedule": "constant"})
    assert history(tmp_path / "halves") == history(tmp_path / "constant")
    first, page = lines(tmp_path / "whole" / "metrics.jsonl")[0], (tmp_path / "whole" / "report.html").read_text()
    assert "ppo/groups/equal" in first and "ppo/val/vpred" not in first and "ppo/loss/value" not in first
    assert "Groups of equal scores" in page and "Explained variance" not in page
    trace = next(line for line in lines(tmp_path / "whole" / "samples.jsonl") if "trace" in line)["trace"]
    assert set(trace["value"] + trace["advantage"] + trace["return"]) == {None} and None not in trace["reward"]


def test_a_followed_response_is_evaluated_again_under_each_policy(base):
    """Step 0 is the untrained policy, which is its own reference: no KL, so the rewards of the tokens add up to the score."""
    traced = [line for line in lines(base / "reference" / "samples.jsonl") if "trace" in line]
    assert [(line["step"], line["follow"]) for line in traced] == [(0, 0), (1, 0), (2, 0), (4, 0)]
    first, last = traced[0]["trace"], traced[-1]["trace"]
    assert sum(first["reward"]) == pytest.approx(traced[0]["score"]) and set(first["kl"]) == {0.0}
    assert last["token"] == first["token"] and last["ref_logprob"] == first["ref_logprob"] and last["logprob"] != first["logprob"]
    for name, values in last.items():
        assert len(values) == len(first["token"]), name
    for a, r, v in zip(last["advantage"], last["return"], last["value"]):
        assert a + v == pytest.approx(r, abs=2e-6)                                     # unwhitened, rounded to six digits


def test_logs_are_on_the_disk_before_the_checkpoint_that_counts_on_them(base, tmp_path, monkeypatch):
    events = []
    rename = os.rename
    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append(os.fstat(descriptor).st_ino))
    monkeypatch.setattr(os, "rename", lambda old, new: (events.append(Path(new).name), rename(old, new)))
    start(base, tmp_path, steps=1)
    order = [events.index(x) for x in ((tmp_path / "metrics.jsonl").stat().st_ino, (tmp_path / "samples.jsonl").stat().st_ino,
                                       "checkpoint-000001")]
    assert order == sorted(order)


def test_a_report_that_fails_is_a_warning(base, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_module, "write_report", lambda out, live: raising(KeyError("ppo/loss")))
    assert start(base, tmp_path, steps=2, report_every=1).steps_done == 2
    assert capsys.readouterr().err == "warning: no report: KeyError('ppo/loss')\n" * 2


def test_the_report_looks_again_while_the_run_goes_on_and_not_afterwards(base, tmp_path, monkeypatch):
    """Written after the first update of a run, also of one that is resumed, then every second one, and at the end."""
    written, write_report = [], run_module.write_report

    def write(out, live):
        written.append((len(lines(out / "metrics.jsonl")), live))
        path = write_report(out, live=live)
        assert ('http-equiv="refresh" content="30"' in path.read_text()) == bool(live)
        return path
    monkeypatch.setattr(run_module, "write_report", write)
    start(base, tmp_path, steps=4, report_every=2, lr_schedule="constant")
    start(base, tmp_path, steps=7, report_every=2, lr_schedule="constant", resume=True)
    assert written == [(1, 30), (2, 30), (4, 0), (5, 30), (6, 30), (7, 0)]


def test_the_report_of_slow_updates_is_written_more_often(base, tmp_path, monkeypatch):
    """An update takes 40 seconds: the second report comes with the third update, after 80 of them, the third with the fifth."""
    now, written = [0.0], []
    monkeypatch.setattr(run_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(run_module, "write_report", lambda out, live: written.append(len(lines(out / "metrics.jsonl"))))
    start(base, tmp_path, steps=6, report_every=100, on_update=lambda line: now.append(now.pop() + 40))
    assert written == [1, 3, 5, 6]


def test_samples_and_updates_are_printed(base, tmp_path, capsys):
    start(base, tmp_path, steps=1, quiet=False)
    printed = capsys.readouterr().out
    for word in ("update 1/1", "score", "kl", "entropy", "clipfrac", "value error", "tokens/s", "left", "checkpoint-000001"):
        assert word in printed


def test_one_line_for_the_whole_run(base, tmp_path, capsys):
    start(base, tmp_path / "a", steps=3, quiet=False, one_line=True)
    metrics = lines(tmp_path / "a" / "metrics.jsonl")[-1]
    wanted = f"PPO: 3 steps, score {metrics['ppo/mean_scores']:.3f}, KL {metrics['objective/kl']:.2f}, "
    printed = capsys.readouterr().out
    assert printed.startswith(wanted) and printed.count("\n") == 1

    def tired(queries, responses):
        if len(seen) == 2:
            raise StopRun("enough")
        seen.append(queries)
        return [1.0] * len(queries)

    seen = []
    start(base, tmp_path / "b", score_fn=tired, steps=3, quiet=False, one_line=True, use_score_norm=False, use_score_scaling=False)
    assert capsys.readouterr().out.split("\n")[-2:] == ["PPO: 2 of 3 steps are done", ""]


def test_truncate_and_penalise(base, tmp_path, monkeypatch):
    """Every second response is cut to its first token before it is scored, the others have no end and score -7."""
    cuts, seen = iter([1, None] * 2), []
    monkeypatch.setattr(evaluate, "scored_part", lambda job, response: None if (n := next(cuts)) is None else response[:n])

    def score_fn(queries, responses):
        seen.extend(responses)
        return [1.0] * len(responses)
    start(base, tmp_path / "x", score_fn=score_fn, steps=1, samples=4, truncate_penalty=-7.0)
    samples = [sample for sample in lines(tmp_path / "x" / "samples.jsonl") if "trace" not in sample]
    assert [sample["score"] for sample in samples] == [1.0, -7.0] * 2
    assert [sample["response"] == text for sample, text in zip(samples, seen)][1::2] == [True, True]


def test_a_model_without_a_value_head_is_what_a_run_begins_with(base, tmp_path):
    """It starts at zero, as meant: nothing to warn of."""
    shutil.copytree(base / "model", tmp_path / "model", ignore=shutil.ignore_patterns("value_head*"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        start(base, tmp_path / "run", model=str(tmp_path / "model"), steps=1)


def test_updates_go_on_through_the_prompts(base, tmp_path):
    """8 prompts, batches of 3: the first 8 queries are the 8 prompts, the ninth begins the second pass."""
    seen = []
    start(base, tmp_path, steps=3, query_tokens=None, batch_size=3, score_fn=lambda q, r: seen.extend(q) or [0.0] * len(q))
    assert sorted(seen[:8]) == sorted(REVIEWS) and len(seen) == 9


def test_the_schedule_reaches_the_optimizer(reference):
    assert [line["ppo/learning_rate"] for line in reference["metrics"]] == pytest.approx([0.01, 0.01, 0.01 * 2 / 3, 0.01 / 3])


# --- resume ---------------------------------------------------------------------------------------

def test_resume_continues_as_if_nothing_had_happened(base, tmp_path, reference):
    def stop_in_update_3(queries, responses):
        stop_in_update_3.calls += 1
        if stop_in_update_3.calls == 3:
            raise StopRun("enough")
        return score(queries, responses)
    stop_in_update_3.calls = 0
    score = run_module.load_reward("rule:length=2", None, None, tmp_path)
    uninterrupted = tmp_path / "uninterrupted"
    start(base, uninterrupted, score_fn=score, reward="mine", save_every=10)
    assert start(base, tmp_path / "run", score_fn=stop_in_update_3, reward="mine", save_every=10).steps_done == 2
    assert start(base, tmp_path / "run", score_fn=score, reward="mine", save_every=10, resume=True).steps_done == 4
    assert history(tmp_path / "run") == history(uninterrupted)


def kill_at_every_write(base: Path, work: Path) -> dict:
    """Let copies of a run die at each operation on files while they save update 3 of 3; each time resume must make it whole.

    The third checkpoint takes the place of the second, so the removal of that is in it, too.
    """
    settings = dict(steps=3, lr_schedule="constant", keep_checkpoints=1)
    start(base, work / "expected", **settings)
    save, copy, expected, seen, operations = run_module.save, work / "copy", history(work / "expected"), set(), 0

    def die_at(n: int) -> None:
        count = 0

        def tick(event, args):
            nonlocal count
            writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wxa+")
            if writes or event in ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.truncate", "fsync"):
                count += 1
                if count == n:
                    os._exit(9)
        os.fsync = lambda descriptor: tick("fsync", ())
        sys.addaudithook(tick)

    def save_in_copies(out, trainer, state, logs, keep):
        nonlocal operations
        status = 9 if trainer.steps_done == 3 else 0
        while status == 9:
            operations += 1
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(out, copy)
            status = status_of(forked(lambda: (die_at(operations), save(copy, trainer, state, logs, keep))))
            assert run_folder.checkpoints(copy), f"killed at operation {operations}: no checkpoint left"
            for folder in run_folder.checkpoints(copy):
                verify_folder(folder)                                  # what can be seen is whole
            left = {str(path.relative_to(copy)) for path in copy.rglob("*") if ".tmp-" not in str(path)}
            if frozenset(left) not in seen:                            # the same files need no second look
                seen.add(frozenset(left))
                run_module.save = save
                start(base, copy, resume=True, **settings)
                assert history(copy) == expected, f"killed at operation {operations}"
                assert not list(copy.glob("*.tmp-*"))
        return save(out, trainer, state, logs, keep)

    run_module.save = save_in_copies
    start(base, work / "run", **settings)
    return {"operations": operations, "states": len(seen)}


def kill_at_random(base: Path, out: Path) -> dict:
    """SIGKILL a run 12 times, after times drawn up to half of what a whole run takes; then let it finish."""
    def go(folder):
        return forked(lambda: start(base, folder, resume=True))

    begin = time.monotonic()
    assert status_of(go(out.with_name("timed"))) == 0
    whole, rng, kills = time.monotonic() - begin, random.Random(0), 0
    for _ in range(12):
        pid = go(out)
        time.sleep(rng.uniform(0, 0.5 * whole))
        os.kill(pid, signal.SIGKILL)
        kills += status_of(pid) == -signal.SIGKILL
    assert status_of(go(out)) == 0
    return {"kills": kills}


def signal_twice_while_saving(base: Path, out: Path) -> dict:
    """Two SIGINT in the middle of the second checkpoint."""
    def child():
        write_safetensors, calls = checkpoint.write_safetensors, []

        def interrupted(path, tensors):
            write_safetensors(path, tensors)
            calls.append(path)
            if len(calls) == 2:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
        checkpoint.write_safetensors = interrupted
        start(base, out)
    return {"status": status_of(forked(child))}


def all_deaths(base: Path, work: Path) -> None:
    """The three of them in one process, whose children need not import torch again. Without fsync, as above."""
    os.fsync = lambda descriptor: None
    start(base, work / "first")                                        # torch imports its optimizers' helpers only now
    print(json.dumps(signal_twice_while_saving(base, work / "signals") | kill_at_random(base, work / "random")
                     | kill_at_every_write(base, work / "writes")))


@pytest.fixture(scope="module")
def deaths(base, tmp_path_factory) -> dict:
    """What all_deaths saw, in a process of its own: one without a GPU, so that it may fork whatever it did before."""
    work, here = tmp_path_factory.mktemp("deaths"), Path(__file__).resolve()
    code = "import sys, test_run; from pathlib import Path; test_run.all_deaths(*map(Path, sys.argv[1:]))"
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
                        "PYTHONPATH": os.pathsep.join([str(here.parent), str(here.parents[2])])}
    done = subprocess.run([sys.executable, "-c", code, base, work], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) | {"work": work}


def test_killed_at_every_write_of_a_checkpoint(deaths):
    """The equality is asserted at each kill, see kill_at_every_write; this says that there were many, and of all kinds:
    only the second checkpoint there, both, and only the third."""
    assert deaths["operations"] > 40 and deaths["states"] >= 3


def test_killed_at_random_moments(deaths, reference):
    assert deaths["kills"] >= 3
    assert history(deaths["work"] / "random") == reference


def test_a_second_signal_ends_the_process_at_once_and_harms_nothing(deaths, base, reference):
    out = deaths["work"] / "signals"
    assert deaths["status"] == 130
    assert [path.name for path in run_folder.checkpoints(out)] == ["checkpoint-000001"]
    start(base, out, resume=True)
    assert history(out) == reference


def test_half_a_line_and_lines_of_lost_updates_are_cut_off(base, tmp_path, reference):
    out = tmp_path / "run"
    shutil.copytree(base / "reference", out)
    shutil.rmtree(out / "checkpoint-000004")                                           # back to 3; the line of 4 is too many
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "ti')
    with open(out / "samples.jsonl", "a") as file:
        file.write('{"step": 5}\n')
    start(base, out, resume=True)
    assert history(out) == reference


def test_a_damaged_checkpoint_is_passed_over_and_named(base, tmp_path, reference, capsys):
    out = tmp_path / "run"
    shutil.copytree(base / "reference", out)
    path = out / "checkpoint-000004" / "trainer.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    start(base, out, resume=True)
    assert "checkpoint-000004 is damaged and passed over" in capsys.readouterr().err
    assert history(out) == reference
    assert len(list(out.glob("damaged-checkpoint-000004.*"))) == 1                     # nothing is thrown away

    for folder in out.glob("checkpoint-*"):
        (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="no checkpoint in .* is whole"):
        start(base, out, resume=True)


def test_resume_without_a_run_starts_at_the_beginning(base, tmp_path, reference):
    (tmp_path / "checkpoint-000001.tmp-minippo-0123abcd").mkdir()                      # of a first save that was killed
    start(base, tmp_path, resume=True)
    assert history(tmp_path) == reference
    assert not list(tmp_path.glob("*.tmp-*"))


def test_a_finished_run_has_nothing_to_resume(base, tmp_path, reference):
    shutil.copytree(base / "reference", tmp_path / "run")
    assert start(base, tmp_path / "run", resume=True) == (0, 4, tmp_path / "run" / "checkpoint-000004")
    assert history(tmp_path / "run") == reference


def test_changed_settings_are_listed_and_refused(base, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(base / "reference", out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(ValueError, match=r"learning_rate: 0.01 -> 0.5; query_tokens: \[1, 3\] -> None; reward: 'rule:len.* -> 'rule:length'. Give"):
        start(base, out, resume=True, learning_rate=0.5, query_tokens=None, reward="rule:length", steps=5, save_every=3)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_an_allowed_change_holds_from_there_on(base, tmp_path, capsys):
    changes = dict(steps=2, adap_kl_ctrl=False, lr_schedule="constant")
    start(base, tmp_path, **changes)
    changes |= dict(steps=3, learning_rate=0.5, init_kl_coef=0.7, adam_eps=1e-3, allow_config_change=True)
    start(base, tmp_path, resume=True, **changes)
    assert "changed: learning_rate: 0.01 -> 0.5" in capsys.readouterr().err
    metrics = lines(tmp_path / "metrics.jsonl")
    assert [line["ppo/learning_rate"] for line in metrics] == [0.01, 0.01, 0.5]
    assert [line["objective/kl_coef"] for line in metrics] == [0.2, 0.2, 0.7]
    newest = tmp_path / "checkpoint-000003"
    state = checkpoint.unpack(json.loads((newest / "trainer.json").read_text()), read_safetensors(newest / "trainer.safetensors"))
    assert [group["eps"] for group in state["optimizer"]["param_groups"]] == [1e-3]
    assert json.loads((tmp_path / "config.json").read_text())["ppo"]["learning_rate"] == 0.5


def test_what_does_not_reach_the_computation_may_change(base, tmp_path):
    start(base, tmp_path / "a", steps=1, lr_schedule="constant")
    os.rename(tmp_path / "a", tmp_path / "b")
    shutil.copy(base / "prompts.txt", tmp_path / "same.txt")
    start(base, tmp_path / "b", resume=True, steps=2, lr_schedule="constant", save_every=5, keep_checkpoints=1, sample_every=1,
          samples=0, report_every=1, prompts=str(tmp_path / "same.txt"))
    (tmp_path / "same.txt").write_text("other prompts\n")
    with pytest.raises(ValueError, match="prompts_sha256"):
        start(base, tmp_path / "b", resume=True, steps=2, lr_schedule="constant", prompts=str(tmp_path / "same.txt"))


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_more_updates_need_no_permission(base, tmp_path, schedule, capsys):
    """Under a schedule there is a warning: update 3 of 4 comes at another rate than update 3 of 3 would."""
    start(base, tmp_path, steps=2, warmup=0, lr_schedule=schedule)
    assert start(base, tmp_path, steps=4, warmup=0, lr_schedule=schedule, resume=True).steps_done == 4
    rates = [line["ppo/learning_rate"] for line in lines(tmp_path / "metrics.jsonl")]
    wanted = {"constant": [0.01] * 4, "linear": [0.01, 0.005, 0.005, 0.0025], "cosine": [0.01, 0.005, 0.005, 0.01 * (0.5 - 0.5**1.5)]}
    assert rates == pytest.approx(wanted[schedule])
    warned = "changed: steps: 2 -> 4; the learning rate now falls to 0 at the new end" in capsys.readouterr().err
    assert warned == (schedule != "constant")


def test_prompts_from_a_pipe_are_read_once(base, tmp_path):
    reading, writing = os.pipe()
    os.write(writing, b"the film\na dog\n")
    os.close(writing)
    start(base, tmp_path / "a", prompts=f"/dev/fd/{reading}", steps=1)
    os.close(reading)
    (tmp_path / "same.txt").write_bytes(b"the film\na dog\n")
    start(base, tmp_path / "b", prompts=str(tmp_path / "same.txt"), steps=1)
    records = [json.loads((tmp_path / name / "config.json").read_text())["prompts_sha256"] for name in "ab"]
    assert records[0] == records[1] and history(tmp_path / "a") == history(tmp_path / "b")


# --- settings that do not fit ---------------------------------------------------------------------

def test_prompts_that_do_not_fit_the_model_are_refused(base, tmp_path):
    with pytest.raises(ValueError, match="'this story is dull and long' comes to 9 tokens, and 9 \\+ 12 .* 16 positions"):
        start(base, tmp_path, query_tokens=None, max_new_tokens=(1, 12))
    with pytest.raises(ValueError, match="no device 'tpu'"):
        start(base, tmp_path, device="tpu")
    with pytest.raises(ValueError, match="no dtype 'int8'"):
        start(base, tmp_path, dtype="int8")


# --- signals --------------------------------------------------------------------------------------

@pytest.mark.parametrize("signum, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_finishes_the_update_saves_and_is_reported(base, tmp_path, signum, status):
    def send_in_update_2(queries, responses):
        send_in_update_2.calls += 1
        if send_in_update_2.calls == 2:
            for number in [signum] if signum != signal.SIGHUP else [signum, signum, signal.SIGTERM]:       # as a logout may send
                os.kill(os.getpid(), number)
        return [0.0] * len(queries)
    send_in_update_2.calls = 0
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert start(base, tmp_path, score_fn=send_in_update_2, save_every=10) == (status, 2, tmp_path / "checkpoint-000002")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert len(lines(tmp_path / "metrics.jsonl")) == 2 and (tmp_path / "report.html").exists()


def test_a_run_without_a_terminal_to_lose_ignores_its_end(base, tmp_path, monkeypatch):
    """nohup ignores SIGHUP, and so it stays."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        hang_up = lambda queries, responses: os.kill(os.getpid(), signal.SIGHUP) or [0.0] * len(queries)        # noqa: E731
        assert start(base, tmp_path / "a", score_fn=hang_up, steps=2).steps_done == 2
    finally:
        signal.signal(signal.SIGHUP, before)
    monkeypatch.delattr(signal, "SIGHUP")                                              # Windows
    assert start(base, tmp_path / "b", steps=1).steps_done == 1


def test_a_run_outside_the_main_thread_leaves_signals_alone(base, tmp_path):
    results, handler = [], signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=lambda: results.append(start(base, tmp_path, steps=2)))
    thread.start()
    thread.join()
    assert results[0].steps_done == 2 and signal.getsignal(signal.SIGINT) == handler


# --- rewards --------------------------------------------------------------------------------------

class Nonsense(BaseException):
    pass


def raising(error):
    raise error


@pytest.mark.parametrize("fault, message", [
    (lambda queries: 1 / 0, "update 3: reward my_reward raised ZeroDivisionError: .*first query '.+'.*checkpoint-000002"),
    (lambda queries: [1.0] * 3, "update 3: reward my_reward: expected 4 scores, got 3"),
    (lambda queries: [1.0, None, 1.0, 1.0], "update 3: reward my_reward, query '.+': expected a finite number, got NoneType"),
    (lambda queries: [1.0, 1e39, 1.0, 1.0], "update 3: reward my_reward, query '.+': expected a finite number, got float 1e\\+39; fp32"),
    (lambda queries: sys.exit(0), "update 3: reward my_reward raised SystemExit: 0 .*checkpoint-000002: mend the reward"),
    (lambda queries: raising(KeyboardInterrupt), "update 3: reward my_reward raised KeyboardInterrupt"),
    (lambda queries: raising(Nonsense), "update 3: reward my_reward raised Nonsense"),
])
def test_a_reward_that_fails_loses_nothing(base, tmp_path, fault, message):
    def faulty(queries, responses):
        faulty.calls += 1
        return fault(queries) if faulty.calls == 3 else good(queries, responses)
    faulty.calls = 0
    good = run_module.load_reward("rule:length=2", None, None, tmp_path)
    with pytest.raises(RewardError, match=message):
        start(base, tmp_path / "run", score_fn=faulty, reward="my_reward", save_every=10)
    assert [line["step"] for line in lines(tmp_path / "run" / "metrics.jsonl")] == [1, 2]

    start(base, tmp_path / "run", score_fn=good, reward="my_reward", save_every=10, resume=True)
    start(base, tmp_path / "uninterrupted", score_fn=good, reward="my_reward", save_every=10)
    assert history(tmp_path / "run") == history(tmp_path / "uninterrupted")


def test_a_signal_at_the_terminal_gives_its_status(base, tmp_path, capsys):
    def interrupted(queries, responses):
        raise StopRun("SIGTERM at the terminal", signal.SIGTERM)
    assert start(base, tmp_path, score_fn=interrupted, quiet=False) == (143, 0, None)
    assert "report" not in capsys.readouterr().out                                      # before the first update there is none


def test_a_human_reward_stops_and_goes_on_where_it_stopped(base, tmp_path, monkeypatch):
    """4 answers for update 1, 2 for update 2, then stop; later the other 2, and only those are asked for."""
    def answer(*answers):
        controller, terminal = pty.openpty()
        monkeypatch.setattr(sys, "stdin", open(terminal, "r", closefd=False))
        monkeypatch.setattr(sys, "stdout", open(os.devnull, "w"))
        os.write(controller, "".join(f"{text}\n" for text in answers).encode())
        return start(base, out, resume=True, reward="human", steps=2)
    out = tmp_path / "run"
    assert answer("1", "nonsense", "2", "7", "-3", "4", "5", "0.5", "s") == (0, 1, out / "checkpoint-000001")
    assert [line["score"] for line in lines(out / "labels.jsonl")] == [1, 2, -3, 4, 5, 0.5]
    assert answer("-1", "2") == (0, 2, out / "checkpoint-000002")
    ratings = {(line["query"], line["response"]): line["score"] for line in lines(out / "labels.jsonl")}
    assert len(ratings) == 8

    start(base, tmp_path / "replay", reward="human", steps=2, score_fn=lambda q, r: [ratings[pair] for pair in zip(q, r)])
    assert history(out) == history(tmp_path / "replay")


@pytest.mark.parametrize("mode", ["default dtype", "default device", "autocast"])
def test_what_a_reward_sets_in_torch_changes_nothing(base, tmp_path, mode):
    """Its module may set what it likes for itself: the run, its followed responses and its resume are those without."""
    def score(queries, responses):
        if mode == "default dtype":
            torch.set_default_dtype(torch.float64)
        if mode == "default device":
            torch.set_default_device("meta")
        return [float(len(response)) for response in responses]
    around = torch.autocast("cpu", torch.bfloat16) if mode == "autocast" else contextlib.nullcontext()
    start(base, tmp_path / "plain", steps=2, score_fn=lambda q, r: [float(len(text)) for text in r])
    try:
        with around:
            start(base, tmp_path / "set", steps=2, score_fn=score)
    finally:
        torch.set_default_dtype(torch.float32), torch.set_default_device(None)
    assert history(tmp_path / "set") == history(tmp_path / "plain")


def test_a_run_that_ends_before_its_first_update_names_no_report(base, tmp_path, capsys):
    def stop(queries, responses):
        raise StopRun("stopped at the terminal")
    assert start(base, tmp_path / "x", score_fn=stop, quiet=False).steps_done == 0
    said = capsys.readouterr().out
    assert "there is no checkpoint yet" in said and "the report is" not in said


def test_a_reward_may_come_as_an_object_of_parts(base, tmp_path):
    parts = Reward([(1.0, "one", lambda queries, responses: [1.0] * 4), (0.0, "other", lambda queries, responses: [5.0] * 4)])
    start(base, tmp_path, steps=1, score_fn=parts, use_score_scaling=False, use_score_norm=False)
    [line] = lines(tmp_path / "metrics.jsonl")
    assert (line["ppo/mean_scores"], line["score/one"], line["score/other"]) == (1.0, 1.0, 5.0)


# --- other errors ---------------------------------------------------------------------------------

def failing_step(monkeypatch, at: int, error: BaseException, moved: bool) -> None:
    """Let the step of this update raise, before or after its first optimizer step."""
    step = PPOTrainer.step

    def fail(self, *args):
        if self.steps_done + 1 == at:
            self.generator.manual_seed(99)
            if moved:
                self.optimizer.step()
            raise error
        return step(self, *args)
    monkeypatch.setattr(PPOTrainer, "step", fail)


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), MemoryError(), SystemExit(3), KeyError("x")], ids=repr)
def test_any_error_before_the_weights_move_saves_what_was_learnt(base, tmp_path, monkeypatch, capsys, error):
    """And leaves the run as before the update, its generator too: resumed, it goes on as if nothing had happened."""
    with monkeypatch.context() as patch:
        failing_step(patch, 3, error, moved=False)
        with pytest.raises(type(error), match=None if isinstance(error, KeyError) else "out of memory.*000002|shapes|3"):
            start(base, tmp_path / "run", save_every=10)
    said = capsys.readouterr().err
    assert isinstance(error, MemoryError) or f"update 3 failed; the newest checkpoint is {tmp_path / 'run' / 'checkpoint-000002'}" in said
    start(base, tmp_path / "run", save_every=10, resume=True)
    start(base, tmp_path / "uninterrupted", save_every=10)
    assert history(tmp_path / "run") == history(tmp_path / "uninterrupted")


def test_weights_in_the_middle_of_an_update_are_not_saved(base, tmp_path, monkeypatch, reference):
    with monkeypatch.context() as patch:
        failing_step(patch, 3, RuntimeError("in the middle"), moved=True)
        with pytest.raises(RuntimeError, match="in the middle"):
            start(base, tmp_path, save_every=10)
    assert run_folder.checkpoints(tmp_path) == []
    start(base, tmp_path, resume=True)
    assert history(tmp_path) == reference


def test_an_error_on_a_full_disk_is_still_the_error(base, tmp_path, monkeypatch, capsys):
    failing_step(monkeypatch, 2, RuntimeError("shapes do not match"), moved=False)
    monkeypatch.setattr(run_module, "save", lambda *args: raising(OSError(28, "No space left on device")))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        start(base, tmp_path)
    assert capsys.readouterr().err.count("no checkpoint of update 1: [Errno 28]") == 2


def test_compiling_without_a_compiler_says_what_it_needs(base, tmp_path, monkeypatch):
    error = type("InductorError", (RuntimeError,), {"__module__": "torch._inductor.exc"})("InvalidCxxCompiler: none found\nmore")
    monkeypatch.setattr(PPOTrainer, "generate", lambda *args, **kwargs: raising(error))
    with pytest.raises(OSError, match="torch.compile failed .InductorError: InvalidCxxCompiler: none found.; .* leave --compile out"):
        start(base, tmp_path, compile=True)


# --- vocabularies ---------------------------------------------------------------------------------

@pytest.mark.parametrize("padding", [-1, 40])
def test_the_sizes_of_model_and_tokenizer_are_compared_at_the_start(base, tmp_path, padding):
    """A padded vocabulary is legal: a token without a text is U+FFFD for the reward, in samples and in traces."""
    tokenizer, seen = load_tokenizer(base / "model"), []
    config = GPT2Config(tokenizer.vocab_size + padding, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    policy = GPT2WithValueHead(config, generator=torch.Generator().manual_seed(0))
    policy.transformer.wte.weight.data[tokenizer.vocab_size:] *= 20                    # likely ones
    policy.save_pretrained(tmp_path / "model", tokenizer)
    settings = dict(model=str(tmp_path / "model"), steps=2, follow=4, score_fn=lambda q, r: seen.extend(r) or [0.0] * len(r))
    if padding < 0:
        with pytest.raises(ValueError, match="the tokenizer has 290 tokens, the model 289; give a folder whose two belong together"):
            start(base, tmp_path / "run", **settings)
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
        return
    start(base, tmp_path / "run", **settings)
    traced = [line for line in lines(tmp_path / "run" / "samples.jsonl") if "trace" in line]
    assert sum("\ufffd" in text for text in seen) > 2 and any("\ufffd" in token for line in traced for token in line["trace"]["token"])


# --- numbers that are not finite ------------------------------------------------------------------

def read_strictly(path: Path) -> dict:
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")
    return json.loads(path.read_text(), parse_constant=refuse)


def test_a_loss_that_is_not_finite_stops_the_run_with_the_batch_written(base, tmp_path, monkeypatch):
    rollout = PPOTrainer.forward_pass

    def poisoned(self, batch, minibatches):
        rollout(self, batch, minibatches)
        if self.steps_done == 2:
            batch.values = batch.values * float("nan")
    monkeypatch.setattr(PPOTrainer, "forward_pass", poisoned)
    with pytest.raises(FloatingPointError, match="update 3: the loss is not finite; the batch is in .*crash-step-000003.json, "
                                                 "the newest checkpoint is .*checkpoint-000002"):
        start(base, tmp_path, sample_every=100)
    crash = read_strictly(tmp_path / "crash-step-000003.json")
    assert [len(crash[name]) for name in ("queries", "responses", "scores")] == [4, 4, 4]
    assert crash["step"] == 3 and crash["stats"]["ppo/skipped_nonfinite"] == 4 and crash["stats"]["ppo/loss/total"] is None
    verify_folder(tmp_path / "checkpoint-000002")
    assert not (tmp_path / "checkpoint-000003").exists()


def test_weights_that_are_not_finite_stop_the_run_while_it_samples(base, tmp_path, monkeypatch):
    step = PPOTrainer.step

    def poisoning(self, *args):
        stats = step(self, *args)
        if self.steps_done == 2:
            self.model.transformer.wte.weight.data[5] = float("nan")
        return stats
    monkeypatch.setattr(PPOTrainer, "step", poisoning)
    with pytest.raises(FloatingPointError, match="update 3: generate: the model's logits are not finite.*crash-step-000003.json"):
        start(base, tmp_path, save_every=10, sample_every=100)
    crash = read_strictly(tmp_path / "crash-step-000003.json")
    assert len(crash["queries"]) == 4 and "scores" not in crash and "logits" in crash["error"]


def test_minibatches_skipped_for_their_ratio_do_not_stop_the_run(base, tmp_path):
    assert start(base, tmp_path, steps=2, ratio_threshold=1e-6).steps_done == 2
    assert [line["ppo/skipped"] for line in lines(tmp_path / "metrics.jsonl")] == [4, 4]


# --- full disks and memory ------------------------------------------------------------------------

@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a Linux device on which every write fails")
def test_a_full_disk_for_the_metrics_is_a_warning(base, tmp_path, capsys):
    start(base, tmp_path, steps=1, lr_schedule="constant")
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    assert start(base, tmp_path, steps=4, lr_schedule="constant", resume=True).steps_done == 4
    assert capsys.readouterr().err.count("metrics.jsonl (") == 1                       # once
    verify_folder(tmp_path / "checkpoint-000004")


def test_a_full_disk_for_a_checkpoint_keeps_the_old_one(base, tmp_path, monkeypatch, capsys):
    """Update 2 finds no room, update 3 does; the last save must succeed, or the run fails."""
    write_safetensors, full = checkpoint.write_safetensors, [2]

    def write(path, tensors):
        if path.name == "trainer.safetensors" and int(path.parent.name[11:17]) in full:
            raise OSError(28, "No space left on device")
        write_safetensors(path, tensors)
    monkeypatch.setattr(checkpoint, "write_safetensors", write)
    start(base, tmp_path, steps=3, lr_schedule="constant", keep_checkpoints=9)
    assert [path.name for path in sorted(tmp_path.glob("checkpoint-*"))] == ["checkpoint-000001", "checkpoint-000003"]
    assert "no checkpoint of update 2" in capsys.readouterr().err
    full.append(4)
    with pytest.raises(OSError, match="update 4 is not saved: .*No space left.*the newest checkpoint is .*checkpoint-000003.*--resume"):
        start(base, tmp_path, steps=4, lr_schedule="constant", keep_checkpoints=9, resume=True)
    verify_folder(tmp_path / "checkpoint-000003")
    assert not list(tmp_path.glob("*.tmp-*"))


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: you tried to")])
def test_out_of_memory_comes_with_advice(base, tmp_path, monkeypatch, error):
    def step(self, *args):
        raise error
    start(base, tmp_path, steps=2, lr_schedule="constant")
    monkeypatch.setattr(PPOTrainer, "step", step)
    with pytest.raises(MemoryError, match="update 3: out of memory .*checkpoint-000002.*mini_batch_size.*gradient_checkpointing"):
        start(base, tmp_path, steps=4, lr_schedule="constant", resume=True)
    verify_folder(tmp_path / "checkpoint-000002")


def test_other_errors_are_not_taken_for_out_of_memory(base, tmp_path, monkeypatch):
    def step(self, *args):
        raise RuntimeError("shapes do not match")
    monkeypatch.setattr(PPOTrainer, "step", step)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        start(base, tmp_path)
