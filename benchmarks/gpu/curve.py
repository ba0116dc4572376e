"""Measure what a GPU's L2 gains: stages of 8 to 90 MiB from HBM, resident, and resident with a window.

    python -m benchmarks.gpu.curve

A stage is a kernel that reads its bytes, two products by cuBLAS, or a block compiled by inductor (`stages`). From HBM
it runs over copies of its weights in turn, of which L2 keeps none; resident, over one copy again and again; with a
window, likewise, with a persistence window over its weights. Then, so that a stage's time can be taken apart: the gap
between kernels, copies in and out, two stages of the package on one GPU, and a hop.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

import fx_partition
from fx_partition.backends.cuda.weight_buffer import Pack

from .command import begin, l2_bytes, parser_of
from .figures import MIB, copies_to_miss, gains, gigabytes_a_second, knee, plateau, relative_error, table, verdict
from .stages import BATCH, KINDS, Kind
from .timing import REPETITIONS, graph_of, in_turn, on_a_stream
from .windows import held

SIZES = (30, 43, 8, 16, 24, 36, 50, 60, 75, 90)  # MiB; those of the verdict come first
HOP_BYTES = (4096, 64 * 1024, 1024 * 1024)


def stage_times(kind: Kind, size: int, count: int, rounds: int, repetitions: int) -> dict[str, Any]:
    """Return the times of a stage of about ``size`` bytes by where its weights are, and the bytes that it has.

    Args:
        count: the copies of its weights that it runs over from HBM.
    """
    device = torch.device("cuda", 0)
    packs = [Pack(kind.weights(size), device) for _ in range(count)]
    run = kind.run(packs[0].tensors)
    held_bytes = sum(weight.nbytes for weight in packs[0].tensors)

    def from_hbm(i: int) -> Tensor:
        return run(packs[i % len(packs)].tensors)

    def resident(i: int) -> Tensor:
        return run(packs[0].tensors)

    def measure() -> dict[str, dict[str, float]]:
        graphs = {"hbm": graph_of(from_hbm, repetitions), "resident": graph_of(resident, repetitions)}
        found = in_turn({name: (replay, repetitions) for name, replay in graphs.items()}, rounds)
        with held(packs[0]) as has_window:
            if has_window:
                found |= in_turn({"window": (graph_of(resident, repetitions), repetitions)}, rounds)
        return found

    times = on_a_stream(measure)
    speeds = {f"{name}_gbs": round(gigabytes_a_second(held_bytes, found["us"]), 1) for name, found in times.items()}
    return {"bytes": held_bytes, "copies": len(packs), **times, **speeds}


def is_read_right(size: int) -> dict[str, Any]:
    """Return the sum of random numbers by the read kernel against torch's; an error of a thousandth is recorded."""
    (source,) = KINDS[0].weights(size)
    found = float(KINDS[0].run([source])([source]).cpu().double().sum())
    on_host = source.cpu().double()
    right = float(on_host.sum())
    return {"sum": found, "right": right, "error": abs(found - right) / float(on_host.norm())}


def launch_gap(rounds: int, repetitions: int) -> dict[str, Any]:
    """Return the time of a kernel that does next to nothing, in a graph and launched by the host."""
    x = torch.zeros(1, device="cuda")

    def measure() -> dict[str, dict[str, float]]:
        replay = graph_of(lambda i: x.add_(1.0), repetitions)

        def launched() -> None:
            for _ in range(repetitions):
                x.add_(1.0)

        return in_turn({"graph": (replay, repetitions), "stream": (launched, repetitions)}, rounds)

    return on_a_stream(measure)


def copies(rounds: int, repetitions: int) -> dict[str, Any]:
    """Return the times of the copies of a request: into static inputs on the GPU, from the host and to it."""
    found: dict[str, Any] = {}
    for size in HOP_BYTES:
        here, there = (torch.empty(size, dtype=torch.uint8, device="cuda") for _ in range(2))
        host = torch.empty(size, dtype=torch.uint8, pin_memory=True)

        def measure(here: Tensor = here, there: Tensor = there, host: Tensor = host) -> dict[str, dict[str, float]]:
            ways = {"on_gpu": (there, here), "from_host": (here, host), "to_host": (host, here)}
            graphs = {
                name: graph_of(lambda i, a=a, b=b: a.copy_(b, non_blocking=True), repetitions)
                for name, (a, b) in ways.items()
            }
            return in_turn({name: (replay, repetitions) for name, replay in graphs.items()}, rounds)

        found[str(size)] = on_a_stream(measure)
    return found


def hops(rounds: int, repetitions: int) -> dict[str, Any]:
    """Return the times of a value that goes to another stream and back: two hops, each an event, a wait and a copy.

    "streams": on one GPU, as between two stages of it. "gpus": to the second GPU and back, where there is one.
    """
    found: dict[str, Any] = {}
    places = {"streams": torch.device("cuda", 0)}
    if torch.cuda.device_count() > 1:
        places["gpus"] = torch.device("cuda", 1)
    for name, device in places.items():
        for size in HOP_BYTES:
            here = torch.empty(size, dtype=torch.uint8, device="cuda")
            there = torch.empty(size, dtype=torch.uint8, device=device)
            other = torch.cuda.Stream(device)

            def back_and_forth(here: Tensor = here, there: Tensor = there, other: Any = other) -> None:
                home = torch.cuda.current_stream()
                for _ in range(repetitions):
                    other.wait_event(home.record_event())
                    with torch.cuda.stream(other):
                        there.copy_(here, non_blocking=True)
                        here.copy_(there, non_blocking=True)
                    home.wait_event(other.record_event())

            measure = partial(in_turn, {"round_trip": (back_and_forth, repetitions)}, rounds)
            found[f"{name}, {size} bytes"] = on_a_stream(measure)["round_trip"]
    return found


def two_stages(width: int, requests: int) -> dict[str, Any]:
    """Return the package's pipeline of two stages on one GPU: a request's time by the host's clock, and its error.

    The same requests go through the whole model under inductor, one after another.
    """
    dtype = torch.bfloat16
    model = torch.nn.Sequential(*(torch.nn.Linear(width, width, bias=False) for _ in range(2))).cuda().to(dtype)
    inputs = [torch.randn(BATCH, width, device="cuda", dtype=dtype) for _ in range(requests)]
    with torch.no_grad():
        right = [model(x) for x in inputs]
        torch.compiler.reset()
        whole = torch.compile(model, fullgraph=True, dynamic=False)
        with fx_partition.pipeline(model, inputs[0], devices=["cuda:0", "cuda:0"]) as pipe:
            runs: dict[str, Callable[[], Sequence[Tensor]]] = {
                "pipeline": lambda: list(pipe.map(inputs)),
                "whole": lambda: [whole(x) for x in inputs],
            }
            found: dict[str, Any] = {}
            for name, run in runs.items():
                run()
                torch.cuda.synchronize()
                start = time.perf_counter()
                results = run()
                torch.cuda.synchronize()
                found[f"{name}_us_a_request"] = round((time.perf_counter() - start) / requests * 1e6, 2)
                found[f"{name}_error"] = max(map(error_of, results, right))
    return found


def error_of(result: Tensor, right: Tensor) -> float:
    """Return the relative error of a result by the Euclidean norm, in double precision on the host."""
    found, expected = result.cpu().double(), right.cpu().double()
    return relative_error(float((found - expected).norm()), float(expected.norm()))


def show(found: dict[str, dict[str, Any]], kind: str) -> None:
    """Print the times of a kind by size."""
    rows = [
        [size, *(f"{row[name]['us']:.2f}" if name in row else "-" for name in ("hbm", "resident", "window"))]
        for size, row in sorted(found.items(), key=lambda pair: float(pair[0]))
    ]
    print(f"\n{kind}, us a stage\n{table(('MiB', 'from HBM', 'resident', 'with a window'), rows)}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = parser_of("curve", __doc__ or "")
    parser.add_argument("--rounds", type=int, default=20, help="samples of each time")
    options = parser.parse_args(argv)
    results = begin("curve", options)
    if results is None:
        return 0
    dry = options.dry_run
    sizes, rounds, repetitions = ((1, 2), 1, 3) if dry else (SIZES, options.rounds, REPETITIONS)
    right = results.section("read kernel is right", lambda: is_read_right(sizes[0] * MIB))
    if not dry and right is not None and not right["error"] < 1e-3:
        results.failures.append(f"the read kernel's sum is off by {right['error']:.1e}")
    results.section("launch gap", lambda: launch_gap(rounds, repetitions))
    found: dict[str, dict[str, dict[str, Any]]] = {kind.name: {} for kind in KINDS}
    for size in sizes:
        count = 2 if dry else copies_to_miss(size * MIB, l2_bytes())
        for kind in KINDS:
            run = partial(stage_times, kind, size * MIB, count, rounds, repetitions)
            row = results.section(f"{kind.name}, {size} MiB", run)
            if row is not None:
                found[kind.name][str(size)] = row
    results.section("copies", lambda: copies(rounds, repetitions))
    results.section("hop", lambda: hops(rounds, repetitions))
    two = results.section("two stages on one GPU", lambda: two_stages(256 if dry else 2048, 4 if dry else 200))
    if not dry and two is not None and not max(two["pipeline_error"], two["whole_error"]) < 2e-2:
        errors = f"{two['pipeline_error']:.1e}, the whole model by {two['whole_error']:.1e}"
        results.failures.append(f"two stages on one GPU are off by {errors}")
    for name, rows in found.items():
        show(rows, name)
    gain = {
        name: gains({size: {way: row[way]["us"] for way in ("hbm", "resident", "window") if way in row}
                     for size, row in rows.items()})
        for name, rows in found.items()
    }  # fmt: skip
    results.section("gains", lambda: gain)
    if not dry:
        results.section("knee", lambda: knees(found["read"]))
    return results.finish(lambda: verdict(gain["read"], gain["inductor"]))


def knees(read: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return how far the resident read kernel keeps 0.9 and 0.5 of its bandwidth; None: as far as it was measured."""
    points = sorted((float(size), float(row["resident_gbs"])) for size, row in read.items())
    return {"plateau_gbs": plateau(points), "to_0.9_mib": knee(points, 0.9), "to_0.5_mib": knee(points, 0.5)}


if __name__ == "__main__":
    sys.exit(main())
