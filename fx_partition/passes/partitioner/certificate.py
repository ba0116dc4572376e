"""The proof that a plan is best, in a form that can be checked without trusting the planner.

Terms
-----
witness
    (first, rejected, bytes): the atoms first .. rejected, both included, have a footprint of ``bytes``. A
    footprint never falls when an interval grows, so if that is more than allowed, no partition may hold all
    of these atoms: every plan has a boundary after ``first`` and not after ``rejected``.
independent witnesses
    Each begins at or after the ``rejected`` of the one before. Then no boundary cuts two of them.

So k - 1 independent witnesses above the budget, of two or more atoms each, prove that every plan has at least
k partitions. And with m independent witnesses of B bytes or more, a plan of m partitions has too few
boundaries to cut all of them: one of its partitions contains a whole witness, and has at least B bytes. An atom
is never cut, so one witness of a single atom proves the same.

The bound on the maximum covers every plan with as many partitions as this one. It does not count partitions that
are a single oversize atom, which has the same size in every plan.

Devices of different sizes, in an order
---------------------------------------
Device i holds the atoms behind those of device i - 1, and may be left out. A witness of device i begins where farthest
reach over the devices before it ends, and exceeds the budget of device i. By induction no plan gets farther on these
devices. So if each of the devices 0 .. m - 2 has a witness, at least m are needed; and if all m have one under limits
of B - 1 bytes, a plan on these m has a partition of B bytes or more. If a witness is a single atom, its device is left
out.

`certify.py` finds certificates; `verify/bounds.py` checks them and shares no code with the planner.
"""

from __future__ import annotations

from dataclasses import dataclass

Witness = tuple[int, int, int]


@dataclass(frozen=True)
class Certificate:
    """Proof of two lower bounds; the module's docstring defines the terms.

    Attributes:
        min_partitions: no plan within the budget has fewer partitions (or, for devices of different sizes: no plan
            uses fewer devices from the front of the list; one more than there are if they do not hold the chain).
        witnesses: ``min_partitions - 1`` independent ones, each of two or more atoms and above the budget.
        max_bytes_lower_bound: no plan with as many partitions as the certified one has a smaller maximum. The
            plans of `dp.py` attain it; those of `greedy.py` need not.
        max_witnesses: one of a single atom that is not oversize, or as many independent ones of two or more
            atoms as the plan has partitions (or one for each device of the plan, left out or not); each of at
            least ``max_bytes_lower_bound``. Empty if that is 0.
    """

    min_partitions: int
    witnesses: tuple[Witness, ...]
    max_bytes_lower_bound: int
    max_witnesses: tuple[Witness, ...]
