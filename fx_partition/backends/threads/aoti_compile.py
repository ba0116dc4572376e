"""Compile a stage to code that needs no Python where AOTInductor can, else to code that runs under the GIL.

AOTInductor's code is that of inductor with ``cpp_wrapper``, but it runs without the GIL, so such stages overlap fully.
A stage that returns a state, that passes numbers, or that calls an operator which only Python knows, is compiled by
inductor as for a call in line. Code of AOTInductor is kept on disk (`code_cache`).
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
from ..lowering.dedup_compile import compile_deduplicated
from ..lowering.layout_guard import Layout
from ..lowering.stage_key import stage_key
from ..lowering.torch_internals import compile_native, compile_part, tensors_of, to_handles
from ..measure.stage_allocation import zeros_of
from ..streaming.program import ProgramStep
from .build_extension import stage_loop
from .code_cache import NativeCode, entry_of

# The function that AOTInductor's code calls for an operator without a C interface.
_NEEDS_PYTHON = "aoti_torch_proxy_executor_call_function"


@dataclass(frozen=True)
class Code:
    """Code of a stage: the ``path`` of a shared object, or a Python ``callback`` from input to output handles."""

    path: str | None
    callback: Callable[[list[Any]], list[Any]] | None = None


def compile_steps(
    steps: Sequence[ProgramStep],
    threads: Sequence[int],
    patches: Mapping[str, Any],
    numbers: Mapping[sympy.Symbol, int],
) -> list[Code]:
    """Return the code of each stage; equal stages with thread pools of one size share their code.

    Args:
        threads: the number of threads in the pool of each stage.
        patches, numbers: see `compile_step`.
    """
    keys = [
        (count, step.written, step.ties_written, stage_key(step.module, step.fake_inputs, step.fake_outputs))
        for step, count in zip(steps, threads, strict=True)
    ]
    return compile_deduplicated(keys, lambda i: compile_step(steps[i], threads[i], patches, numbers), "pipeline")


def compile_step(
    step: ProgramStep, threads: int, patches: Mapping[str, Any], numbers: Mapping[sympy.Symbol, int]
) -> Code:
    """Compile a stage for a pool of ``threads`` threads.

    Args:
        patches: options of inductor.
        numbers: the values of symbolic sizes for a first call on zeros, which checks that results have the layouts
            that the next stage was compiled for.
    """
    options = {"cpp.threads": threads, **patches}
    reason = _why_python(step)
    if not reason:
        try:
            compiled = _compiled(step, options)
        except PartitionError:  # the cache directory cannot be used
            raise
        except Exception as error:  # inductor raises any type; an error of the model is raised again below
            reason = f"AOTInductor cannot compile it ({type(error).__name__}: {error})"
        else:
            reason = compiled.reason or _why_not_native(compiled.path, step, numbers)
            if not reason:
                return Code(compiled.path)
    warnings.warn(
        f"stage {step.index} runs under Python's lock, so it does not overlap with other such stages: {reason}",
        PartitionWarning,
        stacklevel=2,
    )
    with torch.no_grad():
        function = compile_part(copy.deepcopy(step.module), step.fake_inputs, {"cpp_wrapper": True, **options})
    return Code(None, _with_handles(function, step))


def _why_python(step: ProgramStep) -> str:
    if not step.has_tensors_only:
        return "its inputs or outputs include numbers"
    if step.ties_written:
        return "it writes an input in place that shares its memory with another"
    return ""


def _compiled(step: ProgramStep, options: Mapping[str, Any]) -> NativeCode:
    """Return AOTInductor's code of a stage, compiled now or in an earlier process."""
    entry = entry_of(step, options)
    found = entry.read() if entry else None
    if found is None:
        if entry:
            entry.check()
        path = compile_native(copy.deepcopy(step.module), step.fake_inputs, options)
        needs_python = _NEEDS_PYTHON in Path(path).with_suffix(".cpp").read_text()
        found = NativeCode(path, "it calls an operator that has no C interface" if needs_python else "")
        if entry:
            entry.write(found)
    return found


def _why_not_native(path: str, step: ProgramStep, numbers: Mapping[sympy.Symbol, int]) -> str:
    cpu = torch.device("cpu")
    inputs = [
        source.detach()
        if isinstance(source, torch.Tensor) and place not in step.written
        else zeros_of(value, numbers, cpu)
        for place, (source, value) in enumerate(zip(step.inputs, step.fake_inputs, strict=True))
    ]
    states = {_address(inputs[place]) for place in step.written}
    try:
        results = tensors_of(stage_loop().run(path, to_handles(inputs), len(step.outputs)))
    except RuntimeError as error:
        return f"its compiled code fails on zeros ({error})"
    for result, value, layout in zip(results, step.fake_outputs, step.layouts, strict=True):
        assert isinstance(value, torch.Tensor)
        if result.dtype != value.dtype or not (layout is None or layout.is_of(result)):
            return "its compiled code returns results in other layouts than the next stage expects"
        if _address(result) in states:
            return "it returns a state, which the next request writes"
    return ""


def _with_handles(function: Callable[..., Sequence[Any]], step: ProgramStep) -> Callable[[list[Any]], list[Any]]:
    """Wrap a stage's function so that it takes and returns handles of tensors.

    Numbers become tensors without dimensions, and results get the layouts that the next stage expects. A result that is
    a state, or a view of one, is copied: the next request may write the state while the caller reads the result.
    """
    are_tensors = tuple(isinstance(value, torch.Tensor) for value in step.fake_inputs)

    def laid_out(result: Any, layout: Layout | None) -> torch.Tensor:
        if not isinstance(result, torch.Tensor):
            return torch.tensor(result)
        return result if layout is None or layout.order is None else in_order(result, layout.order)

    def call(handles: list[Any]) -> list[Any]:
        tensors = tensors_of(handles)
        with torch.no_grad():
            inputs = (t if is_tensor else t.item() for t, is_tensor in zip(tensors, are_tensors, strict=True))
            results = function(*inputs)
            if step.written:
                states = {_address(tensors[place]) for place in step.written}
                results = [r.clone() if isinstance(r, torch.Tensor) and _address(r) in states else r for r in results]
            return to_handles([laid_out(r, layout) for r, layout in zip(results, step.layouts, strict=True)])

    return call


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
