"""Whole simulations: figures that can be worked out by hand, and plans of every kind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fx_partition
from fx_partition import Link, Overheads, Plan, simulate
from fx_partition.cli import main
from fx_partition.common.errors import PartitionError, PlanMismatchError
from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.timing.partition_work import AccessKind, Key, PartitionWork
from fx_partition.simulator.cache_model import Cache, Moved
from fx_partition.simulator.plan_work import work_of
from fx_partition.simulator.run_time import Price

H100 = "H100-SXM"

# Both products of attention; torch counts them for GPUs only.
ON_CPU = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, *_, **__: 4 * q.numel() * k[-2]}


def deep(layers: int = 8, features: int = 256) -> nn.Sequential:
    return nn.Sequential(*(nn.Sequential(nn.Linear(features, features), nn.GELU()) for _ in range(layers)))


X = torch.randn(4, 256)


def test_work_counts_operations_as_torch_does_and_bytes_once() -> None:
    encoder = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
    x = torch.randn(3, 16, 64)
    for model, sample in ((deep(), X), (encoder.train(), x), (nn.Conv2d(3, 8, 3), torch.randn(2, 3, 9, 9))):
        plan = fx_partition.plan(model, sample, cache_bytes="300KiB")
        works = work_of(capture(model, sample), plan)
        with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
            model(sample)
        assert sum(work.flops for work in works) == counter.get_total_flops()
        read = {a.key: a.bytes for work in works for a in work.accesses if a.how is AccessKind.WEIGHT}
        assert sum(read.values()) == sum(p.nbytes for p in model.parameters())


def test_pointwise_operators_are_part_of_the_kernel_that_ends_them() -> None:
    model = nn.Sequential(nn.Linear(256, 256), nn.GELU(), nn.Tanh(), nn.Linear(256, 256))
    (work,) = work_of(capture(model, X), fx_partition.plan(model, X, cache_bytes="1GiB"))
    written = [a.bytes for a in work.accesses if a.how is AccessKind.WRITE and a.key[0] == "value"]
    assert written and sum(written) <= 3 * X.nbytes and work.kernels <= 3


def test_a_batch_that_is_bound_later() -> None:
    model = deep(2)
    shapes = ({0: torch.export.Dim("batch", min=2)},)
    plan = fx_partition.plan(model, X, cache_bytes="1GiB", dynamic_shapes=shapes)
    captured = capture(model, X, shapes)
    one, four = (work_of(captured, plan, {"input.0": rows})[0] for rows in (4, 16))
    assert four.flops == 4 * one.flops == 4 * 2 * 2 * 4 * 256 * 256
    with pytest.raises(ValueError, match=r"'y\.0' is not a symbol"):
        work_of(captured, plan, {"y.0": 4})


def test_throughput_is_the_slowest_stage_and_latency_the_sum() -> None:
    model = deep()
    plan = fx_partition.plan(model, X, cache_bytes="600KiB")
    link = Link(latency=1e-6)
    found = simulate(model, X, plan=plan, device=H100, link=link)
    assert found.throughput == pytest.approx(1 / max(s.seconds for s in found.stages))
    assert found.latency == pytest.approx(sum(s.seconds + s.hop for s in found.stages))
    assert max(s.utilisation for s in found.stages) == pytest.approx(1)
    slow = simulate(model, X, plan=plan, device=H100, link=Link(latency=1e-3))
    assert slow.throughput == pytest.approx(1e3)


def test_the_formula_by_hand() -> None:
    model = nn.Linear(4096, 4096, bias=False)
    x = torch.randn(1, 4096)
    device = replace(fx_partition.device(H100), hit_curve=((0.0, 1.0), (1.0, 1.0)))
    plan = fx_partition.plan(model, x, cache_bytes="1GiB")
    found = simulate(model, x, plan=plan, device=device, overheads=Overheads(call=1e-6))
    weights, off = 64 << 20, x.nbytes + x.nbytes  # the weights stay, input and output do not
    onchip = (weights + x.nbytes) / device.onchip_bandwidth  # weights are read and the result is written
    assert found.offchip_bytes == off and found.first_offchip_bytes == off + weights
    assert found.stages[0].seconds == pytest.approx(onchip + off / device.memory_bandwidth + 1e-6)
    busy = simulate(model, x, plan=plan, device=replace(device, peak_flops=1e9), overheads=Overheads())
    assert busy.latency == pytest.approx(2 * 4096 * 4096 / 1e9) and busy.stages[0].bound == "arithmetic"


def test_one_device_that_holds_all_fetches_no_weights_and_one_that_does_not_fetches_all() -> None:
    model, x = deep(64, 1024), torch.randn(1, 1024)  # 256 MiB
    whole = fx_partition.plan(model, x, cache_bytes="1GiB")
    cut = fx_partition.plan(model, x, cache_bytes=H100)
    alone = simulate(model, x, plan=whole, device=H100)
    assert alone.offchip_bytes > 0.99 * (256 << 20)
    several = simulate(model, x, plan=cut, device=H100)
    assert several.offchip_bytes < 0.1 * (256 << 20) and several.throughput > cut.num_partitions * alone.throughput


def test_devices_that_take_turns_fetch_weights_once_for_all_microbatches() -> None:
    model, x = deep(64, 1024), torch.randn(1, 1024)
    plan = fx_partition.plan(model, x, cache_bytes="36MiB", devices=1, on_shortage="wrap")
    assert plan.num_partitions > 4
    one, eight = (
        simulate(model, x, plan=plan, device=H100, microbatches=m, overheads=Overheads()) for m in (1, 8)
    )
    assert eight.offchip_bytes < 1.5 * one.offchip_bytes
    assert eight.throughput > 2 * one.throughput and len(eight.stages) == plan.num_partitions


def test_copies_share_the_load() -> None:
    model = nn.Sequential(nn.Linear(256, 1024), nn.Linear(1024, 1024), nn.Linear(1024, 256))
    plan = fx_partition.plan(model, X, cache_bytes="4.2MiB", devices=4, replicate=True)
    assert any(p.replicas for p in plan.partitions)
    found = simulate(model, X, plan=plan, device="EdgeTPU", link=Link(0.0))
    rates = [len(s.places) / s.seconds for s in found.stages]
    assert found.throughput == pytest.approx(min(rates))


def test_each_copy_has_a_link_of_its_own() -> None:
    model = nn.Sequential(nn.Linear(256, 512), nn.Linear(512, 2048))
    plan = fx_partition.plan(model, X, cache_bytes="4.2MiB", devices=4, replicate=True)
    assert [p.replicas for p in plan.partitions] == [(), (2, 3)]
    found = simulate(model, X, plan=plan, device="EdgeTPU", link=Link(1.0))
    assert found.throughput == pytest.approx(3, rel=1e-3)
    assert {s.place for s in found.spans if s.what == "hop"} == {"link to 1", "link to 2", "link to 3"}
    shared = simulate(model, X, plan=plan, device="EdgeTPU", link=Link(1.0, shared=True), steps=300)
    assert shared.throughput == pytest.approx(1 / 2, rel=1e-2)


@pytest.mark.parametrize("name", [H100, "EdgeTPU"])
def test_a_binding_scales_hops_and_activations_too(name: str) -> None:
    model, rows = deep(4), 512
    shapes = ({0: torch.export.Dim("batch", min=2)},)
    small = fx_partition.plan(model, X, cache_bytes="600KiB", dynamic_shapes=shapes, order="trace")
    assert small.num_partitions == 2
    record = fx_partition.device(name)
    record = replace(record, onchip_bytes=1 << 20, usable_bytes=1 << 20)  # holds weights and few activations
    link = Link(1e-6, 1e9, shared=name == "EdgeTPU")
    bound = simulate(
        model, X, plan=small, device=record, dynamic_shapes=shapes, bind={"input.0": rows}, link=link
    )
    assert bound.stages[1].hop >= 1e-6 + rows * 256 * 4 / 1e9
    x = torch.randn(rows, 256)
    large = fx_partition.plan(model, x, devices=2, dynamic_shapes=shapes, order="trace")
    assert [p.nodes for p in large.partitions] == [p.nodes for p in small.partitions]
    assert bound == simulate(model, x, plan=large, device=record, dynamic_shapes=shapes, link=link)


def test_over_the_bus_of_a_host_travel_inputs_hops_and_results() -> None:
    model = deep(4)
    plan = fx_partition.plan(model, X, cache_bytes="600KiB")
    assert plan.num_partitions == 2
    seconds = X.nbytes / 1e3  # of the input, of what crosses and of the result
    found, alone = (
        simulate(model, X, plan=p, device="EdgeTPU", link=Link(0.5, 1e3, shared=True))
        for p in (plan, fx_partition.plan(model, X, cache_bytes="1GiB"))
    )
    assert [s.hop for s in found.stages] == pytest.approx([0.5 + seconds, 0.5 + 2 * seconds])
    assert found.throughput == pytest.approx(1 / (2 * 0.5 + 3 * seconds), rel=1e-3)
    assert found.latency == pytest.approx(sum(s.seconds + s.hop for s in found.stages))
    assert alone.throughput == pytest.approx(1 / (2 * seconds), rel=1e-3)
    unbounded = simulate(model, X, plan=plan, device="EdgeTPU", link=Link(0.5, shared=True))
    assert {s.what for s in unbounded.spans} == {"hop", "run"} and [s.hop for s in unbounded.stages] == [0.5, 0.5]


def test_a_stage_is_bound_by_what_takes_most_of_all_its_runs() -> None:
    model, x = deep(64, 1024), torch.randn(1, 1024)
    plan = fx_partition.plan(model, x, cache_bytes="36MiB", devices=1, on_shortage="wrap")
    found = simulate(model, x, plan=plan, device=H100, microbatches=2, overheads=Overheads())
    fetches, stays = (s.price for s in found.spans if s.price and (s.step, s.stage) == (4, 1))
    assert (fetches.bound, stays.bound) == ("off-chip", "on-chip") and fetches.offchip > fetches.onchip + stays.onchip
    assert found.stages[1].bound == "off-chip"


def test_a_long_stream_is_not_followed_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    followed = 0
    run = Cache.run

    def counted(self: Cache, work: PartitionWork, hopped: frozenset[Key]) -> Moved:
        nonlocal followed
        followed += 1
        return run(self, work, hopped)

    monkeypatch.setattr(Cache, "run", counted)
    plan = fx_partition.plan(deep(), X, devices=8)
    short, long = (simulate(deep(), X, plan=plan, device=H100, steps=steps) for steps in (8, 2000))
    assert plan.num_partitions == 8 and followed <= 2 * 8 * 4
    assert long.throughput == pytest.approx(short.throughput) and len(long.spans) > 2000 * 8
    assert [s.bound for s in long.stages] == [s.bound for s in short.stages]


@pytest.mark.parametrize(
    "options",
    [{"footprint": "fused"}, {"oversize": "slice"}, {"algorithm": "greedy"}, {"objective": "traffic"}],
)
def test_plans_of_every_kind(options: dict[str, str]) -> None:
    model = nn.Sequential(nn.Linear(256, 2048), nn.GELU(), nn.Linear(2048, 256), deep(3))
    plan = fx_partition.plan(model, X, cache_bytes="600KiB", **options)
    found = simulate(model, X, plan=plan, device=H100)
    assert found.throughput > 0 and len(found.stages) == plan.num_partitions
    assert found.first_offchip_bytes >= sum(p.nbytes for p in model.parameters())


def test_devices_of_different_kinds() -> None:
    model = deep()
    plan = fx_partition.plan(model, X, cache_bytes=["1MiB", "3MiB"])
    slow = replace(fx_partition.device(H100), peak_flops=1e9)
    found = simulate(model, X, plan=plan, device=[slow, H100])
    assert found.stages[0].bound == "arithmetic" and found.stages[1].bound != "arithmetic"
    with pytest.raises(PartitionError, match="the plan has 2 devices, not 3"):
        simulate(model, X, plan=plan, device=[H100] * 3)


def test_what_cannot_be_simulated() -> None:
    model = deep()
    plan = fx_partition.plan(model, X, cache_bytes="600KiB")
    with pytest.raises(ValueError, match="no device is named"):
        simulate(model, X, plan=plan, device="H1000")
    with pytest.raises(PlanMismatchError):
        simulate(deep(3), X, plan=plan, device=H100)
    with pytest.raises(PartitionError, match="steps=0"):
        simulate(model, X, plan=plan, device=H100, steps=0)


def test_the_command_and_its_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = deep()
    program = torch.export.export(model, (X,))
    torch.export.save(program, tmp_path / "model.pt2")
    plan = fx_partition.plan(program, cache_bytes="600KiB")
    (tmp_path / "plan.json").write_text(plan.to_json())
    files = [str(tmp_path / name) for name in ("plan.json", "model.pt2", "trace.json")]
    assert main(["simulate", files[0], "--model", files[1], "--device", H100, "--trace", files[2]]) == 0
    expected = simulate(torch.export.load(files[1]), plan=plan, device=H100)
    assert capsys.readouterr().out.strip() == expected.report().strip()
    assert f"{expected.throughput:,.0f} runs a second" in expected.report()
    events = json.loads(Path(files[2]).read_text())["traceEvents"]
    assert {e["args"]["name"] for e in events if e["ph"] == "M"} >= {"device 0", "device 1", "link to 1"}
    runs = [e for e in events if e["ph"] == "X" and e["cat"] == "run"]
    assert max(e["ts"] + e["dur"] for e in runs) == pytest.approx(1e6 * max(s.end for s in expected.spans))
    assert main(["simulate", files[0], "--model", files[1], "--device", H100, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["latency"] == expected.latency
    assert main(["simulate", files[0], "--model", files[1], "--device", "H1000"]) == 2
    assert "no device is named 'H1000'" in capsys.readouterr().err


def test_what_bounds_a_run_is_not_what_is_hidden() -> None:
    assert Price(1.0, 0.8, 0.7, 0.0, 0.0).bound == "on-chip"  # 1.5 s, behind which 1 s of arithmetic is hidden
    assert Price(1.0, 0.5, 0.4, 0.0, 0.0).bound == "arithmetic"
    assert Price(0.1, 0.0, 0.0, 0.2, 0.0).bound == "launch"


def test_a_plan_that_was_read_back_gives_the_same() -> None:
    plan = fx_partition.plan(deep(), X, cache_bytes="600KiB")
    again = Plan.from_json(plan.to_json())
    assert simulate(deep(), X, plan=again, device=H100) == simulate(deep(), X, plan=plan, device=H100)
