"""Training a reward model: both losses by hand, batches, toy tasks that it must learn, what is refused.

    python -m pytest tests/training/test_reward_training.py
"""

import math

import pytest
import torch

from minippo.gpt2 import GPT2
from minippo.scoring.reward_model import RewardModel
from minippo.training import reward_training as module
from minippo.training.data import split
from minippo.training.reward_training import (RewardModelConfig, batches, preference_loss, train_on_labels,
                                              train_on_pairs)
from test_reward_model import BYTES, CONFIG, fresh, generator, model, same, state  # noqa: F401: model is a fixture

FAST = {"learning_rate": 1e-2, "batch_size": 8}


def reviews(count: int) -> tuple[list[str], list[int]]:
    """Texts of other lengths and letters each time, good where the word "good" is in them and bad where "bad" is."""
    words = ("bad", "good")
    return [f"{i * 7919 % 1000} is {words[i % 2]}{'!' * (i % 5)}" for i in range(count)], [i % 2 for i in range(count)]


def test_bradley_terry_by_hand():
    """sigmoid(log 3) = 3/4. Pairs 1 + log 3 over 1, 0 over log 3, and a tie: losses log 4/3, log 4, log 2.

    The gradient of -log sigmoid(d) is sigmoid(d) - 1 at the chosen and its negative at the rejected: 1/4, 3/4, 1/2.
    """
    log3 = math.log(3)
    scores = torch.tensor([[1 + log3, 1.0], [0.0, log3], [0.5, 0.5]], requires_grad=True)
    losses, right = preference_loss(scores, torch.ones(3))
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([math.log(4 / 3), math.log(4), math.log(2)])
    assert right.tolist() == [True, False, False], "a tie is not a judgement"
    assert scores.grad.flatten().tolist() == pytest.approx([-1 / 4, 1 / 4, -3 / 4, 3 / 4, -1 / 2, 1 / 2])


def test_label_loss_by_hand():
    """Score log 3 means 3/4 good: loss log 4/3 where it is, log 4 where it is not; the gradient is p - label."""
    scores = torch.tensor([[math.log(3)], [math.log(3)], [-math.log(3)]], requires_grad=True)
    losses, right = preference_loss(scores, torch.tensor([1.0, 0.0, 0.0]))
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([math.log(4 / 3), math.log(4), math.log(4 / 3)])
    assert right.tolist() == [True, False, True]
    assert scores.grad.flatten().tolist() == pytest.approx([-1 / 4, 3 / 4, 1 / 4])


def test_every_example_is_once_in_an_epoch_and_the_batches_follow_the_generator():
    lengths = [i * 37 % 50 for i in range(203)]
    epoch = batches(lengths, 10, generator(1))
    assert sorted(i for batch in epoch for i in batch) == list(range(203))
    assert sorted(map(len, epoch)) == [3] + [10] * 20
    assert epoch == batches(lengths, 10, generator(1)) != batches(lengths, 10, generator(2))


def test_batches_hold_like_lengths_but_come_in_any_order():
    """160 lengths 0..159 are one window of 16 batches of 10: sorted, each batch spans 9; unsorted about 130."""
    epoch = batches(list(range(160)), 10, generator())
    assert all(max(batch) - min(batch) == 9 for batch in epoch)
    assert [batch[0] for batch in epoch] != sorted(batch[0] for batch in epoch), "short ones first would be a curriculum"


def test_labels_are_learnt(model):
    texts, labels = reviews(400)
    result = train_on_labels(model, texts, labels, RewardModelConfig(**FAST, epochs=2))
    assert result.accuracy > 0.9 and result.loss < 0.6 < math.log(2)
    assert (result.held_out, result.trained) == (40, 360)
    good, bad = model.score(["it is", "it is"], [" good!", " bad!"])
    assert good > 0.5 and bad < -0.5, "normalised: the two kinds lie about one standard deviation from 0"


def test_preferences_are_learnt_and_scores_come_out_normalised(model):
    """One pair a query, alternately with the better text first in the alphabet and not: only "good" tells."""
    pairs = [(f"film {i} is", f" good{'!' * (i % 4)}", f" bad{'!' * (i % 3)}") for i in range(400)]
    result = train_on_pairs(model, pairs, RewardModelConfig(**FAST))
    assert result.accuracy > 0.9 and result.loss < 0.6 < math.log(2)
    scores = torch.tensor(model.score([q for q, _, _ in pairs] * 2, [c for _, c, _ in pairs] + [r for _, _, r in pairs]))
    assert abs(scores.mean()) < 0.1 and abs(scores.std() - 1) < 0.1
    assert scores[:400].mean() > 0.5 > -0.5 > scores[400:].mean()


def test_a_training_repeats_itself_from_its_seed():
    texts, labels = reviews(40)
    states = []
    for seed in (0, 0, 1):
        model = fresh(tokenizer=BYTES)
        train_on_labels(model, texts, labels, RewardModelConfig(**FAST, seed=seed))
        states.append(state(model))
    assert same(states[0], states[1]) and not same(states[0], states[2])


def test_held_out_examples_are_never_trained_on(model):
    """Labels that are turned around in the held-out part alone: the same weights, accuracy a against 1 - a."""
    texts, labels = reviews(100)
    examples = [((text,), float(label)) for text, label in zip(texts, labels)]
    held_out = {texts[0] for texts, _ in split(examples, 0.2, generator(0))[1]}
    turned = [1 - label if text in held_out else label for text, label in zip(texts, labels)]
    start, config = state(model), RewardModelConfig(**FAST, held_out=0.2)
    result, trained = train_on_labels(model, texts, labels, config), state(model)
    model.load_state_dict(start)
    other = train_on_labels(model, texts, turned, config)
    assert same(trained, state(model))
    assert result.held_out == 20 and other.accuracy == pytest.approx(1 - result.accuracy)


def test_a_small_last_batch_and_no_held_out_part(model):
    texts, labels = reviews(9)
    result = train_on_labels(model, texts, labels, RewardModelConfig(**FAST, held_out=0.0))
    assert (result.trained, result.held_out) == (9, 0) and math.isnan(result.accuracy) and math.isnan(result.loss)


def test_the_learning_rate_falls_from_its_value_to_almost_zero(model, monkeypatch):
    """16 texts in batches of 4, two epochs: 8 steps at 8/8, 7/8, ... 1/8 of the rate."""
    rates, adam_step = [], torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: rates.append(self.param_groups[0]["lr"]) or adam_step(self))
    texts, labels = reviews(16)
    train_on_labels(model, texts, labels, RewardModelConfig(learning_rate=8.0e-3, batch_size=4, epochs=2, held_out=0.0))
    assert rates == pytest.approx([8e-3, 7e-3, 6e-3, 5e-3, 4e-3, 3e-3, 2e-3, 1e-3])


def test_training_texts_are_cut_to_their_last_tokens(model, monkeypatch):
    """Longer than n_positions (32): cut. max_tokens 8: all training sees eight tokens at most."""
    seen, forward = [], RewardModel.forward
    monkeypatch.setattr(RewardModel, "forward", lambda self, x: seen.extend(map(len, x)) or forward(self, x))
    texts = [f"{'so ' * 20}{word}" for word in ("good", "bad")] * 4
    for max_tokens, longest in ((None, 32), (8, 8)):
        seen.clear()
        train_on_labels(model, texts, [1, 0] * 4, RewardModelConfig(max_tokens=max_tokens, held_out=0.0))
        assert max(seen) == longest


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(model, monkeypatch):
    monkeypatch.setattr(module, "preference_loss", lambda scores, labels: (scores[:, 0] * math.nan, None))
    monkeypatch.setattr(RewardModel, "normalize", lambda self, samples: None)
    before = state(model)
    with pytest.raises(FloatingPointError, match="nan at step 1"):
        train_on_labels(model, *reviews(8))
    assert same(before, state(model))


@pytest.mark.parametrize("pairs, message", [
    ([], "0 examples, .* too few"),
    ([("q", "a", "b"), ("q", "a", "a")], r"pairs\[1\]: chosen and rejected are both 'a'"),
    ([("q", "a")], r"pairs\[0\]: expected three texts"),
    ([("q", "a", None)], r"pairs\[0\]: expected three texts"),
    ([("q", "a", "b")], "1 examples, .* too few"),
])
def test_bad_pairs_are_refused_before_anything_changes(model, pairs, message):
    before = state(model)
    with pytest.raises(ValueError, match=message):
        train_on_pairs(model, pairs)
    assert same(before, state(model))


@pytest.mark.parametrize("texts, labels, message", [
    ([], [], "0 examples, .* too few"),
    (["a", "b"], [1], "2 texts and 1 labels"),
    (["a", "b"], [1, 2], r"texts\[1\]: expected a text and a label 0 or 1, got 'b' and 2"),
    (["a", "b"], [1, 0.5], r"texts\[1\]: .* got 'b' and 0.5"),
    (["a", 5], [1, 0], r"texts\[1\]: .* got 5 and 0"),
    (["a", "b"], [1, 1], "all 2 labels are 1"),
])
def test_bad_labels_are_refused_before_anything_changes(model, texts, labels, message):
    before = state(model)
    with pytest.raises(ValueError, match=message):
        train_on_labels(model, texts, labels)
    assert same(before, state(model))


@pytest.mark.parametrize("field, value", [
    ("learning_rate", 0.0), ("learning_rate", math.nan), ("adam_eps", 0.0), ("batch_size", 0), ("batch_size", 2.0),
    ("epochs", 0), ("max_tokens", 0), ("held_out", 1.0), ("held_out", -0.5)])
def test_a_bad_configuration_names_the_field(field, value):
    with pytest.raises(ValueError, match=field):
        RewardModelConfig(**{field: value})


def test_from_gpt2_copies_the_language_model_and_trains_all_of_it():
    """The start may be a frozen reference: its copy learns, and it stays as it is."""
    gpt2 = GPT2(CONFIG, generator=generator()).requires_grad_(False)
    before = {name: p.clone() for name, p in gpt2.named_parameters()}
    model = RewardModel.from_gpt2(gpt2, BYTES, generator(5))
    assert all(torch.equal(p, before[name]) for name, p in model.transformer.named_parameters())
    train_on_labels(model, *reviews(16), RewardModelConfig(**FAST))
    assert all(torch.equal(p, before[name]) for name, p in gpt2.named_parameters())
    assert not any(torch.equal(p, before[name]) for name, p in model.transformer.named_parameters() if "h.0" in name)
