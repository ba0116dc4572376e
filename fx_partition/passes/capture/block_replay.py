"""Trace a repeated block once, and write its nodes again for each block like it.

torch.export spends most of its time in the blocks of a deep model, each of which gives the same nodes over other
weights. The blocks of a run (`repeated_blocks`) are traced until two in a row have written the same nodes. The nodes
of the second are the template: they are written again for the blocks that follow, whose ``forward`` does not run::

    layers.0  traced
    layers.1  traced: the same nodes, so it is the template
    layers.2  written from the template: `linear_7(add_5, p_layers_1_weight)` -> `linear_14(add_11, p_layers_2_weight)`
    ...
    layers.9  traced, and compared with the template

Every node of the graph, its name and its metadata are what torch.export alone gives. A block for which that cannot be
shown is traced. If the last block of a run writes other nodes than the template, the whole model is traced again
without templates.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from .block_call import BlockCall
from .block_template import Template
from .export_tracer import Tracing, undisturbed
from .repeated_blocks import Run, find_runs, plain_state, unchanged


class NotAlikeError(Exception):
    """A run of blocks is not what it seemed, so nothing that was written from a template may be used."""


@dataclass
class Replays:
    """Counts of what a trace has done with repeated blocks.

    Attributes:
        runs: how many runs of like blocks the model has.
        written: how many blocks were written from a template.
        unconfirmed: how many templates were used but not confirmed by the last block of their run.
    """

    runs: int = 0
    written: int = 0
    unconfirmed: int = 0


@contextlib.contextmanager
def repeated_blocks_once(model: nn.Module) -> Iterator[Replays]:
    """Trace repeated blocks once inside this context; at its end the model and its classes are as they were.

    The trace is valid only if nothing is `unconfirmed` and no error was raised.
    """
    replays = Replays()
    runs = [_Run(run, replays) for run in find_runs(model)]
    replays.runs = len(runs)
    watched = {(kind, name) for run in runs for kind, names in run.watched.items() for name in names}

    def on_read(holder: int) -> None:
        for run in runs:
            run.on_read(holder)

    with contextlib.ExitStack() as stack:
        for kind, name in watched:
            setattr(kind, name, _watching(name, on_read))
            stack.callback(delattr, kind, name)
        for run in runs:
            stack.enter_context(run.replaced())
        yield replays


class _Run:
    """One run of like blocks during a trace."""

    def __init__(self, run: Run, replays: Replays) -> None:
        self.watched, self._blocks, self._replays = run.watched, run.blocks, replays
        self._called: list[nn.Module] = []
        self._template: Template | None = None
        self._is_established = False  # two blocks in a row have written the same
        self._is_told_apart = False  # the code read an attribute in which the blocks differ
        self._own_dicts: set[int] = set()

    @contextlib.contextmanager
    def replaced(self) -> Iterator[None]:
        """Replace each block's ``forward`` inside this context."""
        with contextlib.ExitStack() as stack:
            for block in self._blocks:
                vars(block)["forward"] = self._replacement(block, block.forward)
                stack.callback(vars(block).pop, "forward", None)
            yield

    def on_read(self, holder: int) -> None:
        """Note that a watched attribute was read or written, in the module whose ``__dict__`` has the id ``holder``."""
        if holder in self._own_dicts:
            self._is_told_apart = True

    def _replacement(self, block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Return the replacement of ``forward``; as it has another name, stack traces of nodes leave it out."""

        @functools.wraps(forward)
        def replacement(*args: Any, **kwargs: Any) -> Any:
            return self._call(block, forward, args, kwargs)

        return replacement

    def _call(self, block: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if any(block is called for called in self._called):
            raise NotAlikeError("a block is called twice")
        self._called.append(block)
        tracing = Tracing()
        template, is_last = self._template, block is self._blocks[-1]
        with undisturbed():
            call = None if self._is_told_apart else BlockCall.of(tracing, block, args, kwargs)
            if call is not None and self._is_established and not is_last and template and call.is_like(template.call):
                self._replays.unconfirmed += not template.used
                self._replays.written += 1
                template.used = True
                return template.write(call)
        before = plain_state(block)
        self._own_dicts = {id(vars(module)) for module in block.modules()}
        try:
            with tracing.functions_of_nodes() as functions:
                result = forward(*args, **kwargs)
        finally:
            self._own_dicts = set()
        if call is None or self._is_told_apart or not unchanged(before, plain_state(block)):
            return result
        with undisturbed():
            is_confirmed = template is not None and template.is_confirmed_by(call, result)
            if template is not None and template.used:
                self._replays.unconfirmed -= is_last and is_confirmed
                return result
            self._is_established = is_confirmed
            self._template = Template.of(call, result, functions)
        return result


def _watching(name: str, on_read: Callable[[int], None]) -> property:
    """Return a property in place of an instance attribute; it reports whose attribute was read or written."""

    def read(self: Any) -> Any:
        held = vars(self)
        if name not in held:
            raise AttributeError(name)
        on_read(id(held))
        return held[name]

    def write(self: Any, value: Any) -> None:
        on_read(id(vars(self)))
        vars(self)[name] = value

    def remove(self: Any) -> None:
        on_read(id(vars(self)))
        del vars(self)[name]

    return property(read, write, remove)
