"""Make topological orders that may need fewer or smaller partitions than trace order, for graphs of many downsets.

Four heuristics, each deterministic, with ties in trace order, O((n + e) log n) for n atoms and e touches and edges:

- `depth_first`: from the results backwards, so that branches finish one by one and are not interleaved (R. Sethi and
  J. Ullman, "The generation of optimal code for arithmetic expressions", JACM 1970, for trees);
- `least_live`: of the atoms that may run, the one after which the fewest bytes are live (list scheduling as in
  A. Kahn, "Topological sorting of large networks", CACM 1962, with the register pressure priority of J. Goodman and
  W.-C. Hsu, "Code scheduling and register allocation in large basic blocks", ICS 1988);
- `least_live_backwards`: the same greedy from the end of the graph, like compilers' bottom-up list schedulers: a value
  with one reader is made right before it;
- `weights_together`: an atom that reads a shared weight waits until nothing else can run, and then all of the weight's
  readers that can run follow one another (the clustering of K. Kennedy and K. McKinley, "Maximizing loop parallelism
  and improving data locality via loop fusion and distribution", LCPC 1993).

Before (trace order, two branches interleaved)::

    x -> a1, b1;  a1 -> a2;  b1 -> b2      order a1 b1 a2 b2

After ``depth_first``::

    order a1 a2 b1 b2
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from ..partitioner.chain import Chain

Order = list[int]
Predecessors = Sequence[Sequence[int]]


def depth_first(chain: Chain, predecessors: Predecessors) -> Order:
    """Run each sink after its ancestors that have not run yet; sinks in trace order, large subtrees first."""
    n = chain.num_atoms
    has_successor = [False] * n
    size = _touched_bytes(chain)
    for atom, found in enumerate(predecessors):
        for p in found:
            has_successor[p] = True
        size[atom] = max([size[atom], *(size[p] for p in found)])
    order: Order = []
    done = [False] * n
    for sink in (atom for atom in range(n) if not has_successor[atom]):
        stack = [(sink, False)]
        while stack:
            atom, ready = stack.pop()
            if done[atom]:
                continue
            if ready:
                done[atom] = True
                order.append(atom)
                continue
            stack.append((atom, True))
            # The atom that is pushed last runs first.
            stack += [(p, False) for p in sorted(predecessors[atom], key=lambda p: (size[p], -p)) if not done[p]]
    return order


def least_live(chain: Chain, predecessors: Predecessors) -> Order:
    """Run the ready atom with the fewest new live bytes: those that it makes, minus those that it uses last."""
    return _least_live(chain, predecessors, _values(chain), makes_on_first=False)


def least_live_backwards(chain: Chain, predecessors: Predecessors) -> Order:
    """Do as `least_live` from the end of the graph, and reverse the result."""
    return _least_live(chain, _turned(predecessors), _values(chain), makes_on_first=True)[::-1]


def weights_together(chain: Chain, predecessors: Predecessors) -> Order:
    """Run the readers of one weight one after another, where precedence allows it."""
    readers: dict[int, list[int]] = {}
    reads: list[list[int]] = []
    for atom, (i, j) in enumerate(pairwise(chain.weight_start[chain.atom_start].tolist())):
        reads.append(list(dict.fromkeys(chain.weight_id[i:j].tolist())))
        for weight in reads[-1]:
            readers.setdefault(weight, []).append(atom)
    shared = {weight for weight, found in readers.items() if len(found) > 1}
    begun: set[int] = set()

    def key(atom: int) -> int:
        mine = shared.intersection(reads[atom])
        return 1 if not mine else 0 if mine & begun else 2

    def ran(atom: int) -> list[int]:
        new = shared.intersection(reads[atom]) - begun
        begun.update(new)
        return [other for weight in sorted(new) for other in readers[weight]]

    return _list_schedule(predecessors, key, ran)


HEURISTICS: Mapping[str, Callable[[Chain, Predecessors], Order]] = {
    "depth_first": depth_first,
    "least_live": least_live,
    "least_live_backwards": least_live_backwards,
    "weights_together": weights_together,
}


def _list_schedule(predecessors: Predecessors, key: Callable[[int], int], ran: Callable[[int], list[int]]) -> Order:
    """Return an order by Kahn's algorithm that takes the atom with the least key first.

    Args:
        key: returns the present key of an atom, which may only fall.
        ran: is called with each atom when it is scheduled; returns the atoms whose key may have fallen.
    """
    successors = _turned(predecessors)
    missing = [len(found) for found in predecessors]
    heap = [(key(atom), atom) for atom, count in enumerate(missing) if not count]
    heapq.heapify(heap)
    done = [False] * len(missing)
    order: Order = []
    while heap:
        _, atom = heapq.heappop(heap)
        if done[atom]:  # an older, larger key of the same atom
            continue
        done[atom] = True
        order.append(atom)
        for other in ran(atom):
            if not missing[other] and not done[other]:
                heapq.heappush(heap, (key(other), other))
        for other in successors[atom]:
            missing[other] -= 1
            if not missing[other]:
                heapq.heappush(heap, (key(other), other))
    return order


def _least_live(
    chain: Chain, predecessors: Predecessors, values: list[tuple[int, int, list[int]]], *, makes_on_first: bool
) -> Order:
    """Schedule in either direction; backwards, a value begins with its first toucher and ends with its maker."""
    touched: list[list[int]] = [[] for _ in range(chain.num_atoms)]
    for v, (_, _, touchers) in enumerate(values):
        for atom in touchers:
            touched[atom].append(v)
    cost = [0] * chain.num_atoms
    left: list[set[int]] = [set(touchers) for _, _, touchers in values]
    for v, (size, maker, touchers) in enumerate(values):
        if makes_on_first:
            for atom in touchers:
                cost[atom] += size
            if maker in left[v]:
                cost[maker] -= size
        else:
            if maker in left[v]:
                cost[maker] += size
            if len(touchers) == 1:
                cost[touchers[0]] -= size
    begun = [False] * len(values)

    def ran(atom: int) -> list[int]:
        changed: list[int] = []
        for v in touched[atom]:
            size, _, touchers = values[v]
            left[v].discard(atom)
            if makes_on_first and not begun[v]:
                begun[v] = True
                for other in touchers:
                    cost[other] -= size
                changed += touchers
            elif not makes_on_first and len(left[v]) == 1:
                (other,) = left[v]
                cost[other] -= size
                changed.append(other)
        return changed

    return _list_schedule(predecessors, cost.__getitem__, ran)


def _values(chain: Chain) -> list[tuple[int, int, list[int]]]:
    """Return (bytes, making atom or -1, atoms that touch it) for each value that a partition can free."""
    starts: list[int] = chain.atom_start.tolist()
    touchers: list[dict[int, None]] = [{} for _ in range(len(chain.value_bytes))]
    maker = [-1] * len(touchers)
    rows: list[int] = chain.touch_start[chain.atom_start].tolist()
    defined: list[int] = chain.value_def.tolist()
    for atom, (i, j) in enumerate(pairwise(rows)):
        for v in chain.touch_value[i:j].tolist():
            touchers[v][atom] = None
            if starts[atom] <= defined[v] < starts[atom + 1]:
                maker[v] = atom
    return [
        (size, made, list(found))
        for size, made, found, returned in zip(
            chain.value_bytes.tolist(), maker, touchers, chain.value_returned.tolist(), strict=True
        )
        if size and not returned
    ]


def _touched_bytes(chain: Chain) -> list[int]:
    """Return, for each atom, the bytes of its values and weights; repeated touches count again."""
    values = chain.value_bytes[chain.touch_value]
    rows = [(chain.touch_start, values), (chain.weight_start, chain.weight_touch_bytes)]
    sums = [[0, *column.cumsum().tolist()] for _, column in rows]
    bounds = [start[chain.atom_start].tolist() for start, _ in rows]
    return [
        sum(total[at[atom + 1]] - total[at[atom]] for total, at in zip(sums, bounds, strict=True))
        for atom in range(chain.num_atoms)
    ]


def _turned(predecessors: Predecessors) -> list[list[int]]:
    """Return the successors of each atom, ascending."""
    successors: list[list[int]] = [[] for _ in predecessors]
    for atom, found in enumerate(predecessors):
        for p in found:
            successors[p].append(atom)
    return successors
