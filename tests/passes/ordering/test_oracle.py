"""The search over downsets against an integer programme, on random graphs and on pieces of real ones."""

from __future__ import annotations

from itertools import pairwise

import pytest
from cp_sat import best_plan
from dags import Dag, measure_sets, random_dag, window_of, zoo_dag

from fx_partition.passes.ordering.downsets import search_downsets
from fx_partition.passes.ordering.search import search_order
from fx_partition.passes.partitioner.contraction import contract, whole_footprint
from fx_partition.passes.partitioner.dp import dp


def check(dag: Dag, budget: int) -> None:
    chain, predecessors = dag
    best = best_plan(chain, predecessors, budget)
    found = search_downsets(chain, predecessors, budget, limit=1 << 14, effort=1 << 20)
    assert found is not None
    assert measure_sets(chain, found.parts, budget) == best
    order, boundaries, stats = search_order(chain, predecessors, budget, lambda c: dp(c, budget))
    if stats.exhaustive:
        assert measure_sets(chain, [order[a:b] for a, b in pairwise(boundaries)], budget) == best


def budgets(dag: Dag) -> tuple[int, int]:
    """One that needs two or three partitions, and one that most single atoms fit."""
    contraction = contract(dag[0])
    whole = whole_footprint(contraction)
    return max(int(contraction.alone.max()), whole * 3 // 5), sorted(contraction.alone.tolist())[-2] * 3 // 2


@pytest.mark.parametrize("seed", range(60))
def test_random_graphs(seed: int) -> None:
    dag = random_dag(seed, 5 + seed % 3)
    check(dag, budgets(dag)[seed % 2])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 160))
def test_larger_random_graphs(seed: int) -> None:
    dag = random_dag(seed, 8 + seed % 5)
    check(dag, budgets(dag)[seed % 2])


# (family, first atom, atoms, consecutive atoms that are one)
PIECES = [("unet", 0, 20, 4), ("bert", 12, 18, 3), ("vit", 6, 16, 2), ("resnet18", 10, 12, 2)]
MORE = [("t5", 30, 28, 2), ("mixtral", 20, 24, 2), ("swin", 20, 24, 2), ("whisper", 8, 24, 2), ("llama", 10, 28, 2)]


@pytest.mark.parametrize("piece", PIECES, ids=str)
def test_pieces_of_real_graphs(piece: tuple[str, int, int, int]) -> None:
    name, first, count, run = piece
    dag = window_of(zoo_dag(name), first, first + count, run)
    assert dag[0].num_atoms <= 14
    check(dag, budgets(dag)[0])


@pytest.mark.slow
@pytest.mark.parametrize("piece", MORE, ids=str)
def test_more_pieces_of_real_graphs(piece: tuple[str, int, int, int]) -> None:
    name, first, count, run = piece
    dag = window_of(zoo_dag(name), first, first + count, run)
    assert dag[0].num_atoms <= 14
    for budget in budgets(dag):
        check(dag, budget)
