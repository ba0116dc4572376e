"""Turn the names that tracers give to inputs, weights and modules into names that a user knows."""

from __future__ import annotations

import re

import torch.fx

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


def module_path(node: torch.fx.Node) -> str:
    """Return the path of the module that a node comes from, as a user knows it; "" where the tracer left none."""
    found = module_stack(node)
    if not found:
        return str(node.target) if node.op == "call_module" else ""
    return found[-1][0]


def module_stack(node: torch.fx.Node) -> list[tuple[str, str]]:
    """Return the path and the name of the class of each module that a node comes from, the model itself first.

    Example: ``[("", "GPT2Model"), ("h.0", "GPT2Block"), ("h.0.mlp", "GPT2MLP")]``.
    """
    stack = node.meta.get("nn_module_stack") or {}
    return [(_plain_path(path), _class_name(kind)) for path, kind in stack.values()]


def _plain_path(path: str) -> str:
    match = re.match(r"L\['[^']*'\](?:\.(.*))?$", path)
    path = (match[1] or "") if match else path
    path = re.sub(r"\[['\"]?(\w+)['\"]?\]", r".\1", path)
    return "" if path.startswith("_") else path


def _class_name(kind: type | str) -> str:
    return kind.rpartition(".")[2] if isinstance(kind, str) else kind.__name__
