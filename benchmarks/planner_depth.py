"""From GraphModule to Plan on a model of Llama-3-70B's shape, by depth: is planning linear in the number of layers?

    python benchmarks/planner_depth.py --layers 20 40 80

The model lives on the meta device, in bfloat16: nothing is allocated. Tracing (torch.export) is not counted. Counted,
each as the median of several runs after one that warms up: *facts*, the symbolic footprints of all nodes, with
no memory of earlier runs; *plan*, atoms, numbers, boundaries, certificate, trade-offs, and the description of the
partitions. "static" has fixed shapes, "dynamic" a symbolic batch and length.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from tabulate import tabulate
from transformers import LlamaConfig, LlamaForCausalLM

from fx_partition.passes.capture import capture
from fx_partition.passes.gather import gather_facts
from fx_partition.passes.planning import make_plan
from fx_partition.passes.request import Request


def trace(layers: int, dynamic: bool) -> torch.fx.GraphModule:
    """The graph of a decoder of ``layers`` layers, batch 2 and 128 tokens."""
    config = LlamaConfig(
        vocab_size=128256, hidden_size=8192, intermediate_size=28672, num_hidden_layers=layers, num_attention_heads=64,
        num_key_value_heads=8, max_position_embeddings=8192, use_cache=False, attn_implementation="sdpa",
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    inputs = {"input_ids": torch.zeros(2, 128, dtype=torch.long, device="meta")}
    batch, length = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("length", min=2, max=4096)
    shapes = {"input_ids": {0: batch, 1: length}} if dynamic else None
    program = torch.export.export(model, (), inputs, dynamic_shapes=shapes, strict=False)
    graph = program.module(check_guards=False)
    assert isinstance(graph, torch.fx.GraphModule)
    return graph


def timed(function: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Median seconds of ``repeats`` calls after one more, and the last result."""
    result = function()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[20, 40, 80])
    parser.add_argument("--cache", default="4GiB", help="the budget")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    request = Request.check(arguments.cache)
    rows = []
    for dynamic in (False, True):
        for layers in arguments.layers:
            graph = trace(layers, dynamic)
            facts_seconds, (captured, facts) = timed(lambda g=graph: gathered(g), arguments.repeats)
            plan_seconds, plan = timed(lambda c=captured, f=facts: make_plan(c, f, request), arguments.repeats)
            total = facts_seconds + plan_seconds
            rows.append(
                ("dynamic" if dynamic else "static", layers, len(facts.steps), plan.num_partitions,
                 facts_seconds, plan_seconds, total, 1000 * total / layers)
            )  # fmt: skip
    headers = ("shapes", "layers", "nodes", "k", "facts s", "plan s", "total s", "ms a layer")
    print(f"{platform.machine()}, torch {torch.__version__}, Python {platform.python_version()}")
    print(tabulate(rows, headers, floatfmt=("", "", "", "", ".2f", ".2f", ".2f", ".1f")))


def gathered(graph: torch.fx.GraphModule) -> tuple[Any, Any]:
    captured = capture(graph)
    return captured, gather_facts(captured)


if __name__ == "__main__":
    main()
