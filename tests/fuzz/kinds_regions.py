"""Kinds of statements in regions with their own mode, and those of data-dependent sizes."""

from __future__ import annotations

import contextlib

from .draft import WIDTH, Draft, NotApplicable
from .kinds import KINDS, dims, filled, kind, single, small, write

_WITHIN = ("linear", "elementwise", "combine", "written", "accumulated", "slice_with_gaps", "turned", "layer", "cast")


def _some(d: Draft, header: str, names: tuple[str, ...]) -> None:
    with d.block(header):
        for _ in range(d.rng.randrange(1, 5)):
            with contextlib.suppress(NotApplicable):
                write(d, d.rng.choice([name for name in names if name in KINDS]))


@kind()
def autocast(d: Draft) -> None:
    _some(d, 'with torch.autocast("cpu", dtype=torch.bfloat16)', ("linear", "linear", "product", "layer", *_WITHIN))


@kind()
def without_gradients(d: Draft) -> None:
    _some(d, d.rng.choice(("with torch.no_grad()", "with torch.set_grad_enabled(False)")), _WITHIN)


@kind(0.5)
def with_gradients(d: Draft) -> None:
    if not d.settings.grad:
        raise NotApplicable
    _some(d, "with torch.enable_grad()", _WITHIN)


@kind(0.5)
def recorded(d: Draft) -> None:
    _some(d, 'with torch.profiler.record_function("part")', _WITHIN)


@kind(0.5)
def mapped(d: Draft) -> None:
    """A function over the rows."""
    x = d.pick(single, dims(2), filled, small)
    w = d.weight(WIDTH, d.last(x))
    d.let(d.rng.choice((
        f"torch.vmap(lambda row: {w} @ row)({x})",
        f"torch.vmap(lambda row: (row * 2).cumsum(0))({x})",
        f"torch.func.grad(lambda t: (t * t).sum())({x})",
        f"torch.func.jvp(torch.tanh, ({x},), ({x},))[1]",
    )))  # fmt: skip


@kind()
def rows_that_fit(d: Draft) -> None:
    """Rows for which something holds: a data-dependent number of them."""
    if not d.settings.data_sizes:
        raise NotApplicable
    x = d.pick(single, dims(2), filled)
    score = d.let(f"{x}.mean(-1)")
    index = d.let(d.rng.choice((
        f"torch.nonzero({score} > 0).squeeze(-1)",
        f"torch.nonzero({score} > 0, as_tuple=True)[0]",
    )), odd=True)  # fmt: skip
    bound = d.batches[-1] if d.fixed(x)[0] is None else d[x].shape[0]
    if d.rng.random() < 0.5:
        d.do(f"torch._check({index}.shape[0] <= {bound})")
    rows = d.let(d.rng.choice((f"{x}[{index}]", f"{x}.index_select(0, {index})")), odd=True)
    for _ in range(d.rng.randrange(3)):
        rows = d.let(
            d.rng.choice((f"torch.relu({rows})", f"F.linear({rows}, {d.weight(d.last(x), d.last(x))})", f"{rows} * 2")),
            odd=True,
        )
    if d.rng.random() < 0.5:
        d.let(f"torch.zeros_like({x}).index_add_(0, {index}, {rows})")
    else:
        d.let(f"{x} + {rows}.sum(0)")


@kind()
def count_from_data(d: Draft) -> None:
    """A size that is a number of a tensor."""
    if not d.settings.data_sizes:
        raise NotApplicable
    x = d.pick(single, dims(2), filled)
    most = min(world[x].shape[0] for world in d.worlds)
    k = d.new_name("k")
    number = f"({x}.sum() > 0).to(torch.int64).add(1).clamp(max={most})"
    d.do(f"{k} = {number}.item()\ntorch._check({k} >= 1)\ntorch._check({k} <= {most})")
    match d.rng.randrange(3):
        case 0:
            part = d.let(f"{x}.narrow(0, 0, {k})", odd=True)
            d.let(f"{x} + {part}.sum(0)")
        case 1:
            held = d.let(f"torch.zeros({k}, {WIDTH})", odd=True)
            d.do(f"{held}.add_(1)")
            d.let(f"{x} * {held}.sum()")
        case _:
            d.let(f"{x} * {k}")

