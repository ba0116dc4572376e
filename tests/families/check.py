"""The ways to run a family, each of which must compute what the model does.

Each check takes a family and returns what the table records of it (see `table`); it raises an AssertionError that says
what was other than it should be.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch._dynamo
from torch import Tensor, nn
from torch._dynamo.backends.registry import lookup_backend

import fx_partition
from fx_partition import PartitionWarning
from fx_partition.backends.lowering import torch_internals
from fx_partition.backends.lowering.dynamo_graph import capture_dynamo
from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.capture.captured_graph import CapturedGraph
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.plan.make_plan import make_plan
from fx_partition.passes.plan.request import Request
from fx_partition.report.compiled_plans import compiled_graphs

from .compare import SEEDS, assert_same, assert_same_aliases, assert_same_strides, calls, error, worst
from .family import Family, tensors

#: Into how many partitions a model is cut where its atoms permit it: by `split`, by the backend, and what is compiled.
SPLIT, BACKEND, COMPILED = 8, 8, 4
#: An error that is nothing but another order of a sum in float32.
SMALL = 2e-6


@dataclass
class Found:
    """What the table records of a check.

    Attributes:
        partitions: the number of partitions of each graph.
        warnings: what the package warned of, each once.
    """

    partitions: list[int] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Kernels run on one thread: how many there are decides the order of sums, and the scratch memory of some."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def recorded(found: Found) -> Iterator[None]:
    """Adds the package's warnings to ``found``."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    texts = [str(w.message).splitlines()[0] for w in caught if issubclass(w.category, PartitionWarning)]
    found.warnings = list(dict.fromkeys(texts))


@contextlib.contextmanager
def compiled_by_aot_eager() -> Iterator[list[torch.fx.GraphModule]]:
    """The backend's stages run operator by operator, as AOTAutograd traced them; yields the graphs it was handed."""
    graphs: list[torch.fx.GraphModule] = []

    def compile_fx(gm: torch.fx.GraphModule, example_inputs: Any, config_patches: Any = None) -> Callable[..., Any]:
        graphs.append(gm)
        compiled = lookup_backend("aot_eager")(gm, list(example_inputs))
        assert callable(compiled)
        return compiled

    with mock.patch.object(torch_internals, "compile_fx", compile_fx):
        yield graphs


def settings(family: Family) -> Any:
    """A fresh Dynamo with the family's settings."""
    torch._dynamo.reset()
    return torch._dynamo.config.patch(**family.settings)


def check_split(family: Family) -> Found:
    """`split` gives the bits of the model, their strides, types and aliases, and leaves the same state behind."""
    found = Found()
    with torch.no_grad():
        model = family.build()
        with recorded(found):
            if family.trace == "export":
                cut = split_apart(exported_of(model, family), found)
            else:
                cut = torch.compile(model, backend=lambda gm, _: split_apart(gm, found), fullgraph=True)
            with settings(family):
                got = calls(cut, family, model)
        twin = family.build()
        whole = twin if family.bitwise else exported_of(twin, family).module()
        expected = calls(whole, family, twin)
    for which, (ours, theirs) in enumerate(zip(got, expected, strict=True)):
        assert_same(ours, theirs, f"call {which}")
    assert_same_aliases(got, expected)
    return found


def split_apart(model: Any, found: Found) -> Callable[..., Any]:
    """The split model, whose plan holds; ``found`` gets the number of its partitions."""
    cut = fx_partition.split(model, cache_bytes=budget(capture(model), SPLIT))
    found.partitions.append(cut.plan.num_partitions)
    assert fx_partition.verify(cut.plan, model) == []
    return cut


def budget(captured: CapturedGraph, parts: int) -> int:
    """The smallest budget for which ``parts`` partitions suffice; less where three would not be needed for it."""
    memory = analyze_memory(captured)
    size = make_plan(captured, memory, Request.check(None, parts)).budget_bytes
    for _ in range(6):
        size = max(size, 1)  # a graph may compute nothing but sizes
        if make_plan(captured, memory, Request.check(size, None)).num_partitions >= 3:
            return size
        size = size * 3 // 4
    return max(size, 1)


def exported_of(model: nn.Module, family: Family) -> torch.export.ExportedProgram:
    args, kwargs = family.inputs(SEEDS[0])
    return torch.export.export(model, args, kwargs, strict=False)


def run_compiled(family: Family, backend: Any, found: Found, **options: Any) -> list[list[Tensor]]:
    """Two calls of a compiled model; ``found`` gets the partitions of its graphs and what was warned of."""
    model = family.build()
    with torch.no_grad(), settings(family), recorded(found):
        got = calls(torch.compile(model, backend=backend, **options), family, model)
    found.partitions = [graph.plan.num_partitions for graph in compiled_graphs(model)]
    return got


def compare(family: Family, compiler: str, parts: int) -> tuple[Found, float, float]:
    """The backend against the same compiler on its own, whose strides and aliases it must have.

    Args:
        compiler: what compiles the stages, and the whole model for comparison.
        parts: into how many partitions the largest graph is cut.

    Returns:
        What was found, the error of the backend, and that of the compiler on its own.
    """
    found, budgets = Found(), [1]

    def alone(gm: torch.fx.GraphModule, example_inputs: Any) -> Callable[..., Any]:
        budgets.append(budget(capture_dynamo(gm, example_inputs), parts))
        compiled = lookup_backend(compiler)(gm, example_inputs)
        assert callable(compiled)
        return compiled

    model = family.build()
    with torch.no_grad():
        expected = calls(model, family, model)
    reference = run_compiled(family, alone, Found())
    ours = run_compiled(family, "l2partition", found, options={"cache_bytes": max(budgets)})
    assert_same_aliases(ours, reference)
    if compiler == "inductor":  # stages promise the strides that inductor gives, whatever compiles them
        assert_same_strides(ours, reference)
    return found, worst(ours, expected), worst(reference, expected)


def check_backend(family: Family) -> Found:
    """The backend, its stages run by ``aot_eager``, is as near to eager as ``aot_eager`` of the whole model is."""
    with compiled_by_aot_eager() as graphs:
        found, ours, alone = compare(family, "aot_eager", BACKEND)
    assert len(graphs) >= len(found.partitions) > 0, "the backend did not compile every graph"
    assert ours <= min(family.tolerance, max(4 * alone, SMALL)), f"error {ours:g}; {alone:g} by aot_eager alone"
    return found


def check_inductor(family: Family) -> Found:
    """The backend's error is at most twice that of inductor alone."""
    found, ours, alone = compare(family, "inductor", COMPILED)
    assert ours <= max(2 * alone, SMALL), f"error {ours:g}; {alone:g} by inductor alone"
    return found


def check_pipeline(family: Family) -> Found:
    """A pipeline of stages that need no Python is within the tolerance of eager."""
    found, model = Found(), family.build()
    with torch.no_grad():
        expected = calls(model, family, model)
    args, kwargs = family.inputs(SEEDS[0])
    with recorded(found):
        pipe = fx_partition.pipeline(family.build(), kwargs or args, devices=["cores:0"] * COMPILED, replicate=False)
    with pipe:
        found.partitions = [pipe.plan.num_partitions]
        futures = [pipe.submit(*args, **kwargs) for args, kwargs in map(family.inputs, SEEDS)]
        for future, wanted in zip(futures, expected, strict=False):
            results = tensors(future.result(120))
            got = error(results, wanted[: len(results)])
            assert got <= family.tolerance, f"error {got:g}"
    return found
