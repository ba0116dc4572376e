"""The best plan over all orders of a graph that has few: a shortest path through its downsets."""

from __future__ import annotations

from collections.abc import Sequence

from .case import Case
from .ledger import Ledger

_Measure = tuple[int, int, int]
_Edge = tuple[int, int, int]

# A search of more sets, or of more parts between two of them, is not repeated: it would take too long. The planner
# gives up far sooner.
MOST_DOWNSETS, _MOST_PARTS = 1 << 14, 50_000


class TooLarge(Exception):
    """A search that is claimed is too large to be repeated."""


def count_downsets(needs: Sequence[set[int]], most: int) -> int | None:
    """Count the sets of atoms that hold what each member needs; None if there are more than ``most``.

    Raises:
        TooLarge: ``most`` is too large to count so far.
    """
    if most > MOST_DOWNSETS:
        raise TooLarge
    lattice = _Lattice(needs, most)
    return None if lattice.is_cut_short else len(lattice.masks)


class _Lattice:
    """The downsets as bit masks, smaller ones first, and what may be added to each."""

    def __init__(self, needs: Sequence[set[int]], most: int) -> None:
        before = [sum(1 << p for p in found) for found in needs]
        self.masks = [0]
        self.steps: list[list[tuple[int, int]]] = []  # (atom, number of the downset with it)
        self.is_cut_short = False
        number = {0: 0}
        open_atoms: list[set[int]] = [{a for a, mask in enumerate(before) if not mask}]
        after: list[list[int]] = [[] for _ in needs]
        for atom, found in enumerate(needs):
            for p in found:
                after[p].append(atom)
        for mask in self.masks:  # grows while it is walked
            here = open_atoms[len(self.steps)]
            row = []
            for atom in sorted(here):
                grown = mask | 1 << atom
                if grown not in number:
                    if len(self.masks) >= most:
                        self.is_cut_short = True
                        return
                    number[grown] = len(self.masks)
                    self.masks.append(grown)
                    open_atoms.append(here - {atom} | {b for b in after[atom] if not before[b] & ~grown})
                row.append((atom, number[grown]))
            self.steps.append(row)


def best_measure(case: Case, needs: Sequence[set[int]], own: _Measure) -> _Measure | None:
    """The fewest partitions, their smallest maximum and then the fewest bytes received, over all orders.

    Args:
        needs: of each atom, with few enough downsets to walk them all.
        own: the measure of the plan; what needs more partitions is not looked at.

    Returns:
        None if there is no plan of so few partitions.

    Raises:
        TooLarge: there are too many parts between two downsets.
    """
    lattice = _Lattice(needs, 1 << 62)
    edges = _edges(lattice, _Parts(case), case.plan.budget_bytes, own[0])
    last = len(lattice.masks) - 1
    never = last + 2
    left = [never] * last + [0]  # the fewest parts from a downset to the whole
    for at in range(last - 1, -1, -1):
        left[at] = 1 + min((left[to] for to, _, _ in edges[at]), default=never)
    count = left[0]
    if count > own[0]:
        return None
    maxima = {0: 0}
    for layer in range(1, count + 1):
        reached: dict[int, int] = {}
        for at, size in maxima.items():
            for to, part, _ in edges[at]:
                if left[to] == count - layer:
                    reached[to] = min(reached.get(to, max(size, part)), max(size, part))
        maxima = reached
    received = {0: 0}
    for layer in range(1, count + 1):
        reached = {}
        for at, cut in received.items():
            for to, part, crossing in edges[at]:
                if left[to] == count - layer and part <= maxima[last]:
                    reached[to] = min(reached.get(to, cut + crossing), cut + crossing)
        received = reached
    return count, maxima[last], received[last]


def _edges(lattice: _Lattice, parts: _Parts, budget: int, most: int) -> list[list[_Edge]]:
    """From each downset (to which, bytes that count for the maximum, bytes received) of each part that fits.

    Args:
        most: plans of more partitions do not matter.
    """
    whole = lattice.masks[-1]
    fewest = [0] + [most + 1] * (len(lattice.masks) - 1)
    edges: list[list[_Edge]] = [[] for _ in lattice.masks]
    measured = 0
    for start, row in enumerate(edges):
        before = lattice.masks[start]
        if fewest[start] + parts.least_for(whole & ~before, budget) > most:
            continue
        seen = {start}
        stack = [start]
        while stack:
            at = stack.pop()
            for atom, to in lattice.steps[at]:
                if to in seen:
                    continue
                members = lattice.masks[to] & ~before
                fits = parts.least_bytes(members) <= budget
                if not fits and members != 1 << atom:
                    continue
                seen.add(to)
                measured += 1
                if measured > _MOST_PARTS:
                    raise TooLarge
                size, received = parts.measure(members, before, whole & ~lattice.masks[to])
                if size <= budget or members == 1 << atom:
                    row.append((to, size if size <= budget else 0, received))
                    fewest[to] = min(fewest[to], fewest[start] + 1)
                if fits:
                    stack.append(to)
    return edges


class _Parts:
    """Sets of atoms that run one after another in the order of the trace, as bit masks."""

    def __init__(self, case: Case) -> None:
        ledger, starts = case.ledger, case.starts
        self._ledger: Ledger = ledger
        count = len(starts) - 1
        first = [min(case.order[starts[a] : starts[a + 1]]) for a in range(count)]
        self._atoms = sorted(range(count), key=first.__getitem__)
        self._steps = [range(starts[a], starts[a + 1]) for a in range(count)]
        self._users: dict[int, int] = {}  # the atoms that touch an activation, as a mask
        self._maker: dict[int, int] = {}
        self._read: list[dict[int, int]] = []
        self._most: list[int] = []
        for atom, steps in enumerate(self._steps):
            read: dict[int, int] = {}
            most = 0
            for step in steps:
                for memory in ledger.activations[step]:
                    self._users[memory] = self._users.get(memory, 0) | 1 << atom
                    if ledger.made_at[memory] == step:
                        self._maker[memory] = 1 << atom
                for weight, size in ledger.weights[step]:
                    read[weight] = read.get(weight, 0) + size
                most = max(most, ledger.workspace[step] + sum(ledger.sizes[m] for m in ledger.activations[step]))
            self._read.append(read)
            self._most.append(most)
        # Weights that every reader reads whole, and no reader of which may be too large for a partition of its own.
        alone = case.stretches.alone
        readers: dict[int, int] = {}
        for atom, read in enumerate(self._read):
            for weight in read:
                readers[weight] = readers.get(weight, 0) | 1 << atom
        budget = case.plan.budget_bytes
        self._whole = {weight: (mask, ledger.sizes[weight]) for weight, mask in readers.items()}
        for read, size in zip(self._read, alone, strict=True):
            for weight, touched in read.items():
                if touched < ledger.sizes[weight] or size > budget:
                    self._whole.pop(weight, None)

    def least_for(self, members: int, budget: int) -> int:
        """Partitions that hold these atoms need to be so many at least: by weights that nothing else reads."""
        held = sum(size for mask, size in self._whole.values() if not mask & ~members)
        return max(int(members != 0), -(-held // max(budget, 1)))

    def least_bytes(self, members: int) -> int:
        """What these atoms hold at least, whatever joins them: the weights, and what their largest step touches."""
        atoms = [atom for atom in self._atoms if members >> atom & 1]
        return self._weights(atoms) + max(self._most[atom] for atom in atoms)

    def _weights(self, atoms: Sequence[int]) -> int:
        read: dict[int, int] = {}
        for atom in atoms:
            for weight, size in self._read[atom].items():
                read[weight] = read.get(weight, 0) + size
        return sum(min(size, self._ledger.sizes[weight]) for weight, size in read.items())

    def measure(self, members: int, before: int, behind: int) -> tuple[int, int]:
        """The footprint of these atoms as one partition, and the bytes that it receives.

        Args:
            before: the atoms that have run.
            behind: those that have not.
        """
        ledger = self._ledger
        atoms = [atom for atom in self._atoms if members >> atom & 1]
        steps = [step for atom in atoms for step in self._steps[atom]]
        last = {memory: at for at, step in enumerate(steps) for memory in ledger.activations[step]}
        at_step = {step: at for at, step in enumerate(steps)}
        change = [0] * (len(steps) + 1)
        received = 0
        for memory, until in last.items():
            size = ledger.sizes[memory]
            if ledger.returned[memory] or self._users[memory] & behind:
                until = len(steps) - 1
            change[at_step.get(ledger.made_at[memory], 0)] += size
            change[until + 1] -= size
            received += size if self._maker.get(memory, 0) & before else 0
        held = peak = 0
        for step, more in zip(steps, change, strict=False):
            held += more
            peak = max(peak, held + ledger.workspace[step])
        return self._weights(atoms) + peak, received
