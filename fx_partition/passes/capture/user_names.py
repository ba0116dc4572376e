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
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return str(node.target) if node.op == "call_module" else ""
    path, _ = list(stack.values())[-1]
    match = re.match(r"L\['[^']*'\](?:\.(.*))?$", path)
    path = (match[1] or "") if match else path
    path = re.sub(r"\[['\"]?(\w+)['\"]?\]", r".\1", path)
    return "" if path.startswith("_") else path
