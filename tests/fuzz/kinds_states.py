"""Kinds of statements with states and constants of the model: buffers that are written, caches, counters, tables."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .draft import WIDTH, Draft, NotApplicable
from .kinds import at_least, dims, filled, kind, real, single


def _state(d: Draft, *wanted: Callable[[Tensor], bool]) -> str:
    """A buffer of the model that is used already."""
    names = [
        name for name in d.members
        if name.startswith("b") and all(test(d.member_tensor(name)) for test in wanted)
    ]  # fmt: skip
    if not names:
        raise NotApplicable
    return f"self.{d.rng.choice(names)}"


@kind(2)
def average(d: Draft) -> None:
    """A running mean."""
    x = d.pick(single, dims(2), filled)
    b = d.buffer(f"rand({d.last(x)}, seed={d.names})")
    d.do(f"{b}.mul_(0.9).add_({x}.mean(0), alpha=0.1)")
    if d.rng.random() < 0.7:
        d.let(f"{x} - {b}")


@kind(2)
def cache(d: Draft) -> None:
    """A part of a state is set, and all of it read."""
    x = d.pick(single, dims(2), filled)
    if d.fixed(x)[0] is None:
        x = d.let(f"{x}[:3]")
    rows, width = d[x].shape
    b = d.buffer(f"rand({2 * rows}, {width}, seed={d.names})")
    first = d.rng.randrange(rows)
    d.do(d.rng.choice((
        f"{b}[{first}:{first + rows}] = {x}",
        f"{b}.narrow(0, {first}, {rows}).copy_({x})",
        f"{b}[{first}:{first + rows}] += {x}",
        f"{b}.index_copy_(0, torch.arange({first}, {first + rows}), {x})",
    )))  # fmt: skip
    d.let(d.rng.choice((f"{x} @ {b}.t()", f"{b}[:{rows}] * {x}", f"{b} * 1.0", f"{b}[::2]")))


@kind()
def counter(d: Draft) -> None:
    """A position that the state itself has, and where it says something is written."""
    x = d.pick(single, dims(2), filled)
    p = d.buffer("torch.zeros(1, dtype=torch.int64)")
    b = d.buffer(f"rand({WIDTH}, {d.last(x)}, seed={d.names})")
    d.do(f"{b}.index_copy_(0, {p} % {WIDTH}, {x}[:1])")
    if d.rng.random() < 0.5:
        d.let(f"{x} * {b}[1]")
    d.do(f"{p}.add_(1)")
    d.let(d.rng.choice((f"{x} + {b}.mean(0)", f"{x} * {p}", f"{b}[{p} % {WIDTH}]")))


@kind(2)
def state_read(d: Draft) -> None:
    """A state, or a view of one, becomes a variable; it may be written later, or returned."""
    b = _state(d)
    texts = [b, f"{b}.view_as({b})", f"{b} * 1", f"{b}.detach()"]
    if d.member_tensor(b[5:]).dim():
        texts += [f"{b}[:2]", f"{b}[..., ::2]", f"{b}.transpose(0, -1)"]
    d.let(d.rng.choice(texts))


@kind()
def state_written(d: Draft) -> None:
    b = _state(d, real)
    shape = d.member_tensor(b[5:]).shape
    x = d.pick(real, at_least(1), filled, among=[n for n in d.variables() if d.fixed(n)[-1:] == list(shape[-1:])])
    y = d.let(f"{x}.reshape(-1, {d.last(x)})[0]")
    if len(shape) > 1:
        b = f"{b}[{d.rng.randrange(shape[0])}]"
    d.do(d.rng.choice((f"{b}.copy_({y})", f"{b}.add_({y})", f"{b} += {y}", f"torch.tanh({y}, out={b})")))


@kind()
def state_assigned(d: Draft) -> None:
    """The model's attribute becomes another tensor."""
    b = _state(d, real)
    if d.settings.grad:
        raise NotApplicable
    d.do(f"{b} = {b} * 0.5 + 1")


@kind()
def state_turned(d: Draft) -> None:
    """A view of a state changes its sizes, as another view of it does not."""
    b = d.buffer(f"rand(4, {WIDTH}, seed={d.names})")
    first = d.let(f"{b}.view(4, {WIDTH})")
    second = d.let(d.rng.choice((f"{first}.narrow(0, 0, 2)", f"{first}[:, :4]", f"{first}.view_as({first})")))
    d.do(f"{first}.{d.rng.choice(('t_()', 'transpose_(0, 1)', 'unsqueeze_(0)'))}")
    d.let(f"{second} * 2")
    d.let(f"{first} * 3")


@kind()
def weight_written(d: Draft) -> None:
    if d.settings.grad:
        raise NotApplicable
    names = [name for name in d.members if name.startswith("w")]
    if not names:
        raise NotApplicable
    d.do(f"self.{d.rng.choice(names)}.mul_(0.9)")


@kind(2)
def constant(d: Draft) -> None:
    """Numbers that stand in the code, or in a plain attribute of the model."""
    x = d.pick(real, at_least(1), filled)
    width = d.last(x)
    numbers = [round(d.rng.uniform(-1, 1), 2) for _ in range(width)]
    text = d.rng.choice((
        f"torch.tensor({numbers})",
        f"torch.arange({width}) / {width}",
        f"torch.ones({width})",
        f"torch.full(({width},), 0.5)",
        f"torch.linspace(0, 1, {width})",
        f"torch.eye({width})[0]",
        f"torch.tensor({numbers}, dtype=torch.float64)",
    ))
    if d.rng.random() < 0.4:
        text = d.member("c", text)
    match d.rng.randrange(4):
        case 0:
            d.let(text)
        case 1:
            d.let(f"torch.where({x} > {text}, {x}, {text})")
        case _:
            d.let(f"{x} {d.rng.choice('+*-')} {text}")


@kind()
def table(d: Draft) -> None:
    """A part of a plain attribute or buffer that nothing writes."""
    x = d.pick(single, at_least(1), filled)
    width = d.last(x)
    text = f"rand(6, {2 * width}, seed={d.names})"
    held = d.member("c", text) if d.rng.random() < 0.5 else d.buffer(text)
    d.let(f"{x} * {held}[{d.rng.randrange(6)}, {d.rng.choice((f':{width}', f'{width}:', '::2'))}]")


@kind()
def scalars(d: Draft) -> None:
    """Tensors without dimensions, and empty ones."""
    x = d.pick(real, at_least(1), filled)
    match d.rng.randrange(4):
        case 0:
            d.let(f"{x}[..., :0]")
        case 1:
            d.let(f"torch.cat([{x}[:0], {x}])")
        case 2:
            s = d.let(f"{x}.mean()")
            d.let(f"{x} * {s}")
            if d.rng.random() < 0.5:
                d.do(f"{s}.add_(1)")
        case _:
            d.let(f"torch.scalar_tensor(0.5) * {x}.max()")


@kind()
def sizes(d: Draft) -> None:
    """Numbers that come of sizes."""
    x = d.pick(real, dims(2), filled)
    d.let(d.rng.choice((
        f"{x} * {x}.shape[0]",
        f"torch.arange({x}.shape[0]).to({d[x].dtype})[:, None] + {x}",
        f"{x} / {x}.size(-1)",
        f"torch.ones({x}.shape[0], {x}.shape[1]) * {x}",
        f"{x}.expand(2, {x}.shape[0], -1)",
        f"{x}[: {x}.shape[0] // 2]",
        f"F.pad({x}, (0, 1, 1, 0))",
    )))  # fmt: skip

