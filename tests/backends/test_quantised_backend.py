"""Compiled and pipelined models with quantised weights, and with LoRA: results, plans, and weights that change."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from quantised import ALL, BUFFERS, WIDTH, example, held_bytes, quantised
from torch import nn

import fx_partition
from fx_partition import PartitionError, PartitionWarning
from fx_partition.backends.weights.lazy_weights import fingerprint
from fx_partition.passes.capture.tensor_subclasses import plain_tensors
from fx_partition.passes.plan.plan import Plan
from fx_partition.report.compiled_plans import compiled_graphs

# They compile models by inductor, or run whole ones, for minutes.
pytestmark = pytest.mark.slow

QUICK = ("Int8WeightOnly", "4-bit lookup")


def compiled(model: nn.Module, **options: Any) -> Any:
    return torch.compile(model, backend="l2partition", options=options)


def plan_of(function: Any) -> Plan:
    (graph,) = compiled_graphs(function)
    return graph.plan


def budget(model: nn.Module, x: torch.Tensor, devices: int = 2) -> int:
    """Bytes for which a compiled model needs about as many devices."""
    return fx_partition.plan(model, x, devices=devices, order="trace").budget_bytes * 11 // 10


@pytest.mark.parametrize("kind", [k if k in QUICK else pytest.param(k, marks=pytest.mark.slow) for k in ALL])
def test_a_compiled_model_is_as_near_to_eager_as_inductors(kind: str) -> None:
    model, x = quantised(kind), example()
    function = compiled(model, cache_bytes=budget(model, x), order="trace")
    with torch.no_grad():
        found, expected, inductor = function(x), model(x), torch.compile(copy.deepcopy(model))(x)
    plan = plan_of(function)
    assert plan.num_partitions >= 2 or kind in BUFFERS  # of these one weight in float32 is more than half of it all
    assert sum(p.weight_bytes for p in plan.partitions) == pytest.approx(held_bytes(model), rel=0.01)
    assert (found - expected).abs().max() <= 2 * (inductor - expected).abs().max() + 1e-6


def test_stages_of_equal_subclasses_share_code_and_others_do_not() -> None:
    x = example()
    model = quantised("Float8WeightOnly", layers=3)
    model[2] = quantised("Int8WeightOnly", layers=1)[0]
    function = compiled(model, cache_bytes=1, order="trace", report=False)
    with torch.no_grad():
        assert torch.allclose(function(x), model(x), atol=1e-5)
    assert [p.code for p in plan_of(function).partitions] == [0, 0, 2]


@pytest.mark.slow
def test_footprint_fused_is_what_compiled_code_allocates() -> None:
    """Inductor writes the dequantised weight of a layer for the kernel of the product, and the next in its place."""
    model, x = quantised("Int8WeightOnly"), example()
    function = compiled(model, cache_bytes=budget(model, x), footprint="fused")
    with torch.no_grad():
        function(x)
    for partition in plan_of(function).partitions:
        assert partition.own_bytes == partition.allocated_bytes


@pytest.mark.parametrize("kind", [k if k == QUICK[0] else pytest.param(k, marks=pytest.mark.slow) for k in ALL])
def test_stages_of_a_pipeline_run_without_pythons_lock(kind: str) -> None:
    model, x = quantised(kind, layers=2), example()
    with warnings.catch_warnings():
        warnings.simplefilter("error", PartitionWarning)
        with fx_partition.pipeline(model, x, cache_bytes=budget(model, x), devices="cpu:threads") as pipe:
            results = list(pipe.map([x, 2 * x, -x]))
    for found, given in zip(results, (x, 2 * x, -x), strict=True):
        assert torch.allclose(found, model(given), atol=1e-5)


@pytest.mark.parametrize("kind", ["Int8WeightOnly", "int8 buffers"])
def test_weights_that_change_after_compiling_are_seen(kind: str) -> None:
    model, other, x = quantised(kind, layers=2), quantised(kind, layers=2), example()
    function = compiled(model, cache_bytes=budget(model, x), order="trace")
    with torch.no_grad():
        before = function(x)
        other[0].bias += 1
        plain_tensors(other[1].weight)[0].neg_()
        model.load_state_dict(other.state_dict())
        assert not torch.allclose(before, other(x), atol=1e-5)
        assert torch.allclose(function(x), other(x), atol=1e-5)
        model[0].bias.data = torch.zeros(WIDTH)
        assert torch.allclose(function(x), model(x), atol=1e-5)


def test_microbatches_of_a_weight_only_quantisation() -> None:
    model, x = quantised("Int8WeightOnly", layers=2), example()
    torch._dynamo.mark_dynamic(x, 0)
    function = compiled(model, cache_bytes=budget(model, x), microbatches=2)
    with torch.no_grad():
        assert torch.allclose(function(x), model(x), atol=1e-5)


def test_a_scale_over_all_rows_is_no_work_for_microbatches() -> None:
    """A linear layer keeps rows apart; this one's weight looks for one scale of all of them."""
    granularity = pytest.importorskip("torchao.quantization.granularity")
    model, x = quantised("Int8DynamicActivation", layers=2, granularity=granularity.PerTensor()), example()
    torch._dynamo.mark_dynamic(x, 0)
    with torch.no_grad(), pytest.raises(Exception, match="reduces over the batch"):
        compiled(model, cache_bytes="1MiB", microbatches=2)(x)


def test_ranks_compare_inner_tensors_and_checkpoints_of_subclasses_are_refused() -> None:
    model, other = quantised("Int8WeightOnly", layers=1), quantised("Int8WeightOnly", layers=1)
    weights = [{"w": m[0].weight} for m in (model, other)]
    assert fingerprint(weights[0]) == fingerprint(weights[1])
    with torch.no_grad():
        other[0].weight.scale[0] += 1
    assert fingerprint(weights[0]) != fingerprint(weights[1])
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(WIDTH, WIDTH)).eval()
    with pytest.raises(PartitionError, match=r"0\.weight is a Int8Tensor in the checkpoint"):
        fx_partition.load_stage_weights(empty, model.state_dict())


@pytest.mark.slow
def test_lora_on_a_transformers_model() -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=128,
        use_cache=False,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = peft.get_peft_model(model, lora).eval()
    tokens = torch.arange(16)[None]
    function = compiled(model, cache_bytes="200KiB", order="trace")
    with torch.no_grad():
        assert torch.allclose(function(tokens).logits, model(tokens).logits, atol=1e-5)
        plan = plan_of(function)
        assert plan.num_partitions > 1
        assert sum(p.weight_bytes for p in plan.partitions) <= held_bytes(model)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.mul_(3)
        assert torch.allclose(function(tokens).logits, model(tokens).logits, atol=1e-5)
