"""Record the leaf operators that one run of a node calls, and how inductor lowers each.

Terms
-----
call
    One ATen operator that makes or writes a storage. Views do neither and are left out.
kind
    How inductor lowers it: *pointwise* (inlined into its readers), *reduction* (a separate buffer, made in a fused
    kernel), *norm* and *softmax* (reductions, then pointwise), *cat* (a buffer that its operands are written into) or
    *external* (a kernel of ATen, oneDNN or BLAS, whose operands and results are buffers).
slot
    The number of a storage that the node makes; ``~i`` is the storage of its tensor argument i.

Example: ``F.layer_norm(F.linear(x, w), (8,), g, b)`` is an *external* call ``addmm`` that reads the arguments x and w
and makes slot 0, and a *norm* call that reads slot 0, g and b and makes slots 1, 2 and 3 (result, mean, deviation).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ..capture.fake_tensors import FakeTensorMode, no_new_guards, replaced_by_dummies
from ..capture.op_call import Bytes, LeafCall, likely, nbytes
from ..capture.operators import schema_of
from ..capture.symbolic_sizes import Size, to_expr
from ..capture.tensor_storage import bytes_of
from ..capture.tensor_subclasses import any_subclass, plain_tensors
from ..footprint.op_effects import distinct_tensors
from ..workspace.measured_scratch import measured
from ..workspace.rules import leaf_workspace


class Kind(enum.Enum):
    POINTWISE = "pointwise"
    REDUCTION = "reduction"
    NORM = "norm"
    SOFTMAX = "softmax"
    CAT = "cat"
    EXTERNAL = "external"


@dataclass(frozen=True)
class Call:
    """One leaf operator.

    Attributes:
        name: ``"aten::addmm"``.
        kind: how inductor lowers it.
        reads: the storages that it reads, each once.
        makes: (slot, bytes) of the storages that it makes.
        writes: the storages, made before it, that it writes.
        extent: the number of elements of its largest operand or result, over which a fused kernel loops.
        workspace: bytes that an external kernel allocates beyond its results.
        statistics: bytes of each intermediate reduction of a norm or a softmax.
        copies: the bytes of operands that inductor copies into another layout for this external kernel alone.
        spatial: whether its result has channels and two or three dimensions of an image.
        relayouts: (storage, bytes) of the operand that has to be channels last, if there is one.
    """

    name: str
    kind: Kind
    reads: tuple[int, ...]
    makes: tuple[tuple[int, Size], ...]
    writes: tuple[int, ...]
    extent: Size
    workspace: Size
    statistics: tuple[Size, ...]
    copies: Size
    spatial: bool
    relayouts: tuple[int, Size] | None


@dataclass(frozen=True)
class Calls:
    """The calls of one node; ``outputs`` are the storages of the tensor leaves of its result, in pytree order."""

    calls: tuple[Call, ...]
    outputs: tuple[int, ...]

    @property
    def sizes(self) -> list[Size]:
        return [size for call in self.calls for size in (call.extent, call.workspace, *(s for _, s in call.makes))]


_NAMES = {
    Kind.NORM: {"native_layer_norm", "native_group_norm", "_fused_rms_norm"},
    Kind.SOFTMAX: {"_softmax", "_log_softmax", "_safe_softmax"},
    Kind.CAT: {"cat", "stack"},
    Kind.REDUCTION: {
        "all", "amax", "amin", "aminmax", "any", "argmax", "argmin", "count_nonzero", "linalg_vector_norm", "logsumexp",
        "max", "mean", "min", "nansum", "norm", "prod", "std", "std_mean", "sum", "var", "var_mean",
    },
    # Torch does not tag these as pointwise, but inductor lowers them to a loop over their result.
    Kind.POINTWISE: {
        "_adaptive_avg_pool2d", "_native_batch_norm_legit_no_training", "_to_copy", "_weight_norm_interface", "arange",
        "avg_pool2d", "clone", "constant_pad_nd", "copy", "diag_embed", "embedding", "empty", "empty_like",
        "empty_strided", "eye", "fill", "flip", "full", "full_like", "gather", "glu", "im2col", "index", "index_select",
        "lift_fresh_copy", "linspace", "max_pool2d_with_indices", "native_batch_norm", "native_dropout", "new_empty",
        "new_full", "new_ones", "new_zeros", "ones", "ones_like", "pixel_shuffle", "pixel_unshuffle",
        "reflection_pad1d", "reflection_pad2d", "repeat", "replication_pad1d", "replication_pad2d", "roll",
        "scalar_tensor", "select_scatter", "slice_scatter", "softplus", "tril", "triu", "upsample_bilinear2d",
        "upsample_nearest2d", "where", "zeros", "zeros_like",
    },
}  # fmt: skip
_KIND_OF = {f"aten::{name}": kind for kind, names in _NAMES.items() for name in names}


def kind_of(func: Any) -> Kind:
    """Return how inductor lowers an ATen operator on a CPU."""
    named = _KIND_OF.get(schema_of(func).name.rstrip("_"))
    if named is not None:
        return named
    return Kind.POINTWISE if torch.Tag.pointwise in func.tags else Kind.EXTERNAL


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Records each operator that makes or writes a storage."""

    def __init__(self, arguments: list[torch.Tensor], numbers: Mapping[sympy.Symbol, int] | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._numbers = numbers
        # An id is valid only while its object lives.
        self._kept: list[Any] = [plain.untyped_storage() for t in arguments for plain in plain_tensors(t)]
        self._number = {id(p.untyped_storage()): ~i for i, t in enumerate(arguments) for p in plain_tensors(t)}
        self._slots = 0
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if any_subclass(types):
            return NotImplemented  # it is called again for the inner tensors
        operands = distinct_tensors((args, kwargs))
        reads = tuple(dict.fromkeys(self.storage(tensor)[0] for tensor in operands))
        result = func(*args, **kwargs)
        if func.namespace == "prim":
            return result
        makes: dict[int, Size] = {}
        results = distinct_tensors(result)
        for tensor in results:
            number, fresh = self.storage(tensor)
            if fresh:
                makes[number] = to_expr(tensor.untyped_storage().nbytes())
        writes = self._written(func, args, kwargs) if schema_of(func).is_mutable else ()
        if makes or writes:
            self.calls.append(self._call(func, args, kwargs, result, operands, reads, makes, writes))
        return result

    def _call(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any,
        operands: list[torch.Tensor], reads: tuple[int, ...], makes: dict[int, Size], writes: tuple[int, ...],
    ) -> Call:  # fmt: skip
        kind = kind_of(func)
        if schema_of(func).name == "aten::bmm" and (_is_one(args[0].size(1)) or _is_one(args[1].size(2))):
            kind = Kind.REDUCTION  # torch/_inductor/kernel/bmm.py: a sum of products on a CPU
        if writes and kind is not Kind.POINTWISE:
            kind = Kind.EXTERNAL  # an out= variant
        workspace: Size = 0
        copies: Size = 0
        relayouts = None
        if kind is Kind.EXTERNAL:
            if schema_of(func).name == "aten::convolution" and args[0].dim() in _LAST:
                args, result, copies = _channels_last(args, result)
                relayouts = (reads[0], to_expr(operands[0].numel() * operands[0].element_size()))
            elif schema_of(func).name == "aten::bmm":
                copies = to_expr(_copied_for_bmm(*args))
            workspace = self._workspace(LeafCall(func, args, kwargs, result, torch.get_num_threads()), makes)
        extents = [to_expr(tensor.numel()) for tensor in operands + distinct_tensors(result)]
        if kind is Kind.POINTWISE:  # a gather reads a table that it does not loop over
            extents = [to_expr(tensor.numel()) for tensor in distinct_tensors(result)[:1]]
        spatial = all(tensor.dim() in _LAST for tensor in distinct_tensors(result)[:1])
        return Call(
            name=schema_of(func).name,
            kind=kind,
            reads=reads,
            makes=tuple(makes.items()),
            writes=writes,
            extent=_widest(extents),
            workspace=workspace,
            statistics=_statistics(kind, args, result, makes),
            copies=copies,
            spatial=spatial,
            relayouts=relayouts,
        )

    def _workspace(self, call: LeafCall, makes: dict[int, Size]) -> Size:
        """Return the bytes that an external kernel allocates beyond its results, measured where that is possible."""
        results: Size = 0
        for size in makes.values():
            results = results + size
        workspace = leaf_workspace(call, results)
        if workspace.kernel is None or self._numbers is None:
            return workspace.bytes
        found = measured(workspace.kernel, self._numbers)
        return workspace.bytes if found is None else found

    def storage(self, tensor: torch.Tensor) -> tuple[int, bool]:
        """Return the number of a tensor's storage (of a subclass: that of its first), and whether it is new."""
        storage = plain_tensors(tensor)[0].untyped_storage()
        fresh = id(storage) not in self._number
        if fresh:
            self._kept.append(storage)
            self._number[id(storage)] = self._slots
            self._slots += 1
        return self._number[id(storage)], fresh

    def _written(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, ...]:
        found: dict[int, None] = {}
        for position, argument in enumerate(schema_of(func).arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            found |= {self.storage(tensor)[0]: None for tensor in distinct_tensors(value)}
        return tuple(found)


_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def _channels_last(args: tuple[Any, ...], result: Any) -> tuple[tuple[Any, ...], Any, Size]:
    """Return a convolution's operands and result in channels-last layout, and the bytes of its weight if it is copied.

    ``decide_layout_opt`` in torch/_inductor/graph.py: with oneDNN every convolution runs on channels-last operands.
    """
    x, w = (torch.empty_like(t, memory_format=_LAST[t.dim()]) for t in args[:2])
    ready = args[1].is_contiguous(memory_format=_LAST[w.dim()])
    copies = 0 if ready else to_expr(w.untyped_storage().nbytes())
    return (x, w, *args[2:]), torch.empty_like(result, memory_format=_LAST[result.dim()]), copies


def _is_one(size: int | torch.SymInt) -> bool:
    return to_expr(size) == 1


def _copied_for_bmm(a: torch.Tensor, b: torch.Tensor) -> Bytes:
    """Return the bytes that inductor copies before a product of batches: matrices dense neither by rows nor by columns.

    A product with one matrix for the whole batch, as in a linear layer, becomes a product of two matrices, for which
    all rows of the batch must be dense.
    """
    shared = [any(likely(stride == 0) for stride in batch.stride()) for batch in (a, b)]
    if shared[1]:
        return 0 if a.is_contiguous() else nbytes(a)
    dense = [t.is_contiguous() or t.mT.is_contiguous() for t in (a, b)]
    return (0 if dense[0] or shared[0] else nbytes(a)) + (0 if dense[1] else nbytes(b))


def _statistics(kind: Kind, args: tuple[Any, ...], result: Any, makes: dict[int, Size]) -> tuple[Size, ...]:
    """Return the bytes of each intermediate reduction.

    A norm returns its mean and deviation; a softmax reduces to the maximum and the sum along a dimension.
    """
    if kind is Kind.SOFTMAX and result.dim():
        return (to_expr(result.numel() // result.size(args[1]) * result.element_size()),) * 2
    return tuple(makes.values())[1:] if kind is Kind.NORM else ()


def _widest(extents: list[Size]) -> Size:
    """Return the largest extent; of symbolic ones the last with the most factors: the result, if it is among them."""
    numbers = [size for size in extents if isinstance(size, int)]
    symbolic = [size for size in extents if not isinstance(size, int)]
    if symbolic:
        return max(reversed(symbolic), key=lambda size: len(size.args))
    return max(numbers, default=0)


def record(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    mode: FakeTensorMode,
    *,
    numbers: Mapping[sympy.Symbol, int] | None = None,
) -> Calls:
    """Run ``function`` once on fake copies of its arguments, as `op_effects.observe` does, and record its calls.

    Args:
        numbers: the sizes at which to measure kernels whose memory depends on the processor; None: use rules alone.
    """
    originals = distinct_tensors((args, kwargs))
    with no_new_guards(mode.shape_env), torch.no_grad(), mode:
        dummy_inputs, (args, kwargs) = replaced_by_dummies(originals, (args, kwargs))
        recorder = _Recorder(dummy_inputs, numbers)
        with recorder:
            result = function(*args, **kwargs)
        outputs = []
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                number, fresh = recorder.storage(leaf)
                if fresh:  # made by no dispatched operator: torch.tensor(1.0) and the like
                    size = bytes_of(leaf)
                    call = Call("tensor", Kind.POINTWISE, (), ((number, size),), (), 1, 0, (), 0, False, None)
                    recorder.calls.append(call)
                outputs.append(number)
    return Calls(tuple(recorder.calls), tuple(outputs))
