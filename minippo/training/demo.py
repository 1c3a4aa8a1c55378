"""The whole of RLHF in about a minute and from nothing: a language model, a reward model, PPO. No downloads.

    python -m minippo                                               # into runs/demo
    python -m minippo demo --kl-coef 0 --out runs/free              # the same without its KL penalty ...
    python -m minippo report runs/demo/ppo runs/free/ppo            # ... and the two side by side
    python -m minippo demo --target 0.9 --out runs/fast             # a race: how soon are fresh reviews that good? tests/SPEED.md

1. A tiny GPT-2 learns to write film reviews from a built-in corpus. It likes a film as often as not.
2. A reward model learns from pairs of reviews which of two is the better one.
3. PPO trains the writer to please the reward model. This stage is an ordinary training run: run.py, as for `train`.

The pairs were labelled by a rule, data.true_score, that neither the reward model nor PPO is told. So the demo can measure what no
real run can: whether the reviews became what was meant, or only what the reward model likes.
"""

import re
import time
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from statistics import fmean
from textwrap import wrap

import torch

from ..distributed import of_each, rank, start
from ..files.atomic import read_json, remove_leftovers, write_json, write_text
from ..files.tokenizer import load_tokenizer
from ..gpt2 import GPT2, GPT2Config
from ..inputs import require
from ..policy import GPT2WithValueHead, response_logprobs
from ..ppo import PPOConfig
from ..scoring.human import StopRun
from ..scoring.reward_model import RewardModel
from ..scoring.rewards import Reward
from .bpe import train_bpe
from .config import RunConfig, check_types, pick_device, pick_dtype, place
from .data import make_reviews, preference_pairs, review_queries, true_score
from .pretrain import PretrainConfig, pretrain
from .reward_training import RewardModelConfig, train_on_pairs
from .run import Result, train
from .run_folder import check_folder, lock, newest_checkpoint
from .terminal import say, visible

RESPONSE_TOKENS = 32        # limit of a response; most reviews end by themselves before it
OURS = re.compile(r"demo\.json|prompts\.txt|pretrained|reward-model")      # what a demo writes whole


@dataclass(frozen=True)
class DemoConfig:
    """The size and the strength of the demo; the defaults take about a minute on a CPU."""
    out: str = "runs/demo"          # folder to write; a demo that was stopped continues there
    seed: int = 0                   # of everything that is drawn at random
    width: int = 128                # of the tiny GPT-2 (n_embd), a multiple of 32; 128 gives it half a million weights
    reviews: int = 8000             # texts that it learns to write from
    pretrain_steps: int = 600       # optimizer steps that this takes, of 16 reviews each
    pairs: int = 4000               # preferences that the reward model learns from; with fewer it is easier to fool
    steps: int = 40                 # updates of PPO
    batch_size: int = 64            # responses per update
    kl_coef: float = 0.15           # weight of the KL penalty; 0 shows what it is good for
    learning_rate: float = 1e-3     # half a million weights; GPT-2's 124 million take 1.4e-5
    advantage: str = "gae"          # gae: with a value head; reinforce, rloo, grpo: without
    group_size: int = 1             # consecutive responses to each query; rloo and grpo need 2 or more
    target: float | None = None     # end once fresh reviews have this true score, their KL is below 10 and over half are distinct
    device: str | None = None       # cpu, cuda or cuda:1; none: CUDA where there is one
    dtype: str | None = None        # of the blocks: float32, bfloat16, float16; none: bfloat16 on a GPU that has it

    def __post_init__(self):
        check_types(DemoConfig, vars(self))
        require(self, "width", "a positive multiple of 32", lambda x: x > 0 and x % 32 == 0)
        require(self, "target", "a number above 0 and at most 1", lambda x: 0 < x <= 1, optional=True)
        require(self, "reviews pretrain_steps pairs steps batch_size", "a whole number above 0", lambda x: x > 0)


def make_writer(config: DemoConfig, out: Path) -> None:
    """Stage 1: a tokenizer and a GPT-2, both learnt from the built-in reviews."""
    reviews = [review.text for review in make_reviews(config.reviews, seed=4 * config.seed)]
    tokenizer = train_bpe(reviews, 1280)                        # a token for every word: this model is too small to spell
    sizes = GPT2Config(tokenizer.vocab_size, 64, config.width, n_layer=2, n_head=config.width // 32)
    model = GPT2WithValueHead(sizes, pick_dtype(config.dtype), torch.Generator().manual_seed(config.seed))
    pretrain(model.transformer.to(pick_device(config.device)), tokenizer, reviews,
             PretrainConfig(config.pretrain_steps, batch_size=16, block_size=40, learning_rate=5e-3, seed=config.seed))
    model.save_pretrained(str(out / "pretrained"), tokenizer)


def make_reward_model(config: DemoConfig, out: Path) -> None:
    """Stage 2: the writer with another head, trained on preferences."""
    gpt2 = GPT2.from_pretrained(out / "pretrained", pick_device(config.device), pick_dtype(config.dtype))
    model = RewardModel.from_gpt2(gpt2, load_tokenizer(out / "pretrained"), torch.Generator().manual_seed(config.seed))
    train_on_pairs(model, preference_pairs(config.pairs, seed=4 * config.seed + 1),
                   RewardModelConfig(learning_rate=1e-3, batch_size=16, seed=config.seed))
    model.save_pretrained(out / "reward-model")


def true_scores(queries: list[str], responses: list[str]) -> list[float]:
    """The rule behind the pairs as a score function."""
    return [true_score(query + response) for query, response in zip(queries, responses)]


def plan_ppo(config: DemoConfig, out: Path) -> tuple[RunConfig, PPOConfig]:
    """Stage 3: an ordinary training run; the true score has weight 0 in the reward, so it is logged and teaches nothing."""
    # run.reward is but the name of the reward that run_stages makes: a folder is data, and no run imports code that one names
    run = RunConfig(str(out / "pretrained"), str(out / "prompts.txt"),
                    f'model:"{out / "reward-model"}" + 0*minippo.training.demo:true_scores', str(out / "ppo"), config.steps,
                    max_new_tokens=RESPONSE_TOKENS, lr_schedule="linear", warmup=config.steps // 10,
                    save_every=20 if config.target is None else 1, sample_every=20, one_line=True,
                    device=config.device, dtype=config.dtype)
    ppo = PPOConfig(batch_size=config.batch_size, mini_batch_size=-(-config.batch_size // 2), ppo_epochs=2, seed=config.seed,
                    learning_rate=config.learning_rate, advantage=config.advantage, group_size=config.group_size,
                    init_kl_coef=config.kl_coef, horizon=2000.0,        # a demo is over after 2560 responses
                    vf_coef=0.5, cliprange_value=1.0)           # the value head has 40 updates to learn returns of -2 to 2
    return run, ppo


@torch.no_grad()
def measure(config: DemoConfig, out: Path, folder: Path, n: int = 200) -> tuple[list, dict]:
    """Let the policy in `folder` continue n fresh openings, with fixed random numbers; returns texts, and what they are worth by name."""
    device, dtype = pick_device(config.device), pick_dtype(config.dtype)
    policy, writer = (GPT2WithValueHead.from_pretrained(str(path), device, dtype) for path in (folder, out / "pretrained"))
    judge, openings = RewardModel.from_pretrained(out / "reward-model", device, dtype), review_queries(n, seed=4 * config.seed + 3)
    queries = [torch.tensor(judge.tokenizer.encode(opening)) for opening in openings]
    tokens = policy.generate(queries, RESPONSE_TOKENS, eos_token_id=judge.tokenizer.eos_token_id, seed=0)
    logprobs, ref_logprobs = (response_logprobs(model, queries, tokens)[0] for model in (policy, writer))
    responses = [judge.tokenizer.decode(response, skip_special_tokens=True) for response in tokens]
    pairs = [pair for response in responses for pair in zip(response.split(), response.split()[1:])]
    return [opening + response for opening, response in zip(openings, responses)], {
        "reward, by the reward model": fmean(judge.score(openings, responses)),
        "true score, by the rule": fmean(true_scores(openings, responses)),
        "KL, nats per response": (logprobs - ref_logprobs).sum(1).mean().item(),
        "different responses": len(set(responses)) / len(responses),
        "different pairs of words": len(set(pairs)) / max(1, len(pairs))}       # low for monotonous texts (Li et al. 2016)


class Race:
    """The true score as a score function; it ends the run once fresh reviews reach config.target. Its clock stands meanwhile."""

    def __init__(self, config: DemoConfig, out: Path):
        self.config, self.out, self.start = config, out, time.process_time()    # whoever shares the machine

    def won(self) -> str:
        """How the newest checkpoint reaches the target, in words; empty: it does not."""
        now, checkpoint = time.process_time(), newest_checkpoint(self.out / "ppo")
        _, score, kl, distinct, _ = measure(self.config, self.out, checkpoint)[1].values() if checkpoint else [0.0] * 5
        seconds, self.start = now - self.start, self.start + time.process_time() - now
        return "" if score < self.config.target or kl >= 10 or distinct <= 0.5 else (
            f"true score {score:.3f} on fresh reviews, KL {kl:.2f}, {distinct:.0%} distinct, after {int(checkpoint.name[-6:])} updates "
            f"in {seconds:.1f} seconds of CPU")

    def __call__(self, queries: list[str], responses: list[str]) -> list[float]:
        if self.config.target is not None and (text := self.won()):             # of the update before this one
            raise StopRun(text)
        return true_scores(queries, responses)


def run_stages(config: DemoConfig, out: Path, run: RunConfig, ppo: PPOConfig) -> Result:
    """Make what is not there yet; folders appear whole, and the last stage continues by itself."""
    for make, folder in ((make_writer, out / "pretrained"), (make_reward_model, out / "reward-model")):
        there = of_each(str(folder), folder.exists())[0]        # also a wait: until the first process has written the one before
        say(f"{folder} is there already") if there else make(config, out)
    if rank() == 0:
        write_text(run.prompts, "\n".join(review_queries(2000, seed=4 * config.seed + 2)))
    of_each(run.prompts, None)
    judge = RewardModel.from_pretrained(out / "reward-model", pick_device(config.device), pick_dtype(config.dtype))
    race = Race(config, out)
    reward = Reward([(1.0, f"model:{out / 'reward-model'}", judge.score), (0.0, f"{__name__}:true_scores", race)])
    result = train(run, ppo, resume=True, score_fn=reward)
    if config.target is not None and result.steps_done == config.steps and rank() == 0:     # nothing was scored after the last update
        say(race.won() or f"fresh reviews did not reach a true score of {config.target}, a KL below 10, half of them distinct")
    return result


def compare(config: DemoConfig, out: Path, policy: Path) -> str:
    """Before PPO and after it, side by side: reviews with the same openings, then means over many."""
    (old_texts, before), (new_texts, after) = (measure(config, out, folder) for folder in (out / "pretrained", policy))
    lines = [f"{'BEFORE PPO':42}AFTER PPO", ""]
    for pair in zip(old_texts[:4], new_texts):
        rows = zip_longest(*(wrap(visible(text), 38) for text in pair), fillvalue="")
        lines += [*(f"{old:42}{new}".rstrip() for old, new in rows), ""]
    lines += [f"{f'means of {len(old_texts)} reviews':32}{'before':>8}{'after':>8}",
              *(f"{name:32}{before[name]:8.2f}{after[name]:8.2f}" for name in before)]
    return "\n".join(lines)


def run_demo(config: DemoConfig) -> int:
    """All three stages into config.out, or what is missing of them, then what they came to; returns the exit status."""
    start()
    began, threads, out = time.monotonic(), torch.get_num_threads(), place(config.out, "--out")
    pick_device(config.device), pick_dtype(config.dtype)        # bad values are found here and not after a minute
    run, ppo = plan_ppo(config, out)
    settings, noted = asdict(config) | {"out": str(out)}, out / "demo.json"
    begun = read_json(noted) if noted.exists() else settings
    if not isinstance(begun, dict):
        raise ValueError(f"{noted} is not what a demo notes; choose another --out")
    if changed := [f"{name}: {was!r} -> {value!r}" for name, value in settings.items()
                   if (was := begun.get(name, getattr(DemoConfig, name))) != value]:
        raise ValueError(f"{out} holds a demo with other settings (then -> now): {'; '.join(changed)}; choose another --out")
    if rank() == 0:
        check_folder(out, OURS, noted.exists(), "demo's folder")
    torch.set_num_threads(1)            # the numbers must not depend on the number of cores; tiny products gain nothing by more
    try:
        with lock(out):
            if rank() == 0:
                remove_leftovers(out, OURS)
                write_json(noted, settings)
            result = run_stages(config, out, run, ppo)
        if result.status:
            say("the same command continues from there")
        elif rank() == 0:
            table = compare(config, out, result.checkpoint)
            say(f"\n{table}\n\n{time.monotonic() - began:.0f} seconds; look at {Path(config.out, 'ppo', 'report.html')}")
    finally:
        torch.set_num_threads(threads)
    return result.status
