"""The reward model: the read-out, the normalisation and both losses by hand, toy tasks that it must learn, its folder.

    python -m pytest tests/test_reward_model.py
"""

import json
import math

import pytest
import torch

from minippo.scoring import reward_model as module
from minippo.gpt2 import GPT2, GPT2Config
from minippo.training.pretrain import split
from minippo.scoring.reward_model import (HEAD_FILE, Example, RewardModel, RewardModelConfig, batches, preference_loss,
                                  train_on_labels, train_on_pairs)
from minippo.files.safetensors import read_safetensors, write_safetensors
from minippo.training.bpe import train_bpe

BYTES = train_bpe([], 257)                       # no merges: a token for each byte, then EOS (256)
CONFIG = GPT2Config(vocab_size=257, n_positions=32, n_embd=16, n_layer=1, n_head=2)
FAST = {"learning_rate": 1e-2, "batch_size": 8}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def model() -> RewardModel:
    model = RewardModel(CONFIG, generator=generator())
    model.tokenizer = BYTES
    return model


def sequences(count: int = 12) -> list[torch.Tensor]:
    g = generator(1)
    return [torch.randint(257, (length % 9 + 1,), generator=g) for length in range(count)]


def state(model: RewardModel) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in model.state_dict().items()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def reviews(count: int) -> tuple[list[str], list[int]]:
    """Texts of other lengths and letters each time, good where the word "good" is in them and bad where "bad" is."""
    words = ("bad", "good")
    return [f"{i * 7919 % 1000} is {words[i % 2]}{'!' * (i % 5)}" for i in range(count)], [i % 2 for i in range(count)]


# --- the read-out ---------------------------------------------------------------------------------

def test_score_is_gain_times_head_of_the_last_hidden_state_plus_bias(model):
    """By hand for one sequence: gain 2, bias 0.5."""
    model.gain.fill_(2.0)
    model.bias.fill_(0.5)
    tokens = torch.tensor([7, 1, 200])
    last = model.transformer.hidden(tokens[None])[0, 2]
    expected = 2.0 * (last @ model.r_head.weight[0] + model.r_head.bias[0]) + 0.5
    assert model([tokens])[0].item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_score_does_not_depend_on_neighbours_and_padding(model):
    alone = torch.cat([model([tokens]) for tokens in sequences()])
    together = model(sequences())
    assert together.shape == (12,) and together.dtype == torch.float32
    assert torch.allclose(together, alone, atol=1e-5) and together.std() > 0.1
    assert torch.allclose(model.evaluate(sequences()), alone, atol=1e-5)


def test_evaluate_keeps_the_order_over_several_batches(model, monkeypatch):
    monkeypatch.setattr(module, "SCORE_BATCH", 5)
    assert torch.allclose(model.evaluate(sequences()), model(sequences()), atol=1e-5)
    assert not model.evaluate(sequences()).requires_grad


def test_the_head_begins_at_one_over_the_root_of_c_plus_1():
    """255 + 1 = 16 squared: standard deviation 1/16 (of 2550 draws from ten seeds: within 4%), bias exactly 0."""
    config = GPT2Config(vocab_size=2, n_positions=1, n_embd=255, n_layer=1, n_head=1)
    heads = [RewardModel(config, generator=generator(seed)).r_head for seed in range(10)]
    drawn = torch.cat([head.weight.flatten() for head in heads])
    assert drawn.std().item() == pytest.approx(1 / 16, rel=0.04) and abs(drawn.mean().item()) < 0.005
    assert all(head.bias.item() == 0 for head in heads)
    assert torch.equal(heads[3].weight, RewardModel(config, generator=generator(3)).r_head.weight)


@pytest.mark.parametrize("wrong, message", [
    ([torch.zeros(33, dtype=torch.long)], r"sequences\[0\] has 33 tokens, but the model has 32 positions"),
    ([torch.tensor([257])], "token id 257 is outside the vocabulary"),
    ([torch.tensor([], dtype=torch.long)], "non-empty"),
    (["text"], "is text; encode it first"),
    ([], "at least one sequence"),
])
def test_forward_refuses_what_is_no_batch_of_sequences(model, wrong, message):
    with pytest.raises(ValueError, match=message):
        model(wrong)


# --- texts ----------------------------------------------------------------------------------------

def test_score_reads_query_and_response_as_one_text(model):
    expected = model([torch.tensor(BYTES.encode("a good film")), torch.tensor(BYTES.encode("bad"))])
    scores = model.score(["a good", ""], [" film", "bad"])
    assert type(scores[0]) is float and scores == pytest.approx(expected.tolist(), abs=1e-5)
    assert model.score([], []) == []


def test_a_text_without_tokens_is_one_eos(model):
    assert model.encode("").tolist() == [256]
    assert model.score([""], [""]) == pytest.approx(model([torch.tensor([256])]).tolist())


def test_of_a_long_text_the_end_is_read(model):
    """n_positions is 32: 40 letters and the last 32 of them score alike, and so does no other cut."""
    text = "".join(chr(97 + i % 26) for i in range(40))
    full, end, start = model.score(["", "", ""], [text, text[-32:], text[:32]])
    assert full == pytest.approx(end) and full != pytest.approx(start, abs=1e-3)
    assert model.encode(text, 3).tolist() == BYTES.encode(text[-3:])
    assert len(model.encode(text, 100)) == 32


def test_score_names_what_is_missing(model):
    with pytest.raises(ValueError, match="2 queries and 1 responses"):
        model.score(["a", "b"], ["c"])
    with pytest.raises(ValueError, match="no tokenizer"):
        RewardModel(CONFIG).score(["a"], ["b"])


# --- normalisation --------------------------------------------------------------------------------

def test_normalize_gives_mean_0_and_standard_deviation_1_and_keeps_the_order(model):
    before = model.evaluate(sequences())
    model.normalize(sequences())
    after = model.evaluate(sequences())
    assert after.mean().item() == pytest.approx(0, abs=1e-5)
    assert after.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert before.argsort().tolist() == after.argsort().tolist()


def test_normalize_by_hand_whatever_gain_and_bias_were(model, monkeypatch):
    """Head outputs 1 3 5 7 have mean 4 and standard deviation sqrt(5): gain 1/sqrt(5), bias -4/sqrt(5). Twice the same."""
    raw = torch.tensor([1.0, 3.0, 5.0, 7.0])
    monkeypatch.setattr(RewardModel, "evaluate", lambda self, _: self.gain * raw + self.bias)
    for gain, bias in ((1.0, 0.0), (10.0, -3.0)):
        model.gain.fill_(gain)
        model.bias.fill_(bias)
        model.normalize(raw)
        assert model.gain.item() == pytest.approx(1 / math.sqrt(5)) and model.bias.item() == pytest.approx(-4 / math.sqrt(5))


def test_a_constant_gets_gain_1(model):
    """One text has no spread: its score becomes 0, and no other score becomes huge or NaN."""
    spread = model.evaluate(sequences()).std().item()
    model.normalize(sequences()[:1] * 3)
    assert model.gain.item() == 1
    assert model.evaluate(sequences()[:1]).item() == pytest.approx(0, abs=1e-6)
    assert model.evaluate(sequences()).std().item() == pytest.approx(spread, rel=1e-4)


def test_rounding_is_no_spread(model, monkeypatch):
    """100 and the next number of fp32 differ by 7.6e-6: the same score, not one of standard deviation 3.8e-6."""
    raw = torch.tensor([100.0, 100.0]).nextafter(torch.tensor([100.0, 101.0]))
    monkeypatch.setattr(RewardModel, "evaluate", lambda self, _: raw)
    model.normalize(raw)
    assert model.gain.item() == 1 and model.bias.item() == pytest.approx(-100)


def test_normalize_refuses_nan_and_no_samples_and_changes_nothing(model):
    model.normalize(sequences())
    gain, bias = model.gain.item(), model.bias.item()
    with pytest.raises(ValueError, match="got none"):
        model.normalize([])
    model.r_head.weight.data[0, 0] = math.nan
    with pytest.raises(FloatingPointError, match="nan"):
        model.normalize(sequences())
    assert (model.gain.item(), model.bias.item()) == (gain, bias)


# --- losses ---------------------------------------------------------------------------------------

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


# --- batches --------------------------------------------------------------------------------------

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


# --- training -------------------------------------------------------------------------------------

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
        model = RewardModel(CONFIG, generator=generator())
        model.tokenizer = BYTES
        train_on_labels(model, texts, labels, RewardModelConfig(**FAST, seed=seed))
        states.append(state(model))
    assert same(states[0], states[1]) and not same(states[0], states[2])


def test_held_out_examples_are_never_trained_on(model):
    """Labels that are turned around in the held-out part alone: the same weights, accuracy a against 1 - a."""
    texts, labels = reviews(100)
    examples = [Example((text,), float(label)) for text, label in zip(texts, labels)]
    held_out = {example.texts[0] for example in split(examples, 0.2, generator(0))[1]}
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
    ([], "no examples"),
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
    ([], [], "no examples"),
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


# --- starting from a language model ---------------------------------------------------------------

def test_from_gpt2_copies_the_language_model_and_trains_all_of_it():
    """The start may be a frozen reference: its copy learns, and it stays as it is."""
    gpt2 = GPT2(CONFIG, generator=generator()).requires_grad_(False)
    before = {name: p.clone() for name, p in gpt2.named_parameters()}
    model = RewardModel.from_gpt2(gpt2, BYTES, generator(5))
    assert all(torch.equal(p, before[name]) for name, p in model.transformer.named_parameters())
    train_on_labels(model, *reviews(16), RewardModelConfig(**FAST))
    assert all(torch.equal(p, before[name]) for name, p in gpt2.named_parameters())
    assert not any(torch.equal(p, before[name]) for name, p in model.transformer.named_parameters() if "h.0" in name)


def test_from_gpt2_draws_the_head_from_the_generator():
    heads = [RewardModel.from_gpt2(GPT2(CONFIG), BYTES, generator(seed)).r_head.weight for seed in (5, 5, 6)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


# --- the folder -----------------------------------------------------------------------------------

def test_a_saved_model_comes_back_bit_for_bit(model, tmp_path):
    model.normalize(sequences())
    model.save_pretrained(tmp_path / "rm")
    loaded = RewardModel.from_pretrained(tmp_path / "rm", device="cpu")
    assert same(state(loaded), state(model)) and loaded.gain != 1
    queries, responses = ["a", "bb", ""], [" film", "", ""]
    assert loaded.score(queries, responses) == model.score(queries, responses)


def test_the_folder_holds_what_the_design_says(model, tmp_path):
    model.save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors", HEAD_FILE, "vocab.json", "merges.txt",
                     "tokenizer_config.json", "README.md"}
    shapes = {name: tuple(x.shape) for name, x in read_safetensors(tmp_path / HEAD_FILE).items()}
    assert shapes == {"r_head.weight": (1, 16), "r_head.bias": (1,), "gain": (), "bias": ()}
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == 256
    assert "reward model" in (tmp_path / "README.md").read_text()


def test_saving_again_keeps_a_readme_and_foreign_files(model, tmp_path):
    for name in ("README.md", "notes.txt"):
        (tmp_path / name).write_text("mine")
    model.save_pretrained(tmp_path)
    model.gain.fill_(3.0)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == (tmp_path / "notes.txt").read_text() == "mine"
    assert RewardModel.from_pretrained(tmp_path, device="cpu").gain == 3


def test_a_folder_without_a_tokenizer_scores_tokens_only(model, tmp_path):
    model.tokenizer = None
    model.save_pretrained(tmp_path)
    loaded = RewardModel.from_pretrained(tmp_path, device="cpu")
    assert torch.equal(loaded(sequences()), model(sequences()))
    with pytest.raises(ValueError, match="no tokenizer"):
        loaded.score(["a"], ["b"])


def test_a_language_model_or_no_folder_is_no_reward_model(tmp_path):
    GPT2(CONFIG).save_pretrained(str(tmp_path / "lm"))
    for folder in ("lm", "nothing"):
        with pytest.raises(FileNotFoundError, match=f"{folder} is no reward model: it has no {HEAD_FILE}"):
            RewardModel.from_pretrained(tmp_path / folder)


@pytest.mark.parametrize("name, tensor, message", [
    ("gain", None, r"gain: expected a tensor of shape \(\), got nothing"),
    ("r_head.weight", torch.zeros(1, 17), r"r_head.weight: expected a tensor of shape \(1, 16\), got \(1, 17\)"),
    ("extra", torch.zeros(2), r"extra: expected a tensor of shape nothing, got \(2,\)"),
    ("bias", torch.tensor(math.nan), "bias holds NaN or infinity"),
    ("gain", torch.tensor(1), "gain is torch.int64"),
])
def test_a_damaged_head_is_named(model, tmp_path, name, tensor, message):
    model.save_pretrained(tmp_path)
    head = read_safetensors(tmp_path / HEAD_FILE)
    head[name] = tensor
    write_safetensors(tmp_path / HEAD_FILE, {key: x for key, x in head.items() if x is not None})
    with pytest.raises(ValueError, match=message):
        RewardModel.from_pretrained(tmp_path, device="cpu")
