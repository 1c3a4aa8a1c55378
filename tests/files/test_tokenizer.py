"""The tokenizer: GPT-2's facts, round trips, files good and broken.

What needs GPT-2's real vocabulary takes it from tiktoken's cache (TIKTOKEN_CACHE_DIR, or ../shared/tiktoken-cache beside the
repository) and skips where there is none; the rest runs on a vocabulary of 261 tokens that is worked out by hand below.
"""

import hashlib
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import torch

from minippo.files import tokenizer as module
from minippo.files.hub import PUBLIC_MODELS, HubModel
from minippo.files.tokenizer import ALPHABET, EOS, GPT2_FILES, Tokenizer, load_tokenizer
from minippo.training.bpe import train_bpe

CACHE = Path(os.environ.get("TIKTOKEN_CACHE_DIR") or Path(__file__).parents[3] / "shared" / "tiktoken-cache")
CACHE_NAMES = {name: hashlib.sha1(url.encode()).hexdigest() for name, (url, _) in GPT2_FILES.items()}
needs_gpt2 = pytest.mark.skipif(not all((CACHE / name).is_file() for name in CACHE_NAMES.values()),
                                reason=f"GPT-2's two BPE files are not in {CACHE} (set TIKTOKEN_CACHE_DIR)")
TINY_MERGES = ["l o", "lo w", "e r", "Ġ low"]


@pytest.fixture(autouse=True)
def no_network_no_caches(monkeypatch, tmp_path):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "DATA_GYM_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "no-cache"))


@pytest.fixture(scope="module")
def gpt2():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_HOME", str(CACHE / "no-such-folder"))
        patch.setenv("TIKTOKEN_CACHE_DIR", str(CACHE))
        return load_tokenizer("gpt2")


def tiny():
    return train_bpe(["low low lower newer"], 300)


def tiny_vocab():
    return {token: i for i, token in enumerate([*ALPHABET, "lo", "low", "er", "Ġlow", EOS])}


def write_files(folder, vocab, merges):
    """A tokenizer folder from a dict (or raw bytes) and a list of merges (or raw bytes)."""
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_bytes(vocab if isinstance(vocab, bytes) else json.dumps(vocab).encode())
    lines = "".join(line + "\n" for line in ["#version: 0.2", *merges]).encode() if isinstance(merges, list) else merges
    (folder / "merges.txt").write_bytes(lines)
    return folder


def random_text(rng, length):
    """Text of every plane of Unicode, with combining marks, emoji, runs of blanks, contractions and the marker."""
    kinds = [lambda: chr(rng.randrange(32, 127)), lambda: chr(rng.randrange(0xD800)), lambda: chr(rng.randrange(0xE000, 0x110000)),
             lambda: chr(rng.randrange(0x300, 0x370)), lambda: chr(rng.randrange(0x1F300, 0x1F700)),
             lambda: rng.choice("\u200d\ufe0f\u3000\u00a0\x00\x85"), lambda: rng.choice(" \n\t\r") * rng.randrange(1, 9),
             lambda: rng.choice(["'s", "'LL", "don't", " 've", EOS, "👩‍👩‍👧", "²½", "العربية", "漢字"])]
    return "".join(rng.choice(kinds)() for _ in range(length))


def merged_one_by_one(piece, merges):
    """BPE as merges.txt means it: one merge after the other, each wherever its two parts stand side by side."""
    parts = [piece[i:i + 1] for i in range(len(piece))]
    for left, right in merges:
        done = []
        while parts:
            width = 2 if parts[:2] == [left, right] else 1
            done.append(b"".join(parts[:width]))
            del parts[:width]
        parts = done
    return parts


# ---------------------------------------------------------------------------------------------------------------------
# GPT-2's own vocabulary
# ---------------------------------------------------------------------------------------------------------------------

@needs_gpt2
def test_gpt2_ids(gpt2):
    assert gpt2.encode("hello world") == [31373, 995]
    assert gpt2.encode("This morning I went to the ") == [1212, 3329, 314, 1816, 284, 262, 220]
    assert gpt2.encode("Hello, my dog is a little") == [15496, 11, 616, 3290, 318, 257, 1310]
    assert (gpt2.vocab_size, gpt2.eos_token_id, gpt2.bos_token_id) == (50257, 50256, 50256)
    assert gpt2.decode([464, 3290]) == "The dog"


@needs_gpt2
def test_gpt2_marker_in_a_text_is_text(gpt2):
    assert gpt2.encode("hello <|endoftext|>") == [31373, 1279, 91, 437, 1659, 5239, 91, 29]
    assert gpt2.decode([50256]) == "<|endoftext|>"


@needs_gpt2
def test_gpt2_equals_tiktoken(gpt2, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(CACHE))
    theirs, rng = tiktoken.get_encoding("gpt2"), random.Random(0)
    for _ in range(2000):
        text = random_text(rng, 20)
        assert gpt2.encode(text) == theirs.encode_ordinary(text)
        assert gpt2.decode(gpt2.encode(text)) == text


@needs_gpt2
def test_gpt2_is_saved_byte_for_byte(gpt2, tmp_path):
    gpt2.save_pretrained(tmp_path)
    for name, (_, sha256) in GPT2_FILES.items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == sha256


@needs_gpt2
def test_model_folder_of_gpt2s_size_without_a_tokenizer_takes_gpt2s(tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(CACHE))
    (tmp_path / "config.json").write_text('{"vocab_size": 50257}')
    assert load_tokenizer(tmp_path).encode("hello world") == [31373, 995]


# ---------------------------------------------------------------------------------------------------------------------
# encode and decode
# ---------------------------------------------------------------------------------------------------------------------

def test_round_trip():
    tokenizer, rng = tiny(), random.Random(1)
    for _ in range(1000):
        text = random_text(rng, 15)
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.eos_token_id not in ids


@pytest.mark.parametrize("text", ["", " ", "     ", EOS, "x" * 1_000_000, " " * 1_200_000, "\n" * 1_200_000 + "low"],
                         ids=lambda text: f"{text[:13]!r}*{len(text)}")
def test_strange_texts(text):
    ids = tiny().encode(text)
    assert tiny().decode(ids) == text and tiny().eos_token_id not in ids


def test_a_run_of_blanks_leaves_one_for_the_word_whatever_its_length():
    """The group of 999 in PATTERN must cut exactly where the plain expression cuts."""
    tokenizer = train_bpe([" " * 64 + "\n" * 64], 300)
    plain = tiktoken.Encoding("plain", pat_str=module.PATTERN.replace(r"(?:\s{999})*", ""), special_tokens={},
                              mergeable_ranks=tokenizer._encoding._mergeable_ranks)
    for length in [1, 2, 3, 64, *range(996, 1004), *range(1996, 2004)]:
        for text in (" " * length, " " * length + "x", "x" + " " * (length - 1) + "\n!"):
            assert tokenizer._encoding.encode_ordinary(text) == plain.encode_ordinary(text)


def test_surrogates():
    tokenizer = tiny()
    assert tokenizer.encode("a\ud800b") == tokenizer.encode("a\ufffdb")
    assert tokenizer.encode("\udc00\ud800") == tokenizer.encode("\ufffd\ufffd")
    assert tokenizer.encode("\ud83d\ude00") == tokenizer.encode("😀")


@pytest.mark.parametrize("text", [None, b"low", ["low"], 7])
def test_encode_refuses_what_is_no_text(text):
    with pytest.raises(ValueError, match=f"one text .*, got {type(text).__name__}"):
        tiny().encode(text)


@pytest.mark.parametrize("ids", [[257, 259, 258], (257, 259, 258), torch.tensor([257, 259, 258]), np.array([257, 259, 258]),
                                 torch.tensor([257, 259, 258], dtype=torch.int32), list(torch.tensor([257, 259, 258]))], ids=type)
def test_decode_takes_lists_and_tensors(ids):
    assert tiny().decode(ids) == "low lower"


def test_decode_of_eos_and_of_half_a_character():
    tokenizer = tiny()
    assert tokenizer.decode([257, 260, 257]) == "low<|endoftext|>low"
    assert tokenizer.decode([257, 260, 257], skip_special_tokens=True) == "lowlow"
    assert tokenizer.decode([]) == ""
    first_half = tokenizer.encode("é")[:1]
    assert tokenizer.decode([257, *first_half, 257]) == "low\ufffdlow"


@pytest.mark.parametrize("ids, message", [
    ([5, 261], "id 261 is outside the vocabulary of 261"), ([-1], "id -1 is outside"), (torch.tensor([300]), "id 300"),
    (5, "one list"), (torch.tensor(5), "one list"), ([[5]], "one list"), (torch.tensor([[5]]), "one list"), ([5.0], "one list"),
    (torch.tensor([5.0]), "one list"), ("low", "one list"), (None, "one list")])
def test_decode_refuses(ids, message):
    with pytest.raises(ValueError, match=message):
        tiny().decode(ids)


# ---------------------------------------------------------------------------------------------------------------------
# folders
# ---------------------------------------------------------------------------------------------------------------------

def test_save_and_load(tmp_path):
    tiny().save_pretrained(tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    assert sorted(path.name for path in folder.iterdir()) == ["merges.txt", "tokenizer_config.json", "vocab.json"]
    assert (folder / "merges.txt").read_text("utf-8") == "#version: 0.2\nl o\nlo w\ne r\nĠ low\n"
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 1024
    loaded = load_tokenizer(str(folder))
    assert (loaded._vocab, loaded._merges) == (tiny_vocab(), TINY_MERGES)
    assert loaded.encode("low lower er") == [257, 259, 258, 220, 258]


def test_a_failing_save_leaves_the_old_files(tmp_path, monkeypatch):
    train_bpe([], 257).save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def disk_full(descriptor):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        tiny().save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_ids_in_any_order(tmp_path):
    """Each id moved up by 7, round the end: tiktoken's ranks are no longer the ids, and <|endoftext|> = (260 + 7) % 261 = 6."""
    folder = write_files(tmp_path, {token: (i + 7) % 261 for token, i in tiny_vocab().items()}, TINY_MERGES)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("low lower er") == [3, 5, 4, 227, 4]
    assert tokenizer.decode([3, 5, 4, 6]) == "low lower<|endoftext|>"
    assert tokenizer.eos_token_id == 6
    tokenizer.save_pretrained(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").encode("low") == [3]


def test_tokens_that_no_merge_makes_can_only_be_decoded(tmp_path):
    folder = write_files(tmp_path, {**tiny_vocab(), "<|pad|>": 261, "Ġnewer": 262, "漢": 263}, TINY_MERGES)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode([261, 262, 263]) == "<|pad|> newer漢"
    assert max(tokenizer.encode("<|pad|> newer漢")) < 260


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_other_line_ends_are_read(tmp_path, end):
    """With "\r" alone the whole file looked like its first line, and no merge was left."""
    folder = write_files(tmp_path, tiny_vocab(), end.join(["#version: 0.2", *TINY_MERGES, ""]).encode())
    assert load_tokenizer(folder).encode("low lower er") == [257, 259, 258, 220, 258]


@pytest.mark.parametrize("kept", range(4))
def test_merges_that_were_cut_off_at_a_line_are_noticed(tmp_path, kept):
    """The first merge that is lost leaves a token that two others make together: lo, low, er, Ġlow."""
    token = ["'lo'", "'low'", "'er'", "'Ġlow'"][kept]
    with pytest.raises(ValueError, match=f"^{tmp_path}: merges.txt has {kept} merges, and none makes {token} .* the file is cut off"):
        load_tokenizer(write_files(tmp_path, tiny_vocab(), TINY_MERGES[:kept]))


@needs_gpt2
@pytest.mark.parametrize("lines", [1, 1000, 49_999])
def test_gpt2s_own_merges_cut_off_are_noticed(gpt2, tmp_path, lines):
    folder = write_files(tmp_path, gpt2._vocab, gpt2._merges[:lines])
    with pytest.raises(ValueError, match=f"merges.txt has {lines} merges, and none makes"):
        load_tokenizer(folder)


def test_a_vocabulary_that_is_no_file_of_ours_is_refused_unread(tmp_path):
    folder = write_files(tmp_path, tiny_vocab(), TINY_MERGES)
    with open(folder / "vocab.json", "wb") as file:
        file.truncate(30 * 10**9)
    with pytest.raises(ValueError, match="vocab.json has 30,000,000,000 bytes"):
        load_tokenizer(folder)


# ---------------------------------------------------------------------------------------------------------------------
# added tokens
# ---------------------------------------------------------------------------------------------------------------------

ENTRIES = [(260, EOS, True), (261, "<|pad|>", True), (262, " Ġname", False)]
ADDED = {
    "added_tokens.json": {"<|pad|>": 261, " Ġname": 262},
    "tokenizer_config.json": {"added_tokens_decoder": {str(i): {"content": text, "special": special} for i, text, special in ENTRIES}},
    "tokenizer.json": {"added_tokens": [{"id": i, "content": text, "special": special} for i, text, special in ENTRIES]}}


@pytest.mark.parametrize("files", [*([name] for name in ADDED), list(ADDED)], ids=lambda files: "+".join(files))
def test_added_tokens_are_read_counted_and_decoded(tmp_path, files):
    """Their texts are texts: Ġ is no space in them. added_tokens.json does not say what is special."""
    folder = write_files(tmp_path, tiny_vocab(), TINY_MERGES)
    for name in files:
        (folder / name).write_text(json.dumps(ADDED[name]))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.vocab_size == 263 and tokenizer.eos_token_id == 260
    assert tokenizer.decode([257, 261, 262, 260]) == "low<|pad|> Ġname<|endoftext|>"
    assert tokenizer.decode([257, 261, 262, 260], skip_special_tokens=True) == ("low<|pad|> Ġname" if files == ["added_tokens.json"] else "low Ġname")
    with pytest.raises(ValueError, match="id 263 is outside the vocabulary of 263"):
        tokenizer.decode([263])


def test_an_added_token_in_a_text_is_text(tmp_path):
    """As the end marker: a prompt from a stranger cannot steer what reads it."""
    tokenizer = Tokenizer(tiny_vocab(), TINY_MERGES, {"<|pad|>": (261, True)})
    ids = tokenizer.encode("low<|pad|>low")
    assert 261 not in ids and tokenizer.decode(ids) == "low<|pad|>low"


def test_added_tokens_are_saved_and_come_back(tmp_path):
    added = {"<|pad|>": (261, True), " Ġname": (262, False)}
    Tokenizer(tiny_vocab(), TINY_MERGES, added).save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert {text: loaded._added[text] for text in added} == added and loaded.vocab_size == 263


def test_a_special_token_inside_the_vocabulary_is_left_out_too(tmp_path):
    """And it may look like two tokens side by side, as a cut merges.txt leaves them: it is said to be added."""
    folder = write_files(tmp_path, tiny_vocab() | {"lower": 261}, TINY_MERGES)
    with pytest.raises(ValueError, match="none makes 'lower'"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"id": 261, "content": "lower", "special": True}]}))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.vocab_size == 262 and tokenizer.decode([257, 261]) == "lowlower"
    assert tokenizer.decode([257, 261], skip_special_tokens=True) == "low" and tokenizer.encode("lower") == [257, 258]


@pytest.mark.parametrize("file, content, message", [
    ("added_tokens.json", {"<|pad|>": 262}, "ids from 261 on without a hole"), ("added_tokens.json", {"<|pad|>": 5}, "ids from 261 on"),
    ("added_tokens.json", {"low": 261}, "that vocab.json has not"), ("added_tokens.json", [], "not as transformers writes them"),
    ("added_tokens.json", {"<|pad|>": "261"}, "not as transformers"), ("added_tokens.json", {"a": 261, "b": 261}, "ids from 261 on"),
    ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "a"}}}, "not as transformers"),
    ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "not as transformers"), ("tokenizer.json", {"added_tokens": [{}]}, "not as transformers"),
    ("tokenizer.json", {"added_tokens": 5}, "not as transformers")], ids=lambda value: f"{value!s:.30}")
def test_added_tokens_that_make_no_sense_are_named(tmp_path, file, content, message):
    folder = write_files(tmp_path, tiny_vocab(), TINY_MERGES)
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{tmp_path}.*{message}"):
        load_tokenizer(folder)


# ---------------------------------------------------------------------------------------------------------------------
# called as transformers' tokenizers are
# ---------------------------------------------------------------------------------------------------------------------

def test_a_tokenizer_is_called_and_decodes_batches():
    tokenizer = tiny()
    assert tokenizer("low lower") == {"input_ids": [257, 259, 258]}
    assert tokenizer(["low", "er", ""]) == {"input_ids": [[257], [258], []]}
    assert tokenizer.batch_decode([[257], torch.tensor([258, 260])]) == ["low", "er<|endoftext|>"]
    assert tokenizer.batch_decode([[258, 260]], skip_special_tokens=True) == ["er"]
    with pytest.raises(ValueError, match="one text"):
        tokenizer([5])


def without(token):
    return {other: i for i, other in enumerate(t for t in tiny_vocab() if t != token)}


@pytest.mark.parametrize("vocab, message", [
    (b"", "not valid JSON"), (b'{"a": 0,', "not valid JSON .*line 1 column 9"), (b"[" * 100_000, "not valid JSON"), (b"\xff\xfe{\x00", "not valid JSON"), (b'{"\xff": 0}', "lacks 257"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "not valid JSON"), (b"<!doctype html>", "not valid JSON"),
    (b"[]", "token -> integer id"), (b"null", "token -> integer id"), ({**tiny_vocab(), EOS: "260"}, "integer id"),
    ({**tiny_vocab(), EOS: 260.0}, "integer id"), ({**tiny_vocab(), "!": False}, "integer id"),
    ({**tiny_vocab(), EOS: 259}, "259 stands where 260 should"), ({**tiny_vocab(), EOS: 261}, "261 stands where 260 should"),
    ({**tiny_vocab(), "!": -1}, "-1 stands where 0 should"),
    (without(EOS), r"lacks 1 of .*first is '<\|endoftext\|>'"), (without("Ġ"), "lacks 1 of .*first is 'Ġ'"),
    ({EOS: 0}, "lacks 256 of .*first is '!'"),
], ids=lambda value: str(value)[:20])
def test_broken_vocab(tmp_path, vocab, message):
    with pytest.raises(ValueError, match=f"^{tmp_path}(: |/)vocab.json.*{message}"):
        load_tokenizer(write_files(tmp_path, vocab, TINY_MERGES))


@pytest.mark.parametrize("merges, message", [
    (b"", "line 1: expected '#version: 0.2', got ''"), (b"l o\nlo w\n", "line 1: .*got 'l o'"),
    (b"version https://git-lfs.github.com/spec/v1\n", "line 1: .*got 'version https"),
    (["l o", "lo", "e r"], "line 3: .*got 'lo'"), (["l o w"], "line 2: .*got 'l o w'"), (["l  o"], "line 2: .*got 'l  o'"),
    (["l o", "", "e r"], "line 3: .*got ''"), (["lo w", "l o"], "line 2: .*got 'lo w'"), (["\u00a0 o"], "line 2: .*got"),
    (b"#version: 0.2\nl o\nl\xff o\n", "line 3: .*got"), (["e r", "er er"], "line 3: 'er er' makes 'erer'"),
    (["l o", "l o"], "line 3: 'l o' can never take place"),
], ids=lambda value: str(value)[:20])
def test_broken_merges(tmp_path, merges, message):
    with pytest.raises(ValueError, match=f"^{tmp_path}: merges.txt {message}"):
        load_tokenizer(write_files(tmp_path, tiny_vocab(), merges))


def test_merge_that_makes_eos_is_refused(tmp_path):
    """Text must never encode to EOS, whatever merges.txt says."""
    merges = [f"{EOS[:i]} {EOS[i]}" for i in range(1, len(EOS))]
    vocab = {token: i for i, token in enumerate([*ALPHABET, *(EOS[:i] for i in range(2, len(EOS) + 1))])}
    with pytest.raises(ValueError, match=r"line 13: '<\|endoftext\| >' makes '<\|endoftext\|>'"):
        load_tokenizer(write_files(tmp_path, vocab, merges))


@pytest.mark.parametrize("merges", [["b c", "a b", "ab c"], ["a a", "a aa"], ["a b", "ab c", "b c", "a bc"]])
def test_merges_that_were_not_learnt_in_this_order_are_refused(tmp_path, merges):
    """In "abc" the first merge leaves a+bc, so ab+c cannot follow, but tiktoken would join all three, as it only knows that
    abc is a token; in "aaa" the leftmost pair is joined first, which leaves aa+a, not a+aa."""
    tokens = dict.fromkeys([*ALPHABET, *(merge.replace(" ", "") for merge in merges), EOS])
    with pytest.raises(ValueError, match=f"merges.txt line {len(merges) + 1}: '{merges[-1]}' can never take place"):
        load_tokenizer(write_files(tmp_path, {token: i for i, token in enumerate(tokens)}, merges))


@pytest.mark.parametrize("seed", range(100))
def test_a_merge_is_accepted_just_where_it_can_take_place_and_then_tiktoken_follows_the_merges(seed):
    """Random merges of few letters: the check against doing all merges one by one, then tiktoken against the same."""
    rng, ranks, parts = random.Random(seed), {bytes([byte]): rank for rank, byte in enumerate(ALPHABET.values())}, {}
    letters = [b"a", b"b", b"c"][:2 + seed % 2]
    for _ in range(40):
        left, right = rng.choice([*letters, *parts]), rng.choice([*letters, *parts])
        possible = merged_one_by_one(left + right, parts.values()) == [left, right]
        assert (module._merged(left + right, ranks) == [left, right]) == possible
        if possible:
            ranks[left + right], parts[left + right] = len(ranks), (left, right)
    encoding = tiktoken.Encoding("test", pat_str=module.PATTERN, mergeable_ranks=ranks, special_tokens={})
    for _ in range(20):
        piece = b"".join(rng.choices(letters, k=rng.randrange(1, 25)))
        assert encoding.encode_ordinary(piece.decode()) == [ranks[part] for part in merged_one_by_one(piece, parts.values())]


@pytest.mark.parametrize("files, message", [
    ({}, "lacks vocab.json and merges.txt"), ({"vocab.json": "{}"}, "lacks merges.txt"), ({"merges.txt": ""}, "lacks vocab.json"),
    ({"config.json": '{"vocab_size": 300}'}, "lacks"), ({"config.json": "{"}, "lacks"), ({"config.json": "[]"}, "lacks"),
    ({"config.json": '{"vocab_size": 50257}', "tokenizer.json": "{}"}, "lacks .*backend_tokenizer.model.save"),
    ({"config.json": '{"vocab_size": 50257}', "vocab.json": "{}"}, "lacks merges.txt"),
])
def test_folder_without_the_files(tmp_path, files, message, monkeypatch):
    monkeypatch.setattr(module, "_load_from_tiktoken", lambda reason: pytest.fail("GPT-2's vocabulary is not this folder's"))
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} {message}"):
        load_tokenizer(tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# names
# ---------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", [*PUBLIC_MODELS, *(model.repo for model in PUBLIC_MODELS.values())])
def test_public_names_come_from_the_hugging_face_cache_or_else_from_tiktoken(name, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_load_from_tiktoken", lambda reason: "tiktoken's")
    for short, model in PUBLIC_MODELS.items():                  # whatever their bytes: tiny's are not GPT-2's
        monkeypatch.setitem(PUBLIC_MODELS, short, HubModel(model.repo, model.revision, dict.fromkeys(model.files, (None, None))))
    assert load_tokenizer(name) == "tiktoken's"
    storage = tmp_path / "hf-home" / "hub" / f"models--{name.replace('/', '--')}"
    (storage / "refs").mkdir(parents=True)
    (storage / "refs" / "main").write_text("0" * 40)
    tiny().save_pretrained(storage / "snapshots" / ("0" * 40))
    assert load_tokenizer(name).vocab_size == 261


def test_unknown_name_is_not_gpt2(tmp_path):
    with pytest.raises(OSError, match="nobody/nothing"):
        load_tokenizer("nobody/nothing")
    with pytest.raises((OSError, ValueError), match="not-here"):
        load_tokenizer(tmp_path / "not-here")


def test_nothing_cached_and_offline(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        load_tokenizer("gpt2")
    message = str(caught.value)
    for name, (url, sha256) in GPT2_FILES.items():
        assert f"{tmp_path / 'no-cache' / CACHE_NAMES[name]} does not exist or is corrupt; it should be {url} ({name}), sha256 {sha256}" in message
    assert all(word in message for word in ("HF_HUB_OFFLINE", "TIKTOKEN_CACHE_DIR", "a model folder with vocab.json and merges.txt"))


@pytest.mark.parametrize("corrupt", GPT2_FILES)
def test_corrupt_tiktoken_file_is_named_and_kept(corrupt, tmp_path):
    """tiktoken deletes a file with a wrong hash and fetches it again; offline that leaves less than there was."""
    path = tmp_path / "no-cache" / CACHE_NAMES[corrupt]
    path.parent.mkdir()
    path.write_bytes(b"cut off")
    with pytest.raises(FileNotFoundError) as caught:
        load_tokenizer("gpt2")
    assert f"{path} does not exist or is corrupt; it should be {GPT2_FILES[corrupt][0]} ({corrupt}), sha256 {GPT2_FILES[corrupt][1]}" in str(caught.value)
    assert path.read_bytes() == b"cut off"


@needs_gpt2
def test_one_corrupt_and_one_good_file(tmp_path, monkeypatch):
    cache = tmp_path / "half"
    cache.mkdir()
    for name, cached in CACHE_NAMES.items():
        content = (CACHE / cached).read_bytes()
        (cache / cached).write_bytes(content[:-1] if name == "merges.txt" else content)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    with pytest.raises(FileNotFoundError, match=f"{CACHE_NAMES['merges.txt']} does not exist or is corrupt") as caught:
        load_tokenizer("distilgpt2")
    assert CACHE_NAMES["vocab.json"] not in str(caught.value)
    assert (cache / CACHE_NAMES["merges.txt"]).stat().st_size == 456317
