"""A Triton kernel that reads a buffer once, past L1, and adds it up."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # floats that one program takes at a time
_PROGRAMS = 8  # for each multiprocessor: 256 threads each fill it


@triton.jit
def _read(source, out, blocks, BLOCK: tl.constexpr):
    """Add up ``blocks * BLOCK`` floats, a sum for each program."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    lane = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for block in range(program, blocks, programs):
        total += tl.load(source + block * BLOCK + lane, cache_modifier=".cg")
    tl.store(out + program, tl.sum(total, axis=0))


def read(source: Tensor) -> Tensor:
    """Return partial sums of a float32 buffer of a multiple of `BLOCK` elements, each of which is read once."""
    blocks = source.numel() // BLOCK
    programs = min(blocks, _PROGRAMS * torch.cuda.get_device_properties(source.device).multi_processor_count)
    out = torch.empty(programs, device=source.device)
    _read[(programs,)](source, out, blocks, BLOCK=BLOCK, num_warps=8)
    return out
