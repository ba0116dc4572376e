"""Find the certificate of a plan; `certificate.py` defines the terms.

The witnesses come from passes of farthest reach: under the budget, and one byte under the bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from .certificate import Certificate, Witness
from .chain import Chain
from .contraction import Contraction, contract
from .dp import largest_partition, smallest_maximum
from .greedy import FarthestReach, FarthestReachSolver, check_budget
from .mixed_devices import farthest, smallest_spread


def certify(chain: Chain, boundaries: list[int], budget: int) -> Certificate:
    """Return the certificate of a plan, in two passes if its maximum is the smallest, else by bisection.

    Example: four atoms of 2 bytes that share nothing, budget 6, plan ``[0, 2, 4]``: at least 2 partitions, as
    the atoms 0 .. 3 have 8 bytes; a maximum of at least 4, as the atoms 0 .. 2 and the atoms 2 .. 3 have 4 or
    more.

    Raises:
        ValueError: if ``budget`` is negative, or ``boundaries`` do not run from 0 to the number of atoms,
            ascending.
    """
    check_budget(budget)
    if boundaries[:1] != [0] or boundaries[-1] != chain.num_atoms or any(a >= b for a, b in pairwise(boundaries)):
        raise ValueError(f"the boundaries do not run from 0 to {chain.num_atoms}, ascending")
    contraction = contract(chain)
    solver = FarthestReachSolver(contraction)
    reach = solver.run(budget)
    bound, max_witnesses = _bound_maximum(contraction, solver, boundaries, budget)
    return Certificate(len(reach.footprints), _witnesses(reach), bound, max_witnesses)


def _bound_maximum(
    contraction: Contraction, solver: FarthestReachSolver, boundaries: list[int], budget: int
) -> tuple[int, tuple[Witness, ...]]:
    """Return the largest lower bound on the maximum for the plan's number of partitions, and its witnesses."""
    regular = np.where(contraction.alone > budget, 0, contraction.alone)
    largest_atom = int(regular.max(initial=0))
    maximum = largest_partition(contraction, boundaries, budget)
    m = len(boundaries) - 1
    if maximum > largest_atom:
        below = solver.run(maximum - 1, most=m)
        if len(below.rejected) == m:
            return maximum, _witnesses(below)
        _, maximum = smallest_maximum(solver, m, largest_atom, below, below.largest(maximum - 1))
    if maximum > largest_atom:
        return maximum, _witnesses(solver.run(maximum - 1, most=m))
    if maximum == 0:
        return 0, ()
    atom = int(regular.argmax())
    return maximum, ((atom, atom, maximum),)


def _witnesses(reach: FarthestReach) -> tuple[Witness, ...]:
    starts = reach.boundaries
    return tuple((starts[i], starts[i + 1], size) for i, size in enumerate(reach.rejected))


def certify_spread(chain: Chain, runs: list[int], budgets: Sequence[int]) -> Certificate:
    """Return the certificate of a plan over devices of different sizes.

    Args:
        chain: the planner's input.
        runs: the boundaries that `mixed_devices.spread` or `mixed_devices.overfill` returned.
        budgets: bytes of each device.
    """
    contraction = contract(chain)
    widest = max(budgets)
    boundaries, witnesses = farthest(contraction, budgets, widest)
    if boundaries[-1] < chain.num_atoms:
        return Certificate(len(budgets) + 1, tuple(witnesses), 0, ())
    needed = len(boundaries) - 1
    used = budgets[: len(runs) - 1]
    bound = smallest_spread(contraction, used, widest, largest_partition(contraction, runs, widest))
    if bound == 0:
        return Certificate(needed, tuple(witnesses), 0, ())
    _, below = farthest(contraction, [min(bound - 1, budget) for budget in used], widest)
    return Certificate(needed, tuple(witnesses), bound, tuple(below))
