"""Traces a block that repeats once, and writes its nodes again for each block like it.

Most of the time of torch.export goes by in the blocks of a deep model, each of which gives the same nodes over other
weights. Blocks of a run that are alike (`repeated_blocks`) are traced until two in a row have written the same. What
the second of them wrote into the tracer's graph is written again for those that follow, whose ``forward`` does not
run::

    layers.0  traced
    layers.1  traced: the same nodes, so it is the template
    layers.2  written from the template: `linear_7(add_5, p_layers_1_weight)` -> `linear_14(add_11, p_layers_2_weight)`
    ...
    layers.9  traced, and compared with the template

The graph is to the node, its name and its metadata what torch.export alone gives. Where that cannot be shown, a block
is traced; where the last block writes something else than the template, the whole model is traced again without any.
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
    """A run of blocks is not what it seemed: nothing that was written from a template may be used."""


@dataclass
class Replays:
    """What has come of it.

    Attributes:
        runs: how many runs of blocks that are alike there are.
        written: how often a block was written from a template.
        unconfirmed: how many templates the last block of their run has not confirmed.
    """

    runs: int = 0
    written: int = 0
    unconfirmed: int = 0


@contextlib.contextmanager
def repeated_blocks_once(model: nn.Module) -> Iterator[Replays]:
    """Trace blocks that repeat once while this lasts; the model and its classes are in the end as they were.

    What is traced holds only if nothing is `unconfirmed` and no error was raised.
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
            stack.enter_context(run.standing_in())
        yield replays


class _Run:
    """One run, while a model is traced."""

    def __init__(self, run: Run, replays: Replays) -> None:
        self.watched, self._blocks, self._replays = run.watched, run.blocks, replays
        self._called: list[nn.Module] = []
        self._template: Template | None = None
        self._is_established = False  # two blocks in a row have written the same
        self._is_told_apart = False
        self._own_dicts: set[int] = set()

    @contextlib.contextmanager
    def standing_in(self) -> Iterator[None]:
        """Be what is called in place of each block's ``forward``."""
        with contextlib.ExitStack() as stack:
            for block in self._blocks:
                vars(block)["forward"] = self._standing_in(block, block.forward)
                stack.callback(vars(block).pop, "forward", None)
            yield

    def on_read(self, holder: int) -> None:
        """A watched attribute was read or written."""
        if holder in self._own_dicts:
            self._is_told_apart = True

    def _standing_in(self, block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        """What is called in place of ``forward``; its name keeps it out of stack traces."""

        @functools.wraps(forward)
        def stand_in(*args: Any, **kwargs: Any) -> Any:
            return self._call(block, forward, args, kwargs)

        return stand_in

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
    """A property in place of an attribute of instances, that says whose was read or written."""

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
