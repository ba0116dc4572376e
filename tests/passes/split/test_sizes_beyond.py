"""A split module warns of the first call beyond the sizes for which its plan fits."""

from __future__ import annotations

import copy
import pickle
import re
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import fx_partition
from fx_partition.common.errors import PartitionError, PartitionWarning

MODEL = nn.Sequential(*[nn.Linear(64, 64) for _ in range(4)]).eval()
X = torch.randn(8, 64)
ROWS = {"input": {0: Dim("rows", min=2, max=4096)}}


def split(model: Any = MODEL, **options: Any) -> Any:
    return fx_partition.split(model, X, dynamic_shapes=ROWS, **{"cache_bytes": "40KiB", **options})


def messages(cut: Any, *rows: int) -> list[str]:
    """Call with these numbers of rows, and return the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in rows:
            x = torch.randn(number, 64)
            assert torch.equal(cut(x), MODEL(x))
    return [str(w.message) for w in caught if issubclass(w.category, PartitionWarning)]


@pytest.mark.parametrize("traced", ["module", "program", "symbolic_trace"])
def test_the_first_call_beyond_is_warned_of_once(traced: str) -> None:
    model: Any = MODEL
    if traced == "program":
        model = torch.export.export(MODEL, (X,), dynamic_shapes=ROWS)
    if traced == "symbolic_trace":
        model = torch.fx.symbolic_trace(MODEL)
    cut = split(model)
    most = cut.plan.largest("input.0")
    assert 8 < most < 4000
    assert messages(cut, 8, most) == []
    (text,) = messages(cut, most + 5, most + 5, most + 6, 8)
    over = [p.footprint(cut.plan.numbers({"input.0": most + 5})) - p.budget_bytes for p in cut.plan.partitions]
    spilled = sum(size for size in over if size > 0)
    assert f"input.0 is {most + 5} and may be at most {most}" in text
    assert float(re.findall(r"spilled ([0-9.]+) (?:KiB|bytes)", text)[0]) == pytest.approx(
        spilled if spilled < 1024 else spilled / 1024, abs=0.01
    )
    assert messages(cut, most + 5, most + 7) == []
    assert len(messages(split(model), most + 5)) == 1, "another module of the same plan warns by itself"


def test_the_way_out_that_the_warning_names_is_one() -> None:
    most = split().plan.largest("input.0")
    (text,) = messages(split(), most + 5)
    assert "split the model with bind= for such sizes" in text
    assert messages(split(bind={"input.0": most + 5}), 8, most + 5) == []


def test_no_warning_without_a_range() -> None:
    assert messages(split(cache_bytes=None, devices=2), 8, 4000) == []  # no budget was given
    assert split(cache_bytes="10KiB").plan.spill_bytes and messages(split(cache_bytes="10KiB"), 4000) == []
    with pytest.raises(PartitionError, match=r"size 5000 in dimension 0, .* to 4096"):
        split()(torch.randn(5000, 64))
    static = fx_partition.split(MODEL, X, cache_bytes="40KiB")
    assert messages(static, 8) == []


def test_a_saved_module_computes_the_same() -> None:
    cut = split(torch.fx.symbolic_trace(MODEL))
    loaded = pickle.loads(pickle.dumps(cut))
    most = cut.plan.largest("input.0")
    assert messages(loaded, 8, most + 5) == [], "saved code has no plan"
    assert len(messages(cut, most + 5)) == 1


def test_the_check_stays_in_copies_compilers_and_clean_graphs() -> None:
    cut = split()
    most = cut.plan.largest("input.0")
    assert "refuse_other_sizes([input_1]" in cut.code
    cut.graph.eliminate_dead_code()
    cut.recompile()
    assert "refuse_other_sizes" in cut.code
    assert len(messages(copy.deepcopy(cut), most + 5)) == 1
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error", PartitionWarning)
        x = torch.randn(most + 6, 64)
        fast = torch.compile(split(), backend="eager", fullgraph=True)
        assert torch.allclose(fast(x), MODEL(x), atol=1e-6)
        program = torch.export.export(split(), (X,), dynamic_shapes=({0: Dim("rows", min=2, max=4096)},))
    assert not any("refuse" in node.name for node in program.graph.nodes)
