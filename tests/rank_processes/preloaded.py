"""What the server of forks imports, and what its compiler finds out about the processor: each rank then knows it.

Inductor compiles and loads a file for each instruction set, which every process does once. Nothing here starts a thread
or touches a GPU, as neither outlives a fork.
"""

from __future__ import annotations

import torch._inductor.compile_fx
import torch.distributed  # noqa: F401
from torch._inductor.cpu_vec_isa import pick_vec_isa

import fx_partition.backends.l2partition  # noqa: F401

pick_vec_isa()
