"""Find the best plan over all orders, for a graph that has few: an exact search over its downsets.

A *downset* is a set of atoms that holds the predecessors of each of its members, so a boundary of a plan over any
topological order is a downset, and a plan is a rising sequence of them from the empty set to the whole. A graph that is
nearly a chain has few: a 24-block transformer has some 240 downsets, of ``2^n`` sets.

Before::

    atoms 0 -> {1, 2} -> 3      predecessors [[], [0], [0], [1, 2]]

After::

    downsets {} {0} {0 1} {0 2} {0 1 2} {0 1 2 3}; plan [[0, 2], [1, 3]] goes through {0 2}

Both stages are dynamic programmes over the pairs D1 < D2 whose part is feasible (`downset_footprint`). The first finds
the fewest parts to and from each downset, smaller ones first. The second, with the number of parts as the layer, finds
the smallest maximum, and under that maximum the fewest bytes received. Downsets ("ideals") as the states are from J.
Tarnawski et al., "Efficient Algorithms for Device Placement of DNN Graph Operators", NeurIPS 2020, who minimise the
slowest device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..partitioner.chain import Chain
from .downset_footprint import Part, Parts

# How often the number of parts is extrapolated, in downsets; and how many times the effort ends the search.
_SAMPLE = 32
_FORETOLD = 3

_Edge = tuple[int, int, int]  # target downset, bytes that count for the maximum, bytes received


@dataclass(frozen=True)
class Found:
    """The result of the search.

    Attributes:
        parts: the atoms of each partition, ascending.
        num_downsets: the number of downsets of the searched graph.
    """

    parts: list[list[int]]
    num_downsets: int


def search_downsets(
    chain: Chain,
    predecessors: Sequence[Sequence[int]],
    budget: int,
    *,
    most: int | None = None,
    limit: int = 4096,
    effort: int = 10_000,
) -> Found | None:
    """Return the plan with the fewest partitions, then the smallest maximum, then the fewest bytes received.

    An atom that alone exceeds the budget may be a partition of its own, and does not count for the maximum.

    Args:
        chain: the chain in trace order.
        predecessors: for each atom the atoms that must run before it, all smaller.
        budget: the bytes of one device.
        most: a number of partitions that is known to suffice; plans with more are not searched.
        limit: the most downsets; with more, give up.
        effort: the most parts, of some 10 microseconds each. With more, give up; also if the first downsets predict
            several times as many.

    Returns:
        The plan, which no plan over any topological order beats; None if the graph has as many atoms as ``limit``, or
        too many downsets or parts.

    Example: four independent atoms of 2 bytes that share nothing, budget 4: two parts of two.
    """
    if chain.num_atoms >= limit:  # n atoms have at least n + 1 downsets
        return None
    most = chain.num_atoms if most is None else most
    groups = [[atom] for atom in range(chain.num_atoms)]
    found = _search(chain, groups, predecessors, budget, most, limit, effort)
    return None if found is None else Found(*found)


class _Lattice:
    """The downsets of a graph, smaller ones first; number 0 is empty, the last is the whole graph."""

    def __init__(self, masks: list[int], ways: list[list[tuple[int, int]]]) -> None:
        self.masks = masks
        self.ways = ways  # (group, downset with that group) for each group that may run next

    @classmethod
    def of(cls, predecessors: Sequence[Sequence[int]], limit: int) -> _Lattice | None:
        """Return all downsets, or None if there are more than ``limit``; O(1) big-integer steps for each edge."""
        n = len(predecessors)
        needs = [sum(1 << p for p in found) for found in predecessors]
        successors: list[list[int]] = [[] for _ in range(n)]
        for group, found in enumerate(predecessors):
            for p in found:
                successors[p].append(group)
        index = {0: 0}
        masks = [0]
        ready = [[g for g in range(n) if not needs[g]]]
        ways: list[list[tuple[int, int]]] = []
        for mask in masks:  # grows during the loop
            options = ready[len(ways)]
            if len(options) >= limit.bit_length():  # every subset of them gives a downset
                return None
            row = []
            for group in options:
                grown = mask | 1 << group
                if grown not in index:
                    if len(masks) >= limit:
                        return None
                    index[grown] = len(masks)
                    masks.append(grown)
                    enabled = [s for s in successors[group] if needs[s] & ~grown == 0]
                    ready.append([g for g in options if g != group] + enabled)
                row.append((group, index[grown]))
            ready[len(ways)] = []
            ways.append(row)
        return cls(masks, ways)


def _search(
    chain: Chain,
    groups: Sequence[Sequence[int]],
    predecessors: Sequence[Sequence[int]],
    budget: int,
    most: int,
    limit: int,
    effort: int,
) -> tuple[list[list[int]], int] | None:
    """Return the parts of the best plan over groups and the number of downsets, or None."""
    lattice = _Lattice.of(predecessors, limit)
    if lattice is None:
        return None
    edges = _feasible_parts(lattice, Parts(chain, groups), groups, budget, most, effort)
    if edges is None:
        return None
    path = _best_path(edges)
    if path is None:
        return None
    plan = []
    for before, after in pairwise(path):
        members = lattice.masks[after] & ~lattice.masks[before]
        plan.append(sorted(a for g, group in enumerate(groups) if members >> g & 1 for a in group))
    return plan, len(lattice.masks)


def _feasible_parts(
    lattice: _Lattice, parts: Parts, groups: Sequence[Sequence[int]], budget: int, most: int, effort: int
) -> list[list[_Edge]] | None:
    """Return, for each downset, the feasible parts that a plan of ``most`` parts may use; None beyond the effort."""
    least = _least_parts_after(lattice, parts, budget)
    whole = lattice.masks[-1]
    fewest = [0] + [most + 1] * (len(lattice.masks) - 1)
    edges: list[list[_Edge]] = [[] for _ in lattice.masks]
    spent = 0
    for start, row in enumerate(edges):
        if start and start % _SAMPLE == 0 and spent * len(edges) > _FORETOLD * effort * start:
            return None
        if fewest[start] + least[start] > most:
            continue
        seen = {start}
        stack: list[tuple[int, Part]] = [(start, parts.empty())]
        while stack:
            at, part = stack.pop()
            for group, to in lattice.ways[at]:
                if to in seen:
                    continue
                single = not part.members and len(groups[group]) == 1
                fits = parts.bound(part, group) <= budget
                if not fits and not single:
                    continue
                seen.add(to)
                spent += 1
                if spent > effort:
                    return None
                grown = parts.grown(part, group, whole & ~lattice.masks[to])
                size = grown.footprint
                if (size <= budget or single) and fewest[start] + 1 + least[to] <= most:
                    row.append((to, size if size <= budget else 0, grown.received))
                    fewest[to] = min(fewest[to], fewest[start] + 1)
                if fits:
                    stack.append((to, grown))
    return edges


def _least_parts_after(lattice: _Lattice, parts: Parts, budget: int) -> list[int]:
    """Return, for each downset, a lower bound of the partitions after it, by the weights that only these can hold."""
    touchers: dict[int, int] = {}
    for group, read in enumerate(parts.reads):
        for w in read:
            touchers[w] = touchers.get(w, 0) | 1 << group
    # A weight counts if all read it whole and none of them can be oversize.
    large = {w for read, size in zip(parts.reads, parts.at_most, strict=True) if size > budget for w in read}
    counted = {w for w in touchers if w not in large and w not in parts.partly}
    rest = [0] * len(lattice.masks)
    rest[0] = sum({w: size for read in parts.reads for w, size in read.items() if w in counted}.values())
    for at, row in enumerate(lattice.ways):
        for group, to in row:
            gone = [s for w, s in parts.reads[group].items() if w in counted and not touchers[w] & ~lattice.masks[to]]
            rest[to] = rest[at] - sum(gone)
    last = len(rest) - 1
    return [max(int(at < last), -(-size // max(budget, 1))) for at, size in enumerate(rest)]


def _best_path(edges: list[list[_Edge]]) -> list[int] | None:
    """Return the downsets of the best plan, from the empty one to the whole graph; None if there is no plan."""
    last = len(edges) - 1
    never = len(edges)
    after = [never] * last + [0]
    for at in range(last - 1, -1, -1):
        after[at] = 1 + min((after[to] for to, _, _ in edges[at]), default=never)
    k = after[0]
    if k > last:
        return [0] if last == 0 else None
    maxima = {0: 0}
    for layer in range(1, k + 1):
        reached: dict[int, int] = {}
        for at, least in maxima.items():
            for to, size, _ in edges[at]:
                if after[to] <= k - layer:
                    size = max(least, size)
                    if size < reached.get(to, size + 1):
                        reached[to] = size
        maxima = reached
    maximum = maxima[last]
    layers: list[dict[int, tuple[int, int]]] = [{0: (0, -1)}]  # downset -> (bytes received, downset before it)
    for layer in range(1, k + 1):
        best: dict[int, tuple[int, int]] = {}
        for at, (cut, _) in layers[-1].items():
            for to, size, received in edges[at]:
                if size <= maximum and after[to] <= k - layer and (
                    to not in best or (cut + received, at) < best[to]
                ):
                    best[to] = (cut + received, at)
        layers.append(best)
    path = [last]
    for best in reversed(layers[1:]):
        path.append(best[path[-1]][1])
    return path[::-1]
