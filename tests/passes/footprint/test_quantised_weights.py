"""Quantised weights count by the bytes that they hold; plans are those of the same arithmetic on plain buffers."""

from __future__ import annotations

import copy

import pytest
import torch
from quantised import ALL, TORCHAO, example, held_bytes, quantised
from torch import nn

import fx_partition
from fx_partition.backends.measure.peak_allocation import allocated_bytes
from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.capture.tensor_subclasses import plain_tensors
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.footprint.weight_storage import find_weights


@pytest.mark.parametrize("kind", ALL)
def test_planned_weights_are_the_bytes_held_and_a_split_is_equal(kind: str) -> None:
    model, x = quantised(kind), example()
    plan = fx_partition.plan(model, x, devices=2, order="trace")
    assert sum(p.weight_bytes for p in plan.partitions) == pytest.approx(held_bytes(model), rel=0.01)
    assert len({p.weight_bytes for p in plan.partitions}) == 1  # two layers of four in each
    assert fx_partition.verify(plan, model, x) == []
    split = fx_partition.split(model, x, plan=plan)
    assert torch.equal(split(x), model(x))
    assert split.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("footprint", ["peak", "fused"])
@pytest.mark.parametrize("kind", TORCHAO)
def test_as_many_partitions_as_with_unwrapped_weights(kind: str, footprint: str) -> None:
    model, x = quantised(kind), example()
    unwrap = pytest.importorskip("torchao.utils").unwrap_tensor_subclass
    unwrapped = unwrap(copy.deepcopy(model))
    for budget in ("340KiB", "700KiB"):
        plans = [
            fx_partition.plan(m, x, cache_bytes=budget, footprint=footprint, order="trace") for m in (model, unwrapped)
        ]
        assert len({plan.num_partitions for plan in plans}) == 1
        assert len({tuple(p.total_bytes for p in plan.partitions) for plan in plans}) == 1


def test_a_model_that_fits_by_what_it_holds_is_one_partition() -> None:
    """Four layers of 64 KiB and scales, that look like 1 MiB of float32, in less than half of that."""
    model, x = quantised("Int8DynamicActivation"), example()
    plan = fx_partition.plan(model, x, cache_bytes="300KiB")
    assert plan.num_partitions == 1
    simulated = fx_partition.simulate(model, x, plan=plan, device="H100-SXM")
    assert len(simulated.stages) == 1
    assert "Fits one device" in fx_partition.report(plan)


@pytest.mark.parametrize("kind", ALL)
def test_what_eager_allocates_for_a_layer_is_what_is_planned(kind: str) -> None:
    """The dequantised weight above all. The model itself keeps what its ``forward`` has a variable for."""
    model, x = quantised(kind, layers=1), example()
    split = fx_partition.split(model, x, cache_bytes="1GiB")
    (partition,) = split.plan.partitions
    with torch.no_grad():
        split(x)
        allocated = allocated_bytes(lambda: split(x), torch.device("cpu"))
    assert allocated <= partition.own_bytes <= 1.01 * allocated + 4096


def test_inner_tensors_of_the_exported_graph_are_weights() -> None:
    model, x = quantised("Int8WeightOnly"), example()
    captured = capture(model, x)
    memory = analyze_memory(captured)
    assert {"0.weight.qdata", "0.weight.scale", "3.weight.qdata"} <= set(memory.weight_names)
    assert not any("access_subclass" in step.node for step in memory.steps)
    split = fx_partition.split(model, x, devices=2, order="trace")
    for partition in (split.partition_0, split.partition_1):  # no partition is passed the weights of another
        inner = [n for n in partition.graph.find_nodes(op="placeholder") if "access_subclass" in n.name]
        assert len(inner) == 4


def test_a_graph_that_reads_whole_subclasses_is_planned_and_checked_alike() -> None:
    """A graph of torch.fx calls linear layers on subclasses, as Dynamo's do."""
    model, x = quantised("Int8WeightOnly"), example()
    graph = torch.fx.symbolic_trace(model)
    plan = fx_partition.plan(graph, x, devices=2)
    assert sum(p.weight_bytes for p in plan.partitions) == held_bytes(model)
    assert fx_partition.verify(plan, graph, x) == []
    assert torch.equal(fx_partition.split(graph, x, plan=plan)(x), model(x))


def test_subclasses_that_share_inner_tensors_are_one_weight() -> None:
    one, two, three = (layer.weight for layer in quantised("Int8WeightOnly", layers=3))
    tied = nn.Parameter(one.detach(), requires_grad=False)
    found = find_weights({key: (key, tensor) for key, tensor in {"a": one, "b": two, "c": tied}.items()})
    assert found.of["a"] == found.of["c"] != found.of["b"]
    assert found.bytes[found.of["a"]] == sum(plain.nbytes for plain in plain_tensors(one))
    two.scale, three.scale = one.scale, one.scale
    found = find_weights({key: (key, tensor) for key, tensor in {"a": one, "b": two, "c": three}.items()})
    assert len(found.bytes) == 1  # what they share counts once
    distinct = {plain.data_ptr(): plain.nbytes for tensor in (one, two, three) for plain in plain_tensors(tensor)}
    assert found.bytes[0] == sum(distinct.values())


@pytest.mark.parametrize("kind", ["Int8WeightOnly", "int8 buffers"])
def test_weights_that_are_loaded_after_the_split_are_seen(kind: str) -> None:
    model, other, x = quantised(kind, layers=2), quantised(kind, layers=2), example()
    with torch.no_grad():
        other[0].bias += 1
        plain_tensors(other[1].weight)[0].neg_()
    split = fx_partition.split(model, x, devices=2, order="trace")
    assert not torch.equal(split(x), other(x))
    model.load_state_dict(other.state_dict())
    assert torch.equal(split(x), other(x))


class Scaled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * 0.5


def test_parametrized_weights() -> None:
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4))).eval()
    for layer in model:
        torch.nn.utils.parametrize.register_parametrization(layer, "weight", Scaled())
    x = torch.randn(4, 64)
    plan = fx_partition.plan(model, x, devices=2, order="trace")
    assert sum(p.weight_bytes for p in plan.partitions) == held_bytes(model)
    split = fx_partition.split(model, x, plan=plan)
    assert torch.equal(split(x), model(x))
    with torch.no_grad():
        model[2].parametrizations.weight.original.data = torch.randn(64, 64)
    assert torch.equal(split(x), model(x))
