"""GPT-2's byte-level BPE: text -> token ids -> text. tiktoken does the work, on the files that transformers uses.

    tokenizer = load_tokenizer("gpt2")
    tokenizer.encode("hello world")         # [31373, 995]

A vocabulary is two files: vocab.json maps each token to its id, merges.txt lists the merges in the order in which they were
learnt. Tokens are bytes, and the files print each byte as one visible character: the space as "Ġ", so b" the" as "Ġthe".

Sources: Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units" (BPE); Radford et al. 2019,
section 2.2 (BPE over bytes); openai/gpt-2, src/encoder.py (the byte alphabet and the splitting pattern).
"""

from __future__ import annotations

import hashlib
import heapq
import json
import operator
import os
import re
import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import tiktoken

from .hub import PUBLIC_MODELS, resolve_model

EOS = "<|endoftext|>"                                # GPT-2's one special token
FILES = ("vocab.json", "merges.txt")
CONFIG = {                                           # tokenizer_config.json
    "model_max_length": 1024, "tokenizer_class": "GPT2Tokenizer", "bos_token": EOS, "eos_token": EOS, "unk_token": EOS,
    "clean_up_tokenization_spaces": False,           # older transformers would decode " ." as "."
}

# All five public models share these files. tiktoken has them too, under sha1(URL) in its cache.
GPT2_FILES = {
    "vocab.json": ("https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/encoder.json",
                   "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
    "merges.txt": ("https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe",
                   "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
}

# Contractions; words, numbers and signs, each with one space before it; blanks. No token crosses the cuts between them.
# The group of 999 only helps \s+(?!\S) along, which overflows the matcher's stack on a million blanks.
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|(?:\s{999})*\s+(?!\S)|\s"


def _alphabet() -> dict[str, int]:
    """The visible character for each byte, in the order of GPT-2's first 256 ids."""
    visible = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


ALPHABET = _alphabet()


def _token_bytes(token: str) -> bytes:
    """The bytes that a token of vocab.json stands for; one with a character outside the alphabet is its own text."""
    try:
        return bytes([ALPHABET[char] for char in token])
    except KeyError:
        return token.encode("utf-8", "replace")


def _check_vocab(vocab: dict[str, int]) -> None:
    if not isinstance(vocab, dict) or any(type(i) is not int for i in vocab.values()):
        raise ValueError("vocab.json: expected an object of token -> integer id")
    for expected, found in enumerate(sorted(vocab.values())):
        if found != expected:
            raise ValueError(f"vocab.json: its {len(vocab)} tokens need the ids 0 to {len(vocab) - 1}, each once; "
                             f"sorted, {found} stands where {expected} should (a duplicate or a hole)")
    missing = [token for token in (*ALPHABET, EOS) if token not in vocab]
    if missing:
        raise ValueError(f"vocab.json: lacks {len(missing)} of the tokens that no text can do without, the 256 single "
                         f"bytes and {EOS!r}; the first is {missing[0]!r}")


def _takes_place(left: bytes, right: bytes, ranks: dict[bytes, int], parts: dict[bytes, tuple[bytes, bytes]]) -> bool:
    """Whether the bytes of left + right are ever encoded as just these two tokens, given all earlier merges.

    Goes back in time from there: of the two tokens at the boundary it undoes the one made last, and each time asks whether
    the boundary would have been merged away before that.
    """
    before = len(ranks)
    while ranks.get(left + right, before) >= before:
        if len(left) == len(right) == 1:
            return True
        if ranks[left] > ranks[right]:
            before, left = ranks[left], parts[left][1]
        else:                                                            # + 1: of equal merges the left one comes first
            before, right = ranks[right] + 1, parts[right][0]
    return False


def _mergeable_tokens(vocab: dict[str, int], merges: list[str]) -> dict[str, bytes]:
    """The 256 bytes and what each merge makes, in the order of their ranks: token as printed -> as bytes."""
    tokens = {char: bytes([byte]) for char, byte in ALPHABET.items()}
    ranks, parts = {token: rank for rank, token in enumerate(tokens.values())}, {}
    for line, merge in enumerate(merges, start=2):                       # line 1 of merges.txt is its version
        pair = merge.split(" ")
        if len(pair) != 2 or not all(token in tokens for token in pair):
            raise ValueError(f"merges.txt line {line}: expected two tokens with one space between them, each of them a "
                             f"byte or made by an earlier line, got {merge!r}")
        product = "".join(pair)
        if product not in vocab or product == EOS:
            raise ValueError(f"merges.txt line {line}: {merge!r} makes {product!r}, no ordinary token of vocab.json")
        # tiktoken knows what a merge makes, but not from which parts. With merges in the order in which they were learnt
        # each token comes about in one way only and nothing is lost; with others we would differ from transformers
        left, right = (tokens[token] for token in pair)
        if not _takes_place(left, right, ranks, parts):
            raise ValueError(f"merges.txt line {line}: {merge!r} can never take place after the lines above it; "
                             "the merges must stand in the order in which they were learnt")
        tokens[product] = left + right
        ranks[left + right], parts[left + right] = len(ranks), (left, right)
    return tokens


def _write(path: Path, text: str) -> None:
    """Write the whole file or nothing: a temporary file beside it takes its place once it is on the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class Tokenizer:
    """A byte-level BPE vocabulary. Attributes: vocab_size; eos_token_id, and bos_token_id, which is the same.

    vocab: token -> id, as in vocab.json: the 256 bytes, what the merges make and <|endoftext|>, under the ids 0 to V - 1
    in any order. There may be other tokens, which can be decoded, but which no text is encoded to.
    merges: "left right", as in merges.txt, in the order in which they were learnt.
    ValueError names the file, and in merges.txt the line.
    """

    def __init__(self, vocab: dict[str, int], merges: list[str]):
        _check_vocab(vocab)
        tokens = _mergeable_tokens(vocab, merges)
        self.vocab_size = len(vocab)
        self.eos_token_id = self.bos_token_id = vocab[EOS]
        self._vocab, self._merges = vocab, merges
        self._bytes_of_id = [_token_bytes(token) for token in sorted(vocab, key=vocab.get)]
        # for tiktoken a token's rank is its id; in GPT-2's vocabulary they are equal, in others they need not be
        self._id_of_rank = [vocab[token] for token in tokens]
        ranks = {token: rank for rank, token in enumerate(tokens.values())}
        self._encoding = tiktoken.Encoding("minippo", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})

    def encode(self, text: str) -> list[int]:
        """The token ids of a text; "<|endoftext|>" in it is ordinary text, never the EOS id.

        A lone surrogate, which has no UTF-8 form, counts as U+FFFD (tiktoken's choice).
        """
        if not isinstance(text, str):
            raise ValueError(f"encode takes one text (str), got {type(text).__name__}")
        return [self._id_of_rank[rank] for rank in self._encoding.encode_ordinary(text)]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of token ids, a list or a 1-D tensor. Bytes that are not UTF-8, as of half a character, become U+FFFD.

        EOS is printed as "<|endoftext|>", or left out with skip_special_tokens.
        """
        try:
            ids = [operator.index(i) for i in (ids.tolist() if hasattr(ids, "tolist") else ids)]
        except TypeError:
            raise ValueError(f"decode takes one list or 1-D tensor of token ids, got {ids!r:.100}") from None
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"token id {i} is outside the vocabulary of {self.vocab_size} tokens")
        if skip_special_tokens:
            ids = [i for i in ids if i != self.eos_token_id]
        return b"".join(self._bytes_of_id[i] for i in ids).decode("utf-8", "replace")

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write vocab.json, merges.txt and tokenizer_config.json, from which AutoTokenizer makes a GPT2Tokenizer."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "vocab.json", json.dumps(self._vocab))
        _write(folder / "merges.txt", "".join(line + "\n" for line in ["#version: 0.2", *self._merges]))
        _write(folder / "tokenizer_config.json", json.dumps(CONFIG, indent=2) + "\n")


def _parse(vocab: bytes, merges: bytes, folder: Path) -> Tokenizer:
    """A tokenizer from the contents of vocab.json and merges.txt; errors name the folder they came from."""
    try:
        # bytes that are not UTF-8 make tokens that no vocabulary has, and the checks point at the place
        version, *lines = merges.decode("utf-8", "replace").replace("\r\n", "\n").removesuffix("\n").split("\n")
        if not version.startswith("#version"):
            raise ValueError(f"merges.txt line 1: expected '#version: 0.2', got {version[:80]!r}")
        return Tokenizer(json.loads(vocab.decode("utf-8", "replace")), lines)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{folder}: vocab.json is not JSON: {error}") from None
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def _load_folder(folder: Path) -> Tokenizer:
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {' and '.join(missing)}. If it has a tokenizer.json, transformers writes both files: "
            f"AutoTokenizer.from_pretrained({str(folder)!r}).backend_tokenizer.model.save({str(folder)!r})")
    return _parse(*((folder / name).read_bytes() for name in FILES), folder)


def _load_from_tiktoken(reason: OSError) -> Tokenizer:
    """GPT-2's vocabulary from tiktoken's cache; `reason` says why it did not come from the Hub.

    tiktoken itself is not asked: it deletes a file with a wrong hash, and downloads without a time limit.
    """
    cache = Path(os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
                 or Path(tempfile.gettempdir(), "data-gym-cache"))
    contents, problems = [], []
    for name, (url, sha256) in GPT2_FILES.items():
        path = cache / hashlib.sha1(url.encode()).hexdigest()
        contents.append(path.read_bytes() if path.is_file() else b"")
        found = hashlib.sha256(contents[-1]).hexdigest()
        if found != sha256:
            state = f"is corrupt, with sha256 {found}" if path.is_file() else "does not exist"
            problems.append(f"{path} {state}; it should be {url} ({name}), sha256 {sha256}")
    if problems:
        raise FileNotFoundError("\n  ".join([
            "GPT-2's vocabulary was found neither on the Hub nor in tiktoken's cache:", str(reason), *problems,
            "Put the two there (TIKTOKEN_CACHE_DIR names the folder), or use a model folder with vocab.json and merges.txt"]))
    return _parse(*contents, cache)


def _load_gpt2(name: str) -> Tokenizer:
    try:
        return _load_folder(resolve_model(name, FILES))
    except OSError as error:
        return _load_from_tiktoken(error)


def _gpt2_without_tokenizer(folder: Path) -> bool:
    """Whether a model folder has no tokenizer at all, but GPT-2's vocabulary size."""
    if any((folder / name).exists() for name in (*FILES, "tokenizer.json")):
        return False
    try:
        return json.loads((folder / "config.json").read_bytes())["vocab_size"] == 50257
    except (OSError, ValueError, KeyError, TypeError):
        return False


def load_tokenizer(name_or_dir: str | os.PathLike) -> Tokenizer:
    """The tokenizer of a model folder, from its vocab.json and merges.txt, or of a model on the Hub, such as "gpt2".

    GPT-2's own vocabulary, for the public names and for a folder that has no tokenizer but GPT-2's vocabulary size, comes
    from the Hub (its cache, or a download), else from tiktoken's cache. OSError: missing files; ValueError: broken ones.
    """
    name, folder = str(name_or_dir), Path(name_or_dir)
    if folder.is_dir():
        return _load_gpt2("openai-community/gpt2") if _gpt2_without_tokenizer(folder) else _load_folder(folder)
    if name in PUBLIC_MODELS or name in {model.repo for model in PUBLIC_MODELS.values()}:
        return _load_gpt2(name)
    return _load_folder(resolve_model(name, FILES))


def _count_pieces(texts: list[str]) -> Counter[str]:
    """How often each of the pieces occurs that PATTERN cuts the texts into."""
    # re knows no \p{L} and \p{N}: the letters and numbers that occur take their place, and one of each to have any
    members = {"L": "a", "N": "0"}
    for char in set().union(*texts):
        kind = unicodedata.category(char)[0]
        if kind in members:
            members[kind] += char
    pattern = re.compile(PATTERN.replace(r"\p{L}", members["L"]).replace(r"\p{N}", members["N"]))
    return Counter(piece for text in texts for piece in pattern.findall(text))


def _merge(ids: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """The ids with every two neighbours that equal `pair` replaced by `new`, from the left."""
    merged = []
    for i in ids:
        if merged and (merged[-1], i) == pair:
            merged[-1] = new
        else:
            merged.append(i)
    return merged


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn a vocabulary (Sennrich et al. 2016): again and again, the most frequent pair of neighbours becomes a token.

    The ids are the 256 bytes in GPT-2's order, then the merges, and <|endoftext|> last: fewer than vocab_size where no
    pair is left that occurs twice. Of equally frequent pairs the one of lower ids is taken: nothing is left to chance.
    """
    if isinstance(texts, str):
        raise ValueError("train_bpe takes a list of texts, got one str")
    if vocab_size < len(ALPHABET) + 1:
        raise ValueError(f"vocab_size must be at least 257 (256 bytes and {EOS}), got {vocab_size}")
    byte_ids = {byte: i for i, byte in enumerate(ALPHABET.values())}
    words = [([byte_ids[byte] for byte in piece.encode("utf-8", "replace")], count)     # a lone surrogate counts as "?"
             for piece, count in _count_pieces(list(texts)).items()]
    counts, words_of = Counter(), defaultdict(set)                       # pair -> how often and in which words it occurs
    for word, (ids, count) in enumerate(words):
        for pair in zip(ids, ids[1:]):
            counts[pair] += count
            words_of[pair].add(word)

    tokens, merges = list(ALPHABET), []
    queue = [(-count, pair) for pair, count in counts.items() if count > 1]
    heapq.heapify(queue)
    while queue and len(tokens) + 1 < vocab_size:
        negative, best = heapq.heappop(queue)
        if -negative != counts[best]:                                    # out of date: each change below is queued anew
            continue
        left, right = (tokens[i] for i in best)
        merges.append(f"{left} {right}")
        tokens.append(left + right)
        changed = set()
        for word in words_of.pop(best):
            ids, count = words[word]
            merged = _merge(ids, best, len(tokens) - 1)
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
