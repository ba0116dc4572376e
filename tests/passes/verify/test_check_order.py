"""An edited plan is refused, or it runs the graph: the same bits, buffers, random numbers and modes."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import Towers
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fx_partition
from fx_partition import Plan, PlanMismatchError
from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.capture.captured_graph import CapturedGraph
from fx_partition.passes.constraints.dependencies import all_predecessors
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.plan.make_plan import make_plan
from fx_partition.passes.plan.request import Request
from fx_partition.passes.split.extract import split_planned
from fx_partition.passes.verify.reading import read_graph
from fx_partition.passes.verify.structure import running_faults
from fx_partition.passes.verify.verdict import check_order

WIDTH = 8
X = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0))


class Written(nn.Module):
    """A buffer and activations that are written between reads."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.register_buffer("seen", torch.zeros(4, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body[0](x)
        self.seen.add_(y)
        beside = torch.tanh(x)
        z = self.body[1](y)
        y.mul_(2)
        z = z + y
        self.seen.mul_(0.5)
        w = self.body[2](z)
        w.relu_()
        return self.body[3](w) + beside


class Random(nn.Module):
    """Dropout and noise in two branches, and statistics of a batch norm in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.norm = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        a = F.dropout(self.left(x), 0.5, True)
        b = self.norm(self.right(x))
        noise = torch.rand_like(x)
        return F.dropout(a * 2, 0.25, True) - b * noise


class Modes(nn.Module):
    """Autocast and no_grad, one after the other, and work that does not need what is computed in them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            y = self.body[0](x)
        with torch.no_grad():
            z = self.body[1](x)
        return y, z, self.body[2](x)


class Containers(nn.Module):
    """Tuples of tensors, and a size that only a run can tell."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.up(x).chunk(2, -1)
        b = b * 2
        most, where = b.max(-1)
        b.sub_(most.unsqueeze(-1))
        return (a * b).sum() + where.sum() + x[0].nonzero().size(0)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "written": Written, "random": Random, "modes": Modes, "containers": Containers
}  # fmt: skip


class Case:
    """A captured model, a plan of it of several partitions, and what a run of the original gives."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        self.name = name
        self.model = MODELS[name]()
        self.captured, self.inputs = _captured(self.model)
        self.memory, self.reading = analyze_memory(self.captured), read_graph(self.captured)
        self.plan = make_plan(self.captured, self.memory, Request.check(None, devices=3))
        self.nodes = [partition.nodes for partition in self.plan.partitions]
        self.state = copy.deepcopy(dict(self.captured.gm.named_buffers()))
        self.right = self._run(self.captured.gm)

    def edited(self, nodes: Sequence[Sequence[str]]) -> Plan:
        """The plan with other nodes, one partition for each group."""
        template = self.plan.partitions[0]
        partitions = tuple(replace(template, index=i, nodes=tuple(group)) for i, group in enumerate(nodes))
        return replace(self.plan, partitions=partitions)

    def is_refused(self, plan: Plan) -> bool:
        """Whether a plan is refused; one that is not must run as the original does."""
        if running_faults(self.reading, plan):
            return True
        found = self._run(split_planned(self.captured, plan))
        assert found.keys() == self.right.keys()
        different = [key for key, value in found.items() if not _same(value, self.right[key])]
        assert not different, f"{different} differ with {[list(p.nodes) for p in plan.partitions]}"
        return False

    def _run(self, module: torch.fx.GraphModule) -> dict[str, Any]:
        for key, buffer in self.captured.gm.named_buffers():
            buffer.copy_(self.state[key])
        torch.manual_seed(1)
        result = pytree.tree_leaves(module(*self.inputs))
        assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
        return {
            "result": [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in result],
            "modes": [(leaf.dtype, leaf.requires_grad) for leaf in result if isinstance(leaf, Tensor)],
            "buffers": [buffer.clone() for buffer in self.captured.gm.buffers()],
            "generator": torch.random.get_rng_state(),
        }


def _captured(model: nn.Module) -> tuple[CapturedGraph, Sequence[Any]]:
    """The graph of Dynamo, which has modes as nodes, or of torch.export, which knows sizes that only a run can tell."""
    if isinstance(model, Containers):
        return capture(torch.export.export(model, (X,), strict=False)), (X,)
    found: list[Any] = []

    def keep(gm: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        found.extend((gm, inputs))
        return gm.forward

    torch.compile(copy.deepcopy(model), backend=keep, fullgraph=True)(X)
    return capture(found[0]), found[1]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    return all(map(_same, a, b)) if isinstance(a, list) else bool(a == b)


@pytest.fixture(scope="module", params=list(MODELS))
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def few(edits: list[Any]) -> list[Any]:
    """Some of many edits: a split takes milliseconds."""
    return random.Random(0).sample(edits, min(len(edits), 25))


def moves(groups: Sequence[Sequence[str]]) -> Iterator[list[list[str]]]:
    """Each node at every other place of every partition."""
    for name in [name for group in groups for name in group]:
        rest = [[other for other in group if other != name] for group in groups]
        for p, group in enumerate(rest):
            for i in range(len(group) + 1):
                edit = [list(g) for g in rest]
                edit[p].insert(i, name)
                yield edit


def test_the_plan_itself_and_every_cut_of_its_order_that_tears_nothing(case: Case) -> None:
    assert not case.is_refused(case.plan)
    order = [name for group in case.nodes for name in group]
    cuts = few([(i,) for i in range(1, len(order))] + list(combinations(range(1, len(order)), 2)))
    refused = 0
    for places in cuts:
        ends = [0, *places, len(order)]
        refused += case.is_refused(case.edited([order[a:b] for a, b in pairwise(ends)]))
    assert refused < len(cuts), "some boundaries are right"


def test_a_node_that_is_moved(case: Case) -> None:
    edits = few([edit for edit in moves(case.nodes) if all(edit)])
    refused = sum(case.is_refused(case.edited(edit)) for edit in edits)
    assert 0 < refused < len(edits)


def test_two_nodes_that_change_places(case: Case) -> None:
    order = [name for group in case.nodes for name in group]
    refused = 0
    for a, b in combinations(order, 2):
        twin = {a: b, b: a}
        refused += case.is_refused(case.edited([[twin.get(n, n) for n in group] for group in case.nodes]))
    assert refused > 0


def test_a_node_that_is_dropped_or_doubled_or_unknown(case: Case) -> None:
    for p, group in enumerate(case.nodes):
        for name in group:
            without = [[n for n in g if n != name] for g in case.nodes]
            with pytest.raises(PlanMismatchError, match=f"{name} is in no partition"):
                check_order(case.captured, case.edited(without))
            for other in range(len(case.nodes)):
                twice = [[*g, name] if i == other else list(g) for i, g in enumerate(case.nodes)]
                words = f"{name} is in partition {min(p, other)} and again in partition {max(p, other)}"
                with pytest.raises(PlanMismatchError, match=words):
                    check_order(case.captured, case.edited(twice))
    inputs = [node.name for node in case.captured.gm.graph.nodes if node.op in ("placeholder", "get_attr", "output")]
    for name in ["nothing", "", *inputs]:
        with pytest.raises(PlanMismatchError, match=f"partition 1 names {name}, which is not a node"):
            edited = case.edited([case.nodes[0], [*case.nodes[1], name], *case.nodes[2:]])
            check_order(case.captured, edited)


def test_partitions_that_are_numbered_otherwise_or_empty(case: Case) -> None:
    first, second, *rest = case.plan.partitions
    reasons = "partition 1 is the one at place 0"
    for partitions in ((second, first, *rest), (second, *rest), (replace(first, index=1), second, *rest)):
        with pytest.raises(PlanMismatchError, match=reasons):
            check_order(case.captured, replace(case.plan, partitions=partitions))
    with pytest.raises(PlanMismatchError, match="partition 1 has no nodes"):
        check_order(case.captured, case.edited([case.nodes[0], [], *case.nodes[1:]]))
    with pytest.raises(PlanMismatchError, match="is in no partition"):
        check_order(case.captured, replace(case.plan, partitions=()))


def test_any_order_in_which_each_node_comes_after_what_it_needs(case: Case) -> None:
    draw = random.Random(0)
    names = [step.node for step in case.memory.steps]
    nodes = {node.name: node for node in case.captured.gm.graph.nodes}
    needs = {names[t]: {names[p] for p in found} for t, found in all_predecessors(case.memory, nodes)}
    orders = set()
    for _ in range(15):
        order: list[str] = []
        while len(order) < len(names):
            order.append(draw.choice([n for n in names if n not in order and needs[n] <= set(order)]))
        orders.add(tuple(order))
        assert not case.is_refused(case.edited([order]))
        middle = draw.randrange(1, len(order))
        case.is_refused(case.edited([order[:middle], order[middle:]]))
        i, j = sorted(draw.sample(range(len(order)), 2))
        order[i], order[j] = order[j], order[i]
        case.is_refused(case.edited([order]))
    assert len(orders) > 1 or case.name == "modes", "there is a choice"


def test_a_plan_in_another_order_than_the_trace_is_as_good_from_a_file() -> None:
    model = Towers()
    plan = fx_partition.plan(model, X, cache_bytes=900)
    in_trace_order = fx_partition.plan(model, X, cache_bytes=900, order="trace")
    assert plan.num_partitions < in_trace_order.num_partitions
    cut = fx_partition.split(model, X, plan=Plan.from_json(plan.to_json()))
    assert torch.equal(cut(X), model(X))


def test_every_verb_that_takes_a_plan_refuses_one_that_cannot_run() -> None:
    model = Towers()
    plan = fx_partition.plan(model, X, cache_bytes=900)
    first, *rest = plan.partitions
    edited = replace(plan, partitions=(replace(first, nodes=first.nodes[::-1]), *rest))
    words = r"this plan cannot run this graph: .* runs before .*, which must run first.*fx_partition\.plan"
    with pytest.raises(PlanMismatchError, match=words):
        fx_partition.split(model, X, plan=edited)
    with pytest.raises(PlanMismatchError, match=words):
        fx_partition.simulate(model, X, plan=edited, device="H100-SXM")


def test_an_error_counts_the_reasons_that_it_does_not_name() -> None:
    case = Case("written")
    everything = [name for group in case.nodes for name in group]
    with pytest.raises(PlanMismatchError) as error:
        check_order(case.captured, case.edited([everything[:1]]))
    assert f"; and {len(everything) - 1 - 3} more. Was it edited?" in str(error.value)
