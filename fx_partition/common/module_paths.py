"""Paths of modules, as in ``named_modules``."""

from __future__ import annotations

from collections.abc import Iterator


def heads(path: str) -> Iterator[str]:
    """Yield the paths of the modules that hold a module, the model ("") first and the module itself last.

    Example::

        >>> list(heads("layers.0.mlp"))
        ['', 'layers', 'layers.0', 'layers.0.mlp']
    """
    yield ""
    for end, character in enumerate(path):
        if character == ".":
            yield path[:end]
    if path:
        yield path
