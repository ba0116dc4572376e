"""A model in the parts that torchtitan makes of a plan's names computes what the whole model computes."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from language_models import Language, whole_layers, words
from torch import nn

import fx_partition
from fx_partition import PartitionError


def part_of(model: nn.Module, names: list[str]) -> nn.Module:
    """A part by the rules in torchtitan's documentation: a copy without the children, and members of lists, not named.

    "layers.0" is a member of a list; "norm" is a child. A list keeps its named members in order, other children that
    are not named become None.
    """
    part = copy.deepcopy(model)
    for child, module in list(part.named_children()):
        if isinstance(module, nn.ModuleList):
            numbers = [int(found[1]) for name in names if (found := re.fullmatch(rf"{child}\.(\d+)", name))]
            setattr(part, child, nn.ModuleList(module[number] for number in numbers))
        elif child not in names:
            setattr(part, child, None)
    return part


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_the_parts_one_after_another_are_the_model(devices: int) -> None:
    model = Language().eval()
    plan = whole_layers(model, devices)
    names = plan.to("torchtitan")
    assert len(names) == plan.num_partitions == devices
    assert sorted(name for part in names for name in part) == sorted(
        ["embed", *(f"layers.{i}" for i in range(6)), "norm", "head"]
    )
    x: Any = words()
    for part in names:
        x = part_of(model, part)(x)
    assert torch.equal(x, model(words()))


def test_fit_has_the_same_parts() -> None:
    answer = fx_partition.fit(Language().eval(), words(), devices=3)
    assert answer.to("torchtitan") == [list(device.modules) for device in answer.devices]


def test_a_tied_weight_is_refused() -> None:
    with pytest.raises(PartitionError, match=r"read '(head|embed)\.weight'.*train its own copy.*to_pipeline_stages"):
        whole_layers(Language(tied=True), 2).to("torchtitan")


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = Language()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.model(x)
        return out


def test_a_child_that_is_cut_is_named() -> None:
    with pytest.raises(PartitionError, match=r"cuts the module 'model', and torchtitan takes whole"):
        whole_layers(Nested(), 2).to("torchtitan")


class Rooted(Language):
    """Reads the weight of a child that has no steps."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = super().forward(x)
        return x if self.last is None else x * self.last.weight.sum()


def test_a_child_without_steps_is_in_the_part_that_reads_its_weight() -> None:
    model = Rooted().eval()
    names = whole_layers(model, 2).to("torchtitan")
    assert [part.count("last") for part in names] == [0, 1]
    x: Any = words()
    for part in names:
        x = part_of(model, part)(x)
    torch.testing.assert_close(x, model(words()))
