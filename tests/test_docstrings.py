"""What readers are told: the examples in docstrings do what they say, and the map of the passes has all of them."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

import fx_partition

NAMES = sorted(
    found.name
    for found in pkgutil.walk_packages(fx_partition.__path__, "fx_partition.")
    if found.name != "fx_partition.__main__"
)


def examples_of(name: str) -> list[doctest.DocTest]:
    module = importlib.import_module(name)
    given = {"torch": torch, "fx_partition": fx_partition}
    return [test for test in doctest.DocTestFinder(recurse=True).find(module, extraglobs=given) if test.examples]


@pytest.mark.parametrize("name", NAMES)
def test_examples_say_what_happens(name: str) -> None:
    for test in examples_of(name):
        result = doctest.DocTestRunner().run(test)
        assert result.failed == 0, test.name


def test_the_map_of_the_passes_has_every_file_and_no_other() -> None:
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text[text.index("| step |") :].split("\n\n")[0]
    named = set(re.findall(r"`([a-z_]+\*?)`", table))
    files = {path.stem for path in Path(fx_partition.__file__).parent.glob("passes/[a-z]*.py")}
    assert {name for name in named if not any(fnmatch(file, name) for file in files)} == set()
    assert {file for file in files if not any(fnmatch(file, name) for name in named)} == set()
