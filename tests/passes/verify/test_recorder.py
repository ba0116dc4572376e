"""What one call does to memory, as a single run shows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from fx_partition.passes.capture.fake_tensors import new_fake_mode
from fx_partition.passes.verify.recorder import Seen, see


def seen(function: Callable[..., Any]) -> Seen:
    mode = new_fake_mode(None)
    with mode:
        x = torch.empty(4, 4)
    return see(function, (x,), {}, mode)


def test_results_in_memory_of_their_own() -> None:
    found = seen(lambda x: (x + 1, (x[0] * 2).t()))
    assert found.results == (64, 16) and not found.draws
    assert found.sizes == found.effect.sizes and len(found.effect.outputs) == 2


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.mul_(2),  # a write
        lambda x: x.t(),  # a view
        lambda x: (x + 1, x),  # the operand itself
        lambda x: (x * 2).chunk(2),  # results that share memory
        lambda x: x.t_() + 1,  # changed metadata
        lambda x: x.requires_grad_() + 1,  # the same, and no operator says so
    ],
)
def test_other_calls_have_no_results_of_their_own(call: Callable[[torch.Tensor], Any]) -> None:
    assert seen(call).results is None


def test_random_numbers_are_seen() -> None:
    assert seen(lambda x: F.dropout(x, 0.5)).draws
    assert not seen(lambda x: F.dropout(x, 0.0)).draws
