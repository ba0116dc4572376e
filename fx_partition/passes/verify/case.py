"""A plan and the model that it is checked against, as all checks see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import sympy

from ..plan.plan import Plan
from .cuts import Cuts
from .figures import Figures, figures
from .fused import FusedSizes
from .ledger import Ledger, Sizes
from .order import Needs
from .runs import Reading
from .windows import FarthestReach, Stretches


class Fault(NamedTuple):
    """A field of a plan, by its path in JSON, and what is wrong with it; maybe so that the plan cannot run at all."""

    path: str
    why: str
    cannot_run: bool = False

    def __str__(self) -> str:
        return f"{self.path}: {self.why}"


@dataclass(frozen=True)
class Case:
    """A plan that can run a graph, and what the graph is in its order.

    Attributes:
        plan: what is checked.
        reading: of the graph, in the order of the trace.
        needs: what must run before what, by places in the trace.
        order: the place in the trace of each step of the plan.
        starts: the step at which each atom begins, then the number of steps.
        sizes: what the steps touch.
        numbers: of the symbols, as the plan binds them.
    """

    plan: Plan
    reading: Reading
    needs: Needs
    order: Sequence[int]
    starts: Sequence[int]
    sizes: Sizes | FusedSizes
    numbers: dict[sympy.Symbol, int]

    @property
    def where(self) -> str:
        """Where boundaries may be, in words."""
        allowed = self.plan.boundaries
        return f"with boundaries between {'modules' if isinstance(allowed, tuple) else allowed}"

    @cached_property
    def ledger(self) -> Ledger:
        return self.sizes.at(self.numbers)

    @cached_property
    def stretches(self) -> Stretches:
        return Stretches(self.ledger, self.starts)

    @cached_property
    def filled(self) -> FarthestReach:
        """Each partition with as many atoms as the budget allows."""
        return self.stretches.sweep(self.plan.budget_bytes)

    @cached_property
    def cuts(self) -> Cuts:
        return Cuts(self.stretches, self.plan.budget_bytes)

    @cached_property
    def ends(self) -> list[int]:
        """The step at which each partition begins, then the number of steps."""
        found = [0]
        for partition in self.plan.partitions:
            found.append(found[-1] + len(partition.nodes))
        return found

    @cached_property
    def boundaries(self) -> list[int]:
        """The atom at which each partition begins, then the number of atoms."""
        return [self.atom_at[end] for end in self.ends]

    @cached_property
    def atom_at(self) -> dict[int, int]:
        """The atom that begins at a step; the number of atoms behind the last."""
        return {step: atom for atom, step in enumerate(self.starts)}

    @cached_property
    def figures(self) -> list[Figures]:
        """Of each partition."""
        return [figures(self.ledger, a, b) for a, b in pairwise(self.ends)]

    @cached_property
    def place(self) -> dict[str, int]:
        """The step of each node."""
        return {name: step for step, name in enumerate(self.ledger.names)}

    @cached_property
    def atoms(self) -> list[int]:
        """Of each partition how many atoms it has."""
        return [b - a for a, b in pairwise(self.boundaries)]

    @property
    def in_trace_order(self) -> bool:
        return all(t == step for step, t in enumerate(self.order))

    @property
    def slots(self) -> int:
        """How many devices come up to the last that is used, those left out included."""
        return self.plan.partitions[-1].slot + 1 if self.plan.partitions else 0

    @cached_property
    def budgets(self) -> list[int]:
        """Of devices of different sizes, as often as they take turns."""
        given = self.plan.device_budgets
        return list(given) * max(1, -(-self.slots // len(given)))

    def largest(self, budget: int) -> int:
        """The largest partition, without single atoms above the budget."""
        pairs = zip(self.figures, self.atoms, strict=True)
        return max((f.total_bytes for f, atoms in pairs if f.total_bytes <= budget or atoms > 1), default=0)

    @property
    def is_short(self) -> bool:
        """Whether a partition of several atoms exceeds the budget, as where there are too few devices."""
        return self.largest(self.plan.budget_bytes) > self.plan.budget_bytes

    @property
    def cut_bytes(self) -> int:
        return sum(found.recv_bytes for found in self.figures)
