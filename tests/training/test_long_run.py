"""Long runs stay as they begin: memory, objects, files and seconds an update. MINIPPO_SLOW=1 adds a run of a thousand updates.

A leak of a few objects an update is too small to be seen in the memory of the process after sixty of them, but not in the
count of objects; a growing buffer of the allocator is the other way round. So both are looked at.
"""

import gc
import json
import os
import statistics
import sys
import time
from pathlib import Path

import pytest
import torch

from conftest import make_policy, make_ragged
from minippo.ppo import PPOConfig, PPOTrainer
from minippo.training.run import RunConfig, train
from test_run import write_model


def memory() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def census() -> tuple[int, int, int]:
    """Tensors alive; blocks of Python's own allocator in use, each an object or a part of one; last, after the list of all
    objects was made for the first two, resident bytes."""
    gc.collect()
    return sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects()), sys.getallocatedblocks(), memory()


needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory of a process from Linux' /proc")


@needs_proc
def test_sixty_updates_use_no_more_than_the_sixty_before():
    """After 60 updates of warm-up, 60 more: no tensor more, less than 5 objects an update, less than 2 MB in all.

    Then the same trainer takes turns with a new one, so that a busy machine slows both: an update costs it no more.
    """
    config = PPOConfig(mini_batch_size=2, ppo_epochs=2, learning_rate=1e-4)
    trainer, queries = PPOTrainer(config, make_policy(n_layer=1)), make_ragged([3, 9, 1, 5])

    def update(trainer: PPOTrainer, number: int) -> float:
        """Seconds of the processor. The shapes change from one to the next, the number of tokens does not."""
        start = time.process_time()
        responses = trainer.generate(queries, max_new_tokens=[3 + 3 * ((number + row) % 4) for row in range(4)])
        trainer.step(queries, responses, [1.0, 0.0, 0.5, -1.0])
        return time.process_time() - start

    for number in range(60):
        update(trainer, number)
    before = census()
    for number in range(60, 120):
        update(trainer, number)
    tensors, blocks, bytes_ = (now - then for then, now in zip(before, census()))
    assert tensors <= 0 and blocks < 5 * 60 and bytes_ < 2e6

    new = PPOTrainer(config, make_policy(n_layer=1))
    seconds = [(update(trainer, number), update(new, number)) for number in range(120, 144)]
    old_median, new_median = (statistics.median(side) for side in zip(*seconds))
    assert old_median < 1.5 * new_median


@needs_proc
@pytest.mark.skipif(not os.environ.get("MINIPPO_SLOW"), reason="a thousand updates, two minutes: set MINIPPO_SLOW=1")
def test_a_thousand_updates_with_all_that_a_run_writes(tmp_path, monkeypatch):
    """Metrics, samples with traces, reports and checkpoints every ten updates.

    Memory: a report reads all metrics whenever it is written, about 9 MB at 1000 updates (measured), which the allocator keeps;
    hence 16 MB from update 200 on. Between reports nothing is left: no tensor, less than 3 objects an update, of which 2 are
    numbers that this test keeps. Files: the logs grow by 2 kB an update. All else has a size of its own: two checkpoints, and a
    report of at most 600 points a curve and 60 updates a trace.
    """
    write_model(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)                              # thousands, and not the subject
    used, counts, folders, report_bytes, out = [], [], [], [], tmp_path / "run"

    def score(queries, responses):
        used.append(memory())
        if len(used) in (200, 1000):
            counts.append(census())
        folders.append(sum(path.is_dir() for path in out.iterdir()))
        report_bytes.append((out / "report.html").stat().st_size if (out / "report.html").exists() else 0)
        return [float(len(response)) for response in responses]

    run = RunConfig(str(tmp_path / "model"), str(tmp_path / "prompts.txt"), "length", str(out), steps=1000,
                    max_new_tokens=(2, 5), quiet=True, device="cpu")
    train(run, PPOConfig(batch_size=4, mini_batch_size=2, ppo_epochs=2, learning_rate=1e-4), score_fn=score)
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == list(range(1, 1001))
    assert (out / "metrics.jsonl").stat().st_size < 2500 * 1000

    assert max(used[200:]) - max(used[100:200]) < 16e6
    tensors, blocks, _ = (after - before for before, after in zip(*counts))
    assert tensors <= 0 and blocks < 3 * 800
    assert max(folders) == 2 and max(report_bytes) < 1.2 * report_bytes[700]
    early, late = (sorted(line["seconds"] for line in part)[30] for part in (metrics[100:400], metrics[700:]))
    assert late < 2 * early                                     # of the fastest tenth: other processes slow whole seconds down
    assert sorted(path.name for path in out.iterdir()) == [".lock", "checkpoint-000990", "checkpoint-001000", "config.json",
                                                           "metrics.jsonl", "report.html", "samples.jsonl"]
