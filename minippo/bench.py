"""How fast this machine trains, how fast it could, and how much memory that takes.

    python -m minippo bench                                         # GPT-2 124M, batch 8, queries of 8-16, 24 new tokens
    python -m minippo bench --model gpt2-xl --device cuda --batch 64 --query-max 64 --memory-gb 80 --dry-run     # bytes alone

Weights and queries are random and EOS is off, so that every iteration does the same work. Next to each time stands its limit,
the time of a program that wastes nothing: the larger of FLOPs / (rate of matrix products) and bytes / (memory bandwidth), with
both rates measured here, after the workload. It counts real tokens, no padding, what causal attention sees and no more, and no
arithmetic besides products; the fp32 head is charged at the rate of the blocks' precision.

Memory is in bytes, 1 GB = 10^9 of them, time in seconds.
Shapes: B batch, Q query length, R new tokens, L layers, C width, H heads, V vocabulary.
"""

import json
import math
import os
import statistics
import time
from dataclasses import asdict, dataclass
from typing import Callable

import torch
from torch import Tensor

from .files.atomic import write_json
from .fast import KEPT_DECODERS, linear
from .gpt2 import GPT2Config
from .inputs import require
from .metrics import Stopwatch, peak_memory
from .policy import CHUNK_LOGITS, GPT2WithValueHead
from .ppo import PPOConfig, PPOTrainer

SIZES = {"gpt2": GPT2Config(), "distilgpt2": GPT2Config(n_layer=6), "gpt2-medium": GPT2Config(n_embd=1024, n_layer=24, n_head=16),
         "gpt2-large": GPT2Config(n_embd=1280, n_layer=36, n_head=20), "gpt2-xl": GPT2Config(n_embd=1600, n_layer=48, n_head=25),
         "tiny": GPT2Config(vocab_size=512, n_positions=128, n_embd=64, n_layer=2, n_head=4)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PHASES = ("rollout", "scoring", "update", "iteration")
LEARNING_RATE = 1e-6


@dataclass(frozen=True)
class BenchConfig:
    """A workload, and how it is measured."""
    # workload
    model: str = "gpt2"                     # distilgpt2, gpt2, gpt2-medium, gpt2-large, gpt2-xl or tiny; nothing is downloaded
    batch: int = 8                          # responses per iteration
    query_min: int = 8                      # tokens of the shortest query; the lengths are spread evenly up to ...
    query_max: int = 16                     # ... the longest
    new_tokens: int = 24                    # tokens of each response
    ppo_epochs: int = 4                     # passes over the batch in an update
    mini_batch_size: int | None = None      # responses per forward and backward pass; none: the whole batch
    gradient_accumulation_steps: int = 1    # passes per optimizer step
    advantage: str = "gae"                  # gae: with a value head; reinforce, rloo, grpo: without
    group_size: int = 1                     # consecutive responses to each query
    # machine
    device: str | None = None               # cpu, cuda or cuda:1; none: CUDA where there is one
    dtype: str | None = None                # of the blocks: float32, bfloat16 or float16; none: bfloat16 on a GPU that has it
    gradient_checkpointing: bool = False    # recompute the blocks in the backward pass
    compile: bool = False                   # torch.compile each block
    # measurement
    iterations: int = 5                     # measured iterations
    warmup: int = 1                         # iterations before them; the first of all is also reported apart
    ceiling_seconds: float = 0.5            # time for each of the machine's rates; longer is steadier on a busy machine
    json: str | None = None                 # file to write the result to, as JSON
    # estimate
    dry_run: bool = False                   # run nothing: print the memory that training takes, and whether it fits
    memory_gb: float | None = None          # fit into this many GB; none: into the device's own memory

    def __post_init__(self):
        for name, known in (("model", SIZES), ("dtype", DTYPES)):
            if getattr(self, name) not in (None, *known):
                raise ValueError(f"{name}: expected one of {', '.join(known)}; got {getattr(self, name)!r}")
        require(self, "batch query_min new_tokens ppo_epochs gradient_accumulation_steps iterations", "at least 1", lambda n: n >= 1)
        require(self, "mini_batch_size", "none or at least 1", lambda n: n >= 1, optional=True)
        require(self, "warmup ceiling_seconds", "at least 0", lambda x: x >= 0)
        require(self, "memory_gb", "none or above 0", lambda x: x > 0, optional=True)
        PPOConfig(batch_size=self.batch, advantage=self.advantage, group_size=self.group_size)          # refuses what it cannot be
        room = self.sizes.n_positions - self.new_tokens
        require(self, "query_max", f"at least query_min, {self.query_min}, and at most the {self.sizes.n_positions} positions of "
                f"{self.model} less new_tokens, {room}", lambda n: self.query_min <= n <= room)

    @property
    def sizes(self) -> GPT2Config:
        return SIZES[self.model]

    @property
    def query_lengths(self) -> list[int]:
        """From query_min to query_max in even steps; a single query has the length in the middle. The same within a group."""
        groups = self.batch // self.group_size
        steps = [g / (groups - 1) if groups > 1 else 0.5 for g in range(groups) for _ in range(self.group_size)]
        return [self.query_min + round((self.query_max - self.query_min) * step) for step in steps]

    @property
    def micro_batch(self) -> int:
        """Responses in a forward and backward pass."""
        return min(self.mini_batch_size or self.batch, self.batch)

    @property
    def updates(self) -> int:
        """Optimizer steps in an iteration."""
        return self.ppo_epochs * math.ceil(self.batch / (self.micro_batch * self.gradient_accumulation_steps))

    @property
    def on_cuda(self) -> bool:
        return self.device.startswith("cuda") if self.device else torch.cuda.is_available()

    @property
    def precision(self) -> str:
        """The blocks' dtype; a GPU that is not here, in a dry run, is taken to have bf16."""
        native = self.on_cuda and (not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False))
        return self.dtype or ("bfloat16" if native else "float32")


# --- the limit ------------------------------------------------------------------------------------------------------

def block_weights(sizes: GPT2Config) -> int:
    """Weights in the blocks that every token is multiplied with: C x 3C, C x C, C x 4C and 4C x C a layer."""
    return 12 * sizes.n_layer * sizes.n_embd**2


def parameter_count(sizes: GPT2Config) -> int:
    """The parameters of a GPT2WithValueHead: embeddings, blocks (13 C of biases and layer norms each), ln_f, value head."""
    C = sizes.n_embd
    return (sizes.vocab_size + sizes.n_positions) * C + block_weights(sizes) + 13 * C * sizes.n_layer + 2 * C + C + 1


def forward_flops(sizes: GPT2Config, tokens: int, seen: int, head_tokens: int) -> int:
    """FLOPs of a forward pass over `tokens` tokens that see `seen` tokens in all, with the head at `head_tokens` of them.

    2 a token and weight in blocks and head, and 4 L C for each token seen (q k, then p v). Tokens 1..T see T (T + 1) / 2.
    """
    return (2 * block_weights(sizes) * tokens + 4 * sizes.n_layer * sizes.n_embd * seen
            + 2 * sizes.vocab_size * sizes.n_embd * head_tokens)


def iteration_work(sizes: GPT2Config, query_lengths: list[int], new_tokens: int, ppo_epochs: int, updates: int,
                   itemsize: int) -> dict[str, tuple[int, int]]:
    """FLOPs and bytes that each part of an iteration cannot do without; `itemsize`: bytes of a number in the products.

    A response's last token is never fed to the model. A decode step reads all weights and the keys and values so far (2 L C a
    token), and its V fp32 numbers a row move three times. Backward is twice forward. Adam reads parameter, gradient and two
    moments and writes all but the gradient: 28 bytes a parameter.
    """
    B, R, V = len(query_lengths), new_tokens, sizes.vocab_size
    lengths = [length + R - 1 for length in query_lengths]
    forward = forward_flops(sizes, sum(lengths), sum(T * (T + 1) // 2 for T in lengths), B * R)
    prefill = forward_flops(sizes, sum(query_lengths), sum(T * (T + 1) // 2 for T in query_lengths), B)
    seen = (R - 1) * sum(query_lengths) + B * R * (R - 1) // 2          # row b's steps see Q_b + 1, ..., Q_b + R - 1 tokens
    weights = itemsize * (block_weights(sizes) + V * sizes.n_embd)
    keys_values = itemsize * 2 * sizes.n_layer * sizes.n_embd
    return {
        "prefill": (prefill, weights),
        "decode": (forward_flops(sizes, B * (R - 1), seen, B * (R - 1)), (R - 1) * (weights + 12 * V * B) + keys_values * seen),
        "scoring": (2 * forward, 2 * weights),                          # policy and reference
        "training": (3 * ppo_epochs * forward, 3 * updates * weights),
        "optimizer": (0, 28 * parameter_count(sizes) * updates),
    }


def limit_seconds(work: dict[str, tuple[int, int]], flops_per_second: float, bytes_per_second: float) -> dict[str, float]:
    """The shortest possible time of each phase, and of decoding alone, on a machine of these rates."""
    t = {part: max(flops / flops_per_second, size / bytes_per_second) for part, (flops, size) in work.items()}
    return {"rollout": t["prefill"] + t["decode"], "scoring": t["scoring"], "update": t["training"] + t["optimizer"],
            "iteration": sum(t.values()), "decode": t["decode"]}


def best_seconds(run: Callable[[], object], device: torch.device, budget: float) -> float:
    """The shortest time that `run` takes, tried for `budget` seconds; on CUDA between two events on the stream."""
    run()
    best, end = math.inf, time.perf_counter() + budget
    while math.isinf(best) or time.perf_counter() < end:
        clock = Stopwatch(device)
        run()
        clock.lap("run")
        best = min(best, clock.seconds()["run"])
    return best


def measure_ceilings(sizes: GPT2Config, precision: str, device: torch.device, budget: float) -> dict[str, float]:
    """The machine's rates: FLOP/s of matrix products in each precision, bytes/s of memory read and copied.

    The best of several shapes: those of the blocks' widest product at 64, 512 and 2048 tokens, and on CUDA a large square.
    There fp32 is TF32 where the blocks are not fp32: the trainer allows it to the head.
    """
    C, rates = sizes.n_embd, {}
    shapes = [(M, C, 4 * C) for M in (64, 512, 2048)] + [(8192, 8192, 8192)] * (device.type == "cuda")
    for name in dict.fromkeys(("float32", "bfloat16", precision)):
        for M, K, N in shapes:
            x, weight = (torch.randn(rows, K, device=device, dtype=DTYPES[name]) for rows in (M, N))
            rate = 2 * M * K * N / best_seconds(lambda: linear(x, weight), device, budget / len(shapes))
            rates[name] = max(rate, rates.get(name, 0.0))
    source = torch.ones(2**28 if device.type == "cuda" else 2**26, device=device)       # 1 GiB, 256 MiB: beyond every cache
    target = torch.zeros_like(source)
    rates["read"] = source.nbytes / best_seconds(source.sum, device, budget)
    rates["copy"] = 2 * source.nbytes / best_seconds(lambda: target.copy_(source), device, budget)
    return rates


# --- memory ---------------------------------------------------------------------------------------------------------

def memory_estimate(config: BenchConfig) -> dict[str, int]:
    """Bytes of tensors on the device while this workload trains, by purpose.

    Their sum estimates the peak (tests/SPEED.md compares): gradients, activations and key/value cache are not at their largest at
    the same moment; fragments, and what the process holds besides tensors, come on top.
    """
    sizes, size = config.sizes, DTYPES[config.precision].itemsize
    L, C, V, N = sizes.n_layer, sizes.n_embd, sizes.vocab_size, parameter_count(sizes)
    blocks = block_weights(sizes) + 13 * L * C
    snapshot = size * blocks if size < 4 else 0                         # the blocks' weights, cast
    tokens = config.micro_batch * (config.query_max + config.new_tokens - 1)
    # a block keeps for its backward pass, in C a token: input, ln_1, q, k, v, attention, residual, ln_2, 4 before gelu, 4 after;
    # besides, 4 statistics of layer norms and H of softmax a token; and its weights, cast anew in every pass
    block = tokens * (16 * C * size + 4 * (4 + sizes.n_head)) + snapshot // L
    activations = block + L * tokens * C * size if config.gradient_checkpointing else L * block
    columns = -(-(config.query_max + config.new_tokens) // 16) * 16     # of the cache, see generation.generate
    return {
        "parameters": 4 * N,
        "gradients": 4 * (N + 2 * V * C),           # the table's once more for the lookup, and while that of a second micro-batch is added
        "Adam moments": 8 * N,
        "reference": 4 * (N - blocks) + size * blocks,
        "rollout snapshot": snapshot,
        "activations": activations + 4 * tokens * C,                    # and ln_f's input, fp32
        # logits, log-probabilities and probabilities, fp32, and later their gradient in place of two; at most a chunk at a time
        "logits": 3 * 4 * min(config.micro_batch * config.new_tokens * V, CHUNK_LOGITS),
        "KV cache": (KEPT_DECODERS if config.on_cuda else 1) * 2 * L * config.batch * columns * C * size,
        "CUDA graphs": KEPT_DECODERS * 4 * 4 * config.batch * V if config.on_cuda else 0,       # four (B, V) fp32 in a decode step
    }


def print_estimate(config: BenchConfig) -> bool:
    """Print the memory estimate as a table and as JSON; returns whether it fits, with a tenth left for all but tensors."""
    estimate = memory_estimate(config)
    if config.memory_gb is not None:
        memory = config.memory_gb * 1e9
    elif not config.on_cuda:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    elif torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(config.device or "cuda").total_memory
    else:
        raise ValueError("there is no GPU here to ask for its memory: give --memory-gb")
    fits = sum(estimate.values()) <= 0.9 * memory
    for name, size in (estimate | {"sum": sum(estimate.values())}).items():
        print(f"{name:16} {size:16,d} bytes {size / 1e9:8.2f} GB")
    print(f"{'fits into' if fits else 'does NOT fit into'} {memory / 1e9:.1f} GB, a tenth of it left for fragments and the process")
    if not fits:
        print("less memory: a smaller --mini-batch-size with --gradient-accumulation-steps, --gradient-checkpointing, --dtype bfloat16")
    print(json.dumps({"workload": asdict(config), "memory_estimate_bytes": estimate, "memory_bytes": memory, "fits": fits}))
    return fits


# --- the measurement ------------------------------------------------------------------------------------------------

def make_queries(config: BenchConfig) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    queries = [torch.randint(0, config.sizes.vocab_size, (n,), generator=generator) for n in config.query_lengths]
    return [queries[b - b % config.group_size] for b in range(config.batch)]


def make_trainer(config: BenchConfig) -> PPOTrainer:
    """The trainer of this workload, with random weights; a small learning rate keeps every ratio below its threshold."""
    torch.manual_seed(0)
    with torch.device(config.device or ("cuda" if config.on_cuda else "cpu")):
        model = GPT2WithValueHead(config.sizes, dtype=DTYPES[config.precision])
    return PPOTrainer(PPOConfig(batch_size=config.batch, mini_batch_size=config.micro_batch, ppo_epochs=config.ppo_epochs,
                                gradient_accumulation_steps=config.gradient_accumulation_steps, learning_rate=LEARNING_RATE,
                                gradient_checkpointing=config.gradient_checkpointing, compile=config.compile,
                                advantage=config.advantage, group_size=config.group_size), model)


def run_iteration(config: BenchConfig, trainer: PPOTrainer, queries: list[Tensor]) -> dict[str, float]:
    """Seconds of each phase of one iteration. The scores cost nothing."""
    start = time.perf_counter()
    responses = trainer.generate(queries, max_new_tokens=config.new_tokens, eos_token_id=None)      # ends in a host sync
    rollout = time.perf_counter() - start
    stats = trainer.step(queries, responses, [float(b % 2 == 0) for b in range(config.batch)])      # and so does this
    iteration = time.perf_counter() - start
    if stats["ppo/updates"] != config.updates:
        raise FloatingPointError(f"{stats['ppo/updates']:g} of {config.updates} optimizer steps were made, so the times mean nothing")
    return {"rollout": rollout, "scoring": stats["time/ppo/forward_pass"], "update": stats["time/ppo/optimize_step"],
            "iteration": iteration}


def measure(config: BenchConfig) -> dict:
    """Run the workload, then measure the machine; every number of the report."""
    device = torch.device(config.device or ("cuda" if config.on_cuda else "cpu"))
    at_start = peak_memory(device)
    trainer, queries = make_trainer(config), make_queries(config)
    work = iteration_work(config.sizes, config.query_lengths, config.new_tokens, config.ppo_epochs, config.updates,
                          DTYPES[config.precision].itemsize)
    runs = [run_iteration(config, trainer, queries) for _ in range(config.warmup)]
    start = time.perf_counter(), time.process_time()
    runs += [run_iteration(config, trainer, queries) for _ in range(config.iterations)]
    wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
    peak = peak_memory(device)                                          # before other shapes and the ceilings take theirs
    prefill = best_seconds(lambda: trainer.generate(queries, max_new_tokens=1, eos_token_id=None), device, config.ceiling_seconds)
    del trainer
    ceilings = measure_ceilings(config.sizes, config.precision, device, config.ceiling_seconds)
    rate, bandwidth = ceilings[config.precision], max(ceilings["read"], ceilings["copy"])
    limits = limit_seconds(work, rate, bandwidth)
    times = {phase: [run[phase] for run in runs[config.warmup:]] for phase in PHASES}
    medians = {phase: statistics.median(times[phase]) for phase in PHASES}
    steps = config.new_tokens - 1
    return {
        "workload": asdict(config) | {"dtype": config.precision, "device": str(device)},
        "machine": torch.cuda.get_device_name(device) if config.on_cuda else
                   f"CPU, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"),
        "ceilings": ceilings,
        "seconds": {phase: {"median": medians[phase], "min": min(times[phase]), "max": max(times[phase])} for phase in PHASES},
        "limit_seconds": limits,
        "share_of_limit": {phase: limits[phase] / medians[phase] for phase in PHASES},
        "first_iteration_seconds": runs[0]["iteration"],
        "response_tokens_per_second": config.batch * config.new_tokens / medians["iteration"],
        "decode_ms": 1000 * (medians["rollout"] - prefill) / steps if steps else None,
        "decode_limit_ms": 1000 * limits["decode"] / steps if steps else None,
        "flops_utilisation": sum(flops for flops, _ in work.values()) / medians["iteration"] / rate,
        "peak_memory_bytes": peak, "memory_at_start_bytes": at_start, "memory_estimate_bytes": sum(memory_estimate(config).values()),
        "cores_used": cpu / wall,
    }


def print_result(config: BenchConfig, result: dict) -> None:
    """A table to read, and the JSON object with all of it."""
    print(f"{config.model}, batch {config.batch}, queries {config.query_min}-{config.query_max}, {config.new_tokens} new tokens, "
          f"{config.ppo_epochs} epochs, {config.updates} optimizer steps, {config.precision}")
    print(f"{result['machine']}, torch {result['torch']}, {result['date']}\n")
    print("ceilings        " + "   ".join(f"{name} {rate / 1e9:,.0f} {'GB/s' if name in ('read', 'copy') else 'GFLOP/s'}"
                                          for name, rate in result["ceilings"].items()))
    print(f"{'seconds':15} {'median':>9} {'min':>9} {'max':>9} {'limit':>9}   of the limit")
    for phase in PHASES:
        numbers = [*result["seconds"][phase].values(), result["limit_seconds"][phase]]
        print(f"{phase:15}" + "".join(f" {x:9.4f}" for x in numbers) + f"   {result['share_of_limit'][phase]:.0%}")
    print(f"{'first iteration':15} {result['first_iteration_seconds']:9.4f}")
    if result["decode_ms"] is not None:
        print(f"decode          {result['decode_ms']:.2f} ms a step, limit {result['decode_limit_ms']:.2f} ms")
    print(f"throughput      {result['response_tokens_per_second']:,.1f} response tokens/s, {result['flops_utilisation']:.0%} of the "
          f"{config.precision} rate in model FLOPs")
    print(f"peak memory     {result['peak_memory_bytes'] / 1e9:.2f} GB, of which {result['memory_at_start_bytes'] / 1e9:.2f} before the "
          f"model; estimated for the tensors {result['memory_estimate_bytes'] / 1e9:.2f}")
    if not config.on_cuda:
        busy = " (the machine was busy with other things: measure again)" * (result["cores_used"] < 0.9 * torch.get_num_threads())
        print(f"cores used      {result['cores_used']:.2f} of {torch.get_num_threads()}{busy}")
    print("\n" + json.dumps(result))


def run_bench(config: BenchConfig) -> int:
    """Measure the workload, or with dry_run estimate its memory. Returns the exit status: 1 if it would not fit."""
    if config.dry_run:
        return 0 if print_estimate(config) else 1
    try:
        torch.empty(1, device=config.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"no device {config.device!r} here; --dry-run works without it") from error
    result = measure(config)
    print_result(config, result)
    if config.json is not None:
        write_json(config.json, result)
    return 0
