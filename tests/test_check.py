"""`python -m minippo check`: it holds here, and it notices when something does not."""

import re

import pytest
import torch

from conftest import make_policy
from minippo import attention, check, policy, ppo
from minippo.check import run_checks


def test_all_invariants_hold_on_a_folder(tmp_path, capsys):
    make_policy(vocab_size=61).save_pretrained(tmp_path / "m")
    assert run_checks(str(tmp_path / "m"), "cpu") == 0
    printed = capsys.readouterr().out
    assert "all invariants hold" in printed and len(re.findall(r" ok$", printed, re.M)) >= 10


@pytest.mark.parametrize("fault", ["reference moves", "gae", "ratio", "cache"])
def test_a_broken_invariant_is_named(fault, monkeypatch, capsys):
    monkeypatch.setattr(check, "check_closed_form", lambda device: check.at_most("closed form", 0, 0))      # slow, tested below
    if fault == "reference moves":
        monkeypatch.setattr(ppo, "create_reference_model", lambda model: model)
        monkeypatch.setattr(torch.nn.Module, "requires_grad_", lambda self, *args: self)
    elif fault == "gae":
        honest = ppo.compute_advantages
        monkeypatch.setattr(ppo, "compute_advantages", lambda *args, **kwargs: tuple(x * 1.01 for x in honest(*args, **kwargs)))
    elif fault == "cache":                                              # the newest token's keys in the place of the one before
        honest = attention.KVCache.decode
        monkeypatch.setattr(attention.KVCache, "decode", lambda self, input_pos: honest(self, input_pos - 1))
    else:
        honest = policy.token_logprobs
        monkeypatch.setattr(policy, "token_logprobs", lambda *args: tuple(
            x + 1e-3 * torch.is_grad_enabled() for x in honest(*args)))
    assert run_checks(None, "cpu") == 1
    names = re.findall(r"^(.*?)  .* NO$", capsys.readouterr().out, re.M)
    expected = {"reference moves": "reference tensors moved", "gae": "GAE by hand", "ratio": "first minibatch: max |ratio - 1|",
                "cache": "cached decoding = full forward"}
    assert any(name.startswith(expected[fault]) for name in names)


def test_published_greedy_tokens_are_compared(policy):
    row = check.check_greedy(make_policy(vocab_size=50257, n_embd=8, n_head=1, n_layer=1))
    assert not row.ok and int(row.value) > 0
