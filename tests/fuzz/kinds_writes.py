"""Kinds of statements that write in place: numbers, or where the numbers are."""

from __future__ import annotations

import torch

from .draft import WIDTH, Draft, NotApplicable
from .kinds import apart, at_least, dims, filled, kind, real, single, truth


def _target(d: Draft) -> str:
    """What to write: often an accumulator."""
    names = [name for name in d.accumulators if name in d.worlds[0]]
    if names and d.rng.random() < 0.5:
        return d.rng.choice(names)
    return d.pick(real, filled, apart)


@kind(3)
def written(d: Draft) -> None:
    x = _target(d)
    name = d.rng.choice(("relu_", "tanh_", "neg_", "sigmoid_", "abs_", "zero_", "sin_"))
    match d.rng.randrange(4):
        case 0:
            d.do(f"{x}.mul_(0.5)")
        case 1:
            d.do(f"{x}.add_(1.0)")
        case 2:
            d.let(f"{x}.{name}()")  # the result is the same tensor by another name
        case _:
            d.do(f"{x}.{name}()")


@kind(3)
def accumulated(d: Draft) -> None:
    """Another variable added to what is written."""
    x = _target(d)
    y = d.pick(real, among=[name for name in d.variables() if d.broadcasts(x, name)])
    d.do(d.rng.choice((
        f"{x} += {y}",
        f"{x}.add_({y}, alpha=0.5)",
        f"{x}.mul_({y})",
        f"{x}.copy_({y})",
        f"{x}.lerp_({y}, 0.5)" if d[x].dtype == d[y].dtype else f"{x}.sub_({y})",
        f"{x}.addcmul_({y}, {y}, value=0.5)" if d[x].dtype == d[y].dtype else f"{x} *= {y}",
    )))  # fmt: skip


@kind(2)
def zeros(d: Draft) -> None:
    """The beginning of an accumulator."""
    x = d.pick(real, at_least(1), filled)
    sizes = ", ".join(d.shape(x))
    dtype = d[x].dtype
    name = d.let(d.rng.choice((
        f"torch.zeros_like({x})",
        f"torch.zeros({sizes}, dtype={dtype})",
        f"{x}.new_zeros({sizes})",
        f"torch.empty({sizes}, dtype={dtype}).fill_(0.5)",
        f"torch.ones_like({x})",
    )))  # fmt: skip
    d.accumulators.append(name)


@kind(3)
def slot(d: Draft) -> None:
    """A part of a variable is set."""
    x = _target(d)
    if d[x].dim() == 0:
        raise NotApplicable
    place = d.rng.choice(("[0]", "[..., :1]", "[..., ::2]", "[1:]", "[..., -1]", "[:2]", "[[0, 2]]", "[..., 1:3]"))
    part = d.let(f"{x}{place}")
    fit = [name for name in d.variables() if d.broadcasts(part, name) and name != part]
    value = d.pick(real, among=fit) if fit and d.rng.random() < 0.8 else "0.5"
    d.do(d.rng.choice((f"{x}{place} = {value}", f"{x}{place} += {value}", f"{x}{place} = {part} * 2")))
    if d.rng.random() < 0.5:
        d.do(f"del {part}")


@kind(2)
def through_a_view(d: Draft) -> None:
    x = _target(d)
    texts = [f"{x}.view(-1)", f"{x}.detach()", f"{x}[...]", f"{x}.view_as({x})"]
    if d[x].dim() > 0:
        texts += [f"{x}.transpose(0, -1)", f"{x}.select(0, 0)", f"{x}.unsqueeze(0)", f"{x}.narrow(-1, 0, 1)"]
    if d[x].dim() > 1:
        texts += [f"{x}.diagonal()", f"{x}.unbind(0)[1]", f"{x}.chunk(2, -1)[0]", f"{x}.mT"]
    view = d.let(d.rng.choice(texts))
    d.do(d.rng.choice((f"{view}.mul_(0.5)", f"{view}.add_(0.25)", f"{view}.zero_()", f"{view} *= 2")))


@kind(3)
def scattered(d: Draft) -> None:
    """Rows or elements written by their numbers."""
    x = _target(d)
    if d[x].dim() == 0:
        raise NotApplicable
    size = d.fixed(x)[0] or min(d.batches)
    rows = [d.rng.randrange(size) for _ in range(3)]
    once = d.rng.sample(range(size), min(2, size))
    index, distinct = f"torch.tensor({rows})", f"torch.tensor({once})"
    if d.rng.random() < 0.3:
        distinct = d.buffer(distinct)
    taken = f"{x}[{index}]"
    source = d.let(f"{taken} * 0.5 + 0.1")
    value = d.let(f"{x}[{distinct}] * 0.5")
    masked = d.let(f"{x} > 0")
    d.do(d.rng.choice((
        f"{x}.index_put_(({index},), {source}, accumulate=True)",
        f"{x}[{distinct}] = {value}",
        f"{x}.index_add_(0, {index}, {source})",
        f"{x}.index_copy_(0, {distinct}, {value})",
        f"{x}.index_fill_(0, {distinct}, 0.5)",
        f"{x}.scatter_(0, {x}.argsort(0), {x} * 0.5)",
        f"{x}.scatter_add_(0, torch.zeros_like({x}, dtype=torch.int64), {x} * 0.1)",
        f"{x}.masked_fill_({masked}, 0.25)",
        f"{x}[{masked}] = 0.75",
        f"{x}.masked_scatter_({masked}, {x} * 0.5)",
    )))  # fmt: skip
    d.do(f"del {source}, {value}, {masked}")


@kind()
def out_of_place_index(d: Draft) -> None:
    x = d.pick(real, at_least(1), filled)
    index = "torch.tensor([0, 1])"
    part = d.let(f"{x}[{index}]")
    d.let(d.rng.choice((
        f"{x}.index_put(({index},), {part} * 2)",
        f"{x}.index_add(0, {index}, {part})",
        f"{x}.index_copy(0, {index}, {part} + 1)",
        f"torch.slice_scatter({x}, {x}[1:] * 2, 0, 1)",
        f"torch.select_scatter({x}, {x}[0] * 2, 0, 0)",
    )))  # fmt: skip


@kind(2)
def into(d: Draft) -> None:
    """Results written into a tensor that is given."""
    x = d.pick(single, filled)
    y = d.pick(single, among=[name for name in d.variables() if d.alike(name, x)])
    where = d.pick(single, apart, among=[name for name in d.variables() if d.alike(name, x)])
    begin = ""
    if where in (x, y) or d.rng.random() < 0.4:
        where = d.new_name("v")
        begin = f"{where} = torch.empty_like({x})\n"  # one statement: nothing may see what is in it before
    d.do(begin + d.rng.choice((
        f"torch.add({x}, {y}, out={where})",
        f"torch.mul({x}, {y}, out={where})",
        f"torch.tanh({x}, out={where})",
        f"torch.maximum({x}, {y}, out={where})",
    )))  # fmt: skip


@kind(3)
def metadata(d: Draft) -> None:
    """Only the sizes and strides of a variable change, and of no other that shares its memory."""
    x = d.pick(at_least(1))
    if d.rng.random() < 0.5:
        x = d.let(d.rng.choice((f"{x}.view_as({x})", f"{x}[...]", f"{x}.detach()", f"{x}.narrow(0, 0, 2)")))
    count = d[x].dim()
    texts = [f"{x}.unsqueeze_(0)", f"{x}.unsqueeze_(-1)", f"{x}.squeeze_()", f"{x}.squeeze_(0)"]
    if count == 2:
        texts += [f"{x}.t_()"] * 3
    if count >= 2:
        texts += [f"{x}.transpose_(0, 1)", f"{x}.swapaxes_(0, -1)", f"{x}.transpose_(-1, -2)"]
    if not d.settings.dynamic:
        shape, stride = tuple(d[x].shape), d[x].stride()
        if shape[0] > 1:
            texts.append(f"{x}.as_strided_({(shape[0] - 1, *shape[1:])}, {stride})")
        if count == 2:
            texts.append(f"{x}.as_strided_({shape[::-1]}, {stride[::-1]})")
    text = d.rng.choice(texts)
    if d.rng.random() < 0.3:
        d.let(text)
    else:
        d.do(text)


@kind()
def written_rows(d: Draft) -> None:
    """A loop that fills rows or columns of a new tensor, a piece each, with others' work between."""
    x = d.pick(single, dims(2), filled)
    width = d.last(x)
    name = d.let(f"torch.zeros({d.shape(x)[0]}, {2 * WIDTH})")
    d.accumulators.append(name)
    for i in range(d.rng.randrange(2, 5)):
        piece = d.let(f"F.linear({x}, {d.weight(WIDTH // 2, width)})")
        d.do(f"{name}[:, {i * WIDTH // 2}:{(i + 1) * WIDTH // 2}] = {piece}")
        if d.rng.random() < 0.3:
            d.let(f"{name}.sum(-1)")


@kind()
def truth_written(d: Draft) -> None:
    m = d.pick(truth, at_least(1), filled, apart)
    d.do(d.rng.choice((f"{m}.logical_not_()", f"{m}[..., :1] = True", f"{m}.fill_(False)", f"{m} &= ~{m}")))


@kind()
def reassigned(d: Draft) -> None:
    """Python names only: nothing is computed."""
    x = d.pick()
    y = d.pick()
    if torch.equal(d[x], d[y]) and x == y:
        raise NotApplicable
    d.let(x)
