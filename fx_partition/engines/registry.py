"""The engines by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fx_partition.common.errors import PartitionError
from fx_partition.common.units import shown

from . import accelerate, llama_cpp, pipelining, sglang, torchtitan, vllm
from .module_stages import ModuleStages

#: For each engine a function of the stages, and of the device of each, that returns the value which the engine takes.
ENGINES: Mapping[str, Callable[[ModuleStages, Sequence[int | str]], Any]] = {
    accelerate.NAME: accelerate.device_map,
    pipelining.NAME: pipelining.split_points,
    torchtitan.NAME: torchtitan.modules_per_part,
    vllm.NAME: vllm.layer_partition,
    sglang.NAME: sglang.layer_partition,
    llama_cpp.NAME: llama_cpp.tensor_split,
}


def to_engine(engine: str, stages: ModuleStages, devices: Sequence[int | str]) -> Any:
    """Return stages as the value that an engine takes.

    Args:
        engine: its name.
        stages: the modules of the stages.
        devices: the device of each stage, by number or name.

    Raises:
        PartitionError: the engine is unknown, or cannot say what the plan says; the message names the module.
    """
    if engine not in ENGINES:
        raise PartitionError(f"engine={shown(engine)} is not one of {', '.join(ENGINES)}")
    if not stages.runs:
        raise PartitionError(
            "it is not known which modules these stages run: the tracer left none, or an earlier release wrote the "
            "plan; plan again, from the module itself"
        )
    return ENGINES[engine](stages, devices)


def engine_text(value: Any) -> str:
    """Return a value of `to_engine` as text for a shell: JSON, unless it is text already."""
    return value if isinstance(value, str) else json.dumps(value, indent=1, default=lambda point: point.name)
