"""Prompts and texts: files of prompts, preference pairs and labelled texts; the built-in reviews.

The built-in corpus is what the demo learns from, so that it needs no download. A grammar written for this project makes short
film reviews; `true_score` labels them, from the text alone. All names in it are invented.

Fifty reviews:  python -c "from minippo.training.data import *; print(*make_reviews(50, seed=0), sep='\n')"
"""

import csv
import json
import os
import random
import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch

LARGEST = 2**28         # bytes of a file of texts: beyond, it is no such file (/dev/zero never ends)


class Pair(NamedTuple):
    """One preference: query + chosen is a better text than query + rejected."""
    query: str
    chosen: str
    rejected: str


class Review(NamedTuple):
    """A review and its `true_score`, from 0 (every opinion is bad) to 1 (every opinion is good)."""
    text: str
    score: float


# --- files ------------------------------------------------------------------------------------------------------------

def _files(path):
    """Return the file of this path; of the folder rt-polarity (Pang and Lee 2005) both: the good texts, the bad ones."""
    path = Path(os.path.expanduser(path))
    return [path / "rt-polarity.pos", path / "rt-polarity.neg"] if path.is_dir() else [path]


def read_bytes(path: str | Path) -> bytes:
    """Read a file, a pipe, which can be read once only, or the folder rt-polarity; ValueError beyond LARGEST bytes."""
    raw = b""
    for one in _files(path):
        with open(one, "rb") as file:
            raw += file.read(LARGEST + 1)
    if len(raw) > LARGEST:
        raise ValueError(f"{path} has more than {LARGEST // 2**20} MiB, the limit; give a part of it")
    return raw


def _lines(path, raw=None):
    """Return [("file, line 3", text)] of the lines that are not blank. raw: what is in the file.

    UTF-8, with or without a byte order mark, else cp1252, as browsers read ISO-8859-1. Only "\n" ends a line: str.splitlines
    also cuts at U+0085 and U+2028, in the middle of a sentence.
    """
    raw = read_bytes(path) if raw is None else raw
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("cp1252", errors="replace")
    lines = [(f"{path}, line {i}", line.strip()) for i, line in enumerate(text.split("\n"), start=1) if line.strip()]
    for where, line in lines:
        if "\0" in line:
            raise ValueError(f"{where}: a zero byte: no text, or UTF-16; save the file as UTF-8")
    if not lines:
        raise ValueError(f"{path}: there is no text in it")
    return lines


def _records(path, raw=None):
    """Yield ("file, line 3", dict) of a file with one JSON object a line, or of a .csv whose first line names the columns."""
    lines = _lines(path, raw)
    if Path(path).suffix.lower() == ".csv":
        table = csv.DictReader((line + "\n" for _, line in lines), restkey="", strict=True)
        try:
            for record in table:
                if "" in record:
                    raise csv.Error("more cells than the first line names: a text with a comma in it stands in quotes")
                yield lines[table.reader.line_num - 1][0], record
        except csv.Error as error:
            raise ValueError(f"{lines[table.reader.line_num - 1][0]}: not CSV ({error})") from error
        return
    for where, line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not JSON ({error}): {line[:60]}") from error
        if not isinstance(record, dict):
            raise ValueError(f"{where}: expected a JSON object, got {line[:60]}")
        yield where, record


def _field(record, where, *names):
    """Return the text under the first of `names` that the record has."""
    text = next((record[name] for name in names if name in record), None)
    if not isinstance(text, str) or not text.strip() or re.search("[\ud800-\udfff]", text):
        wanted = " or ".join(f'"{name}"' for name in names)
        raise ValueError(f"{where}: expected a text under {wanted}, with no half of a surrogate pair, got {text!r:.60} "
                         f"(fields: {', '.join(record) or 'none'})")
    return text


def load_prompts(path: str | Path, raw: bytes | None = None) -> list[str]:
    """Read prompts: text with one a line, .jsonl or .csv with "query", "prompt" or "text", or the folder rt-polarity.

    Blank lines are skipped, and lines of text lose the white space around them (a space at the end would be a token of its
    own); strings in .jsonl stay as they are. raw: what read_bytes read of it, for a pipe.
    """
    if Path(path).suffix.lower().startswith((".csv", ".json")):
        return [_field(record, where, "query", "prompt", "text") for where, record in _records(path, raw)]
    return [line for _, line in _lines(path, raw)]


def load_pairs(path: str | Path) -> list[Pair]:
    """Read preference pairs: .jsonl or .csv of "query" (may be ""), "chosen" and "rejected"."""
    pairs = []
    for where, record in _records(path):
        query = "" if record.get("query") == "" else _field(record, where, "query")
        pairs.append(Pair(query, _field(record, where, "chosen"), _field(record, where, "rejected")))
        if pairs[-1].chosen == pairs[-1].rejected:
            raise ValueError(f"{where}: chosen and rejected are the same, so nothing is preferred")
    return pairs


def load_labelled(paths: str | Path | list[str | Path]) -> list[tuple[str, int]]:
    """Read texts with their label, 1 good or 0 bad: [(text, label)].

    paths: a .jsonl or .csv file of "text" and "label"; or two text files, good and bad, with one text a line; or the folder
    that holds rt-polarity.pos and rt-polarity.neg.
    """
    files = [file for path in ([paths] if isinstance(paths, (str, Path)) else paths) for file in _files(path)]
    if len(files) > 2:
        raise ValueError(f"expected one .jsonl or .csv file or folder, or two text files, got {len(files)}")
    labelled = []
    if len(files) == 2:
        labelled = [(line, label) for file, label in zip(files, (1, 0)) for _, line in _lines(file)]
    for where, record in _records(files[0]) if len(files) == 1 else []:
        if record.get("label") not in (("0", "1") if files[0].suffix.lower() == ".csv" else (0, 1)):
            raise ValueError(f'{where}: expected "label" to be 0 (bad) or 1 (good), got {record.get("label")!r:.60}')
        labelled.append((_field(record, where, "text"), int(record["label"])))
    good = sum(label for _, label in labelled)
    if good in (0, len(labelled)):
        raise ValueError(f"{' and '.join(map(str, files))}: {good} good and {len(labelled) - good} bad texts; wanted both")
    return labelled


# --- texts to train on, and texts of tokens ---------------------------------------------------------------------------

def split(examples: Sequence, share: float, generator: torch.Generator) -> tuple[list, list]:
    """Shuffle and part: (training, held out). No copy of a held-out example is trained on."""
    order = [examples[i] for i in torch.randperm(len(examples), generator=generator, device="cpu").tolist()]
    count = max(1, round(share * len(order))) if share else 0
    held_out, seen = order[:count], set(order[:count])
    training = [example for example in order[count:] if example not in seen]
    if not training:
        raise ValueError(f"{len(examples)} examples, {len(set(examples))} of them distinct, are too few to hold out {share:.0%}: "
                         "give more of them, or set held_out to 0")
    return training, held_out


def check_vocabulary(tokenizer, vocab_size: int, model: str) -> None:
    """ValueError for a tokenizer with more tokens than the model. Fewer are right: some pad."""
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(f"{model}: the tokenizer has {tokenizer.vocab_size} tokens, the model {vocab_size}; give a folder whose "
                         "two belong together")


def text_of(tokenizer, tokens, skip_special_tokens: bool = False) -> str:
    """Return the text of token ids; those of a padded vocabulary, which have none, become U+FFFD."""
    runs = groupby(tokens.tolist() if isinstance(tokens, torch.Tensor) else tokens, key=lambda i: i < tokenizer.vocab_size)
    return "".join(tokenizer.decode([*run], skip_special_tokens) if known else "\ufffd" * len([*run]) for known, run in runs)


def cut(tokenizer, tokens: list[int], most: int) -> list[int]:
    """The first `most` tokens, fewer where the cut would fall inside a character; more only where the first one is that long."""
    text = text_of(tokenizer, tokens)
    counts = [*range(min(most, len(tokens)), 0, -1), *range(most, len(tokens) + 1)]
    return tokens[:next(n for n in counts if text.startswith(text_of(tokenizer, tokens[:n])))]


# --- the built-in reviews: the grammar ---------------------------------------------------------------------------------
#
# A rule of reviews.txt is "name: option | option"; {name} expands a rule; a repeated option is likelier. A review has a mood, + or
# -, that every expansion inherits: it chooses between the sides of a rule "name: good <> bad", which has a side "name+: good"
# alone where the other mood never comes. {!name} expands in the other mood: for contrasts ("..., but ...") and negations ("never
# dull"). The plain single words in rules with a mood are the opinion words, the lexicon of `true_score`; no other word of the
# grammar has an opinion. About half of the reviews are good, and up to its first opinion word a review does not tell which.

def _read_grammar(text):
    """Return {name, or name+ and name-: [options]}; a line that begins with a space continues the rule before it."""
    rules = {}
    for rule in re.split(r"\n+(?=\S)|;", text.strip()):
        name, body = rule.split(":", 1)
        sides = body.split("<>")
        for mood, side in zip("+-" if len(sides) == 2 else [""], sides):
            rules[name.strip() + mood] = [" ".join(option.split()) for option in side.split("|")]
    return rules


_RULES = _read_grammar(Path(__file__).with_name("reviews.txt").read_text(encoding="utf-8"))
GOOD_WORDS, BAD_WORDS = ({word for name in _RULES if name.endswith(mood) for word in _RULES[name] if word.isalpha()} for mood in "+-")
_NEGATIONS = {"not", "never", "no", "neither", "nor", "cannot", "without", "lacks", "little"}
_ONE_THING = ("story", "sound", "ending")          # rules whose options are names of the same thing
_CLAUSE_ENDS = set(".,;:!?") | {"and", "but", "yet", "while", "although", "though", "because"}
_TELLING = GOOD_WORDS | BAD_WORDS | _NEGATIONS | {"full", "plenty"}    # "full of" can only praise


# --- the built-in reviews: their score, and what is made of them ------------------------------------------------------

def true_score(text: str) -> float:
    """Return the share of the opinion words in `text` that praise, 0 to 1; 0.5 if there is none.

    A negation turns the opinion words among the three words after it, within its clause: "never dull" praises, "neither clever
    nor funny" blames twice. Knows the grammar's own words only.
    """
    praises, reach = [], 0                         # reach: how many more words a negation turns
    for word in re.findall(r"[a-z']+|[.,;:!?]", text.lower()):
        if word in _NEGATIONS or word.endswith("n't"):
            reach = 3
            continue
        if word in _CLAUSE_ENDS:
            reach = 0
        if word in GOOD_WORDS or word in BAD_WORDS:
            praises.append((word in GOOD_WORDS) == (reach == 0))
        reach = max(0, reach - 1)
    return sum(praises) / len(praises) if praises else 0.5


def _expand(rng, name, mood):
    """Expand the rule `name` in a mood, "+" or "-", all the way down to words."""
    other = "-" if mood == "+" else "+"
    option = rng.choice(_RULES.get(name + mood) or _RULES[name])
    return re.sub(r"\{(!?)(\w+)\}", lambda match: _expand(rng, match[2], other if match[1] else mood), option)


def _repeats(text):
    """Tell whether a review uses an opinion or a longer word twice, or judges one thing twice."""
    words = re.findall(r"[a-z]+", text.lower())
    small = {"with", "from", "this"}
    telling = [word for word in words if len(word) > 3 and word not in small or word in GOOD_WORDS]
    judged = [sum(noun in text.lower() for noun in _RULES[rule]) for rule in _ONE_THING]
    return len(telling) > len(set(telling)) or max(judged) > 1


def _review(rng):
    """Draw one review; draw again where it is too short, too long or repeats itself."""
    while True:
        text = " ".join(_expand(rng, "review", rng.choice("+-")).split())
        text = re.sub(r"\ba (?=[aeiou])", "an ", text)
        text = re.sub(r"(^|\. )([a-z])", lambda match: match[1] + match[2].upper(), text)
        if 12 <= len(text.split()) <= 40 and not _repeats(text):
            return Review(text, true_score(text))


def _openings(text):
    """Return the beginnings of `text` of 2 to 6 words that stop before its first telling word."""
    words = text.split(" ")
    first = next(i for i, word in enumerate(words) if word.lower().strip(".,") in _TELLING)
    return [" ".join(words[:count]) for count in range(2, min(6, first) + 1)]


def make_reviews(n: int, seed: int) -> list[Review]:
    """Return n reviews of 1 to 3 sentences and 12 to 40 words, about half of them good."""
    rng = random.Random(seed)
    return [_review(rng) for _ in range(n)]


def review_queries(n: int, seed: int) -> list[str]:
    """Return n prompts: beginnings of reviews, 2 to 6 words that hold no opinion yet."""
    rng = random.Random(seed)
    queries = []
    while len(queries) < n:
        if openings := _openings(_review(rng).text):
            queries.append(rng.choice(openings))
    return queries


def preference_pairs(n: int, seed: int) -> list[Pair]:
    """Return n pairs of reviews that begin alike; `chosen` is the one with the higher `true_score`: there is no noise in it."""
    rng = random.Random(seed)
    pool = [_review(rng) for _ in range(n + 1000)]
    alike = defaultdict(list)                      # opening -> the reviews that begin with it
    for review in pool:
        for opening in _openings(review.text):
            alike[opening].append(review)
    pairs = []
    while len(pairs) < n:
        review = rng.choice(pool)
        if shared := [opening for opening in _openings(review.text) if len(alike[opening]) > 1]:
            query = rng.choice(shared)
            worse, better = sorted((review, rng.choice(alike[query])), key=lambda r: r.score)
            if worse.score < better.score:
                pairs.append(Pair(query, better.text[len(query):], worse.text[len(query):]))
    return pairs
