"""Contract every atom of a chain to one step, and values and weights to links between atoms.

Boundaries are only between atoms, so a planner does not need the steps. For atom a, in bytes:

``alone[a]``
    The footprint of the atom by itself.
``enters[a]``
    The bytes that every step of a window gains when the window is extended by a and has touched none of a's values
    and weights so far: the values that a touches and does not define, and the weights that it touches.
``stays[a]``
    The bytes still held after a, when a is the whole window: values that are touched later or returned, and
    weights.
*link* (u, w, bytes)
    Atoms u < w share these bytes: a window that holds both counts them once. ``w == num_atoms`` means that
    nothing after u shares them any more, and that a window which holds u keeps them to its end.

Then for a window that grows from [i, j) to [i, j + 1), with *inner* the bytes of the links from [i, j) to j::

    peak   <- max(peak + enters[j] - inner, held - inner + alone[j])
    held   <- held - inner + stays[j]

where *peak* is the footprint and *held* the bytes still held at the window's end. Dropping atom i of [i, j)
changes the footprint at every other step by the same amount, the bytes of the links from i to j and beyond.

Why this is exact. An atom's own profile of resident bytes does not depend on the window around it: a value
that the atom touches is resident from its definition or the atom's start, up to its last touch or the atom's
end. Every other value of the window is resident during the whole atom or not at all. So the atom's peak in a
window is its own peak plus a constant.

A value gives one link for each two consecutive atoms that touch it, and one to ``num_atoms`` if it is
returned. A weight that is always touched in full behaves like a value that is passed in and returned. A
weight of W bytes that is touched in part counts min(W, sum of its touches a .. b); its links are the mixed
differences of this function

    link(a, b) = g(a+1, b) - g(a+1, b-1) - g(a, b) + g(a, b-1)    with g(a, b) = min(W, t[a] + ... + t[b])

which are not negative, and of which at most two per touch are not zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .chain import Chain, IntArray


@dataclass(frozen=True, eq=False)
class Contraction:
    """A chain with one step an atom; the module's docstring defines the terms. Every array is int64.

    Attributes:
        alone, enters, stays: ``(num_atoms,)`` bytes.
        link_from, link_to, link_bytes: one entry for each link, sorted by ``(link_to, link_from)``, no pair twice.
        link_cut: the part of ``link_bytes`` that moves between partitions if the partition of ``link_to`` has
            not touched it before: activations that a node made, but no weights or inputs of the graph.
    """

    alone: IntArray
    enters: IntArray
    stays: IntArray
    link_from: IntArray
    link_to: IntArray
    link_bytes: IntArray
    link_cut: IntArray

    @property
    def num_atoms(self) -> int:
        return len(self.alone)

    @property
    def num_inner_links(self) -> int:
        """The number of links between two atoms; they come first, links to ``num_atoms`` last."""
        return int(np.searchsorted(self.link_to, self.num_atoms))


Links = tuple[IntArray, IntArray, IntArray, IntArray]  # from, to, bytes, cut


def contract(chain: Chain) -> Contraction:
    """Contract the atoms of ``chain``, in O((n + e) log e) whole-array work.

    Example: two atoms, the first defines a value of 8 bytes and the second reads it. Then
    ``alone == [8, 8]``,
    ``enters == [0, 8]``, ``stays == [8, 0]``, and there is one link (0, 1, 8).
    """
    num_atoms = chain.num_atoms
    atom_of_step = np.repeat(np.arange(num_atoms), np.diff(chain.atom_start))
    contract_values = _add_up_values if chain.adds_up else _contract_values
    alone, enters, value_links = contract_values(chain, atom_of_step)
    weights, weight_links = _contract_weights(chain, atom_of_step)
    links = _merge(
        [np.concatenate(parts) for parts in zip(value_links, weight_links, strict=True)], num_atoms
    )
    stays = np.zeros(num_atoms, dtype=np.int64)
    np.add.at(stays, links[0], links[2])
    return Contraction(alone + weights, enters + weights, stays, *links)


def whole_footprint(contraction: Contraction) -> int:
    """Return the bytes of the window that holds every atom, in O(n + e) whole-array work; 0 without atoms."""
    return int(footprints(contraction, [0, contraction.num_atoms]).max(initial=0)) if contraction.num_atoms else 0


def footprints(contraction: Contraction, boundaries: Sequence[int]) -> IntArray:
    """Return the bytes of each partition of a plan, none empty, in O(n + e) whole-array work.

    Args:
        contraction: the chain.
        boundaries: atom indices from 0 to the number of atoms, strictly ascending.
    """
    starts, ends = np.array(boundaries[:-1], dtype=np.int64), np.array(boundaries[1:], dtype=np.int64)
    lengths = ends - starts
    inner_end = contraction.num_inner_links
    source, target = contraction.link_from[:inner_end], contraction.link_to[:inner_end]
    together = source >= np.repeat(starts, lengths)[target]
    inner = np.zeros(contraction.num_atoms, dtype=np.int64)
    np.add.at(inner, target[together], contraction.link_bytes[:inner_end][together])
    kept = contraction.stays - inner
    held_after = np.cumsum(kept)
    held_after -= np.repeat(held_after[starts] - kept[starts], lengths)
    at_own_step = held_after - contraction.stays + contraction.alone
    gained = np.cumsum(contraction.enters - inner)
    at_end = np.repeat(gained[ends - 1], lengths)
    return np.asarray(np.maximum.reduceat(at_own_step + at_end - gained, starts))


def _contract_values(chain: Chain, atom_of_step: IntArray) -> tuple[IntArray, IntArray, Links]:
    """Return, per atom, the peak of values and workspace and the bytes that enter; and the values' links."""
    value, first, last = _by_atom(chain.touch_start, chain.touch_value, atom_of_step)
    atom = atom_of_step[first]
    begin, end = chain.atom_start[atom], chain.atom_start[atom + 1]
    defined = chain.value_def[value]
    size = chain.value_bytes[value]
    again = value[1:] == value[:-1]
    assert np.all(defined <= first), "a value is touched before its definition"
    after = np.where(chain.value_returned[value] != 0, chain.num_atoms, -1)
    after[:-1][again] = atom[1:][again]

    change = np.zeros(chain.num_steps + 1, dtype=np.int64)
    np.add.at(change, np.maximum(defined, begin), size)
    np.subtract.at(change, np.where(after >= 0, end, last + 1), size)
    profile = np.cumsum(change)[:-1] + chain.workspace
    peak = np.maximum.reduceat(profile, chain.atom_start[:-1]) if chain.num_atoms else profile

    enters = np.zeros(chain.num_atoms, dtype=np.int64)
    arriving = defined < begin
    np.add.at(enters, atom[arriving], size[arriving])

    kept = (after >= 0) & (size > 0)
    moved = np.where((defined >= 0) & (after < chain.num_atoms), size, 0)
    return peak, enters, (atom[kept], after[kept], size[kept], moved[kept])


def _add_up_values(chain: Chain, atom_of_step: IntArray) -> tuple[IntArray, IntArray, Links]:
    """Do as `_contract_values` for a chain that adds up: the bytes of an atom count in every window that has it."""
    made = chain.workspace.copy()
    defined = chain.value_def >= 0
    np.add.at(made, chain.value_def[defined], chain.value_bytes[defined])
    size = np.add.reduceat(made, chain.atom_start[:-1]) if chain.num_atoms else made
    _, _, (source, target, _, moved) = _contract_values(chain, atom_of_step)
    atoms = np.arange(chain.num_atoms)
    links = (
        np.concatenate([source, atoms]),
        np.concatenate([target, np.full_like(atoms, chain.num_atoms)]),
        np.concatenate([np.zeros_like(moved), size]),
        np.concatenate([moved, np.zeros_like(size)]),
    )
    return size, size, links


def _contract_weights(chain: Chain, atom_of_step: IntArray) -> tuple[IntArray, Links]:
    """Return, per atom, the bytes of the weights that it touches; and the weights' links."""
    order, heads = _runs(chain.weight_start, chain.weight_id, atom_of_step)
    weight = chain.weight_id[order][heads]
    step = np.repeat(np.arange(chain.num_steps), np.diff(chain.weight_start))
    atom = atom_of_step[step[order][heads]]
    full = chain.weight_bytes[weight]
    touched = chain.weight_touch_bytes[order]
    touched = np.minimum(np.add.reduceat(touched, heads) if len(heads) else touched, full)
    counted = np.zeros(chain.num_atoms, dtype=np.int64)
    np.add.at(counted, atom, touched)

    again = weight[1:] == weight[:-1]
    # Only weights that several atoms touch, at least one in part, need the mixed differences; the others behave
    # like values that are returned.
    in_part = np.zeros(len(chain.weight_bytes), dtype=bool)
    in_part[weight[touched < full]] = True
    tied = np.zeros(len(chain.weight_bytes), dtype=bool)
    tied[weight[1:][again]] = True
    mixed = (in_part & tied)[weight]

    after = np.full(len(weight), chain.num_atoms, dtype=np.int64)
    after[:-1][again] = atom[1:][again]
    plain = ~mixed & (touched > 0)
    rows = [(atom[plain], after[plain], touched[plain])]
    if mixed.any():
        rows.append(_mixed_links(weight[mixed], atom[mixed], touched[mixed], full[mixed], chain.num_atoms))
    source, target, size = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    return counted, (source, target, size, np.zeros_like(size))


def _mixed_links(
    weight: IntArray, atom: IntArray, touched: IntArray, full: IntArray, num_atoms: int
) -> tuple[IntArray, IntArray, IntArray]:
    """Return the links of weights that several atoms touch in part.

    Args:
        weight, atom, touched, full: one entry for each (weight, atom), sorted by weight.
        num_atoms: the number of atoms of the chain.
    """
    links: list[tuple[int, int, int]] = []
    heads = np.flatnonzero(np.diff(weight, prepend=-1)).tolist()
    for head, tail in zip(heads, [*heads[1:], len(weight)], strict=True):
        atoms = atom[head:tail].tolist()
        left = touched[head:tail].tolist()  # bytes not yet linked to a later atom
        total = int(full[head])
        before = [0, *np.cumsum(touched[head:tail]).tolist()]

        def counted(a: int, b: int, before: list[int] = before, total: int = total) -> int:
            return min(total, before[b + 1] - before[a])

        start = 0
        for b in range(1, len(atoms)):
            # The links to b begin where the touches after them leave room below W, and end where the touches
            # up to b do not exceed W: both ends only move right.
            while start < b - 1 and before[b] - before[start + 1] >= total:
                start += 1
            a = start
            while a < b and before[b + 1] - before[a] > total:
                size = counted(a + 1, b) - counted(a + 1, b - 1) - counted(a, b) + counted(a, b - 1)
                if size > 0:
                    links.append((atoms[a], atoms[b], size))
                    left[a] -= size
                a += 1
        links += [(a, num_atoms, size) for a, size in zip(atoms, left, strict=True) if size > 0]
    table = np.array(links, dtype=np.int64).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2]


def _runs(start: IntArray, ids: IntArray, atom_of_step: IntArray) -> tuple[IntArray, IntArray]:
    """Return the order that sorts touches by (id, step), and the start of each run of one (id, atom) in it."""
    order = np.argsort(ids, kind="stable")
    sorted_ids = ids[order]
    atom = np.repeat(atom_of_step, np.diff(start))[order]
    new = np.ones(len(ids), dtype=bool)
    new[1:] = (sorted_ids[1:] != sorted_ids[:-1]) | (atom[1:] != atom[:-1])
    return order, np.flatnonzero(new)


def _by_atom(start: IntArray, ids: IntArray, atom_of_step: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Return the distinct (id, atom) of the touches, sorted: each id, with its first and last step in the atom."""
    order, heads = _runs(start, ids, atom_of_step)
    step = np.repeat(np.arange(len(atom_of_step)), np.diff(start))[order]
    tails = np.append(heads[1:], len(ids)) - 1 if len(heads) else heads
    return ids[order][heads], step[heads], step[tails]


def _merge(links: list[IntArray], num_atoms: int) -> Links:
    """Sort links by (to, from) and add up those of the same pair."""
    key = links[1] * (num_atoms + 1) + links[0]
    order = np.argsort(key, kind="stable")
    key = key[order]
    heads = np.flatnonzero(np.diff(key, prepend=-1))
    if len(heads) == 0:
        return links[0], links[1], links[2], links[3]
    source, target = links[0][order][heads], links[1][order][heads]
    return source, target, np.add.reduceat(links[2][order], heads), np.add.reduceat(links[3][order], heads)
