"""Why a plan is best, in a form that can be checked without trusting the planner.

Terms
-----
witness
    (first, rejected, bytes): the atoms first .. rejected, both included, have a footprint of ``bytes``. A
    footprint never falls when an interval grows, so if that is more than allowed, no partition may hold all
    of these atoms: every plan has a boundary after ``first`` and not after ``rejected``.
independent witnesses
    The next one begins at or after the ``rejected`` of the one before. Then no boundary serves two of them.

So k - 1 independent witnesses above the budget, of two or more atoms each, prove that every plan has at least
k partitions. And with m independent witnesses of B bytes or more, a plan of m partitions has too few
boundaries to cut all of them: one of its partitions holds a witness whole, and has at least B bytes. One atom
is never cut, so one witness of a single atom proves as much.

What the bound on the maximum covers: every plan with as many partitions as this one, and in it the partitions
that are not an oversize atom on its own; an oversize atom is as large as it is in every plan.

Devices of different sizes, in an order
---------------------------------------
Device i takes the atoms behind those of device i - 1, and may be left out. A witness of device i begins where farthest
reach over the devices before it ends, and exceeds the budget of device i. By induction none of them can get farther,
so if the devices 0 .. m - 2 have a witness each, at least m are needed; and if under limits of B - 1 bytes all m have
one, a plan on these m has a partition of B bytes or more. A witness may be a single atom: then the device is left out.

`certify.py` finds certificates, `verify/bounds.py` checks them and shares no code with the planner.
"""

from __future__ import annotations

from dataclasses import dataclass

Witness = tuple[int, int, int]


@dataclass(frozen=True)
class Certificate:
    """Proof of two lower bounds; the module's docstring defines the terms.

    Attributes:
        min_partitions: no plan within the budget has fewer partitions (or: uses fewer devices from the front of the
            list; one more than there are, if they do not hold the chain).
        witnesses: ``min_partitions - 1`` independent ones, each of two or more atoms and above the budget.
        max_bytes_lower_bound: no plan with as many partitions as the certified one has a smaller maximum. The
            plans of `dp.py` attain it; those of `greedy.py` need not.
        max_witnesses: one of a single atom that is not oversize, or as many independent ones of two or more
            atoms as the plan has partitions (or: one for each device that it uses, left out or not); each of at
            least ``max_bytes_lower_bound``. Empty if that is 0.
    """

    min_partitions: int
    witnesses: tuple[Witness, ...]
    max_bytes_lower_bound: int
    max_witnesses: tuple[Witness, ...]
