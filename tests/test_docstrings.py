"""What readers are told: the examples in docstrings do what they say, and the map of the passes has all of them."""

from __future__ import annotations

import doctest
import importlib
import re
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType

import pytest
import torch

import fx_partition
from fx_partition.report.document import Document, Section


@pytest.mark.parametrize(
    "name",
    [
        "backends.each_once",
        "backends.hollow",
        "backends.l2_persistence",
        "backends.load_weights",
        "backends.pack",
        "backends.portable",
        "cost.simulate",
        "hardware.fit",
        "passes.api",
        "passes.weights",
        "report.api",
        "report.markdown",
        "report.text",
        "report.written",
    ],
)
def test_examples_say_what_happens(name: str) -> None:
    module: ModuleType = importlib.import_module(f"fx_partition.{name}")
    names = {"torch": torch, "fx_partition": fx_partition, "Document": Document, "Section": Section}
    found = doctest.testmod(module, extraglobs=names)
    assert found.failed == 0 and found.attempted > 0


def test_the_map_of_the_passes_has_every_file_and_no_other() -> None:
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text[text.index("| step |") :].split("\n\n")[0]
    named = set(re.findall(r"`([a-z_]+\*?)`", table))
    files = {path.stem for path in Path(fx_partition.__file__).parent.glob("passes/[a-z]*.py")}
    assert {name for name in named if not any(fnmatch(file, name) for file in files)} == set()
    assert {file for file in files if not any(fnmatch(file, name) for name in named)} == set()
