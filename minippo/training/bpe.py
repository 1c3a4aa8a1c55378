"""Learning a vocabulary: byte-level BPE from texts (Sennrich et al. 2016). Using one is files/tokenizer.py.

    train_bpe(["low low lower newer"], 300).save_pretrained("tokenizer")
"""

import re
import unicodedata
from collections import Counter
from typing import Iterable

from ..files.tokenizer import ALPHABET, EOS, PATTERN, Tokenizer


def count_pieces(texts: list[str]) -> Counter[str]:
    """How often each of the pieces occurs that PATTERN cuts the texts into."""
    # re knows no \p{L} and \p{N}: the letters and numbers that occur take their place, and one of each to have any
    L, N = ("".join(c for c in {one}.union(*texts) if unicodedata.category(c)[0] == kind) for kind, one in ("La", "N0"))
    pattern = re.compile(PATTERN.replace(r"\p{L}", L).replace(r"\p{N}", N))
    return Counter(piece for text in texts for piece in pattern.findall(text))


def merge(ids: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """The ids with every two neighbours that equal `pair` replaced by `new`, from the left."""
    merged = []
    for i in ids:
        if merged and (merged[-1], i) == pair:
            merged[-1] = new
        else:
            merged.append(i)
    return merged


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn a vocabulary: again and again, the most frequent pair of neighbours becomes a token.

    The ids are the 256 bytes in GPT-2's order, the merges, and <|endoftext|>: fewer than vocab_size where no pair is left that
    occurs twice. Of equally frequent pairs the one of lower ids is taken: nothing is left to chance. All pairs are counted anew
    for each merge, which a few thousand different words allow.
    """
    if isinstance(texts, str) or vocab_size < len(ALPHABET) + 1:
        raise ValueError(f"train_bpe: expected a list of texts and at least 257 tokens, got {type(texts).__name__} and {vocab_size}")
    byte_ids = {byte: i for i, byte in enumerate(ALPHABET.values())}
    pieces = count_pieces(list(texts)).items()                           # below, a lone surrogate counts as "?"
    words = [([byte_ids[byte] for byte in piece.encode("utf-8", "replace")], count) for piece, count in pieces]

    tokens, merges = list(ALPHABET), []
    while len(tokens) + 1 < vocab_size:
        counts = Counter()
        for ids, count in words:
            for pair in zip(ids, ids[1:]):
                counts[pair] += count
        best = min(counts, key=lambda pair: (-counts[pair], pair), default=None)
        if counts[best] < 2:
            break
        merges.append(" ".join(tokens[i] for i in best))
        tokens.append("".join(tokens[i] for i in best))
        words = [(merge(ids, best, len(tokens) - 1), count) for ids, count in words]
    return Tokenizer({token: i for i, token in enumerate([*tokens, EOS])}, merges)
