"""Finds the moment of the trace that says most about every order; `check_order_bound.py` says why it proves anything.

Before: a chain in trace order, and a budget.
After: ``OrderBound(fewest=4, moment=17)``: no plan over any order has fewer than 4 partitions, for what is live behind
step 17.

One pass over all steps sums what is live; the few fullest moments are then weighed exactly.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..partitioner.chain import Chain
from ..partitioner.interval_footprint import last_touches
from .check_order_bound import Weighed

# So many moments are weighed, the fullest first.
_WEIGHED = 2


class OrderBound(NamedTuple):
    """No plan over any order has fewer partitions.

    Attributes:
        fewest: partitions.
        moment: the step of the trace that shows it, None where the weights alone do.
        before, behind: so many of these partitions run before, and behind, the atoms of which that is shown
            (`order_ends`).
    """

    fewest: int
    moment: int | None
    before: int = 0
    behind: int = 0


def order_bound(chain: Chain, budget: int) -> OrderBound:
    """The best of the bounds that `check_order_bound` can check, in O(n + e).

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
