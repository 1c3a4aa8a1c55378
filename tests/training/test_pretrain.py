"""Next-token training: the rows, the split, the learning rate by hand, and a model that learns a rhyme.

    python -m pytest tests/training/test_pretrain.py
"""

import math

import pytest
import torch

from minippo.training import pretrain as module
from minippo.gpt2 import GPT2, GPT2Config
from minippo.training.data import split
from minippo.training.pretrain import PretrainConfig, learning_rate_at, pack, pretrain, rows_loss
from minippo.training.bpe import train_bpe

BYTES = train_bpe([], 257)                       # no merges: a token for each byte in GPT-2's order, then EOS
EOS = 256
RHYME = ["one for the master", "one for the dame", "one for the little boy", "who lives down the lane"] * 5


def small_model(seed: int = 0, **sizes) -> GPT2:
    config = GPT2Config(**{"vocab_size": 257, "n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, **sizes})
    return GPT2(config, generator=torch.Generator().manual_seed(seed))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weights(model: GPT2) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()


# --- rows -----------------------------------------------------------------------------------------

def test_rows_begin_where_texts_begin_and_every_length_tokens_in_a_long_text():
    """"ab" and "cdefg" with EOS are 3 + 6 tokens: rows of 3 begin at 0; and at 3 and 3 + 3."""
    stream, starts = pack(BYTES, ["ab", "cdefg"], 3)
    a = BYTES.encode("a")[0]
    assert stream.tolist() == [a, a + 1, EOS, a + 2, a + 3, a + 4, a + 5, a + 6, EOS]
    assert starts.tolist() == [0, 3, 6]


def test_the_target_is_the_next_token_and_the_stream_runs_on_at_its_start():
    """Stream 0 1 2 3 4, a row of 3 from place 3: tokens 3 4 0, targets 4 0 1. A model sure of t + 1 mod 5 has loss 0.

    In the row from place 1 (tokens 1 2 3, targets 2 3 4) it is right too; sure of t, it is wrong by 100 everywhere.
    """
    seen = []

    def counting(tokens):
        seen.append(tokens.tolist())
        return 100.0 * torch.nn.functional.one_hot((tokens + 1) % 5, 5)

    starts = torch.tensor([3, 1])
    assert rows_loss(counting, torch.arange(5), starts, 3).item() == 0
    assert seen == [[[3, 4, 0], [1, 2, 3]]]
    assert rows_loss(lambda t: 100.0 * torch.nn.functional.one_hot(t, 5), torch.arange(5), starts, 3).item() == 100


def test_a_row_longer_than_all_texts_together_is_filled():
    seen = []
    model = lambda tokens: seen.append(tokens.tolist()) or torch.zeros(1, 5, 3)
    rows_loss(model, torch.tensor([0, 1]), torch.tensor([0]), 5)
    assert seen == [[[0, 1, 0, 1, 0]]]


# --- learning rate --------------------------------------------------------------------------------

def test_learning_rate_by_hand():
    """100 steps, peak 1: 1/5 ... 5/5 in the first five, then half a cosine over 96 steps, of which the 48th is 1/2."""
    config = PretrainConfig(steps=100, learning_rate=1.0)
    rates = [learning_rate_at(step, config) for step in range(101)]
    assert rates[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert rates[5 + 47] == pytest.approx(0.5)
    assert rates[99] > 0 and rates[100] == 0
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert learning_rate_at(0, PretrainConfig(steps=1, learning_rate=1.0)) == 1


# --- training -------------------------------------------------------------------------------------

def test_pretrain_learns():
    """Chance is log 257 = 5.5 nats a token; the rhyme leaves only the first words of its lines open."""
    config = PretrainConfig(steps=100, batch_size=8, block_size=16, learning_rate=2e-2, held_out=0.0)
    losses = pretrain(small_model(), BYTES, RHYME, config)
    assert losses.train < 1.2 and math.isnan(losses.held_out)


def test_pretrain_repeats_itself_from_its_seed():
    models = [small_model() for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1)):
        pretrain(model, BYTES, RHYME, PretrainConfig(steps=5, batch_size=4, block_size=8, seed=seed))
    assert torch.equal(weights(models[0]), weights(models[1]))
    assert not torch.equal(weights(models[0]), weights(models[2]))


def test_each_epoch_has_every_row_once_in_an_order_of_its_own(monkeypatch):
    """Eight texts of one row each, 4 steps of 4 rows: two epochs."""
    seen, real = [], rows_loss
    monkeypatch.setattr(module, "rows_loss", lambda *args: seen.extend(args[2].tolist()) or real(*args))
    pretrain(small_model(), BYTES, list("abcdefgh"), PretrainConfig(steps=4, batch_size=4, block_size=8, held_out=0.0))
    first, second = seen[:8], seen[8:]
    assert sorted(first) == sorted(second) == list(range(0, 16, 2))
    assert first != second and sorted(first) not in (first, second)


def test_held_out_texts_are_measured_and_never_trained_on():
    """With other words in the held-out places the weights come out the same, and only the held-out loss differs."""
    config = PretrainConfig(steps=60, batch_size=8, block_size=16, learning_rate=1e-2, held_out=0.2)
    texts = [f"{i} green bottles" for i in range(20)]
    held_out = split(texts, 0.2, generator(config.seed))[1]
    same, other = small_model(), small_model()
    losses = pretrain(same, BYTES, texts, config)
    strange = pretrain(other, BYTES, [text[::-1] if text in held_out else text for text in texts], config)
    assert torch.equal(weights(same), weights(other))
    assert losses.held_out < 2 < 4 < strange.held_out


def test_losses_are_means_over_tokens():
    """A model of zeros gives each of 257 tokens the same chance: log 257 everywhere; at a tiny rate it stays there."""
    model = small_model()
    torch.nn.utils.vector_to_parameters(torch.zeros_like(weights(model)), model.parameters())
    config = PretrainConfig(steps=3, batch_size=2, block_size=8, learning_rate=1e-9, held_out=0.3)
    texts = ["a", "bc", "def", "a longer text than a row"]
    assert pretrain(model, BYTES, texts, config) == pytest.approx([math.log(257)] * 2)


def test_a_loss_that_is_not_finite_stops_before_the_weights_change():
    model = small_model()
    model.wte.weight.data[0, 0] = math.nan
    before = weights(model)
    with pytest.raises(FloatingPointError, match="nan at step 1"):
        pretrain(model, BYTES, RHYME, PretrainConfig(steps=2, block_size=8))
    assert torch.equal(weights(model).nan_to_num(), before.nan_to_num())


@pytest.mark.parametrize("texts, config, sizes, message", [
    ([], {}, {}, "expected a list of texts"),
    ("one text", {}, {}, "expected a list of texts"),
    (RHYME, {"block_size": 33}, {}, "block_size 33 is more than the model's 32"),
    (RHYME, {"block_size": 8}, {"vocab_size": 256}, "the tokenizer has 257 tokens, the model 256"),
])
def test_bad_input_is_refused(texts, config, sizes, message):
    with pytest.raises(ValueError, match=message):
        pretrain(small_model(**sizes), BYTES, texts, PretrainConfig(**config))


@pytest.mark.parametrize("field, value", [
    ("steps", 0), ("steps", 1.5), ("batch_size", 0), ("block_size", True), ("learning_rate", 0.0),
    ("learning_rate", math.nan), ("held_out", 1.0), ("held_out", -0.1)])
def test_a_bad_configuration_names_the_field(field, value):
    with pytest.raises(ValueError, match=field):
        PretrainConfig(**{field: value})
