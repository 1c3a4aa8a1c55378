"""What tests/gpu.sh does: each part in processes of its own, with a time limit; one that fails is recorded, and the next one begins.

gpu.json and gpu.md are written anew after each part: what was measured is there whatever ends the script. Weights are random, times
do not depend on them. The recipe trains a GPT-2 of its own on rt-polarity, or on the built-in reviews where that is not at hand.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
OUT = Path(os.environ.get("OUT") or ".").resolve()
SHARED = ROOT.parent / "shared" if (ROOT.parent / "shared").is_dir() else ROOT / "shared"       # beside the checkout, or in it
TINY = "--tiny" in sys.argv or bool(os.environ.get("MINIPPO_GPU_TINY"))
SECONDS = 2000 if TINY else 570             # of all parts together
PYTHON = [sys.executable, *(["tests/fakecuda.py"] if TINY else [])]
MINIPPO = [*PYTHON, *(["tests/gpu.py", "minippo"] if TINY else ["-m", "minippo"])]
WORK = Path(os.environ.get("MINIPPO_GPU_WORK") or f"{tempfile.gettempdir()}/minippo-gpu-{os.getpid()}")        # models and runs, gigabytes
LOGS = OUT / "gpu-logs"                     # what each part printed, and what the recipe's run wrote


class Part(NamedTuple):
    name: str
    seconds: int                            # its own limit
    commands: list[list[str]]               # one after the other; none: left out
    target_ms: float | None = None          # of an iteration
    together: bool = False                  # all commands at once
    beside: bool = False                    # runs beside the parts that follow: it needs no GPU


def bench(name: str, seconds: int, batch: int, queries: int, new: int, *flags: str, target_ms: float | None = None) -> Part:
    if TINY:
        batch, queries, new, flags = min(batch, 4), 8, 6, (*(f for f in flags if f != "--compile"), "--model", "tiny")
    sizes = ["--batch", str(batch), "--query-min", str(queries), "--query-max", str(queries), "--new-tokens", str(new)]
    command = [*MINIPPO, "bench", "--device", "cuda", *sizes, *flags, "--json", str(WORK / f"{name}.json")]
    return Part(name, seconds, [command], target_ms)


def parts() -> list[Part]:
    """In the order of what is wanted most; the timed ones before anything runs beside them."""
    peers, distributed = os.environ.get("PEERS") or sys.executable, ROOT / "minippo" / "distributed.py"
    times = ["--iterations", "1" if TINY else "10", "--warmup", "1" if TINY else "3"]
    labels, steps, batch = SHARED / "rt-polarity", "2" if TINY else "60", "4" if TINY else "64"
    gpt2, reward, positive = (str(WORK / name) for name in ("gpt2", "reward", "positive"))
    train = [*MINIPPO, "train", "--device", "cuda", "--model", gpt2, "--prompts", str(WORK / "prompts.txt"), "--query-tokens", "4", "8",
             "--max-new-tokens", "16", "24", "--batch-size", batch, "--mini-batch-size", batch]
    both = bench("two-processes", 60, 64, 64, 24, *times).commands[0]
    return [
        Part("check", 400 if TINY else 60, [[*MINIPPO, "check", "--device", "cuda"]]),
        bench("124M-64-64-24", 60, 64, 64, 24, *times, target_ms=110),
        bench("124M-64-64-24-compiled", 150, 64, 64, 24, *times, "--compile", target_ms=75),
        bench("124M-64-64-128", 60, 64, 64, 128, *times, target_ms=180),
        bench("124M-512-64-128", 60, 512, 64, 128, "--iterations", "1" if TINY else "3", target_ms=1000),
        bench("1.5B-64-64-24", 90, 64, 64, 24, "--model", "gpt2-xl", "--iterations", "1" if TINY else "5", target_ms=750),
        bench("124M-8-16-24", 60, 8, 16, 24, *times),
        Part("trl", 90, [[peers, "tests/peers/bench_trl.py", "--device", "cuda", "--dtype", "bfloat16", "--batch", "64",
                          "--query-min", "64", "--query-max", "64", "--iterations", "5", "--warmup", "2"]]),
        Part("tests-on-the-gpu", 90, [[sys.executable, "-m", "pytest", "-q", "tests/test_cuda.py",
                                       *(["-k", "first_ratio"] if TINY else [])]]),
        Part("suite", 420, [[sys.executable, "-m", "pytest", "-q", *(["tests/test_metrics.py"] if TINY else [])]], beside=True),
        Part("check-float16", 400 if TINY else 60, [[*MINIPPO, "check", "--device", "cuda", "--dtype", "float16"]]),
        Part("recipe", 180, [
            [*PYTHON, "tests/gpu.py", "pretrain", str(labels)],
            [*MINIPPO, "reward-model", "--device", "cuda", "--model", gpt2, "--labels", str(WORK / "labels.jsonl"), "--out", reward,
             "--learning-rate", "1e-4"],
            [*train, "--reward", f"model:{reward}", "--lr-schedule", "linear", "--steps", steps, "--out", positive],
            [*MINIPPO, "generate", "--device", "cuda", "--model", positive, "--prompt", "the film is", "--reference", gpt2,
             "--reward", f"model:{reward}"]]),
        Part("two-processes", 60, [both, [*both[:-1], str(WORK / "two-processes-b.json")]], together=True),
        Part("torchrun-on-one-card", 60, [[sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *train[1:],
                                           "--reward", "rule:length", "--steps", "3", "--out", str(WORK / "torchrun")]]
             if distributed.exists() and not TINY else []),
    ]


# --- workers --------------------------------------------------------------------------------------------------------

def pretrain_gpt2(labels: str) -> None:
    """A GPT-2 from random weights in WORK/gpt2, with the labelled texts and the prompts of the recipe."""
    import torch
    from minippo import GPT2Config, GPT2WithValueHead, load_tokenizer
    from minippo.training.bpe import train_bpe
    from minippo.training.data import load_labelled, make_reviews
    from minippo.training.pretrain import PretrainConfig, pretrain
    if Path(labels).is_dir() and not TINY:
        texts = load_labelled(labels)
    else:
        texts = [(review.text, int(review.score > 0.5)) for review in make_reviews(60 if TINY else 4000, seed=0)]
    print(f"{len(texts)} texts, {'rt-polarity' if Path(labels).is_dir() and not TINY else 'the built-in reviews'}")
    try:
        tokenizer = load_tokenizer("gpt2") if not TINY else train_bpe([text for text, _ in texts], 400)
    except Exception as error:                                          # no network and no cache: one of our own
        print(f"no gpt2 tokenizer ({error}): one learnt from the texts")
        tokenizer = train_bpe([text for text, _ in texts[:3000]], 2048)
    sizes = GPT2Config(tokenizer.vocab_size, 128, 64, 2, 4) if TINY else GPT2Config(tokenizer.vocab_size)
    model = GPT2WithValueHead(sizes, generator=torch.Generator().manual_seed(0)).to("cuda")
    config = PretrainConfig(*((4, 4, 16) if TINY else (600, 64, 48)), learning_rate=6e-4)
    print("mean cross-entropy of a token:", pretrain(model.transformer, tokenizer, [text for text, _ in texts], config))
    model.save_pretrained(str(WORK / "gpt2"), tokenizer)
    (WORK / "labels.jsonl").write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in texts))
    (WORK / "prompts.txt").write_text("".join(f"{text}\n" for text, _ in texts))


def tiny_minippo(arguments: list[str]) -> int:
    """The command line, where the rates of a machine are not measured: their products take minutes on a CPU."""
    from minippo import bench
    from minippo.__main__ import main
    bench.measure_ceilings = lambda sizes, precision, *_: dict.fromkeys(("float32", "bfloat16", precision, "read", "copy"), 1e12)
    return main(arguments)


# --- the parts, one after the other ---------------------------------------------------------------------------------

def start(command: list[str], log) -> subprocess.Popen:
    """A process with its own group; the tests of the suite see no GPU, which the other parts are using."""
    log.write(f"$ {' '.join(command)}\n".replace(str(ROOT), "."))
    log.flush()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MINIPPO_GPU_TINY": "1" if TINY else "", "MINIPPO_GPU_WORK": str(WORK),
                                "OMP_NUM_THREADS": "1" if TINY else "4"}
    if "suite" in log.name:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    if SHARED.is_dir():
        environment.setdefault("TIKTOKEN_CACHE_DIR", str(SHARED / "tiktoken-cache"))
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment, cwd=ROOT,
                            start_new_session=True)


def wait(processes: list[subprocess.Popen], until: float) -> list[int]:
    """Their exit statuses; what still runs at that time is killed, with its children."""
    for process in processes:
        try:
            process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return [process.returncode for process in processes]


def run(part: Part, until: float) -> dict:
    """The record of a part: exit statuses up to the first failure, seconds, the end of its output, a bench's numbers."""
    begin, statuses, path = time.monotonic(), [], LOGS / f"{part.name}.log"
    with path.open("w") as log:
        for commands in [part.commands] if part.together else [[command] for command in part.commands]:
            statuses += wait([start(command, log) for command in commands], until)
            if any(statuses):
                break
    lines = [line for line in path.read_text(errors="replace").splitlines() if not re.match(r" *\d+ x ", line)]      # FakeCuda.report
    results = [WORK / f"{part.name}{which}.json" for which in ("", "-b")]
    ok = bool(statuses) and not any(statuses)
    said = "as expected" if ok else "left out" if not statuses else "out of time" if -signal.SIGKILL in statuses else "FAILED"
    return {"name": part.name, "outcome": said, "statuses": statuses, "seconds": round(time.monotonic() - begin, 1),
            "target_ms": part.target_ms, "output": lines[-40:],
            "results": [json.loads(path.read_text()) for path in results if path.exists()]}


def machine() -> dict:
    def said(*command: str) -> str:
        try:
            return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT).stdout.strip()
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{error}"
    return {"date": time.strftime("%Y-%m-%d %H:%M"), "tiny": TINY,
            "nvidia-smi": said("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"),
            "torch": said(sys.executable, "-c", "import torch; print(torch.__version__, torch.version.cuda)"),
            "commit": said("git", "rev-parse", "--short", "HEAD"), "processors": os.cpu_count()}


def markdown(report: dict) -> str:
    """The tables for README and SPEED.md, and what each part printed last."""
    rows = []
    for part in report["parts"]:
        for r in part["results"]:
            t, ms = r["seconds"], "{:.1f}".format
            median, least, most = (ms(1e3 * t["iteration"][name]) for name in ("median", "min", "max"))
            rows.append([part["name"], part["target_ms"] or "", f"{median} ({least} to {most})",
                         *(ms(1e3 * t[phase]["median"]) for phase in ("rollout", "scoring", "update")),
                         f"{r['decode_ms'] or 0:.3f}", f"{r['first_iteration_seconds']:.2f}", f"{r['share_of_limit']['iteration']:.0%}",
                         f"{(r['peak_memory_bytes'] - r['memory_at_start_bytes']) / 1e9:.2f}",
                         f"{r['memory_estimate_bytes'] / 1e9:.2f}"])
    head = ["workload", "target ms", "iteration ms, median (of)", "rollout", "scoring", "update", "a decode step", "first iteration s",
            "of the limit", "peak GB", "estimate GB"]
    table = ["| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows)]
    outcomes = [f"| {part['name']} | {part['outcome']} | {part['seconds']} |" for part in report["parts"]]
    ends = [f"\n## {part['name']}: {part['outcome']}\n\n```\n" + "\n".join(line[:300] for line in part["output"]) + "\n```"
            for part in report["parts"]]
    title = "# Measured on a GPU" if not report["machine"]["tiny"] else "# Tiny sizes on fake tensors: no number here means anything"
    return "\n".join([title, "", f"`{json.dumps(report['machine'])}`", "", *table, "", "| part | outcome | seconds |", "|---|---|---|",
                      *outcomes, *ends, ""])


def main() -> int:
    for folder in (LOGS, WORK):
        folder.mkdir(parents=True, exist_ok=True)
    begin, report, beside = time.monotonic(), {"machine": machine(), "parts": []}, []

    def write() -> None:
        (OUT / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")
        (OUT / "gpu.md").write_text(markdown(report))

    with ThreadPoolExecutor() as pool:
        for part in parts():
            until = min(time.monotonic() + part.seconds, begin + SECONDS)
            if part.beside:
                beside.append(pool.submit(run, part, until))
                continue
            report["parts"].append(run(part, until))
            print("{name:24} {outcome:12} {seconds:7} s".format(**report["parts"][-1]), flush=True)
            write()
        report["parts"] += [future.result() for future in beside]
    write()
    for name in ("config.json", "metrics.jsonl", "samples.jsonl", "report.html"):
        if (WORK / "positive" / name).exists():
            shutil.copy(WORK / "positive" / name, LOGS)
    shutil.rmtree(WORK)
    print(f"{OUT / 'gpu.md'} and gpu.json, {time.monotonic() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["pretrain"]:
        pretrain_gpt2(sys.argv[2])
    elif sys.argv[1:2] == ["minippo"]:
        sys.exit(tiny_minippo(sys.argv[2:]))
    else:
        sys.exit(main())
