"""The house rules that a program can check: which module imports which, and which packages."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "minippo"
ROWS = [["fast"], ["gpt2", "safetensors", "hub", "rewards", "data", "report"], ["generation", "checkpoint", "pretrain", "tokenizer"],
        ["policy", "reward_model"], ["ppo"], ["run", "check", "bench"], ["demo"], ["__main__"]]
ROW = {module: i for i, row in enumerate(ROWS) for module in row}
PACKAGES = {"torch", "numpy", "tiktoken"}
OPTIONAL = {"hub": {"huggingface_hub"}}                     # imported by push_folder when it is called


def imports(path: Path) -> tuple[set[str], set[str]]:
    """Modules of ours imported at the top of a file, and packages imported anywhere in it."""
    tree, ours, packages = ast.parse(path.read_text(encoding="utf-8")), set(), set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            ours |= {node.module} if node.module else {alias.name for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            packages.add(node.module.split(".")[0])
    return ours, packages - set(sys.stdlib_module_names)


MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way_and_stay_within_the_packages(module):
    ours, packages = imports(PACKAGE / f"{module}.py")
    assert module in ROW, f"{module}.py has no place in the drawing"
    assert all(ROW[other] < ROW[module] for other in ours), f"{module}.py imports {sorted(ours)}"
    assert packages <= PACKAGES | OPTIONAL.get(module, set())


def test_ppo_knows_the_policy_alone():
    ours, _ = imports(PACKAGE / "ppo.py")
    assert ours == {"policy", "checkpoint"}
