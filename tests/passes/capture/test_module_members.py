"""All tensors of a module are found, and can be moved to another module."""

import torch
from torch import nn

from fx_partition.passes.capture.module_members import all_tensors, hand_over, members


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("unsaved", torch.ones(2), persistent=False)


def test_a_tied_weight_comes_once_or_under_each_name() -> None:
    model = Tied()
    assert [*all_tensors(model)] == ["first.weight", "kept", "unsaved"]
    every = all_tensors(model, every_name=True)
    assert [*every] == ["first.weight", "second.weight", "kept", "unsaved"]
    assert every["first.weight"] is every["second.weight"]


def test_members_are_those_of_the_module_itself() -> None:
    assert [name for name, _ in members(Tied())] == ["kept", "unsaved", "first", "second"]


def test_what_is_handed_over_has_the_same_state_dict() -> None:
    model, target = Tied(), nn.Module()
    hand_over(model, target)
    assert target.state_dict().keys() == model.state_dict().keys()
    assert all(a is b for a, b in zip(all_tensors(model).values(), all_tensors(target).values(), strict=True))
    assert "unsaved" in dict(target.named_buffers())
    assert "unsaved" not in target.state_dict()
