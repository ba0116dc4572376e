"""Chains with precedence: random ones, windows and coarsenings of real ones, and plans by trying all of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
from chains import brute_footprint, brute_received, chains, make_chain
from hypothesis import strategies as st
from zoo import FAMILIES

from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.constraints.atoms import find_atoms
from fx_partition.passes.constraints.dependencies import atom_predecessors
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.partitioner.build_chain import lay_out
from fx_partition.passes.partitioner.chain import Chain
from fx_partition.passes.partitioner.permute import permuted

Dag = tuple[Chain, list[list[int]]]


def makers_first(chain: Chain, extra: Sequence[tuple[int, int]] = ()) -> list[list[int]]:
    """Predecessors by data alone, the maker of a value before who touches it, and ``extra`` pairs (before, after)."""
    atom_of = np.repeat(np.arange(chain.num_atoms), np.diff(chain.atom_start)).tolist()
    needs: list[set[int]] = [set() for _ in range(chain.num_atoms)]
    for step in range(chain.num_steps):
        for value in chain.touch_value[chain.touch_start[step] : chain.touch_start[step + 1]]:
            if chain.value_def[value] >= 0:
                needs[atom_of[step]].add(atom_of[chain.value_def[value]])
    for before, after in extra:
        needs[after].add(before)
    return [sorted(found - {atom}) for atom, found in enumerate(needs)]


@st.composite
def dags(draw: st.DrawFn, max_atoms: int = 7) -> Dag:
    """A chain with anything in it, its data edges, and some edges besides."""
    chain = draw(chains(max_atoms=max_atoms, max_steps_per_atom=2))
    pairs = st.tuples(st.integers(0, chain.num_atoms - 1), st.integers(0, chain.num_atoms - 1))
    extra = draw(st.lists(pairs.filter(lambda p: p[0] < p[1]), max_size=3)) if chain.num_atoms > 1 else []
    return chain, makers_first(chain, extra)


def random_dag(seed: int, num_atoms: int) -> Dag:
    """A layered graph with weights (some tied, some read in part), workspace, and atoms of one or two steps."""
    rng = random.Random(seed)
    lengths = [1 + (rng.random() < 0.25) for _ in range(num_atoms)]
    starts = np.cumsum([0, *lengths]).tolist()
    n = starts[-1]
    touched: list[list[int]] = [[] for _ in range(n)]
    values = []
    for v in range(n + 2):
        defined = v - 2 if v >= 2 else -1
        later = range(max(defined + 1, 0), n)
        near = [t for t in later if t <= defined + 5 or rng.random() < 0.1]
        uses = set(rng.sample(near, min(len(near), rng.randrange(3)))) | ({defined} if defined >= 0 else set())
        for step in uses:
            touched[step].append(v)
        values.append((rng.randrange(1, 9), defined, rng.random() < 0.1))
    sizes = [rng.randrange(1, 13) for _ in range(num_atoms)]
    steps = []
    for t in range(n):
        reads = {rng.randrange(num_atoms): 0 for _ in range(rng.randrange(3))}
        steps.append((rng.choice([0, 0, 3]), touched[t], [(w, rng.choice([sizes[w], sizes[w], 2])) for w in reads]))
    chain = make_chain(steps, values, sizes, starts[:-1])
    return chain, makers_first(chain)


@cache
def zoo_dag(name: str) -> Dag:
    """A family's graph, batch of two."""
    family = FAMILIES[name]
    args, kwargs = family.inputs(2)
    captured = capture(family.build(), kwargs or args)
    memory = analyze_memory(captured)
    atoms = find_atoms(captured, memory)
    memory = memory.reordered(atoms.order)
    nodes = {node.name: node for node in captured.gm.graph.nodes}
    chain = lay_out(memory, atoms, memory.symbols.bind(None))
    return chain, atom_predecessors(memory, nodes, atoms.starts)


def window_of(dag: Dag, first: int, end: int, run: int = 1) -> Dag:
    """The atoms [first, end) as their own graph, ``run`` consecutive ones as one atom."""
    chain, predecessors = dag
    i, j = int(chain.atom_start[first]), int(chain.atom_start[end])
    last = np.full(len(chain.value_bytes), -1)
    last[chain.touch_value] = np.repeat(np.arange(chain.num_steps), np.diff(chain.touch_start))
    t0, t1, w0, w1 = chain.touch_start[i], chain.touch_start[j], chain.weight_start[i], chain.weight_start[j]
    heads = list(range(first, end, run))
    atom_start = np.append(chain.atom_start[heads], j) - i
    small = replace(
        chain,
        atom_start=atom_start,
        workspace=chain.workspace[i:j],
        value_def=np.where((chain.value_def >= i) & (chain.value_def < j), chain.value_def - i, -1),
        value_returned=chain.value_returned | (last >= j),
        touch_start=chain.touch_start[i : j + 1] - t0,
        touch_value=chain.touch_value[t0:t1],
        weight_start=chain.weight_start[i : j + 1] - w0,
        weight_id=chain.weight_id[w0:w1],
        weight_touch_bytes=chain.weight_touch_bytes[w0:w1],
    )
    needs: list[set[int]] = [set() for _ in heads]
    for atom in range(first, end):
        needs[(atom - first) // run].update((p - first) // run for p in predecessors[atom] if p >= first)
    return small, [sorted(found - {atom}) for atom, found in enumerate(needs)]


def measure_sets(chain: Chain, sets: Sequence[Sequence[int]], budget: int) -> tuple[int, int, int] | None:
    """(partitions, largest, bytes received) of a plan given as sets of atoms, straight from the definitions."""
    order = [atom for atoms in sets for atom in sorted(atoms)]
    run = permuted(chain, order)
    largest = received = place = 0
    for atoms in sets:
        i, j = int(run.atom_start[place]), int(run.atom_start[place + len(atoms)])
        size = brute_footprint(run, i, j)
        if size > budget and len(atoms) > 1:
            return None
        largest = max(largest, size if size <= budget else 0)
        received += brute_received(run, i, j)
        place += len(atoms)
    return len(sets), largest, received


def best_by_pairs(dag: Dag, budget: int) -> tuple[int, int, int]:
    """The best measure over all orders, from all pairs of downsets; the footprint of a pair from the definition."""
    chain, predecessors = dag
    n = chain.num_atoms
    needs = [sum(1 << p for p in found) for found in predecessors]
    downsets = [d for d in range(1 << n) if all(not d >> a & 1 or needs[a] & ~d == 0 for a in range(n))]
    best: dict[int, set[tuple[int, int, int]]] = {0: {(0, 0, 0)}}

    def atoms(mask: int) -> list[int]:
        return [a for a in range(n) if mask >> a & 1]

    for to in downsets[1:]:
        found = set()
        for done in downsets:
            if done == to or done & ~to or not best[done]:
                continue
            part = atoms(to & ~done)
            rest = atoms(((1 << n) - 1) & ~to)
            run = permuted(chain, [*atoms(done), *part, *rest])
            first = len(atoms(done))
            i, j = int(run.atom_start[first]), int(run.atom_start[first + len(part)])
            size = brute_footprint(run, i, j)
            if size > budget and len(part) > 1:
                continue
            counted = size if size <= budget else 0
            cut = brute_received(run, i, j)
            found |= {(k + 1, max(m, counted), c + cut) for k, m, c in best[done]}
        best[to] = found
    return min(best[(1 << n) - 1])
