"""Boundaries between modules: where they may be, what stays whole, and that no other boundaries are better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from chains import brute_footprint, brute_received, chains
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fx_partition import PartitionError
from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.constraints.atoms import Atoms, find_atoms
from fx_partition.passes.constraints.module_boundaries import at_modules, between_pieces, read_boundaries
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.partitioner.chain import Chain
from fx_partition.passes.partitioner.dp import dp

X = torch.zeros(2, 4)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.inner(x)) + x


class Net(nn.Module):
    """A stem, three blocks of which the second is called twice in a row, and operators of the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.layers = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x * 2) * 3
        x = self.layers[1](self.layers[0](x))
        return self.layers[2](self.layers[1](x)).exp()


def pieces(model: nn.Module, boundaries: Any) -> list[int]:
    """How many nodes each atom has."""
    captured = capture(model, (X,))
    memory = analyze_memory(captured)
    atoms = at_modules(captured, memory, find_atoms(captured, memory), read_boundaries(boundaries))
    return np.diff(atoms.starts).tolist()


def traced(model: nn.Module) -> nn.Module:
    return torch.fx.symbolic_trace(model)


@pytest.mark.parametrize("trace", [lambda model: model, traced])
def test_a_block_is_whole_and_the_model_s_own_nodes_go_with_what_is_before_them(trace: Any) -> None:
    model = trace(Net())
    # mul, stem, mul | layers.0 | layers.1, twice | layers.2, exp
    assert pieces(model, "modules") == [3, 3, 6, 4]
    assert pieces(model, "nodes") == [1] * 16
    # Without a block that stays whole its own nodes go with its inner module.
    assert pieces(model, ["layers.2"]) == [3, 3, 6, 4]


def test_the_model_itself_may_stay_whole() -> None:
    assert pieces(Net(), ["Net"]) == [16]


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({name: nn.Sequential(Block(), Block()) for name in ("a", "b")})

    def forward(self, x: Tensor) -> Tensor:
        return self.parts["b"](self.parts["a"](x))


@pytest.mark.parametrize(
    ("boundaries", "sizes"),
    [
        ("modules", [3, 3, 3, 3]),
        (["Sequential"], [6, 6]),
        (nn.Sequential, [6, 6]),
        ([Block], [3, 3, 3, 3]),
        ("parts.a", [6, 3, 3]),
        (["parts.a", "torch.nn.modules.linear.Linear"], [6, 3, 3]),
        (["parts.b.1"], [3, 3, 3, 3]),
    ],
)
def test_modules_stay_whole_by_class_and_by_path(boundaries: Any, sizes: list[int]) -> None:
    assert pieces(Deep(), boundaries) == sizes


def test_a_name_that_there_is_not_is_named_with_what_is_near() -> None:
    with pytest.raises(PartitionError, match=r"boundaries names 'Blok', .* near it are 'Block'"):
        pieces(Deep(), ["Block", "Blok"])
    with pytest.raises(PartitionError, match=r"'part\.a'.*'parts\.a'"):
        pieces(Deep(), "part.a")
    with pytest.raises(PartitionError, match=r"there are the classes 'Deep', 'Sequential', 'Block', 'Linear'$"):
        pieces(Deep(), ["Zzyzx"])
    with pytest.raises(PartitionError, match=r"names 'torch\.nn\.modules\.conv\.Conv2d'"):
        pieces(Deep(), [nn.Conv2d])


@pytest.mark.parametrize("wrong", [3, [], [3], [""], [int], None, {"a": 1}])
def test_what_is_no_name_of_modules_is_refused(wrong: Any) -> None:
    with pytest.raises(PartitionError, match="is neither"):
        read_boundaries(wrong)


def test_a_graph_without_modules_is_refused() -> None:
    graph = torch.fx.Graph()
    graph.output(graph.call_function(torch.relu, (graph.placeholder("x"),)))
    bare = torch.fx.GraphModule(nn.Module(), graph)
    assert pieces(bare, "nodes") == [1]
    with pytest.raises(PartitionError, match=r'^boundaries=.modules. .* no node of this graph says .*"nodes"$'):
        pieces(bare, "modules")


def test_a_piece_stays_whole_where_other_steps_run_between_its_own() -> None:
    atoms = Atoms((0, 2, 1, 3, 4), (0, 1, 2, 3, 4, 5))  # step 2 was moved before step 1
    assert between_pieces(atoms, ["a", "a", "b", "b", "c"]).starts == (0, 4, 5)
    assert between_pieces(atoms, ["a", "a", "b", "a", "c"]).starts == (0, 3, 4, 5)


def best(chain: Chain, places: Sequence[int], budget: int) -> tuple[int, int, int]:
    """The fewest partitions, the smallest maximum and the fewest bytes received, of all boundaries among places."""
    found = []
    for number in range(len(places) + 1):
        for cut in combinations(places, number):
            parts = list(zip((0, *cut), (*cut, chain.num_steps), strict=True))
            sizes = [brute_footprint(chain, a, b) for a, b in parts]
            if max(sizes) <= budget:
                found.append((len(parts), max(sizes), sum(brute_received(chain, a, b) for a, b in parts)))
    return min(found)


@settings(max_examples=300, deadline=None)
@given(chains(max_atoms=7), st.data())
def test_no_boundaries_between_modules_are_better(chain: Chain, data: st.DataObject) -> None:
    units = data.draw(st.lists(st.sampled_from("abc"), min_size=chain.num_steps, max_size=chain.num_steps))
    starts = tuple(chain.atom_start.tolist())
    coarse = replace(
        chain,
        atom_start=np.array(between_pieces(Atoms(tuple(range(chain.num_steps)), starts), units).starts),
        atom_key=None,
    )
    places = [t for t in starts[1:-1] if units[t] != units[t - 1]]
    ends = [0, *places, chain.num_steps]
    alone = max(brute_footprint(chain, a, b) for a, b in pairwise(ends))
    whole = brute_footprint(chain, 0, chain.num_steps)
    budget = data.draw(st.integers(alone, max(alone, whole)))
    parts = list(pairwise(coarse.atom_start[dp(coarse, budget)].tolist()))
    sizes = [brute_footprint(chain, a, b) for a, b in parts]
    made = (len(parts), max(sizes), sum(brute_received(chain, a, b) for a, b in parts))
    assert made == best(chain, places, budget)
