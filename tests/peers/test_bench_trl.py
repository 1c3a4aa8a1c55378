"""bench_trl.py on a tiny model: both sides do the same work, each in a process without the other."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs trl 0.11.4 to compare with: pip install -r tests/peers/requirements.txt")
pytest.importorskip("transformers")

import bench_trl  # noqa: E402

SCRIPT = Path(bench_trl.__file__)


def test_equal_work_on_both_sides():
    """Batch 4 in minibatches of 2, 2 epochs: 4 steps; 4 * 5 tokens; all parameters: (512 + 128) * 64 + 2 * 49,984 + 128 + 65."""
    done = subprocess.run([sys.executable, SCRIPT, "--model", "tiny", "--batch", "4", "--mini-batch-size", "2", "--ppo-epochs", "2",
                           "--query-min", "3", "--query-max", "6", "--new-tokens", "5", "--iterations", "1", "--warmup", "1"],
                          capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["work"] == {"response tokens": [5] * 4, "optimizer steps": 4, "parameters moved": 141_121}
    assert {side: hello["modules"] for side, hello in result["processes"].items()} == {"minippo": ["minippo"], "trl": ["trl"]}
    for phase in bench_trl.PHASES:
        seconds = {side: times[phase]["median"] for side, times in result["seconds"].items()}
        assert result["trl_over_minippo"][phase] == pytest.approx(seconds["trl"] / seconds["minippo"]) and min(seconds.values()) > 0
        assert any(line.startswith(phase) and line.endswith(f"{result['trl_over_minippo'][phase]:.2f}")
                   for line in done.stdout.splitlines())
    assert min(result["peak_memory_bytes"].values()) > 1e8


def test_unequal_work_gives_no_result(monkeypatch):
    """A side that makes fewer tokens ends the comparison, whatever its times."""
    answers = {"minippo": {"work": {"response tokens": [5, 5]}}, "trl": {"work": {"response tokens": [5, 4]}}}
    monkeypatch.setattr(bench_trl, "ask", lambda side, worker, line="": answers[side])
    monkeypatch.setattr(bench_trl.subprocess, "Popen", lambda *args, **kwargs: open(os.devnull))
    with pytest.raises(SystemExit, match="iteration 0: the work differs"):
        bench_trl.compare({}, 1, 1)
