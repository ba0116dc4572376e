"""Compare the search over orders with CP-SAT, on generated graphs of 15 to 40 atoms.

    python benchmarks/order_quality.py                     three seeds, 25 graphs each, 40 seconds a solve
    python benchmarks/order_quality.py --seeds 0 --seconds 5
    python benchmarks/order_quality.py --no-solver --atoms 60 60      times alone

For each graph it prints the partitions and the largest one, of trace order and of the search; the bound over all
orders; and the answers of CP-SAT on one partition fewer ("none": there is no such plan; "open": not decided in the
time) and on the largest partition at the search's number. Seconds are processor time. A graph whose search was complete
is marked "all".

The last lines count, for each seed, the decided graphs, those for which the search has the fewest partitions, and those
whose largest partition is within 1% of the best that CP-SAT found.
"""

from __future__ import annotations

import argparse
import time

from order_graphs import Dag, graphs

from fx_partition.passes.ordering.search import measure, search_order
from fx_partition.passes.partitioner.dp import dp
from fx_partition.passes.partitioner.permute import permuted


def row(name: str, dag: Dag, budget: int, seconds: float | None) -> tuple[str, bool, bool, bool]:
    """Return the line of a graph; whether it is decided, has the fewest partitions, and a largest within 1%."""
    chain, predecessors = dag
    trace = measure(chain, dp(chain, budget), budget)
    start = time.process_time()
    order, boundaries, stats = search_order(chain, predecessors, budget, lambda c: dp(c, budget))
    spent = time.process_time() - start
    found = measure(permuted(chain, order), boundaries, budget)
    assert found is not None and trace is not None and found <= trace
    k, largest, _ = found
    bound = stats.bound.fewest if stats.bound else 1
    text = f"{name:12} {chain.num_atoms:5} {trace[0]:3} {trace[1]:6} {k:3} {largest:6} {bound:5} "
    text += f"{'all' if stats.exhaustive else '':4} {spent:7.2f} "
    if seconds is None:
        return text, True, True, True
    from order_cp_sat import Answer, Programme

    fewer = Programme(chain, predecessors, budget, k - 1).solve(seconds, smallest=False) if k > 1 else Answer(False)
    best = Programme(chain, predecessors, budget, k).solve(seconds, smallest=True)
    near = not best.largest or largest <= best.largest * 1.01
    said = {None: "open", False: "none", True: "FEWER"}[fewer.possible]
    text += f"{said:6} {best.largest or '-':>6} {best.bound or '-':>6}"
    return text, fewer.possible is not None, fewer.possible is False, near


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--each", type=int, default=5, help="graphs of a family")
    parser.add_argument("--atoms", type=int, nargs=2, default=[15, 40], metavar=("LEAST", "MOST"))
    parser.add_argument("--seconds", type=float, default=40.0, help="of a solve")
    parser.add_argument("--no-solver", action="store_true")
    arguments = parser.parse_args()
    seconds = None if arguments.no_solver else arguments.seconds
    for seed in arguments.seeds:
        head = f"{'seed ' + str(seed):12} {'atoms':>5} {'trace':>10} {'search':>10} {'bound':>5}      seconds"
        print(head if seconds is None else f"{head} CP-SAT: k - 1, largest, not below")
        rows = []
        for name, dag, budget in graphs(seed, arguments.each, *arguments.atoms):
            rows.append(row(name, dag, budget, seconds))
            print(rows[-1][0], flush=True)
        if seconds is not None:
            decided, fewest, near = (sum(flags) for flags in list(zip(*rows, strict=True))[1:])
            print(f"of {len(rows)}: decided {decided}, the fewest {fewest}, largest within 1% {near}", flush=True)


if __name__ == "__main__":
    main()
