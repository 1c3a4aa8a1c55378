"""The same seed gives the same run, bit for bit; and what may differ, with the tolerance that was measured.

- Same machine, same torch, same number of threads, on the CPU: bit for bit. That an interrupted and resumed run is the same
  as well is tested in test_checkpoint.py (a_resumed_trainer_continues_bit_for_bit) and in test_run.py (resume_continues_...).
- 1 thread against 2, on the CPU: sums are added in another order. The same tokens are sampled, and after three updates the
  weights differ by 4e-6 of the way that they moved, with adam_eps=1e-5. With Adam's usual 1e-8 it is 3e-3: Adam
  divides a gradient by its own size, so that one of pure rounding error (of the keys' biases, say, whose true gradient is
  zero) moves its weight as far as any other.
- Other processors, devices and versions of torch: no promise of bits. A run writes torch's version and its threads into
  config.json, and refuses to resume with others (test_config.py, another_torch_or_number_of_threads_is_a_difference).
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

from conftest import make_policy, make_ragged
from minippo.policy import GPT2WithValueHead
from minippo.ppo import PPOConfig, PPOTrainer
from minippo.files.safetensors import read_safetensors, write_safetensors

QUERIES = make_ragged([3, 9, 1, 5] * 4, vocab_size=301)


def build(seed: int = 0, adam_eps: float = 1e-5) -> PPOTrainer:
    """Large enough that torch divides the work among threads."""
    config = PPOConfig(learning_rate=1e-3, mini_batch_size=8, ppo_epochs=2, adam_eps=adam_eps, seed=seed)
    return PPOTrainer(config, make_policy(vocab_size=301, n_embd=64))


def updates(trainer: PPOTrainer, between=lambda: None) -> tuple[list, dict[str, torch.Tensor]]:
    """Three updates: the sampled tokens, and the weights and Adam's moments after them. `between` is called in each."""
    samples = []
    for _ in range(3):
        responses = trainer.generate(QUERIES, max_new_tokens=12, eos_token_id=7)
        samples += [response.tolist() for response in responses]
        between()
        trainer.step(QUERIES, responses, [float(response.sum() % 7) for response in responses])
    slots = trainer.optimizer.state_dict()["state"]
    moments = {f"{i}.{key}": value.clone() for i, slot in slots.items() for key, value in slot.items()}
    return samples, moments | {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def error_of_the_way(start: dict, a: dict, b: dict) -> float:
    """|a - b| / |a - start|, over all weights together: how far two trainings differ, as a share of what they learnt."""
    norm = lambda x, y: sum(((x[name] - y[name]).double() ** 2).sum() for name in start).sqrt()
    return float(norm(a, b) / norm(a, start))


@pytest.fixture(scope="module")
def run():
    return updates(build())


def in_another_process(folder: Path) -> None:
    """Runs with one thread and with two; samples and states go to files. Other hash seeds, addresses, history than here."""
    samples = {}
    for name, threads, adam_eps in (("one", 1, 1e-5), ("two", 2, 1e-5), ("two, small eps", 2, 1e-8)):
        torch.set_num_threads(threads)
        samples[name], state = updates(build(adam_eps=adam_eps))
        write_safetensors(folder / name, state)
    (folder / "samples.json").write_text(json.dumps(samples))


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    folder, here = tmp_path_factory.mktemp("other"), Path(__file__).resolve()
    code = "import sys, test_determinism; from pathlib import Path; test_determinism.in_another_process(Path(sys.argv[1]))"
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(here.parent), str(here.parents[1])]), "PYTHONHASHSEED": "12345",
                        "CUDA_VISIBLE_DEVICES": "", "OMP_WAIT_POLICY": "PASSIVE"}      # PASSIVE: two threads on one busy core
    done = subprocess.run([sys.executable, "-c", code, folder], env=env, cwd=folder, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def samples_of(folder: Path, name: str) -> list:
    return json.loads((folder / "samples.json").read_text())[name]


def test_the_same_seed_gives_the_same_run_in_another_process(run, other):
    assert samples_of(other, "one") == run[0]
    assert same(read_safetensors(other / "one"), run[1])


def test_another_seed_gives_another_run(run):
    samples, state = updates(build(seed=1))
    assert samples != run[0] and not same(state, run[1])


@pytest.mark.parametrize("name, adam_eps, tolerance", [("two", 1e-5, 1e-4), ("two, small eps", 1e-8, 3e-2)])
def test_two_threads_agree_with_one(run, other, name, adam_eps, tolerance):
    """Measured 4e-6 and 3e-3, see above; the tolerances leave room for other processors."""
    start = {name: p.detach().clone() for name, p in build().model.named_parameters()}
    samples, state = run if adam_eps == 1e-5 else updates(build(adam_eps=adam_eps))
    assert samples_of(other, name) == samples
    assert error_of_the_way(start, state, read_safetensors(other / name)) < tolerance


# --- global generators ----------------------------------------------------------------------------

def draw_from_everywhere() -> None:
    torch.rand(3), numpy.random.rand(3), random.random()


def global_states() -> tuple:
    kind, keys, *rest = numpy.random.get_state()
    return torch.get_rng_state().tolist(), kind, keys.tolist(), rest, random.getstate()


def test_seeding_and_drawing_elsewhere_changes_nothing(run):
    for seed in (1, 2):
        torch.manual_seed(seed), numpy.random.seed(seed), random.seed(seed)
        samples, state = updates(build(), between=draw_from_everywhere)
        assert samples == run[0] and same(state, run[1])


def test_a_trainer_leaves_the_global_generators_alone():
    """So the user's own draws do not depend on it either: the frozen copy, sampling, shuffling and updates take none."""
    policy = make_policy()
    before = global_states()
    trainer = PPOTrainer(PPOConfig(), policy)
    queries = make_ragged([3, 1])
    responses = trainer.generate(queries, max_new_tokens=4)
    trainer.step(queries, responses, [1.0, 0.0])
    assert global_states() == before


def test_initial_weights_come_from_the_generator_alone():
    """torch's own initialisation draws from the global generator first; nothing of it is left."""
    def weights(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        model = GPT2WithValueHead(make_policy().config, generator=torch.Generator().manual_seed(5))
        return list(model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(weights(1), weights(2), strict=True))
