"""The result of a simulation as text and as plain data."""

from __future__ import annotations

import json

import pytest

from fx_partition.simulator.event_loop import Span
from fx_partition.simulator.result import Simulation, StageUse


class _Uncopied:
    """Stands for a price, of which a long simulation has very many."""

    def __deepcopy__(self, memo: object) -> None:
        pytest.fail("copied")


def _found() -> Simulation:
    span = Span("run", 0, 0, 0, "device 0", 0.0, 1.0, _Uncopied())  # type: ignore[arg-type]
    return Simulation(("V100",), 1, 8, 10.0, 0.1, 2.0, 4.0, (StageUse((0,), 0.1, 0.0, 1.0, 2.0, "launch"),), (span,))


def test_plain_data_has_all_but_the_spans_which_are_not_copied() -> None:
    data = _found().to_dict()
    assert list(data) == [
        "devices", "microbatches", "steps", "throughput", "latency", "offchip_bytes", "first_offchip_bytes", "stages"
    ]  # fmt: skip
    assert data["stages"][0]["bound"] == "launch" and json.loads(_found().report("json"))["devices"] == ["V100"]


def test_an_unknown_format_names_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="'html' is not known; choose from text, markdown, json"):
        _found().report("html")
    assert "10 runs a second" in _found().report() and "| launch" in _found().report("markdown")
