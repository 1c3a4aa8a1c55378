"""tests/gpu.sh before it meets a GPU: a part that fails or hangs is recorded, and the others run; all of it, tiny. With MINIPPO_SLOW=1."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gpu
from gpu import Part

ROOT = Path(__file__).resolve().parents[1]
slow = pytest.mark.skipif(os.environ.get("MINIPPO_SLOW") != "1", reason="every part at tiny sizes takes four minutes: set MINIPPO_SLOW=1")


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@slow
def test_a_part_that_fails_or_hangs_is_recorded_and_the_others_run(tmp_path, monkeypatch):
    """Six parts, one of them beside the others, one of two commands at once; the hanging one has a child of its own, killed with it."""
    result = {"seconds": dict.fromkeys(("rollout", "scoring", "update", "iteration"), {"median": 0.0885, "min": 0.08, "max": 0.09}),
              "decode_ms": 0.49, "first_iteration_seconds": 2.0, "share_of_limit": {"iteration": 0.5}, "peak_memory_bytes": 9e9,
              "memory_at_start_bytes": 1e9, "memory_estimate_bytes": 7e9}
    child = python(f"import time; time.sleep(3); open({str(tmp_path / 'late')!r}, 'w')")
    parts = [Part("bench", 20, [python(f"open({str(tmp_path / 'bench.json')!r}, 'w').write({json.dumps(result)!r})")], 110),
             Part("besides", 20, [python("print('beside')")], beside=True),
             Part("broken", 20, [python("raise ValueError('broken')"), python("print('never')")]),
             Part("hanging", 1, [python(f"import subprocess; subprocess.run({child!r})")]),
             Part("both", 20, [python("print('a')"), python("print('b')")], together=True), Part("nothing", 20, [])]
    for name, path in (("OUT", tmp_path), ("LOGS", tmp_path / "logs"), ("WORK", tmp_path)):
        monkeypatch.setattr(gpu, name, path)
    monkeypatch.setattr(gpu, "parts", lambda: parts)
    monkeypatch.setattr(gpu.shutil, "rmtree", lambda folder: None)
    assert gpu.main() == 0
    report, text = json.loads((tmp_path / "gpu.json").read_text()), (tmp_path / "gpu.md").read_text()
    outcomes = {part["name"]: part["outcome"] for part in report["parts"]}
    assert outcomes == {"bench": "as expected", "broken": "FAILED", "hanging": "out of time", "both": "as expected", "nothing": "left out",
                        "besides": "as expected"}
    assert "| bench | 110 | 88.5 (80.0 to 90.0) | 88.5 | 88.5 | 88.5 | 0.490 | 2.00 | 50% | 8.00 | 7.00 |" in text
    assert "ValueError: broken" in text and "never" not in (tmp_path / "logs" / "broken.log").read_text().splitlines()
    time.sleep(3)
    assert not (tmp_path / "late").exists()


def test_no_part_runs_beyond_the_end_of_all(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "LOGS", tmp_path)
    assert gpu.run(Part("late", 20, [python("import time; time.sleep(20)")]), time.monotonic())["outcome"] == "out of time"


@slow
def test_the_whole_script_at_tiny_sizes(tmp_path):
    """TRL is not at hand here, and would find no GPU; torchrun needs one, too."""
    environment = os.environ | {"OUT": str(tmp_path), "PYTHON": sys.executable}
    subprocess.run(["bash", "tests/gpu.sh", "--tiny"], cwd=ROOT, env=environment, check=True, timeout=2400)
    report = json.loads((tmp_path / "gpu.json").read_text())
    bad = {part["name"]: part["outcome"] for part in report["parts"] if part["outcome"] != "as expected"}
    assert bad == {"trl": "FAILED", "torchrun-on-one-card": "left out"}
    assert {path.name for path in tmp_path.iterdir()} == {"gpu.json", "gpu.md", "gpu-logs"}
    assert (tmp_path / "gpu-logs" / "report.html").exists()
