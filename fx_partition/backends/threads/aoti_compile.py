"""A stage as code that needs no Python: compiled by AOTInductor where that can, else called under Python's lock.

AOTInductor's code is inductor's with ``cpp_wrapper``, without the lock: stages of it overlap fully. A stage that writes
what it takes, that passes numbers, or that calls an operator known to Python alone, is compiled as in line instead.
What AOTInductor made is kept on disk (`code_cache`).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sympy
import torch

from fx_partition.common.errors import PartitionError, PartitionWarning

from ..lowering.boundary_strides import in_order
from ..lowering.dedup_compile import compile_each_once
from ..lowering.layout_guard import Layout
from ..lowering.stage_key import stage_key
from ..lowering.torch_internals import compile_native, compile_part, tensors_of, to_handles
from ..measure.stage_allocation import zeros_of
from ..streaming.program import Step
from .build_extension import stage_loop
from .code_cache import Compiled, entry_of

# What AOTInductor's code calls for an operator that has no C interface.
_NEEDS_PYTHON = "aoti_torch_proxy_executor_call_function"


@dataclass(frozen=True)
class Code:
    """How a stage runs: ``path`` of a shared object, or a ``callback`` from handles of inputs to handles of outputs."""

    path: str | None
    callback: Callable[[list[Any]], list[Any]] | None = None


def compile_steps(
    steps: Sequence[Step], threads: Sequence[int], patches: Mapping[str, Any], numbers: Mapping[sympy.Symbol, int]
) -> list[Code]:
    """The code of each stage; stages that are alike, for pools of one size, share it.

    Args:
        threads: how many threads the pool of each stage has.
        patches, numbers: see `compile_step`.
    """
    keys = [
        (count, step.writes and _weights(step), stage_key(step.module, step.takes, step.makes))
        for step, count in zip(steps, threads, strict=True)
    ]
    return compile_each_once(keys, lambda i: compile_step(steps[i], threads[i], patches, numbers), "pipeline")


def compile_step(step: Step, threads: int, patches: Mapping[str, Any], numbers: Mapping[sympy.Symbol, int]) -> Code:
    """Compile a stage for a pool of ``threads`` threads.

    Args:
        patches: inductor options.
        numbers: the symbols' sizes for a first call on zeros, which shows that results are laid out as the next stage
            was compiled for.
    """
    options = {"cpp.threads": threads, **patches}
    reason = _why_python(step)
    if not reason:
        try:
            compiled = _compiled(step, options)
        except PartitionError:  # there is nowhere to keep the code
            raise
        except Exception as error:  # inductor's, of any kind; if it is the model's, it comes again below
            reason = f"AOTInductor cannot compile it ({type(error).__name__}: {error})"
        else:
            reason = compiled.reason or _why_not_native(compiled.path, step, numbers)
            if not reason:
                return Code(compiled.path)
    warnings.warn(
        f"stage {step.index} runs under Python's lock, so it does not overlap with others that do: {reason}",
        PartitionWarning,
        stacklevel=2,
    )
    with torch.no_grad():
        function = compile_part(copy.deepcopy(step.module), step.takes, {"cpp_wrapper": True, **options})
    return Code(None, _with_handles(function, step))


def _why_python(step: Step) -> str:
    if not step.is_of_tensors:
        return "numbers cross its boundaries"
    if step.writes:
        return "it writes what it takes"
    return ""


def _compiled(step: Step, options: Mapping[str, Any]) -> Compiled:
    """What AOTInductor makes of a stage, or has made of it in an earlier process."""
    entry = entry_of(step, options)
    found = entry.read() if entry else None
    if found is None:
        if entry:
            entry.check()
        path = compile_native(copy.deepcopy(step.module), step.takes, options)
        needs_python = _NEEDS_PYTHON in Path(path).with_suffix(".cpp").read_text()
        found = Compiled(path, "it calls an operator that has no C interface" if needs_python else "")
        if entry:
            entry.write(found)
    return found


def _why_not_native(path: str, step: Step, numbers: Mapping[sympy.Symbol, int]) -> str:
    cpu = torch.device("cpu")
    inputs = [
        source if isinstance(source, torch.Tensor) else zeros_of(value, numbers, cpu)
        for source, value in zip(step.inputs, step.takes, strict=True)
    ]
    try:
        results = tensors_of(stage_loop().run(path, to_handles(inputs), len(step.outputs)))
    except RuntimeError as error:
        return f"its compiled code fails on zeros ({error})"
    for result, value, layout in zip(results, step.makes, step.layouts, strict=True):
        assert isinstance(value, torch.Tensor)
        if result.dtype != value.dtype or not (layout is None or layout.is_of(result)):
            return "its compiled code lays its results out in another way than the next stage expects"
    return ""


def _weights(step: Step) -> tuple[int, ...]:
    """Which arguments of a stage are its weights, or its states."""
    return tuple(place for place, value in enumerate(step.inputs) if isinstance(value, torch.Tensor))


def _with_handles(function: Callable[..., Sequence[Any]], step: Step) -> Callable[[list[Any]], list[Any]]:
    """Numbers cross as tensors of no dimension, and tensors as the next stage expects them.

    A result that is a state, or a view of one, is copied: the next request writes the state while the caller reads.
    """
    states = _weights(step) if step.writes else ()
    takes = tuple(isinstance(value, torch.Tensor) for value in step.takes)

    def laid_out(result: Any, layout: Layout | None) -> torch.Tensor:
        if not isinstance(result, torch.Tensor):
            return torch.tensor(result)
        return result if layout is None or layout.order is None else in_order(result, layout.order)

    def call(handles: list[Any]) -> list[Any]:
        tensors = tensors_of(handles)
        with torch.no_grad():
            results = function(*(t if is_tensor else t.item() for t, is_tensor in zip(tensors, takes, strict=True)))
            if states:
                kept = {tensors[place].untyped_storage().data_ptr() for place in states}
                results = [r.clone() if _is_in(r, kept) else r for r in results]
            return to_handles([laid_out(r, layout) for r, layout in zip(results, step.layouts, strict=True)])

    return call


def _is_in(result: Any, storages: set[int]) -> bool:
    return isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() in storages
