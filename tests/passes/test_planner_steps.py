"""Counts what the planner does one by one in Python: no walk may be quadratic, whatever the links look like."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from chains import make_chain
from dags import makers_first

from fx_partition.common.segment_tree import SegmentTree
from fx_partition.passes.ordering import list_schedules
from fx_partition.passes.ordering.beam import Beam
from fx_partition.passes.ordering.piece import Graph, Piece
from fx_partition.passes.ordering.search import SMALL, search_order
from fx_partition.passes.partitioner.chain import Chain
from fx_partition.passes.partitioner.contraction import contract, whole_footprint
from fx_partition.passes.partitioner.dp import dp
from fx_partition.passes.partitioner.greedy import FarthestReach, FarthestReachSolver
from fx_partition.passes.partitioner.pareto import pareto
from fx_partition.passes.partitioner.sliding_window import Window

KINDS = ("atoms reached", "window moves", "links read", "tree levels", "footprints", "options", "pieces", "heap")


class Counter:
    """Elementary steps, by kind."""

    def __init__(self) -> None:
        self.steps = dict.fromkeys(KINDS, 0)

    @property
    def total(self) -> int:
        return sum(self.steps.values())


class CountingList(list[int]):
    """A list that counts how often an element is read."""

    def __init__(self, items: list[int], counter: Counter) -> None:
        super().__init__(items)
        self.counter = counter

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        self.counter.steps["links read"] += 1
        return super().__getitem__(index)


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    counter = Counter()

    def count_calls(owner: type, name: str, kind: str, weigh: Callable[[object, object], int]) -> None:
        plain = getattr(owner, name)

        def counted(self: object, *args: object, **kwargs: object) -> object:
            result = plain(self, *args, **kwargs)
            counter.steps[kind] += weigh(self, result)
            return result

        monkeypatch.setattr(owner, name, counted)

    def count_links(owner: type, *names: str) -> None:
        plain = owner.__init__  # type: ignore[misc]

        def init(self: object, *args: object) -> None:
            plain(self, *args)
            for name in names:
                setattr(self, name, CountingList(getattr(self, name), counter))

        monkeypatch.setattr(owner, "__init__", init)

    def reached(_: object, reach: object) -> int:
        assert isinstance(reach, FarthestReach)
        return reach.boundaries[-1]

    def levels(tree: object, _: object) -> int:
        assert isinstance(tree, SegmentTree)
        return tree._leaves.bit_length()

    def all_atoms(solver: object, _: object) -> int:
        assert isinstance(solver, FarthestReachSolver)
        return solver.contraction.num_atoms

    count_calls(FarthestReachSolver, "run", "atoms reached", reached)
    count_calls(FarthestReachSolver, "reach_back", "atoms reached", all_atoms)
    count_calls(Window, "extend", "window moves", lambda *_: 1)
    count_calls(Window, "shrink", "window moves", lambda *_: 1)
    count_calls(SegmentTree, "add_from", "tree levels", levels)
    count_calls(SegmentTree, "min_from", "tree levels", levels)
    count_calls(SegmentTree, "set", "tree levels", levels)
    count_calls(Piece, "footprint", "footprints", lambda *_: 1)
    count_calls(Beam, "_options", "options", lambda *_: 1)
    count_calls(Graph, "piece", "pieces", lambda _, piece: piece.n)
    count_calls(list_schedules.heapq, "heappush", "heap", lambda *_: 1)
    count_links(FarthestReachSolver, "_link_from", "_out_to")
    count_links(Window, "_in_from", "_out_to")
    return counter


def from_links(n: int, links: list[tuple[int, int]], weights: list[int]) -> Chain:
    """Step t defines value t and has weight t; for each link (u, w) step w reads value u."""
    touched = [{t} for t in range(n)]
    for u, w in links:
        touched[w].add(u)
    steps = [(0, touched[t], [(t, weights[t])]) for t in range(n)]
    return make_chain(steps, [(1 + t % 7, t, False) for t in range(n)], weights)


def nested_skips(n: int) -> Chain:
    """Step n - 1 - t reads what step t made: every gap spans all layers between them."""
    weights = [1000 + t * 7919 % 997 for t in range(n)]
    return from_links(n, [(t, n - 1 - t) for t in range(n // 2)], weights)


def fan_out(n: int) -> Chain:
    """Every tenth step makes a value that hundreds of later ones read, and the last reads everything."""
    rng = random.Random(n)
    weights = [1000 + t * 7919 % 997 for t in range(n)]
    links = [(t, min(n - 1, t + rng.randrange(1, n // 2))) for t in range(0, n, 10) for _ in range(20)]
    return from_links(n, links + [(t, n - 1) for t in range(n - 1)], weights)


def wide_layers(n: int) -> Chain:
    """Five heavy steps, light ones between: nearly every position is usable, and links cross layers."""
    rng = random.Random(n)
    weights = [10**6 if t % (n // 5) == n // 10 else 0 for t in range(n)]
    return from_links(n, [(t, min(n - 1, t + rng.randrange(1, n // 3))) for t in range(n)], weights)


@pytest.mark.parametrize("shape", [nested_skips, fan_out, wide_layers])
@pytest.mark.parametrize("parts", ["few", "many"])
@pytest.mark.parametrize("slack", [0.0, math.inf])
def test_steps_grow_like_n_log_n(counter: Counter, shape: Callable[[int], Chain], parts: str, slack: float) -> None:
    for n in (1000, 8000):
        chain = shape(n)
        contraction = contract(chain)
        whole = whole_footprint(contraction)
        budget = int(contraction.alone.max()) * 3 // 2 + whole // (4 if parts == "few" else n // 50)
        if shape is wide_layers:
            budget = whole // 5 + (10**5 if parts == "few" else 4 * 10**5)
        before = counter.total
        plan = dp(chain, budget, slack)
        steps = counter.total - before
        assert len(plan) > 3
        size = n + len(chain.touch_value)
        assert steps <= (8 if slack else 2) * size * math.log2(n)


def alike(n: int) -> Chain:
    """Steps that share nothing and weigh the same: every plan has the fewest bytes, and all of them tie."""
    return from_links(n, [], [1000] * n)


@pytest.mark.parametrize("more", [0, 2])
def test_steps_where_every_plan_ties(counter: Counter, more: int) -> None:
    for n in (1000, 8000):
        chain = alike(n)
        before = counter.total
        pareto(chain, n * 1000 // 7, more)
        steps = counter.total - before
        # One programme for each halving of the budget at most, for each of the rows, its layers overlapping.
        assert steps <= 2 * (more + 1) * (more + 1) * 8 * n * math.log2(n)


def star(n: int) -> Chain:
    """All read what the first makes."""
    return from_links(n, [(0, t) for t in range(1, n)], [1000 + t * 7919 % 997 for t in range(n)])


def heads(n: int) -> Chain:
    """As a star, and the last reads what all make."""
    links = [(0, t) for t in range(1, n - 1)] + [(t, n - 1) for t in range(1, n - 1)]
    return from_links(n, links, [1000 + t * 7919 % 997 for t in range(n)])


def branches(n: int) -> Chain:
    """Branches of four, side by side."""
    return from_links(n, [(max(t - n // 4, 0), t) for t in range(1, n)], [1000 + t * 7919 % 997 for t in range(n)])


def dense_skips(n: int) -> Chain:
    """Two in three atoms read the eight before them."""
    links = [(t - d, t) for t in range(n) for d in range(1, min(t, 8) + 1) if t % 3]
    return from_links(n, links, [1000 + t * 7919 % 997 for t in range(n)])


@pytest.mark.parametrize("shape", [star, heads, branches, dense_skips])
def test_steps_of_plans_and_of_their_trade_offs(counter: Counter, shape: Callable[[int], Chain]) -> None:
    for verb in (dp, pareto):
        for n in (1000, 4000):
            chain = shape(n)
            before = counter.total
            verb(chain, whole_footprint(contract(chain)) // 20 + 8 * int(contract(chain).alone.max()))  # type: ignore[operator]
            assert counter.total - before <= 40 * (n + len(chain.touch_value)) * math.log2(n)


@pytest.mark.parametrize("shape", [pytest.param(star, marks=pytest.mark.slow), heads, branches, dense_skips])
def test_steps_of_a_search_over_orders_grow_like_n(counter: Counter, shape: Callable[[int], Chain]) -> None:
    steps = []
    for n in (400, 1600):
        assert n > SMALL
        chain = shape(n)
        budget = int(contract(chain).alone.max()) + 8000
        before = counter.total
        found = search_order(chain, makers_first(chain), budget, lambda c, budget=budget: dp(c, budget))
        assert found.tried.searched > 1
        steps.append(counter.total - before)
    assert steps[1] <= 5 * steps[0]
