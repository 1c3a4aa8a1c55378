"""The list of tests/mutations.py fits the code: it would rot unseen, since the breaks themselves are not run here."""

from collections import Counter
from pathlib import Path

import mutations
import pytest
from mutations import MUTATIONS, TESTS, Mutation

HERE = Path(__file__).parent
SOURCES = {name: (HERE.parent / "minippo" / name).read_text(encoding="utf-8") for name in TESTS}


def test_each_break_still_applies_exactly_once():
    counts = {f"{number} {m.breaks}": SOURCES[m.file].count(m.old) for number, m in enumerate(MUTATIONS, 1)}
    assert {name: count for name, count in counts.items() if count != 1} == {}
    assert all(m.old != m.new for m in MUTATIONS)


def test_no_break_is_listed_twice():
    assert all(count == 1 for count in Counter((m.file, m.old, m.new) for m in MUTATIONS).values())
    assert all(count == 1 for count in Counter((m.file, m.breaks) for m in MUTATIONS).values())


def test_the_named_test_files_exist():
    assert all((HERE / name).is_file() for names in TESTS.values() for name in names)


@pytest.mark.parametrize("new, caught, said", [
    ("x = 2", True, "tests/test_one.py::test_x"), ("x = 1 + 0", False, "SURVIVED"), ("x = = 2", False, "NO VERDICT")])
def test_what_the_script_says_of_a_caught_a_surviving_and_a_senseless_break(tmp_path, monkeypatch, new, caught, said):
    """A failing test catches; a test file that cannot even be collected says nothing."""
    (tmp_path / "minippo").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "minippo" / "one.py").write_text("x = 1\n")
    (tmp_path / "tests" / "test_one.py").write_text("from minippo.one import x\n\n\ndef test_x():\n    assert x == 1\n")
    monkeypatch.setitem(TESTS, "one.py", ["test_one.py"])
    verdict, text = mutations.check(Mutation("one.py", "x = 1", new, "x"), tmp_path, show=False)
    assert verdict is caught and said in text
    assert (tmp_path / "minippo" / "one.py").read_text() == "x = 1\n"


def test_a_break_whose_text_is_gone_is_not_taken_for_caught(tmp_path, monkeypatch):
    (tmp_path / "minippo").mkdir()
    (tmp_path / "minippo" / "one.py").write_text("y = 1\n")
    assert mutations.check(Mutation("one.py", "x = 1", "x = 2", "x"), tmp_path, show=False) == (
        False, "OUT OF DATE, its text occurs 0 times")
