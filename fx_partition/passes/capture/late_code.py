"""Write the Python code of a graph when it is first called, and not after each change.

torch.export makes a dozen graph modules on its way from a model to a program, and writes the code of each whenever its
graph has changed. Nobody calls most of them, and for a deep model that takes a third of its time. Inside `late_code`
each gets code of two lines instead, which writes the graph's code and then calls it::

    def forward(self, *args, **kwargs):
        return write_and_call(self, args, kwargs)

This replaces a method of torch while it runs, for the thread that asked for it, on the releases of torch on which it
was tried.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import Graph, GraphModule
from torch.fx.graph import PythonCode

_TRIED = ("2.13.", "2.14.")
_SOURCE = "def forward(self, *args, **kwargs):\n    return write_and_call(self, args, kwargs)\n"
_LOCK = threading.Lock()
_CALLING = threading.local()  # the module whose code this thread writes to call it
_write_now = Graph.python_code


@contextlib.contextmanager
def late_code() -> Iterator[None]:
    """Let the graph modules that this thread makes or changes inside this context write their code when called.

    They stay so afterwards; ``recompile`` writes the code of one at once, as one that is to be pickled needs. Where
    another thread is inside, or on another release of torch, nothing changes.

    Example::

        >>> with late_code():
        ...     module = torch.fx.symbolic_trace(torch.nn.ReLU())
        >>> module(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """
    if not torch.__version__.startswith(_TRIED) or not _LOCK.acquire(blocking=False):
        yield
        return
    thread = threading.get_ident()

    def python_code(self: Graph, root_module: str, **options: Any) -> PythonCode:
        is_wanted = [*options] != ["record_func"] or hasattr(_CALLING, "module")  # as a text to read, or to call it
        if threading.get_ident() != thread or is_wanted:
            return _write_now(self, root_module, **options)
        return PythonCode(_SOURCE, {"write_and_call": _write_and_call}, {}, 0)

    Graph.python_code = python_code  # type: ignore[method-assign]
    try:
        yield
    finally:
        Graph.python_code = _write_now  # type: ignore[method-assign]
        _LOCK.release()


def _write_and_call(module: GraphModule, args: Any, kwargs: Any) -> Any:
    _CALLING.module = module
    try:
        module.recompile()
    finally:
        del _CALLING.module
    return type(module).forward(module, *args, **kwargs)
