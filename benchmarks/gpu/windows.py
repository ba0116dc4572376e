"""Hold packed weights in L2 by a persistence window, as the package's own stages do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fx_partition.backends.cuda.l2_persistence import bindings, persist
from fx_partition.backends.cuda.weight_buffer import Pack


@contextmanager
def held(pack: Pack) -> Iterator[bool]:
    """Set a window over the pack for the current stream; say whether it could be had. Kernels are captured inside."""
    device = torch.device("cuda", torch.cuda.current_device())
    persistence = persist(device, [(torch.cuda.current_stream(), pack.buffer)], bindings(device))
    try:
        yield persistence is not None
    finally:
        torch.cuda.synchronize()
        if persistence is not None:
            persistence.close()
