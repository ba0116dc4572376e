"""The best plan over all orders as an integer programme, solved by OR-tools' CP-SAT; for graphs of some 14 atoms.

Variables, for atoms v, partitions p, steps t, weights w and values u::

    x[v, p]      atom v is in partition p; each in one, no partition empty
    late[u, p]   a partition after p touches u;  used[u, p]  partition p does
    here[u,t,p]  u is resident at step t of partition p
    M            the largest partition that counts

Precedence: x[v, p] implies that each predecessor is in one of the partitions 0 .. p. For each step t of p: weights of
p + resident at t + workspace of t <= M, unless p is one single atom and is over the budget. It uses nothing of the
planner.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ortools.sat.python import cp_model

from fx_partition.passes.partitioner.chain import Chain


class Model:
    """The programme for a given number of partitions."""

    def __init__(self, chain: Chain, predecessors: Sequence[Sequence[int]], budget: int, k: int) -> None:
        self.chain, self.budget, self.k = chain, budget, k
        self.m = cp_model.CpModel()
        self.parts = range(k)
        n = chain.num_atoms
        self.x = [[self.m.new_bool_var(f"x{v}_{p}") for p in self.parts] for v in range(n)]
        for row in self.x:
            self.m.add_exactly_one(row)
        for p in self.parts:
            self.m.add_bool_or(row[p] for row in self.x)
        for v, found in enumerate(predecessors):
            for u in found:
                for p in self.parts:
                    self.m.add_bool_or([~self.x[v][p], *self.x[u][: p + 1]])
        self.largest = self.m.new_int_var(0, budget, "M")
        self.cut: list[Any] = []
        self.atom = [a for a in range(n) for _ in range(chain.atom_start[a], chain.atom_start[a + 1])]
        self.touches: dict[int, list[int]] = {}
        for t in range(chain.num_steps):
            for u in chain.touch_value[chain.touch_start[t] : chain.touch_start[t + 1]].tolist():
                self.touches.setdefault(u, []).append(t)
        for p in self.parts:
            self._partition(p)

    def _or(self, literals: Sequence[Any]) -> Any:
        result = self.m.new_bool_var("")
        self.m.add_max_equality(result, [0, *literals])
        return result

    def _and(self, literals: Sequence[Any]) -> Any:
        return ~self._or([~literal for literal in literals])

    def _weights(self, p: int) -> Any:
        chain = self.chain
        read: dict[int, list[Any]] = {}
        for t in range(chain.num_steps):
            for i in range(chain.weight_start[t], chain.weight_start[t + 1]):
                size = int(chain.weight_touch_bytes[i])
                read.setdefault(int(chain.weight_id[i]), []).append(size * self.x[self.atom[t]][p])
        total: Any = 0
        for w, terms in read.items():
            y = self.m.new_int_var(0, int(chain.weight_bytes[w]), "")
            self.m.add_min_equality(y, [int(chain.weight_bytes[w]), sum(terms)])
            total = total + y
        return total

    def _partition(self, p: int) -> None:
        chain, x = self.chain, self.x
        load = [self._weights(p) + int(number) for number in chain.workspace.tolist()]
        for u, steps in self.touches.items():
            size, defined = int(chain.value_bytes[u]), int(chain.value_def[u])
            if not size:
                continue
            users = sorted({self.atom[t] for t in steps})
            used = self._or([x[v][p] for v in users])
            kept = bool(chain.value_returned[u])
            late = self._or([x[v][q] for v in users for q in range(p + 1, self.k)])
            if defined >= 0:
                self.cut.append(size * self._and([used, ~x[self.atom[defined]][p]]))
            for t in range(chain.num_steps):
                conditions = [used]
                if not kept:
                    conditions.append(self._or([late, *(x[self.atom[s]][p] for s in steps if s >= t)]))
                if defined > t:
                    conditions.append(~x[self.atom[defined]][p])
                load[t] = load[t] + size * self._and(conditions)
        over = self.m.new_bool_var("")
        self.m.add(sum(row[p] for row in x) == 1).only_enforce_if(over)
        too_much = [self.m.new_bool_var("") for _ in load]
        self.m.add_bool_or([~over, *too_much])
        for t, bytes_at in enumerate(load):
            mine = x[self.atom[t]][p]
            self.m.add_implication(too_much[t], mine)
            self.m.add(bytes_at > self.budget).only_enforce_if(too_much[t])
            self.m.add(bytes_at <= self.largest).only_enforce_if([mine, ~over])

    def minimise(self, objective: Any) -> int | None:
        """The least value of an objective, None if there is no plan."""
        self.m.minimize(objective)
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        status = solver.solve(self.m)
        assert status in (cp_model.OPTIMAL, cp_model.INFEASIBLE), solver.status_name(status)
        return round(solver.objective_value) if status == cp_model.OPTIMAL else None


def best_plan(chain: Chain, predecessors: Sequence[Sequence[int]], budget: int) -> tuple[int, int, int]:
    """(partitions, bytes of the largest that is not an oversize atom, bytes received): the best over all orders."""
    for k in range(1, chain.num_atoms + 1):
        model = Model(chain, predecessors, budget, k)
        largest = model.minimise(model.largest)
        if largest is not None:
            model.m.add(model.largest <= largest)
            cut = model.minimise(sum(model.cut)) if model.cut else 0
            assert cut is not None
            return k, largest, cut
    raise AssertionError("every atom alone is a plan")
