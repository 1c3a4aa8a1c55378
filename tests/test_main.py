"""The command line: flags from the dataclasses, answers to mistakes, and each command once."""

import io
import json
import re
import shlex
import subprocess
import sys
from dataclasses import MISSING, fields, replace
from pathlib import Path

import pytest
import torch

from minippo import __main__ as cli
from minippo.gpt2 import GPT2Config
from minippo.policy import GPT2WithValueHead
from minippo.ppo import PPOConfig
from minippo.training import reward_training
from minippo.training.reward_training import RewardModelConfig
from minippo.training.config import describe
from minippo.training.run import Result, RunConfig
from minippo.training.bpe import train_bpe

REVIEWS = ["the film is a joy", "the film is a bore", "this story is dull", "a dog and a boat"]
REQUIRED = ["--model", "m", "--prompts", "p.txt", "--reward", "rule:length", "--out", "o"]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tokenizer = train_bpe(REVIEWS * 3, 280)
    config = GPT2Config(tokenizer.vocab_size, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    GPT2WithValueHead(config, generator=torch.Generator().manual_seed(0)).save_pretrained(folder / "model", tokenizer)
    (folder / "prompts.txt").write_text("\n".join(REVIEWS))
    return folder


def run(monkeypatch, *argv: str) -> tuple:
    """What `train` would have been called with: (RunConfig, PPOConfig, resume, allow_config_change)."""
    calls = []
    monkeypatch.setattr(cli, "train", lambda *args: calls.append(args) or Result(0, 0, None))
    assert cli.main(["train", *argv]) == 0
    return calls[0]


# --- flags ----------------------------------------------------------------------------------------

def test_every_field_is_a_flag_with_its_comment_and_its_default(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert exit_.value.code == 0
    entries = {entry.split()[0].strip(","): entry for entry in re.split(r" (?=--(?!no-))", text)}
    for cls in (RunConfig, PPOConfig):
        for field in fields(cls):
            default = "required" if field.default is MISSING else "none" if field.default is None else field.default
            entry = entries["--" + field.name.replace("_", "-")]
            assert " ".join(f"{cli.comments(cls)[field.name]} [{default}]".split()) in entry, entry
    assert "responses per forward and backward pass, a micro-batch: what must fit into memory [128]" in text      # a comment of PPOConfig


def test_no_field_is_without_its_comment():
    for cls in (RunConfig, PPOConfig, RewardModelConfig):
        assert cli.comments(cls).keys() == {field.name for field in fields(cls)}, cls


def test_without_flags_the_defaults_of_the_dataclasses_hold(monkeypatch):
    assert run(monkeypatch, *REQUIRED) == (RunConfig("m", "p.txt", "rule:length", "o"), PPOConfig(), False, False)


def test_flags_of_every_kind(monkeypatch):
    config, ppo, resume, allow = run(
        monkeypatch, *REQUIRED, "--query-tokens", "4", "8", "--max-new-tokens", "16", "--steps=7", "--quiet", "--no-adap-kl-ctrl",
        "--score-clip", "0.5", "--max-grad-norm", "none", "--kl-penalty", "full", "--learning-rate", "1e-5", "--resume",
        "--allow-config-change", "--dtype", "bfloat16", "--seed", "3")
    assert (config.query_tokens, config.max_new_tokens, config.steps) == ((4, 8), 16, 7)
    assert (config.quiet, config.dtype) == (True, "bfloat16")
    assert (ppo.adap_kl_ctrl, ppo.score_clip, ppo.max_grad_norm, ppo.kl_penalty, ppo.learning_rate, ppo.seed) == (
        False, 0.5, None, "full", 1e-5, 3)
    assert resume and allow
    assert run(monkeypatch, *REQUIRED, "--query-tokens", "none")[0].query_tokens is None
    assert run(monkeypatch, *REQUIRED, "--query-tokens", "5")[0].query_tokens == 5
    assert run(monkeypatch, *REQUIRED[:5], "-0.5*rule:length + human", *REQUIRED[6:])[0].reward == "-0.5*rule:length + human"


@pytest.mark.parametrize("argv, message", [
    (["trian"], "no command 'trian'; did you mean train? There are: demo, train"),
    (["train", *REQUIRED, "--bach-size", "3"], "unknown argument '--bach-size'; did you mean --batch-size?"),
    (["train", "--resume"], "--resume: expected the run's folder as --out"),
    (["train", "--resume", "--out", "nothing"], "--resume: there is no run in 'nothing'"),
    (["train", *REQUIRED, "--config", "no.json"], "No such file or directory"),
    (["train", *REQUIRED, "--batch", "3"], "unknown argument '--batch'"),              # no guessing from beginnings
    (["train", *REQUIRED, "--steps", "ten"], "argument --steps: expected a whole number, got 'ten'"),
    (["train", *REQUIRED, "--score-clip", "x"], "argument --score-clip: expected a number or none, got 'x'"),
    (["train", *REQUIRED, "--steps", "0"], "steps must be a whole number above 0, got 0"),
    (["train", *REQUIRED, "--query-tokens", "1", "2", "3"], "a whole number above 0, or a pair (MIN, MAX); got (1, 2, 3)"),
    (["train", *REQUIRED, "--kl-penalty", "kll"], "kl_penalty must be one of kl, abs, mse, k3, full; got 'kll'"),
    (["train", "--model", "m", "--out", "o"], "expected --prompts and --reward, too"),
    (["train", *REQUIRED], "No such file or directory: p.txt"),
    (["generate", "--model", "m"], "the following arguments are required: --prompt"),
    (["generate", "--model", "no/such", "--prompt", "x"], "no/such"),
    (["reward-model", "--model", "m", "--out", "o"], "one of the arguments --pairs --labels is required"),
    (["report", "no/such"], "no/such is not a run folder"),
    (["report", "x", "--device"], "expected one argument"),
    (["report", "~nosuchuser"], "~nosuchuser is not a run folder"),
    (["train", *REQUIRED[:6], "--out", ""], "--out: expected a path, got ''"),
    (["train", *REQUIRED[:6], "--out=~nosuchuser/x"], "--out '~nosuchuser/x': Could not determine home directory"),
    (["train", *REQUIRED, "--seed", "18446744073709551616"], "argument --seed: expected a whole number of a size that 64 bits"),
    (["train", *REQUIRED, "--truncate-penalty", "1e39"], "argument --truncate-penalty: expected a number of a size that"),
    (["train", *REQUIRED, "--device", "meta"], "no device 'meta' here"),
    (["generate", "--model", "", "--prompt", "x"], "--model: expected a path, got ''"),
    (["generate", "--model", "m", "--prompt", "x", "--top-p", "1e-46"], "argument --top-p: expected a number of a size that"),
    (["generate", "--model", "m", "--prompt", "x", "--top-k", "inf"], "argument --top-k: expected a whole number, got 'inf'"),
    (["reward-model", "--model", "m", "--out", "", "--pairs", "p"], "--out: expected a path, got ''"),
])
def test_a_mistake_is_answered_in_one_line_with_status_2(capsys, argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(argv) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and message in printed.err
    assert printed.err.count("\n") == 1 and "Traceback" not in printed.err
    assert not list(tmp_path.iterdir())                                                # nothing was begun


def test_the_program_itself(tmp_path):
    done = subprocess.run([sys.executable, "-m", "minippo", "train", "--stesp", "3"], capture_output=True, text=True,
                          cwd=Path(cli.__file__).parents[1])
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: unknown argument '--stesp'; did you mean --steps?; see `python -m minippo train --help`\n"


def test_the_overview_lists_every_command(capsys):
    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr().out
    for command in ("demo", "train", "generate", "reward-model", "report", "check", "bench"):
        assert f"\n  {command} " in printed


@pytest.mark.parametrize("command", ["demo", "train", "generate", "reward-model", "report", "check", "bench"])
def test_every_command_has_help_seed_device_and_dtype(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main([command, "--help"])
    printed = capsys.readouterr().out
    assert exit_.value.code == 0
    for flag in ("--seed", "--device", "--dtype"):
        assert flag in printed


# --- exit status ----------------------------------------------------------------------------------

def test_how_a_run_ends_is_the_exit_status(monkeypatch, capsys):
    def ends_with(error):
        def train(*args):
            raise error
        monkeypatch.setattr(cli, "train", train)
        return cli.main(["train", *REQUIRED])
    assert ends_with(KeyboardInterrupt()) == 130
    assert ends_with(FloatingPointError("the loss is not finite")) == 1
    assert ends_with(MemoryError("out of memory")) == 1
    monkeypatch.setattr(cli, "train", lambda *args: Result(143, 2, None))
    assert cli.main(["train", *REQUIRED]) == 143
    assert capsys.readouterr().err == "error: the loss is not finite\nerror: out of memory\n"


def test_a_failing_function_of_the_user_is_shown_with_its_traceback(base, tmp_path, monkeypatch, capsys):
    (tmp_path / "judge.py").write_text("def score(queries, responses):\n    return [1 / len(())]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "judge", raising=False)
    argv = ["train", "--model", str(base / "model"), "--prompts", str(base / "prompts.txt"), "--reward", "judge:score", "--out",
            "run", "--batch-size", "2", "--mini-batch-size", "2", "--max-new-tokens", "3", "--device", "cpu"]
    assert cli.main(argv) == 1
    printed = capsys.readouterr().err
    assert "return [1 / len(())]" in printed and "error: update 1: reward judge:score raised ZeroDivisionError" in printed


# --- each command once ----------------------------------------------------------------------------

def test_settings_from_a_file_hold_where_no_flag_says_otherwise(tmp_path, monkeypatch, capsys):
    """A flat object, or what a run's config.json holds; code that only a file names is not imported."""
    (tmp_path / "flat.json").write_text('{"model": "m", "prompts": "p.txt", "reward": "rule:length", "steps": 7, "query_tokens": [2, 3], "lam": 0.5}')
    run_, ppo, *_ = run(monkeypatch, "--config", str(tmp_path / "flat.json"), "--out", "o", "--steps", "8")
    assert (run_, ppo) == (RunConfig("m", "p.txt", "rule:length", "o", 8, query_tokens=(2, 3)), PPOConfig(lam=0.5))
    (tmp_path / "config.json").write_text(json.dumps(describe(run_, ppo, b"")))
    again = run(monkeypatch, "--config", str(tmp_path / "config.json"), "--lr=0.5", "--out", "o2")
    assert again[:2] == (replace(run_, out="o2"), replace(ppo, learning_rate=0.5))
    (tmp_path / "code.json").write_text('{"model": "m", "prompts": "p.txt", "reward": "os:getcwd"}')
    assert cli.main(["train", "--config", str(tmp_path / "code.json"), "--out", "o"]) == 2
    assert "nor what --config names" in capsys.readouterr().err
    assert run(monkeypatch, "--config", str(tmp_path / "code.json"), "--out", "o", "--reward", "os:getcwd")[0].reward == "os:getcwd"


@pytest.mark.parametrize("content, message", [
    ('{"learning_rte": 1}', "unknown setting 'learning_rte'; did you mean learning_rate?"), ("[1]", "expected a JSON object of settings, got [1]"),
    ('{"run": {"model": "m"}, "ppo": {"lamb": 1}}', "unknown setting 'lamb'; did you mean lam?"), ("{", "is not valid JSON"),
    ('{"lam": "x"}', "PPOConfig: lam must be float, got 'x'")])
def test_a_file_of_settings_that_cannot_be_is_named(tmp_path, capsys, content, message):
    (tmp_path / "c.json").write_text(content)
    assert cli.main(["train", *REQUIRED, "--config", str(tmp_path / "c.json")]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_names_that_people_try_are_recognised(monkeypatch):
    ppo = run(monkeypatch, *REQUIRED, "--lr", "0.5", "--kl-coef=0.25", "--kl-target", "3", "--epochs", "2", "--minibatch-size", "4")[1]
    assert ppo == PPOConfig(learning_rate=0.5, init_kl_coef=0.25, target=3.0, ppo_epochs=2, mini_batch_size=4)
    assert run(monkeypatch, *REQUIRED, "--updates", "5", "--max-tokens", "6")[0] == RunConfig("m", "p.txt", "rule:length", "o", 5, max_new_tokens=6)
    for name in cli.ALSO.values():
        assert name[2:].replace("-", "_") in {field.name for cls in (RunConfig, PPOConfig) for field in fields(cls)}


def test_train_resume_generate_and_report(base, tmp_path, capsys):
    out = str(tmp_path / "run")
    argv = ["train", "--model", str(base / "model"), "--prompts", str(base / "prompts.txt"), "--reward", "rule:length=3",
            "--out", out, "--steps", "2", "--batch-size", "4", "--mini-batch-size", "4", "--query-tokens", "1", "3",
            "--max-new-tokens", "4", "--device", "cpu", "--learning-rate", "0.01"]
    assert cli.main(argv) == 0
    assert "update 2/2" in capsys.readouterr().out

    assert cli.main(["train", "--out", out, "--resume", "--steps", "3"]) == 0          # the rest is as it began
    assert "update 3/3" in capsys.readouterr().out
    assert cli.main(["train", "--out", out, "--resume", "--batch-size", "2"]) == 2
    assert "batch_size: 4 -> 2" in capsys.readouterr().err
    assert cli.main(argv) == 2
    assert "already holds a run" in capsys.readouterr().err

    assert cli.main(["generate", "--model", out, "--prompt", "", "--n", "1", "--device", "cpu", "--max-new-tokens", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 4                              # nothing to continue: a text from its beginning
    generate = ["generate", "--model", out, "--prompt", "the film", "a dog", "--reference", str(base / "model"), "--n", "2",
                "--reward", "rule:length=3", "--max-new-tokens", "5", "--device", "cpu"]
    assert cli.main(generate) == 0
    printed = capsys.readouterr().out
    assert printed.count("\nthe film\n") == printed.count("\na dog\n") == 1
    assert printed.count(f"  {out}\n") == printed.count(f"  {base / 'model'}\n") == 2
    assert len(re.findall(r"^ {4,}\d\.\d{3}  ", printed, re.M)) == 8                   # 2 prompts, 2 models, 2 responses
    assert cli.main(generate) == 0 and capsys.readouterr().out == printed              # from its seed
    assert cli.main([*generate, "--n", "0"]) == 2

    assert cli.main(["report", out]) == 0
    assert capsys.readouterr().out == f"{out}/report.html\n"
    assert cli.main(["report", out, out]) == 0
    assert (tmp_path / "run" / "comparison.html").exists()


def test_a_reward_model_from_pairs_and_from_labels_scores_a_run(base, tmp_path, capsys, monkeypatch):
    pairs = [{"query": query, "chosen": " is a joy", "rejected": " is a bore"} for query in REVIEWS * 3]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    (tmp_path / "good").write_text("\n".join(f"{review}, a joy" for review in REVIEWS * 2))
    (tmp_path / "bad").write_text("\n".join(f"{review}, a bore" for review in REVIEWS * 2))
    common = ["reward-model", "--model", str(base / "model"), "--learning-rate", "0.01", "--batch-size", "4", "--device", "cpu"]
    assert cli.main([*common, "--out", str(tmp_path / "rm"), "--pairs", str(tmp_path / "pairs.jsonl")]) == 0
    assert f"--reward model:{tmp_path / 'rm'}" in capsys.readouterr().out
    assert cli.main([*common, "--out", str(tmp_path / "rm2"), "--labels", str(tmp_path / "good"), str(tmp_path / "bad")]) == 0
    assert re.search(r"accuracy [01]\.\d+ on 2 held-out examples, after 12", capsys.readouterr().out)
    assert cli.main([*common, "--out", str(tmp_path / "rm"), "--pairs", str(tmp_path / "pairs.jsonl")]) == 2
    assert "exists and is not an empty folder" in capsys.readouterr().err
    monkeypatch.setattr(reward_training, "train_on_pairs", lambda *args: pytest.fail("trained, with nowhere to save it"))
    assert cli.main([*common, "--out", str(tmp_path / "good" / "rm"), "--pairs", str(tmp_path / "pairs.jsonl")]) == 2
    assert "Not a directory" in capsys.readouterr().err
    monkeypatch.undo()

    assert cli.main(["train", "--model", str(base / "model"), "--prompts", str(base / "prompts.txt"), "--reward",
                     f"model:{tmp_path / 'rm'} + 0.1*rule:length", "--out", str(tmp_path / "run"), "--steps", "1",
                     "--batch-size", "2", "--mini-batch-size", "2", "--max-new-tokens", "3", "--device", "cpu"]) == 0
    [line] = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert {f"score/model:{tmp_path / 'rm'}", "score/rule:length"} <= line.keys()


def test_a_resumed_run_imports_nothing_that_only_its_folder_names(base, tmp_path, capsys, monkeypatch):
    """A run folder is data; the same function given on the command line is the user's word."""
    (tmp_path / "my_judge.py").write_text("import pathlib; pathlib.Path('touched').touch()\ndef score(q, r): return [1.0] * len(q)\n")
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "it's a run"
    argv = ["--out", str(out), "--steps", "1", "--quiet"]
    first = ["train", "--model", str(base / "model"), "--prompts", str(base / "prompts.txt"), "--reward", "0.5*my_judge:score",
             "--batch-size", "2", "--mini-batch-size", "2", "--max-new-tokens", "3", "--device", "cpu", *argv]
    assert cli.main(first) == 0
    (tmp_path / "touched").unlink()
    sys.modules.pop("my_judge")
    assert cli.main(["train", "--resume", *argv]) == 2
    said = capsys.readouterr().err
    assert "my_judge:score: a run folder is data, and code that it names is not imported" in said and "my_judge" not in sys.modules
    assert not (tmp_path / "touched").exists()
    record = json.loads((out / "config.json").read_text())
    for part, reward in (("ppo", "my_judge:score"), ("run", ["my_judge:score"]), ("run", 'rule:length - 0*"my_judge":score')):
        crafted = json.loads(json.dumps(record))
        crafted[part]["reward"] = reward
        (out / "config.json").write_text(json.dumps(crafted))
        assert cli.main(["train", "--resume", *argv]) == 2 and "my_judge" not in sys.modules
        assert "code that it names is not imported" in capsys.readouterr().err
    (out / "config.json").write_text(json.dumps(record))
    again = shlex.split(said[said.index("train --resume"):])
    assert again == ["train", "--resume", *argv, "--reward", "0.5*my_judge:score"]
    assert cli.main(again) == 0 and (tmp_path / "touched").exists()


@pytest.mark.parametrize("part, name, value", [
    ("run", "model", 5), ("run", "steps", "many"), ("run", "reward", ["x", "y"]), ("run", "query_tokens", [[1], 2]), ("ppo", "seed", "a"),
    ("ppo", "compile", {}), ("ppo", "learning_rate", None), ("run", "out", None)])
def test_a_record_of_wrong_types_gives_one_clear_line(base, tmp_path, capsys, part, name, value):
    record = {"run": {"model": str(base / "model"), "prompts": str(base / "prompts.txt"), "reward": "rule:length"}, "ppo": {}}
    record[part][name] = value
    (tmp_path / "config.json").write_text(json.dumps(record))
    status = cli.main(["train", "--resume", "--out", str(tmp_path), "--steps" if name == "out" else "--device", "0" if name == "out" else "x"])
    said = capsys.readouterr().err
    assert status == 2 and said.startswith("error: ") and said.count("\n") == 1
    assert name == "out" or f"Config: {name} must be" in said
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_samples_are_shown_and_not_obeyed_and_need_no_encoding(base, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert cli.main(["generate", "--model", str(base / "model"), "--prompt", "\u00e9\x1b[2J", "--n", "20", "--max-new-tokens", "5",
                     "--device", "cpu"]) == 0
    printed = raw.getvalue()
    assert printed.startswith(b"\n\\xe9\\x1b[2J\n") and b"\\ufffd" in printed
    assert all(byte == 10 or 32 <= byte < 127 for byte in printed)


def test_commands_start_without_what_windows_lacks(tmp_path):
    code = ("import signal, sys; sys.modules.update(fcntl=None, resource=None); del signal.SIGHUP; sys.argv[0] = 'minippo'; "
            "sys.path.insert(0, sys.argv.pop(1)); from minippo import __main__, bench, check; sys.exit(__main__.main(sys.argv[1:]))")
    done = subprocess.run([sys.executable, "-c", code, str(Path(cli.__file__).parents[1]), "report", "no/such"], capture_output=True,
                          text=True, cwd=tmp_path)
    assert done.returncode == 2 and "no/such is not a run folder" in done.stderr, done.stderr


class Parsed(Exception):
    """A command line was accepted; what follows would run it."""


def test_every_command_that_the_texts_show_is_accepted(monkeypatch):
    plain = cli.parse

    def parse(parser, argv):
        plain(parser, argv)
        raise Parsed

    monkeypatch.setattr(cli, "parse", parse)
    root, seen = Path(__file__).parents[1], []
    for page in [root / "README.md", root / "tests" / "SPEED.md", *(root / "tutorial").glob("*.md")]:
        text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
        for command in re.findall(r"python -m minippo ([^`\n]+)", text):
            argv = shlex.split(command.replace("$kl", "0.1"), comments=True)
            if len(argv) > 1 and "--help" not in argv:                      # a name alone speaks of a command, it does not call it
                seen.append(command)
                with pytest.raises(Parsed):
                    assert cli.main(argv) == 0, f"{page.name}: python -m minippo {command}"
    assert len(seen) > 20


def test_a_command_keeps_freed_memory_whether_or_not_it_makes_a_trainer(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: calls.append(1))
    assert cli.main(["report", "nowhere"]) == 2 and calls == [1]
