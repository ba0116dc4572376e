"""Decoding on paper: formulas against figures worked out by hand, limits, and the planner."""

from __future__ import annotations

import doctest
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fx_partition import Device, Link, device

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from on_paper import decode, frontier, layouts, shapes
from on_paper.decode import Model, Stage, all_reduce, held_bytes, stage_price, step
from on_paper.layouts import Layout, best, on_chip, pipeline, run
from on_paper.search import record, resident, streamed
from on_paper.shapes import BF16, LLAMA_8B, LLAMA_70B, LLAMA_405B, PAPER_DENSE, PAPER_MOE, PRECISIONS, SMOL_135M, Shape

H100 = device("H100-SXM")
#: Two layers of 2 x 4 x 2 x 2 x (1 + 1) + 8 + 3 x 4 x 8 = 168 weights, a head of 10 x 4 + 4.
TINY = Shape("tiny", 2, hidden=4, ffn=8, heads=2, kv_heads=1, head=2, vocabulary=10)


@pytest.mark.parametrize("module", [decode, frontier, layouts, shapes])
def test_examples_say_what_happens(module: object) -> None:
    found = doctest.testmod(module, extraglobs={"device": device})  # type: ignore[arg-type]
    assert found.failed == 0 and found.attempted > 0


def test_weights_by_hand() -> None:
    attention = 4 * 4 + 2 * 4 * 2 + 4 * 4 + 2 * 4  # queries, keys and values, output, norms
    assert TINY.layer_parameters == attention + 3 * 4 * 8
    assert TINY.parameters == 2 * TINY.layer_parameters + 44 + 40
    assert replace(TINY, tied=True).parameters == TINY.parameters - 40
    assert TINY.kv_bytes(BF16) == 2 * 1 * 2 * 2
    assert TINY.layer_flops(5) == 2 * TINY.layer_parameters + 2 * 2 * 5 * 2 * 2


@pytest.mark.parametrize(
    ("shape", "billions"), [(SMOL_135M, 0.1345), (LLAMA_8B, 8.030), (LLAMA_70B, 70.554), (LLAMA_405B, 405.85)]
)
def test_published_models_have_their_weights(shape: Shape, billions: float) -> None:
    assert shape.parameters / 1e9 == pytest.approx(billions, rel=1e-3)


@pytest.mark.parametrize("shape", [PAPER_DENSE, PAPER_MOE])
def test_the_chosen_shapes_have_60_gigabytes(shape: Shape) -> None:
    assert shape.layers == 16 and 2 * shape.parameters / 1e9 == pytest.approx(60, rel=0.02)


def test_experts_that_tokens_touch() -> None:
    one = PAPER_MOE.attention_parameters + 2 * PAPER_MOE.expert_parameters
    assert PAPER_MOE.touched_parameters(1) == pytest.approx(one)
    assert PAPER_MOE.touched_parameters(1000) == pytest.approx(PAPER_MOE.layer_parameters)
    assert PAPER_DENSE.touched_parameters(1) == PAPER_DENSE.layer_parameters


def test_all_reduce_takes_one_hop_for_few_bytes_and_two_for_many() -> None:
    link = Link(1.0, 100.0)
    assert all_reduce(8, 1, link) == 0
    assert all_reduce(8, 8, link) == pytest.approx(1 + 7 * 8 / 100)
    assert all_reduce(8000, 8, link) == pytest.approx(2 + 2 * 7 / 8 * 8000 / 100)


def test_a_stage_by_hand() -> None:
    """One layer of the 8B on an H100, one row, nothing on chip but activations: weights, cache and nine kernels."""
    price = stage_price(Model(LLAMA_8B, BF16, H100, 1000), Stage(1, False, 1), 1, 1, "nothing")
    weights, cache = 2 * LLAMA_8B.layer_parameters, 1000 * 2 * 8 * 128 * 2
    assert price.moved == weights + cache
    assert price.offchip == pytest.approx((weights + cache) / 3.35e12)
    assert price.overhead == pytest.approx(9 * 1.26e-6)
    assert price.seconds == pytest.approx(price.offchip + price.onchip + price.overhead)


def test_what_stays_on_chip() -> None:
    model, stage = Model(SMOL_135M, BF16, H100, 1000), Stage(1, False, 1)
    few, many = (stage_price(model, stage, 1, sequences, "what fits").moved for sequences in (1, 1000))
    assert (few, many) == (0, model.kv_bytes(stage, 1))  # the cache of a thousand does not fit, the weights do
    large = Model(LLAMA_8B, BF16, H100, 1000)
    kept = stage_price(large, stage, 1, 1, "what fits")
    assert kept == stage_price(large, stage, 1, 1, "nothing")


def test_a_device_without_memory_must_hold_its_stage() -> None:
    with pytest.raises(ValueError, match=r"GroqLPU1 has no off-chip memory.*use more devices"):
        stage_price(Model(LLAMA_70B, BF16, device("GroqLPU1"), 1), Stage(1, False, 1), 1, 1, "what fits")


def test_a_lone_sequence_waits_for_all_stages_and_many_for_the_slowest() -> None:
    model = Model(PAPER_DENSE, BF16, H100, 1000)
    stages = pipeline(16, 16, 1)
    lone, many = step(model, stages, 1, "nothing"), step(model, stages, 16, "nothing")
    assert lone.seconds == pytest.approx(sum(price.seconds for price in lone.prices) + lone.links)
    assert many.seconds == pytest.approx(16 * max(price.seconds for price in many.prices))
    assert (many.groups, many.rows, many.rate) == (16, 1, pytest.approx(16 / many.seconds))


@pytest.mark.parametrize("layout", [Layout(1, 8, 2), Layout(1, 1, 16)])
def test_free_weights_gain_nothing_once_the_cache_dominates(layout: Layout) -> None:
    """The memory is left out: no device holds the longest of these caches."""
    endless = replace(H100, memory_bytes=None)
    models = [Model(PAPER_DENSE, BF16, endless, length) for length in (10**4, 10**5, 10**6, 10**9)]
    pairs = [[run(model, layout, 128, kept) for kept in ("nothing", "weights")] for model in models]
    gains = [all_.seconds / free.seconds for all_, free in pairs if all_ and free]
    assert gains == sorted(gains, reverse=True) and gains[0] > 1.5
    assert gains[-1] == pytest.approx(1, abs=1e-3)


def test_no_layout_where_the_memory_is_too_small() -> None:
    assert run(Model(LLAMA_405B, BF16, H100, 1), Layout(1, 8, 1), 1, "nothing") is None
    assert best(Model(LLAMA_405B, BF16, H100, 1), 8, 1, "nothing") is None
    assert best(Model(LLAMA_405B, BF16, H100, 1), 16, 1, "nothing") is not None


@pytest.mark.parametrize("name", ["H100-SXM", "MI300X", "GroqLPU1", "WSE-3"])
@pytest.mark.parametrize("sequences", [0, 1, 32])
@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
def test_devices_on_chip_hold_what_they_are_given(name: str, sequences: int, precision: shapes.Precision) -> None:
    for shape in (SMOL_135M, LLAMA_8B, LLAMA_70B):
        model = Model(shape, precision, device(name), 8192)
        stages = on_chip(model, sequences)
        assert sum(stage.layers for stage in stages) == shape.layers
        assert [stage.head for stage in stages] == [False] * (len(stages) - 1) + [True]
        assert all(held_bytes(model, stage, sequences) <= model.device.usable_bytes for stage in stages)
        total = held_bytes(model, Stage(shape.layers, True, 1), sequences)
        assert sum(stage.devices for stage in stages) * model.device.usable_bytes >= total


def test_more_devices_never_stream_slower() -> None:
    model = Model(LLAMA_8B, BF16, H100, 1000)
    found = [streamed(model, 16, devices) for devices in (1, 2, 5, 16, 64, 500)]
    seconds = [each.seconds for each in found if each]
    assert len(seconds) == 6 and seconds == sorted(seconds, reverse=True)


def test_a_die_has_its_share_of_the_processor() -> None:
    def both(found: Device) -> tuple[float, float]:
        return found.memory_bandwidth, found.onchip_bandwidth

    assert both(record("EPYC9684X-CCD")) == pytest.approx([each / 12 for each in both(device("EPYC9684X"))])
    assert record("H100-SXM") == H100


def test_weights_on_chip_are_kept() -> None:
    found = resident(Model(SMOL_135M, BF16, H100, 128), 1)
    assert all(price.moved == 0 for price in found.prices)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "most"), [("IPU-GC200", 1.0), ("H100-SXM", 1.5)])
def test_the_planner_needs_as_many_devices(name: str, most: float) -> None:
    """A real graph of eight layers: whole layers a device agree, and cut ones need more by operators than evenly."""
    pytest.importorskip("transformers")
    from on_paper.planned import graph, partitions

    shape = replace(LLAMA_8B, layers=8)
    formula = sum(stage.devices for stage in on_chip(Model(shape, BF16, device(name), 1), 0))
    assert formula <= partitions(graph(shape), name) <= most * formula
