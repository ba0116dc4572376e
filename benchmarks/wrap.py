"""Compare a batch in microbatches with inductor's whole batch.

    python benchmarks/wrap.py [--model narrow depthwise ...] [--threads 1 2] [--allocator ...] [--repeats 7]
                              [--cache-bytes 1.5MiB] [--microbatches auto]

The l2partition side decides by ``microbatches="auto"`` whether and how it cuts; the other side is
``backend="inductor"``. The rows column has the rows of a microbatch, "whole" where the batch is not cut. The results
of two models are 32 MiB and more, and malloc maps them again in every call; those of the other models are smaller. As
memory that malloc returns to the kernel can cost more than the caches do, the allocator is a separate variable:

=======  ==========================================================================================
default  malloc as a process starts with it
raised   ``MALLOC_MMAP_THRESHOLD_`` and ``MALLOC_TRIM_THRESHOLD_`` as `fx_partition.keep_buffers` sets them
=======  ==========================================================================================

Each (model, allocator, threads) has a fresh process that holds both sides. Sides are timed in turn; figures are
medians after a warm-up, ratios the median of the ratios within a round; below 1 l2partition is faster.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor, nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

ALLOCATORS = ("default", "raised")
SIDES = ("inductor", "l2partition")
RAISED = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str((1 << 31) - 1)}


class Block(nn.Module):
    """A transformer's block of 3 MiB."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (4, -1)).transpose(1, 2) for t in self.qkv(self.norms[0](x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


def mlp() -> nn.Module:
    return nn.Sequential(*(m for _ in range(12) for m in (nn.Linear(512, 512), nn.ReLU())))  # 12 MiB


def mobilenetv2() -> nn.Module:
    from zoo import FAMILIES

    return FAMILIES["mobilenetv2"].build()


def narrow() -> nn.Module:
    return nn.Sequential(*(m for _ in range(8) for m in (nn.Linear(64, 64), nn.GELU())))


def depthwise(width: int = 16) -> nn.Module:
    """Return eight times a depthwise and a 1x1 convolution, each with a batch norm and a ReLU6."""
    from zoo.plain import conv_bn

    layers: list[nn.Module] = []
    for _ in range(8):
        layers += [*conv_bn(width, width, 3, groups=width), nn.ReLU6(), *conv_bn(width, width, 1), nn.ReLU6()]
    return nn.Sequential(*layers)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "narrow": (narrow, (131072, 64)),  # 32 MiB a result
    "depthwise": (depthwise, (32, 16, 224, 224)),  # 98 MiB a result
    "mobilenetv2": (mobilenetv2, (32, 3, 32, 32)),
    "mlp": (mlp, (64, 512)),
    "transformer": (lambda: nn.Sequential(*(Block() for _ in range(4))), (32, 32, 256)),  # 12 MiB
}


def child(name: str, threads: int, asked: dict[str, Any]) -> None:
    """Compile; then, for each side that a line of stdin names, print the seconds of a call."""
    from fx_partition.report.compiled_plans import compiled_graphs

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model = make().eval()
    x = torch.randn(shape)
    torch._dynamo.mark_dynamic(x, 0)
    runs, calls = {}, {}
    with torch.no_grad():
        expected = model(x)
        for side in SIDES:
            runs[side] = torch.compile(model, backend=side, options=asked if side == "l2partition" else None)
            assert torch.allclose(runs[side](x), expected, rtol=1e-3, atol=1e-3)
            calls[side] = max(1, int(0.15 / max(seconds(runs[side], x, 3), 1e-6)))
            if side == "l2partition":
                (graph,) = compiled_graphs(model)
                print(graph.plan.num_partitions, getattr(graph, "rows", None) or "whole", flush=True)
            torch._dynamo.reset()  # a model is compiled by one backend; what is compiled stays
            seconds(runs[side], x, 1)
        for line in sys.stdin:
            side = line.strip()
            print(seconds(runs[side], x, calls[side]), flush=True)


def seconds(run: Callable[[Tensor], Tensor], x: Tensor, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run(x)
    return (time.perf_counter() - start) / calls


def measure(
    name: str, allocator: str, threads: int, repeats: int, asked: list[str]
) -> tuple[str, list[float], list[float]]:
    """Return the partitions and rows of a microbatch, and the seconds of a call of both sides in each round."""
    environment = {k: v for k, v in os.environ.items() if k not in RAISED and k != "OMP_NUM_THREADS"}
    if allocator == "raised":
        environment |= RAISED
    command = [sys.executable, __file__, "--child", name, "--threads", str(threads), *asked]
    process = subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    note = process.stdout.readline().strip()
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(repeats + 1):
        for side in SIDES:
            process.stdin.write(side + "\n")
            process.stdin.flush()
            times[side].append(float(process.stdout.readline()))
    process.stdin.close()
    process.wait()
    return note, times["inductor"][1:], times["l2partition"][1:]  # the first round warms up


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--threads", nargs="+", type=int, default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--allocator", nargs="+", choices=ALLOCATORS, default=list(ALLOCATORS))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--cache-bytes", default="1.5MiB")
    parser.add_argument("--microbatches", default="auto", help='a number, or "auto"')
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        microbatches = options.microbatches if options.microbatches == "auto" else int(options.microbatches)
        child(options.child, options.threads[0], {"cache_bytes": options.cache_bytes, "microbatches": microbatches})
        return 0
    cases = [(m, t, a) for m in options.model for t in options.threads for a in options.allocator]
    asked = ["--cache-bytes", options.cache_bytes, "--microbatches", options.microbatches]
    rows = []
    for name, threads, allocator in tqdm(cases, disable=None):
        note, inductor, ours = measure(name, allocator, threads, options.repeats, asked)
        partitions, most = note.split()
        ratios = [b / a for a, b in zip(inductor, ours, strict=True)]
        figures = (statistics.median(inductor) * 1e3, statistics.median(ours) * 1e3)
        spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
        times = (f"{figure:.2f}" for figure in figures)
        row = (name, threads, allocator, partitions, most, *times, f"{statistics.median(ratios):.2f}", spread)
        rows.append(row)
    machine = platform.processor() or platform.machine()
    print(f"torch {torch.__version__}, {machine}, {os.cpu_count()} cores, median of {options.repeats}")
    headers = ("model", "threads", "malloc", "partitions", "rows", "inductor ms", "l2partition ms", "ratio", "range")
    print(tabulate(rows, headers=headers, disable_numparse=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
