"""One PPO workload through TRL 0.11.4, tuned, and through minippo: the ratios of their times and of their peak memory.

    python tests/peers/bench_trl.py --model gpt2 --batch 8 --query-min 8 --query-max 16 --new-tokens 24
    python tests/peers/bench_trl.py --model gpt2 --batch 1 --query-min 8 --query-max 8 --new-tokens 20          # the quickstart

Needs the packages of tests/peers/requirements.txt; downloads nothing, the weights are random. Each side lives in a process of
its own, as a user runs it, so that neither sees the other's memory, threads or allocator setting (--same-allocator gives it to
both, MINIPPO_MALLOC=0 in the environment to neither). They take turns, A B A B, on the same queries, and every iteration must
have done the same work on both sides, or there is no result.

TRL is tuned as far as its interface goes: one batch in generate, the largest minibatch, fused Adam, no logging, no search for
EOS, no dropout. The scores cost nothing; what both sides have a default for, they have the same.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PHASES = ("rollout", "step", "iteration")


# --- the two sides: model, optimizer, generate(queries) and step(queries, responses, scores) --------------------------------

def minippo_side(job: dict):
    """The trainer that `python -m minippo bench` measures."""
    sys.path.insert(0, str(ROOT))
    from minippo.bench import BenchConfig, make_trainer
    config = BenchConfig(**job["config"])
    trainer = make_trainer(config)
    return (trainer.model, trainer.optimizer,
            lambda queries: trainer.generate(queries, max_new_tokens=config.new_tokens, eos_token_id=None), trainer.step)


def trl_side(job: dict):
    """TRL's trainer. Its tokenizer only pads here, so that one of a single word will do."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
    from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer
    warnings.simplefilter("ignore")                             # TRL's PPOTrainer is deprecated and has no data set
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(GPT2Config(**job["sizes"], bos_token_id=None, embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0))
    model = AutoModelForCausalLMWithValueHead.from_pretrained(gpt2, summary_dropout_prob=0.0)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"x": 0}, "x")), eos_token="x", pad_token="x")
    batch, on_cpu = job["config"]["batch"], job["config"]["device"] == "cpu"
    precision = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[job["trl_dtype"]]
    config = PPOConfig(batch_size=batch, mini_batch_size=job["config"]["mini_batch_size"] or batch, log_with=None,
                       ppo_epochs=job["config"]["ppo_epochs"], learning_rate=job["learning_rate"],
                       accelerator_kwargs={"cpu": on_cpu, "mixed_precision": precision})
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
    trainer = PPOTrainer(config, model, tokenizer=tokenizer, optimizer=optimizer)
    return (model, optimizer,
            lambda queries: trainer.generate(queries, batch_size=batch, return_prompt=False, remove_padding=False, do_sample=True,
                                             top_k=0, top_p=1.0, pad_token_id=0, max_new_tokens=job["config"]["new_tokens"]),
            lambda queries, responses, scores: trainer.step(queries, responses, [torch.tensor(score) for score in scores]))


# --- a worker: reads a job, then a line for each iteration; answers each line with one of JSON ------------------------------

def peak_memory(torch) -> int:
    """Most bytes so far: of tensors on CUDA, of the whole process on a CPU."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def work() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)                                               # what a package prints does not get between the answers
    job = json.loads(sys.stdin.readline())
    if job["same_allocator"]:
        sys.path.insert(0, str(ROOT))
        import minippo                                          # noqa: F401  which sets the allocator
    import torch
    model, optimizer, generate, step = {"minippo": minippo_side, "trl": trl_side}[job["side"]](job)
    parameters, steps = list(model.parameters()), []
    optimizer.register_step_post_hook(lambda *_: steps.append(1))
    generator = torch.Generator().manual_seed(0)
    queries = [torch.randint(0, job["sizes"]["vocab_size"], (n,), generator=generator).to(parameters[0].device) for n in job["lengths"]]
    answers.write(json.dumps({"modules": [name for name in ("minippo", "trl") if name in sys.modules], "torch": torch.__version__,
                              "threads": torch.get_num_threads(), "capability": torch.backends.cpu.get_cpu_capability()}) + "\n")
    for _ in sys.stdin:
        before, steps[:] = [p.detach().flatten()[:64].clone() for p in parameters], []      # the first numbers of each tensor
        start, cpu_start = time.perf_counter(), time.process_time()
        responses = generate(queries)
        middle = time.perf_counter()
        step(queries, responses, [float(b % 2 == 0) for b in range(len(queries))])
        end, cpu = time.perf_counter(), time.process_time() - cpu_start
        moved = [p for p, old in zip(parameters, before) if not torch.equal(p.detach().flatten()[:64], old)]
        answers.write(json.dumps({
            "rollout": middle - start, "step": end - middle, "iteration": end - start, "cores": cpu / (end - start),
            "peak": peak_memory(torch),
            "work": {"response tokens": [len(response) for response in responses], "optimizer steps": len(steps),
                     "parameters moved": sum(p.numel() for p in moved)}}) + "\n")


# --- the comparison ---------------------------------------------------------------------------------------------------------

def ask(side: str, worker: subprocess.Popen, line: str = "") -> dict:
    """Send a line, wait for the answer."""
    print(line, file=worker.stdin, flush=True)
    answer = worker.stdout.readline()
    if not answer:
        raise SystemExit(f"the process of {side} ended; its error stands above")
    return json.loads(answer)


def compare(job: dict, warmup: int, iterations: int) -> dict:
    """Both sides in turns; SystemExit if their work differs."""
    runs = {"minippo": [], "trl": []}
    with ExitStack() as stack:
        workers, hello = {}, {}
        for side in runs:
            workers[side] = stack.enter_context(subprocess.Popen([sys.executable, __file__, "--worker"], text=True,
                                                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            hello[side] = ask(side, workers[side], json.dumps(job | {"side": side}))
        for i in range(warmup + iterations):
            for side, worker in workers.items():
                runs[side].append(ask(side, worker))
            ours, theirs = (runs[side][-1]["work"] for side in runs)
            if ours != theirs:
                raise SystemExit(f"iteration {i}: the work differs, so that times cannot be compared: minippo {ours}, TRL {theirs}")
    spread = {side: {phase: {"median": statistics.median(times), "min": min(times), "max": max(times)} for phase in PHASES
                     for times in [[run[phase] for run in runs[side][warmup:]]]} for side in runs}
    peaks = {side: runs[side][-1]["peak"] for side in runs}
    return job | {
        "processes": hello, "versions": {name: version(name) for name in ("torch", "trl", "transformers")},
        "date": time.strftime("%Y-%m-%d"), "work": ours, "seconds": spread, "peak_memory_bytes": peaks,
        "first_iteration_seconds": {side: runs[side][0]["iteration"] for side in runs},
        "cores_used": {side: statistics.median(run["cores"] for run in runs[side][warmup:]) for side in runs},
        "trl_over_minippo": {phase: spread["trl"][phase]["median"] / spread["minippo"][phase]["median"] for phase in PHASES},
        "peak_minippo_over_trl": peaks["minippo"] / peaks["trl"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    for name, default in (("batch", 8), ("query-min", 8), ("query-max", 16), ("new-tokens", 24), ("ppo-epochs", 4),
                          ("mini-batch-size", None), ("iterations", 5), ("warmup", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--model", default="gpt2")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of minippo's blocks")
    parser.add_argument("--trl-dtype", choices=("float32", "bfloat16", "float16"), help="TRL's mixed precision [as --dtype]")
    parser.add_argument("--compile", action="store_true", help="of minippo's blocks; TRL's trainer has no such thing")
    parser.add_argument("--same-allocator", action="store_true", help="minippo's allocator setting for TRL's process, too")
    options = vars(parser.parse_args())
    sys.path.insert(0, str(ROOT))
    from minippo.bench import LEARNING_RATE, BenchConfig
    trl_dtype, same_allocator = (options.pop(name) for name in ("trl_dtype", "same_allocator"))
    config = BenchConfig(**options)
    result = compare({"config": asdict(config), "sizes": asdict(config.sizes), "lengths": config.query_lengths,
                      "learning_rate": LEARNING_RATE, "trl_dtype": trl_dtype or config.dtype, "same_allocator": same_allocator},
                     config.warmup, config.iterations)
    hello = result["processes"]["minippo"]
    print(f"{config.model}, batch {config.batch}, queries {config.query_min}-{config.query_max}, {config.new_tokens} new tokens, "
          f"{config.ppo_epochs} epochs; minippo {config.dtype}, TRL {trl_dtype or config.dtype}; allocator "
          f"{'the same' if same_allocator else 'as each sets it'}")
    print(f"{config.device}, {hello['capability']}, {hello['threads']} threads; "
          + ", ".join(f"{name} {number}" for name, number in result["versions"].items()) + f"; {result['date']}")
    print("the same work in every iteration: " + f"{sum(result['work']['response tokens'])} response tokens, "
          f"{result['work']['optimizer steps']} optimizer steps, {result['work']['parameters moved']:,d} parameters\n")
    print(f"{'seconds':12}{'minippo':^28}{'TRL':^28} TRL / minippo")
    for phase in PHASES:
        print(f"{phase:12}" + "".join("{median:10.3f} ({min:.3f}-{max:.3f})".format(**result["seconds"][side][phase]).ljust(28)
                                      for side in ("minippo", "trl")) + f" {result['trl_over_minippo'][phase]:.2f}")
    for name, key, scale in (("first", "first_iteration_seconds", 1), ("peak GB", "peak_memory_bytes", 1e9), ("cores used", "cores_used", 1)):
        print(f"{name:12}" + "".join(f"{result[key][side] / scale:10.3f}".ljust(28) for side in ("minippo", "trl")))
    print(f"peak memory, minippo / TRL: {result['peak_minippo_over_trl']:.2f}")
    print("\n" + json.dumps(result))


if __name__ == "__main__":
    work() if sys.argv[1:] == ["--worker"] else main()
