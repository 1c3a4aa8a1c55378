"""The settings of a run: what is refused, and paths."""

import json
import os

import pytest
import torch

from minippo.ppo import PPOConfig
from minippo.training.config import RunConfig, check_types, differences, pick_device, place
from test_run import base  # noqa: F401: a fixture


@pytest.mark.parametrize("field, value", [
    ("steps", 0), ("steps", 2.5), ("save_every", 0), ("keep_checkpoints", 0), ("warmup", -1), ("query_tokens", 0),
    ("query_tokens", (4, 2)), ("query_tokens", (1, 2, 3)), ("max_new_tokens", None), ("max_new_tokens", "20"),
    ("lr_schedule", "exponential"), ("truncate_penalty", float("nan")), ("truncate_penalty", 1e39), ("truncate_at", 3), ("truncate_at", ""),
    ("quiet", 1), ("steps", True), ("device", ["cpu"])])
def test_bad_settings_are_refused(field, value):
    with pytest.raises(ValueError, match=f"RunConfig: {field} must"):
        RunConfig("m", "p", "r", "o", **{field: value})


@pytest.mark.parametrize("cls, values, message", [
    (PPOConfig, {"compile": "yes"}, "PPOConfig: compile must be bool, got 'yes'"),
    (PPOConfig, {"seed": "a"}, "PPOConfig: seed must be int, got 'a'"),
    (PPOConfig, {"learning_rate": None}, "PPOConfig: learning_rate must be float, got None"),
    (RunConfig, {"model": 5}, "RunConfig: model must be str, got 5"),
    (RunConfig, {"query_tokens": {"a": 1}}, r"RunConfig: query_tokens must be int | tuple\[int, int\] | None, got {'a': 1}")])
def test_a_value_of_another_type_is_named_with_what_was_wanted(cls, values, message):
    """As a config.json may hold it."""
    with pytest.raises(ValueError, match=message):
        check_types(cls, values)
    check_types(PPOConfig, {"learning_rate": 1, "score_clip": None, "compile": True, "seed": 3})


def test_a_path_is_absolute_and_its_home_is_found_once(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert place("~/runs/x", "--out") == place("runs/x", "--out") == tmp_path / "runs" / "x"
    for path in ("~nosuchuser/x", "", " ", "a\0b"):
        with pytest.raises(ValueError, match="--out"):
            place(path, "--out")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)       # a user whom the system does not know
    with pytest.raises(ValueError, match="--out '~/x': .*write the path out"):
        place("~/x", "--out")


@pytest.mark.parametrize("name", ["meta", "tpu", "cuda:99"])
def test_a_device_that_holds_no_numbers_here_is_refused(name):
    with pytest.raises(ValueError, match=f"no device '{name}' here; there is cpu"):
        pick_device(name)


def test_another_torch_or_number_of_threads_is_a_difference(base):
    record = json.loads((base / "reference" / "config.json").read_text())
    changed = differences(record, record | {"torch": "9", "threads": 7})
    assert changed == ["threads: 1 -> 7", f"torch: {torch.__version__!r} -> '9'"]
