"""The settings of a run: what is refused."""

import pytest

from minippo.training.config import RunConfig


@pytest.mark.parametrize("field, value", [
    ("steps", 0), ("steps", 2.5), ("save_every", 0), ("keep_checkpoints", 0), ("warmup", -1), ("query_tokens", 0),
    ("query_tokens", (4, 2)), ("query_tokens", (1, 2, 3)), ("max_new_tokens", None), ("max_new_tokens", "20"),
    ("lr_schedule", "exponential")])
def test_bad_settings_are_refused(field, value):
    with pytest.raises(ValueError, match=f"RunConfig: {field} must"):
        RunConfig("m", "p", "r", "o", **{field: value})
