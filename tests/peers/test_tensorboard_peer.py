"""README's TensorBoard lines with the package itself: what a run writes is read back."""

import re
from pathlib import Path

import pytest
import torch

from minippo import GPT2Config, GPT2WithValueHead, PPOConfig
from minippo.training.bpe import train_bpe
from minippo.training.run import RunConfig, train

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_tensorboard_shows_every_number_of_every_update(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "SummaryWriter" in block]
    tokenizer, names, lines = train_bpe(["the film is a joy", "a dog and a boat"] * 3, 280), {}, []
    config = GPT2Config(tokenizer.vocab_size, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    GPT2WithValueHead(config, generator=torch.Generator().manual_seed(0)).save_pretrained("model", tokenizer)
    Path("prompts.txt").write_text("the film\na dog\n")
    exec(block, names)
    train(RunConfig("model", "prompts.txt", "rule:length=2", "x", steps=2, max_new_tokens=4, device="cpu", quiet=True),
          PPOConfig(batch_size=2, mini_batch_size=2), on_update=lambda line: (names["log"](line), lines.append(line)))
    names["writer"].close()
    events = accumulator.EventAccumulator("logs/z").Reload()
    assert sorted(events.Tags()["scalars"]) == sorted(lines[0]) and len(lines) == 2
    for name in lines[0]:
        assert [(event.step, event.value) for event in events.Scalars(name)] == [
            (line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines], name
