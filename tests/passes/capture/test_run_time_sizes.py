"""Sizes without a number: known before the graph runs, bounded by the model, or guessed and reported as such."""

import warnings

import pytest
import sympy
import torch
from torch import nn
from torch.export import Dim

import fx_partition
from fx_partition import OversizeError, PartitionError, PartitionWarning, Plan
from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.capture.graph_symbols import numbers_from_inputs


class Picks(nn.Module):
    """Makes rows of 64 floats, as many as the data says.

    Args:
        most: the bound that the model checks; None where it checks none, "rows" for the rows of x.
    """

    def __init__(self, most=None):
        super().__init__()
        self.linear, self.most = nn.Linear(64, 64), most

    def forward(self, x, n):
        n = n.item()
        torch._check(n >= 2)
        if self.most is not None:
            torch._check(2 * n <= 2 * x.shape[0] + 3 if self.most == "rows" else n <= self.most)
        return self.linear(torch.ones(n, 64)).sum(0) + x


def exported(model, **options):
    return torch.export.export(model, (torch.randn(6, 64), torch.tensor(4)), **options)


def picks_plan(most=None, budget="1MiB", rows=None, **options):
    dynamic = {"dynamic_shapes": ({0: rows}, None)} if rows else {}
    return fx_partition.plan(exported(Picks(most), **dynamic), cache_bytes=budget, **options)


def rows_held(plan):
    """Return the number of rows of 64 floats that the fullest step of a plan holds, weights excluded."""
    (partition,) = plan.partitions
    return (partition.total_bytes - partition.weight_bytes) / 256


def test_a_size_takes_the_bound_that_the_model_checks():
    plan = picks_plan(most=100)
    (symbol,) = plan.symbols.unbacked
    assert plan.symbols.unbacked == {symbol: 100} and plan.assumed == {}
    assert plan.partitions == picks_plan(most=100, bind={symbol.name: 100}).partitions
    assert rows_held(plan) == 100 + 100 + 6, "what linear takes and makes, and x"
    assert rows_held(picks_plan(most=200)) - rows_held(plan) == 100 + 100


def test_a_bound_may_be_a_size_of_the_input():
    plan = picks_plan(most="rows", rows=Dim("rows", min=4, max=500))
    (symbol,) = plan.symbols.unbacked
    assert plan.numbers()[symbol] == 7, "2*n <= 2*6 + 3"
    assert plan.numbers({"x.0": 50})[symbol] == 51
    again = Plan.from_json(plan.to_json())
    assert again == plan and again.numbers({"x.0": 50})[symbol] == 51


def test_the_range_of_a_dimension_bounds_what_is_made_of_it():
    class Finds(nn.Module):
        def forward(self, x):
            return torch.nonzero(x).float() * 2

    program = torch.export.export(Finds(), (torch.ones(8),), dynamic_shapes=({0: Dim("n", min=2, max=300)},))
    plan = fx_partition.plan(program, cache_bytes="1MiB")
    assert list(plan.symbols.unbacked.values()) == [300]


def test_a_guess_is_named_in_the_report_and_goes_where_a_number_is_given():
    plan = picks_plan()
    ((name, number),) = plan.assumed.items()
    assert number == 8192
    text = fx_partition.report(plan)
    assert f"{name} = 8192, a guess" in text and "torch._check an upper bound" in text
    chosen = picks_plan(bind={name: 16})
    assert chosen.assumed == {} and "guess" not in fx_partition.report(chosen)
    assert Plan.from_json(plan.to_json()).assumed == plan.assumed


@pytest.mark.parametrize("option", [{"oversize": "error"}, {"devices": ["cpu"], "on_shortage": "error"}])
def test_nothing_is_impossible_by_a_guess(option):
    with pytest.warns(PartitionWarning, match=r"by a guess: u\d+, known only when the graph runs"):
        plan = picks_plan(budget="256KiB", **option)
    assert plan.spill_bytes > 0, "8192 rows of 64 floats alone are 2 MiB"
    with warnings.catch_warnings():
        warnings.simplefilter("error", PartitionWarning)
        assert picks_plan(budget="8MiB", **option).spill_bytes == 0


@pytest.mark.parametrize(
    ("option", "error"),
    [({"oversize": "error"}, OversizeError), ({"devices": ["cpu"], "on_shortage": "error"}, ValueError)],
)
def test_what_is_too_large_at_every_size_is_refused(option, error):
    with pytest.raises(error):
        picks_plan(budget="8KiB", **option)  # the weight has 16 KiB


@pytest.mark.parametrize("option", [{"oversize": "error"}, {"devices": ["cpu"], "on_shortage": "error"}])
def test_a_bound_is_not_a_guess(option):
    with pytest.raises(PartitionError):
        picks_plan(most=8192, budget="256KiB", **option)


def test_a_plan_with_a_bound_that_is_not_a_size_is_refused_by_the_path_of_the_field():
    text = picks_plan(most="rows", rows=Dim("rows", min=4, max=500)).to_json()
    plan = Plan.from_json(text)
    (symbol,) = plan.symbols.unbacked
    for bad in ("9**9**9", "no_symbol + 1", "1/0"):
        forged = text.replace('"bound": "', f'"bound": "{bad}')
        with pytest.raises(PartitionError, match=rf"symbols\.{symbol.name}\.bound"):
            Plan.from_json(forged)


def test_numbers_of_sizes_without_one_come_from_the_inputs():
    captured = []

    def look(gm, inputs):
        captured.append((gm, inputs))
        return gm.forward

    x = torch.randn(5, 3)
    torch._dynamo.decorators.mark_unbacked(x, 0)
    torch.compile(nn.ReLU(), backend=look)(x)
    ((gm, inputs),) = captured
    values = [node.meta["example_value"] for node in gm.graph.find_nodes(op="placeholder")]
    ((symbol, number),) = numbers_from_inputs(values, inputs).items()
    assert isinstance(symbol, sympy.Symbol) and number == 5
    assert capture(gm).example_numbers == {}, "nothing tells it where the graph is all there is"
