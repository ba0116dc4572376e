"""Access to torch's fake tensors and shape environments, and to other private names of torch that the passes need.

Tried on torch 2.11.0, 2.13.0 and 2.14.1. A fake tensor has a shape, strides, a dtype and a device, but no memory:
running an operator on fakes shows what it would allocate without allocating it.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import sympy
import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, free_unbacked_symbols
from torch.utils import _pytree as pytree
from torch.utils._sympy import functions as torch_functions

from .tensor_subclasses import is_subclass, plain_tensors, rebuilt

__all__ = [
    "FakeTensor",
    "FakeTensorMode",
    "ShapeEnv",
    "allocation_sizes",
    "assume",
    "bounds_of",
    "dummy_input_for",
    "enable_python_dispatcher",
    "facts_of",
    "fake_copy",
    "fake_mode_of",
    "guards_of",
    "has_expression",
    "has_hooks",
    "hint_of",
    "is_fake",
    "is_learned",
    "is_view",
    "is_wrapped",
    "least_of",
    "leaves_of",
    "new_fake_mode",
    "new_symbol",
    "no_new_guards",
    "replaced_by_dummies",
    "run_fake",
    "run_time_checks",
    "shape_env_of",
    "sym_int",
    "symbols_in",
    "torch_functions",
    "unwrapped",
]


def leaves_of(value: Any) -> Sequence[Any]:
    """Return the leaves of a value, which is nearly always one tensor: a walk through a tree takes long."""
    return (value,) if isinstance(value, torch.Tensor) else pytree.tree_leaves(value)


def shape_env_of(values: Iterable[Any]) -> ShapeEnv | None:
    """Return the shape environment of the first fake tensor or SymInt that has one; None if all is static."""
    for value in values:
        if isinstance(value, torch.SymInt):
            return _env(value)
        for plain in plain_tensors(value) if isinstance(value, torch.Tensor) else ():
            if isinstance(plain, FakeTensor) and plain.fake_mode.shape_env is not None:
                return plain.fake_mode.shape_env
    return None


def is_fake(value: Any) -> bool:
    """Whether a value is a fake tensor, or a subclass whose inner tensors are."""
    return isinstance(value, torch.Tensor) and all(isinstance(plain, FakeTensor) for plain in plain_tensors(value))


def _env(value: torch.SymInt) -> ShapeEnv | None:
    env = value.node.shape_env
    assert env is None or isinstance(env, ShapeEnv)
    return env


class _FakeTensorMode(FakeTensorMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """A fake mode that runs ``squeeze_(dim)`` in Python, as tracers do.

    Where the dimension stays, torch's C++ code sets a tensor's sizes from a reference to these very sizes. If one of
    them is symbolic it then reads memory that it has freed, and the process crashes.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = types.MappingProxyType({})
    ) -> Any:
        in_python = func is torch.ops.aten.squeeze_.dim
        with enable_python_dispatcher() if in_python else contextlib.nullcontext():
            return super().__torch_dispatch__(func, types, args, kwargs)


def new_fake_mode(shape_env: ShapeEnv | None) -> FakeTensorMode:
    """Return a new fake mode over the graph's symbols: running nodes in it never touches the graph's own mode."""
    return _FakeTensorMode(shape_env=shape_env, allow_non_fake_inputs=True)


def new_symbol(env: ShapeEnv, name: str, hint: int) -> sympy.Symbol:
    """Return a new symbol for a size, with a hint; a tracer may assume that it is 2 or more if the hint is."""
    from torch._dynamo.source import ConstantSource  # Dynamo takes long to import, and few plans need it

    symbol = env.create_symbol(hint, ConstantSource(name), DimDynamic.DYNAMIC, do_not_specialize_zero_one=hint < 2)
    assert isinstance(symbol, sympy.Symbol)
    return symbol


def sym_int(env: ShapeEnv, size: sympy.Expr, hint: int) -> torch.SymInt:
    """Return an expression over symbols of ``env`` as a SymInt."""
    result = env.create_symintnode(size, hint=hint)
    assert isinstance(result, torch.SymInt)
    return result


def fake_copy(mode: FakeTensorMode, value: torch.Tensor, shape: Sequence[int | torch.SymInt]) -> torch.Tensor:
    """Return a fake tensor of ``mode`` like ``value`` but of the sizes ``shape``; ``value`` may be of another mode.

    A subclass keeps its sizes.
    """
    with mode:
        if is_subclass(value):
            return rebuilt(value, _plain_dummy)
        return torch.empty_strided(tuple(shape), value.stride(), dtype=value.dtype, device=value.device)


def is_learned(tensor: torch.Tensor) -> bool:
    """Whether a tensor, or the tensor of which it is a fake, is a parameter that requires a gradient.

    ATen's kernel choice depends on it even without gradients: a matrix product copies a permuted operand rather than
    repeat a learned one for the whole batch.
    """
    try:
        return tensor.requires_grad and tensor.is_leaf
    except RuntimeError:  # a view that was written in another grad mode than it was made in; it is not a leaf
        return False


def dummy_input_for(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the current fake mode with the metadata of another, in a storage just as large.

    A subclass gets a tensor of its class, whose inner tensors stand in for its own.
    """
    return rebuilt(tensor, _plain_dummy).requires_grad_(is_learned(tensor))


def replaced_by_dummies(originals: Sequence[torch.Tensor], arguments: Any) -> tuple[list[torch.Tensor], Any]:
    """Return a dummy input for each tensor, and a tree of arguments in which they replace these tensors.

    Args:
        originals: the distinct tensors of ``arguments``.
        arguments: a pytree.
    """
    dummy_inputs = list(map(dummy_input_for, originals))
    dummy_of = {id(original): dummy for original, dummy in zip(originals, dummy_inputs, strict=True)}
    return dummy_inputs, pytree.tree_map(lambda leaf: dummy_of.get(id(leaf), leaf), arguments)


def _plain_dummy(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)


@contextlib.contextmanager
def no_new_guards(shape_env: ShapeEnv | None) -> Iterator[None]:
    """Keep comparisons of sizes from becoming guards: each guard would recompile the model for a new shape."""
    if shape_env is None:
        yield
        return
    with shape_env.suppress_guards(), shape_env.ignore_fresh_unbacked_symbols():
        yield


def hint_of(shape_env: ShapeEnv, symbol: sympy.Symbol) -> int:
    """Return the value that a backed symbol had when the graph was traced."""
    read = getattr(shape_env, "guarding_hint_or_throw", None) or shape_env.size_hint  # the second until torch 2.12
    hint = read(symbol)
    assert hint is not None, f"{symbol} has no hint"
    return int(hint)


def guards_of(shape_env: ShapeEnv) -> list[sympy.Basic]:
    """Return what has been assumed of sizes so far: comparisons that were decided, and ranges of symbols."""
    ranges = shape_env.var_to_range.items()
    bounds = [bound for symbol, r in ranges for bound in (sympy.Ge(symbol, r.lower), sympy.Le(symbol, r.upper))]
    return [*(guard.expr for guard in shape_env.guards), *bounds]


def facts_of(shape_env: ShapeEnv) -> tuple[Any, ...] | None:
    """Return all facts of sizes: comparisons that were decided, each symbol's range and hint, and replaced symbols.

    None if a size is known only when the graph runs.
    """
    if any(free_unbacked_symbols(symbol) for symbol in shape_env.var_to_range):
        return None
    symbols = tuple((s, r.lower, r.upper, hint_of(shape_env, s)) for s, r in shape_env.var_to_range.items())
    return tuple(guard.expr for guard in shape_env.guards), symbols, tuple(shape_env.replacements.items())


def assume(shape_env: ShapeEnv, guard: sympy.Basic) -> None:
    """Make a comparison that holds for the sizes of the trace a guard of the graph."""
    holds = bool(shape_env.create_symboolnode(guard))
    assert holds, f"{guard} does not hold for the sizes of the trace"


def bounds_of(shape_env: ShapeEnv, symbol: sympy.Symbol) -> tuple[int | None, int | None]:
    """Return the smallest and the largest value that a symbol may have; None where there is no bound."""
    known = shape_env.bound_sympy(symbol)
    lower, upper = (int(bound) if bound.is_Integer else None for bound in (known.lower, known.upper))
    return lower, upper


def run_time_checks(shape_env: ShapeEnv, symbol: sympy.Symbol) -> list[sympy.Basic]:
    """Return the comparisons that a graph checks when it runs, over this symbol and those made before it."""
    return [check.expr for check in shape_env.deferred_runtime_asserts.get(symbol, [])]


def least_of(shape_env: ShapeEnv, symbol: sympy.Symbol) -> int:
    """Return the smallest value of a symbol: 2 where size 1 is compiled apart, more where the trace assumed so."""
    lower = shape_env.var_to_range[symbol].lower
    return int(lower) if lower.is_Integer else 0


def fake_mode_of(values: Iterable[Any]) -> FakeTensorMode:
    """Return the mode of the first fake tensor among values; a new mode if there is none."""
    plain = (plain for value in values if isinstance(value, torch.Tensor) for plain in plain_tensors(value))
    return next((value.fake_mode for value in plain if isinstance(value, FakeTensor)), None) or new_fake_mode(None)


def run_fake(mode: FakeTensorMode, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a function on fake tensors of ``mode``; real tensors among its arguments are weights, of static sizes.

    Operators are dispatched in Python, as tracers do: see `_FakeTensorMode`.
    """

    def fake(leaf: Any) -> Any:
        real = isinstance(leaf, torch.Tensor) and not is_fake(leaf)
        return mode.from_tensor(leaf, static_shapes=True) if real else leaf

    with no_new_guards(mode.shape_env):
        args, kwargs = pytree.tree_map(fake, (args, kwargs))
        with enable_python_dispatcher(), mode:
            return function(*args, **kwargs)


def is_view(tensor: torch.Tensor) -> bool:
    """Whether autograd knows a tensor as a view of another; a view cannot be detached in place."""
    return tensor._is_view()


def has_expression(size: torch.SymInt) -> bool:
    """Whether a size is an expression of symbols; the ragged size of a nested tensor is not."""
    return isinstance(getattr(size.node, "expr", None), sympy.Expr)


def has_symbolic_sizes(value: Any) -> bool:
    """Return whether a value is a tensor with a size that is not a number."""
    return isinstance(value, torch.Tensor) and any(isinstance(size, torch.SymInt) for size in value.shape)


def symbols_in(size: Any) -> set[sympy.Symbol]:
    """Return the symbols of a SymInt, SymFloat or SymBool; none if it is a constant, or not an expression."""
    expression = getattr(size.node, "expr", None)
    return set(expression.free_symbols) if isinstance(expression, sympy.Basic) else set()


def is_wrapped(tensor: torch.Tensor) -> bool:
    """Whether a tensor belongs to `torch.func` (vmap, grad, jvp): it shows another tensor and has no storage."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def unwrapped(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor behind any number of `torch.func` wrappers: the one with the memory."""
    while is_wrapped(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def has_hooks(module: torch.nn.Module) -> bool:
    """Whether calling a module runs more than its ``forward``."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def allocation_sizes(call: Callable[[], Any]) -> list[int]:
    """Run ``call`` and return, in order, the bytes of each block that torch's CPU allocator gave to this thread.

    A freed block has its bytes with a minus. The events come from the older of torch's profilers
    (``torch.autograd.profiler_legacy``), which keeps them for one thread alone: the public ``torch.profiler`` has one
    session for the whole process, and a second session would end the first, which may be a user's.

    Raises:
        RuntimeError: from ``call``; or this thread is being profiled; or this torch has no such profiler.
    """
    profiler: Any = torch.autograd
    if not hasattr(profiler, "_enable_profiler_legacy"):
        raise RuntimeError("this release of torch cannot record what its CPU allocator hands out")
    options = torch._C._profiler._ExperimentalConfig()
    memory_alone = profiler.ProfilerConfig(profiler.ProfilerState.CPU, False, True, False, False, False, options)
    profiler._enable_profiler_legacy(memory_alone)
    try:
        result = call()
    finally:
        events = profiler._disable_profiler_legacy()
    del result
    return [event.cpu_memory_usage() for thread in events for event in thread if event.kind() == "memory_alloc"]
