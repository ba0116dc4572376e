from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from chains import Brute, chains, make_chain, separate
from claims import faults
from hypothesis import given, settings
from hypothesis import strategies as st

from fx_partition.passes.partitioner.certificate import Certificate
from fx_partition.passes.partitioner.certify import certify
from fx_partition.passes.partitioner.chain import Chain
from fx_partition.passes.partitioner.dp import balance, dp
from fx_partition.passes.partitioner.greedy import greedy


@settings(max_examples=200, deadline=None)
@given(chains(), st.data())
def test_the_certificate_of_an_exact_plan_verifies_and_is_tight(chain: Chain, data: st.DataObject) -> None:
    brute = Brute(chain)
    budget = data.draw(st.sampled_from(sorted({0, *brute.footprint.values()})))
    plan = dp(chain, budget)
    certificate = certify(chain, plan, budget)
    assert faults(certificate, chain, plan, budget) == []
    measured = brute.measure(plan, budget)
    assert measured is not None
    assert (certificate.min_partitions, certificate.max_bytes_lower_bound) == measured[:2]
    assert len(certificate.witnesses) == len(plan) - 2


@settings(max_examples=150, deadline=None)
@given(chains(), st.data())
def test_the_certificate_of_a_greedy_plan_proves_the_best_maximum(chain: Chain, data: st.DataObject) -> None:
    brute = Brute(chain)
    budget = data.draw(st.sampled_from(sorted({0, *brute.footprint.values()})))
    plan = greedy(chain, budget)
    certificate = certify(chain, plan, budget)
    assert faults(certificate, chain, plan, budget, "greedy") == []
    best = min(measure for other in brute.plans() if (measure := brute.measure(other, budget)))
    assert (certificate.min_partitions, certificate.max_bytes_lower_bound) == best[:2]


@settings(max_examples=150, deadline=None)
@given(chains(), st.integers(1, 6), st.data())
def test_both_bounds_hold_for_any_number_of_partitions(chain: Chain, count: int, data: st.DataObject) -> None:
    brute = Brute(chain)
    budget = data.draw(st.sampled_from(sorted({0, *brute.footprint.values()})))
    plan = balance(chain, count)
    bound = certify(chain, plan, budget).max_bytes_lower_bound
    for other in brute.plans():
        if len(other) == len(plan):
            parts = list(pairwise(other))
            sizes = [brute.footprint[a, b] for a, b in parts if b - a > 1 or brute.footprint[a, b] <= budget]
            assert max(sizes, default=0) >= bound


CHAIN = make_chain(
    [(2, [a, a - 1] if a else [a], [(a, 10)]) for a in range(8)], [(1, a, False) for a in range(8)], [10] * 8
)
BUDGET = 36
PLAN = dp(CHAIN, BUDGET)
CERTIFICATE = certify(CHAIN, PLAN, BUDGET)


def test_an_honest_certificate() -> None:
    assert CERTIFICATE.min_partitions == len(PLAN) - 1 == 3
    assert CERTIFICATE.witnesses == ((0, 3, 44), (3, 6, 44))
    assert len(CERTIFICATE.max_witnesses) == 3
    assert faults(CERTIFICATE, CHAIN, PLAN, BUDGET) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"min_partitions": 2}, "it is 2, and the budget asks for 3"),
        ({"min_partitions": 4}, "do not prove 4 partitions"),
        ({"witnesses": CERTIFICATE.witnesses[:1]}, "1 witnesses do not prove"),
        ({"witnesses": ((0, 3, 44), (3, 6, 99))}, "it is 99, and n3 .. n6 have 44"),
        ({"witnesses": ((0, 2, 34), (3, 6, 44))}, "and 37 are needed"),
        ({"witnesses": ((0, 3, 44), (2, 5, 44))}, "have no boundary of their own"),
        ({"witnesses": ((0, 3, 44), (5, 8, 44))}, "have no boundary of their own"),
        ({"witnesses": ((0, 3, 44), (3, 3, 44))}, "have no boundary of their own"),
        ({"max_bytes_lower_bound": CERTIFICATE.max_bytes_lower_bound + 1}, "and the largest partition has"),
        ({"max_witnesses": CERTIFICATE.max_witnesses[:2]}, "do not prove a maximum"),
        ({"max_witnesses": ()}, "0 witnesses do not prove a maximum"),
        ({"max_witnesses": ((0, 0, 13),)}, "bytes does not prove"),
        ({"max_witnesses": ((9, 9, 99),)}, "bytes does not prove"),
        ({"max_bytes_lower_bound": CERTIFICATE.max_bytes_lower_bound - 1}, "partitions need more"),
    ],
)
def test_a_corrupted_certificate_is_rejected(change: dict[str, object], reason: str) -> None:
    corrupted = replace(CERTIFICATE, **change)  # type: ignore[arg-type]
    assert any(reason in found for found in faults(corrupted, CHAIN, PLAN, BUDGET))


@pytest.mark.parametrize(
    ("plan", "budget", "reason"),
    [
        ([0, 4, 6, 8], BUDGET, "over the budget"),
        ([0, 2, 4, 6, 8], BUDGET, "they are 4, and 3 are enough"),
        ([0, 3, 8], BUDGET, "over the budget"),
        (PLAN, 20, "over the budget"),
        (PLAN, 50, "and 51 are needed"),
    ],
)
def test_a_corrupted_plan_or_another_budget_is_rejected(plan: list[int], budget: int, reason: str) -> None:
    assert any(reason in found for found in faults(CERTIFICATE, CHAIN, plan, budget))


def test_oversize_atoms_are_exempt_from_the_maximum() -> None:
    chain = separate(50, 2, 2, 2, 2, 50)
    plan = dp(chain, 6)
    certificate = certify(chain, plan, 6)
    assert certificate.min_partitions == 4
    assert certificate.max_bytes_lower_bound == 4
    assert faults(certificate, chain, plan, 6) == []
    alone = replace(certificate, max_witnesses=((0, 0, 50),))
    assert faults(alone, chain, plan, 6) == [
        "certificate.max_witnesses[0]: an atom of 50 bytes does not prove 4 within 6"
    ]


def test_one_large_atom_is_its_own_witness() -> None:
    chain = separate(5, 1, 1)
    assert certify(chain, dp(chain, 6), 6).max_witnesses == ((0, 0, 5),)


def test_a_chain_without_steps() -> None:
    chain = make_chain([], [])
    assert certify(chain, [0], 5) == Certificate(0, (), 0, ())
    assert faults(certify(chain, [0], 5), chain, [0], 5) == []


def test_what_is_not_a_plan_is_refused() -> None:
    with pytest.raises(ValueError, match="ascending"):
        certify(CHAIN, [0, 5, 5, 8], BUDGET)
    with pytest.raises(ValueError, match="negative"):
        certify(CHAIN, PLAN, -1)
