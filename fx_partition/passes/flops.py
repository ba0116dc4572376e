"""How many floating-point operations a graph takes: matrix products, convolutions and attention; the rest is small."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from .capture import Captured
from .refake import refake


def flops_of(captured: Captured) -> int:
    """Operations of one run of a graph with symbols, for the sizes of its trace. No guard is added to them.

    Example: of ``F.linear`` with 32 rows and a weight of [512, 256] 2 * 32 * 512 * 256.
    """
    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(display=False, custom_mapping={on_cpu: _attention})
    refake(captured, {}, counter)
    return int(counter.get_total_flops())


def _attention(query: torch.Size, key: torch.Size, *_: Any, **__: Any) -> int:
    """Both products of attention, from shapes [batch, heads, tokens, features]."""
    return 4 * query.numel() * key[-2]
