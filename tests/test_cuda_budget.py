"""How often the host waits for the GPU, and how much it asks of it: counted on tests/fakecuda.py, held as a budget.

`d2h` and `sync` are reads, of a tensor and of a number or a condition; `h2d` is an upload that blocks, `h2d-async` one that does not.
A read or a blocking upload makes the host wait until the GPU has done all that it was given; then the GPU waits for the host.
"""

from collections import Counter

import pytest
import torch

from conftest import make_policy, make_ragged
from fakecuda import FakeCuda, is_view
from minippo.fast import _decoders
from minippo.ppo import PPOConfig, PPOTrainer
from minippo.scoring.reward_model import RewardModel
from minippo.training.pretrain import PretrainConfig, pretrain
from minippo.training.reward_training import RewardModelConfig, train_on_pairs

LAYERS, NEW = 3, 24
QUERIES = make_ragged([8] * 8)


@pytest.fixture
def gpu():
    with FakeCuda() as gpu:
        yield gpu


def waits(gpu) -> Counter:
    """The events besides kernels and views, by kind."""
    return Counter(event.kind for event in gpu.events if event.kind not in ("kernel", "view"))


def on_gpu():
    return make_policy(n_layer=LAYERS).to("cuda")


@pytest.mark.parametrize("eos", [None, 7])
def test_sampling_waits_once_and_uploads_once(gpu, eos):
    """Of 24 tokens 23 are replays; whether all rows have their EOS is looked at behind the 16th alone."""
    model = on_gpu()
    for _ in range(2):                                                   # the first one records the graph
        gpu.events.clear()
        model.generate(QUERIES, max_new_tokens=NEW, min_new_tokens=20 * (eos is not None), eos_token_id=eos, seed=0)
    assert waits(gpu) == {"h2d-async": 1, "d2h": 1, "replay": NEW - 1} | ({"sync": 1} if eos else {})
    assert gpu.count("kernel") <= 12 * LAYERS + 53                       # the prefill, and what is around it


def test_a_decoded_token_is_one_graph_of_few_kernels(gpu):
    model = on_gpu()
    model.generate(QUERIES, max_new_tokens=NEW, seed=0)
    graph = next(iter(_decoders[model.transformer].values())).graph
    assert sum(not is_view(func) and "empty" not in func.__name__ for func, *_ in graph.tape) <= 12 * LAYERS + 31


@pytest.mark.parametrize("micro, accumulation", [(8, 1), (2, 2)])
def test_a_step_reads_once_a_minibatch(gpu, micro, accumulation):
    """And the statistics, the ratios and responses that lie on the GPU once each. The one sync is an event's behind the last read."""
    trainer = PPOTrainer(PPOConfig(mini_batch_size=micro, gradient_accumulation_steps=accumulation, ppo_epochs=3), on_gpu())
    responses = trainer.generate(QUERIES, max_new_tokens=NEW)
    trainer.step(QUERIES, responses, [1.0, 0.0] * 4)
    gpu.events.clear()
    stats = trainer.step(QUERIES, responses, [1.0, 0.0] * 4)
    passes, updates = 8 // micro, stats["ppo/updates"]
    assert updates == 3 * passes / accumulation
    # the scores and the mask; a pass over policy and reference and one of training: an alignment each
    assert waits(gpu) == {"d2h": updates + 3, "h2d-async": passes + 3 * passes + 2, "sync": 1}
    if passes == 1:                                                      # scoring, three minibatches with Adam, GAE, all else
        assert gpu.count("kernel") <= 32 * LAYERS + 57 + 3 * (53 * LAYERS + 200) + 8 * NEW + 60


def test_exact_kl_and_trained_entropy_read_no_more(gpu):
    trainer = PPOTrainer(PPOConfig(mini_batch_size=8, ppo_epochs=1, kl_penalty="full", entropy_coef=0.01, max_grad_norm=1.0), on_gpu())
    responses = [response.cpu() for response in trainer.generate(QUERIES, max_new_tokens=NEW)]
    gpu.events.clear()
    trainer.step(QUERIES, responses, [1.0, 0.0] * 4)
    assert waits(gpu) == {"d2h": 3, "h2d-async": 2 + 2, "sync": 1}


class Letters:
    """A tokenizer whose tokens are letters."""
    vocab_size, eos_token_id = 61, 60

    def encode(self, text: str) -> list[int]:
        return [ord(letter) % 60 for letter in text]


def per_step(gpu, train) -> Counter:
    """What six steps have more than two, over four."""
    counts = []
    for steps in (2, 6):
        gpu.events.clear()
        train(steps)
        counts.append(waits(gpu))
    assert all((counts[1] - counts[0])[kind] % 4 == 0 for kind in counts[1])
    return Counter({kind: n // 4 for kind, n in (counts[1] - counts[0]).items()})


def test_a_step_of_pretraining_reads_its_loss_alone(gpu, capsys):
    model = make_policy().transformer.to("cuda")
    texts = ["one text of a few letters", "and another one"] * 8
    train = lambda steps: pretrain(model, Letters(), texts, PretrainConfig(steps=steps, batch_size=4, block_size=8))      # noqa: E731
    assert per_step(gpu, train) == {"sync": 1}


def test_a_step_of_a_reward_model_reads_its_loss_alone(gpu, capsys):
    model = RewardModel.from_gpt2(make_policy().transformer.to("cuda"), tokenizer=Letters())
    pairs = [("the film ", "was good" + "." * i, "was bad") for i in range(4)]
    train = lambda steps: train_on_pairs(model, pairs, RewardModelConfig(epochs=steps, batch_size=4, held_out=0.0))       # noqa: E731
    assert per_step(gpu, train) == {"sync": 1, "h2d-async": 2}
