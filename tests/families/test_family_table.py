"""The table has a row for every family, and the checks can fail."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from . import FAMILIES, table
from .check import check_backend, check_split, settings
from .family import Family
from .held import hold
from .matter import assert_inputs_matter, assert_weights_matter

#: Families of two kinds that take a second or two.
QUICK = ["mixer", "graph_convolution"]


def test_every_family_has_passed_each_of_its_checks() -> None:
    rows = table.read().rows
    assert list(rows) == list(FAMILIES) and len(rows) >= 100
    for name, family in FAMILIES.items():
        assert (rows[name]["from"], rows[name]["why not as others"]) == (family.source, family.why)
        for check in table.CHECKS:
            wanted = r"pass \d+(\+\d+)*" if table.is_for(check, family) else "-"
            assert re.fullmatch(wanted, rows[name][check]), (name, check, rows[name][check])


def test_a_family_that_is_not_cut_says_why() -> None:
    for name, row in table.read().rows.items():
        for check in table.CHECKS:
            if re.fullmatch(r"pass 1(\+1)*", row[check]):
                assert table.warnings_of(row, check), (name, check)


def test_what_must_be_compiled_is() -> None:
    compiled = {name for name, family in FAMILIES.items() if family.by_inductor}
    assert len(compiled) >= 15
    wanted = "mamba2 sam mimi falcon_mamba jamba bart superpoint flex_attention"
    assert set(wanted.split()) <= compiled
    assert sum(family.by_pipeline for family in FAMILIES.values()) >= 10


def test_what_is_other_than_usual_has_a_reason() -> None:
    for name, family in FAMILIES.items():
        assert bool(family.why) == (not family.bitwise or not family.by_aot_eager), name


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.by_aot_eager])
def test_aot_eager_alone_stops_where_the_backend_is_not_run_by_it(name: str) -> None:
    family = FAMILIES[name]
    args, kwargs = family.inputs(0)
    with torch.no_grad(), settings(family), pytest.raises(Exception, match="stride"):
        torch.compile(family.build(), backend="aot_eager")(*args, **kwargs)


@pytest.mark.parametrize("name", QUICK)
def test_two_families_hold(name: str) -> None:
    assert_inputs_matter(FAMILIES[name])
    assert_weights_matter(FAMILIES[name])
    assert check_split(FAMILIES[name]).partitions[0] >= 3
    assert check_backend(FAMILIES[name]).partitions[0] >= 3


def test_what_is_not_as_in_the_table_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    mixer = table.read().rows["mixer"]

    def known(where: str, **cells: str) -> None:
        row = {**mixer, **cells}
        monkeypatch.setattr(table, "read", lambda: table.Table(where, {"mixer": row}))

    known(table.here(), split="pass 99")
    with pytest.raises(AssertionError, match="pass 99"):
        hold("split", "mixer")
    known(table.here(), warnings="split: it could not be planned")
    with pytest.raises(AssertionError, match="could not be planned"):
        hold("split", "mixer")
    known("another processor", split="pass 99")
    hold("split", "mixer")


class Careless(nn.Module):
    """A bias that is multiplied by next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.bias = nn.Linear(8, 8), nn.Parameter(torch.zeros(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + 1e-6 * self.bias


def test_a_weight_that_does_not_matter_is_found() -> None:
    family = Family("careless", Careless, lambda rng: (torch.randn(2, 8, generator=rng),))
    with pytest.raises(AssertionError, match="other values of bias"):
        assert_weights_matter(family)


def test_an_output_that_ignores_its_inputs_is_found() -> None:
    family = Family("constant", lambda: nn.Linear(8, 8), lambda rng: (torch.ones(2, 8),))
    with pytest.raises(AssertionError, match="other inputs change output 0"):
        assert_inputs_matter(family)
