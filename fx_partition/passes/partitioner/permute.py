"""Put the atoms of a chain in another order; values and weights keep their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .chain import Chain, IntArray


def permuted(chain: Chain, order: Sequence[int]) -> Chain:
    """Return the chain whose atom at position i is atom ``order[i]``, in linear time.

    Args:
        chain: the chain; it is not changed.
        order: all atoms of the chain, each once.
    """
    atoms = np.array(order, dtype=np.int64)
    lengths = np.diff(chain.atom_start)
    steps = _rows(chain.atom_start, atoms)
    place = np.empty(chain.num_steps + 1, dtype=np.int64)
    place[steps] = np.arange(chain.num_steps)
    place[-1] = -1  # where value_def == -1 looks
    touches, reads = _rows(chain.touch_start, steps), _rows(chain.weight_start, steps)
    return replace(
        chain,
        atom_start=_starts(lengths[atoms]),
        workspace=chain.workspace[steps],
        value_def=place[chain.value_def],
        touch_start=_starts(np.diff(chain.touch_start)[steps]),
        touch_value=chain.touch_value[touches],
        weight_start=_starts(np.diff(chain.weight_start)[steps]),
        weight_id=chain.weight_id[reads],
        weight_touch_bytes=chain.weight_touch_bytes[reads],
        atom_key=None if chain.atom_key is None else chain.atom_key[atoms],
    )


def _starts(lengths: IntArray) -> IntArray:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])


def _rows(start: IntArray, rows: IntArray) -> IntArray:
    """Return the indices of the entries of compressed rows, for the given rows one after another."""
    lengths = np.diff(start)[rows]
    offset = np.repeat(start[:-1][rows] - (np.cumsum(lengths) - lengths), lengths)
    return offset + np.arange(len(offset))
