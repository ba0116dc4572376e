"""A program while it is written: each statement runs at once, on the inputs of every batch.

So what is picked for the next statement has a known shape, dtype and layout, and a statement that fails, or whose
numbers leave their bounds, is taken back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .program import _PREAMBLE_SCOPE, BATCHES, Program, Settings, Statement, new_random, tensors_of

WIDTH = 8
#: No number of a program is larger: products of several stay far from infinity.
BOUND = 1e3


class NotApplicable(Exception):
    """There is nothing to write this kind of statement with, or it failed."""


class Draft:
    """The program so far.

    Attributes:
        rng: all choices are drawn from it.
        odd: variables of data-dependent sizes; they are picked only where this is asked for.
        accumulators: variables that began as zeros, to be written in steps.
    """

    def __init__(self, seed: int, settings: Settings) -> None:
        self.seed, self.settings = seed, settings
        self.rng = new_random(seed)
        self.members: dict[str, str] = {}
        self.inputs: dict[str, str] = {}
        self.keywords: tuple[str, ...] = ()
        self.setup = ""
        self.statements: list[Statement] = []
        self.odd: set[str] = set()
        self.accumulators: list[str] = []
        self.names = 0
        self._kind = ""
        self._block: tuple[str, list[str]] | None = None
        self.batches = BATCHES if settings.dynamic else BATCHES[:1]
        self.worlds: list[dict[str, Any]] = [{"self": nn.Module()} for _ in self.batches]

    # ---- what there is

    def __getitem__(self, name: str) -> Tensor:
        value = self.worlds[0][name]
        assert isinstance(value, Tensor)
        return value

    def variables(self) -> list[str]:
        """The tensors among the variables, the latest last."""
        return [name for name, value in self.worlds[0].items() if isinstance(value, Tensor) and name not in self.odd]

    def pick(self, *wanted: Callable[[Tensor], bool], among: list[str] | None = None) -> str:
        """A variable of which all of ``wanted`` is true, rather a late one."""
        names = self.variables() if among is None else among
        fit = [name for name in names if all(test(self[name]) for test in wanted)]
        if not fit:
            raise NotApplicable
        return self.rng.choice(fit[-4:] if self.rng.random() < 0.6 else fit)

    def shape(self, name: str) -> list[str]:
        """The sizes of a variable as text: a number, or ``name.shape[d]`` of one that goes with the batch."""
        return [
            str(size) if size is not None else f"{name}.shape[{d}]" for d, size in enumerate(self.fixed(name))
        ]

    def fixed(self, name: str) -> list[int | None]:
        """The sizes of a variable, None for those that go with the batch."""
        shapes = [world[name].shape for world in self.worlds]
        return [sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes, strict=True)]

    def last(self, name: str) -> int:
        """The last size of a variable, if it does not go with the batch."""
        sizes = self.fixed(name)
        if not sizes or sizes[-1] is None or sizes[-1] == 0:
            raise NotApplicable
        return sizes[-1]

    def alike(self, first: str, second: str) -> bool:
        """Whether two variables have the same sizes in every batch."""
        return all(world[first].shape == world[second].shape for world in self.worlds)

    def broadcasts(self, first: str, second: str) -> bool:
        """Whether the second variable can be expanded to the sizes of the first in every batch."""
        for world in self.worlds:
            sizes, other = world[first].shape, world[second].shape
            if len(other) > len(sizes):
                return False
            if any(b not in (1, a) for a, b in zip(reversed(sizes), reversed(other), strict=False)):
                return False
        return True

    # ---- members

    def new_name(self, prefix: str) -> str:
        self.names += 1
        return f"{prefix}{self.names}"

    def member(self, prefix: str, text: str) -> str:
        """A new member of the model, made by an expression; returns it as text."""
        name = self.new_name(prefix)
        line = f"self.{name} = {text}" if "{name}" not in text else text.format(name=name)
        self.members[name] = line
        for world in self.worlds:
            self._execute(line, world)
        return f"self.{name}"

    def weight(self, *shape: int, dtype: torch.dtype = torch.float32) -> str:
        """A parameter, at times one that is used already."""
        known = [
            name for name in self.members
            if name.startswith("w") and (w := self.member_tensor(name)).shape == shape and w.dtype == dtype
        ]
        if known and self.rng.random() < 0.25:
            return f"self.{self.rng.choice(known)}"
        scale = round(1 / max(1, shape[-1] if shape else 1) ** 0.5, 3)
        text = f"rand({''.join(f'{size}, ' for size in shape)}seed={self.names}, dtype={dtype})"
        return self.member("w", f"nn.Parameter({text} * {scale})")

    def buffer(self, text: str) -> str:
        return self.member("b", f'self.register_buffer("{{name}}", {text})')

    def member_tensor(self, name: str) -> Tensor:
        value = getattr(self.worlds[0]["self"], name)
        assert isinstance(value, Tensor)
        return value

    # ---- statements

    def let(self, text: str, *, odd: bool = False) -> str:
        """Write ``v = text``; returns the new variable."""
        name = self.new_name("v")
        self.do(f"{name} = {text}")
        if odd:
            self.odd.add(name)
        return name

    def let_all(self, count: int, text: str) -> list[str]:
        """Write ``v, v, = text``."""
        names = [self.new_name("v") for _ in range(count)]
        self.do(f"{', '.join(names)}, = {text}")
        return names

    def do(self, text: str) -> None:
        """Write a statement.

        Raises:
            NotApplicable: it failed, or its numbers are out of bounds; it is not written.
        """
        statement = Statement(text, self._kind)
        try:
            for world in self.worlds:
                self._execute(text if self._block is None else _indented(self._block[0], [text]), world)
            self._check(statement)
        except Exception as error:
            self._replay()
            raise NotApplicable from error
        if self._block is not None:
            self._block[1].append(text)
        else:
            self.statements.append(statement)

    @contextlib.contextmanager
    def block(self, header: str) -> Iterator[None]:
        """Write the statements within in a ``with`` block, as one statement."""
        if self._block is not None:
            raise NotApplicable
        self._block = (header, [])
        try:
            yield
        finally:
            lines, self._block = self._block[1], None
            if lines:
                self.statements.append(Statement(_indented(header, lines), self._kind))

    @contextlib.contextmanager
    def writing(self, kind: str) -> Iterator[None]:
        """What is written within is of a kind, unless that is within another kind."""
        outer = self._kind
        self._kind = outer or kind
        try:
            yield
        finally:
            self._kind = outer

    def _check(self, statement: Statement) -> None:
        reads, defines, _ = statement.names
        for name in {*reads, *defines}:
            values = [world.get(name) for world in self.worlds]
            for tensor in tensors_of(values):
                if tensor.dtype.is_floating_point and tensor.numel():
                    top = tensor.detach().abs().max().item()
                    if not top < BOUND:
                        raise NotApplicable
            if isinstance(values[0], Tensor) and len({(value.dim(), value.dtype) for value in values}) > 1:
                raise NotApplicable

    def _execute(self, text: str, world: dict[str, Any]) -> None:
        with torch.set_grad_enabled(self.settings.grad):
            exec(text, _PREAMBLE_SCOPE, world)

    def start(self) -> None:
        """Make the inputs, once all are known, and begin."""
        self._replay()

    def _replay(self) -> None:
        """Run everything again: what failed may have changed something."""
        program = self.program(("0",), "single")
        block = self._block
        for world, batch in zip(self.worlds, self.batches, strict=True):
            world.clear()
            world["self"] = program.build()
            args, kwargs = program._scope["make_inputs"](batch, 1000)
            plain = [name for name in self.inputs if name not in self.keywords]
            world.update(zip(plain, args, strict=True))
            world.update(kwargs)
            for statement in self.statements:
                self._execute(statement.text, world)
            for line in block[1] if block else ():
                self._execute(_indented(block[0], [line]), world)

    def program(self, results: tuple[str, ...], container: str) -> Program:
        return Program(
            self.seed, dict(self.members), dict(self.inputs), self.keywords, tuple(self.statements), results,
            container, self.settings, self.setup,
        )  # fmt: skip


def _indented(header: str, lines: list[str]) -> str:
    body = [f"    {line}" for text in lines for line in text.splitlines()]
    return "\n".join([f"{header}:", *body])
