"""The footprint of one interval of steps in full detail, for reports: computed from the definition in `chain`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .chain import Chain, IntArray


@dataclass(frozen=True)
class IntervalFootprint:
    """The contents of an interval [i, j) of steps; every size is in bytes.

    Attributes:
        weight: weights that the interval touches.
        activation, workspace: resident values and scratch memory at the peak step; where the chain adds up, those of
            all steps, and then the peak step is the last.
        own: the largest sum, at one step, of scratch memory and of the values that the interval defines.
        total: weight + activation + workspace, the footprint.
        peak_step: the first step at which the footprint is reached.
        recv_bytes: distinct values that a step before i defines and that the interval touches.
        send_bytes: distinct values that the interval defines and that a step from j on touches.
        resident: ids of the values resident at the peak step, ascending.
        weights: (id, counted bytes) of each weight that the interval touches, ascending.
    """

    weight: int
    activation: int
    workspace: int
    own: int
    total: int
    peak_step: int
    recv_bytes: int
    send_bytes: int
    resident: tuple[int, ...]
    weights: tuple[tuple[int, int], ...]


def interval(chain: Chain, i: int, j: int) -> IntervalFootprint:
    """Return the footprint of the steps [i, j), in O(their number + their touches).

    The first call for a chain also looks at all of its touches.

    Raises:
        ValueError: if [i, j) is empty or not within the chain.
    """
    if not 0 <= i < j <= chain.num_steps:
        raise ValueError(f"not an interval of the {chain.num_steps} steps: [{i}, {j})")
    touched: dict[int, int] = {}  # value -> its last touch in [i, j)
    for step in range(i, j):
        for value in chain.touch_value[chain.touch_start[step] : chain.touch_start[step + 1]].tolist():
            touched[value] = step

    change = [0] * (j - i + 1)
    own_change = [0] * (j - i + 1)
    spans: dict[int, tuple[int, int]] = {}
    received = sent = 0
    ids = np.array(list(touched), dtype=np.int64)
    columns = (chain.value_def, chain.value_bytes, chain.value_returned, last_touches(chain))
    for (value, last), defined, size, returned, last_of_all in zip(
        touched.items(), *(column[ids].tolist() for column in columns), strict=True
    ):
        begin, later = max(defined, i), last_of_all >= j
        end = j if later or returned else last + 1
        spans[value] = (begin, end)
        change[begin - i] += size
        change[end - i] -= size
        if defined >= i:
            own_change[begin - i] += size
            own_change[end - i] -= size
        received += size if 0 <= defined < i else 0
        sent += size if defined >= i and later else 0

    peak_step, activation, workspace, live = i, -1, 0, 0
    own = own_live = 0
    for step in range(i, j):
        live += change[step - i]
        own_live += own_change[step - i]
        scratch = int(chain.workspace[step])
        own = max(own, own_live + scratch)
        if live + scratch > activation + workspace:
            peak_step, activation, workspace = step, live, scratch
    resident = [value for value, (begin, end) in spans.items() if begin <= peak_step < end]
    if chain.adds_up:
        resident = [value for value in touched if i <= chain.value_def[value]]
        peak_step, activation = j - 1, int(chain.value_bytes[resident].sum())
        workspace = int(chain.workspace[i:j].sum())

    rows = slice(int(chain.weight_start[i]), int(chain.weight_start[j]))
    counted: dict[int, int] = {}
    for weight, size in zip(
        chain.weight_id[rows].tolist(), chain.weight_touch_bytes[rows].tolist(), strict=True
    ):
        counted[weight] = min(int(chain.weight_bytes[weight]), counted.get(weight, 0) + size)
    weight_bytes = sum(counted.values())

    return IntervalFootprint(
        weight=weight_bytes,
        activation=activation,
        workspace=workspace,
        own=own,
        total=weight_bytes + activation + workspace,
        peak_step=peak_step,
        recv_bytes=received,
        send_bytes=sent,
        resident=tuple(sorted(resident)),
        weights=tuple(sorted(counted.items())),
    )


@lru_cache(maxsize=1)  # a report asks for every partition of one chain
def last_touches(chain: Chain) -> IntArray:
    """Return the last step that touches each value, -1 if none does."""
    last = np.full(len(chain.value_bytes), -1, dtype=np.int64)
    # Of several assignments to one element numpy keeps the last, which is the latest step.
    last[chain.touch_value] = np.repeat(np.arange(chain.num_steps), np.diff(chain.touch_start))
    return last
