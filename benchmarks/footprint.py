"""Compare footprints with what eager PyTorch really allocates: operator by operator, then stage by stage.

    python benchmarks/footprint.py [--operators | family ...]

Operators: the calls of tests/workspace_cases.py in three sizes each. The measured and predicted figures are the peak of
a call, its outputs and its workspace.

Stages: each model of the list is cut into partitions; every partition runs eagerly, node by node, under the profiler.
The measured figure is the most bytes alive at one time that the partition allocated, plus the tensors that it received;
these count by the planner's rule on both sides, because their owner keeps them. The predicted figure is activation +
workspace of the plan.

Target of both: measured <= predicted <= 1.1 * measured + 64 KiB.

The measured bytes are those of torch's allocator. The column "of malloc" is the most that the same call holds from
malloc in total (`malloc_count`). The difference is scratch memory that oneDNN, MKL and kernels allocate themselves,
which no plan counts.
"""

from __future__ import annotations

import argparse
import functools
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from allocations import RecordedInterpreter, measure_calls, measure_timeline
from malloc_count import is_counted, malloc_bytes, restart_counted
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from workspace_cases import CASES, MORE_CASES, predicted
from zoo import FAMILIES

from fx_partition.backends.lowering.dynamo_graph import capture_dynamo
from fx_partition.common.units import format_bytes
from fx_partition.passes.constraints.atoms import find_atoms
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.footprint.graph_memory import GraphMemory
from fx_partition.passes.partitioner.build_chain import lay_out
from fx_partition.passes.partitioner.chain import Chain
from fx_partition.passes.partitioner.interval_footprint import last_touches
from fx_partition.passes.plan.make_plan import make_plan
from fx_partition.passes.plan.request import Request
from fx_partition.passes.split.extract import PartitionGraph, cut

MODELS = ("transformer_encoder", "lstm", "wav2vec2", "unet", "swin", "mamba", "gpt2", "bert", "resnet18", "mobilenetv2")
SHARE = 0.6  # the budget as a share of the weights
SLACK = 64 * 1024
# Name, number, and bytes: measured, of malloc beyond that (None: not counted), predicted.
Row: TypeAlias = tuple[str, int, int, "int | None", int]


def stages(name: str) -> list[tuple[int, int, int | None, int]]:
    """Yield (partition, measured, of malloc beyond, predicted) for every partition of a model, in bytes."""
    rows: list[tuple[int, int, int | None, int]] = []

    def backend(gm: torch.fx.GraphModule, inputs: Sequence[Any]) -> Any:
        rows.extend(_measure_graph(gm, inputs))
        return gm.forward

    family = FAMILIES[name]
    model = family.build()
    args, kwargs = family.inputs(4)
    torch._dynamo.reset()
    with torch.no_grad(), torch._dynamo.config.patch(**family.dynamo_config):
        torch.compile(model, backend=backend, dynamic=False)(*args, **kwargs)
    return rows


def _measure_graph(gm: torch.fx.GraphModule, inputs: Sequence[Any]) -> list[tuple[int, int, int | None, int]]:
    captured = capture_dynamo(gm, inputs)
    memory = analyze_memory(captured)
    budget = int(SHARE * sum(int(size) for size in memory.weight_bytes))
    plan = make_plan(captured, memory, Request(budget, order="trace"))
    atoms = find_atoms(captured, memory)
    memory = memory.reordered(atoms.order)
    chain = lay_out(memory, atoms, memory.symbols.bind())
    values = dict(zip(gm.graph.find_nodes(op="placeholder"), inputs, strict=True))
    values |= {node: weight for node, weight in captured.weights.items() if node not in values}
    rows = []
    first = 0
    for partition, graph in zip(plan.partitions, cut(captured, plan), strict=True):
        end = first + len(partition.nodes)
        allocated, beyond = _allocated(graph, values)
        received = _received(memory, chain, first, end)
        steps = [step.node for step in memory.steps[first:end]]
        measured = max(allocated[node] + held for node, held in zip(steps, received, strict=True))
        rows.append((partition.index, measured, beyond, partition.activation_bytes + partition.workspace_bytes))
        first = end
    return rows


def _allocated(graph: PartitionGraph, values: dict[torch.fx.Node, Any]) -> tuple[dict[str, int], int | None]:
    """Return the most bytes alive during each node of a partition that the partition allocated.

    The last figure is the malloc bytes that the partition held in addition.
    """
    arguments = [values[node] for node in graph.inputs]
    RecordedInterpreter(graph.module).run(*arguments)  # warm up: a first call may build objects that later calls reuse
    peaks = measure_timeline(lambda: RecordedInterpreter(graph.module).run(*arguments))
    beyond = _beyond(lambda: RecordedInterpreter(graph.module).run(*arguments), max(peaks.values()))
    values |= zip(graph.outputs, graph.module(*arguments), strict=True)
    return peaks, beyond


def _beyond(call: Callable[[], Any], allocated: int) -> int | None:
    """Return the malloc bytes that a call held in addition to what torch's allocator handed out."""
    return max(0, malloc_bytes(call) - allocated) if is_counted() else None


def _received(memory: GraphMemory, chain: Chain, first: int, end: int) -> list[int]:
    """Return the bytes of received values that are resident at each step of [first, end), by the rule of `chain`."""
    last_in = {value: t for t in range(first, end) for value in memory.steps[t].values}
    last = last_touches(chain)
    held = [0] * (end - first)
    for value, t in last_in.items():
        if memory.values[value].made_at < first:
            stays = memory.values[value].returned or last[value] >= end
            for step in range(first, end if stays else t + 1):
                held[step - first] += int(chain.value_bytes[value])
    return held


def operators() -> list[Row]:
    """Yield (case, size, measured, of malloc beyond, predicted) for every workspace rule, in bytes; sizes ascend."""
    rows: list[Row] = []
    for name, builders in (CASES | MORE_CASES).items():
        torch.manual_seed(0)
        cases = [build() for build in builders]
        calls = [(str(i), functools.partial(function, *args)) for i, (function, args) in enumerate(cases)]
        for i, (case, measured) in enumerate(zip(cases, measure_calls(calls), strict=True)):
            beyond = _beyond(calls[i][1], measured.peak)
            rows.append((name.removeprefix("aten::"), i, measured.peak, beyond, predicted(case)))
    return rows


def models(names: Sequence[str]) -> list[Row]:
    return [(name, *row) for name in names for row in stages(name)]


def show(rows: Sequence[Row], headers: Sequence[str]) -> int:
    """Print a table and the number of rows that are out of bounds."""
    within = [measured <= predicted <= 1.1 * measured + SLACK for _, _, measured, _, predicted in rows]
    table = [
        (name, i, format_bytes(m), "-" if b is None else format_bytes(m + b), format_bytes(p), f"{p / max(m, 1):.3f}",
         "ok" if ok else "OUT")
        for (name, i, m, b, p), ok in zip(rows, within, strict=True)
    ]  # fmt: skip
    print(tabulate(table, headers=(*headers, "measured", "of malloc", "predicted", "ratio", "within bounds")))
    print(f"{sum(within)} of {len(rows)} within bounds")
    if is_counted():
        over = [m + (b or 0) - p for _, _, m, b, p in rows]
        most, median = (format_bytes(max(0, x)) for x in (max(over), sorted(over)[len(over) // 2]))
        print(
            f"all of malloc: within the prediction + 64 KiB in {sum(x <= SLACK for x in over)} of {len(rows)}; beyond "
            f"it by {median} in the median row, by {most} at most"
        )
    return len(rows) - sum(within)


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help="only the stages of these models")
    parser.add_argument("--operators", action="store_true", help="only the operators")
    arguments = parser.parse_args()
    if reason := restart_counted():
        print(f'The column "of malloc" is empty: {reason}.')
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"torch {torch.__version__}, {_cpu_name()}, {capability}, {torch.get_num_threads()} threads")
    out = 0
    if not arguments.families:
        out += show(operators(), ("operator", "size"))
    if not arguments.operators:
        out += show(models(arguments.families or MODELS), ("model", "stage"))
    return 0 if out == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
