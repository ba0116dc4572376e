"""The ways a program is run: eagerly, by torch alone, and by fx_partition."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch._dynamo
import torch.fx
from torch import Tensor, nn
from torch._dynamo.backends.debugging import aot_eager

import fx_partition
from fx_partition import PartitionWarning
from fx_partition.backends.lowering import boundary_strides, torch_internals
from fx_partition.passes.capture.fake_tensors import FakeTensor, is_wrapped
from fx_partition.report.compiled_plans import compiled_graphs

from .observe import Seen, run
from .program import BATCHES, Program
from .shuffle import shuffled

Call = Callable[..., Any]


class TorchRefuses(Exception):
    """Torch cannot trace or run this program, with none of our code in it."""


@dataclass
class Ran:
    """What came of a program by one road.

    Attributes:
        partitions: the most of any graph of it.
        warned: what was warned of.
    """

    seen: Seen
    partitions: int = 0
    warned: list[str] = field(default_factory=list)


def eager(program: Program) -> Seen:
    """Raises: whatever the program raises."""
    model = program.build()
    return run(model, model, program)


# ---- split


def by_export(program: Program) -> Ran:
    model, exported = _exported(program)
    with _warned() as warned, shuffled(program):
        cut = fx_partition.split(exported, **program.settings.options)
    with _warned() as more:
        seen = run(cut, model, program)
    return Ran(seen, cut.plan.num_partitions, warned + more)


def by_export_alone(program: Program) -> Seen:
    model, exported = _exported(program)
    return run(exported.module(check_guards=False), model, program)


def _exported(program: Program) -> tuple[nn.Module, torch.export.ExportedProgram]:
    model = program.build()
    args, kwargs = program.make_inputs(0)
    try:
        with torch.set_grad_enabled(program.settings.grad), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shapes = _dynamic_shapes(program) if program.settings.dynamic else None
            exported = torch.export.export(model, args, kwargs, dynamic_shapes=shapes)
    except Exception as error:
        raise TorchRefuses(f"export: {type(error).__name__}") from error
    if any(is_wrapped(value) for value in exported.constants.values() if isinstance(value, Tensor)):
        raise TorchRefuses("export: a tensor of torch.func has become a constant, which computes nothing")
    return model, exported


def _dynamic_dims(program: Program) -> list[tuple[str, list[int]]]:
    """Which dimensions of each input go with the batch."""
    scope = program._scope["make_inputs"]
    values = []
    for batch in BATCHES:
        args, kwargs = scope(batch, 0)
        plain = [name for name in program.inputs if name not in program.keywords]
        values.append({**dict(zip(plain, args, strict=True)), **kwargs})
    return [
        (name, [d for d in range(a.dim()) if a.shape[d] != values[1][name].shape[d]] if isinstance(a, Tensor) else [])
        for name, a in values[0].items()
    ]


def _dynamic_shapes(program: Program) -> dict[str, Any]:
    batch = torch.export.Dim("batch", min=2, max=64)
    return {name: dict.fromkeys(dims, batch) or None for name, dims in _dynamic_dims(program)}


def by_symbolic_trace(program: Program) -> Ran:
    model = program.build()
    traced = _traced(model)
    args, kwargs = program.make_inputs(0)
    plain = [name for name in program.inputs if name not in program.keywords]
    inputs = {**dict(zip(plain, args, strict=True)), **kwargs}
    shapes = {n: s for n, s in _dynamic_shapes(program).items() if s} if program.settings.dynamic else None
    with _warned() as warned, shuffled(program):
        cut = fx_partition.split(traced, inputs, dynamic_shapes=shapes, **program.settings.options)
    with _warned() as more:
        seen = run(cut, model, program)
    return Ran(seen, cut.plan.num_partitions, warned + more)


def by_symbolic_trace_alone(program: Program) -> Seen:
    model = program.build()
    return run(_traced(model), model, program)


def _traced(model: nn.Module) -> torch.fx.GraphModule:
    torch.manual_seed(0)  # what draws random numbers of fixed sizes draws them now
    try:
        traced = torch.fx.symbolic_trace(model)
    except Exception as error:
        raise TorchRefuses(f"symbolic_trace: {type(error).__name__}") from error
    if any(isinstance(buffer, torch.fx.Proxy) for buffer in model.buffers()):
        raise TorchRefuses("symbolic_trace has left a proxy in the model: it ran `self.buffer += value`")
    return traced


# ---- the backend


def by_backend(program: Program) -> Ran:
    with _dynamo(program), _stages(STAGES[program.settings.stages]), shuffled(program), _warned() as warned:
        model = program.build()
        options = program.settings.options
        compiled = torch.compile(model, backend="l2partition", options=options, dynamic=_is_dynamic(program))
        seen = run(_marked(program, compiled), model, program)
        counts = [graph.plan.num_partitions for graph in compiled_graphs(run)]  # all that live
        return Ran(seen, max(counts, default=0), warned)


def by_dynamo_alone(program: Program) -> Seen:
    stages = STAGES[program.settings.stages]
    with _dynamo(program):
        model = program.build()
        compiled = torch.compile(model, backend=lambda gm, inputs: stages(gm, inputs), dynamic=_is_dynamic(program))
        return run(_marked(program, compiled), model, program)


def _is_dynamic(program: Program) -> bool | None:
    """Some programs have all sizes symbolic, some the batch alone."""
    return (program.settings.dynamic and program.seed % 2 == 0) or None


def _marked(program: Program, function: Call) -> Call:
    if not program.settings.dynamic or _is_dynamic(program):
        return function
    dims = _dynamic_dims(program)

    def call(*args: Any, **kwargs: Any) -> Any:
        plain = [name for name in program.inputs if name not in program.keywords]
        values = {**dict(zip(plain, args, strict=True)), **kwargs}
        for name, marked in dims:
            if marked:
                torch._dynamo.maybe_mark_dynamic(values[name], marked)
        return function(*args, **kwargs)

    return call


@contextlib.contextmanager
def _dynamo(program: Program) -> Iterator[None]:
    torch._dynamo.reset()
    found = program.settings.data_sizes
    with (
        torch._dynamo.config.patch(capture_scalar_outputs=found, capture_dynamic_output_shape_ops=found),
        warnings.catch_warnings(),
    ):
        try:
            yield
        finally:
            torch._dynamo.reset()


@contextlib.contextmanager
def _stages(compile_stage: Callable[[torch.fx.GraphModule, Sequence[Any]], Call]) -> Iterator[None]:
    """Let stages be compiled otherwise than by inductor, whose decompositions then say nothing of strides."""

    def compile_fx(gm: torch.fx.GraphModule, inputs: Sequence[Any], config_patches: Any = None) -> Call:
        return _guarded(compile_stage(gm, inputs), inputs)

    with (
        mock.patch.object(torch_internals, "compile_fx", compile_fx),
        mock.patch.object(boundary_strides, "InductorDecompositions", contextlib.nullcontext),
    ):
        yield


def _eager_stage(gm: torch.fx.GraphModule, inputs: Sequence[Any]) -> Call:
    """Runs a graph as it is."""
    forward: Call = gm.forward
    return forward


def _aot_stage(gm: torch.fx.GraphModule, inputs: Sequence[Any]) -> Call:
    compiled: Call = aot_eager(gm, inputs)
    return compiled


def _dense_stage(gm: torch.fx.GraphModule, inputs: Sequence[Any]) -> Call:
    """Lays results that are views with gaps out as inductor may: dense, in the same order of dimensions."""

    def call(*args: Any) -> Any:
        owned = {t.untyped_storage()._cdata for t in args if isinstance(t, Tensor)}

        def dense(value: Any) -> Any:
            if not isinstance(value, Tensor) or value.untyped_storage()._cdata in owned:
                return value
            return torch.empty_like(value).copy_(value) if torch.empty_like(value).stride() != value.stride() else value

        result = gm.forward(*args)
        return type(result)(map(dense, result)) if isinstance(result, (tuple, list)) else dense(result)

    return call


def _guarded(call: Call, inputs: Sequence[Any]) -> Call:
    """A stage takes inputs of the layouts that it was compiled for and no others, as inductor asserts."""
    expected = []
    for i, value in enumerate(inputs):
        if isinstance(value, FakeTensor):  # a whole graph comes with real ones, whose sizes may vary
            sizes = [s if isinstance(s, int) else None for s in value.shape]
            strides = [s if isinstance(s, int) else None for s in value.stride()]
            expected.append((i, value.dtype, sizes, strides))

    def checked(*args: Any) -> Any:
        for i, dtype, sizes, strides in expected:
            x = args[i]
            fits = (
                x.dtype == dtype
                and x.dim() == len(sizes)
                and all(
                    size in (None, x.shape[d]) and (s in (None, x.stride(d)) or x.shape[d] < 2 or not x.numel())
                    for d, (size, s) in enumerate(zip(sizes, strides, strict=True))
                )
            )
            assert fits, (
                f"input {i} of a stage was to be {dtype} {sizes} of strides {boundary_strides}, and is {x.dtype} "
                f"{tuple(x.shape)} of strides {x.stride()}"
            )
        return call(*args)

    return checked


STAGES = {"eager": _eager_stage, "aot": _aot_stage, "dense": _dense_stage}


@contextlib.contextmanager
def _warned() -> Iterator[list[str]]:
    """Collects the messages of PartitionWarning."""
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", PartitionWarning)
        yield messages
    messages += [str(w.message) for w in caught if issubclass(w.category, PartitionWarning)]
