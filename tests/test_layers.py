# SPDX-License-Identifier: Apache-2.0
"""Imports run one way between the folders of the package."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pyro_tilt"
BELOW = {
    "rewards": set(),
    "ops": set(),
    "distributions": {"rewards", "ops"},
    "poutine": {"distributions", "rewards", "ops"},
    "diffusion": {"poutine", "distributions", "rewards", "ops"},
    "language": {"poutine", "distributions", "rewards", "ops"},
    "infer": {"poutine", "distributions", "rewards", "ops"},
    "tractability": {
        "diffusion",
        "language",
        "infer",
        "poutine",
        "distributions",
        "rewards",
        "ops",
    },
    "diagnostics": {"infer", "poutine", "distributions", "rewards", "ops"},
    "testing": {"infer", "poutine", "distributions", "rewards", "ops"},
}


@pytest.mark.parametrize("folder", BELOW)
def test_a_folder_imports_only_what_lies_below(folder):
    for path in sorted((PACKAGE / folder).rglob("*.py")):
        found = _imported_folders(path)
        assert found <= BELOW[folder] | {folder}, path.name


def test_nothing_imports_the_command():
    for path in set(PACKAGE.rglob("*.py")) - set((PACKAGE / "cli").rglob("*.py")):
        assert "cli" not in _imported_folders(path), path.name


def _imported_folders(path):
    """Folders that a module imports when it is loaded; imports inside functions do not count."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    ours = {name.split(".")[1] for name in names if name.startswith("pyro_tilt.")}
    return ours - {"_version"}
