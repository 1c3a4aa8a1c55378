"""The house rules that a program can check: which module imports which, and which packages."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "minippo"
ROWS = [["__init__", "__main__"], ["training", "check", "bench"], ["ppo"], ["policy"], ["scoring", "generation"], ["gpt2"],
        ["report", "attention"], ["files", "inputs", "fast", "distributed", "metrics"]]       # each imports from rows below it alone
ROW = {place: i for i, row in enumerate(ROWS) for place in row}
PACKAGES = {"torch", "numpy", "tiktoken"}
OPTIONAL = {"files.hub": {"huggingface_hub"}}               # imported by push_folder when it is called
MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
           for path in sorted(PACKAGE.rglob("*.py"))}


def imports(module: str) -> tuple[set[str], set[str]]:
    """Modules of ours and packages that a file imports, anywhere in it: an import inside a function is one, too."""
    path, ours, packages = MODULES[module], set(), set()
    folder = [*path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            packages.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = folder[:len(folder) - node.level + 1] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                name = ".".join([*base, alias.name])
                ours.add(name if name in MODULES else ".".join(base))
    return ours, packages - set(sys.stdlib_module_names)


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way_and_stay_within_the_packages(module):
    ours, packages = imports(module)
    place = module.split(".")[0]
    assert place in ROW, f"{module} has no place in the drawing"
    assert all(ROW[other.split(".")[0]] > ROW[place] or other.split(".")[0] == place for other in ours), f"{module}: {sorted(ours)}"
    assert packages <= PACKAGES | OPTIONAL.get(module, set())


def test_no_circle_of_imports():
    """Inside a folder, too: modules without imports of ours are taken away again and again until none is left."""
    left = {module: imports(module)[0] for module in MODULES}
    while free := [module for module, ours in left.items() if not ours & left.keys()]:
        for module in free:
            del left[module]
    assert not left


def test_ppo_knows_the_policy_and_what_it_stands_on():
    ours, _ = imports("ppo")
    assert ours <= {"policy", "inputs", "metrics", "fast", "distributed", "files.checkpoint"}
