"""The examples in the docstrings of what a user calls."""

from __future__ import annotations

import doctest
import importlib
from types import ModuleType

import pytest
import torch

import fx_partition
from fx_partition.report.document import Document, Section


@pytest.mark.parametrize(
    "name",
    [
        "backends.each_once",
        "backends.l2_persistence",
        "backends.pack",
        "passes.api",
        "passes.weights",
        "report.api",
        "report.markdown",
        "report.text",
    ],
)
def test_examples_say_what_happens(name: str) -> None:
    module: ModuleType = importlib.import_module(f"fx_partition.{name}")
    names = {"torch": torch, "fx_partition": fx_partition, "Document": Document, "Section": Section}
    found = doctest.testmod(module, extraglobs=names)
    assert found.failed == 0 and found.attempted > 0
