"""torchpippy's split_on_size_threshold: a new stage wherever the parameter elements of one exceed the threshold.

It knows neither activations nor workspace. It cannot live in one process with torch.distributed.pipelining (both define
``pippy::_pipe_split``), so this module is run as a program that makes the graph again:

    python -m peers.size_threshold GPT-2        (in benchmarks/; prints JSON)
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch.fx

from .case import Case, NoPlan, Planned, smaller_budgets, timed
from .graphs import SPECS, build, copied

ELEMENT_BYTES = 4


def plan(case: Case, budget: int) -> Planned:
    answer = _all_answers(case.graph.spec.name)[str(budget)]
    if "error" in answer:
        raise NoPlan(answer["error"])
    return Planned(answer["assignment"], answer["seconds"])


@lru_cache(maxsize=1)
def _all_answers(name: str) -> dict[str, dict[str, Any]]:
    """Return the answers by budget in bytes, for all budgets of a graph and the smaller ones that may replace them.

    The graph is made once for all.
    """
    command = [sys.executable, "-W", "ignore", "-m", "peers.size_threshold", name]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    if done.returncode:
        raise NoPlan(f"raises {done.stderr.strip().splitlines()[-1]}")
    answers: dict[str, dict[str, Any]] = json.loads(done.stdout.strip().splitlines()[-1])
    return answers


def _split(gm: torch.fx.GraphModule, elements: int) -> torch.fx.GraphModule:
    from pippy.ModelSplit import split_on_size_threshold

    # It looks up every get_attr among the parameters, even the body of a no_grad region: an empty tensor stands for it.
    state = {n.target: torch.empty(0) for n in gm.graph.nodes if n.op == "get_attr"} | gm.state_dict()
    gm.state_dict = lambda: state  # type: ignore[method-assign, assignment]
    split_on_size_threshold(elements)(gm)
    return gm


def _stages(gm: torch.fx.GraphModule) -> dict[str, int]:
    from pippy.IR import pipe_split

    stage, assignment = 0, {}
    for node in gm.graph.nodes:
        if node.target is pipe_split:
            stage += 1
        elif node.op.startswith("call_"):
            assignment[node.name] = stage
    return assignment


def _answer(gm: torch.fx.GraphModule, budget: int) -> dict[str, Any]:
    try:
        split, seconds = timed(lambda fresh: _split(fresh, budget // ELEMENT_BYTES), lambda: copied(gm))
    except Exception as error:
        return {"error": f"raises {type(error).__name__}: {error}"}
    return {"assignment": _stages(split), "seconds": seconds}


def main(name: str) -> None:
    import pippy.ModelSplit  # noqa: F401  before anything imports torch.distributed.pipelining

    graph = build(next(spec for spec in SPECS if spec.name == name))
    budgets = [given for budget in graph.spec.budget_bytes() for given in smaller_budgets(budget)]
    print(json.dumps({budget: _answer(graph.gm, budget) for budget in budgets}))


if __name__ == "__main__":
    main(sys.argv[1])
