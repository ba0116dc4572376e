"""Load the weights of a model without memory from a checkpoint, each when a stage of this process needs it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fx_partition.common.errors import PartitionError, PartitionWarning
from fx_partition.passes.capture.fake_tensors import FakeTensor
from fx_partition.passes.capture.module_members import all_tensors, members
from fx_partition.passes.capture.tensor_subclasses import is_subclass

from .checkpoint import Checkpoint, Opened, open_checkpoint
from .lazy_weights import any_lazy, equal_samples, is_lazy, make_lazy, make_read, stays_in_file


@dataclass
class _Slot:
    """One tensor of the model that has no memory; a tied one has several names and modules that hold it."""

    tensor: Tensor
    names: list[str] = field(default_factory=list)
    holders: list[tuple[nn.Module, str]] = field(default_factory=list)


def load_stage_weights(
    model: nn.Module,
    checkpoint: Checkpoint,
    *,
    device: str | torch.device = "cpu",
    others: Mapping[str, Tensor] | None = None,
) -> None:
    """Bind the weights of a model without memory to a checkpoint; each is read when a stage needs it.

    This reads only headers. ``torch.compile(model, backend="l2partition")`` and `pipeline` read the weights of the
    stages that this process runs, once, into memory of their own; a process that runs a quarter of the stages holds a
    quarter of the weights. The files must not change until then.

    On the CPU a weight that was not read is a view of the mapped file: eager calls, ``state_dict()`` and ``model.to()``
    work, and read the pages that they touch. On another device it has no memory: a call of the model that is not
    compiled, and ``state_dict()``, raise a RuntimeError until all weights are read; ``copy.deepcopy``, ``model.to()``
    and calls of submodules are not checked, and fail with an error of the device.

    Args:
        model: the model. Its parameters and buffers that are on the meta device, or fake (made under FakeTensorMode),
            are replaced by tensors of the same sizes, strides and dtypes; tied ones stay tied. Tensors with memory are
            left as they are.
        checkpoint: a .safetensors file; a directory or ``*.safetensors.index.json`` of several; a file of
            ``torch.save``, with a ``state_dict()``; or a mapping of names to tensors (a ``state_dict()`` of
            ``torch.load(mmap=True)``), used as they are until a stage needs them. A weight whose strides in the file
            are not the model's is read at once.
        device: the device of the loaded weights.
        others: tensors by name that the checkpoint lacks (buffers that are not saved, for example), or that are to be
            used instead of its own. They are copied into the strides of the model, as ``load_state_dict`` does.

    Raises:
        PartitionError (a ValueError): there is no such checkpoint, or weights are neither in it nor in ``others``, or
            have other sizes or another dtype there: it names all of them. The model is left as it was.

    Example::

        >>> with torch.device("meta"):
        ...     model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(4)))
        >>> weights = {name: torch.zeros(tensor.shape) for name, tensor in model.state_dict().items()}
        >>> fx_partition.load_stage_weights(model, weights)
        >>> compiled = torch.compile(model, backend="l2partition", options={"cache_bytes": "32KiB"})
    """
    if isinstance(torch.empty(0), FakeTensor):
        raise PartitionError("load_stage_weights makes real tensors; call it outside of FakeTensorMode")
    with torch.no_grad(), torch.inference_mode(False):
        _load(model, open_checkpoint(checkpoint), torch.device(device), dict(others or {}))


def _load(model: nn.Module, opened: Opened, device: torch.device, given: dict[str, Tensor]) -> None:
    slots = _slots(model)
    if not slots:
        warnings.warn(
            "no parameter or buffer of the model is on the meta device or fake, so nothing is loaded: build the model "
            'under torch.device("meta")',
            PartitionWarning,
            stacklevel=3,
        )
        return
    found = {id(slot): _find(slot, given) or _find(slot, opened.tensors) for slot in slots}
    _check(model, slots, found, opened, given)
    seen: set[int] = set()
    for slot in slots:
        (name, source), *_ = found[id(slot)].items()
        tensor = _make(slot.tensor, source, device, opened, name in given, seen)
        for holder, key in slot.holders:
            setattr(holder, key, tensor)
    if not stays_in_file(device):
        model.register_forward_pre_hook(_before_call)
        model.register_state_dict_pre_hook(_before_saving)  # type: ignore[no-untyped-call]


def _slots(model: nn.Module) -> list[_Slot]:
    slots: dict[int, _Slot] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for key, tensor in members(module):
            if isinstance(tensor, torch.Tensor) and (isinstance(tensor, FakeTensor) or tensor.is_meta):
                slot = slots.setdefault(id(tensor), _Slot(tensor))
                slot.names.append(f"{path}.{key}" if path else key)
                slot.holders.append((module, key))
    return list(slots.values())


def _find(slot: _Slot, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensors[name] for name in slot.names if name in tensors}


def _check(
    model: nn.Module, slots: Sequence[_Slot], found: Mapping[int, dict[str, Tensor]], opened: Opened, given: Any
) -> None:
    """Raise an error unless every tensor can be loaded, before the model is changed."""
    known = {name for slot in slots for name in slot.names}
    problems = [f"others names {name}, which the model does not have without memory" for name in given.keys() - known]
    for slot in slots:
        sources, name = found[id(slot)], slot.names[0]
        if not sources:
            problems.append(f"{name} is not in the checkpoint")
        unlike = [why for other, source in sources.items() if (why := _unlike(other, slot.tensor, source))]
        problems += unlike
        values = list(sources.values())
        if not unlike and not all(equal_samples(values[0], value) for value in values[1:]):
            problems.append(f"{', '.join(sources)} are one tensor in the model, and differ in the checkpoint")
    if problems:
        raise PartitionError(
            f"the weights of {type(model).__name__} cannot be taken from {opened.name}; the model is as it was:\n"
            + "".join(f"  {problem}\n" for problem in sorted(problems))
            + 'pass what the checkpoint lacks (buffers that are not saved) by others={"name": tensor}, or build it '
            'outside of torch.device("meta"); where sizes or dtypes differ, build the model with the checkpoint\'s'
        )
    extra = sorted(opened.tensors.keys() - all_tensors(model, every_name=True).keys())
    if extra:
        warnings.warn(
            f"{opened.name} has tensors that {type(model).__name__} lacks; they are not loaded: {', '.join(extra)}",
            PartitionWarning,
            stacklevel=4,
        )


def _unlike(name: str, tensor: Tensor, source: Tensor) -> str:
    if type(tensor) not in (Tensor, nn.Parameter, FakeTensor):
        return f"{name} is a {type(tensor).__name__}, and only plain tensors and parameters are loaded"
    if is_subclass(source):
        return f"{name} is a {type(source).__name__} in the checkpoint, and only plain tensors are loaded"
    if isinstance(source, FakeTensor) or source.is_meta:
        return f"{name} has no memory in the checkpoint either"
    if tensor.layout != torch.strided or source.layout != torch.strided:
        return f"{name} is not a dense tensor ({tensor.layout} in the model, {source.layout} in the checkpoint)"
    if tensor.shape != source.shape or tensor.dtype != source.dtype:
        return (
            f"{name} is {tensor.dtype} {list(tensor.shape)} in the model and {source.dtype} {list(source.shape)} in "
            "the checkpoint"
        )
    return ""


def _make(like: Tensor, source: Tensor, device: torch.device, opened: Opened, is_given: bool, seen: set[int]) -> Tensor:
    if is_given:
        return make_read(like, source, device, ours=False)
    # Two lazy weights over the same bytes would share each write until they are read, so the second is read at once.
    make = make_read if source.data_ptr() in seen else make_lazy
    seen.add(source.data_ptr())
    return make(like, source, device, ours=opened.ours)


def _before_call(model: nn.Module, args: Any) -> None:
    """Refuse an eager call. Dynamo evaluates the condition when it traces, so compiled code has no trace of this."""
    if not torch.compiler.is_compiling():
        _refuse(model, "a call that is not compiled")


def _before_saving(model: nn.Module, prefix: str, keep_vars: bool) -> None:
    _refuse(model, "state_dict()")


def _refuse(model: nn.Module, what: str) -> None:
    if not any_lazy():
        return
    unread = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if is_lazy(tensor)]
    if unread:
        raise RuntimeError(
            f"{what} needs all weights of {type(model).__name__}, and {len(unread)} of them, such as {unread[0]}, were "
            "not read from the checkpoint, as no stage of this process uses them; to use the whole model here, load it "
            "with load_state_dict"
        )
