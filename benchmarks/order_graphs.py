"""Make graphs whose order matters, of 15 to 40 atoms (or any number), for `order_quality.py`."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from fx_partition.passes.partitioner.chain import Chain

Dag = tuple[Chain, list[list[int]]]


class Graph:
    """Collects atoms of one step each: a weight or none, the values read, the bytes made, scratch bytes."""

    def __init__(self) -> None:
        self.rows: list[tuple[int | None, list[int], int, int]] = []
        self.weights: list[int] = []

    def weight(self, size: int) -> int:
        self.weights.append(size)
        return len(self.weights) - 1

    def atom(self, weight: int | None, reads: list[int], makes: int, scratch: int = 0) -> int:
        self.rows.append((weight, reads, makes, scratch))
        return len(self.rows) - 1

    def dag(self) -> Dag:
        """Return the chain and the makers of what each atom reads; atom t makes value t, and the last is returned."""
        touched = [sorted({*reads, t}) for t, (_, reads, _, _) in enumerate(self.rows)]
        used = {v for _, reads, _, _ in self.rows for v in reads}
        n = len(self.rows)
        ids = [w for w, _, _, _ in self.rows if w is not None]

        def starts(lengths: list[int]) -> np.ndarray:
            return np.cumsum([0, *lengths])

        chain = Chain(
            atom_start=np.arange(n + 1),
            workspace=np.array([scratch for _, _, _, scratch in self.rows]),
            value_bytes=np.array([makes for _, _, makes, _ in self.rows]),
            value_def=np.arange(n),
            value_returned=np.array([int(t not in used) for t in range(n)]),
            touch_start=starts([len(found) for found in touched]),
            touch_value=np.array([v for found in touched for v in found]),
            weight_bytes=np.array(self.weights),
            weight_start=starts([int(w is not None) for w, _, _, _ in self.rows]),
            weight_id=np.array(ids),
            weight_touch_bytes=np.array([self.weights[w] for w in ids]),
        )
        return chain, [sorted(set(reads)) for _, reads, _, _ in self.rows]


def mixture(rng: random.Random, n: int) -> Dag:
    """Return layers of a router, experts of two or three atoms, and their sum; the trace interleaves the experts."""
    g = Graph()
    x = g.atom(g.weight(rng.randrange(20, 60)), [], 16)
    while len(g.rows) < n - 8:
        router = g.atom(g.weight(8), [x], 4)
        experts, depth = rng.randrange(3, 6), rng.randrange(2, 4)
        ends = [x] * experts
        for level in range(depth):
            size = rng.randrange(30, 90)
            for e in range(experts):
                reads = [ends[e], router] if level == 0 else [ends[e]]
                ends[e] = g.atom(g.weight(size + rng.randrange(8)), reads, rng.randrange(8, 40), rng.choice([0, 8]))
        x = g.atom(None, ends, 16)
    while len(g.rows) < n:
        x = g.atom(g.weight(rng.randrange(20, 60)), [x], 16)
    return g.dag()


def inception(rng: random.Random, n: int) -> Dag:
    """Return blocks of branches of unequal depth, joined; activations outweigh weights."""
    g = Graph()
    x = g.atom(g.weight(20), [], 60)
    while len(g.rows) < n - 6:
        ends = []
        for branch in range(rng.randrange(3, 5)):
            y = x
            for _ in range(min(branch + 1, 3)):
                y = g.atom(g.weight(rng.randrange(8, 60)), [y], rng.randrange(10, 40), rng.choice([0, 10]))
            ends.append(y)
        x = g.atom(None, ends, sum(g.rows[y][2] for y in ends))
    while len(g.rows) < n:
        x = g.atom(g.weight(rng.randrange(10, 60)), [x], 40)
    return g.dag()


def unet(rng: random.Random, n: int) -> Dag:
    """Return two U-nets joined at their ends: levels down, levels up, and an atom in each skip between the two."""
    g = Graph()
    ends = []
    for part in (n // 2, n - 1 - n // 2):
        first, levels = len(g.rows), part // 4
        x, skips = g.atom(g.weight(10), [], 40), []
        for level in range(levels):
            x = g.atom(g.weight(10 + 6 * level + rng.randrange(20)), [x], max(40 - 4 * level, 6) + rng.randrange(6))
            skips.append(g.atom(g.weight(rng.randrange(5, 30)), [x], rng.randrange(10, 40)))
        while len(g.rows) - first < part - levels:
            x = g.atom(g.weight(60 + rng.randrange(20)), [x], 8)
        for level in reversed(range(levels)):
            x = g.atom(g.weight(10 + 6 * level + rng.randrange(20)), [x, skips[level]], max(40 - 4 * level, 6))
        ends.append(x)
    g.atom(None, ends, 20)
    return g.dag()


def shared(rng: random.Random, n: int) -> Dag:
    """Return several streams through the same weights, interleaved in the trace."""
    g = Graph()
    streams, depth = rng.randrange(3, 6), 0
    ends = [g.atom(None, [], rng.randrange(10, 30)) for _ in range(streams)]
    weights = [g.weight(rng.randrange(30, 120)) for _ in range(max(2, n // streams // 2))]
    while len(g.rows) < n - 1:
        for s in range(min(streams, n - 1 - len(g.rows))):
            w = weights[(depth + (s if rng.random() < 0.3 else 0)) % len(weights)]
            other = [ends[rng.randrange(streams)]] if rng.random() < 0.15 else []
            ends[s] = g.atom(w, list(dict.fromkeys([ends[s], *other])), rng.randrange(6, 30))
        depth += 1
    g.atom(None, ends, 10)
    return g.dag()


def anything(rng: random.Random, n: int) -> Dag:
    """Return a graph whose atoms each read none to three earlier ones, some far back; some weights are shared."""
    g = Graph()
    for t in range(n):
        near = range(max(0, t - 9), t)
        reads = rng.sample(near, min(len(near), rng.choice([0, 1, 1, 1, 2, 2])))
        if t > 8 and rng.random() < 0.2:
            reads.append(rng.randrange(t - 6))
        weight = rng.randrange(len(g.weights)) if g.weights and rng.random() < 0.15 else g.weight(rng.randrange(5, 100))
        g.atom(weight, list(dict.fromkeys(reads)), rng.randrange(4, 40), rng.choice([0, 0, 12]))
    return g.dag()


FAMILIES: dict[str, Callable[[random.Random, int], Dag]] = {
    "MoE": mixture,
    "inception": inception,
    "UNet": unet,
    "shared": shared,
    "random": anything,
}


def graphs(seed: int, each: int = 5, smallest: int = 15, largest: int = 40) -> list[tuple[str, Dag, int]]:
    """Return ``each`` graphs of every family as (name, graph, budget); trace order needs three to seven partitions."""
    from fx_partition.passes.partitioner.contraction import contract
    from fx_partition.passes.partitioner.dp import smallest_budget

    found = []
    for family, build in FAMILIES.items():
        rng = random.Random(f"{family} {seed}")
        for i in range(each):
            n = smallest + (largest - smallest) * i // max(each - 1, 1)
            dag = build(rng, n)
            largest_atom = int(contract(dag[0]).alone.max())
            parts = rng.randrange(3, 8) if n < 60 else n // 8
            budget = max(smallest_budget(dag[0], parts) * rng.randrange(95, 115) // 100, largest_atom)
            found.append((f"{family} {i}", dag, budget))
    return found
