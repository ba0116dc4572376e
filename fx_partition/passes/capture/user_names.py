"""Turn the names that tracers give to inputs, weights and modules into names that a user knows."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch.fx

from fx_partition.common.module_paths import heads

_MODULE_KEY = re.compile(r"_modules\['([^']*)'\]|_(?:parameters|buffers)\['([^']*)'\]")


def user_name(source: str) -> str:
    """Return the name that a user knows for a Dynamo source.

    Example::

        >>> user_name("L['self']._modules['layers']._modules['0']._parameters['weight']")
        'layers.0.weight'
        >>> user_name("L['kwargs']['input_ids']")
        'input_ids'
    """
    keys = ["".join(match) for match in _MODULE_KEY.findall(source)]
    if keys:
        return ".".join(keys)
    brackets = re.findall(r"\['([^']*)'\]|\[(\d+)\]", source)
    if not brackets:
        return source
    text, number = brackets[-1]
    return text or f"{brackets[0][0]}.{number}"


class ModuleCall(NamedTuple):
    """A module that a node was traced in: its path, and the name of its class without and with its Python module."""

    path: str
    kind: str
    full_kind: str


def module_path(node: torch.fx.Node) -> str:
    """Return the path of the module that a node comes from, as a user knows it; "" where the tracer left none."""
    if stack := node.meta.get("nn_module_stack"):
        *_, (path, _) = stack.values()
        return _plain_path(path)
    return str(node.target) if node.op == "call_module" else ""


def module_calls(node: torch.fx.Node) -> list[ModuleCall]:
    """Return the modules that a node was traced in, the model itself first; none where the tracer left none.

    Example, without the full names: ``("", "GPT2Model"), ("h.0", "GPT2Block"), ("h.0.mlp", "GPT2MLP")``.
    """
    stack = node.meta.get("nn_module_stack")
    if stack:
        return [ModuleCall(_plain_path(path), *_class_names(kind)) for path, kind in stack.values()]
    if node.op != "call_module":
        return []
    _, *paths = heads(str(node.target))  # without the model, whose class this tracer does not record
    return [ModuleCall(path, *_class_at(node.graph.owning_module, path)) for path in paths]


def _plain_path(path: str) -> str:
    match = re.match(r"L\['[^']*'\](?:\.(.*))?$", path)
    path = (match[1] or "") if match else path
    path = re.sub(r"\[['\"]?(\w+)['\"]?\]", r".\1", path)
    return "" if path.startswith("_") else path


def _class_names(kind: type | str) -> tuple[str, str]:
    full = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    return full.rpartition(".")[2], full


def _class_at(owner: torch.nn.Module | None, path: str) -> tuple[str, str]:
    try:
        return ("", "") if owner is None else _class_names(type(owner.get_submodule(path)))
    except AttributeError:
        return "", ""
