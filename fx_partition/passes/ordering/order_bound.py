"""Find the moment of the trace that gives the best lower bound for every order; `check_order_bound` has the proof.

Before: a chain in trace order, and a budget.
After: ``OrderBound(fewest=4, moment=17)``: no plan over any order has fewer than 4 partitions, because of the values
that are live after step 17.

One pass over all steps sums the live bytes; then the bound of the few fullest moments is computed exactly.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..partitioner.chain import Chain
from ..partitioner.interval_footprint import last_touches
from .check_order_bound import Weighed

# The number of moments whose bound is computed, the fullest first.
_WEIGHED = 2


class OrderBound(NamedTuple):
    """A lower bound on the partitions of a plan over any order.

    Attributes:
        fewest: the bound.
        moment: the step of the trace that shows it; None if the weights alone do.
        before, behind: how many of these partitions run before, and after, the atoms whose bound is shown
            (`order_ends`).
    """

    fewest: int
    moment: int | None
    before: int = 0
    behind: int = 0


def order_bound(chain: Chain, budget: int) -> OrderBound:
    """Return the best bound that `check_order_bound` can check, in O(n + e).

    Example: two atoms of 3 bytes of weights each, budget 4: two partitions, by the weights alone.
    """
    weighed = Weighed(chain, budget)
    atoms = range(chain.num_atoms)
    best = OrderBound(weighed.fewest(atoms, None), None)
    made = chain.value_def >= 0
    until = np.where(chain.value_returned != 0, chain.num_steps, last_touches(chain))
    change = np.zeros(chain.num_steps + 1, dtype=np.int64)
    np.add.at(change, chain.value_def[made], chain.value_bytes[made])
    np.subtract.at(change, until[made], chain.value_bytes[made])
    live = np.cumsum(change)[:-1]
    for moment in np.argsort(-live, kind="stable")[:_WEIGHED].tolist():
        fewest = weighed.fewest(atoms, moment)
        if fewest > best.fewest:
            best = OrderBound(fewest, moment)
    return best
