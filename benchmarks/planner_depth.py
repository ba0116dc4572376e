"""Measure the planner by depth, from nn.Module to Plan and report, on models of Llama's shape.

    python benchmarks/planner_depth.py --layers 20 40 80
    python benchmarks/planner_depth.py --shape 405b --layers 126

The model is on the meta device, in bfloat16: nothing is allocated. The steps, each in CPU seconds of the process, are
*export*, the module through torch.export; *graph*, from the exported program to a graph that passes read; *memory*, the
symbolic footprints of all nodes, with no memory of earlier runs; *plan*, atoms, numbers, boundaries, certificate,
trade-offs, and the description of the partitions; *report*, the plan as text, and the largest batch that fits. Each row
runs in its own process, after a model of three layers to warm up. Export and graph are timed once; the others are the
median of several runs. "MiB" is the most that the process held, torch itself included. "static" has fixed shapes,
"dynamic" a symbolic batch and length.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from tabulate import tabulate
from transformers import LlamaConfig, LlamaForCausalLM

from fx_partition.passes.capture.capture_model import capture, export
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.plan.make_plan import make_plan
from fx_partition.passes.plan.plan import Plan
from fx_partition.passes.plan.request import Request
from fx_partition.report.api import report

SHAPES: Mapping[str, Mapping[str, int]] = {
    "70b": {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64},
    "405b": {"hidden_size": 16384, "intermediate_size": 53248, "num_attention_heads": 128},
}


def model_of(shape: str, layers: int) -> torch.nn.Module:
    """Return a decoder of ``layers`` layers."""
    options: dict[str, Any] = {"use_cache": False, "attn_implementation": "sdpa", **SHAPES[shape]}
    config = LlamaConfig(
        vocab_size=128256, num_hidden_layers=layers, num_key_value_heads=8, max_position_embeddings=8192, **options
    )
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(config)
    made: torch.nn.Module = model.to(torch.bfloat16).eval()
    return made


def exported(model: torch.nn.Module, dynamic: bool) -> torch.export.ExportedProgram:
    """Return the model's program for batch 2 and 128 tokens."""
    inputs = {"input_ids": torch.zeros(2, 128, dtype=torch.long, device="meta")}
    batch, length = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("length", min=2, max=4096)
    shapes = {"input_ids": {0: batch, 1: length}} if dynamic else None
    return export(model, (), inputs, shapes)


def timed(function: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """Return the median CPU seconds of ``repeats`` calls, and the last result."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        result = function()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds), result


def described(plan: Plan) -> str:
    """Return the plan's report, and the largest sizes for which it holds."""
    largest = [plan.largest(dim) for dim in plan.symbols.dims]
    return f"{report(plan)}\n{largest}"


def measured(shape: str, layers: int, dynamic: bool, cache: str, repeats: int) -> tuple[Any, ...]:
    """Return one row of the table."""
    request = Request.check(cache)
    warm = capture(exported(model_of(shape, 3), dynamic))
    described(make_plan(warm, analyze_memory(warm), request))
    model = model_of(shape, layers)
    export_seconds, program = timed(lambda: exported(model, dynamic))
    graph_seconds, captured = timed(lambda: capture(program))
    memory_seconds, memory = timed(lambda: analyze_memory(captured), repeats)
    plan_seconds, plan = timed(lambda: make_plan(captured, memory, request), repeats)
    read = Plan.from_json(plan.to_json())
    report_seconds, _ = timed(lambda: described(read))
    seconds = (export_seconds, graph_seconds, memory_seconds, plan_seconds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    kind = "dynamic" if dynamic else "static"
    return kind, layers, len(memory.steps), plan.num_partitions, *seconds, sum(seconds), report_seconds, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=[*SHAPES], default="70b")
    parser.add_argument("--layers", type=int, nargs="+", default=[20, 40, 80])
    parser.add_argument("--cache", default="4GiB", help="the budget")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    cases = [(arguments.shape, n, dynamic, arguments.cache, arguments.repeats)
             for dynamic in (False, True) for n in arguments.layers]  # fmt: skip
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        rows = pool.starmap(measured, cases, chunksize=1)
    headers = ("shapes", "layers", "nodes", "k", "export", "graph", "memory", "plan", "module to plan", "report", "MiB")
    print(f"{platform.machine()}, torch {torch.__version__}, Python {platform.python_version()}; CPU seconds")
    print(tabulate(rows, headers, floatfmt=("", "", "", "", ".2f", ".2f", ".2f", ".2f", ".2f", ".2f", ".0f")))


if __name__ == "__main__":
    main()
