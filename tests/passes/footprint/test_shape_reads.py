"""Operators that read only the shape of a tensor touch none of its bytes: memory that may not be read is the oracle."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from protected_reads import SHAPE_ONLY as CALLS
from torch import Tensor, nn

import fx_partition
from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.footprint.shape_reads import SHAPE_ONLY, reads_elements

SCRIPT = Path(__file__).with_name("protected_reads.py")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each call runs in a fork of a process")
def test_memory_that_may_not_be_read_says_the_same() -> None:
    run = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stderr
    lines = [line.rsplit(" ", 3) for line in run.stdout.splitlines()]
    assert {touched for *_, touched in lines} == {"True", "False"}
    for name, overload, argument, touched in lines:
        func = getattr(getattr(torch.ops.aten, name.removeprefix("aten::")), overload or "default")
        written = next(a for a in func._schema.arguments if a.name == argument).is_write
        assert written or reads_elements(func, argument) == (touched == "True"), (func, argument)


def test_every_entry_has_a_call() -> None:
    called = {func._schema.name for func, _ in CALLS} | {f"{f._schema.name}.{f._overloadname}" for f, _ in CALLS}
    assert set(SHAPE_ONLY) <= called


class Asks(nn.Module):
    """Takes the shape of a weight in several ways, and the elements of another."""

    def __init__(self) -> None:
        super().__init__()
        self.shape, self.weight = nn.Parameter(torch.ones(64, 64)), nn.Parameter(torch.ones(64, 64))

    def forward(self, x: Tensor) -> Tensor:
        like = torch.zeros_like(self.shape) + torch.ones_like(self.shape) + self.shape.new_zeros(64)
        return (x.reshape(self.shape.shape).expand_as(self.shape).type_as(self.shape) + like) @ self.weight


def test_a_weight_of_which_the_shape_is_read_has_no_bytes() -> None:
    memory = analyze_memory(capture(Asks(), torch.ones(64, 64)))
    touched = dict.fromkeys(memory.weight_names, 0)
    for step in memory.steps:
        for weight, size in step.weights.items():
            touched[memory.weight_names[weight]] += int(size)
    assert touched == {"shape": 0, "weight": 64 * 64 * 4}


class Casts(nn.Module):
    """A layer whose weights are cast in forward; torch.export asserts the metadata of each before its cast."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.ones(64, 64)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.first.bfloat16()) @ self.second.bfloat16()


def test_asserts_of_metadata_take_no_bytes() -> None:
    model, x = nn.Sequential(*(Casts() for _ in range(3))).eval(), torch.ones(4, 64).bfloat16()
    program = torch.export.export(model, (x,))
    bare = program.module()
    assert isinstance(bare, torch.fx.GraphModule)
    asserts = bare.graph.find_nodes(op="call_function", target=torch.ops.aten._assert_tensor_metadata.default)
    assert len(asserts) >= 6
    for node in asserts:
        bare.graph.erase_node(node)
    bare.recompile()
    for budget in ("30KiB", "60KiB"):
        with_asserts, without = (
            fx_partition.plan(graph, example, cache_bytes=budget)
            for graph, example in ((program, None), (bare, (x,)))
        )
        assert with_asserts.num_partitions == without.num_partitions
        assert with_asserts.max_bytes == without.max_bytes
        assert sum(p.weight_bytes for p in with_asserts.partitions) == 6 * 64 * 64 * 4
