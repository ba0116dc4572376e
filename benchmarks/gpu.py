"""Measure what a GPU's L2 gains for a stage: bandwidth by working set, a stage with weights in L2, a pipeline.

    python benchmarks/gpu.py [--stages 8] [--rounds 20] [--link-gbs 450]

Needs torch and, for the curve, the triton that comes with it; cuda.bindings for L2 persistence. Three measurements:

1. Bandwidth: a kernel reads a buffer again and again, past L1. The knee is the largest working set that keeps 0.9 (0.5)
   of the plateau.
2. A stage, two linear layers in float16: alone, so that its weights stay in L2 if they can, and as one of ``--stages``
   such stages of a model that one GPU runs, whose weights come from memory each time (the model's time / its stages).
   Sizes are fractions of L2; with and without CUDA graphs, and an L2 persistence window (alone: over the stage's pack).
3. From 2, a pipeline of as many GPUs against the model on one: a projection, of which the hop is arithmetic.

Variants are timed in turn, round after round, by CUDA events around several calls; each figure is the median. Those
with a window follow in their own rounds, as the set-aside is taken from everyone else's L2.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
try:
    import fx_partition  # noqa: F401
except ImportError:  # a bare GPU machine lacks what the reports need; the modules below need torch alone
    package = types.ModuleType("fx_partition")
    package.__path__ = [str(ROOT / "fx_partition")]
    sys.modules["fx_partition"] = package

from fx_partition.backends.cuda.l2_persistence import bindings, persist  # noqa: E402
from fx_partition.backends.cuda.stream_pipeline import CudaPipeline, CudaStep  # noqa: E402
from fx_partition.backends.cuda.weight_buffer import Pack  # noqa: E402

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

MIB = 2**20
BATCH = 16
FRACTIONS = (0.5, 0.65, 0.9, 1.2)  # of L2: within what it keeps, at the knee, and beyond
BLOCK = 4096  # elements that one program of the reading kernel takes at a time
LINKS_GBS = {"H100 PCIe": 64, "H100": 450, "H200": 450, "A100": 300}  # nominal, one direction; first match counts

Curve = Sequence[tuple[float, float]]  # (MiB, GB/s), by size


def plateau(curve: Curve) -> float:
    """Return the bandwidth of small working sets: the median of all that reach half the best."""
    best = max(bandwidth for _, bandwidth in curve)
    return statistics.median(bandwidth for _, bandwidth in curve if bandwidth >= best / 2)


def knee(curve: Curve, fraction: float) -> float | None:
    """Return the largest working set (MiB) up to which bandwidth stays above a fraction of the plateau; None if all do.

    Sets smaller than that of the best bandwidth do not count: they are too little work to fill a GPU.
    """
    bandwidths = [bandwidth for _, bandwidth in curve]
    best = bandwidths.index(max(bandwidths))
    floor = fraction * plateau(curve)
    for (size, _), (_, following) in zip(curve[best:], curve[best + 1 :], strict=False):
        if following < floor:
            return size
    return None


@dataclass(frozen=True)
class Projection:
    """A pipeline of GPUs, in seconds: a result every ``period``, each ``latency`` after its request."""

    period: float
    latency: float
    speedup: float
    per_gpu: float


def project(whole: float, stage: float, stages: int, hop_bytes: int, link_bytes_a_second: float) -> Projection:
    """Return the projection of as many GPUs as stages, against the whole model on one in ``whole`` seconds.

    Throughput is that of the slowest stage or link. ``per_gpu`` is the speed-up for each GPU: above 1, the pipeline
    beats as many copies of the whole model.
    """
    hop = hop_bytes / link_bytes_a_second
    period = max(stage, hop)
    return Projection(period, stages * stage + (stages - 1) * hop, whole / period, whole / period / stages)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table: columns as wide as their widest cell, numbers to the right."""
    cells = [list(headers), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def width_for(stage_bytes: float) -> int:
    """Return the width of two square float16 layers of this many bytes, a multiple of 64."""
    return max(64, round((stage_bytes / 4) ** 0.5 / 64) * 64)


def link_of(name: str) -> float:
    """Return the nominal GB/s of a GPU's link to the next; PCIe 5 if it is not known."""
    return next((speed for part, speed in LINKS_GBS.items() if part in name), 64)


if triton is not None:

    @triton.jit
    def read_again(source, out, blocks, rounds, BLOCK: tl.constexpr):
        """Read ``blocks * BLOCK`` floats repeatedly; each program starts at another place every time."""
        program, programs = tl.program_id(0), tl.num_programs(0)
        lane = tl.arange(0, BLOCK)
        total = tl.zeros([BLOCK], dtype=tl.float32)
        for i in range(rounds):
            for block in range((program + i) % programs, blocks, programs):
                total += tl.load(source + block * BLOCK + lane, cache_modifier=".cg")
        tl.store(out + program * BLOCK + lane, total)


def seconds(call: Callable[[], Any], calls: int) -> float:
    """Return one sample: the seconds of a call, on the current stream."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def in_turn(variants: dict[Any, Callable[[], Any]], rounds: int, calls: int) -> dict[Any, list[float]]:
    """Return samples of each variant, round after round; the first three rounds warm up."""
    samples: dict[Any, list[float]] = {name: [] for name in variants}
    for i in range(rounds + 3):
        for name, call in variants.items():
            seconds(call, 3)  # what ran before has left other data in L2
            sample = seconds(call, calls)
            if i >= 3:
                samples[name].append(sample)
    return samples


def measure_curve(l2_bytes: int, rounds: int) -> Curve:
    programs = 2 * torch.cuda.get_device_properties(0).multi_processor_count
    sizes = sorted({max(1, round(l2_bytes * i / 40 / MIB)) for i in (*range(1, 61), 80, 120, 200, 400)})
    source = torch.zeros(sizes[-1] * MIB // 4, device="cuda")
    out = torch.empty(programs * BLOCK, device="cuda")

    def reader(size: int) -> Callable[[], Any]:
        again = max(1, 1024 // size)  # a GiB a launch
        return lambda: read_again[(programs,)](source, out, size * MIB // 4 // BLOCK, again, BLOCK=BLOCK, num_warps=8)

    samples = in_turn({size: reader(size) for size in sizes}, rounds, 2)
    return [
        (float(size), size * MIB * max(1, 1024 // size) / statistics.median(found) / 1e9)
        for size, found in samples.items()
    ]


@dataclass(frozen=True)
class Layers:
    """Stages of two layers each; ``packs[i]`` holds the weights of stage i."""

    packs: Sequence[Pack]
    x: torch.Tensor

    def stage(self, i: int) -> torch.Tensor:
        return two_layers(self.x, *self.packs[i].tensors)[0]

    def whole(self) -> torch.Tensor:
        y = self.x
        for pack in self.packs:
            (y,) = two_layers(y, *pack.tensors)
        return y


def two_layers(x: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> list[torch.Tensor]:
    return [torch.nn.functional.linear(torch.nn.functional.linear(x, first), second)]


def make_layers(stage_bytes: float, stages: int) -> Layers:
    width = width_for(stage_bytes)

    def weight() -> torch.Tensor:
        return torch.randn(width, width, device="cuda", dtype=torch.float16) / width**0.5

    packs = [Pack([weight(), weight()], torch.device("cuda", 0)) for _ in range(stages)]
    return Layers(packs, torch.randn(BATCH, width, device="cuda", dtype=torch.float16))


def captured(call: Callable[[], Any]) -> Callable[[], Any]:
    """Return the call as a CUDA graph on the current stream."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        call()
    return graph.replay


@contextmanager
def held(stream: torch.cuda.Stream, pack: Pack) -> Iterator[bool]:
    """Return an L2 window over the pack, if it can be had."""
    device = torch.device("cuda", 0)
    persistence = persist(device, [(stream, pack.buffer)], bindings(device))
    try:
        yield persistence is not None
    finally:
        torch.cuda.synchronize()
        if persistence is not None:
            persistence.close()


Times = dict[tuple[float, str, bool], float]  # by (fraction of L2, "whole" | "alone" | "window", graphs); seconds


def measure_stages(l2_bytes: int, stages: int, rounds: int) -> tuple[Times, dict[float, int]]:
    """Return the median times, with the whole model's per stage, and the bytes of a stage by fraction."""
    models = {fraction: make_layers(fraction * l2_bytes, stages) for fraction in FRACTIONS}
    samples: dict[Any, list[float]] = {}
    torch.cuda.synchronize()  # the weights are made on another stream
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), torch.no_grad():
        variants: dict[Any, Callable[[], Any]] = {}
        for fraction, model in models.items():
            calls = {"whole": model.whole, "alone": lambda model=model: model.stage(0)}
            for kind, call in calls.items():
                variants[fraction, kind, False] = call
                variants[fraction, kind, True] = captured(call)
        samples |= in_turn(variants, rounds, 20)
        for fraction, model in models.items():
            with held(stream, model.packs[0]) as has_window:
                if has_window:
                    call = lambda model=model: model.stage(0)  # noqa: E731
                    windowed = {(fraction, "window", False): call, (fraction, "window", True): captured(call)}
                    samples |= in_turn(windowed, rounds, 20)
    times = {
        key: statistics.median(found) / (stages if key[1] == "whole" else 1) for key, found in samples.items()
    }
    return times, {fraction: model.packs[0].buffer.numel() for fraction, model in models.items()}


def check_two_stages(l2_bytes: int) -> float:
    """Return the largest error of 100 requests through two stages on this GPU, relative to the largest result."""
    model = make_layers(0.25 * l2_bytes, 2)
    device = torch.device("cuda", 0)
    steps = [CudaStep(device, two_layers, (i, *model.packs[i].tensors), (i + 1,), (), True) for i in range(2)]
    pipeline = CudaPipeline(steps, 3, (2,), 8, graphs=True, persist=True)
    requests = [torch.randn_like(model.x) for _ in range(100)]
    pending = [pipeline.submit([(0, request)]) for request in requests]
    worst = 0.0
    for request, started in zip(requests, pending, strict=True):
        right = Layers(model.packs, request).whole()
        worst = max(worst, float((started.take()[0] - right).abs().max() / right.abs().max()))
    pipeline.close()
    return worst


def stage_rows(times: Times, sizes: dict[float, int]) -> list[list[str]]:
    """Return a row for each size, with and without graphs; "-" where there was no window."""
    rows = []
    for fraction, size in sizes.items():
        for graphs in (False, True):
            whole, alone = times[fraction, "whole", graphs], times[fraction, "alone", graphs]
            window = times.get((fraction, "window", graphs))
            row = [f"{size / MIB:.1f}", f"{fraction:.2f}", "yes" if graphs else "no"]
            row += [f"{whole * 1e6:.2f}", f"{alone * 1e6:.2f}", "-" if window is None else f"{window * 1e6:.2f}"]
            best = alone if window is None else min(alone, window)
            rows.append([*row, f"{whole / best:.2f}"])
    return rows


def pipeline_rows(times: Times, sizes: dict[float, int], stages: int, link_gbs: float) -> list[list[str]]:
    """Return, for each size, the fastest whole model against a pipeline of the fastest stages."""
    rows = []
    for fraction, size in sizes.items():
        whole = stages * min(times[fraction, "whole", graphs] for graphs in (False, True))
        stage = min(
            time for (of, kind, _), time in times.items() if of == fraction and kind in ("alone", "window")
        )
        found = project(whole, stage, stages, BATCH * width_for(size) * 2, link_gbs * 1e9)
        figures = (whole * 1e6, found.period * 1e6, found.latency * 1e6, found.speedup, found.per_gpu)
        rows.append([f"{size / MIB:.1f}", str(stages), *(f"{figure:.2f}" for figure in figures)])
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--link-gbs", type=float, help="GB/s to the next GPU; default: nominal, by name")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing measured")
        return 0
    torch.cuda.set_device(0)
    torch.manual_seed(0)
    properties = torch.cuda.get_device_properties(0)
    l2_bytes = properties.L2_cache_size
    link = options.link_gbs or link_of(properties.name)
    curve = measure_curve(l2_bytes, options.rounds) if triton is not None else []
    times, sizes = measure_stages(l2_bytes, options.stages, options.rounds)
    error = check_two_stages(l2_bytes)
    runtime = getattr(torch.version, "cuda", None)
    print(f"{properties.name}, L2 {l2_bytes / MIB:.0f} MiB, torch {torch.__version__}, CUDA {runtime}")
    print(f"driver {driver_version()}, medians of {options.rounds} rounds, batch {BATCH}, float16")
    print(f"two stages on one GPU, 100 requests, graphs and windows: largest relative error {error:.1e}")
    print("\nbandwidth by working set")
    print(table(("MiB", "GB/s"), [(f"{size:.0f}", f"{bandwidth:.0f}") for size, bandwidth in curve]))
    if curve:
        knees = [(fraction, knee(curve, fraction)) for fraction in (0.9, 0.5)]
        for fraction, size in knees:
            said = "not reached" if size is None else f"up to {size:.0f} MiB ({size * MIB / l2_bytes:.2f} of L2)"
            print(f"{fraction} of the plateau of {plateau(curve):.0f} GB/s: {said}")
    else:
        print("not measured: no triton")
    print("\na stage, us: as a part of the whole model on one GPU, alone, alone with an L2 window")
    headers = ("MiB", "of L2", "graphs", "in the whole", "alone", "with a window", "whole/best")
    print(table(headers, stage_rows(times, sizes)))
    print(f"\nprojected from these: a GPU a stage, {link:.0f} GB/s between them, against the whole model on one; us")
    headers = ("MiB a stage", "GPUs", "whole", "period", "latency", "speed-up", "a GPU")
    print(table(headers, pipeline_rows(times, sizes, options.stages, link)))
    return 0


def driver_version() -> str:
    """Return the version that /proc reports; "?" if it reports none."""
    path = Path("/proc/driver/nvidia/version")
    words = path.read_text().split() if path.exists() else []
    return next((word for word in words if word[0].isdigit() and word.count(".") >= 1), "?")


if __name__ == "__main__":
    sys.exit(main())
