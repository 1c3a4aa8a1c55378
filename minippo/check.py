"""Does it hold here? About ten invariants of GPT-2 and PPO on the actual device, precision and weights, as a table.

Run `python -m minippo check` (a small random model) or `python -m minippo check --model gpt2`, before a long run or for a bug
report. The exit code is 0 when all hold.
"""

import tempfile
import time
from typing import Iterator, NamedTuple

import torch
from torch import Tensor

from . import ppo
from .gpt2 import GPT2Config
from .metrics import peak_memory
from .policy import GPT2WithValueHead, response_logprobs
from .ppo import PPOConfig, PPOTrainer

# greedy continuation of "The dog" by the public gpt2, from transformers' own tests
GREEDY_TOKENS = [373, 1043, 287, 257, 2214, 1474, 262, 16246, 286, 2688, 290, 2688, 27262, 13, 198, 198, 464, 3290]


class Row(NamedTuple):
    name: str
    value: str
    expected: str
    ok: bool


def at_most(name: str, value: float, limit: float) -> Row:
    return Row(name, f"{value:.2g}", "0" if limit == 0 else f"<= {limit:g}", value <= limit)


def small_model(device: torch.device, dtype: torch.dtype | None) -> GPT2WithValueHead:
    """A random GPT-2 whose weights are large enough that its distributions are far from uniform."""
    model = GPT2WithValueHead(GPT2Config(257, 128, 64, 2, 4), dtype=dtype, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.transformer.parameters():
            parameter.mul_(4.0 if parameter.dim() > 1 else 1.0)
    return model.to(device)


def ragged_batch(model: GPT2WithValueHead, lengths: list[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, model.config.vocab_size, (n,), generator=generator) for n in lengths]


def check_cache(model: GPT2WithValueHead) -> Row:
    """Greedy tokens of ragged queries, decoded with the cache: how far they are from the likeliest of a full forward pass."""
    queries, worst = ragged_batch(model, [3, 9, 1, 6]), 0.0
    for query, response in zip(queries, model.generate(queries, max_new_tokens=8, do_sample=False)):
        with torch.no_grad():
            logprobs = model(torch.cat([query.to(response), response])[None])[0][0].log_softmax(-1)[len(query) - 1:-1]
        worst = max(worst, float((logprobs.amax(-1) - logprobs.gather(1, response[:, None])[:, 0]).max()))
    exact = model.transformer.compute_dtype == torch.float32 and model.device.type == "cpu"
    return at_most("cached decoding = full forward", worst, 1e-4 if exact else 0.5)


def check_precision(model: GPT2WithValueHead, queries: list[Tensor], responses: list[Tensor]) -> Row:
    """Mean change of a response token's log-probability when the blocks compute in bf16 instead of fp32."""
    chosen, logprobs = model.transformer.dtype, []
    with torch.no_grad():
        for model.transformer.dtype in (torch.float32, torch.bfloat16):
            out, _, mask = response_logprobs(model, queries, responses)
            logprobs.append(out[mask])
    model.transformer.dtype = chosen
    return at_most("bf16 blocks: mean |log-probability - fp32|", float((logprobs[0] - logprobs[1]).abs().mean()), 0.05)


def check_saving(model: GPT2WithValueHead) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = GPT2WithValueHead.from_pretrained(folder, device=model.device).state_dict()
    different = sum(not torch.equal(p, loaded[name]) for name, p in model.state_dict().items())
    return at_most("save, load: tensors that differ", different, 0)


def check_gae() -> Row:
    """Exact in binary: rewards (0, 0, 1), values (.5, .25, .5), gamma 1, lambda .5 -> advantages (0, .5, .5)."""
    values, rewards, mask = torch.tensor([[.5, .25, .5]]), torch.tensor([[0, 0, 1.0]]), torch.ones(1, 3, dtype=torch.bool)
    advantages, returns = ppo.compute_advantages(values, rewards, mask, gamma=1.0, lam=0.5)
    error = (advantages - torch.tensor([0, .5, .5])).abs().max() + (returns - torch.tensor([.5, .75, 1])).abs().max()
    return at_most("GAE by hand: error", float(error), 0)


def check_closed_form(device: torch.device) -> Row:
    """PPO on one-token responses reaches pi*(a) ~ pi_ref(a) * exp(score(a) / kl_coef)."""
    model = GPT2WithValueHead(GPT2Config(6, 4, 16, 1, 2), torch.float32, torch.Generator().manual_seed(0)).to(device)
    scores, updates, batch, query = torch.tensor([0.0, 1.0, -1.0, 0.5, 0.2, -0.3]), 100, 256, torch.tensor([1])
    trainer = PPOTrainer(PPOConfig(adap_kl_ctrl=False, init_kl_coef=0.5, learning_rate=1e-2, mini_batch_size=batch, vf_coef=0.5), model)
    for update in range(updates):
        trainer.optimizer.param_groups[0]["lr"] = 1e-2 * (1 - update / updates)
        responses = trainer.generate([query] * batch, max_new_tokens=1)
        trainer.step([query] * batch, responses, scores[torch.cat(responses).cpu()])
    with torch.no_grad():
        logprobs, ref_logprobs = (response_logprobs(m, [query] * 6, [torch.tensor([a]) for a in range(6)])[0][:, 0].cpu()
                                  for m in (model, trainer.ref_model))
    optimum = (ref_logprobs + scores / 0.5).softmax(0)
    return at_most("closed-form optimum: total variation", float(0.5 * (logprobs.exp() - optimum).abs().sum()), 0.02)


def check_greedy(model: GPT2WithValueHead) -> Row:
    response = model.generate([torch.tensor([464, 3290])], max_new_tokens=18, do_sample=False)[0].tolist()
    return at_most("gpt2: published greedy tokens that differ", sum(a != b for a, b in zip(response, GREEDY_TOKENS)), 0)


def all_checks(name: str | None, device: torch.device, dtype: torch.dtype | None) -> Iterator[Row]:
    """The rows of the table, cheapest first; the model is trained only on a copy of its weights in memory."""
    yield check_gae()
    yield check_closed_form(device)
    model = GPT2WithValueHead.from_pretrained(name, device, dtype) if name else small_model(device, dtype)
    if name in ("gpt2", "openai-community/gpt2"):
        yield check_greedy(model)
    yield check_cache(model)
    yield check_saving(model)

    start = time.perf_counter()
    queries = ragged_batch(model, [4, 9, 2, 6])
    trainer = PPOTrainer(PPOConfig(mini_batch_size=2, gradient_accumulation_steps=2, ppo_epochs=2, learning_rate=1e-4), model)
    responses = trainer.generate(queries, max_new_tokens=16)
    reference = [p.clone() for p in trainer.ref_model.parameters()]
    stats = trainer.step(queries, responses, [float(len(set(r.tolist()))) for r in responses])
    seconds = time.perf_counter() - start
    ratio = stats["ppo/policy/ratio"][:4 * 16]                          # the first optimizer step saw all 4 * 16 tokens
    yield at_most("first minibatch: max |ratio - 1|", float((ratio - 1).abs().max()), 0)
    yield at_most("KL against a fresh reference", abs(stats["objective/kl"]), 0)
    moved = sum(not torch.equal(a, b) for a, b in zip(reference, trainer.ref_model.parameters()))
    yield at_most("reference tensors moved by a step", moved, 0)
    yield at_most("optimizer steps skipped, of 2", 2 - stats["ppo/updates"], 0)
    yield check_precision(model, queries, [r.cpu() for r in responses])
    yield Row("seconds: generate 4 x 16 tokens, step", f"{seconds:.2f}", "", True)
    yield Row("peak memory, MB", f"{peak_memory(device) / 1e6:.0f}", "", True)


def run_checks(model: str | None, device: str | torch.device, dtype: torch.dtype | None = None) -> int:
    """Print the table for a public name or a model folder, None: a small random model; returns 0 if every row holds, else 1."""
    device = torch.device(device)
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"minippo check: {model or 'a small random model'} on {device} ({what}), torch {torch.__version__}, "
          f"blocks in {dtype or 'the default precision'}\n")
    print(f"{'invariant':<46} {'value':>18}  {'expected':<18} ok")
    failed = 0
    for row in all_checks(model, device, dtype):
        print(f"{row.name:<46} {row.value:>18}  {row.expected:<18} {'ok' if row.ok else 'NO'}", flush=True)
        failed += not row.ok
    print(f"\n{failed} of the invariants do not hold" if failed else "\nall invariants hold")
    return int(failed > 0)
