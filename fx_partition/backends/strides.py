"""Tensors cross a boundary with the strides that the other side was compiled for.

Inductor hands a dense result on with the strides that eager gives it, but not a view with gaps or overlaps whose base
it does not return too: it computes what the view shows and lays that out as it likes (``linear(x)[:, :8]`` comes back
dense). The stage that takes it would be compiled for eager's strides. So such a view is made contiguous by the stage
that makes it, and the other is compiled for that; a view of the stage's own input is left, as inductor makes it anew.

Before: ``linear = F.linear(x, w); part = linear[:, :8]; return (part,)``
After:  ``linear = F.linear(x, w); part = linear[:, :8]; contiguous = part.contiguous(); return (contiguous,)``
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.fx

from fx_partition.passes.capture import value_of
from fx_partition.passes.fake import FakeTensor, hint_of, run_fake, shape_env_of
from fx_partition.passes.split import Stub
from fx_partition.passes.symbols import to_expr


def gapped_crossings(stubs: Iterable[Stub]) -> set[torch.fx.Node]:
    """The nodes whose tensors cross a boundary and would not arrive with eager's strides."""
    stubs = list(stubs)
    taken = {node for stub in stubs for node in stub.inputs}
    found: set[torch.fx.Node] = set()
    for stub in stubs:
        received = [value for node in stub.inputs if isinstance(value := value_of(node), torch.Tensor)]
        storages = {id(storage): storage for storage in (value.untyped_storage() for value in received)}
        for node in stub.outputs:
            value = value_of(node)
            if node not in taken or not isinstance(value, FakeTensor):
                continue
            if id(value.untyped_storage()) not in storages and not is_dense(value):
                found.add(node)
    return found


def memory_order(value: torch.Tensor) -> list[int]:
    """The dimensions from the outermost in memory to the innermost, by the strides of the trace."""
    strides = _numbers(value)
    return sorted(range(len(strides)), key=lambda d: -strides[d])


def is_dense(value: torch.Tensor) -> bool:
    """Whether a fake tensor fills its storage, each element once: then a tensor like it has its strides."""
    assert isinstance(value, FakeTensor)
    twin = run_fake(value.fake_mode, torch.empty_like, (value,), {})
    return [to_expr(stride) for stride in value.stride()] == [to_expr(stride) for stride in twin.stride()]


def _numbers(value: torch.Tensor) -> list[int]:
    """The strides that the trace saw."""
    env = shape_env_of([value])
    strides = [to_expr(stride) for stride in value.stride()]
    if env is None:
        return [int(stride) for stride in strides]
    return [s if isinstance(s, int) else int(s.subs({x: hint_of(env, x) for x in s.free_symbols})) for s in strides]


def contiguous(value: torch.Tensor) -> torch.Tensor:
    """The fake value as it arrives at the other side."""
    assert isinstance(value, FakeTensor)
    with torch.no_grad():
        result = run_fake(value.fake_mode, torch.Tensor.contiguous, (value,), {})
    assert isinstance(result, torch.Tensor)
    return result


def make_contiguous(gm: torch.fx.GraphModule, outputs: Iterable[torch.fx.Node], gapped: set[torch.fx.Node]) -> None:
    """Let a stage's copy of its graph return the ``gapped`` ones of its ``outputs`` contiguous."""
    output = next(iter(reversed(gm.graph.nodes)))
    results = output.args[0]
    assert isinstance(results, tuple)
    with gm.graph.inserting_before(output):
        output.args = (
            tuple(
                gm.graph.call_method("contiguous", (result,)) if node in gapped else result
                for node, result in zip(outputs, results, strict=True)
            ),
        )
    gm.recompile()
