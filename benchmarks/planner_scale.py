"""Measure time and memory of `dp`, a search over orders, `pareto` or `verify` for graphs of nine shapes.

    python benchmarks/planner_scale.py --sizes 10000 100000 1000000
    python benchmarks/planner_scale.py --sizes 100000 --objective traffic
    python benchmarks/planner_scale.py --sizes 1000 5000 100000 --verb search
    python benchmarks/planner_scale.py --sizes 8000 100000 --verb beam --shapes star heads
    python benchmarks/planner_scale.py --sizes 10000 100000 --verb pareto
    python benchmarks/planner_scale.py --sizes 1000 10000 100000 --verb verify --shapes star heads

Each row is measured in its own process, so that its peak memory is its own: the largest resident set, with the
interpreter and the chain in it. `k` is the number of partitions; each shape is planned for two budgets, one
that gives a few partitions and one that gives many, at most one for 50 atoms. Atoms are one step each; sizes
are drawn with a fixed seed, so that few atoms are equal and the bisection has work to do.

`beam` is the part that `search` leaves out beyond `search.MAX_ROLLED` atoms: one beam over the whole graph, forwards,
and `dp` on the order that it finds.

`verify` needs a graph: one node for each step of the chain. It is captured and planned in trace order, which is not
timed. `reading` are the seconds of a run of the graph on fake tensors, `checking` the rest.
"""

from __future__ import annotations

import argparse
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
import torch.fx

from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.capture.captured_graph import CapturedGraph
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.ordering.piece import Graph
from fx_partition.passes.ordering.resplit import NARROW
from fx_partition.passes.ordering.rolling_beam import roll
from fx_partition.passes.ordering.search import search_order
from fx_partition.passes.partitioner.chain import Chain
from fx_partition.passes.partitioner.contraction import contract, whole_footprint
from fx_partition.passes.partitioner.dp import dp
from fx_partition.passes.partitioner.pareto import pareto
from fx_partition.passes.partitioner.permute import permuted
from fx_partition.passes.plan.make_plan import make_plan
from fx_partition.passes.plan.request import OBJECTIVES, Request
from fx_partition.passes.verify.check import faults_of
from fx_partition.passes.verify.reading import read_graph

IntArray = npt.NDArray[np.int64]
Uses = list[tuple[IntArray, IntArray]]  # a pattern each: steps that read, and steps whose value they read


def assemble(n: int, uses: Uses, value_scale: int, weight_scale: int, tied: IntArray | None = None) -> Chain:
    """Return a chain in which step t makes value t and reads weight t (or ``tied[t]``) and the values in ``uses``."""
    rng = np.random.default_rng(n)
    reader = np.concatenate([np.arange(n), *(reader for reader, _ in uses)])
    source = np.concatenate([np.arange(n), *(source for _, source in uses)])
    valid = (source >= 0) & (reader < n)
    pairs = np.unique(reader[valid] * n + source[valid])
    weight = np.arange(n) if tied is None else tied
    weight_bytes = rng.integers(0, weight_scale, n)
    returned = np.zeros(n, dtype=np.int64)
    returned[-1] = 1
    return Chain(
        atom_start=np.arange(n + 1),
        workspace=rng.integers(0, value_scale // 2, n),
        value_bytes=rng.integers(1, value_scale, n),
        value_def=np.arange(n),
        value_returned=returned,
        touch_start=np.searchsorted(pairs // n, np.arange(n + 1)),
        touch_value=pairs % n,
        weight_bytes=weight_bytes,
        weight_start=np.arange(n + 1),
        weight_id=weight,
        weight_touch_bytes=weight_bytes[weight],
    )


def transformer(n: int) -> Chain:
    """Return blocks of ten: two residuals, each around five steps, and three readers of the normed input."""
    t = np.arange(n)
    ends = t[(t % 10 == 4) | (t % 10 == 9)]
    heads = t[(t % 10 == 2) | (t % 10 == 3)]
    uses = [(t, t - 1), (ends, ends - 5), (heads, heads - heads % 10)]
    return assemble(n, uses, 1 << 20, 1 << 24)


def residual(n: int) -> Chain:
    """Return convolutions whose activations outweigh the weights, with a skip over every three."""
    t = np.arange(n)
    adds = t[t % 4 == 3]
    return assemble(n, [(t, t - 1), (adds, adds - 4)], 1 << 24, 1 << 20)


def unet(n: int) -> Chain:
    """Return nested skips: step n - 1 - t reads the value of step t, for every fourth t."""
    t = np.arange(n)
    down = t[: n // 2 : 4]
    return assemble(n, [(t, t - 1), (n - 1 - down, down)], 1 << 14, 1 << 24)


def mixture(n: int) -> Chain:
    """Return layers of 32 experts that read the router's output and are summed at the end."""
    t = np.arange(n)
    place = t % 34
    expert = t[(place >= 1) & (place <= 32)]
    router = t[place == 0]
    start, end = expert - expert % 34, expert - expert % 34 + 33
    return assemble(n, [(router, router - 1), (expert, start), (end, expert)], 1 << 18, 1 << 24)


def tied(n: int) -> Chain:
    """Return a transformer whose blocks of ten share their weights in groups of four blocks."""
    t = np.arange(n)
    ends = t[t % 5 == 4]
    return assemble(n, [(t, t - 1), (ends, ends - 5)], 1 << 20, 1 << 24, t % 10 + t // 40 * 40)


def star(n: int) -> Chain:
    """Return one value that all other steps read."""
    t = np.arange(1, n)
    return assemble(n, [(t, np.zeros_like(t))], 1 << 16, 1 << 20)


def heads(n: int) -> Chain:
    """Return a graph of many heads with separate weights: all read one value, and one last step reads all heads."""
    t = np.arange(1, n - 1)
    return assemble(n, [(t, np.zeros_like(t)), (np.full_like(t, n - 1), t)], 1 << 10, 1 << 20)


def branches(n: int) -> Chain:
    """Return branches of four steps from one value, interleaved in the trace."""
    t = np.arange(1, n)
    return assemble(n, [(t, np.maximum(t - n // 4, 0))], 1 << 16, 1 << 20)


def dense_skips(n: int) -> Chain:
    """Return groups of eight steps, each of which reads all earlier ones of its group and the one before the group."""
    t = np.arange(n)
    uses = [(t[t % 8 >= back - 1], t[t % 8 >= back - 1] - back) for back in range(1, 9)]
    return assemble(n, uses, 1 << 16, 1 << 20)


SHAPES: dict[str, Callable[[int], Chain]] = {
    "transformer": transformer,
    "residual": residual,
    "unet": unet,
    "mixture": mixture,
    "tied": tied,
    "star": star,
    "heads": heads,
    "branches": branches,
    "dense skips": dense_skips,
}


def peak_mib() -> float:
    """Return the largest resident set of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def makers(chain: Chain) -> list[list[int]]:
    """Return, for each step, the steps whose values it reads."""
    defined = chain.value_def[chain.touch_value].tolist()
    rows = pairwise(chain.touch_start.tolist())
    return [[d for d in dict.fromkeys(defined[i:j]) if d != t] for t, (i, j) in enumerate(rows)]


def read_all(weight: torch.Tensor, *sources: torch.Tensor) -> torch.Tensor:
    """Run one step of a graph: it reads its weight and the results of other steps."""
    return (sources[0] if len(sources) == 1 else torch.stack(sources).sum(0)) + weight.sum()


def as_graph(chain: Chain) -> CapturedGraph:
    """Return the graph in which each step of a chain is a node; its weights have a kilobyte for each megabyte."""
    graph, root = torch.fx.Graph(), torch.nn.Module()
    x = graph.placeholder("x")
    nodes: list[torch.fx.Node] = []
    for step, (sources, weight) in enumerate(zip(makers(chain), chain.weight_id.tolist(), strict=True)):
        if not hasattr(root, f"w{weight}"):
            size = 8 + int(chain.weight_bytes[weight]) // 4096
            root.register_parameter(f"w{weight}", torch.nn.Parameter(torch.empty(size), requires_grad=False))
        read = [nodes[source] for source in sources] or [x]
        nodes.append(graph.call_function(read_all, (graph.get_attr(f"w{weight}"), *read), name=f"step_{step}"))
    graph.output(nodes[-1])
    return capture(torch.fx.GraphModule(root, graph), [torch.empty(64)])


def measure_verify(shape: str, n: int, parts: int, objective: str) -> str:
    """Check one plan, and return the seconds of processor time."""
    captured = as_graph(SHAPES[shape](n))
    memory = analyze_memory(captured)
    whole = make_plan(captured, memory, Request.check(sys.maxsize, order="trace"))
    budget = whole.max_bytes // parts + (1 << 15)
    plan = make_plan(captured, memory, Request.check(budget, order="trace", objective=objective))
    start = time.process_time()
    reading = read_graph(captured)
    read = time.process_time()
    faults = faults_of(reading, plan)
    end = time.process_time()
    assert not faults, faults[0]
    links = sum(len(run.touches) for run in reading.runs)
    figures = f"{end - start:9.3f} {peak_mib():9.0f} {read - start:9.3f} {end - read:9.3f}"
    return f"{shape:12} {n:9} {links:9} {plan.num_partitions:7} {figures}"


def measure(shape: str, n: int, parts: int, slack: float, verb: str) -> str:
    """Plan one chain for about ``parts`` partitions, and return the seconds of processor time."""
    chain = SHAPES[shape](n)
    contraction = contract(chain)
    # Values that are always resident (skips over the whole graph) do not shrink with more partitions.
    budget = whole_footprint(contraction) // parts + 4 * int(contraction.alone.max())
    links = contraction.num_inner_links
    del contraction
    predecessors = makers(chain)
    start = time.process_time()
    if verb == "dp":
        k = len(dp(chain, budget, slack)) - 1
    elif verb == "pareto":
        k = pareto(chain, budget)[0].num_partitions
    elif verb == "beam":
        order = roll(Graph(chain, predecessors), range(n), budget, NARROW, 1.0, backwards=False)
        k = len(dp(permuted(chain, order), budget, slack)) - 1
    else:
        found = search_order(chain, predecessors, budget, lambda c: dp(c, budget, slack), traffic=slack > 0)
        k = len(found.boundaries) - 1
    seconds = time.process_time() - start
    return f"{shape:12} {n:9} {links:9} {k:7} {seconds:9.3f} {peak_mib():9.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument(
        "--one", nargs=3, metavar=("SHAPE", "ATOMS", "PARTS"), help="one row, in this process"
    )
    parser.add_argument("--verb", choices=["dp", "search", "beam", "pareto", "verify"], default="dp")
    parser.add_argument("--objective", choices=OBJECTIVES, default="balanced")
    arguments = parser.parse_args()
    if arguments.one:
        shape, atoms, parts = arguments.one
        if arguments.verb == "verify":
            print(measure_verify(shape, int(atoms), int(parts), arguments.objective))
            return
        slack = math.inf if arguments.objective == "traffic" else 0.0
        print(measure(shape, int(atoms), int(parts), slack, arguments.verb))
        return
    print(f"{arguments.verb}, objective {arguments.objective}")
    more = f" {'reading':>9} {'checking':>9}" if arguments.verb == "verify" else ""
    print(f"{'shape':12} {'atoms':>9} {'links':>9} {'k':>7} {'seconds':>9} {'peak MiB':>9}{more}")
    for n in arguments.sizes:
        for shape in arguments.shapes:
            for parts in (5, n // 50):
                row = [sys.executable, __file__, "--one", shape, str(n), str(parts)]
                row += ["--objective", arguments.objective, "--verb", arguments.verb]
                print(
                    subprocess.run(row, check=True, capture_output=True, text=True).stdout, end="", flush=True
                )


if __name__ == "__main__":
    main()
