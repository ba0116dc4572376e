"""Record everything visible of calls of a model: values, layouts, aliases, writes, random state, gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .program import Program, leaves_of, tensors_of

#: How often a model is called.
CALLS = 2


@dataclass(frozen=True)
class Leaf:
    """A tensor as it was when it was seen, or another value.

    Attributes:
        value: a copy of its numbers, or what it is.
        stride: of the tensor itself; None for other values.
        shares: the first of inputs, states and results whose memory it shares, and where in it; itself for most.
    """

    value: Any
    stride: tuple[int, ...] | None = None
    shares: str = ""


@dataclass
class Seen:
    """What is seen, by where it is: ``"call 0 result 2"``."""

    leaves: dict[str, Leaf] = field(default_factory=dict)
    trees: list[str] = field(default_factory=list)

    def without_sharing(self) -> Seen:
        """The same where results are the caller's own: they share memory with nothing, and do not change later."""
        leaves = {
            place: Leaf(leaf.value, leaf.stride)
            for place, leaf in self.leaves.items() if "random" not in place and "later" not in place
        }  # fmt: skip
        return Seen(leaves, self.trees)


@dataclass(frozen=True)
class Difference:
    """Where two runs differ, and in what: "values", "strides", ...; with both sides as text."""

    place: str
    what: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what}: {self.found}, eager mode: {self.expected}"


def run(function: Callable[..., Any], model: nn.Module, program: Program) -> Seen:
    """Call a function of the model's inputs, and see what comes of it.

    Args:
        model: whose parameters and buffers the function uses.
    """
    seen = Seen()
    kept: dict[str, Tensor] = {}
    for call in range(CALLS):
        args, kwargs = program.make_inputs(call)
        torch.manual_seed(call)
        with torch.set_grad_enabled(program.settings.grad):
            result = function(*args, **kwargs)
        # torch.export's own module returns a tuple where the model returns a torch.Size.
        seen.trees.append(str(pytree.tree_structure(result)).replace("TreeSpec(Size,", "TreeSpec(tuple,"))
        inputs = {f"input {i}": leaf for i, leaf in enumerate(leaves_of((args, kwargs)))}
        results = {f"result {i}": leaf for i, leaf in enumerate(leaves_of(result))}
        values = inputs | states(model) | results
        for name, leaf in _leaves(values):
            seen.leaves[f"call {call} {name}"] = leaf
        seen.leaves[f"call {call} random state"] = Leaf(torch.get_rng_state())
        kept |= {f"call {call} {name}, later": leaf for name, leaf in results.items() if isinstance(leaf, Tensor)}
        if program.settings.backward:
            for name, leaf in _gradients(model, values, tensors_of(result)).items():
                seen.leaves[f"call {call} {name}"] = leaf
    for name, tensor in kept.items():
        seen.leaves[name] = Leaf(tensor.detach().clone())
    return seen


def states(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, buffers and tensors that are plain attributes."""
    plain = {name: v for name, v in vars(model).items() if isinstance(v, Tensor) and name[:1] != "_"}
    found = {**dict(model.named_parameters()), **dict(model.named_buffers()), **plain}
    return {f"state {name}": tensor for name, tensor in found.items()}


def _leaves(values: dict[str, Any]) -> Iterator[tuple[str, Leaf]]:
    first: dict[int, str] = {}
    for name, value in values.items():
        if not isinstance(value, Tensor):
            yield name, Leaf(int(value) if isinstance(value, torch.SymInt) else value)
            continue
        owner = first.setdefault(value.untyped_storage()._cdata, name)
        shares = "" if owner == name or not value.numel() else f"{owner} at {value.storage_offset()}"
        yield name, Leaf(value.detach().clone(), value.stride(), shares)


def _gradients(model: nn.Module, values: dict[str, Any], results: list[Tensor]) -> dict[str, Leaf]:
    loss = sum(t.double().cos().sum() for t in results if t.requires_grad and t.dtype.is_floating_point)
    leaves = {
        name: value for name, value in values.items()
        if isinstance(value, Tensor) and value.is_leaf and value.requires_grad
    }  # fmt: skip
    if isinstance(loss, Tensor):
        loss.backward()
    found = {}
    for name, value in leaves.items():
        if value.grad is not None:
            found[f"gradient of {name}"] = Leaf(value.grad.clone())
            value.grad = None
    return found


def differences(expected: Seen, found: Seen, *, tolerance: float = 0.0) -> list[Difference]:
    """Where two runs differ.

    Args:
        tolerance: for numbers of floating point, relative to the largest of a tensor; 0: all bits must be equal.
            Gradients are sums whose order is free, so they are never compared by bits.
    """
    different = [
        Difference(f"call {call}", "tree", a, b)
        for call, (a, b) in enumerate(zip(expected.trees, found.trees, strict=True)) if a != b
    ]
    for place in {**expected.leaves, **found.leaves}:
        if place not in expected.leaves and "gradient" in place and not found.leaves[place].value.any():
            continue  # AOTAutograd has zeros for a weight of which nothing that is used depends
        if place not in expected.leaves or place not in found.leaves:
            different.append(Difference(place, "presence", str(place in expected.leaves), str(place in found.leaves)))
            continue
        a, b = expected.leaves[place], found.leaves[place]
        allowed = max(tolerance, 1e-4) if "gradient" in place else tolerance
        different += [Difference(place, *rest) for rest in _differ(a, b, allowed, "state" in place)]
    return different


def _differ(a: Leaf, b: Leaf, tolerance: float, _state: bool) -> Iterator[tuple[str, str, str]]:
    x, y = a.value, b.value
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        if type(x) is not type(y) or x != y:
            yield "value", repr(x)[:60], repr(y)[:60]
        return
    if x.dtype != y.dtype:
        yield "dtype", str(x.dtype), str(y.dtype)
        return
    if x.shape != y.shape:
        yield "shape", str(tuple(x.shape)), str(tuple(y.shape))
        return
    if not _same(x, y, tolerance):
        where = (x != y).sum().item() if x.shape else 1
        yield "values", f"{x.flatten()[:4].tolist()}", f"{y.flatten()[:4].tolist()} ({where} of {x.numel()} differ)"
    if a.stride is not None and x.numel() and _shown(x, a.stride) != _shown(y, b.stride):
        yield "strides", str(a.stride), str(b.stride)
    if a.shares != b.shares:
        yield "alias", a.shares or "its own memory", b.shares or "its own memory"


def has_gaps(leaf: Leaf) -> bool:
    """Whether a result is a view with gaps or overlaps of memory of neither an input nor a state."""
    if not isinstance(leaf.value, Tensor) or leaf.stride is None or leaf.shares.startswith(("input", "state")):
        return False
    step = 1
    for stride, size in sorted(zip(leaf.stride, leaf.value.shape, strict=True)):
        if size > 1 and stride != step:
            return True
        step *= size
    return False


def _shown(value: Tensor, stride: tuple[int, ...] | None) -> list[int]:
    """The strides that say where an element is."""
    return [s for s, size in zip(stride or (), value.shape, strict=True) if size > 1]


def _same(x: Tensor, y: Tensor, tolerance: float) -> bool:
    if not x.numel():
        return True
    if tolerance and x.dtype.is_floating_point:
        eps = max(tolerance, 4 * torch.finfo(x.dtype).eps if torch.finfo(x.dtype).bits < 32 else 0)
        x, y = x.double(), y.double()
        return bool((x - y).abs().max() <= eps * x.abs().max().clamp_min(1))
    return torch.equal(_bytes(x), _bytes(y))


def _bytes(x: Tensor) -> Tensor:
    return torch.empty(x.numel(), dtype=x.dtype).copy_(x.flatten()).view(torch.uint8)
