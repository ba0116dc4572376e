"""Sets that every order passes, and beams that jump to them."""

from __future__ import annotations

from chains import separate
from dags import Dag, dags, measure_sets
from hypothesis import given, settings
from hypothesis import strategies as st

from fx_partition.passes.ordering.beam import Beam, Breadth
from fx_partition.passes.ordering.gates import gates
from fx_partition.passes.ordering.piece import Graph, Piece, bits

EVERY = Breadth(1, 1, 99)


def whole(dag: Dag, budget: int) -> Piece:
    chain, predecessors = dag
    return Graph(chain, predecessors).piece(range(chain.num_atoms), budget, lambda _, __: False)


@settings(max_examples=200, deadline=None)
@given(dags(max_atoms=9))
def test_a_gate_is_comparable_with_every_downset(dag: Dag) -> None:
    piece = whole(dag, 0)
    downsets = [
        group for group in range(1 << piece.n) if all(not piece.needs[atom] & ~group for atom in bits(group))
    ]  # fmt: skip
    firsts = [(1 << count) - 1 for count in range(1, piece.n + 1)]
    assert gates(piece) == [
        first for first in firsts if all(first & ~group == 0 or group & ~first == 0 for group in downsets)
    ]  # fmt: skip


def test_gates_of_a_diamond() -> None:
    assert gates(whole((separate(*[1] * 6), [[], [0], [0], [1, 2], [3], [3]]), 0)) == [0b1, 0b111, 0b1111, 0b111111]


@settings(max_examples=200, deadline=None)
@given(dags(max_atoms=9), st.booleans(), st.data())
def test_a_fill_up_to_a_gate_is_the_one_that_grows_atom_by_atom(dag: Dag, backwards: bool, data: st.DataObject) -> None:
    piece = whole(dag, 1 << 60)
    beam = Beam(piece, backwards, gates(piece))
    places = [0, *beam._gates]
    first, last = sorted(data.draw(st.tuples(st.sampled_from(places), st.sampled_from(places))))
    ready = tuple(a for a in range(piece.n) if not first >> a & 1 and not beam._need[a] & ~first)
    fill = beam._filled(0, ready, 0)
    assert fill.ready == ready and not fill.group
    for atom in sorted(bits(last & ~first), reverse=backwards):
        ((number, _, live),) = [option for option in beam._options(first, fill, EVERY) if option[1] == atom]
        fill, over = beam._grown(first, fill, atom, number - live, live)
        assert not over
    found = beam._filled(first, ready, last & ~first)
    assert found._replace(ready=()) == fill._replace(ready=())
    assert sorted(found.ready) == sorted(fill.ready)


@settings(max_examples=200, deadline=None)
@given(dags(max_atoms=9), st.integers(1, 60), st.booleans())
def test_beams_that_jump_give_plans_within_the_budget(dag: Dag, budget: int, backwards: bool) -> None:
    chain, _ = dag
    piece = whole(dag, budget)
    passed = gates(piece)
    groups = list(Beam(piece, backwards, passed).run(Breadth(2, 3, 3), 1.0, piece.n)[-1][piece.full])
    assert measure_sets(chain, [list(bits(group)) for group in groups], budget) is not None
    first = groups[-1] if backwards else groups[0]
    ends = [piece.full & ~gate for gate in [0, *passed[:-1]]][::-1] if backwards else passed
    fits = [piece.footprint([*bits(g)], g, 0 if backwards else piece.full & ~g) <= budget for g in ends]
    if fits == sorted(fits, reverse=True):  # else a search by halves may miss the farthest
        assert all(end & ~first == 0 for end, fit in zip(ends, fits, strict=True) if fit)
