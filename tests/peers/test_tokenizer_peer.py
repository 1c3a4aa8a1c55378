"""Our tokenizer against transformers' (4.46 and 5.x): equal ids and texts on random Unicode, from folders that either wrote.

    python -m pytest tests/peers/test_tokenizer_peer.py        # in an environment that has transformers
"""

import os
import random
import sys
import unicodedata
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"                       # read when transformers is imported
transformers = pytest.importorskip("transformers", reason="needs transformers to compare with")
import tokenizers  # noqa: E402  (comes with transformers)

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "files")]

from test_tokenizer import CACHE, needs_gpt2, random_text, write_files  # noqa: E402

from minippo.files.tokenizer import EOS, load_tokenizer  # noqa: E402
from minippo.training.bpe import train_bpe  # noqa: E402

TEXTS = ["It's what we've said: don't!\n\n", "naïve café — 12½ km², 2024年, 漢字と仮名。", "👩‍👩‍👧 e\u0301 \t  x\u3000y\u00a0z",
         "<p>الكتاب</p> {'we'll': [1,2,3]}   ", "def f(x):\n        return x ** 2   # ok\n"]


def random_texts(seed):
    """3000 texts of 1 to 40 parts, without what is rightly different.

    That is the marker, which transformers takes for the EOS token and we for text, and characters that Unicode did not have
    some years ago: the splitting pattern asks for letters, and each library knows those of its day.
    """
    rng = random.Random(seed)
    texts = (random_text(rng, rng.randrange(1, 40)).replace(EOS, "") for _ in range(3000))
    return ["".join(char for char in text if unicodedata.category(char) != "Cn") for text in texts]


def assert_equal(ours, theirs):
    """The same vocabulary size, special tokens, ids of 3000 texts, and texts of 1000 random id sequences."""
    assert (len(theirs), theirs.eos_token_id, theirs.bos_token_id) == (ours.vocab_size, ours.eos_token_id, ours.bos_token_id)
    for text in [*TEXTS, *random_texts(0)]:
        assert ours.encode(text) == theirs(text)["input_ids"], repr(text)
    rng = random.Random(1)
    for _ in range(1000):
        ids = rng.choices(range(ours.vocab_size), k=8) + [ours.eos_token_id] * rng.randrange(2)
        assert ours.decode(ids) == theirs.decode(ids)
        assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)


@pytest.fixture(scope="module")
def trained():
    rng = random.Random(2)
    return train_bpe([rng.choice(TEXTS) for _ in range(200)] + random_texts(3)[:200], 900)


def test_trained_vocabulary_in_transformers(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert type(theirs) is transformers.GPT2TokenizerFast        # 5.x: another name of GPT2Tokenizer
    assert (theirs.unk_token, theirs.model_max_length) == (EOS, 1024)
    assert_equal(trained, theirs)
    assert_equal(trained, transformers.GPT2TokenizerFast(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")))


def test_ids_in_another_order_in_transformers(trained, tmp_path):
    order = random.Random(4).sample(range(trained.vocab_size), trained.vocab_size)
    write_files(tmp_path, {token: order[i] for token, i in trained._vocab.items()}, trained._merges)
    ours = load_tokenizer(tmp_path)
    ours.save_pretrained(tmp_path / "saved")
    assert ours.encode("It's 漢字") == [order[i] for i in trained.encode("It's 漢字")]
    assert_equal(ours, transformers.AutoTokenizer.from_pretrained(tmp_path / "saved"))


def test_vocabulary_that_tokenizers_trained(tmp_path):
    """Another trainer than ours: <|endoftext|> comes first, and ties fall differently."""
    trainer = tokenizers.ByteLevelBPETokenizer()
    trainer.train_from_iterator([*TEXTS * 40, *random_texts(5)], vocab_size=1500, special_tokens=[EOS])
    trainer.save_model(str(tmp_path))
    ours = load_tokenizer(tmp_path)
    assert ours.eos_token_id == 0
    assert_equal(ours, transformers.GPT2TokenizerFast(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")))


def test_folder_with_only_tokenizer_json(trained, tmp_path):
    """What the error advises is done here, and works."""
    trained.save_pretrained(tmp_path / "ours")
    folder = tmp_path / "theirs"
    transformers.AutoTokenizer.from_pretrained(tmp_path / "ours").save_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):                    # 4.46 writes them, 5.x does not any more
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError) as caught:
        load_tokenizer(folder)
    eval(str(caught.value).split("both files: ")[1], {"AutoTokenizer": transformers.AutoTokenizer})
    assert load_tokenizer(folder).encode("It's 漢字") == trained.encode("It's 漢字")


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "GPT2TokenizerFast"])
def test_tokens_that_transformers_added(trained, tmp_path, kind):
    """add_special_tokens and add_tokens, saved; then ours once more, loaded there. In a text they are text here, and tokens there."""
    trained.save_pretrained(tmp_path / "ours")
    theirs = getattr(transformers, kind).from_pretrained(tmp_path / "ours")
    theirs.add_special_tokens({"pad_token": "<|pad|>"})
    theirs.add_tokens(["<name>", "two words"])
    theirs.save_pretrained(tmp_path / "theirs")
    for name in ("vocab.json", "merges.txt"):                    # 5.x does not write them any more
        if not (tmp_path / "theirs" / name).exists():
            (tmp_path / "theirs" / name).write_bytes((tmp_path / "ours" / name).read_bytes())
    loaded = load_tokenizer(tmp_path / "theirs")
    loaded.save_pretrained(tmp_path / "again")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    V = trained.vocab_size
    assert loaded.vocab_size == len(theirs) == len(again) == V + 3
    ids = [*trained.encode("It's "), V, V + 1, *trained.encode(" x"), V + 2, trained.eos_token_id]
    for skip in (False, True):
        texts = {tokenizer.decode(ids, skip_special_tokens=skip).replace(" ", "") for tokenizer in (loaded, theirs, again)}
        assert len(texts) == 1, texts                            # the slow one puts spaces around added tokens
    assert theirs("<|pad|>")["input_ids"] == again("<|pad|>")["input_ids"] == [V] != loaded.encode("<|pad|>")


@needs_gpt2
def test_gpt2_in_transformers(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "no-cache"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(CACHE))
    ours = load_tokenizer("gpt2")
    ours.save_pretrained(tmp_path / "gpt2")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "gpt2")
    assert_equal(ours, theirs)
    assert theirs(f"a{EOS}b")["input_ids"] == [64, 50256, 65]    # the one difference, and meant: text cannot end a text
    assert ours.encode(f"a{EOS}b") == [64, 27, 91, 437, 1659, 5239, 91, 29, 65]
