"""Imports go one way: the passes and the hardware know nothing of what is built on them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fx_partition

ROOT = Path(fx_partition.__file__).parent
FORBIDDEN = {
    "passes": {"report", "backends", "cost", "cli", "cli_files"},
    "hardware": {"passes", "report", "backends", "cost", "cli", "cli_files"},
    "report": {"backends", "cost", "cli", "cli_files"},
    "backends": {"cost", "cli", "cli_files"},
    "cost": {"backends", "cli", "cli_files"},
}


def _imported(path: Path) -> set[str]:
    """The parts of the package that a file imports, wherever in it."""
    package = ("fx_partition", *path.relative_to(ROOT).parts[:-1])
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            stem = base + (node.module.split(".") if node.module else [])
            names = [[*stem, alias.name] for alias in node.names]
        else:
            continue
        found |= {parts[1] for parts in names if parts[0] == "fx_partition" and len(parts) > 1}
    return found


@pytest.mark.parametrize("part", FORBIDDEN)
def test_no_way_back(part: str) -> None:
    files = sorted((ROOT / part).rglob("*.py"))
    assert files
    back = {str(path.relative_to(ROOT)): bad for path in files if (bad := _imported(path) & FORBIDDEN[part])}
    assert back == {}


def test_the_check_sees_imports() -> None:
    assert {"passes", "hardware", "backends", "report"} <= _imported(ROOT / "cli.py") | _imported(ROOT / "__init__.py")
