"""Write guards on sizes as text for other processes.

Inductor may specialise a stage: it asks whether the batch is at least 16, and the answer becomes a guard of the model
in the process that compiles the stage. Other processes must have the same guard: a later process that finds the code on
disk, and all ranks of a group, as a batch of 8 would have one rank compile again while the others wait for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import sympy
from sympy.core.relational import Relational

from fx_partition.common.errors import PartitionError
from fx_partition.passes.capture.fake_tensors import ShapeEnv, assume
from fx_partition.passes.capture.size_text import from_text, to_text
from fx_partition.passes.capture.symbolic_sizes import to_expr


def guards_to_text(guards: Iterable[sympy.Basic]) -> str:
    """Return comparisons of sizes as text.

    Raises:
        PartitionError: a guard is not a comparison.

    Example::

        >>> s = sympy.Symbol("s", positive=True, integer=True)
        >>> guards_to_text([sympy.Ge(s, 16)])
        '[["s", ">=", "16"]]'
    """
    rows: list[Sequence[str]] = []
    for guard in guards:
        for part in sympy.And.make_args(guard):
            if not isinstance(part, Relational):
                raise PartitionError(
                    f"a stage was compiled for sizes with {part}, which is not a comparison and cannot be written for "
                    "other processes; compile with dynamic=False"
                )
            rows.append((to_text(to_expr(part.lhs)), part.rel_op, to_text(to_expr(part.rhs))))
    return json.dumps(rows)


def guards_from_text(text: str, env: ShapeEnv) -> list[sympy.Basic]:
    """Read the text of `guards_to_text` over the symbols of a shape environment."""
    return [
        Relational(*(sympy.sympify(from_text(side, env.var_to_range)) for side in (left, right)), op)
        for left, op, right in json.loads(text)
    ]


def assume_all(env: ShapeEnv, text: str) -> None:
    """Add the guards of a text of `guards_to_text` to a shape environment."""
    for guard in guards_from_text(text, env):
        assume(env, guard)
