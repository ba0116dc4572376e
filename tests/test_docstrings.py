"""The examples in docstrings run and print what they show."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

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
