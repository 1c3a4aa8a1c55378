"""Record what verl's group advantages are for made-up rewards: `python tests/golden/verl.py verl-0.9.1-py3-none-any.whl`.

verl itself needs Ray and more; of its wheel (`pip download --no-deps verl==0.9.1`) only the two functions are run. Writes
verl_0_9_1.json beside this file.
"""

import ast
import json
import sys
import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

FUNCTIONS = {"rloo": "compute_rloo_outcome_advantage", "grpo": "compute_grpo_outcome_advantage"}


def load(wheel: str) -> dict:
    """The two functions, without the decorators that register them."""
    tree = ast.parse(zipfile.ZipFile(wheel).read("verl/trainer/ppo/core_algos.py"))
    names = {"torch": torch, "np": np, "defaultdict": defaultdict}
    exec("from __future__ import annotations\nfrom typing import Optional", names)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in FUNCTIONS.values():
            node.decorator_list, node.returns = [], None
            for argument in node.args.args:
                argument.annotation = None
            exec(compile(ast.Module([node], []), wheel, "exec"), names)
    return names


def main(wheel: str) -> None:
    functions, generator, cases = load(wheel), torch.Generator().manual_seed(0), []
    for group_size, groups, length in ((2, 3, 4), (4, 2, 5), (8, 3, 1), (3, 1, 7)):
        lengths = torch.randint(1, length + 1, (group_size * groups, 1), generator=generator)
        mask = torch.arange(length) < lengths
        rewards = torch.randn(len(mask), length, generator=generator) * mask
        index = np.arange(len(mask)) // group_size
        case = {"group_size": group_size, "rewards": rewards.tolist(), "mask": mask.long().tolist()}
        for kind, name in FUNCTIONS.items():
            case[kind] = functions[name](rewards.clone(), mask.float(), index)[0].tolist()
        cases.append(case)
    Path(__file__).with_name("verl_0_9_1.json").write_text(json.dumps(cases) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
