"""``memory="device"`` and ``boundaries=``: plans are the best there are by definitions written here, and verify."""

from __future__ import annotations

import json
import random
from itertools import combinations, pairwise, product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fx_partition
from fx_partition import PartitionError, Plan
from fx_partition.backends.options.backend_options import Options
from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.capture.captured_graph import CapturedGraph
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.plan.make_plan import make_plan
from fx_partition.passes.plan.request import Request
from fx_partition.passes.verify.check import find_faults

ROWS, WIDTH = 4, 8
TOKENS = torch.arange(ROWS)


class Piece(nn.Module):
    """A module of some operators, each of one node; it may read a table, and a value of an earlier piece."""

    def __init__(self, kinds: list[str], table: nn.Embedding) -> None:
        super().__init__()
        self.kinds = kinds
        self.table = table if "lookup" in kinds else None
        self.weights = nn.ParameterList(nn.Parameter(torch.ones(WIDTH)) for kind in kinds if kind == "scale")
        self.matrices = nn.ParameterList(nn.Parameter(torch.ones(WIDTH, WIDTH)) for kind in kinds if kind == "linear")

    def forward(self, x: Tensor, earlier: Tensor, tokens: Tensor) -> Tensor:
        scales, matrices = iter(self.weights), iter(self.matrices)
        for kind in self.kinds:
            if kind == "lookup":
                assert self.table is not None
                x = nn.functional.embedding(tokens, self.table.weight)
            elif kind == "scale":
                x = x * next(scales)
            elif kind == "linear":
                x = torch.nn.functional.linear(x, next(matrices))
            elif kind == "skip":
                x = x + earlier
            else:
                x = torch.tanh(x)
        return x


class Pieces(nn.Module):
    """Pieces in a row, that are parts of a list; the first tells a table, that others may share."""

    def __init__(self, kinds: list[list[str]], rows: int) -> None:
        super().__init__()
        table = nn.Embedding(rows, WIDTH)
        self.pieces = nn.ModuleList(Piece(found, table) for found in kinds)

    def forward(self, tokens: Tensor) -> Tensor:
        x: Any = tokens
        earlier = x
        for piece in self.pieces:
            x, earlier = piece(x, earlier, tokens), x
        return x


def drawn(seed: int) -> tuple[list[list[str]], int]:
    rng = random.Random(seed)
    kinds = [["lookup", *rng.choices(["scale", "linear", "tanh"], k=rng.randint(0, 2))]]
    for number in range(rng.randint(2, 4)):
        others = ["scale", "linear", "tanh", "lookup", *(["skip"] if number else [])]
        kinds.append(rng.choices(others, k=rng.randint(1, 3)))
    return kinds, rng.choice([6, 30, 100])


def steps_of(graph: torch.fx.Graph) -> list[torch.fx.Node]:
    return [node for node in graph.nodes if node.op == "call_function"]


def measured(
    graph: torch.fx.Graph, cuts: list[int], workspace: list[int], *, on_device: bool
) -> tuple[int, int, int]:
    """The partitions, the largest and the bytes received, from the graph and the definitions alone."""
    steps = steps_of(graph)
    at = {node: t for t, node in enumerate(steps)}

    def size(node: torch.fx.Node) -> int:
        value = node.meta["val"]
        return value.numel() * value.element_size()

    def is_weight(node: torch.fx.Node) -> bool:
        return node.op == "get_attr" or node.name.startswith("p_")

    uses = {node: [at.get(user, len(steps)) for user in node.users] for node in graph.nodes}
    largest, received = 0, 0
    for first, end in pairwise([*cuts, len(steps)]):
        weights: dict[torch.fx.Node, int] = {}
        values: set[torch.fx.Node] = set()
        for node in steps[first:end]:
            values.add(node)
            for source in node.all_input_nodes:
                if not is_weight(source):
                    values.add(source)
                    continue
                rows = "embedding" in str(node.target) and not on_device
                read = ROWS * WIDTH * 4 if rows else size(source)
                weights[source] = min(size(source), weights.get(source, 0) + read)
        received += sum(size(node) for node in values if -1 < at.get(node, -1) < first)
        peak = 0
        for t in range(first, end):
            live = 0
            for node in values:
                touches = [at.get(node, -1), *uses[node]]
                last = end - 1 if max(touches) >= end else max(u for u in touches if u < end)
                live += size(node) if max(first, at.get(node, -1)) <= t <= last else 0
            peak = max(peak, live + workspace[t])
        largest = max(largest, sum(weights.values()) + peak)
    return len(cuts), largest, received


@pytest.mark.parametrize("seed", range(6))
def test_no_plan_is_better(seed: int) -> None:
    kinds, rows = drawn(seed)
    program = torch.export.export(Pieces(kinds, rows), (TOKENS,), strict=False)
    captured = capture(program)
    memory_of = analyze_memory(captured)
    workspace = [max(step.measured_at({}).workspace) for step in memory_of.steps]
    graph = captured.gm.graph
    ends = [0]
    for found in kinds:
        ends.append(ends[-1] + len(found))
    assert [step.node for step in memory_of.steps] == [node.name for node in steps_of(graph)]
    assert ends[-1] == len(steps_of(graph))
    # A piece has no modules in it, so it is whole by any name.
    places: list[tuple[Any, list[int]]] = [
        ("nodes", list(range(1, ends[-1]))), ("modules", ends[1:-1]), (["pieces.1"], ends[1:-1])
    ]  # fmt: skip
    for memory, (boundaries, allowed) in product(("on-chip", "device"), places):
        sizes = [
            measured(graph, [0, *cut], workspace, on_device=memory == "device")
            for number in range(len(allowed) + 1) for cut in combinations(allowed, number)
        ]  # fmt: skip
        smallest, whole = min(largest for _, largest, _ in sizes), sizes[0][1]
        for budget in {smallest, (smallest + whole) // 2}:
            options = {"cache_bytes": budget, "memory": memory, "boundaries": boundaries}
            best = min(found for found in sizes if found[1] <= budget)
            plan = make(captured, options, order="trace")
            assert (plan.num_partitions, plan.max_bytes, plan.cut_bytes) == best
            assert find_faults(captured, plan) == []
            searched = make(captured, options, order="search")
            assert (searched.num_partitions, searched.max_bytes, searched.cut_bytes) <= best
            assert find_faults(captured, searched) == []


def make(captured: CapturedGraph, options: dict[str, Any], order: str) -> Plan:
    return make_plan(captured, analyze_memory(captured), Request.check(**options, order=order))


def test_another_order_makes_no_module_larger_than_the_budget() -> None:
    # The second table's module holds 896 bytes in trace order; before the first, whose tokens then stay, it holds 928.
    kinds = [["lookup", "linear"], ["scale", "scale"], ["lookup", "linear", "linear"], ["linear", "linear"]]
    program = torch.export.export(Pieces(kinds, 6), (TOKENS,), strict=False)
    plan = fx_partition.plan(program, cache_bytes=896, boundaries="modules")
    assert (plan.num_partitions, plan.max_bytes, plan.spill_bytes) == (3, 896, 0)
    assert not plan.certificate.exhaustive
    assert fx_partition.verify(plan, program) == []


class Tables(nn.Module):
    """A table of which few rows are read, a weight of which only the shape is read, and blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(1000, WIDTH)
        self.like = nn.Parameter(torch.ones(500, WIDTH))
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(4))
        self.register_buffer("seen", torch.zeros(200, WIDTH))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        for block in self.blocks:
            x = block(x) + x
        self.seen[:ROWS] = x
        return x + torch.zeros_like(self.like)[:ROWS]


LINEAR = (WIDTH * WIDTH + WIDTH) * 4


@pytest.fixture(scope="module")
def tables() -> torch.export.ExportedProgram:
    return torch.export.export(Tables().eval(), (TOKENS,), strict=False)


def test_a_device_holds_what_its_operators_are_given(tables: torch.export.ExportedProgram) -> None:
    on_chip = fx_partition.plan(tables, cache_bytes="1GiB").partitions[0]
    (whole,) = fx_partition.plan(tables, cache_bytes="1GiB", memory="device").partitions
    assert on_chip.weight_bytes == ROWS * WIDTH * 4 + 4 * LINEAR
    assert whole.weight_bytes == 1000 * WIDTH * 4 + 500 * WIDTH * 4 + 4 * LINEAR
    assert whole.state_bytes == 200 * WIDTH * 4
    assert whole.total_bytes == whole.weight_bytes + whole.state_bytes + whole.activation_bytes + whole.workspace_bytes


@pytest.mark.parametrize(
    "options",
    [
        {"memory": "device"},
        {"boundaries": "modules"},
        {"memory": "device", "boundaries": ["Sequential", "table"]},
        {"memory": "device", "footprint": "fused"},
        {"memory": "device", "footprint": "sum", "boundaries": "modules"},
        {"boundaries": "modules", "footprint": "fused"},
        {"boundaries": [nn.Sequential], "objective": "traffic"},
    ],
)
def test_a_cut_model_gives_the_same_and_its_plan_is_the_same_from_json(
    options: dict[str, Any], tables: torch.export.ExportedProgram
) -> None:
    model = Tables().eval()
    cut = fx_partition.split(model, (TOKENS,), devices=3, **options)
    plain = Tables().eval()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(cut(TOKENS), plain(TOKENS))
    plan = fx_partition.plan(tables, devices=3, **options)
    assert plan.num_partitions > 1
    assert Plan.from_json(plan.to_json()) == plan
    assert fx_partition.verify(plan, tables) == []


def test_a_plan_from_before_these_options_is_read_as_one_without_them(tables: torch.export.ExportedProgram) -> None:
    plan = fx_partition.plan(tables, cache_bytes="1GiB")
    data = json.loads(plan.to_json())
    assert (data.pop("memory"), data.pop("boundaries")) == ("on-chip", "nodes")
    assert Plan.from_json(json.dumps(data)) == plan


def test_a_plan_says_what_it_counts(tables: torch.export.ExportedProgram) -> None:
    plan = fx_partition.plan(tables, cache_bytes="60KiB", memory="device", boundaries=["Sequential"])
    text = str(fx_partition.report(plan))
    assert "memory device (weights count whole), boundaries between modules, whole: Sequential" in text
    assert "off-chip" not in text and "on chip" not in text
    short = fx_partition.plan(tables, cache_bytes="30KiB", memory="device", devices=2)
    assert "are beyond the memory of the devices." in str(fx_partition.report(short))
    assert "chip" not in str(fx_partition.report(short))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"memory": "dram"}, "memory='dram' is not known; choose from on-chip, device"),
        ({"memory": "device", "cache_bytes": "H100-SXM"}, "stands for its on-chip bytes"),
        ({"memory": "device", "cache_bytes": ["1GiB", "auto"]}, "'auto' stands for"),
        ({"memory": "device", "oversize": "slice"}, 'memory="device" counts the weight of a slice whole'),
        ({"boundaries": "modules", "oversize": "slice"}, "boundaries= keeps modules whole"),
        ({"memory": "device", "objective": "latency"}, "leave memory= out"),
        ({"boundaries": 3}, "boundaries=3 is neither"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    options: dict[str, Any], words: str, tables: torch.export.ExportedProgram
) -> None:
    with pytest.raises(PartitionError, match=words):
        fx_partition.plan(tables, **{"cache_bytes": "1MiB", **options})


def test_an_atom_that_is_a_module_says_how_to_separate_it(tables: torch.export.ExportedProgram) -> None:
    options: dict[str, Any] = {"cache_bytes": 300, "oversize": "error"}
    with pytest.raises(PartitionError, match=r'set boundaries="nodes" to separate it from the \d+ nodes'):
        fx_partition.plan(tables, boundaries=["Tables"], **options)
    with pytest.raises(PartitionError, match='or set oversize="stream"'):
        fx_partition.plan(tables, memory="device", **options)


def test_the_backend_takes_both_options() -> None:
    found = Options.check({"cache_bytes": "1GiB", "memory": "device", "boundaries": [nn.Linear, "layers.3"]}).request
    assert (found.memory, found.boundaries) == ("device", ("torch.nn.modules.linear.Linear", "layers.3"))
    with pytest.raises(PartitionError, match='leave memory="device" out'):
        Options.check({"cache_bytes": "1GiB", "memory": "device", "microbatches": "auto"})
    torch._dynamo.reset()
    model = Tables().eval()
    options = {"cache_bytes": "60KiB", "memory": "device", "boundaries": "modules"}
    compiled = torch.compile(model, backend="l2partition", options=options)
    with torch.no_grad():
        expected = Tables().eval()
        expected.load_state_dict(model.state_dict())
        torch.testing.assert_close(compiled(TOKENS), expected(TOKENS))
