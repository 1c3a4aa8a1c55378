"""The examples run as they stand, on a tiny model; pyproject.toml agrees with requirements.txt and installs what the page needs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minippo.files.tokenizer import load_tokenizer
from minippo.gpt2 import GPT2Config
from minippo.policy import GPT2WithValueHead
from minippo.training.bpe import train_bpe
from minippo.training.data import make_reviews

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny model whose words are those of the reviews."""
    tokenizer = train_bpe([review.text for review in make_reviews(200, seed=0)], 500)
    model = GPT2WithValueHead(GPT2Config(tokenizer.vocab_size, 64, 32, 1, 2), generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path_factory.mktemp("models") / "tiny", tokenizer)
    return tmp_path_factory.getbasetemp() / "models0" / "tiny"


def run(name: str, cwd: Path, *argv) -> str:
    done = subprocess.run([sys.executable, str(ROOT / "examples" / name), *map(str, argv)], cwd=cwd, capture_output=True, text=True,
                          timeout=120, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout


def test_the_quickstart_prints_a_line_an_update_and_saves(folder, tmp_path):
    printed = run("quickstart.py", tmp_path, folder)
    assert len(re.findall(r"^update +\d+  score +-?\d+\.\d{3}  kl +-?\d+\.\d{3}", printed, re.M)) == 20
    assert "update  1  score" in printed and "kl  0.000" in printed                                # the first KL is 0
    assert load_tokenizer(tmp_path / "runs" / "quickstart").vocab_size == 500
    assert GPT2WithValueHead.from_pretrained(tmp_path / "runs" / "quickstart", device="cpu").config.vocab_size == 500


def test_the_reward_model_learns_and_the_policy_follows_it(folder, tmp_path):
    (tmp_path / "good.txt").write_text("\n".join(review.text for review in make_reviews(300, seed=1) if review.score > 0.5))
    (tmp_path / "bad.txt").write_text("\n".join(review.text for review in make_reviews(300, seed=1) if review.score < 0.5))
    printed = run("reward_model.py", tmp_path, folder, "good.txt", "bad.txt")
    scores = [float(score) for score in re.findall(r"^update +\d+  score +(-?\d+\.\d{3})", printed, re.M)]
    assert len(scores) == 20 and re.search(r"the reward model is right on \d+% of \d+ texts", printed)
    assert (tmp_path / "runs" / "reward-example" / "model.safetensors").exists()


def test_the_quickstart_is_short_enough_to_copy():
    assert len((ROOT / "examples" / "quickstart.py").read_text().splitlines()) <= 50


def test_pyproject_asks_for_what_requirements_ask_for():
    project, requirements = (ROOT / "pyproject.toml").read_text(), (ROOT / "requirements.txt").read_text().split()
    dependencies = re.search(r"^dependencies = \[(.*)\]$", project, re.M)[1] + re.search(r"^test = \[(.*)\]$", project, re.M)[1]
    assert set(re.findall(r'"([^"]+)"', dependencies)) == set(requirements)
    shipped = {path.name for path in (ROOT / "minippo").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert set(re.findall(r'"(\w+\.(?:css|js|txt))"', project)) == shipped


def test_the_command_minippo_is_the_program():
    """As the script that pip writes calls it: without arguments, its result is the exit status."""
    module, function = re.search(r'^minippo = "([\w.]+):(\w+)"$', (ROOT / "pyproject.toml").read_text(), re.M).groups()
    code = f"import sys; sys.argv[0] = 'minippo'; from {module} import {function}; sys.exit({function}())"
    for argv, status, word in (["--help"], 0, "reward-model"), (["train", "--help"], 0, "--batch-size"), (["trian"], 2, "did you mean train?"):
        done = subprocess.run([sys.executable, "-c", code, *argv], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == status and word in done.stdout + done.stderr and "Traceback" not in done.stderr
