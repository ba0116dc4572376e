"""Roads whose stages are compiled by inductor; they take seconds, and are right up to rounding."""

from __future__ import annotations

from typing import Any

import torch

import fx_partition
from fx_partition import PartitionError
from fx_partition.report.compiled_plans import compiled_graphs

from .observe import Seen, run
from .program import Program
from .roads import Ran, TorchRefuses, _dynamo, _exported, _is_dynamic, _marked, _warned

#: Random numbers as eager mode draws them.
_PLAIN = {"fallback_random": True}


def by_inductor(program: Program) -> Ran:
    with _dynamo(program), _warned() as warned:
        model = program.build()
        options = {**program.settings.options, "inductor": _PLAIN}
        compiled = torch.compile(model, backend="l2partition", options=options, dynamic=_is_dynamic(program))
        seen = run(_marked(program, compiled), model, program)
        counts = [graph.plan.num_partitions for graph in compiled_graphs(run)]
        return Ran(seen, max(counts, default=0), warned)


def by_inductor_alone(program: Program) -> Seen:
    with _dynamo(program):
        model = program.build()
        compiled = torch.compile(model, backend="inductor", options=dict(_PLAIN), dynamic=_is_dynamic(program))
        return run(_marked(program, compiled), model, program)


def by_pipeline(program: Program) -> Ran:
    """Two or three stages on one core; results are the caller's own, whatever they share in eager mode."""
    model, exported = _exported(program)
    options: dict[str, Any] = {name: program.settings.options[name] for name in _PLANNED & {*program.settings.options}}
    devices = ["cores:0"] * (2 + program.seed % 2)
    with _warned() as warned:
        try:
            pipe = fx_partition.pipeline(exported, devices=devices, inductor=_PLAIN, **options)
        except PartitionError as error:
            if "changes the metadata" not in str(error):
                raise
            raise TorchRefuses("a pipeline takes no model that turns its inputs, and says so") from error
        with pipe:
            seen = run(pipe, model, program)
    return Ran(seen.without_sharing(), pipe.plan.num_partitions, warned)


def by_pipeline_alone(program: Program) -> Seen:
    return by_inductor_alone(program)


_PLANNED = {"order", "algorithm", "objective"}
