"""Random chains, and their footprints straight from the definition in `fx_partition/passes/partitioner/chain.py`."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import pairwise

import numpy as np
from hypothesis import strategies as st

from fx_partition.passes.partitioner.chain import Chain


def make_chain(
    steps: Iterable[tuple[int, Collection[int], Collection[tuple[int, int]]]],
    values: Iterable[tuple[int, int, bool]],
    weights: Iterable[int] = (),
    atom_start: Iterable[int] | None = None,
) -> Chain:
    """A chain from rows.

    Args:
        steps: (workspace bytes, values touched, (weight, bytes touched) pairs) of each step.
        values: (bytes, defining step or -1, returned) of each value.
        weights: bytes of each weight.
        atom_start: first step of each atom; every step is an atom if left out.
    """
    steps = list(steps)
    values = list(values)
    starts = list(range(len(steps))) if atom_start is None else list(atom_start)

    def array(numbers: Iterable[int]) -> np.ndarray:
        return np.array(list(numbers), dtype=np.int64)

    return Chain(
        atom_start=array([*starts, len(steps)]),
        workspace=array(workspace for workspace, _, _ in steps),
        value_bytes=array(size for size, _, _ in values),
        value_def=array(step for _, step, _ in values),
        value_returned=array(int(returned) for _, _, returned in values),
        touch_start=array(np.cumsum([0, *(len(touched) for _, touched, _ in steps)])),
        touch_value=array(value for _, touched, _ in steps for value in touched),
        weight_bytes=array(weights),
        weight_start=array(np.cumsum([0, *(len(read) for _, _, read in steps)])),
        weight_id=array(weight for _, _, read in steps for weight, _ in read),
        weight_touch_bytes=array(size for _, _, read in steps for _, size in read),
    )


def separate(*sizes: int) -> Chain:
    """Atoms that share nothing: each has its own weight."""
    return make_chain([(0, [], [(i, size)]) for i, size in enumerate(sizes)], [], sizes)


@st.composite
def chains(draw: st.DrawFn, max_atoms: int = 9, max_steps_per_atom: int = 3) -> Chain:
    """Chains with everything in them that a graph may have.

    Values: inputs of the graph, intermediates, returned ones (inputs too), dead ones, zero sizes, inputs that
    nothing reads. Weights: read once, tied, read in part (also more than once and beyond their size), zero
    sizes.
    """
    sizes = draw(
        st.sampled_from([st.integers(0, 3), st.integers(0, 12), st.sampled_from([0, 1, 64, 10**12])])
    )
    lengths = draw(st.lists(st.integers(1, max_steps_per_atom), min_size=1, max_size=max_atoms))
    num_steps = sum(lengths)
    touched: list[list[int]] = [[] for _ in range(num_steps)]
    values = []
    for index in range(draw(st.integers(0, 2 * num_steps))):
        defined = draw(st.integers(-1, num_steps - 1))
        uses = draw(st.sets(st.integers(max(defined, 0), num_steps - 1), max_size=4))
        for step in sorted({defined, *uses} - {-1}):
            touched[step].append(index)
        values.append((draw(sizes), defined, draw(st.integers(0, 4)) == 0))
    reads: list[dict[int, int]] = [{} for _ in range(num_steps)]
    weights = draw(st.lists(sizes, max_size=5))
    for index, size in enumerate(weights):
        for step in draw(st.sets(st.integers(0, num_steps - 1), max_size=5)):
            reads[step][index] = draw(st.one_of(st.just(size), st.integers(0, size + 2)))
    steps = [
        (draw(sizes), draw(st.permutations(touched[step])), draw(st.permutations(list(reads[step].items()))))
        for step in range(num_steps)
    ]
    return make_chain(steps, values, weights, np.cumsum([0, *lengths[:-1]]).tolist())


def brute_profile(chain: Chain, i: int, j: int) -> tuple[dict[int, int], list[set[int]], list[int]]:
    """Of the steps [i, j): each weight's counted bytes, each step's resident values, each step's bytes."""
    touches = {
        (int(value), step)
        for step in range(chain.num_steps)
        for value in chain.touch_value[chain.touch_start[step] : chain.touch_start[step + 1]]
    }
    weights: dict[int, int] = {}
    for step in range(i, j):
        for touch in range(chain.weight_start[step], chain.weight_start[step + 1]):
            weight, size = int(chain.weight_id[touch]), int(chain.weight_touch_bytes[touch])
            weights[weight] = weights.get(weight, 0) + size
    weights = {weight: min(int(chain.weight_bytes[weight]), size) for weight, size in weights.items()}

    resident: list[set[int]] = [set() for _ in range(i, j)]
    for value in {value for value, step in touches if i <= step < j}:
        mine = [step for v, step in touches if v == value]
        needed = max(mine) >= j or chain.value_returned[value] == 1
        until = j - 1 if needed else max(mine)
        for step in range(max(i, int(chain.value_def[value])), until + 1):
            resident[step - i].add(value)
    bytes_at = [
        sum(weights.values())
        + int(chain.workspace[step])
        + sum(int(chain.value_bytes[v]) for v in resident[step - i])
        for step in range(i, j)
    ]
    return weights, resident, bytes_at


def brute_footprint(chain: Chain, i: int, j: int) -> int:
    """The footprint of the steps [i, j)."""
    return max(brute_profile(chain, i, j)[2], default=0)


def brute_received(chain: Chain, i: int, j: int) -> int:
    """The bytes of the distinct values defined at steps 0 .. i - 1 and touched in [i, j)."""
    values = set(chain.touch_value[chain.touch_start[i] : chain.touch_start[j]].tolist())
    return sum(int(chain.value_bytes[v]) for v in values if 0 <= chain.value_def[v] < i)


class Brute:
    """Footprints and receptions of all intervals of atoms, by the definitions."""

    def __init__(self, chain: Chain) -> None:
        start = chain.atom_start.tolist()
        self.num_atoms = n = chain.num_atoms
        pairs = [(a, b) for a in range(n) for b in range(a + 1, n + 1)]
        self.footprint = {(a, b): brute_footprint(chain, start[a], start[b]) for a, b in pairs}
        self.received = {(a, b): brute_received(chain, start[a], start[b]) for a, b in pairs}

    def plans(self) -> Iterable[list[int]]:
        """All boundary lists, 2^(n - 1) of them."""
        for mask in range(1 << (self.num_atoms - 1)):
            yield [0, *(a for a in range(1, self.num_atoms) if mask >> (a - 1) & 1), self.num_atoms]

    def measure(self, plan: list[int], budget: int | None) -> tuple[int, int, int] | None:
        """(partitions, largest, bytes received); None if a partition is infeasible under the budget."""
        parts = list(pairwise(plan))
        sizes = [self.footprint[part] for part in parts]
        if budget is not None:
            if any(size > budget and b - a > 1 for size, (a, b) in zip(sizes, parts, strict=True)):
                return None
            sizes = [size for size in sizes if size <= budget]
        return len(parts), max(sizes, default=0), sum(self.received[part] for part in parts)
