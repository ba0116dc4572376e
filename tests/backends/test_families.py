"""Acceptance: models of the zoo, compiled by the backend's name, equal eager for every batch, in one compile."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch._dynamo.utils import counters
from zoo import FAMILIES, Family, Inputs, mark_batch

from fx_partition.common.errors import PartitionWarning
from fx_partition.report.compiled_plans import compiled_graphs

QUICK = ["mlp"]
QUICK_BACKWARD = ["mlp"]
SLOW_BACKWARD = ["llama", "gpt2", "unet", "mixtral", "transformer_encoder", "t5"]
# The largest difference to eager, relative to the largest value: float32 in another order of summation.
TOLERANCE = 2e-5
GRADIENT_TOLERANCE = 1e-4


def quick_and_slow(quick: list[str], everything: list[str]) -> list[Any]:
    rest = [name for name in everything if name not in quick]
    return [*quick, *(pytest.param(name, marks=pytest.mark.slow) for name in rest)]


def budget(model: nn.Module, share: float = 0.3) -> int:
    """Bytes for less than a third of the weights, so that three partitions are the least that can hold them."""
    tensors = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in model.parameters()}
    return int(sum(tensors.values()) * share)


def error(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference, relative to the largest value of its tensor."""
    assert [t.shape for t in found] == [t.shape for t in expected]
    assert [t.dtype for t in found] == [t.dtype for t in expected]
    pairs = zip(found, expected, strict=True)
    return max(((a - b).abs().max() / b.abs().max().clamp_min(1e-9)).item() for a, b in pairs)


@contextlib.contextmanager
def no_fallback() -> Iterator[None]:
    """Fails where the backend could not compile the partitions apart, or an atom takes in much of the graph."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", PartitionWarning)
        # The budgets are small, and later batches are larger than the first.
        warnings.filterwarnings("ignore", "a call is beyond the sizes", PartitionWarning)
        yield


def assert_cut(model: nn.Module, at_least: int = 3) -> None:
    graphs = compiled_graphs(model)
    assert len(graphs) == 1, [graph.plan.num_partitions for graph in graphs]
    plan = graphs[-1].plan
    assert plan.num_partitions >= at_least
    assert len(graphs[-1].stages) == plan.num_partitions
    assert all(partition.nodes for partition in plan.partitions)


def compile_family(family: Family, model: nn.Module, **options: Any) -> Callable[..., Any]:
    return torch.compile(model, backend="l2partition", options={"cache_bytes": budget(model)}, **options)


def call(family: Family, model: Callable[..., Any], inputs: Inputs) -> list[Tensor]:
    args, kwargs = inputs
    return family.output(model(*args, **kwargs))


def _settings(family: Family) -> Any:
    return torch._dynamo.config.patch(**family.dynamo_config)


@pytest.mark.parametrize("name", quick_and_slow(QUICK, list(FAMILIES)))
def test_forward_equals_eager_at_two_batches_with_one_compile(name: str) -> None:
    family = FAMILIES[name]
    model = family.build()
    counters.clear()
    with _settings(family), torch.no_grad(), no_fallback():
        compiled = compile_family(family, model)
        for batch in (2, 5):
            found = call(family, compiled, mark_batch(family.inputs(batch)))
            expected = call(family, model, family.inputs(batch))
            assert error(found, expected) <= TOLERANCE
    assert_cut(model)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.dynamic])
def test_dynamic_compiles_once_and_is_as_close_as_inductor(name: str) -> None:
    """``dynamic=True``: every batch in one compile, and no further from eager than inductor itself is."""
    if name == "swin":
        pytest.skip(FAMILIES[name].why)
    family = FAMILIES[name]
    model, alone = family.build(), family.build()
    batches = (2, 3)
    expected = {batch: call(family, model, family.inputs(batch)) for batch in batches}
    errors: dict[str, float] = {}
    with _settings(family), torch.no_grad(), no_fallback():
        inductor = torch.compile(alone, backend="inductor", dynamic=True)
        errors["inductor"] = max(
            error(call(family, inductor, family.inputs(batch)), expected[batch]) for batch in batches
        )
        torch._dynamo.reset()
        counters.clear()
        compiled = compile_family(family, model, dynamic=True)
        errors["l2partition"] = max(
            error(call(family, compiled, family.inputs(batch)), expected[batch]) for batch in batches
        )
    assert_cut(model)
    assert counters["stats"]["unique_graphs"] == 1
    # Both are float32 in some order of summation: the same size of error, not the same bits.
    assert errors["l2partition"] <= max(2 * errors["inductor"], 1e-6), errors


def gradients(family: Family, model: nn.Module, run: Callable[..., Any], inputs: Inputs) -> Mapping[str, Tensor]:
    model.zero_grad()
    loss = sum(tensor.float().square().mean() for tensor in call(family, run, inputs) if tensor.requires_grad)
    assert isinstance(loss, Tensor)
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "name",
    quick_and_slow(QUICK_BACKWARD, QUICK_BACKWARD + SLOW_BACKWARD),
)
def test_gradients_equal_eager(name: str) -> None:
    family = FAMILIES[name]
    assert family.train
    model = family.build().train()
    twin = copy.deepcopy(model)
    counters.clear()
    with _settings(family), no_fallback():
        compiled = compile_family(family, model)
        for batch in (2, 3):
            found = gradients(family, model, compiled, mark_batch(family.inputs(batch)))
            expected = gradients(family, twin, twin, family.inputs(batch))
            assert found.keys() == expected.keys() and expected
            for key, gradient in expected.items():
                scale = gradient.abs().max().clamp_min(1e-6)
                assert ((found[key] - gradient).abs().max() / scale).item() <= GRADIENT_TOLERANCE, key
            for (key, buffer), (_, other) in zip(model.named_buffers(), twin.named_buffers(), strict=True):
                assert torch.allclose(buffer.float(), other.float(), atol=1e-5), key  # batch norm statistics
    assert_cut(model)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("name", ["mlp"])
def test_the_checks_above_can_fail(name: str) -> None:
    """A budget for everything gives one partition, and the check for three must say so."""
    family = FAMILIES[name]
    model = family.build()
    with torch.no_grad():
        compiled = torch.compile(model, backend="l2partition", options={"cache_bytes": "1GiB"})
        call(family, compiled, family.inputs(2))
    with pytest.raises(AssertionError):
        assert_cut(model)
