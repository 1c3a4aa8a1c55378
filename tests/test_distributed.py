"""Several processes compute what one computes, and end together. torchrun starts tests/processes.py, on CPUs (gloo)."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from minippo import distributed
from minippo.files.safetensors import read_safetensors
from minippo.files.tokenizer import load_tokenizer
from minippo.training.run_folder import newest_checkpoint
from conftest import make_policy
from processes import SETTINGS
from test_run import TIMES, lines, write_model

HERE = Path(__file__).resolve().parent
slow = pytest.mark.skipif(not os.environ.get("MINIPPO_SLOW"), reason="starts many processes: set MINIPPO_SLOW=1")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "MINIPPO_TIMEOUT": "60"}


def torchrun(n: int, *argv, restarts: int = 0, **environment) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(n), "--max-restarts", str(restarts),
                             "--standalone", *map(str, argv)],
                            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT | environment)


def finish(process: subprocess.Popen, timeout: int = 120) -> tuple[int, str, str]:
    try:
        printed, errors = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, printed, errors


# --- what each function does --------------------------------------------------------------------------

def test_one_process_shares_with_nobody():
    tensor = torch.ones(2)
    distributed.in_place("nothing", [tensor])
    distributed.check_same("nothing", 1)
    assert distributed.start() == (True, 1) and distributed.of_each("nothing", 7) == [7] and distributed.speaks()
    assert tensor.tolist() == [1, 1] and list(distributed.share(range(3))) == [0, 1, 2]


def test_each_process_takes_a_card_of_its_own_as_far_as_they_go(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for rank, card in ((0, 0), (1, 1), (2, 0)):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert distributed.default_device() == torch.device("cuda", card)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_every_row_belongs_to_one_process_and_comes_back_to_its_place(n, rows, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: n)
    each = []
    for rank in range(n):
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        each.append(distributed.share(list(range(rows))))
    assert max(map(len, each)) - min(map(len, each)) <= 1
    assert distributed.interleave(each) == list(range(rows))


def test_tensors_of_any_sizes_are_summed_in_place_in_few_calls(monkeypatch):
    """Buckets of 10 numbers: 3 + 4, then 12 alone, then 5 + 1. The parameters' own tensors change, not copies."""
    sizes, calls = (3, 4, 12, 5, 1), []
    tensors = [torch.full((n,), float(n), requires_grad=True) for n in sizes]
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "BUCKET", 10)
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda flat: (calls.append(len(flat)), flat.mul_(2)))
    distributed.in_place("the gradient", tensors)
    assert calls == [7, 12, 6] and all(x.tolist() == [2.0 * n] * n for n, x in zip(sizes, tensors))


# --- N processes compute what one computes ------------------------------------------------------------

@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=slow)])
def results(request, tmp_path_factory) -> list[tuple[dict, dict]]:
    """What one process came to, then each of several: the tensors, and the updates' numbers, of every setting."""
    out, n = tmp_path_factory.mktemp("processes") / "steps", request.param
    alone = subprocess.Popen([sys.executable, str(HERE / "processes.py"), "steps", str(out)], env=ENVIRONMENT)
    status, _, errors = finish(torchrun(n, HERE / "processes.py", "steps", out))
    assert status == 0 and alone.wait(120) == 0, errors
    return [(read_safetensors(f"{out}.{place}.safetensors"), json.loads(Path(f"{out}.{place}.json").read_text()))
            for place in ("1.0", *(f"{n}.{rank}" for rank in range(n)))]


@pytest.mark.parametrize("name", SETTINGS)
def test_n_processes_compute_what_one_computes(name, results):
    """Tokens exactly, weights and Adam's moments within 1e-5, statistics within 1e-4; among themselves the processes to the bit."""
    (alone, told_alone), (first, told), *others = results
    assert told[name][0]["first"] == [1.0]                                                         # the first process has rows
    for tensors, other_told in others:
        assert all(torch.equal(x, tensors[key]) for key, x in first.items() if key.startswith(name + "/"))
        assert [update | {"first": []} for update in other_told[name]] == [update | {"first": []} for update in told[name]]
    assert all(ratio == 1 for tensors, of in results for update in of[name] for ratio in update["first"])            # the first ratio
    if name == "bf16":              # 3 digits: rows beside other rows, in other kernels, round to other numbers
        return
    for update, wanted in zip(told[name], told_alone[name]):
        assert update["responses"] == wanted["responses"]
        assert update["stats"] == pytest.approx(wanted["stats"], rel=1e-4, abs=1e-5)
    for key in (key for key in first if key.startswith(name + "/")):
        torch.testing.assert_close(first[key], alone[key], rtol=1e-4, atol=1e-5)


def test_the_settings_do_what_they_are_here_for(results):
    """Else the comparison would compare nothing: an early stop, skipped minibatches, clipped gradients and ratios."""
    told = {name: [update["stats"] for update in updates] for name, updates in results[1][1].items()}
    assert any(stats["ppo/early_stopped"] for stats in told["early stop"]) and any(stats["ppo/skipped"] for stats in told["skipped"])
    assert all(stats["ppo/grad_norm"] > 0.05 for stats in told["clipped"]) and told["clipped"][-1]["ppo/policy/clipfrac"] > 0
    assert told["adaptive"][-1]["objective/kl_coef"] != told["adaptive"][0]["objective/kl_coef"]


def test_an_update_takes_few_collectives(results):
    """One sum for the forward pass, one for each optimizer step (2 epochs of 2 minibatches); two exchanges of what was handed in."""
    calls = [update["calls"] for update in results[1][1]["defaults"]]
    assert calls == [{"all_reduce": 5, "all_gather_object": 2, "broadcast": 0}] * 3


# --- faults: all end within seconds, and one says why --------------------------------------------------

@slow
@pytest.mark.parametrize("n", [2, 3])
def test_an_error_on_one_process_ends_all(n):
    start = time.monotonic()
    status, _, errors = finish(torchrun(n, HERE / "processes.py", "error"))
    assert status == 1 and errors.count("RuntimeError: the dog ate it") == 1 and time.monotonic() - start < 60


@slow
def test_scores_and_drawn_limits_are_those_of_the_first_process(tmp_path):
    status, printed, errors = finish(torchrun(2, HERE / "processes.py", "other scores"))
    assert status == 0, errors
    assert "process 0 is through, 2, True" in printed and "process 1 is through, 2, False" in printed


@pytest.mark.parametrize("mode, what", [("other configuration", "configuration"), ("other queries", "queries"),
                                        ("other limits", "queries, responses or random numbers")])
@slow
def test_processes_that_differ_are_told_so(mode, what):
    """Other limits draw another number of random numbers: the next shuffle would differ, and the gradients mix batches."""
    status, _, errors = finish(torchrun(2, HERE / "processes.py", mode))
    assert status == 1 and f"the processes differ in their {what}" in errors


@slow
def test_what_the_first_process_has_saved_all_can_load_behind_a_barrier(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, printed, errors = finish(torchrun(2, HERE / "processes.py", "own folder"))
    assert status == 0 and printed.count("is through") == 2, errors


@slow
def test_a_process_that_hangs_is_named(tmp_path):
    status, _, errors = finish(torchrun(3, HERE / "processes.py", "hang", MINIPPO_TIMEOUT="3"))
    assert status == 1 and re.search("process [02] of 3 waited for queries, responses or random numbers: another one has ended or is late", errors)


# --- the commands --------------------------------------------------------------------------------------

TRAIN = ("-m", "minippo", "train", "--prompts", "prompts.txt", "--model", "model", "--steps", "6", "--batch-size", "6", "--mini-batch-size",
         "3", "--max-new-tokens", "5", "--query-tokens", "1", "3", "--save-every", "1", "--sample-every", "2", "--learning-rate", "1e-3",
         "--adam-eps", "1e-5", "--device", "cpu")
REWARD = """import os, time, pathlib
def score(queries, responses):
    with open("asked.txt", "a") as file:
        file.write(f"{os.environ.get('RANK')} {len(responses)}\\n")
    if pathlib.Path("slow").exists():
        time.sleep(0.5)
    if pathlib.Path("fail").exists():
        raise RuntimeError("no more")
    return [float(len(response)) for response in responses]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path)
    (tmp_path / "own.py").write_text(REWARD)
    return tmp_path


def metrics(out: Path) -> list[dict]:
    return [{key: value for key, value in line.items() if key not in TIMES and "time/" not in key} for line in lines(out / "metrics.jsonl")]


def wait_for(path: Path, n: int) -> None:
    """Until n lines are in the file."""
    end = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < n:
        assert time.monotonic() < end, f"{path} has not come to {n} lines"
        time.sleep(0.05)


def workers(process: subprocess.Popen) -> list[int]:
    """Process ids in the order of their ranks."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = {dict(pair.split("=", 1) for pair in Path(f"/proc/{child}/environ").read_text().split("\0") if "=" in pair)["RANK"]: int(child)
             for child in children}
    return [ranks[rank] for rank in sorted(ranks)]


@slow
def test_a_run_of_two_processes_writes_what_one_writes(folder):
    """And the first process asks an own function alone; afterwards three processes take the run over."""
    alone = subprocess.run([sys.executable, *TRAIN, "--reward", "own:score", "--out", "one"], env=ENVIRONMENT, capture_output=True)
    (folder / "asked.txt").unlink()
    status, printed, errors = finish(torchrun(2, *TRAIN, "--reward", "own:score", "--out", "two"))
    assert alone.returncode == 0 and status == 0, errors
    assert (folder / "asked.txt").read_text() == "0 6\n" * 6
    assert printed.count("update 6/6") == 1 and printed.count("the report is") == 1
    assert sorted(path.name for path in Path("two").iterdir()) == sorted(path.name for path in Path("one").iterdir())
    for ours, wanted in zip(metrics(Path("two")), metrics(Path("one")), strict=True):
        assert ours == pytest.approx(wanted, rel=1e-3, abs=1e-4)
    more = ("--reward", "own:score", "--steps", "8", "--resume", "--score-everywhere", "--out", "two")
    status, printed, errors = finish(torchrun(3, *TRAIN, *more, OMP_NUM_THREADS="2"))             # threads count for one process alone
    assert status == 0, errors
    assert len(metrics(Path("two"))) == 8 and sorted((folder / "asked.txt").read_text().split("\n")[6:])[1:] == [
        "0 2", "0 2", "1 2", "1 2", "2 2", "2 2"]


@slow
@pytest.mark.parametrize("n", [2, 3])
def test_a_failing_reward_ends_all_with_one_message_and_everything_saved(folder, n):
    (folder / "slow").touch()
    process = torchrun(n, *TRAIN, "--reward", "own:score", "--out", "run")
    wait_for(folder / "run" / "metrics.jsonl", 2)
    (folder / "fail").touch()
    status, printed, errors = finish(process)
    assert status == 1 and errors.count("error: ") == 1 and "own:score raised RuntimeError: no more" in errors
    assert newest_checkpoint(folder / "run").name == f"checkpoint-{len(metrics(folder / 'run')):06d}"


@slow
@pytest.mark.parametrize("n, rank", [(2, 0), (2, 1), (3, 2)])
def test_a_killed_process_ends_all_and_torchrun_restarts_the_run(folder, n, rank):
    (folder / "slow").touch()
    process = torchrun(n, *TRAIN, "--reward", "own:score", "--resume", "--out", "run", restarts=1)
    wait_for(folder / "run" / "metrics.jsonl", 2)
    os.kill(workers(process)[rank], signal.SIGKILL)
    status, printed, errors = finish(process)
    assert status == 0, errors
    alone = subprocess.run([sys.executable, *TRAIN, "--reward", "own:score", "--out", "one"], env=ENVIRONMENT, capture_output=True)
    assert alone.returncode == 0
    for ours, wanted in zip(metrics(Path("run")), metrics(Path("one")), strict=True):
        assert ours == pytest.approx(wanted, rel=1e-3, abs=1e-4)


@slow
@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("whom", ["torchrun", "the second process"])
def test_a_signal_ends_the_run_after_the_same_update_on_all(folder, whom, n):
    (folder / "slow").touch()
    process = torchrun(n, *TRAIN, "--reward", "own:score", "--out", "run")
    wait_for(folder / "run" / "metrics.jsonl", 2)
    os.kill(process.pid if whom == "torchrun" else workers(process)[1], signal.SIGTERM)
    status, printed, errors = finish(process)
    done = len(metrics(folder / "run"))
    assert status != 0 and 2 <= done < 6 and newest_checkpoint(folder / "run").name == f"checkpoint-{done:06d}"
    assert "error: " not in errors


@slow
def test_bad_input_is_said_once(folder):
    status, _, errors = finish(torchrun(2, *TRAIN, "--reward", "rule:nothing", "--out", "run"))
    assert status == 1 and errors.count("no source 'rule:nothing'") == 1 and not (folder / "run" / "metrics.jsonl").exists()


@slow
def test_a_person_is_asked_by_the_first_process_and_may_stop(folder):
    process = torchrun(2, *TRAIN, "--reward", "human", "--out", "run")
    status, printed, errors = finish(process)                      # its input has ended: pytest gives none
    assert status == 0 and "error: " not in errors and "the input has ended" in printed, errors


@slow
@pytest.mark.parametrize("flag", ["--no-score-everywhere", "--score-everywhere"])
def test_train_called_from_python_stops_alike_on_all(folder, flag):
    """A person's stop ends train() with a Result everywhere; where functions are shared out, a person is asked by the first alone."""
    (folder / "script.py").write_text(f"""
from minippo.ppo import PPOConfig
from minippo.scoring.rewards import Reward
from minippo.training.run import RunConfig, train
config = PPOConfig(batch_size=4, mini_batch_size=4, learning_rate=1e-3)
result = train(RunConfig("model", "prompts.txt", "human", "run", 2, max_new_tokens=4, device="cpu", score_everywhere={flag[2:4] == "sc"}), config)
print(f"steps {{result.steps_done}} status {{result.status}}\\n", end="", flush=True)       # one write: two processes share the terminal
""")
    status, printed, errors = finish(torchrun(2, "script.py"))
    assert status == 0 and printed.count("steps 0 status 0") == 2, errors


@slow
def test_commands_for_one_process_say_so(folder):
    status, _, errors = finish(torchrun(2, "-m", "minippo", "generate", "--model", "model", "--prompt", "the", "--reward", "rule:length"))
    assert status == 1 and errors.count("error: generate runs in one process: leave torchrun out") == 1


@slow
def test_the_quickstart_runs_unchanged(folder):
    tokenizer = load_tokenizer("model")
    make_policy(tokenizer.vocab_size).save_pretrained("model", tokenizer)                   # one with more positions
    alone = subprocess.run([sys.executable, HERE.parent / "examples" / "quickstart.py", "model"], env=ENVIRONMENT, capture_output=True)
    assert alone.returncode == 0
    one = read_safetensors("runs/quickstart/model.safetensors")
    status, printed, errors = finish(torchrun(2, HERE.parent / "examples" / "quickstart.py", "model"))
    assert status == 0 and printed.count("update 20 ") == 2, errors
    for name, x in read_safetensors("runs/quickstart/model.safetensors").items():
        torch.testing.assert_close(x, one[name], rtol=1e-4, atol=1e-4)


@slow
def test_reward_models_learn_the_same_and_score_their_share(folder):
    Path("good.txt").write_text("\n".join(f"joy {i}" for i in range(20)))
    Path("bad.txt").write_text("\n".join(f"bore {i}" for i in range(20)))
    command = ("-m", "minippo", "reward-model", "--model", "model", "--labels", "good.txt", "bad.txt", "--batch-size", "5",
               "--device", "cpu")
    assert subprocess.run([sys.executable, *command, "--out", "rm1"], env=ENVIRONMENT, capture_output=True).returncode == 0
    status, printed, errors = finish(torchrun(2, *command, "--out", "rm2"))
    assert status == 0 and printed.count("accuracy") == 2, errors               # the progress, the result
    for name, x in read_safetensors("rm2/model.safetensors").items():
        torch.testing.assert_close(x, read_safetensors("rm1/model.safetensors")[name], rtol=1e-4, atol=1e-5)
    reward = ("--reward", "model:rm1", "--steps", "2")
    assert subprocess.run([sys.executable, *TRAIN, *reward, "--out", "one"], env=ENVIRONMENT, capture_output=True).returncode == 0
    status, printed, errors = finish(torchrun(2, *TRAIN, *reward, "--out", "two"))
    assert status == 0, errors
    for ours, wanted in zip(metrics(Path("two")), metrics(Path("one")), strict=True):
        assert ours == pytest.approx(wanted, rel=1e-3, abs=1e-4)
