"""Find the blocks of a model that repeat: neighbours in a container that differ only in the values of their weights.

Two blocks are alike if they and their submodules have the same classes, and parameters, buffers and plain attributes
that a tracer cannot tell apart: the metadata of a tensor counts, and its numbers do not. An attribute that differs
(``layer_idx``) does no harm as long as no code reads it; so it is listed, and watched while a block is traced.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .fake_tensors import has_hooks
from .module_members import all_tensors
from .tensor_subclasses import is_subclass, plain_tensors, structure

# A shorter run gains nothing, as its first two blocks and its last are traced anyway (see `block_replay`).
FEWEST = 4

_PLAIN = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device, torch.Size, torch.layout,
          torch.memory_format)  # fmt: skip
_OWN = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}  # compared in a way of their own


@dataclass(frozen=True)
class Run:
    """Blocks that are alike.

    Attributes:
        blocks: neighbours in one container, in its order.
        watched: for each class of the modules in them, the names of attributes that differ.
    """

    blocks: tuple[nn.Module, ...]
    watched: Mapping[type[nn.Module], frozenset[str]]


def find_runs(model: nn.Module) -> list[Run]:
    """Return the outermost runs of at least `FEWEST` blocks; none if a module is at two places of the model."""
    places = [module for _, module in model.named_modules(remove_duplicate=False)]
    if len({*map(id, places)}) < len(places):  # torch.export then calls modules through proxies, by path
        return []
    return list(_runs_in(model))


def _runs_in(module: nn.Module) -> Iterator[Run]:
    children = [child for child in module._modules.values() if child is not None]
    found = list(_neighbours(children)) if isinstance(module, nn.ModuleList | nn.Sequential) else []
    yield from found
    inside = {id(block) for run in found for block in run.blocks}
    for child in children:
        if id(child) not in inside:
            yield from _runs_in(child)


def _neighbours(children: list[nn.Module]) -> Iterator[Run]:
    start = 0
    watched: dict[type[nn.Module], set[str]] = {}
    for end in range(1, len(children) + 1):
        differing = differences(children[start], children[end]) if end < len(children) else None
        if differing is not None:
            for kind, names in differing.items():
                watched.setdefault(kind, set()).update(names)
            continue
        blocks = tuple(children[start:end])
        names_of = {kind: frozenset(names) for kind, names in watched.items()}
        if len(blocks) >= FEWEST and _can_be_watched(names_of):
            yield Run(blocks, names_of)
        start, watched = end, {}


def _can_be_watched(watched: Mapping[type[nn.Module], frozenset[str]]) -> bool:
    """Whether a property can watch each attribute: no class has it already, and no class is another's base."""
    classes = list(watched)
    related = any(a is not b and issubclass(a, b) for a in classes for b in classes)
    return not related and not any(hasattr(kind, name) for kind, names in watched.items() for name in names)


def differences(a: nn.Module, b: nn.Module) -> dict[type[nn.Module], set[str]] | None:
    """Return, by class, the plain attributes in which two blocks differ; None if they differ in more than these."""
    mine, its = list(a.named_modules()), list(b.named_modules())
    if [name for name, _ in mine] != [name for name, _ in its]:
        return None
    found: dict[type[nn.Module], set[str]] = {}
    for (_, module), (_, other) in zip(mine, its, strict=True):
        differing = _differences_of_one(module, other)
        if differing is None:
            return None
        if differing:
            found.setdefault(type(module), set()).update(differing)
    return found if _ties(a) == _ties(b) else None


def _differences_of_one(a: nn.Module, b: nn.Module) -> set[str] | None:
    if type(a) is not type(b) or isinstance(a, torch.fx.GraphModule | torch.jit.ScriptModule):
        return None
    if has_hooks(a) or has_hooks(b) or "forward" in vars(a) or "forward" in vars(b):
        return None
    if a._non_persistent_buffers_set != b._non_persistent_buffers_set or vars(a).keys() != vars(b).keys():
        return None
    for tensors, others in ((a._parameters, b._parameters), (a._buffers, b._buffers)):
        if [*tensors] != [*others] or any(_look(tensors[name]) != _look(others[name]) for name in tensors):
            return None
    names = vars(a).keys() - _OWN
    return {name for name in names if not _same(vars(a)[name], vars(b)[name])}


def _ties(block: nn.Module) -> list[int]:
    """Return, for each tensor, the place of the first that is the same one: equal for blocks tied in the same way."""
    tensors = [*all_tensors(block, every_name=True).values()]
    first = {id(t): i for i, t in reversed(list(enumerate(tensors)))}
    return [first[id(t)] for t in tensors]


def _look(tensor: torch.Tensor | None) -> Any:
    """Return all that a tracer can see of a weight, its place in a larger storage included."""
    if tensor is None:
        return None
    if tensor.layout is not torch.strided:
        return id(tensor)
    if is_subclass(tensor):
        return structure(tensor), [_look(plain) for plain in plain_tensors(tensor)]
    return (
        type(tensor), tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.untyped_storage().nbytes(),
        tensor.dtype, tensor.device, tensor.requires_grad, tensor.is_conj(), tensor.is_neg(), dict(vars(tensor)).keys(),
    )  # fmt: skip


def _same(a: Any, b: Any) -> bool:
    """Whether code that reads an attribute cannot tell its two values apart."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, _PLAIN):
        return bool(a == b)
    if type(a) is functools.partial:  # an activation with its options, as transformers makes one for each block
        return a.func is b.func and _same(a.args, b.args) and _same(a.keywords, b.keywords)
    if type(a) in (tuple, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if type(a) is dict or type(a).__name__ == "OrderedDict":
        return [*a] == [*b] and all(_same(a[key], b[key]) for key in a)
    return type(a) in (set, frozenset) and bool(a == b)


def plain_state(block: nn.Module) -> tuple[Any, ...]:
    """Return a snapshot of the attributes of a block's modules, in which a change by ``forward`` shows."""
    return tuple(_frozen(dict(vars(module))) for module in block.modules())


def unchanged(before: Any, after: Any) -> bool:
    """Whether two results of `plain_state` have the same objects at the same places."""
    if before is after:
        return True
    if type(before) is not tuple or type(after) is not tuple:
        return isinstance(before, _PLAIN) and type(before) is type(after) and bool(before == after)
    return len(before) == len(after) and all(map(unchanged, before, after))


def _frozen(value: Any) -> Any:
    """Return a value with tuples in place of its containers, so that later changes of these do not show."""
    if isinstance(value, dict):
        return tuple((key, _frozen(item)) for key, item in value.items())
    if isinstance(value, list | tuple | set):
        return tuple(map(_frozen, value))
    return value
