"""Observe the effect of one node on memory, by running it once on fake tensors.

A node of a torch.fx graph may be a leaf kernel (``aten.relu``) or a composite (``F.multi_head_attention_forward``,
``nn.LSTM``) that allocates many intermediates and frees them before it returns. A run under a dispatch mode shows each
ATen operator inside, in eager's order, while the same Python and C++ references keep the intermediates alive; so the
peak is that of eager execution. The memory inside a leaf kernel comes from `workspace.rules`.

Example::

    >>> from fx_partition.passes.capture.fake_tensors import new_fake_mode
    >>> mode = new_fake_mode(None)
    >>> with mode:
    ...     x, w, b = torch.empty(2, 5, 8), torch.empty(3, 8), torch.empty(8)
    >>> observe(torch.nn.functional.layer_norm, (x, (8,)), {}, mode).outputs
    (Fresh(slot=0, bytes=320),)
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ..capture.fake_tensors import FakeTensorMode, is_learned, no_new_guards, replaced_by_dummies
from ..capture.operators import schema_of
from ..capture.symbolic_sizes import Size, add_up, to_expr
from ..capture.tensor_subclasses import any_subclass, plain_tensors
from ..workspace.measured_scratch import Moments, Scratch
from ..workspace.rules import LeafCall, is_known, leaf_workspace
from .eager_paths import SumsInPlace, as_in_eager
from .shape_reads import reads_elements


@dataclass(frozen=True)
class Fresh:
    """An output in a storage that the node allocated; ``slot`` tells apart the storages of one node."""

    slot: int
    bytes: Size


@dataclass(frozen=True)
class Alias:
    """An output in the storage of the node's tensor argument number ``argument``."""

    argument: int


Output: TypeAlias = Fresh | Alias


@dataclass(frozen=True)
class Effect:
    """The effect of a node on memory.

    Attributes:
        outputs: for each tensor of the result, in pytree order, its storage.
        writes: numbers of the tensor arguments whose storage is written.
        reshapes: numbers of the tensor arguments whose metadata is changed (see `metadata_changes`).
        resized: (number of the argument, bytes of its storage afterwards) for each whose storage is resized.
        reads: numbers of the tensor arguments whose contents are read or written in full.
        gathers: (number of the argument, bytes of the rows that are read) for each argument from which rows are read.
        scratch: bytes that the node has allocated and not freed, outputs included, at each moment that can be the peak.
        unknown: names of the operators inside without a workspace rule.
        draws: whether the node draws random numbers.
    """

    outputs: tuple[Output, ...]
    writes: frozenset[int]
    reshapes: frozenset[int]
    resized: tuple[tuple[int, Size], ...]
    reads: frozenset[int]
    gathers: tuple[tuple[int, Size], ...]
    scratch: Scratch
    unknown: tuple[str, ...]
    draws: bool = False

    @property
    def peaks(self) -> tuple[Size, ...]:
        """Return the bytes at these moments, by rules alone."""
        return self.scratch.by_rules()

    @property
    def sizes(self) -> list[Size]:
        made = (output.bytes for output in self.outputs if isinstance(output, Fresh))
        return [*self.peaks, *made, *(size for _, size in self.resized)]


# Operators that read rows of their first argument, and not all of it: as many bytes as their result has.
_GATHERS = frozenset({"aten::embedding", "aten::index_select", "aten::index", "aten::gather"})

# Operators that update running statistics although their schema has no write: {name: (written arguments, the flag)}.
_SILENT_WRITES = {
    "aten::native_batch_norm": ((3, 4), 5),
    "aten::cudnn_batch_norm": ((3, 4), 5),
    "aten::miopen_batch_norm": ((3, 4), 5),
}


class _Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """A mode that follows every storage that a node allocates while it runs."""

    def __init__(self, arguments: list[torch.Tensor], threads: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.composites = SumsInPlace()
        self._argument = {id(storage): i for i, t in enumerate(arguments) for storage in _storages(t)}
        self._kept = [storage for t in arguments for storage in _storages(t)]  # keeps their ids from being used again
        self._threads = threads
        self._live: dict[int, tuple[weakref.ref[Any], Size]] = {}
        self._total: Size = 0
        self.moments = Moments()
        self.writes: set[int] = set()
        self.reshapes: set[int] = set()
        self.reads: set[int] = set()
        self.gathers: dict[int, Size] = {}
        self.unknown: dict[str, None] = {}
        self.draws = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if any_subclass(types):
            return NotImplemented  # it is called again for the inner tensors
        if self.composites.depth:
            func = as_in_eager(func, args, self._live)
        result = func(*args, **kwargs)
        if func.namespace == "prim":
            return result
        before = self._total
        for tensor in _tensors(result):
            self._allocated(tensor)
        call = LeafCall(func, args, kwargs, result, self._threads)
        workspace = leaf_workspace(call, to_expr(self._total - before))
        unmeasurable = func.name() if workspace.varies and workspace.kernel is None else ""
        self.moments.add(self._total, workspace.bytes, workspace.kernel, unmeasurable)
        if not is_known(func):
            self.unknown[func.name()] = None
        self._record_access(func, args, kwargs, result)
        self.draws |= _draws(func, args, kwargs)
        if schema_of(func).name in _SILENT_WRITES:
            written, flag = _SILENT_WRITES[schema_of(func).name]
            if args[flag]:
                numbers = (self._argument.get(id(t.untyped_storage())) for i in written for t in _tensors(args[i]))
                self.writes.update(number for number in numbers if number is not None)
        return result

    def _allocated(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._argument or key in self._live:
            return
        size = to_expr(storage.nbytes())

        def freed(_: object) -> None:
            del self._live[key]
            self._total = self._total - size

        self._live[key] = (weakref.ref(storage, freed), size)
        self._total = self._total + size

    def _record_access(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        gathered = args[0] if schema_of(func).name in _GATHERS and isinstance(args[0], torch.Tensor) else None
        for schema_argument, value in zip(schema_of(func).arguments, args, strict=False):
            self._access(func, schema_argument, value, gathered, result)
        for schema_argument in schema_of(func).arguments:
            if schema_argument.name in kwargs:
                self._access(func, schema_argument, kwargs[schema_argument.name], gathered, result)

    def _access(self, func: Any, schema_argument: Any, value: Any, gathered: Any, result: Any) -> None:
        for tensor in _tensors(value):
            number = self._argument.get(id(tensor.untyped_storage()))
            if number is None:
                continue
            alias = schema_argument.alias_info
            if alias is not None and alias.is_write and torch.Tag.inplace_view in func.tags:
                self.reshapes.add(number)
            elif alias is not None and alias.is_write:
                self.writes.add(number)
                self.reads.add(number)
            elif tensor is gathered:
                self.gathers[number] = self.gathers.get(number, 0) + to_expr(result.untyped_storage().nbytes())
            elif reads_elements(func, schema_argument.name):
                self.reads.add(number)

    def place(self, tensor: torch.Tensor) -> Output:
        """Return the storage of a tensor of the node's result; call it while the result is alive."""
        storages = {id(storage): storage for storage in _storages(tensor)}
        numbers = {self._argument.get(key) for key in storages}
        if None not in numbers and len(numbers) == 1:
            return Alias(next(number for number in numbers if number is not None))
        if numbers != {None}:
            raise NotImplementedError("a subclass shares some inner tensors with an argument, and others with none")
        for plain in plain_tensors(tensor):
            self._allocated(plain)  # torch.tensor(1.0) and its like dispatch no operator
        return Fresh(next(iter(storages)), add_up(self._live[key][1] for key in storages))


def _draws(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operator draws random numbers; attention has the tag even where its dropout is 0."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    names = [argument.name for argument in schema_of(func).arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return "dropout_p" not in names or given.get("dropout_p", 0.0) != 0.0


def _storages(tensor: torch.Tensor) -> list[torch.UntypedStorage]:
    return [plain.untyped_storage() for plain in plain_tensors(tensor)]


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def observe(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    mode: FakeTensorMode,
) -> Effect:
    """Run ``function`` once on new fakes in place of its arguments, and return its effect on memory.

    Args:
        function: a callable on tensors; neither it nor its arguments are changed.
        args, kwargs: fake tensors of any mode, SymInts and constants.
        mode: the fake mode for the run.

    Returns:
        Its `Effect`; argument numbers count the distinct tensors of (args, kwargs) in pytree order.

    Raises:
        Exception: any exception of an operator that cannot run on fake tensors.
    """
    originals = distinct_tensors((args, kwargs))
    with no_new_guards(mode.shape_env), torch.no_grad(), mode:
        dummy_inputs, (args, kwargs) = replaced_by_dummies(originals, (args, kwargs))
        storages = [[(storage, to_expr(storage.nbytes())) for storage in _storages(t)] for t in dummy_inputs]
        tracker = _Tracker(dummy_inputs, torch.get_num_threads())
        with tracker.composites, tracker:
            result = function(*args, **kwargs)
        outputs = tuple(tracker.place(tensor) for tensor in _tensors(result))
        pairs = zip(originals, dummy_inputs, strict=True)
        tracker.reshapes.update(i for i, (before, after) in enumerate(pairs) if _is_changed(before, after))
        sizes = [(add_up(to_expr(s.nbytes()) for s, _ in held), add_up(size for _, size in held)) for held in storages]
    return Effect(
        outputs=_numbered(outputs),
        writes=frozenset(tracker.writes),
        reshapes=frozenset(tracker.reshapes),
        resized=tuple((i, after) for i, (after, before) in enumerate(sizes) if after != before),
        reads=frozenset(tracker.reads),
        gathers=tuple(tracker.gathers.items()),
        scratch=tracker.moments.scratch(),
        unknown=tuple(tracker.unknown),
        draws=tracker.draws,
    )


def _is_changed(before: torch.Tensor, after: torch.Tensor) -> bool:
    """Whether a run has changed the metadata of a fake that was made like ``before``."""
    sizes = ([to_expr(size) for size in (*t.shape, *t.stride())] for t in (before, after))
    return operator.ne(*sizes) or after.requires_grad != is_learned(before)


def distinct_tensors(tree: Any) -> list[torch.Tensor]:
    """Return the tensors of a pytree, each object once, in order; an argument's number is its index in this list."""
    return list({id(tensor): tensor for tensor in _tensors(tree)}.values())


def _numbered(outputs: tuple[Output, ...]) -> tuple[Output, ...]:
    """Number storages 0, 1, ... in place of their addresses, so that equal effects compare equal."""
    slots: dict[int, int] = {}
    return tuple(
        Fresh(slots.setdefault(output.slot, len(slots)), output.bytes) if isinstance(output, Fresh) else output
        for output in outputs
    )
