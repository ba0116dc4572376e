"""Measure the package itself: a Llama-shaped model whole on one GPU against each of its stages alone.

    python -m benchmarks.gpu.product
    python -m benchmarks.gpu.product --precision fp8 --batch 16

The whole model is compiled by inductor and replayed as a CUDA graph; its weights come from HBM in each run. The stages
are those of a plan for an H200's usable L2; each runs alone, again and again, as it would on a GPU of its own: its
weights stay in L2 if they can, and then likewise with a persistence window. From these times a pipeline of as many GPUs
is projected; its hop is arithmetic. Everything is compared with eager mode, and so is the package's own pipeline of all
stages on this GPU.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fx_partition
from fx_partition.backends.cuda.weight_buffer import Pack

from .command import begin, parser_of
from .curve import error_of
from .figures import MIB, project, table
from .llama import BLOCK, TINY, example, llama
from .packed_module import pack_module
from .results import Results
from .timing import REPETITIONS, graph_of, in_turn, on_a_stream
from .windows import held

BUDGET = "H200"
BLOCKS = {"bf16": 6, "fp8": 12}  # some 200 MiB of weights, several times what L2 holds
WHOLE_REPETITIONS = 10
MOST_ERROR = 2e-2  # of results in bf16
RECORD = fx_partition.device("H200")


def whole_model(model: nn.Module, x: Tensor, right: Tensor, rounds: int, repetitions: int) -> dict[str, Any]:
    """Return the time and the error of the whole model under inductor, as a CUDA graph."""
    torch.compiler.reset()
    run = torch.compile(model, fullgraph=True, dynamic=False)

    def measure() -> dict[str, Any]:
        found = in_turn({"graph": (graph_of(lambda i: run(x), repetitions), repetitions)}, rounds)
        return {**found, "error": error_of(run(x), right)}

    return on_a_stream(measure)


def stages_alone(
    model: nn.Module, x: Tensor, right: Tensor, cache: str, rounds: int, repetitions: int
) -> dict[str, Any]:
    """Return the time of each stage of the plan by itself, and the largest error: of a stage, or of all in a row.

    "predicted_us" is what the simulator says of the stage by the record of an H200.
    """
    plan = fx_partition.plan(model, x, cache_bytes=cache)
    predicted = fx_partition.simulate(model, x, plan=plan, device="H200", steps=1)
    cut = fx_partition.split(copy.deepcopy(model), x, plan=plan)
    given: list[tuple[Any, ...]] = []
    parts = [getattr(cut, f"partition_{i}") for i in range(plan.num_partitions)]
    hooks = [part.register_forward_pre_hook(lambda _, args: given.append(args)) for part in parts]
    with torch.no_grad():
        errors = [error_of(cut(x), right)]
    for hook in hooks:
        hook.remove()
    rows = []
    for i, (part, inputs) in enumerate(zip(parts, given, strict=True)):
        pack = pack_module(part, x.device)
        torch.compiler.reset()
        run = torch.compile(part, fullgraph=True, dynamic=False)
        with torch.no_grad():
            errors += map(error_of, pytree.tree_leaves(run(*inputs)), pytree.tree_leaves(part(*inputs)))

        own = {
            "mib": round(plan.partitions[i].total_bytes / MIB, 2),
            "received_bytes": plan.partitions[i].recv_bytes,
            "predicted_us": round(predicted.stages[i].seconds * 1e6, 2),
        }
        timed = on_a_stream(partial(resident_times, partial(run, *inputs), pack, rounds, repetitions))
        rows.append({**own, **timed})
    return {"stages": rows, "error": worst(errors), "copies": on_a_stream(partial(copies_of, x, rounds, repetitions))}


def resident_times(
    call: Callable[[], Any], pack: Pack, rounds: int, repetitions: int
) -> dict[str, dict[str, float]]:
    """Return the times of a stage that runs again and again, and with a window over its weights if there can be one."""
    found = in_turn({"resident": (graph_of(lambda i: call(), repetitions), repetitions)}, rounds)
    with held(pack) as has_window:
        if has_window:
            found |= in_turn({"window": (graph_of(lambda i: call(), repetitions), repetitions)}, rounds)
    return found


def copies_of(x: Tensor, rounds: int, repetitions: int) -> dict[str, float]:
    """Return the time of what a captured stage adds to its work: a copy into its input and one out of its result."""
    static, result = torch.empty_like(x), torch.empty_like(x)

    def both(_: int) -> None:
        static.copy_(x)
        result.copy_(static)

    return in_turn({"copies": (graph_of(both, repetitions), repetitions)}, rounds)["copies"]


def own_pipeline(model: nn.Module, x: Tensor, right: Tensor, cache: str) -> dict[str, Any]:
    """Return the error of the package's own pipeline, all of whose stages are on this GPU, over twenty requests."""
    count = fx_partition.plan(model, x, cache_bytes=cache).num_partitions
    torch.compiler.reset()
    with torch.no_grad(), fx_partition.pipeline(model, x, devices=["cuda:0"] * count, cache_bytes=cache) as pipe:
        errors = [error_of(result, right) for result in pipe.map([x] * 20)]
    return {"stages": count, "error": worst(errors)}


def projected(whole: dict[str, Any], alone: dict[str, Any]) -> dict[str, Any]:
    """Return the pipeline of a GPU a stage in microseconds, without and with copies into and out of each stage.

    A hop is the link's latency by the record and the bytes over its bandwidth.
    """
    best = [min(row[name]["us"] for name in ("resident", "window") if name in row) for row in alone["stages"]]
    link = RECORD.link_bandwidth or float("inf")
    hop = 1e6 * max(RECORD.link_latency + row["received_bytes"] / link for row in alone["stages"])
    bare = project(whole["graph"]["us"], best, hop)
    with_copies = project(whole["graph"]["us"], [us + alone["copies"]["us"] for us in best], hop)
    return {"gpus": len(best), "hop_us": round(hop, 3), "bare": asdict(bare), "with_copies": asdict(with_copies)}


def worst(errors: Sequence[float]) -> float:
    """Return the largest error; one that is not a number is larger than any."""
    return max(errors, key=lambda error: (error != error, error))


def bytes_of(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def check_errors(results: Results, name: str, found: dict[str, Any] | None) -> None:
    """Record a failure where a result is farther from eager mode than bf16 explains; not a number is far."""
    if found is not None and not results.dry_run and not found["error"] < MOST_ERROR:
        results.failures.append(f"{name} is off by {found['error']:.1e}")


def measure(
    results: Results, model: nn.Module, x: Tensor, name: str, cache: str, rounds: int, repetitions: int
) -> list[str] | None:
    """Run the sections of one model and batch; return the figures of a row, None where one of them raised."""
    eager: list[Tensor] = []

    def run_eager() -> dict[str, Any]:
        with torch.no_grad():
            eager.append(model(x))
        return {"mib": round(bytes_of(model) / MIB, 2)}

    if results.section(f"{name}: eager", run_eager) is None:
        return None
    (right,) = eager
    short = min(repetitions, WHOLE_REPETITIONS)
    whole = results.section(f"{name}: whole", lambda: whole_model(model, x, right, rounds, short))
    alone = results.section(f"{name}: stages", lambda: stages_alone(model, x, right, cache, rounds, repetitions))
    own = results.section(f"{name}: pipeline", lambda: own_pipeline(model, x, right, cache))
    for part, found in (("whole", whole), ("stages", alone), ("pipeline", own)):
        check_errors(results, f"{name}: {part}", found)
    if whole is None or alone is None:
        return None
    found = results.section(f"{name}: projection", partial(projected, whole, alone))
    if found is None:
        return None
    bare, copied = found["bare"], found["with_copies"]
    return [
        f"{whole['graph']['us']:.1f}", str(found["gpus"]), f"{bare['period']:.2f}",
        f"{bare['latency']:.1f}", f"{bare['per_gpu']:.2f}", f"{copied['per_gpu']:.2f}",
    ]  # fmt: skip


def rehearse(results: Results, precision: str, batch: int, name: str) -> list[str] | None:
    """Run the sections with a tiny model; a software GPU has neither cuDNN nor products in fp8."""
    torch.backends.cuda.enable_cudnn_sdp(False)
    model = llama(TINY, 2, {"bf16": "bf16", "fp8": "fp8 by bf16"}[precision])
    return measure(results, model.cuda(), example(TINY, batch).cuda(), name, "64KiB", 1, 3)


def conclusion(rows: Sequence[Sequence[str]]) -> str:
    """Return the verdict: the projected speed-up for each GPU, of all precisions and batches."""
    said = ", ".join(f"{row[0]} batch {row[1]} {row[-2]} ({row[-1]} with copies)" for row in rows)
    best = max(float(row[-2]) for row in rows)
    pays = "pays" if best > 1 else "does not pay"
    return f"projected pipeline over copies of the whole model, for each GPU: {said}: it {pays}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = parser_of("product", __doc__ or "")
    parser.add_argument("--precision", nargs="+", choices=BLOCKS, default=list(BLOCKS))
    parser.add_argument("--batch", nargs="+", type=int, choices=range(1, BLOCK.rows + 1), default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=20, help="samples of each time")
    options = parser.parse_args(argv)
    results = begin("product", options)
    if results is None:
        return 0
    rows = []
    for precision in options.precision:
        for batch in options.batch[:1] if options.dry_run else options.batch:
            name = f"{precision}, batch {batch}"
            if options.dry_run:
                row = rehearse(results, precision, batch, name)
            else:
                model, x = llama(BLOCK, BLOCKS[precision], precision).cuda(), example(BLOCK, batch).cuda()
                row = measure(results, model, x, name, BUDGET, options.rounds, REPETITIONS)
            if row is not None:
                rows.append([precision, str(batch), *row])
    headers = ("weights", "batch", "whole, us", "GPUs", "period", "latency", "gain a GPU", "with copies")
    print(f"\nwhole on one GPU against a projected pipeline of a GPU a stage\n{table(headers, rows)}")
    return results.finish((lambda: conclusion(rows)) if rows else None)


if __name__ == "__main__":
    sys.exit(main())
