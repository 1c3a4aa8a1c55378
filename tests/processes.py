"""What tests/test_distributed.py lets torchrun start: `processes.py steps OUT`, or `processes.py MODE` for a fault.

    steps       three updates of every setting below; each process leaves what it came to in OUT.<processes>.<rank>
"""

import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parent))
from conftest import make_policy, make_ragged

from minippo.files.safetensors import write_safetensors
from minippo.ppo import PPOConfig, PPOTrainer

SETTINGS = {
    "defaults": {},
    "accumulation": {"mini_batch_size": 2, "gradient_accumulation_steps": 2},
    "clipped": {"max_grad_norm": 0.05, "score_clip": 0.9, "cliprange": 0.05, "cliprange_value": 0.05},
    "whitened": {"whiten_rewards": True, "gamma": 0.9},
    "normalised scores": {"use_score_scaling": True, "use_score_norm": True},
    "adaptive": {"target": 0.01, "horizon": 20.0, "init_kl_coef": 2.0},
    "fixed": {"adap_kl_ctrl": False},
    "early stop": {"early_stopping": True, "target_kl": 1e-4, "learning_rate": 1e-2, "mini_batch_size": 3},
    "skipped": {"ratio_threshold": 1.02, "learning_rate": 1e-2, "mini_batch_size": 3},
    "per token": {"rewards": "per token"},
    "grpo": {"advantage": "grpo", "group_size": 2, "batch": 6},
    "full": {"kl_penalty": "full"},
    "entropy": {"entropy_coef": 0.1},
    "checkpointing": {"gradient_checkpointing": True},
    "bf16": {"dtype": torch.bfloat16},
    "one row": {"batch": 1},
    "fewer rows than processes": {"batch": 2},
}
CALLS = {"all_reduce": 0, "all_gather_object": 0, "broadcast": 0}


def counted(name: str):
    call = getattr(dist, name)

    def wrapper(*args, **kwargs):
        CALLS[name] += 1
        return call(*args, **kwargs)
    return wrapper


def three_updates(rewards: str = "per response", batch: int = 7, dtype=None, **settings) -> tuple[dict, list]:
    """Weights and Adam's moments, and what each update came to."""
    trainer = PPOTrainer(PPOConfig(**{"learning_rate": 1e-3, "adam_eps": 1e-5, "ppo_epochs": 2, "mini_batch_size": 4, "init_kl_coef": 0.1} | settings),
                         make_policy(n_embd=16, n_layer=1, n_head=2, dtype=dtype))
    queries, updates = make_ragged((3, 9, 1, 5, 7, 2, 4)[:batch], seed=5), []
    if "group_size" in settings:
        queries = [queries[i - i % settings["group_size"]] for i in range(batch)]
    for _ in range(3):
        responses = trainer.generate(queries, max_new_tokens=8, eos_token_id=0)
        scores = [float(len(set(response.tolist()))) / 8 for response in responses]
        if rewards == "per token":
            scores = [torch.full((len(response),), score) for response, score in zip(responses, scores)]
        before = dict(CALLS)
        stats = trainer.step(queries, responses, scores)
        first = stats["ppo/policy/ratio"][:1 if trainer.steps_done == 1 else 0]            # none, where this process has no row
        updates.append({"responses": [response.tolist() for response in responses], "first": first.tolist(),
                        "calls": {name: CALLS[name] - before[name] for name in CALLS},
                        "stats": {name: value for name, value in stats.items() if isinstance(value, (int, float)) and "time/" not in name}})
    slots = trainer.optimizer.state_dict()["state"]
    tensors = {f"model.{name}": p.detach() for name, p in trainer.model.named_parameters()}
    tensors |= {f"adam.{i}.{name}": x for i, slot in slots.items() for name, x in slot.items()}
    return tensors | {"generator": trainer.generator.get_state()}, updates


def steps(out: str) -> None:
    tensors, updates = {}, {}
    for name, settings in SETTINGS.items():
        found, updates[name] = three_updates(**settings)
        tensors |= {f"{name}/{key}": x for key, x in found.items()}
    place = f"{out}.{os.environ.get('WORLD_SIZE', 1)}.{os.environ.get('RANK', 0)}"
    write_safetensors(place + ".safetensors", tensors)
    Path(place + ".json").write_text(json.dumps(updates))


def fault(mode: str) -> None:
    """An update that goes wrong on process 1, in one way or another."""
    rank = int(os.environ["RANK"])
    trainer = PPOTrainer(PPOConfig(learning_rate=2e-3 if mode == "other configuration" and rank == 1 else 1e-3), make_policy())
    queries = make_ragged((3, 4, 2), seed=rank if mode == "other queries" else 0)
    lengths = {"length_sampler": lambda: 2 + 2 * rank} if mode == "other scores" else {"max_new_tokens": 4}
    if mode == "other limits":
        lengths = {"max_new_tokens": 4 + rank}
    responses = trainer.generate(queries, **lengths)
    if mode == "own folder":                                        # what one process reads behind another's back
        trainer.model.save_pretrained("saved")
        dist.barrier()
        type(trainer.model).from_pretrained("saved")
    if rank == 1 and mode == "error":
        raise RuntimeError("the dog ate it")
    if rank == 1 and mode == "hang":
        time.sleep(60)
    # scores that differ: those of the first process count
    stats = trainer.step(queries, responses, [float(rank)] * 3)
    assert stats["ppo/mean_scores"] == 0.0, stats["ppo/mean_scores"]
    print(f"process {rank} is through, {trainer.world_size}, {trainer.is_main_process}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in CALLS:
        setattr(dist, name, counted(name))
    steps(sys.argv[2]) if sys.argv[1] == "steps" else fault(sys.argv[1])
