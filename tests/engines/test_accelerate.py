"""accelerate itself takes a plan's device map: each weight is on its device, and no step finds two devices."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from language_models import WIDTH, Language, whole_layers, words
from torch import nn

import fx_partition
from fx_partition import PartitionError
from fx_partition.engines.module_stages import heads

accelerate = pytest.importorskip("accelerate")

#: Devices by number: a step that finds tensors on both raises an error, as it does on two GPUs. They are no names, as
#: accelerate takes "cpu" for the place of what has none.
DEVICES = (torch.device("cpu"), torch.device("meta"))


def dispatched(model: nn.Module, found: dict[str, Any]) -> Any:
    """The model as accelerate puts it on the two devices, after its own check of the map."""
    from accelerate.utils import check_device_map

    check_device_map(model, found)
    on_devices = {path: DEVICES[device] for path, device in found.items()}
    result: Any = accelerate.dispatch_model(copy.deepcopy(model), on_devices)
    result._hf_hook.io_same_device = False  # nothing can be copied from the second device back to that of the input
    return result


def device_of(found: dict[str, Any], name: str) -> torch.device:
    (path,) = [path for path in found if path in heads(name)]
    return DEVICES[found[path]]


def test_weights_are_where_the_map_says_and_the_model_runs() -> None:
    model = Language().eval()
    found = whole_layers(model, 2).to("accelerate")
    assert list(found) == ["embed", *(f"layers.{i}" for i in range(6)), "norm", "head"]
    assert list(found.values()) == sorted(found.values()) and found["embed"] == 0 and found["head"] == 1
    placed = dispatched(model, found)
    for name, tensor in [*placed.named_parameters(remove_duplicate=False), *placed.named_buffers()]:
        assert tensor.device == device_of(found, name), name
    assert placed(words()).shape == (2, 8, 64)
    here = accelerate.dispatch_model(copy.deepcopy(model), dict.fromkeys(found, DEVICES[0]), force_hooks=True)
    assert torch.equal(here(words()), model(words()))


def test_weights_that_are_tied_across_devices_are_refused_as_accelerate_ties_them_again() -> None:
    model = Language(tied=True).eval()
    with pytest.raises(PartitionError, match=r"stages 0 and 1 read '\w+\.weight'.*untie"):
        whole_layers(model, 2).to("accelerate")
    refused = whole_layers(Language(), 2).to("accelerate")
    assert refused["head"] == 1 and dispatched(model, refused).head.weight.device == DEVICES[0]


def test_fit_has_the_same_map() -> None:
    model = Language().eval()
    answer = fx_partition.fit(model, words(), devices=2)
    found = answer.to("accelerate")
    assert [[path for path in found if found[path] == device] for device in (0, 1)] == [
        list(device.modules) for device in answer.devices
    ]
    assert dispatched(model, found)(words()).shape == (2, 8, 64)


def test_one_partition_is_the_model() -> None:
    assert whole_layers(Language(), 1).to("accelerate") == {"": 0}


def test_named_devices_are_in_the_map() -> None:
    plan = whole_layers(Language(), ["cuda:1", "cuda:0"])
    assert list(plan.to("accelerate").values())[:: len(plan.to("accelerate")) - 1] == ["cuda:1", "cuda:0"]


def test_a_cut_layer_is_named_with_the_way_out() -> None:
    model = Language()
    plan = fx_partition.plan(model, words(), devices=9)
    with pytest.raises(PartitionError, match=r"cuts the module 'layers\.\d'.*accelerate.*fx_partition\.fit"):
        plan.to("accelerate")


class Loose(Language):
    """With a parameter and a buffer of its own, and modules without steps of which one is read."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.ones(WIDTH))
        self.register_buffer("unread", torch.zeros(2))
        self.left_out = nn.Linear(3, 3)
        self.last = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x) + self.shift
        for layer in self.layers:
            x = layer(x)
        return nn.functional.linear(self.norm(x), self.last.weight)


def test_weights_outside_of_modules_with_steps_are_covered() -> None:
    model = Loose().eval()
    plan = whole_layers(model, 2)
    found = plan.to("accelerate")
    assert (found["shift"], found["unread"], found["left_out"], found["last"]) == (0, 0, 0, 1)
    placed = dispatched(model, found)
    assert placed.shift.device == DEVICES[0]
    placed(words())


class Skip(nn.Module):
    """Adds what it made before two large modules to what it has behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = self.first(x)
        return self.third(self.second(kept)) + kept


def test_a_step_that_would_find_two_devices_is_refused_and_accelerate_fails_there() -> None:
    model, x = Skip().eval(), torch.zeros(2, WIDTH)
    plan = fx_partition.plan(model, x, devices=2)
    with pytest.raises(PartitionError, match=r"add.*a step of the model itself.*two devices"):
        plan.to("accelerate")
    ends = plan.modules.runs[-1].stage
    assert ends == 1
    with pytest.raises(RuntimeError, match="device"):  # torch's own words, so the refusal is not a fear
        dispatched(model, {"first": 0, "second": 0, "third": 1})(x)


class Shared(nn.Module):
    """Calls modules twice: one with weights, or one without."""

    def __init__(self, again: nn.Module) -> None:
        super().__init__()
        self.again = again
        self.a, self.b, self.c = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.c(self.again(self.b(self.again(self.a(x)))))
        return out


def test_a_module_that_two_stages_call_is_left_out_if_it_has_no_weights() -> None:
    x = torch.zeros(2, WIDTH)
    model = Shared(nn.ReLU()).eval()
    plan = fx_partition.plan(model, x, devices=3)
    found = plan.to("accelerate")
    assert found == {"a": 0, "b": 1, "c": 2}
    dispatched(model, {path: min(device, 1) for path, device in found.items()})(x)
    model = Shared(nn.LayerNorm(WIDTH)).eval()
    plan = fx_partition.plan(model, x, devices=3)
    with pytest.raises(PartitionError, match=r"stages \d and \d call the module 'again'"):
        plan.to("accelerate")


class Scaled(nn.Module):
    """Its own parameter is read behind its modules."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.b(self.a(x)) * self.scale
        return out


def test_a_parameter_of_the_model_itself_must_be_read_on_the_first_device() -> None:
    model, x = Scaled().eval(), torch.zeros(2, WIDTH)
    plan = fx_partition.plan(model, x, devices=2)
    with pytest.raises(PartitionError, match=r"stage 1 reads 'scale'.*first device"):
        plan.to("accelerate")
