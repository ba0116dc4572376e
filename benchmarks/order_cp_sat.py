"""Find the fewest partitions of any order, and the smallest largest one, by an integer programme for CP-SAT.

Inequalities only, so that it scales to some 40 atoms where `tests/cp_sat.py`, which states every definition as
an equality, takes minutes. No atom may exceed the budget. Of atom v, partition p and value u::

    y[v, p]      v is in one of the partitions 0 .. p;   x[v, p] = y[v, p] - y[v, p - 1]
    used[u, p]   >= x[v, p] of each v that touches u;    late[u, p] >= 1 - y[v, p]
    here[u,t,p]  u is resident while atom t runs in p, bounded from below by the cases of `chain.py`

and for each t and p: weights of p + resident bytes + scratch of t <= M where x[t, p].
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from ortools.sat.python import cp_model

from fx_partition.passes.partitioner.chain import Chain


class Answer(NamedTuple):
    """The solver's answer: whether there is a plan (None: not decided), its largest partition, the least possible."""

    possible: bool | None
    largest: int = 0
    bound: int = 0


class Programme:
    """Plans of at most ``k`` partitions of a chain whose atoms are one step each."""

    def __init__(self, chain: Chain, predecessors: Sequence[Sequence[int]], budget: int, k: int) -> None:
        assert chain.num_atoms == chain.num_steps and not chain.adds_up
        self.m = cp_model.CpModel()
        self.n, self.k = chain.num_atoms, k
        self.y = [[self.m.new_bool_var("") for _ in range(k)] for _ in range(self.n)]
        self.x = [[self.m.new_bool_var("") for _ in range(k)] for _ in range(self.n)]
        for row, y in zip(self.x, self.y, strict=True):
            self.m.add(y[-1] == 1)
            self.m.add_exactly_one(row)
            for p in range(k):
                self.m.add(row[p] == (y[p] - y[p - 1] if p else y[p]))
        for v, found in enumerate(predecessors):
            for u in found:
                for p in range(k):
                    self.m.add_implication(self.y[v][p], self.y[u][p])
        self.largest = self.m.new_int_var(0, budget, "")
        touchers: dict[int, list[int]] = {}
        for t, (i, j) in enumerate(pairwise(chain.touch_start.tolist())):
            for u in chain.touch_value[i:j].tolist():
                touchers.setdefault(u, []).append(t)
        for p in range(k):
            self._partition(chain, touchers, p, budget)

    def _partition(self, chain: Chain, touchers: dict[int, list[int]], p: int, budget: int) -> None:
        m, x = self.m, self.x
        readers: dict[int, list[int]] = {}
        for t, (i, j) in enumerate(pairwise(chain.weight_start.tolist())):
            for w in chain.weight_id[i:j].tolist():
                readers.setdefault(w, []).append(t)
        load: Any = 0
        for w, found in readers.items():
            held = x[found[0]][p] if len(found) == 1 else m.new_bool_var("")
            for t in found[1:] and found:
                m.add_implication(x[t][p], held)
            load = load + int(chain.weight_bytes[w]) * held
        loads = [load + int(number) for number in chain.workspace.tolist()]
        columns = (chain.value_def.tolist(), chain.value_returned.tolist(), chain.value_bytes.tolist())
        for u, found in touchers.items():
            made, returned, size = (column[u] for column in columns)
            self._value(found, made, bool(returned), size, loads, p)
        for t, bytes_at in enumerate(loads):
            m.add(bytes_at <= self.largest).only_enforce_if(x[t][p])
            m.add(bytes_at <= budget).only_enforce_if(x[t][p])

    def _value(self, found: list[int], made: int, returned: bool, size: int, loads: list[Any], p: int) -> None:
        m, x = self.m, self.x
        used, kept = m.new_bool_var(""), m.new_bool_var("")
        for t in found:
            m.add_implication(x[t][p], used)
            m.add_bool_or([kept, self.y[t][p]])  # a later toucher keeps it
        if returned:
            m.add(kept == 1)
        for t in range(self.n):
            here = m.new_bool_var("")
            unless = [x[made][p]] if made > t else []  # it is not resident before it is made
            for s in found:
                if s >= t:
                    m.add_bool_or([here, ~x[s][p], *unless])
            m.add_bool_or([here, ~used, ~kept, *unless])
            loads[t] = loads[t] + size * here

    def solve(self, seconds: float, smallest: bool) -> Answer:
        """Return whether there is a plan, and with ``smallest`` one whose largest partition is smallest."""
        if smallest:
            self.m.minimize(self.largest)
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 2
        solver.parameters.max_time_in_seconds = seconds
        status = solver.solve(self.m)
        if status == cp_model.INFEASIBLE:
            return Answer(False)
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return Answer(None)
        if not smallest:
            return Answer(True)
        return Answer(True, round(solver.objective_value), round(solver.best_objective_bound))
