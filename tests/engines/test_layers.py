"""The layers of each stage as vLLM, SGLang and llama.cpp read them, each by a reader of its documented rules."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

import numpy as np
import pytest
import torch
from language_models import Language, planned, whole_layers, words
from torch import nn

import fx_partition
from fx_partition import PartitionError, Plan
from fx_partition.engines.module_stages import ModuleRun, ModuleStages
from fx_partition.engines.registry import to_engine


def read_layer_partition(text: str, layers: int, stages: int) -> list[range]:
    """The layers of each stage: numbers with commas between them, one a stage, which add up to the model's layers."""
    counts = [int(number) for number in text.split(",")]
    if len(counts) != stages or sum(counts) != layers:
        raise ValueError(f"{counts} are not {layers} layers on {stages} stages")
    ends = list(accumulate(counts))
    return [range(end - count, end) for count, end in zip(counts, ends, strict=True)]


def read_tensor_split(text: str, layers: int) -> list[int]:
    """The device of each layer, and of the output behind them, with all layers on devices.

    llama.cpp adds the numbers up, divides by their sum, and puts layer i on the first device whose share ends above
    i / (layers + 1), all of it in single precision.
    """
    sums = np.cumsum(np.array([float(number) for number in text.split(",")], dtype=np.float32), dtype=np.float32)
    ends = (sums / sums[-1]).tolist()
    return [bisect_right(ends, float(np.float32(i) / np.float32(layers + 1))) for i in range(layers + 1)]


def stage_of_layer(plan: Plan) -> list[int]:
    """The partition of each layer, by the linear nodes of the trace: each layer has two."""
    linear = [name for p in plan.partitions for name in p.nodes if name.partition("_")[0] == "linear"]
    number = {name: int(name.partition("_")[2] or 0) for name in linear}
    return [
        next(p.index for p in plan.partitions for name in p.nodes if number.get(name) == 2 * layer)
        for layer in range((len(linear) - 1) // 2)
    ]


@pytest.mark.parametrize("devices", [1, 2, 3, 4])
def test_stages_have_the_layers_of_their_partitions(devices: int) -> None:
    plan = planned(8, devices)
    text = plan.to("vllm")
    assert plan.to("sglang") == text
    read = read_layer_partition(text, 8, devices)
    assert [stage for layer in range(8) for stage, found in enumerate(read) if layer in found] == stage_of_layer(plan)
    answer = fx_partition.fit(Language(8), words(), devices=devices)
    counts = [sum(name.startswith("layers.") for name in device.modules) for device in answer.devices]
    assert answer.to("vllm") == answer.to("sglang") == ",".join(map(str, counts))


@pytest.mark.parametrize("devices", [1, 2, 3, 4])
def test_llama_cpp_puts_each_layer_on_its_device(devices: int) -> None:
    plan = planned(8, devices)
    assert read_tensor_split(plan.to("llama.cpp"), 8) == [*stage_of_layer(plan), devices - 1]


def stages_of(counts: list[int]) -> ModuleStages:
    layers = [stage for stage, count in enumerate(counts) for _ in range(count)]
    runs = [ModuleRun(f"layers.{i}", stage) for i, stage in enumerate(layers)]
    return ModuleStages((ModuleRun("embed", 0), *runs, ModuleRun("head", len(counts) - 1)))


def test_llama_cpp_rounds_no_layer_to_another_device() -> None:
    """Its single precision is the same on both sides of the comparison."""
    generator = np.random.default_rng(0)
    for _ in range(300):
        counts = [int(n) for n in generator.integers(0, 60, generator.integers(1, 9))]
        if sum(counts):
            text = to_engine("llama.cpp", stages_of(counts), range(len(counts)))
            wanted = [stage for stage, count in enumerate(counts) for _ in range(count)]
            assert read_tensor_split(text, sum(counts)) == [*wanted, len(counts) - 1], counts


def test_a_stage_without_layers_is_refused_where_a_stage_has_some() -> None:
    assert to_engine("llama.cpp", stages_of([0, 3]), [0, 1]) == "0,4"
    for engine in ("vllm", "sglang"):
        with pytest.raises(PartitionError, match=f"stage 0 has no layer, and a stage of {engine}"):
            to_engine(engine, stages_of([0, 3]), [0, 1])


@pytest.mark.parametrize("engine", ["vllm", "sglang", "llama.cpp"])
@pytest.mark.parametrize(
    ("runs", "reason"),
    [
        ([("embed", 1), ("layers.0", 0), ("layers.1", 1)], r"the module 'embed' is on stage 1.*first, 0"),
        ([("layers.0", 0), ("layers.1", 1), ("head", 0)], r"the module 'head' is on stage 0.*last, 1"),
        ([("layers.0", 0), ("join", 0), ("layers.1", 1)], r"the module 'join' runs between the layers"),
        ([("layers.0.up", 0), ("layers.0.down", 1), ("layers.1", 1)], r"cuts the module 'layers\.0'"),
        ([("layers.0", 1), ("layers.1", 0)], r"'layers\.1' runs on an earlier stage"),
        ([("layers.0", 0), ("layers.2", 1)], r"the layer 'layers\.1' has no steps"),
        ([("encoder.0", 0), ("decoder.0", 1)], r"has 'encoder', 'decoder'"),
        ([("embed", 0), ("head", 1)], r"no list of modules of this model has steps"),
        ([("0", 0), ("1", 1)], r"no list of modules of this model has steps"),
    ],
)
def test_what_an_engine_places_elsewhere_is_refused(engine: str, runs: list[tuple[str, int]], reason: str) -> None:
    with pytest.raises(PartitionError, match=reason):
        to_engine(engine, ModuleStages(tuple(ModuleRun(*run) for run in runs)), [0, 1])


def test_steps_of_the_modules_that_hold_the_layers_count_nowhere() -> None:
    runs = [("", 0), ("model", 0), ("model.layers.0", 0), ("model", 0), ("model.layers.1", 1), ("", 1), ("head", 1)]
    assert to_engine("vllm", ModuleStages(tuple(ModuleRun(*run) for run in runs)), [0, 1]) == "1,1"


def test_an_embedding_on_a_device_of_its_own_is_refused() -> None:
    class Large(Language):
        def __init__(self) -> None:
            super().__init__(2)
            self.embed = nn.Embedding(64, 4096)
            self.down = nn.Linear(4096, 32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            embedded: torch.Tensor = self.down(self.embed(x))
            for layer in self.layers:
                embedded = layer(embedded)
            return embedded

    plan = whole_layers(Large(), 3, together=[("embedding",)])
    with pytest.raises(PartitionError, match=r"stage 0 has no layer|'down' is on stage 1"):
        plan.to("vllm")


def test_stages_that_take_turns_are_refused() -> None:
    plan = whole_layers(Language(8), 2, cache_bytes=planned(8, 4).budget_bytes, on_shortage="wrap")
    assert plan.num_partitions > 2
    for engine in ("vllm", "sglang", "llama.cpp"):
        with pytest.raises(PartitionError, match=r"stages 0 and 2 take turns on the device 0"):
            plan.to(engine)


def test_a_layer_that_a_plan_cuts_is_named() -> None:
    plan = fx_partition.plan(Language(4), words(), devices=7)
    with pytest.raises(PartitionError, match=r"cuts the module 'layers\.\d+', and vllm"):
        plan.to("vllm")
