"""The planner's input: a linear order of steps, in numbers only.

Terms
-----
step
    One node of the graph, in execution order. Steps are numbered 0 .. num_steps - 1.
atom
    A run of consecutive steps that may not be separated. A boundary is a place between two atoms.
value
    One activation storage. It is *defined* at a step (or before step 0 if the caller of the graph passes it in:
    ``value_def == -1``) and *touched* at each step that defines, reads or writes it. A value that the graph returns
    has one further touch after the last step (``value_returned``).
weight
    One storage that exists before the graph runs and stays afterwards: parameter, buffer, constant, or an input that
    the graph mutates (a KV cache). A step touches some bytes of it: all of them, the bytes that its views show, or
    the rows that a gather reads. Parts add up, even where they overlap, up to the size of the whole.

Footprint of the interval [i, j) of steps, in bytes::

    weights(i, j)   = sum over weights w of min(weight_bytes[w], sum of the touched bytes of w in [i, j))
    resident(t)     = sum of value_bytes[v] over the values v that are resident at step t
    footprint(i, j) = weights(i, j) + max over t in [i, j) of (resident(t) + workspace[t])

A value without a touch in [i, j) does not count: it goes straight from its producer to its consumer. Any other value is
resident from its definition (from step i if it is defined before i: it is *received*) up to its last touch in [i, j),
or up to step j - 1 if it is touched at or after j or returned by the graph. The footprint never falls when an interval
grows at either end.

A chain that *adds up* has another footprint, the total size of all steps of the interval::

    footprint(i, j) = weights(i, j) + sum over t in [i, j) of (bytes of the values defined at t + workspace[t])
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Chain:
    """The planner's input; every array is int64, every size is in bytes.

    Touches are in compressed rows: the values touched at step t are
    ``touch_value[touch_start[t]:touch_start[t + 1]]``, each at most once a step; likewise the weights.

    Attributes:
        atom_start: ``(num_atoms + 1,)`` first step of each atom, then ``num_steps``; strictly increasing from 0.
        workspace: ``(num_steps,)`` bytes that a step allocates while it runs and frees before it ends.
        value_bytes: ``(num_values,)``.
        value_def: ``(num_values,)`` step of definition, -1 for an input of the graph.
        value_returned: ``(num_values,)`` 1 if the graph returns it, else 0.
        touch_start, touch_value: ``(num_steps + 1,)`` and ``(num_touches,)``; the defining step is among the touches.
        weight_bytes: ``(num_weights,)``.
        weight_start, weight_id, weight_touch_bytes: rows of the weight touches, as for the values; each weight at most
            once a step.
        atom_key: ``(num_atoms,)`` equal numbers for atoms that run the same operators with equal footprints
            (`repeated_partitions`); None: not known. It only decides between plans that are equally good.
        adds_up: whether the chain has the second footprint above.
    """

    atom_start: IntArray
    workspace: IntArray
    value_bytes: IntArray
    value_def: IntArray
    value_returned: IntArray
    touch_start: IntArray
    touch_value: IntArray
    weight_bytes: IntArray
    weight_start: IntArray
    weight_id: IntArray
    weight_touch_bytes: IntArray
    atom_key: IntArray | None = None
    adds_up: bool = False

    @property
    def num_steps(self) -> int:
        return len(self.workspace)

    @property
    def num_atoms(self) -> int:
        return len(self.atom_start) - 1
