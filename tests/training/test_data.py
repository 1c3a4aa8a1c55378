"""Prompts and texts from files, and the built-in reviews. Everything by hand or by property."""

import json
import random
import re
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from minippo.training.bpe import train_bpe
from minippo.training import data
from minippo.training.data import (Pair, load_labelled, load_pairs, load_prompts, make_reviews, preference_pairs,
                                   review_queries, split, true_score)

RT_POLARITY = Path(__file__).parents[2] / ".." / "shared" / "rt-polarity"


def write(path, *lines, encoding="utf-8"):
    """Write lines, dicts as JSON, and return the path."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_bytes("".join(text + "\n" for text in texts).encode(encoding))
    return path


# --- files ----------------------------------------------------------------------------------------

def test_prompts_of_a_text_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffThis film \r\n\n   \nÉtrange, <|endoftext|>\nlast".encode())
    assert load_prompts(path) == ["This film", "Étrange, <|endoftext|>", "last"]


def test_prompts_that_are_not_utf8(tmp_path):
    """0xE9 is e with an acute in ISO-8859-1; 0x85 is the ellipsis of cp1252, and ends no line."""
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"caf\xe9\nwell\x85 then\n")
    assert load_prompts(path) == ["café", "well… then"]


def test_only_a_newline_ends_a_prompt(tmp_path):
    assert load_prompts(write(tmp_path / "p.txt", "one\u2028two\x0cthree")) == ["one\u2028two\x0cthree"]


def test_prompts_of_jsonl_in_any_of_three_fields_as_they_are(tmp_path):
    path = write(tmp_path / "p.jsonl", {"query": "a "}, "", {"prompt": "b"}, {"text": "c\nd", "id": 3})
    assert load_prompts(path) == ["a ", "b", "c\nd"]


def test_prompts_of_a_csv_and_of_the_folder_rt_polarity(tmp_path):
    """Any of the three columns; a text in quotes may hold commas, quotes and a line end."""
    path = write(tmp_path / "p.csv", "id,query", '1,"a film, ""good"""', "2,b", '3,"c', 'd"')
    assert load_prompts(path) == ['a film, "good"', "b", "c\nd"]
    write(tmp_path / "rt-polarity.pos", "fine "), write(tmp_path / "rt-polarity.neg", "poor")
    assert load_prompts(tmp_path, data.read_bytes(tmp_path)) == ["fine", "poor"]


@pytest.mark.parametrize("line, problem", [
    ("1,a film, good", "line 2: not CSV .more cells than the first line names"), ('1,"a"b', "line 2: not CSV"), ("1", "line 2: expected a text")])
def test_a_bad_line_of_a_csv_is_named(tmp_path, line, problem):
    with pytest.raises(ValueError, match=f"p.csv, {problem}"):
        load_prompts(write(tmp_path / "p.csv", "id,query", line))
    with pytest.raises(ValueError, match="expected a text under .*fields: id, question"):
        load_prompts(write(tmp_path / "p.csv", "id,question", "1,why"))


def test_a_very_long_prompt_is_a_prompt(tmp_path):
    path = write(tmp_path / "p.jsonl", {"query": "x" * 1_000_000})
    assert len(load_prompts(path)[0]) == 1_000_000


@pytest.mark.parametrize("line, problem", [
    ("not json", "not JSON"),
    ("[1]", "expected a JSON object"),
    ({"question": "a"}, r'expected a text under "query" or "prompt" or "text".*question'),
    ({"query": 3}, "got 3"),
    ({"query": None}, "got None"),
    ({"query": ""}, "expected a text"),
    ({"query": "   "}, "expected a text"),
    ({"query": "\ud800"}, "surrogate"),
    ("[" * 100_000, "not JSON"),
])
def test_a_bad_record_is_named_by_file_and_line(tmp_path, line, problem):
    path = write(tmp_path / "p.jsonl", {"query": "fine"}, line)
    with pytest.raises(ValueError, match=f"p.jsonl, line 2: .*{problem}"):
        load_prompts(path)


def test_files_that_hold_no_text(tmp_path):
    with pytest.raises(ValueError, match="line 1: a zero byte"):
        load_prompts(write(tmp_path / "p.txt", "utf sixteen", encoding="utf-16"))
    for load in (load_prompts, load_pairs, load_labelled):
        with pytest.raises(ValueError, match="empty.jsonl: there is no text in it"):
            load(write(tmp_path / "empty.jsonl", "", " "))
    with pytest.raises(FileNotFoundError):
        load_prompts(tmp_path / "none.txt")


def test_a_file_without_end_is_refused_and_a_pipe_is_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "LARGEST", 1000)
    if Path("/dev/zero").exists():
        with pytest.raises(ValueError, match="/dev/zero has more than 0 MiB"):
            load_prompts("/dev/zero")
    assert data.read_bytes(write(tmp_path / "limit", "x" * 999)) == b"x" * 999 + b"\n"
    raw = data.read_bytes(write(tmp_path / "prompts", "a film", "a boat"))
    assert load_prompts("no/such/file", raw) == ["a film", "a boat"]


def test_pairs(tmp_path):
    path = write(tmp_path / "pairs.jsonl", {"query": "a", "chosen": " b", "rejected": " c"},
                 {"query": "", "chosen": "b", "rejected": "c"})
    assert load_pairs(path) == [Pair("a", " b", " c"), Pair("", "b", "c")]


@pytest.mark.parametrize("record, problem", [
    ({"chosen": "b", "rejected": "c"}, '"query"'),
    ({"query": "a", "chosen": "b"}, '"rejected"'),
    ({"query": "a", "chosen": "b", "rejected": "b"}, "nothing is preferred"),
])
def test_bad_pairs(tmp_path, record, problem):
    with pytest.raises(ValueError, match=f"line 1: .*{problem}"):
        load_pairs(write(tmp_path / "pairs.jsonl", record))


def test_labelled_texts_in_four_forms(tmp_path):
    expected = [("fine", 1), ("poor", 0)]
    good, bad = write(tmp_path / "rt-polarity.pos", "fine "), write(tmp_path / "rt-polarity.neg", "poor")
    records = write(tmp_path / "l.jsonl", {"text": "fine", "label": 1}, {"text": "poor", "label": 0})
    assert load_labelled(records) == load_labelled([records]) == expected
    assert load_labelled(write(tmp_path / "l.csv", "label,text", "1,fine", "0,poor")) == expected
    with pytest.raises(ValueError, match="line 2: .*0 .bad. or 1 .good."):
        load_labelled(write(tmp_path / "l.csv", "label,text", "2,fine"))
    assert load_labelled([good, bad]) == load_labelled(str(tmp_path)) == expected


def test_bad_labels(tmp_path):
    for label in (2, "1", None, [1]):
        with pytest.raises(ValueError, match="line 1: .*0 .bad. or 1 .good."):
            load_labelled(write(tmp_path / "l.jsonl", {"text": "a", "label": label}))
    with pytest.raises(ValueError, match="1 good and 0 bad"):
        load_labelled(write(tmp_path / "l.jsonl", {"text": "a", "label": 1}))
    with pytest.raises(ValueError, match="got 3"):
        load_labelled(["a", "b", "c"])
    with pytest.raises(FileNotFoundError, match="rt-polarity.pos"):
        load_labelled(tmp_path)


@pytest.mark.skipif(not RT_POLARITY.is_dir(), reason="needs ../shared/rt-polarity")
def test_rt_polarity_as_it_is():
    labelled = load_labelled(RT_POLARITY)
    assert len(labelled) == 2 * 5331 and sum(label for _, label in labelled) == 5331
    assert labelled[0][0].startswith("the rock is destined") and labelled[-1][1] == 0


# --- the built-in reviews -------------------------------------------------------------------------

@pytest.mark.parametrize("text, score", [
    ("The plot is clever.", 1.0),
    ("The plot is silly, and the score is grating.", 0.0),
    ("The plot is thin, but the acting is superb.", 0.5),
    ("It is great. It is dull, dull and dull.", 0.25),                  # 1 of 4
    ("The cast is never dull.", 1.0),
    ("The cast is not so very great.", 0.0),                            # third word after "not"
    ("It is not one two three great.", 1.0),                            # the fourth word after
    ("It is neither clever nor funny.", 0.0),
    ("It is not dull, great fun.", 1.0),                                # the comma ends the reach
    ("It isn't dull because the plot is clever.", 1.0),
    ("It has little wit and no charm but is full of heart.", 1 / 3),
    ("I cannot recommend it.", 0.0),
    ("GREAT! Truly GREAT", 1.0),
    ("This film about two sisters", 0.5),
    ("", 0.5),
])
def test_true_score_by_hand(text, score):
    assert true_score(text) == score


def test_every_rule_of_the_grammar_exists_and_is_used():
    options = [option for rule in data._RULES.values() for option in rule]
    used = {name for option in options for name in re.findall(r"\{!?(\w+)\}", option)} | {"review"}
    assert used == {name.rstrip("+-") for name in data._RULES}


def test_the_grammar_says_what_the_score_reads():
    """A clause in one mood, negations and all, scores exactly 1 or 0; a film alone has no opinion."""
    rng = random.Random(0)
    assert not data.GOOD_WORDS & data.BAD_WORDS
    for name in ("clause", "verdict", "cast", "advice", "last", "asset"):
        for mood, score in (("+", 1.0), ("-", 0.0)):
            for _ in range(500):
                text = data._expand(rng, name, mood)
                assert true_score(text) == score, text
    assert all(true_score(data._expand(rng, "film", "+")) == 0.5 for _ in range(500))


@pytest.fixture(scope="module")
def reviews():
    return make_reviews(4000, seed=1)


def test_reviews_are_sentences(reviews):
    for text, _ in reviews:
        assert re.fullmatch(r"([A-Z][A-Za-z',]*( [A-Za-z',]+)+\.( |$)){1,3}", text), text
        assert 12 <= len(text.split()) <= 40, text
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]|\bi\b", text), text


def test_subjects_and_verbs_agree(reviews):
    def nouns(*rules):
        return "|".join(noun for rule in rules for noun in data._RULES[rule])
    several = nouns("jokes", "sets", "people", "songs", "chases")
    one = nouns("story", "acting", "look", "sound", "talk", "pace", "ending")
    for text, _ in reviews:
        assert not re.search(rf"({several}) (is|feels|has|lacks)\b", text.lower()), text
        assert not re.search(rf"(?<!and )({one}) (are|feel)\b", text.lower()), text      # "both .. and"


def test_reviews_do_not_repeat_themselves(reviews):
    opinions = data.GOOD_WORDS | data.BAD_WORDS
    for text, _ in reviews:
        used = [word for word in re.findall(r"[a-z]+", text.lower()) if word in opinions]
        assert len(used) == len(set(used)), text
        assert sum(f"the {noun} " in text.lower() for noun in ("score", "music", "soundtrack")) <= 1, text


def test_reviews_vary_and_balance(reviews):
    """Half are good on average: the standard error of 4000 scores in 0..1 is below 0.008."""
    assert len({review.text for review in reviews}) >= 3990
    assert abs(sum(review.score for review in reviews) / len(reviews) - 0.5) < 0.04
    for low, high in ((0.0, 0.3), (0.3, 0.7), (0.7, 1.1)):
        assert sum(low <= review.score < high for review in reviews) > 400
    assert len({word for text, _ in reviews for word in re.findall(r"[a-z]+", text.lower())}) < 500
    assert all(review.score == true_score(review.text) for review in reviews)


def test_seeds_decide_and_nothing_else():
    state = random.getstate()
    for make in (make_reviews, review_queries, preference_pairs):
        assert make(50, seed=3) == make(50, seed=3) != make(50, seed=4)
    assert random.getstate() == state
    assert make_reviews(10, seed=3) == make_reviews(50, seed=3)[:10]


def test_queries_leave_both_outcomes_open(reviews):
    queries = review_queries(500, seed=2)
    assert len(queries) == 500 and len(set(queries)) > 200
    assert all(2 <= len(query.split()) <= 6 and true_score(query) == 0.5 for query in queries)
    assert data._openings("This film is full of wit.") == ["This film", "This film is"]
    scores = defaultdict(list)
    for text, score in reviews:
        for opening in data._openings(text):
            scores[opening].append(score)
    common = [found for found in scores.values() if len(found) >= 60]
    assert len(common) >= 10
    assert all(0.3 < sum(found) / len(found) < 0.7 for found in common)


def test_pairs_follow_the_true_score():
    pairs = preference_pairs(300, seed=5)
    assert len(pairs) == 300 and len({pair.query for pair in pairs}) > 100
    for query, chosen, rejected in pairs:
        assert true_score(query + chosen) > true_score(query + rejected)
        assert true_score(query) == 0.5 and chosen[0] == rejected[0] == " "
        assert chosen.endswith(".") and rejected.endswith(".")


# --- training and held-out parts ------------------------------------------------------------------

def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_split_parts_the_examples_and_follows_its_seed():
    examples = [f"text {i}" for i in range(40)]
    training, held_out = split(examples, 0.25, generator(1))
    assert (len(training), len(held_out)) == (30, 10)
    assert sorted(training + held_out) == sorted(examples)
    assert split(examples, 0.25, generator(1)) == (training, held_out)
    assert split(examples, 0.25, generator(2))[1] != held_out
    assert held_out != examples[:10], "not shuffled: files are often sorted by label"


@pytest.mark.parametrize("share, count", [(0.0, 0), (0.01, 1), (0.1, 1), (0.5, 5)])
def test_split_rounds_but_holds_out_one_where_it_should_hold_out_any(share, count):
    assert len(split(list(range(10)), share, generator())[1]) == count


@pytest.mark.parametrize("seed", range(5))
def test_no_copy_of_a_held_out_example_is_trained_on(seed):
    training, held_out = split(["a", "b", "c", "d"] * 3, 0.2, generator(seed))
    assert not set(training) & set(held_out)


@pytest.mark.parametrize("examples, share", [(["a"], 0.1), (["a", "a"], 0.1), ([], 0.0)])
def test_split_with_nothing_left_to_train_on(examples, share):
    with pytest.raises(ValueError, match=f"{len(examples)} examples, .* too few"):
        split(examples, share, generator())


# --- texts of tokens ------------------------------------------------------------------------------

def test_a_token_without_a_text_is_a_visible_mark():
    """A vocabulary padded to 264 for a tokenizer of 257; 0xe9 alone is no character, as everywhere."""
    tokenizer = train_bpe([], 257)
    hi = tokenizer.encode("hi")
    assert data.text_of(tokenizer, torch.tensor([*hi, 260, 263, *hi])) == "hi\ufffd\ufffdhi"
    assert data.text_of(tokenizer, [260, 256], skip_special_tokens=True) == "\ufffd" and data.text_of(tokenizer, []) == ""


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused():
    data.check_vocabulary(train_bpe([], 257), 264, "m")
    with pytest.raises(ValueError, match="m: the tokenizer has 257 tokens, the model 256; give a folder whose two belong"):
        data.check_vocabulary(train_bpe([], 257), 256, "m")
