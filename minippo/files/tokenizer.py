"""GPT-2's byte-level BPE: text -> token ids -> text. tiktoken does the work, on the files that transformers uses.

    tokenizer = load_tokenizer("gpt2")
    tokenizer.encode("hello world")         # [31373, 995]

A vocabulary is two files: vocab.json maps each token to its id, merges.txt lists the merges in the order in which they were
learnt. Tokens are bytes, and the files print each byte as one visible character: the space as "Ġ", so b" the" as "Ġthe".
Sources: Sennrich et al. 2016 (BPE); Radford et al. 2019, section 2.2 (BPE over bytes); openai/gpt-2, src/encoder.py.
"""

import hashlib
import json
import math
import operator
import os
import tempfile
from pathlib import Path
from typing import Iterable, Sequence

import tiktoken

from .atomic import read_json, read_text, sha256, write_json, write_text
from .hub import COMMON, PUBLIC_MODELS, resolve_model

EOS = "<|endoftext|>"                                # GPT-2's one special token
FILES = ("vocab.json", "merges.txt")
MORE_FILES = {                                       # in each there may be tokens that somebody added: (id, entry)
    "added_tokens.json": lambda content: [(i, {"content": text}) for text, i in content.items()],
    "tokenizer_config.json": lambda content: [(int(i), x) for i, x in (content.get("added_tokens_decoder") or {}).items()],
    "tokenizer.json": lambda content: [(x["id"], x) for x in content.get("added_tokens") or []],
}
MAX_FILE = 2**27                                     # bytes; GPT-2's vocab.json has a million
CONFIG = {                                           # tokenizer_config.json
    "model_max_length": 1024, "tokenizer_class": "GPT2Tokenizer", "bos_token": EOS, "eos_token": EOS, "unk_token": EOS,
    "clean_up_tokenization_spaces": False,           # older transformers would decode " ." as "."
}

# All five public models share these files. tiktoken has them too, under sha1(URL) in its cache.
GPT2_FILES = {name: ("https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/" + theirs, COMMON[name][1])
              for name, theirs in (("vocab.json", "encoder.json"), ("merges.txt", "vocab.bpe"))}

# contractions; words, numbers and signs, each with one space before it; blanks. No token crosses the cuts between them.
# The group of 999 only helps \s+(?!\S) along, which overflows the matcher's stack on a million blanks
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|(?:\s{999})*\s+(?!\S)|\s"

# the visible character for each byte, in the order of GPT-2's first 256 ids
_VISIBLE = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
_HIDDEN = [byte for byte in range(256) if byte not in _VISIBLE]
ALPHABET = {chr(byte): byte for byte in _VISIBLE} | {chr(256 + i): byte for i, byte in enumerate(_HIDDEN)}


def _check_vocab(vocab: dict[str, int]) -> None:
    if not isinstance(vocab, dict) or any(type(i) is not int for i in vocab.values()):
        raise ValueError("vocab.json: expected an object of token -> integer id")
    if wrong := [f"{found} stands where {i} should" for i, found in enumerate(sorted(vocab.values())) if found != i]:
        raise ValueError(f"vocab.json: expected the ids 0 to {len(vocab) - 1}, each once; {wrong[0]}")
    if missing := [token for token in (*ALPHABET, EOS) if token not in vocab]:
        raise ValueError(f"vocab.json: lacks {len(missing)} of the 256 single bytes and {EOS!r}; the first is {missing[0]!r}")


def _merged(piece: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The tokens of a piece of text: again and again, the first of the neighbours that were learnt earliest are joined."""
    parts = [piece[i:i + 1] for i in range(len(piece))]
    while len(parts) > 1:
        i = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], math.inf))
        if parts[i] + parts[i + 1] not in ranks:
            break
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
    return parts


def _mergeable_tokens(vocab: dict[str, int], merges: list[str]) -> dict[str, bytes]:
    """The 256 bytes and what each merge makes, in the order of their ranks: token as printed -> as bytes."""
    tokens = {char: bytes([byte]) for char, byte in ALPHABET.items()}
    ranks = {token: rank for rank, token in enumerate(tokens.values())}
    for line, merge in enumerate(merges, start=2):                       # line 1 of merges.txt is its version
        pair = merge.split(" ")
        if len(pair) != 2 or not all(token in tokens for token in pair):
            raise ValueError(f"merges.txt line {line}: expected two known tokens with one space between them, got {merge!r}")
        product = "".join(pair)
        if product not in vocab or product == EOS:
            raise ValueError(f"merges.txt line {line}: {merge!r} makes {product!r}, no ordinary token of vocab.json")
        # tiktoken knows what a merge makes, not of which parts: only in the order of learning is there one way
        left, right = (tokens[token] for token in pair)
        if _merged(left + right, ranks) != [left, right]:
            raise ValueError(f"merges.txt line {line}: {merge!r} can never take place here: is the order that of learning?")
        tokens[product] = left + right
        ranks[left + right] = len(ranks)
    return tokens


def _check_complete(vocab: dict[str, int], tokens: dict[str, bytes], added: dict) -> None:
    """ValueError where merges.txt was cut off: some token is two others side by side, which the first lost merge would join.

    Markers like <|pad|> that somebody put into vocab.json do not look so.
    """
    for token in sorted(vocab.keys() - tokens.keys() - added.keys() - {EOS}, key=vocab.get):
        if any(token[:i] in tokens and token[i:] in tokens for i in range(1, len(token))):
            raise ValueError(f"merges.txt has {len(tokens) - len(ALPHABET)} merges, and none makes {token!r} of "
                             "vocab.json: the file is cut off, or of another vocabulary; fetch it again")


class Tokenizer:
    """A byte-level BPE vocabulary. Attributes: vocab_size; eos_token_id, and bos_token_id, which is the same.

    vocab: token -> id, as in vocab.json: the 256 bytes, what the merges make and <|endoftext|>, under the ids 0 to V - 1
    in any order. There may be other tokens, which can be decoded, but which no text is encoded to.
    merges: "left right", as in merges.txt, in the order in which they were learnt.
    added: text -> (id, whether it is special) of tokens such as a pad: in vocab.json, too, or with the ids from V on. They
    count and are decoded; in a text they are ordinary text, as <|endoftext|> is, so that no text can end another.
    """

    def __init__(self, vocab: dict[str, int], merges: list[str], added: dict[str, tuple[int, bool]] | None = None):
        _check_vocab(vocab)
        tokens, added = _mergeable_tokens(vocab, merges), added or {}
        _check_complete(vocab, tokens, added)
        beyond = sorted((i, text) for text, (i, _) in added.items() if vocab.get(text) != i)
        if any(i != len(vocab) + n or text in vocab for n, (i, text) in enumerate(beyond)):
            raise ValueError("added tokens: expected those that vocab.json has not, with the "
                             f"ids from {len(vocab)} on without a hole, got {beyond!r:.80}")
        self.vocab_size = len(vocab) + len(beyond)
        self.eos_token_id = self.bos_token_id = vocab[EOS]
        self._vocab, self._merges, self._added = vocab, merges, added
        # a token with a character outside the alphabet is its own text
        self._bytes_of_id = [bytes(map(ALPHABET.get, token)) if ALPHABET.keys() >= set(token) else token.encode("utf-8", "replace")
                             for token in sorted(vocab, key=vocab.get)]
        self._bytes_of_id += [text.encode("utf-8", "replace") for _, text in beyond]
        self._special = {self.eos_token_id, *(i for i, special in added.values() if special)}
        # for tiktoken a token's rank is its id; in GPT-2's vocabulary they are equal, in others they need not be
        self._id_of_rank = [vocab[token] for token in tokens]
        ranks = {token: rank for rank, token in enumerate(tokens.values())}
        self._encoding = tiktoken.Encoding("minippo", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})

    def __call__(self, text: str | list[str]) -> dict[str, list]:
        """{"input_ids": the ids of one text, or a list of those of each}, as transformers' tokenizers are called."""
        return {"input_ids": self.encode(text) if isinstance(text, str) else [self.encode(one) for one in text]}

    def encode(self, text: str) -> list[int]:
        """The token ids of a text; "<|endoftext|>" in it is ordinary text, never EOS; a lone surrogate counts as U+FFFD."""
        if not isinstance(text, str):
            raise ValueError(f"encode takes one text (str), got {type(text).__name__}")
        return [self._id_of_rank[rank] for rank in self._encoding.encode_ordinary(text)]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of token ids, a list or a 1-D tensor. Bytes that are not UTF-8, as of half a character, become U+FFFD.

        EOS is printed as "<|endoftext|>"; with skip_special_tokens it is left out, and with it what was added as special.
        """
        try:
            ids = [operator.index(i) for i in (ids.tolist() if hasattr(ids, "tolist") else ids)]
        except TypeError:
            raise ValueError(f"decode takes one list or 1-D tensor of token ids, got {ids!r:.100}") from None
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"token id {i} is outside the vocabulary of {self.vocab_size} tokens")
        if skip_special_tokens:
            ids = [i for i in ids if i not in self._special]
        return b"".join(self._bytes_of_id[i] for i in ids).decode("utf-8", "replace")

    def batch_decode(self, sequences: Iterable[Iterable[int]], skip_special_tokens: bool = False) -> list[str]:
        return [self.decode(ids, skip_special_tokens) for ids in sequences]

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write vocab.json, merges.txt and tokenizer_config.json, of which AutoTokenizer makes a GPT2Tokenizer."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
        entries = {str(i): plain | {"content": text, "special": special}
                   for text, (i, special) in ({EOS: (self.eos_token_id, True)} | self._added).items()}
        write_text(folder / "vocab.json", json.dumps(self._vocab))
        write_text(folder / "merges.txt", "".join(line + "\n" for line in ["#version: 0.2", *self._merges]))
        write_json(folder / "tokenizer_config.json", CONFIG | ({"added_tokens_decoder": entries} if self._added else {}))


def _read_added(folder: Path) -> dict[str, tuple[int, bool]]:
    """text -> (id, special) of the tokens that any of MORE_FILES lists; ValueError where they contradict each other."""
    added = {}
    for file in [file for file in MORE_FILES if (folder / file).exists()]:
        content = read_json(folder / file, MAX_FILE)
        try:
            for i, entry in MORE_FILES[file](content):
                text, known = entry["content"], added.get(entry["content"], (i, False))
                if type(text) is not str or type(i) is not int or known[0] != i:
                    raise ValueError(f"{text!r:.80} has the id {i!r:.80}, which is none, or not that of another file")
                added[text] = i, bool(entry.get("special")) or known[1]
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(f"{folder / file}: its added tokens are not as transformers writes them ({error!r})") from None
    return added


def _load_folder(folder: Path, names: Sequence[str] = FILES) -> Tokenizer:
    """A tokenizer from vocab.json and merges.txt, under these names; errors name the folder."""
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise FileNotFoundError(
            f"{folder} lacks {' and '.join(missing)}. If it has a tokenizer.json, transformers writes both files: "
            f"AutoTokenizer.from_pretrained({str(folder)!r}).backend_tokenizer.model.save({str(folder)!r})")
    vocab, merges = folder / names[0], folder / names[1]
    ids, (version, *lines) = read_json(vocab, MAX_FILE), read_text(merges, MAX_FILE).removesuffix("\n").split("\n")
    added = _read_added(folder)
    try:
        if not version.startswith("#version"):
            raise ValueError(f"merges.txt line 1: expected '#version: 0.2', got {version[:80]!r}")
        return Tokenizer(ids, lines, added)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def _load_from_tiktoken(reason: OSError) -> Tokenizer:
    """GPT-2's vocabulary from tiktoken's cache; `reason` says why it did not come from the Hub.

    tiktoken itself is not asked: it deletes a file with a wrong hash, and downloads without a time limit.
    """
    cache = Path(os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
                 or Path(tempfile.gettempdir(), "data-gym-cache"))
    cached = [hashlib.sha1(url.encode()).hexdigest() for url, _ in GPT2_FILES.values()]
    if problems := [f"{cache / file} does not exist or is corrupt; it should be {url} ({name}), sha256 {digest}"
                    for file, (name, (url, digest)) in zip(cached, GPT2_FILES.items())
                    if not (cache / file).is_file() or sha256(cache / file) != digest]:
        raise FileNotFoundError("\n  ".join([
            "GPT-2's vocabulary was found neither on the Hub nor in tiktoken's cache:", str(reason), *problems,
            "Put the two there (TIKTOKEN_CACHE_DIR names the folder), or use a model folder with vocab.json and merges.txt"]))
    return _load_folder(cache, cached)


def _gpt2_without_tokenizer(folder: Path) -> bool:
    """Whether a model folder has no tokenizer at all, but GPT-2's vocabulary size."""
    try:
        without = not any((folder / name).exists() for name in (*FILES, "tokenizer.json"))
        return without and read_json(folder / "config.json")["vocab_size"] == 50257
    except (OSError, ValueError, KeyError, TypeError):
        return False


def load_tokenizer(name_or_dir: str | os.PathLike) -> Tokenizer:
    """The tokenizer of a model folder, from its vocab.json and merges.txt, or of a model on the Hub, such as "gpt2".

    GPT-2's own vocabulary, for the public names and for a folder that has no tokenizer but GPT-2's vocabulary size, comes
    from the Hub (its cache, or a download), else from tiktoken's cache. OSError: missing files; ValueError: broken ones.
    """
    name, folder = str(name_or_dir), Path(os.path.expanduser(name_or_dir))
    if folder.is_dir():
        if not _gpt2_without_tokenizer(folder):
            return _load_folder(folder)
        name = "openai-community/gpt2"          # "gpt2" may be a folder here
    is_gpt2 = name in PUBLIC_MODELS or name in {model.repo for model in PUBLIC_MODELS.values()}
    try:
        return _load_folder(resolve_model(name, FILES, tuple(MORE_FILES)))
    except OSError as error:
        if not is_gpt2:
            raise
        return _load_from_tiktoken(error)
