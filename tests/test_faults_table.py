"""FAULTS.md has its rows, and every test that it names exists."""

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
ROWS = [line.strip("|").split("|") for line in (HERE / "FAULTS.md").read_text(encoding="utf-8").splitlines()
        if re.match(r"\| *\d", line)]


def functions_of(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_the_rows_are_numbered_and_have_tests():
    assert [int(number) for number, *_ in ROWS] == list(range(1, len(ROWS) + 1)) and len(ROWS) >= 50
    for number, fault, outcome, tests in ROWS:
        assert fault.strip() and outcome.strip(), number
        assert re.fullmatch(r"( `[\w/]+\.py::test_\w+`)+ ", tests), f"row {number}: {tests}"


def test_every_test_named_exists():
    named = {tuple(name.split("::")) for row in ROWS for name in re.findall(r"`([^`]+)`", row[-1])}
    defined = {file: functions_of(HERE / file) for file in {file for file, _ in named} if (HERE / file).exists()}
    assert sorted("::".join(pair) for pair in named if pair[1] not in defined.get(pair[0], ())) == []
