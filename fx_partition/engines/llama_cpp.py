"""llama.cpp: the value of ``-ts``, ``--tensor-split``, for ``--split-mode layer`` with all layers on devices.

llama.cpp divides the layers and, as one more behind them, the output (the last norm and the head) in proportion to
these numbers. With counts as proportions each layer is where it was counted. The embedding stays in the host's memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from .layers import layer_counts
from .module_stages import ModuleStages

NAME = "llama.cpp"


def tensor_split(stages: ModuleStages, devices: Sequence[int | str]) -> str:
    """Return the layers of each device, the output as one of the last: 28 layers are "10,10,9".

    Raises:
        PartitionError: as `layer_counts`.
    """
    *counts, last = layer_counts(NAME, stages, devices)
    return ",".join(map(str, [*counts, last + 1]))
