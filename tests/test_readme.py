"""README's Python blocks run as printed, in order, in a folder where "gpt2" is a small random model with GPT-2's vocabulary.

Blocks that need transformers or huggingface_hub run where those are installed (tests/peers has the same in depth).
"""

import importlib.util
import json
import re
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from conftest import make_policy
from minippo.files.tokenizer import load_tokenizer

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)


@pytest.fixture
def gpt2_here(tmp_path, monkeypatch):
    """A folder named gpt2 in the current folder is found before the cache and the network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    policy = make_policy(vocab_size=50257, n_positions=128, n_embd=16, n_layer=1, n_head=2, scale=2.0)
    try:
        policy.save_pretrained("gpt2", load_tokenizer("gpt2"))
    except (FileNotFoundError, OSError) as error:
        policy.save_pretrained("gpt2")
        try:
            load_tokenizer("gpt2")
        except OSError:
            pytest.skip(f"GPT-2's BPE files are not at hand: {error}")


def test_the_blocks_run_as_printed(gpt2_here, monkeypatch, capsys):
    from minippo import GPT2WithValueHead
    pushed = []
    monkeypatch.setattr(GPT2WithValueHead, "push_to_hub", lambda self, *args: pushed.append(args))
    logged = []
    wandb = SimpleNamespace(init=lambda **kwargs: None, log=lambda line, step: logged.append((line, step)))
    Path("prompts.txt").write_text("The film\nIn the end\n")
    namespace, logs = {}, []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for block in BLOCKS:
            if any(name in block and importlib.util.find_spec(name) is None for name in ("transformers", "tensorboard")):
                continue
            with monkeypatch.context() as patch:                        # transformers must not see it
                patch.setitem(sys.modules, "wandb", wandb) if "import wandb" in block else None
                exec(compile(block, str(README), "exec"), namespace)
            logs += [namespace["log"]] if "def log" in block else []
    printed = capsys.readouterr().out
    assert len(namespace["query"]) == 7 and len(namespace["response"]) <= 20
    assert "step 1  score" in printed and pushed[0][0] == "your-name/my-gpt2"
    assert Path("my-gpt2/value_head.safetensors").exists() and Path("checkpoint/manifest.json").exists()
    line = json.loads(Path("runs/z/metrics.jsonl").read_text().splitlines()[-1])
    assert len(logs) >= 3 and f"{line['step']} {line['ppo/mean_scores']} {line['objective/kl']}" in printed.splitlines()
    for log in logs:
        log(line)
    assert logged == [(line, 2)]
    assert Path("z.csv").read_text() == f"step,score,kl\n2,{line['ppo/mean_scores']},{line['objective/kl']}\n"


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)", README.read_text(encoding="utf-8")):
        assert target.startswith(("https://", "http://")) or (README.parent / target).exists(), target
