"""Keep everything that is made from the chapters in step with them: notebooks, links to source lines, solutions, metrics page.

    python -m tutorial.build            # write what is out of step
    python -m tutorial.build 01 faq     # only the pages whose names begin so
    python -m tutorial.build --check    # write nothing; list it, exit status 1

A chapter is Markdown. Its ```python blocks run in order in one namespace, and the ```text block behind one is exactly what
it prints. What stands inside <details> is never run. Standard library only.
"""

from __future__ import annotations

import argparse
import ast
import base64
import contextlib
import io
import json
import re
import sys
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Sequence

HERE = Path(__file__).resolve().parent
FENCE = re.compile(r"^```(.*)$")
SOURCE_LINK = re.compile(r'\[([^\]]+)\]\((\.\./[\w/]+\.py)(?:#L\d+(?:-L\d+)?)?(?: "([^"]+)")?\)')
SOLUTION = re.compile(r"(<details><summary>Solution</summary>\n\n```python\n)(.*?)(```\n\n</details>)", re.S)
IMAGE = re.compile(r"!\[([^\]]*)\]\(images/([\w.]+)\)")


# --- chapters as cells ------------------------------------------------------------------------------------------------

@dataclass
class Cell:
    """A piece of a chapter: Markdown, or a code block with the output that the text shows for it."""
    kind: str       # "markdown" or "code"
    text: str
    line: int       # of its first line in the chapter, from 1
    output: str = ""


def chapters() -> list[Path]:
    return sorted(HERE.glob("[0-9][0-9]_*.md"))


def split(text: str, name: str = "chapter") -> list[Cell]:
    """The cells of a chapter, in order; ValueError for a block that nobody would run or compare."""
    cells, folded, fence = [Cell("markdown", "", 1)], False, None
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        mark = FENCE.match(line)
        folded = (folded or line.startswith("<details")) and not line.startswith("</details")
        if fence is None and mark and not folded and mark[1] in ("python", "text"):
            fence = mark[1]
            if fence == "python":
                cells.append(Cell("code", "", number + 1))
            elif len(cells) < 2 or cells[-1].text.strip() or cells[-2].kind != "code" or cells[-2].output:
                raise ValueError(f"{name}:{number}: a text block stands directly behind the python block that prints it")
        elif fence is None:
            if mark and not folded and mark[1] not in ("", "sh"):
                raise ValueError(f"{name}:{number}: a block of {mark[1]!r}; blocks are python, text, sh or unnamed")
            cells[-1].text += line
            if mark and not folded:
                fence = mark[1]
        elif mark:
            cells += [Cell("markdown", "", number + 1)] if fence in ("python", "text") else []
            cells[-1].text += line if fence in ("", "sh") else ""
            fence = None
        elif fence == "text":
            cells[-2].output += line
        else:
            cells[-1].text += line
    if fence is not None:
        raise ValueError(f"{name}: the last block is not closed")
    return [cell for cell in cells if cell.text.strip()]


def run(path: Path) -> tuple[dict, list[tuple[Cell, str]]]:
    """Execute a chapter: its namespace at the end, and what each code cell printed."""
    namespace, printed = {"__name__": path.stem}, []
    for cell in split(path.read_text(encoding="utf-8"), path.name):
        if cell.kind == "code":
            code = compile("\n" * (cell.line - 1) + cell.text, str(path), "exec")    # tracebacks name the chapter's own lines
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(code, namespace)
            printed.append((cell, out.getvalue()))
    return namespace, printed


# --- links to source lines --------------------------------------------------------------------------------------------

def find_symbol(source: str, symbol: str) -> tuple[int, int] | None:
    """First and last line of a function, class, method, field or constant, `name` or `Class.name`."""
    body = ast.parse(source).body
    for part in symbol.split("."):
        for node in body:
            targets = getattr(node, "targets", [getattr(node, "target", node)])
            if part in (getattr(target, "name", getattr(target, "id", None)) for target in targets):
                body = getattr(node, "body", [])
                break
        else:
            return None
    return node.lineno, node.end_lineno


def find_line(source: str, snippet: str) -> tuple[int, int] | None:
    """The one line that holds `snippet`."""
    lines = [number for number, line in enumerate(source.splitlines(), 1) if snippet in line]
    return (lines[0], lines[0]) if len(lines) == 1 else None


def refresh_links(text: str, name: str) -> str:
    """Links to source with today's line numbers: [`symbol`](../file.py#L1-L9) or [any words](../file.py#L3 "a piece of line 3")."""
    def refresh(link: re.Match) -> str:
        words, target, snippet = link.groups()
        if not snippet and not re.fullmatch(r"`[\w.]+`", words):
            return link[0]                                          # a link to a whole file
        source = (HERE / target).read_text(encoding="utf-8")
        found = find_line(source, snippet) if snippet else find_symbol(source, words.strip("`"))
        if found is None:
            wanted = f"exactly one line with {snippet!r}" if snippet else f"a function, class or field {words}"
            raise ValueError(f"{name}: expected {wanted} in {target}, found none or several; mend the link {link[0]}")
        lines = f"L{found[0]}" + (f"-L{found[1]}" if found[1] > found[0] else "")
        return f"[{words}]({target}#{lines}" + (f' "{snippet}")' if snippet else ")")
    return SOURCE_LINK.sub(refresh, text)


# --- solutions --------------------------------------------------------------------------------------------------------

def functions_of(path: Path) -> dict[str, str]:
    """The source of each public function of a file, by name, in order."""
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()                                     # whole lines: a comment may stand behind the last statement
    return {node.name: "\n".join(lines[node.lineno - 1:node.end_lineno]) for node in ast.parse(source).body
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")}


def refresh_solutions(text: str, number: str) -> str:
    """The folded solutions of a chapter, as solutions/exNN.py has them; each block names its functions by `def`."""
    solutions = functions_of(HERE / f"solutions/ex{number}.py")

    def refresh(block: re.Match) -> str:
        names = re.findall(r"^def (\w+)", block[2], re.M)
        missing = [name for name in names if name not in solutions]
        if missing or not names:
            raise ValueError(f"a folded solution of chapter {number} has {names}, but solutions/ex{number}.py only {list(solutions)}")
        return block[1] + "\n\n\n".join(solutions[name] for name in names) + "\n" + block[3]
    return SOLUTION.sub(refresh, text)


# --- notebooks --------------------------------------------------------------------------------------------------------

FIRST_CELL = '''\
# finds the course: this notebook's own folder and those above it, then a copy cloned beside it
import importlib.util, subprocess, sys
from pathlib import Path

places = [Path.cwd(), *Path.cwd().parents, *Path.cwd().glob("*")]
root = next((place for place in places if (place / "minippo" / "ppo.py").is_file()), None)
if root is None:
    raise SystemExit("minippo is not here: clone the repository that this notebook comes from (in Colab: !git clone "
                     "and its address) into this folder, then run this cell again")
sys.path.insert(0, str(root))
if any(importlib.util.find_spec(name) is None for name in ("torch", "numpy", "tiktoken")):
    subprocess.check_call([sys.executable, "-m", "pip", "install", "-r", str(root / "requirements.txt")])
print("minippo found")'''


def notebook(path: Path) -> str:
    """The chapter as a Jupyter notebook that carries its own pictures."""
    cells = split(path.read_text(encoding="utf-8"), path.name)
    cells.insert(0, Cell("code", FIRST_CELL, 0))
    made = []
    for i, cell in enumerate(cells):
        text = cell.text.strip("\n")
        one = {"cell_type": cell.kind, "id": f"cell-{i:02d}", "metadata": {}}
        if cell.kind == "code":
            stream = {"name": "stdout", "output_type": "stream", "text": cell.output.splitlines(keepends=True)}
            one |= {"execution_count": None, "outputs": [stream] if cell.output else []}
        else:
            pictures = [name for _, name in IMAGE.findall(text)]
            text = re.sub(r"\]\((?=\.\./|[\w.]+\.md|\w+/)", "](../", IMAGE.sub(r"![\1](attachment:\2)", text))
            if pictures:
                one["attachments"] = {name: {"image/svg+xml": base64.b64encode((HERE / "images" / name).read_bytes()).decode()}
                                      for name in pictures}
        made.append(one | {"source": text.splitlines(keepends=True)})
    whole = {"cells": made, "nbformat": 4, "nbformat_minor": 5,
             "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
                          "language_info": {"name": "python"}}}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


# --- the metrics page -------------------------------------------------------------------------------------------------

def metrics_page() -> str:
    from minippo.metrics import GROUPS, METRICS
    lines = ["# What every metric means", "",
             "Made by `python -m tutorial.build` from the table that the logger and the report use: "
             "[`METRICS`](../minippo/metrics.py). Shapes and words: [glossary](glossary.md).", ""]
    for group, metrics in groupby(METRICS, key=lambda metric: metric.group):
        lines += [f"## {GROUPS[group]}", ""]
        for metric in metrics:
            lines += [f"### {metric.title}", "", f"`{metric.key}`: {metric.what}.", "", f"    {metric.formula}", "",
                      f"- Healthy: {metric.healthy}", f"- When it moves: {metric.moves}", ""]
    return "\n".join(lines)


# --- all of it --------------------------------------------------------------------------------------------------------

def refreshed_text(path: Path) -> str:
    text = metrics_page() if path.name == "metrics.md" else path.read_text(encoding="utf-8")
    if path in chapters():
        text = refresh_solutions(text, path.name[:2])
    return refresh_links(text, path.name)


def build(wanted: Sequence[str] = ("",), check: bool = False) -> list[str]:
    """Refresh the pages whose names begin with one of `wanted`, and their notebooks; the names of those out of step."""
    stale = []

    def put(path: Path, text: str) -> None:
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(str(path.relative_to(HERE)))
            if not check:
                path.write_text(text, encoding="utf-8")
    for path in sorted({*HERE.glob("*.md"), HERE / "metrics.md"}):
        if path.name.startswith(tuple(wanted)):
            put(path, refreshed_text(path))
            if path in chapters():
                put(HERE / "notebooks" / f"{path.stem}.ipynb", notebook(path))
    return stale


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tutorial.build", description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", default=[""], metavar="NAME", help="the first letters of a page, such as 01; all pages")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if something is out of step")
    arguments = parser.parse_args()
    changed = build(arguments.pages, arguments.check)
    print("\n".join(f"{'out of step' if arguments.check else 'written'}: {name}" for name in changed) or "all in step")
    sys.exit(bool(changed and arguments.check))
