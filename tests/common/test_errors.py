"""Errors that users see name the thing and the way out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fx_partition
from fx_partition import OversizeError, PartitionError, PlanMismatchError
from fx_partition.backends.options.backend_options import Options

WIDTH = 64


def model() -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(4)))


def plan(**options: Any) -> fx_partition.Plan:
    return fx_partition.plan(model(), **{"cache_bytes": "40KiB", "example_inputs": torch.randn(4, WIDTH), **options})


def test_a_graph_without_shapes_asks_for_example_inputs() -> None:
    with pytest.raises(PartitionError, match=r"carries no shapes.*example_inputs"):
        fx_partition.split(torch.fx.symbolic_trace(model()), cache_bytes="40KiB")
    with pytest.raises(PartitionError, match="example_inputs"):
        fx_partition.split(model(), cache_bytes="40KiB")


@pytest.mark.parametrize("budget", ["lots", "6 mebibytes", "", 1.5, True])
def test_a_budget_that_is_not_a_size(budget: Any) -> None:
    with pytest.raises(ValueError, match=r"cache_bytes=.*(is not a size|is neither a size).*6MiB"):
        plan(cache_bytes=budget)


@pytest.mark.parametrize("budget", [0, -1, "0MiB"])
def test_a_budget_that_leaves_nothing(budget: Any) -> None:
    with pytest.raises(ValueError, match=r"cache_bytes=.*must be positive"):
        plan(cache_bytes=budget)


def test_an_atom_larger_than_the_budget_is_explained() -> None:
    assert plan(cache_bytes="10KiB").spill_bytes > 0
    with pytest.raises(OversizeError, match=r'linear needs .*weights 16.25 KiB, .*workspace .*"stream"'):
        plan(cache_bytes="10KiB", oversize="error")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"algorithm": "magic"}, "algorithm='magic' is not known; choose from dp, greedy"),
        ({"objective": "magic"}, "objective='magic'.*balanced"),
        ({"footprint": "magic"}, "footprint='magic'.*peak"),
        ({"oversize": "magic"}, "oversize='magic'.*stream, slice, error"),
        ({"on_shortage": "magic"}, "on_shortage='magic'.*balance, wrap, error"),
        ({"bind": {"batch": 3}}, "'batch' is not a symbol of this graph.*none, as the graph is static"),
        ({"keep_together": ["nowhere"]}, "keep_together names 'nowhere'"),
        ({"keep_together": [["linear", "nowhere"]]}, "keep_together names nowhere"),
        ({"devices": ["cpu"], "on_shortage": "error"}, "2 partitions of 40 KiB are needed and there are 1 devices"),
    ],
)
def test_choices_that_do_not_exist(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        plan(**options)


def test_bind_names_the_symbols_there_are() -> None:
    batch = {"input": {0: torch.export.Dim("batch")}}
    with pytest.raises(ValueError, match=r"'x\.0' is not a symbol of this graph; its symbols are: input\.0, s\d+"):
        plan(dynamic_shapes=batch, bind={"x.0": 3})
    with pytest.raises(ValueError, match=r"'input\.0' must be a positive whole number, not 0"):
        plan(dynamic_shapes=batch, bind={"input.0": 0})


def test_a_plan_of_another_graph() -> None:
    other = fx_partition.plan(nn.Sequential(nn.Linear(8, 8)), torch.randn(4, 8), cache_bytes="1MiB")
    with pytest.raises(PlanMismatchError, match=r"made for another graph.*fx_partition.plan"):
        fx_partition.split(model(), torch.randn(4, WIDTH), plan=other)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cache": "6MiB"}, "unknown option 'cache'; the options of l2partition are .*cache_bytes"),
        ({"cache_bytes": "x"}, "cache_bytes='x' is not a size"),
        ({"cache_bytes": "1MiB", "algorithm": "x"}, "algorithm='x' is not known"),
        ({"devices": ["cpu:1"], "algorithm": "x"}, "algorithm='x' is not known"),
        ({"algorithm": "x"}, "algorithm='x' is not known"),
        ({"devices": ["gpu0", "cpu"], "cache_bytes": 1}, "devices names 'gpu0', which is not a torch device"),
        ({"devices": ["cuda:7"], "cache_bytes": 1}, r"devices names 'cuda:7'; this machine has \d CUDA devices"),
        ({"devices": ["meta"], "cache_bytes": 1}, "devices names 'meta'; only cpu and cuda"),
        ({"devices": [], "cache_bytes": 1}, "devices=.. names no device"),
        ({"devices": 0}, "devices=0 must be a number of devices"),
        ({"cache_bytes": ["1MiB"] * 3, "devices": ["cpu", "cpu"]}, "sizes of 3 devices, and devices= says 2"),
        ({"report": "plan.pdf"}, "report='plan.pdf' is neither True nor a path"),
    ],
)
def test_options_of_the_backend(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Options.check(options)
