"""Weights move to the first stage that copies them, and tensors that share memory move together or not at all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fx_partition.backends.weights.lazy_weights import give_memory, is_lazy, make_lazy
from fx_partition.backends.weights.moved_weights import Moves
from fx_partition.common.errors import PartitionError

CPU = torch.device("cpu")


def test_a_weight_of_several_stages_moves_to_the_first() -> None:
    tied, own, constant = torch.zeros(4), torch.zeros(4), torch.zeros(4)
    moves = Moves({"embed.weight": tied, "head.weight": tied, "own": own})
    assert moves.to_stages([[], [tied, constant], [own, tied]]) == [set(), {id(tied)}, {id(own)}]


def test_what_the_graph_returns_stays() -> None:
    returned, other = torch.zeros(4), torch.zeros(4)
    moves = Moves({"returned": returned, "other": other}, stays=[returned])
    assert moves.to_stages([[returned, other]]) == [{id(other)}]


def test_views_in_one_stage_move_together() -> None:
    whole = torch.zeros(8)
    half = whole[:4]
    assert Moves({"whole": whole, "half": half}).to_stages([[whole, half]]) == [{id(whole), id(half)}]


@pytest.mark.parametrize(
    ("stages", "stays", "found"),
    [
        (lambda whole, half: [[whole], [half]], [], r"whole \(to stage 0\), half \(to stage 1\)"),
        (lambda whole, half: [[half]], [], r"whole \(stays\), half \(to stage 0\)"),
        (lambda whole, half: [[whole, half]], ["half"], r"whole \(to stage 0\), half \(stays\)"),
        (lambda whole, half: [[whole, half, whole[2:]]], [], r"half \(to stage 0\), a constant \(stays\)"),
    ],
    ids=["two stages", "one unused", "one returned", "a constant"],
)
def test_tensors_that_would_come_apart_are_named(stages, stays, found) -> None:  # type: ignore[no-untyped-def]
    whole = torch.zeros(8)
    names = {"whole": whole, "half": whole[:4]}
    moves = Moves(names, [names[name] for name in stays])
    with pytest.raises(PartitionError, match=f"{found}.*clone"):
        moves.to_stages(stages(whole, names["half"]))


def test_views_that_no_stage_copies_are_nobody_s_business() -> None:
    whole, other = torch.zeros(8), torch.zeros(4)
    assert Moves({"whole": whole, "half": whole[:4], "other": other}).to_stages([[other]]) == [{id(other)}]


def test_a_weight_with_other_memory_is_the_same_parameter_and_not_lazy() -> None:
    source = torch.arange(8.0)
    weight = make_lazy(nn.Parameter(torch.empty(8)), source, CPU, ours=False)
    assert is_lazy(weight)
    memory = source.clone()
    give_memory(weight, memory)
    assert not is_lazy(weight) and isinstance(weight, nn.Parameter) and weight.requires_grad
    memory[3] = 30
    assert weight[3] == 30 and source[3] == 3


def written(weight: Tensor) -> bool:
    """Whether a write into the weight shows in its version, as before it was given other memory."""
    before = weight._version
    with torch.no_grad():
        weight.add_(1)
    return weight._version > before


def test_a_write_into_a_moved_weight_is_counted() -> None:
    weight = nn.Parameter(torch.zeros(4))
    assert written(weight)
    give_memory(weight, torch.ones(4))
    assert written(weight) and weight[0] == 2
