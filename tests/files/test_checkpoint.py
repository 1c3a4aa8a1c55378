"""Model folders and checkpoints: round trips, what is refused, and that nothing is ever half there."""

import json
import os
import shutil
import warnings

import pytest
import torch

from conftest import make_policy, make_ragged
from minippo.files import checkpoint
from minippo.files.checkpoint import new_folder, verify_folder
from minippo.gpt2 import GPT2
from minippo.policy import GPT2WithValueHead
from minippo.ppo import PPOConfig, PPOTrainer
from minippo.files.safetensors import read_safetensors, write_safetensors

TOKENS = torch.stack(make_ragged([9, 9]))


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.fixture
def folder(policy, tmp_path):
    policy.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder, change) -> None:
    """Apply `change` to the dict of tensors in a folder's model.safetensors."""
    path = folder / "model.safetensors"
    tensors = read_safetensors(path)
    write_safetensors(path, change(tensors) or tensors)


# --- model folders ------------------------------------------------------------------------------------------------------

def test_round_trip_is_bit_for_bit(policy, folder):
    loaded = GPT2WithValueHead.from_pretrained(folder, device="cpu")
    assert same(policy, loaded) and loaded.config == policy.config
    assert same(GPT2.from_pretrained(folder, device="cpu"), policy.transformer)
    assert all(p.is_contiguous() and p.requires_grad for p in loaded.parameters())


def test_the_folder_is_what_transformers_reads(policy, folder):
    """Names with prefix, linear weights as (in, out), no lm_head, no buffers, the format in the metadata, EOS in both configs."""
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "generation_config.json",
                                                        "model.safetensors", "value_head.safetensors"]
    stored = read_safetensors(folder / "model.safetensors")
    assert all(name.startswith("transformer.") for name in stored) and len(stored) == 12 * 2 + 4
    assert stored["transformer.h.0.mlp.c_fc.weight"].shape == (32, 128)
    assert torch.equal(stored["transformer.h.0.attn.c_attn.weight"], policy.transformer.h[0].attn.c_attn.weight.T)
    head = read_safetensors(folder / "value_head.safetensors")
    assert {name: tuple(t.shape) for name, t in head.items()} == {"v_head.summary.weight": (1, 32), "v_head.summary.bias": (1,)}
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "gpt2" and config["activation_function"] == "gelu_new" and config["n_ctx"] == 64
    assert checkpoint.config_json(GPT2(policy.config).config, 60)["eos_token_id"] == 60


def test_gpt2_vocabulary_gets_gpt2s_eos(tmp_path):
    GPT2WithValueHead(make_policy(vocab_size=50257, n_embd=4, n_head=1, n_layer=1).config).save_pretrained(tmp_path / "m")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "m" / name).read_text())["eos_token_id"] == 50256


@pytest.mark.parametrize("variant", ["no prefix", "mask buffers", "lm_head", "float16", "bfloat16", "value head inside"])
def test_other_layouts_are_read(policy, folder, variant):
    def change(tensors):
        if variant == "no prefix":
            return {name.removeprefix("transformer."): t for name, t in tensors.items()}
        if variant == "mask buffers":
            tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 64, 64).tril()
            tensors["transformer.h.1.attn.masked_bias"] = torch.tensor(-1e4)
        if variant == "lm_head":
            tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
        if variant in ("float16", "bfloat16"):
            return {name: t.to(getattr(torch, variant)) for name, t in tensors.items()}
        if variant == "value head inside":
            tensors |= read_safetensors(folder / "value_head.safetensors")
            (folder / "value_head.safetensors").unlink()
    rewrite(folder, change)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = GPT2WithValueHead.from_pretrained(folder, device="cpu")
    assert loaded.transformer.wte.weight.dtype == torch.float32
    if variant.startswith(("float", "bfloat")):
        torch.testing.assert_close(loaded(TOKENS)[0], policy(TOKENS)[0], atol=0.2, rtol=0.1)
    else:
        assert same(loaded, policy)


def test_a_missing_value_head_starts_at_zero_with_one_warning(folder):
    (folder / "value_head.safetensors").unlink()
    with pytest.warns(UserWarning, match="no value head") as caught:
        loaded = GPT2WithValueHead.from_pretrained(folder, device="cpu")
    assert len(caught) == 1 and loaded.v_head.weight.abs().max() == loaded.v_head.bias.abs().max() == 0


@pytest.mark.parametrize("change, message", [
    (lambda t: {name: x for name, x in t.items() if name != "transformer.h.1.attn.c_attn.bias"}, r"1 tensors are missing.*h\.1\.attn\.c_attn\.bias"),
    (lambda t: t.update({"transformer.h.2.ln_2.weight": torch.ones(32)}), r"unexpected tensor transformer\.h\.2\.ln_2\.weight"),
    (lambda t: t.update({"wte.weight": torch.ones(61, 32)}), "unexpected tensor"),
    (lambda t: t.update({"transformer.wte.weight": torch.ones(62, 32)}), r"shape \(62, 32\).*asks for \(61, 32\)"),
    (lambda t: t.update({"transformer.h.0.mlp.c_fc.weight": torch.ones(128, 32)}), r"shape \(128, 32\).*asks for \(32, 128\)"),
    (lambda t: t.update({"lm_head.weight": torch.ones(61, 32)}), "differs from wte"),
    (lambda t: t.update({"transformer.ln_f.bias": torch.ones(32, dtype=torch.int64)}), "int64"),
    (lambda t: t.update({"transformer.ln_f.bias": torch.full((32,), torch.nan)}), "NaN or infinity")],
    ids=["missing", "extra", "twice", "misshapen", "transposed", "lm_head", "integers", "nan"])
def test_damaged_weights_are_named(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(ValueError, match=message):
        GPT2WithValueHead.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("content, message", [
    ("{", "not valid JSON"), ("[]", "gpt2"), ('{"model_type": "llama"}', "llama"), ('{"model_type": "gpt2"}', "missing"),
    ({"n_embd": 30}, "not divisible"), ({"n_layer": "2"}, "n_layer"), ({"vocab_size": 61.0}, "vocab_size"),
    ({"activation_function": "gelu"}, "activation_function is 'gelu'"), ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by"),
    ({"n_inner": 77}, "n_inner"), ({"eos_token_id": [1, 2]}, "eos_token_id"), ({"n_layer": 10**9}, "holds 2 layers"),
    ({"tie_word_embeddings": False}, "tie_word")])
def test_a_config_that_means_another_model_is_refused(folder, content, message):
    path = folder / "config.json"
    path.write_text(content if isinstance(content, str) else json.dumps({**json.loads(path.read_text()), **content}))
    with pytest.raises(ValueError, match=message):
        GPT2.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name.replace(".", r"\.")):
        GPT2.from_pretrained(folder, device="cpu")


def test_saving_into_a_folder_keeps_other_files_and_the_users_card(policy, folder):
    (folder / "notes.txt").write_text("mine")
    (folder / "README.md").write_text("my card")
    other = make_policy(seed=3)
    other.save_pretrained(folder)
    assert (folder / "notes.txt").read_text() == "mine" and (folder / "README.md").read_text() == "my card"
    assert same(GPT2WithValueHead.from_pretrained(folder, device="cpu"), other)
    assert [p.name for p in folder.parent.iterdir()] == ["model"]
    (folder.parent / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        policy.save_pretrained(folder.parent / "file")


def test_a_failed_save_leaves_the_old_folder_and_no_rubbish(policy, folder, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(checkpoint, "write_json", full)
    with pytest.raises(OSError, match="No space"):
        make_policy(seed=3).save_pretrained(folder)
    assert same(GPT2WithValueHead.from_pretrained(folder, device="cpu"), policy)
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_loading_holds_one_copy_at_a_time(policy, folder, monkeypatch):
    """Tensors come from the file one by one; none but the current one is alive outside the model."""
    alive = []
    original = checkpoint.iter_safetensors

    def watched(path):
        import weakref
        for name, tensor in original(path):
            assert sum(ref() is not None for ref in alive) <= 1
            alive.append(weakref.ref(tensor))
            yield name, tensor
            del tensor
    monkeypatch.setattr(checkpoint, "iter_safetensors", watched)
    assert same(GPT2.from_pretrained(folder, device="cpu"), policy.transformer) and len(alive) == 28


# --- checkpoints --------------------------------------------------------------------------------------------------------

QUERIES = make_ragged([3, 5, 2, 4])
CONFIG = PPOConfig(learning_rate=1e-3, mini_batch_size=2, use_score_scaling=True, use_score_norm=True, target=0.1, horizon=50)


def trainer_of(seed: int = 0, schedule: bool = True, **kwargs) -> PPOTrainer:
    policy = make_policy(seed=seed, **kwargs)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)) if schedule else None
    return PPOTrainer(CONFIG, policy, optimizer=optimizer, lr_scheduler=scheduler)


def run(trainer, steps: int) -> list[dict]:
    history = []
    for _ in range(steps):
        responses = trainer.generate(QUERIES, max_new_tokens=6, eos_token_id=7, temperature=0.9)
        stats = trainer.step(QUERIES, responses, [float(r.sum() % 7) for r in responses])
        history.append({name: value for name, value in stats.items() if isinstance(value, float) and "time" not in name})
    return history


def test_a_resumed_trainer_continues_bit_for_bit(tmp_path):
    """Weights, Adam, kl_coef, running moments, schedule, sampling: two steps, save, two more; against a fresh trainer on another
    model that loads and does the last two."""
    straight, resumed = trainer_of(), trainer_of(seed=9)
    run(straight, 2)
    straight.save_checkpoint(tmp_path / "ck")
    resumed.load_checkpoint(tmp_path / "ck")
    assert run(straight, 2) == run(resumed, 2) and resumed.steps_done == 4
    assert same(straight.model, resumed.model) and same(straight.ref_model, resumed.ref_model)
    assert straight.kl_controller.value == resumed.kl_controller.value != 0.2
    assert vars(straight.moments) == vars(resumed.moments)
    assert torch.equal(straight.generator.get_state(), resumed.generator.get_state())


def test_another_optimizer_or_scheduler_is_refused_before_anything_changes(tmp_path):
    trainer = trainer_of()
    run(trainer, 1)
    trainer.save_checkpoint(tmp_path / "ck")
    model = make_policy(seed=7)
    before = [p.clone() for p in model.parameters()]
    optimizers = [(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), "optimizer is Adam"), (None, "lr_scheduler is True")]
    for optimizer, message in optimizers:
        with pytest.raises(ValueError, match=message):
            PPOTrainer(PPOConfig(), model, optimizer=optimizer).load_checkpoint(tmp_path / "ck")
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_checkpoint_is_a_model_folder(tmp_path):
    trainer = trainer_of()
    run(trainer, 1)
    trainer.save_checkpoint(tmp_path / "ck")
    assert same(GPT2WithValueHead.from_pretrained(tmp_path / "ck", device="cpu"), trainer.model)
    assert {"manifest.json", "trainer.json", "trainer.safetensors", "config.json"} <= {p.name for p in (tmp_path / "ck").iterdir()}


def test_saving_twice_replaces_the_whole(tmp_path):
    trainer = trainer_of()
    trainer.save_checkpoint(tmp_path / "ck")
    (tmp_path / "ck" / "stray").write_text("")
    run(trainer, 1)
    trainer.save_checkpoint(tmp_path / "ck")
    assert not (tmp_path / "ck" / "stray").exists() and verify_folder(tmp_path / "ck")["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["ck"]


def test_a_flipped_byte_is_found_in_any_file(tmp_path):
    trainer = trainer_of()
    trainer.save_checkpoint(tmp_path / "ck")
    before = [p.clone() for p in trainer.model.parameters()]
    for path in sorted((tmp_path / "ck").iterdir()):
        content = path.read_bytes()
        path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
        with pytest.raises(ValueError, match="manifest.json" if path.name == "manifest.json" else f"{path.name} is damaged"):
            trainer.load_checkpoint(tmp_path / "ck")
        path.write_bytes(content[:-3])
        with pytest.raises(ValueError):
            trainer.load_checkpoint(tmp_path / "ck")
        path.write_bytes(content)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters()))
    trainer.load_checkpoint(tmp_path / "ck")


def test_a_checkpoint_of_another_model_changes_nothing(tmp_path):
    trainer_of(n_embd=16).save_checkpoint(tmp_path / "ck")
    trainer = trainer_of()
    before = [p.clone() for p in trainer.model.parameters()] + [trainer.generator.get_state()]
    with pytest.raises(ValueError, match="sizes"):
        trainer.load_checkpoint(tmp_path / "ck")
    assert all(torch.equal(a, b) for a, b in zip(before, [*trainer.model.parameters(), trainer.generator.get_state()]))


def test_no_checkpoint_is_said(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="no checkpoint folder"):
        trainer_of().load_checkpoint(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="no manifest.json"):
        trainer_of().load_checkpoint(folder)


def test_names_in_a_manifest_are_never_paths(tmp_path):
    trainer_of().save_checkpoint(tmp_path / "ck")
    manifest = json.loads((tmp_path / "ck" / "manifest.json").read_text())
    manifest["files"]["../../etc/passwd"] = {"bytes": 1, "sha256": "0"}
    (tmp_path / "ck" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="names '../../etc/passwd'"):
        trainer_of().load_checkpoint(tmp_path / "ck")


@pytest.mark.parametrize("existing", [False, True])
def test_a_crash_at_every_system_call_leaves_a_whole_checkpoint(tmp_path, existing):
    """A forked child dies at its n-th fsync, rename or replace, for every n until it lives: what is found afterwards verifies."""
    trainer, folder, died = trainer_of(), tmp_path / "ck", 0
    if existing:
        trainer.save_checkpoint(folder)
        run(trainer, 1)
    for n in range(1, 100):
        child = os.fork()
        if child == 0:
            calls = [0]
            for name in ("fsync", "rename", "replace"):
                def counted(*args, original=getattr(os, name)):
                    calls[0] += 1
                    if calls[0] == n:
                        os._exit(9)
                    return original(*args)
                setattr(os, name, counted)
            try:
                trainer.save_checkpoint(folder)
            finally:
                os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if existing:
            assert verify_folder(folder)["step"] in (0, 1)                  # the old one or the new one, whole
        elif folder.exists():
            verify_folder(folder)
            shutil.rmtree(folder)
        for rubbish in [*tmp_path.glob("*.tmp-*"), *tmp_path.glob("*.old-*")]:
            shutil.rmtree(rubbish)
        if code == 0:
            break
        died += 1
    assert code == 0 and died > 10


def test_new_folder_by_itself(tmp_path):
    with pytest.raises(RuntimeError):
        with new_folder(tmp_path / "x", whole=True) as temporary:
            (temporary / "a").write_text("half")
            raise RuntimeError
    assert not list(tmp_path.iterdir())
