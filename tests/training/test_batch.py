"""One update's batch: which prompts, which part of a response is scored, at which learning rate."""

from types import SimpleNamespace

import pytest
import torch

from minippo.ppo import PPOConfig
from minippo.training.batch import learning_rate, next_batch
from minippo.training.config import RunConfig
from minippo.training.evaluate import Job, scored_part


def test_queries_are_cut_and_each_pass_takes_every_prompt_once(tmp_path):
    """8 prompts of 5 tokens, batches of 4: two updates are one pass."""
    prompts = [[i, 1, 2, 3, 4] for i in range(8)]
    run = RunConfig("", "", "", "", query_tokens=(2, 4), max_new_tokens=(3, 6))
    tokenizer = SimpleNamespace(vocab_size=256, decode=lambda tokens, skip_special_tokens: "".join(map(chr, tokens)))
    job = Job(run, PPOConfig(batch_size=4), tmp_path, prompts, [], tokenizer, None, None)
    batches = [next_batch(job, taken) for taken in (0, 4, 8, 12)]
    firsts = [int(query[0]) for queries, _ in batches for query in queries]
    assert sorted(firsts[:8]) == sorted(firsts[8:]) == list(range(8)) and firsts[:8] != firsts[8:]
    assert {len(query) for queries, _ in batches for query in queries} == {2, 3, 4}
    assert {limit for _, limits in batches for limit in limits} == {3, 4, 5, 6}
    again = next_batch(job, 4)
    assert [query.tolist() for query in again[0]] == [query.tolist() for query in batches[1][0]] and again[1] == batches[1][1]


def test_each_prompt_is_drawn_once_and_answered_by_its_whole_group(tmp_path):
    """Batches of 6 in groups of 3 take 2 prompts each; limits are drawn for each response."""
    job = Job(RunConfig("", "", "", "", max_new_tokens=(1, 99)), PPOConfig(batch_size=6, group_size=3, advantage="rloo"),
              tmp_path, [[i, 1, 2, 3, 4] for i in range(8)], [], None, None, None)
    batches = [next_batch(job, taken) for taken in (0, 2, 4, 6)]
    assert all(torch.equal(queries[i], queries[i - i % 3]) for queries, _ in batches for i in range(6))
    assert sorted(int(queries[i][0]) for queries, _ in batches for i in (0, 3)) == list(range(8))
    assert len(set(batches[0][1])) > 2


def test_queries_are_cut_between_characters(tmp_path):
    """A token is a byte; é has two."""
    tokenizer = SimpleNamespace(vocab_size=256, decode=lambda tokens, skip_special_tokens: bytes(tokens).decode("utf-8", "replace"))
    job = Job(RunConfig("", "", "", "", query_tokens=2), PPOConfig(batch_size=1), tmp_path, [list("né".encode())], [], tokenizer, None, None)
    assert [bytes(query.tolist()) for query in next_batch(job, 0)[0]] == [b"n"]


@pytest.mark.parametrize("text, after, part", [
    ("a.b.c", 0, "a."), ("a.b.c", 1, "a."), ("a.b.c", 2, "a.b."), ("a.b.c", 4, None), ("abc", 0, None), (".", 0, ".")])
def test_the_scored_part_by_hand(text, after, part):
    """Up to the first full stop behind `after` tokens; here a token is a character."""
    tokenizer = SimpleNamespace(vocab_size=256, decode=lambda tokens, skip_special_tokens=False: "".join(map(chr, tokens)))
    job = SimpleNamespace(run=SimpleNamespace(truncate_at=".", truncate_after=after), tokenizer=tokenizer)
    found = scored_part(job, torch.tensor([ord(c) for c in text]))
    assert (None if found is None else tokenizer.decode(found.tolist())) == part


@pytest.mark.parametrize("schedule, warmup, expected", [
    ("constant", 0, [1, 1, 1, 1]), ("constant", 2, [0.5, 1, 1, 1]),
    ("linear", 0, [1, 0.75, 0.5, 0.25]),                                               # 1 - (step - 1) / 4
    ("linear", 2, [0.5, 1, 1, 0.5]),
    ("cosine", 0, [1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5]),                           # cos 45 degrees is sqrt(1/2)
])
def test_learning_rate_schedules_by_hand(schedule, warmup, expected):
    run = RunConfig("", "", "", "", steps=4, lr_schedule=schedule, warmup=warmup)
    assert [learning_rate(run, PPOConfig(learning_rate=1.0), step) for step in (1, 2, 3, 4)] == pytest.approx(expected)
