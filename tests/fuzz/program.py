"""A program: the text of an ``nn.Module`` and of its inputs, from which both are made as often as needed.

Nothing here is shared by two models that are built: members and inputs are made of seeds, each of its own seed, so
that dropping one changes no other.
"""

from __future__ import annotations

import ast
import linecache
import random
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: What the text of a program may use; a printed script begins with it.
PREAMBLE = '''
def rand(*shape, seed, dtype=torch.float32):
    """Random numbers, small enough for long sums."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def ints(*shape, seed, high):
    """Random indices."""
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def tamed(module):
    """A module of torch.nn whose members are all made of seeds, none constant."""
    for i, member in enumerate((*module.parameters(), *module.buffers())):
        if member.is_floating_point():
            noise = rand(*member.shape, seed=i, dtype=member.dtype) / max(1, member.shape[-1]) ** 0.5
            member.data.copy_(noise.abs() + 0.5 if member.dim() == 1 else noise)
    return module
'''

_PREAMBLE_SCOPE: dict[str, Any] = {"torch": torch, "F": F, "nn": nn}
exec(PREAMBLE, _PREAMBLE_SCOPE)


@dataclass(frozen=True)
class Statement:
    """One or more lines of ``forward`` that run or are dropped as one.

    Attributes:
        text: without indentation.
        kind: of which kind of `kinds.KINDS` it was written.
    """

    text: str
    kind: str

    @cached_property
    def names(self) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
        """The variables it reads, those it defines, and the members of the model it uses."""
        reads, defines, members = set(), set(), set()
        for node in ast.walk(ast.parse(self.text)):
            if isinstance(node, ast.Name):
                (reads if isinstance(node.ctx, ast.Load) else defines).add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
                members.add(node.attr)
        return frozenset(reads), frozenset(defines), frozenset(members)


@dataclass(frozen=True)
class Settings:
    """How a program is run.

    Attributes:
        grad: whether it runs in grad mode; else everything runs under ``torch.no_grad()``.
        backward: whether gradients of its results are computed; where eager mode can.
        train: whether the model is in training mode.
        dynamic: whether the batch is symbolic; then the second call has another batch.
        data_sizes: whether Dynamo traces data-dependent sizes.
        options: for ``fx_partition``: the budget (or the number of devices) and how to plan.
        smooth: whether it may be compared but for rounding.
        shuffled: whether partitions are drawn at random, in any order that may run, in place of planned.
        stages: how the backend's stages run, see `roads.STAGES`.
    """

    grad: bool = False
    backward: bool = False
    train: bool = False
    dynamic: bool = False
    data_sizes: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    smooth: bool = False
    shuffled: bool = False
    stages: str = "eager"


@dataclass(frozen=True)
class Program:
    """A model with its inputs.

    Attributes:
        seed: that it was drawn from.
        members: lines of ``__init__`` by the name of what they make.
        inputs: an expression for each argument of ``forward``, in ``n`` (the batch) and ``seed``.
        setup: lines that run before the expressions of inputs, for inputs that share memory.
        keywords: names of the inputs that are keyword arguments.
        statements: the body of ``forward``.
        results: expressions that it returns.
        container: how it returns them, see `_RESULT`.
    """

    seed: int
    members: dict[str, str]
    inputs: dict[str, str]
    keywords: tuple[str, ...]
    statements: tuple[Statement, ...]
    results: tuple[str, ...]
    container: str
    settings: Settings
    setup: str = ""

    @property
    def kinds(self) -> set[str]:
        return {statement.kind for statement in self.statements}

    def model_text(self) -> str:
        """The class ``Model``."""
        lines = ["class Model(nn.Module):", "    def __init__(self):", "        super().__init__()"]
        lines += [f"        {line}" for line in self.members.values()]
        plain = [name for name in self.inputs if name not in self.keywords]
        arguments = ["self", *plain, *(["*", *self.keywords] if self.keywords else [])]
        lines += ["", f"    def forward({', '.join(arguments)}):"]
        for statement in self.statements:
            lines += [f"        {line}" for line in statement.text.splitlines()]
        lines.append(f"        return {container_text(self.container, self.results)}")
        return "\n".join(lines) + "\n"

    def inputs_text(self) -> str:
        """The function ``make_inputs``, which returns positional and keyword arguments."""
        lines = ["def make_inputs(n, seed):", *(f"    {line}" for line in self.setup.splitlines())]
        lines += [f"    {name} = {text}" for name, text in self.inputs.items()]
        plain = "".join(f"{name}, " for name in self.inputs if name not in self.keywords)
        named = ", ".join(f"{name!r}: {name}" for name in self.keywords)
        lines.append(f"    return ({plain}), {{{named}}}")
        return "\n".join(lines) + "\n"

    @cached_property
    def _scope(self) -> dict[str, Any]:
        scope = dict(_PREAMBLE_SCOPE)
        text = self.model_text() + "\n" + self.inputs_text()
        # Its own name: tracers keep what they know by file and line.
        name = f"<program {self.seed} {abs(hash(text))}>"
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        exec(compile(text, name, "exec"), scope)
        return scope

    def build(self) -> nn.Module:
        """A new model."""
        model: nn.Module = self._scope["Model"]()
        return model.train(self.settings.train)

    def make_inputs(self, call: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """New inputs of a call, in the batch of that call."""
        inputs: tuple[tuple[Any, ...], dict[str, Any]] = self._scope["make_inputs"](self.batch(call), 1000 * (call + 1))
        return inputs

    def batch(self, call: int) -> int:
        return BATCHES[call % 2] if self.settings.dynamic else BATCHES[0]

    def with_statements(self, statements: tuple[Statement, ...]) -> Program:
        """The program of fewer statements; members that none of them uses are dropped."""
        used = {name for statement in statements for name in statement.names[2]}
        members = {name: line for name, line in self.members.items() if name in used or f"self.{name}" in self.results}
        return replace(self, statements=statements, members=members)


#: The batches of a program's calls; the first and no other size of a program.
BATCHES = (5, 7)


def container_text(container: str, results: tuple[str, ...]) -> str:
    """An expression that returns some results in a container."""
    match container:
        case "single":
            return results[0] if len(results) == 1 else f"({', '.join(results)})"
        case "list":
            return f"[{', '.join(results)}]"
        case "dict":
            return "{" + ", ".join(f'"r{i}": {result}' for i, result in enumerate(results)) + "}"
        case "nested":
            head, rest = results[0], results[1:]
            return f'{{"head": {head}, "rest": [({"".join(f"{r}, " for r in rest)}), None]}}'
        case _:
            return f"({''.join(f'{result}, ' for result in results)})"


CONTAINERS = ("tuple", "single", "list", "dict", "nested")


def leaves_of(result: Any) -> list[Any]:
    return list(torch.utils._pytree.tree_leaves(result))


def tensors_of(value: Any) -> list[Tensor]:
    return [leaf for leaf in leaves_of(value) if isinstance(leaf, Tensor)]


def new_random(seed: int, salt: str = "") -> random.Random:
    return random.Random(f"{seed} {salt}")
