"""Model folders: round trips, other layouts, and what is refused by name before it costs memory."""

import json
import os
import time
import warnings
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import make_policy, make_ragged
from minippo.files import model_folder
from minippo.files.safetensors import read_header, read_safetensors, write_safetensors
from minippo.gpt2 import GPT2
from minippo.policy import GPT2WithValueHead

TOKENS = torch.stack(make_ragged([9, 9]))


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.fixture
def folder(policy, tmp_path):
    policy.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def shapes_of(policy) -> dict[str, tuple]:
    return {name: tuple(p.shape) for name, p in policy.transformer.named_parameters()}


def rewrite(folder, change) -> None:
    """Apply `change` to the dict of tensors in a folder's model.safetensors."""
    path = folder / "model.safetensors"
    tensors = read_safetensors(path)
    write_safetensors(path, change(tensors) or tensors)


def grow(path, name: str, size: int) -> None:
    """Append a tensor of `size` bytes to a file, a hole on the disk: reading it would take as much memory."""
    infos = read_header(path)
    data = path.read_bytes()[min(info.start for info in infos.values()):]
    length = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8:8 + length])
    header[name] = {"dtype": "U8", "shape": [1, 1, 1, size], "data_offsets": [len(data), len(data) + size]}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + data)
        file.truncate(8 + len(text) + len(data) + size)


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
    GPT2WithValueHead(replace(policy.config, eos_token_id=60)).save_pretrained(folder)
    for name in ("config.json", "generation_config.json"):
        assert json.loads((folder / name).read_text())["eos_token_id"] == 60


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
    ("{", "not valid JSON"), ("[]", "gpt2"), ('{"model_type": "llama"}', "llama"), ('{"model_type": "gpt2"}', "vocab_size must be .*got None"),
    ({"n_embd": 30}, "not divisible"), ({"n_layer": "2"}, "n_layer"), ({"vocab_size": 61.0}, "vocab_size"),
    ({"activation_function": "gelu"}, "activation_function is 'gelu'"), ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by"),
    ({"n_inner": 77}, "n_inner"), ({"eos_token_id": [1, 2]}, "eos_token_id"), ({"n_layer": 999}, "11964 tensors are missing"),
    ({"tie_word_embeddings": False}, "tie_word"),
    ({"n_embd": 1e18}, "n_embd must be a whole number from 1 to 131,072, got 1e"), ({"n_embd": 10**18}, "n_embd must be"),
    ({"vocab_size": 2**63}, "vocab_size must be"), ({"n_positions": 2**62}, "n_positions must be"), ({"n_head": True}, "n_head must be"),
    ({"n_layer": 1001}, "n_layer must be a whole number from 1 to 1,000"), ({"n_layer": 0}, "n_layer must be"),
    ({"layer_norm_epsilon": 1e18}, "layer_norm_epsilon must be"), ({"layer_norm_epsilon": "1e-5"}, "layer_norm_epsilon must be"),
    ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon must be"), ("[" * 100_000, "not valid JSON"),
    ('{"n_embd": ' + "9" * 5000 + "}", "not valid JSON")],
    ids=lambda value: f"{value!s:.40}")
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


def test_weights_under_names_that_nothing_could_load_are_not_saved(policy, folder, tmp_path):
    """A layer that somebody wrapped has other names: from_pretrained would refuse the folder, after the training."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    torch.nn.utils.parametrizations.weight_norm(policy.transformer.h[1].mlp.c_fc)
    for place in (folder, tmp_path / "new"):
        with pytest.raises(ValueError, match="h.1.mlp.c_fc.parametrizations.weight.original0 is no parameter of GPT-2"):
            policy.save_pretrained(place)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before and not (tmp_path / "new").exists()


def test_a_model_in_the_home_folder_and_a_name_that_is_none(policy, tmp_path, monkeypatch):
    """None, as os.environ.get gives it, is no name: there may be a repo called None."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for _ in range(2):                                                      # new, and into what is there
        policy.save_pretrained("~/model")
    assert same(policy, GPT2WithValueHead.from_pretrained("~/model", device="cpu")) and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(TypeError, match="NoneType"):
        GPT2WithValueHead.from_pretrained(None)


def test_a_failed_save_leaves_the_old_folder_and_no_rubbish(policy, folder, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(model_folder, "write_json", full)
    with pytest.raises(OSError, match="No space"):
        make_policy(seed=3).save_pretrained(folder)
    assert same(GPT2WithValueHead.from_pretrained(folder, device="cpu"), policy)
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_loading_holds_one_tensor_at_a_time(policy, folder, monkeypatch):
    """Tensors come from the file one by one; what the model does not keep is gone before the next is read."""
    alive = []
    original = model_folder.iter_safetensors

    def watched(path, names):
        for name, tensor in original(path, names):
            assert not any(ref() is not None for ref in alive)
            alive.append(weakref.ref(tensor))
            yield name, tensor
            del tensor
    monkeypatch.setattr(model_folder, "iter_safetensors", watched)
    for name, tensor in model_folder.read_weights(folder, shapes_of(policy)):
        assert torch.equal(tensor, policy.transformer.get_parameter(name))
        del tensor
    assert len(alive) == 28


# --- traps --------------------------------------------------------------------------------------------------------------

def test_a_huge_config_is_refused_unread(folder):
    with open(folder / "config.json", "wb") as file:
        file.truncate(30 * 10**9)
    with pytest.raises(ValueError, match="config.json has 30,000,000,000 bytes .*at most 1,048,576"):
        GPT2.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("kind", ["fifo", "folder"])
@pytest.mark.parametrize("name", ["value_head.safetensors", "model.safetensors"])
def test_a_pipe_or_a_folder_in_place_of_weights_is_refused_and_never_waited_for(folder, kind, name):
    (folder / name).unlink()
    os.mkfifo(folder / name) if kind == "fifo" else (folder / name).mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=name):
        GPT2WithValueHead.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("name", ["transformer.h.0.attn.bias", "v_head.notes"])
def test_a_tensor_that_is_ignored_anyway_takes_no_memory(policy, folder, name):
    grow(folder / "model.safetensors", name, 20 * 10**9)
    assert same(GPT2WithValueHead.from_pretrained(folder, device="cpu"), policy)


def test_a_tensor_too_many_is_named_before_any_is_read(policy, folder):
    grow(folder / "model.safetensors", "transformer.h.9.attn.c_attn.weight", 20 * 10**9)
    with pytest.raises(ValueError, match=r"unexpected tensor transformer\.h\.9"):
        dict(model_folder.read_weights(folder, shapes_of(policy)))


@pytest.mark.parametrize("layers", [900, 100_000])
def test_empty_tensors_by_the_thousand_cost_seconds_at_most(folder, layers):
    """As many as n_layer says; 100,000 layers are more than are read at all."""
    rewrite(folder, lambda tensors: {f"transformer.h.{i}.ln_1.weight": torch.empty(0) for i in range(layers)} if layers < 1000 else tensors)
    if layers > 1000:
        entries = ",".join(f'"h.{i}.ln_1.weight":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(layers))
        text = ("{" + entries + "}").encode()
        (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_layer": layers}))
    begun = time.process_time()
    with pytest.raises(ValueError, match=r"n_layer must be|ln_1.weight of shape \(0,\)"):
        GPT2.from_pretrained(folder, device="cpu")
    assert time.process_time() - begun < 20


def test_a_pickle_alone_comes_with_the_two_lines_that_convert_it(folder):
    os.rename(folder / "model.safetensors", folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError) as error:
        GPT2.from_pretrained(folder, device="cpu")
    assert "lacks model.safetensors" in str(error.value) and "never opened" in str(error.value)
    assert f"    AutoModelForCausalLM.from_pretrained('{folder}').save_pretrained('{folder}', " in str(error.value)


@pytest.mark.parametrize("content", ['{"ppo": {}, "run": {}}', "[]", "// mine"])
def test_a_config_json_that_is_no_models_is_not_written_over(policy, tmp_path, content):
    """That of a run or of an application; save_pretrained(".") is quickly typed."""
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match="config.json"):
        policy.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_text() == content and [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_saving_needs_no_room_beside_a_folder_that_exists(policy, folder, monkeypatch):
    """It may be a disk of its own, mounted there: files are renamed within it, never into it."""
    moves, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: moves.append((Path(a), Path(b))) or replace(a, b))
    policy.save_pretrained(folder)
    assert moves and all(folder in source.parents and folder in target.parents for source, target in moves)
    assert [p.name for p in folder.parent.iterdir()] == ["model"] and not list(folder.glob("*tmp*"))


# --- in parts -----------------------------------------------------------------------------------------------------------

def split(folder, names=("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")) -> dict:
    """model.safetensors in two parts, with their index, as transformers writes them."""
    tensors = read_safetensors(folder / "model.safetensors")
    weight_map = {name: names[i % 2] for i, name in enumerate(sorted(tensors))}
    for part in names:
        write_safetensors(folder / part, {name: tensors[name] for name in tensors if weight_map[name] == part})
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    return index


def test_a_model_in_parts_is_read_like_a_whole_one(policy, folder):
    split(folder)
    assert same(GPT2WithValueHead.from_pretrained(folder, device="cpu"), policy)


def test_a_value_head_in_one_of_the_parts_is_found(policy, folder):
    rewrite(folder, lambda tensors: tensors | read_safetensors(folder / "value_head.safetensors"))
    (folder / "value_head.safetensors").unlink()
    split(folder)
    assert same(GPT2WithValueHead.from_pretrained(folder, device="cpu"), policy)


def test_a_whole_model_is_preferred_to_parts(policy, folder):
    split(folder)
    other = make_policy(seed=3)
    other.save_pretrained(folder)
    assert same(GPT2WithValueHead.from_pretrained(folder, device="cpu"), other)


@pytest.mark.parametrize("change, kind, message", [
    (lambda folder, index: (folder / "model-00002-of-00002.safetensors").unlink(), FileNotFoundError, "lacks model-00002-of-00002"),
    (lambda folder, index: index["weight_map"].update(x="../../etc/passwd.safetensors"), ValueError, "expected weight_map.*etc/passwd"),
    (lambda folder, index: index["weight_map"].update(x="config.json"), ValueError, "expected weight_map.*'config.json'"),
    (lambda folder, index: index["weight_map"].update(x=5), ValueError, "expected weight_map.*got TypeError"),
    (lambda folder, index: index.update(weight_map=[]), ValueError, "expected weight_map"),
    (lambda folder, index: write_safetensors(folder / "model-00001-of-00002.safetensors",
                                             read_safetensors(folder / "model-00002-of-00002.safetensors")), ValueError, "already|missing")],
    ids=["part missing", "path", "foreign", "number", "list", "twice"])
def test_a_broken_index_is_named(folder, change, kind, message):
    index = split(folder)
    change(folder, index)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(kind, match=message):
        GPT2.from_pretrained(folder, device="cpu")
