"""Learning a vocabulary, against one worked out by hand and against counting everything anew."""

import random
import re
from collections import Counter

import pytest

from minippo.files.tokenizer import ALPHABET
from minippo.training.bpe import train_bpe
from test_tokenizer import TINY_MERGES, tiny_vocab


def test_train_bpe_by_hand():
    """"low low lower newer" is cut into low, Ġlow, Ġlower, Ġnewer (Ġ is the space). In GPT-2's byte order e=68, l=75, n=77,
    o=78, r=81, w=86, Ġ=220.

    pairs: lo 3, ow 3, Ġl 2, we 2, er 2, Ġn ne ew 1   lo before ow, 75 < 78     -> lo = 256
           lo+w 3, Ġ+lo 2, we 2, er 2                                             -> low = 257
           Ġ+low 2, er 2, low+e 1, we 1               er first, 68 < 220          -> er = 258
           Ġ+low 2, low+er 1, w+er 1                                              -> Ġlow = 259
           all that is left occurs once: no more merges, <|endoftext|> = 260
    """
    tokenizer = train_bpe(["low low lower newer"], 300)
    assert (tokenizer._merges, tokenizer._vocab) == (TINY_MERGES, tiny_vocab())
    assert (tokenizer.vocab_size, tokenizer.eos_token_id) == (261, 260)
    assert tokenizer.encode("low lower er") == [257, 259, 258, 220, 258]
    assert train_bpe(["low low lower newer"], 259)._merges == ["l o", "lo w"]      # 256 bytes, 2 merges, EOS


@pytest.mark.parametrize("seed", range(20))
def test_train_bpe_equals_counting_everything_anew(seed):
    """Few letters, so that pairs overlap and tie; the naive way recounts all pairs for each merge."""
    rng = random.Random(seed)
    texts = ["".join(rng.choices("ab é"[:2 + seed % 3], k=rng.randrange(60))) for _ in range(8)]
    tokenizer = train_bpe(texts, 280)
    number = {bytes([byte]): i for i, byte in enumerate(ALPHABET.values())}
    words = [[number[bytes([byte])] for byte in piece.encode()] for text in texts for piece in re.findall(" ?[abé]+| +(?!.)| +(?= )", text)]
    merges = []
    while len(merges) < 280 - 257:
        counts = Counter(pair for word in words for pair in zip(word, word[1:]))
        best = min(counts, key=lambda pair: (-counts[pair], pair), default=None)
        if best is None or counts[best] < 2:
            break
        merges.append(best)
        for word in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i:i + 2] = [255 + len(merges)]
                i += 1
    tokens = list(tokenizer._vocab)
    assert [f"{tokens[left]} {tokens[right]}" for left, right in merges] == tokenizer._merges
    assert train_bpe(reversed(texts), 280)._merges == tokenizer._merges


def test_train_bpe_cuts_texts_as_encode_does():
    """A merge across a cut would never be used. All pairs of aé12!? are equally frequent, and é12 and 2!? are cut."""
    assert train_bpe(["aé12!?\n"] * 5, 300)._merges == ["! ?", "1 2", "a Ã", "aÃ ©"]


def test_train_bpe_learns_nothing_from_nothing():
    assert train_bpe([], 500).vocab_size == 257
    assert train_bpe(["a\ud800b"], 500).vocab_size == 257


@pytest.mark.parametrize("texts, size, message", [("a text", 300, "a list of texts"), (["a"], 256, "at least 257")])
def test_train_bpe_refuses(texts, size, message):
    with pytest.raises(ValueError, match=message):
        train_bpe(texts, size)
