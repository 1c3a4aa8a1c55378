"""Learning a vocabulary: byte-level BPE from texts (Sennrich et al. 2016). Using one is files/tokenizer.py.

    train_bpe(["low low lower newer"], 300).save_pretrained("tokenizer")
"""

from __future__ import annotations

import heapq
import re
import unicodedata
from collections import Counter, defaultdict
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
    occurs twice. Of equally frequent pairs the one of lower ids is taken: nothing is left to chance.
    """
    if isinstance(texts, str) or vocab_size < len(ALPHABET) + 1:
        raise ValueError(f"train_bpe: expected a list of texts and at least 257 tokens, got {type(texts).__name__} and {vocab_size}")
    byte_ids = {byte: i for i, byte in enumerate(ALPHABET.values())}
    pieces = count_pieces(list(texts)).items()                           # below, a lone surrogate counts as "?"
    words = [([byte_ids[byte] for byte in piece.encode("utf-8", "replace")], count) for piece, count in pieces]
    counts, words_of = Counter(), defaultdict(set)                       # pair -> how often and in which words it occurs
    for word, (ids, count) in enumerate(words):
        for pair in zip(ids, ids[1:]):
            counts[pair] += count
            words_of[pair].add(word)

    tokens, merges = list(ALPHABET), []
    queue = sorted((-count, pair) for pair, count in counts.items() if count > 1)        # a heap from here on
    while queue and len(tokens) + 1 < vocab_size:
        negative, best = heapq.heappop(queue)
        if -negative != counts[best]:                                    # out of date: each change below is queued anew
            continue
        merges.append(" ".join(tokens[i] for i in best))
        tokens.append("".join(tokens[i] for i in best))
        changed = set()
        for word in words_of.pop(best):
            ids, count = words[word]
            merged = merge(ids, best, len(tokens) - 1)
            words[word] = merged, count
            for pair in zip(ids, ids[1:]):
                counts[pair] -= count
            for pair in zip(merged, merged[1:]):
                counts[pair] += count
                words_of[pair].add(word)
            changed.update(zip(ids, ids[1:]), zip(merged, merged[1:]))
        for pair in changed:
            if counts[pair] > 1:
                heapq.heappush(queue, (-counts[pair], pair))
    return Tokenizer({token: i for i, token in enumerate([*tokens, EOS])}, merges)
