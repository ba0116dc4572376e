"""Kinds of statements that make views, and that change layouts."""

from __future__ import annotations

from .draft import Draft, NotApplicable
from .kinds import apart, at_least, dims, filled, kind, real, single, small


@kind(3)
def slice_with_gaps(d: Draft) -> None:
    x = d.pick(at_least(1), filled)
    last = d[x].shape[-1]
    cut = d.rng.randrange(1, last) if last > 1 else 1
    texts = [f"{x}[..., ::2]", f"{x}[..., :{cut}]", f"{x}[..., {cut - 1}:]", f"{x}.narrow(-1, 0, {cut})"]
    if d[x].dim() > 1:
        texts += [f"{x}[1:]", f"{x}[::2]", f"{x}[:, {cut - 1}]", f"{x}.select(0, 1)"]
        texts += [f"{x}[..., :{cut}].transpose(0, 1)"]
    d.let(d.rng.choice(texts))


@kind(3)
def turned(d: Draft) -> None:
    x = d.pick(at_least(2))
    count = d[x].dim()
    order = list(range(count))
    d.rng.shuffle(order)
    d.let(d.rng.choice((
        f"{x}.transpose({d.rng.randrange(count)}, {d.rng.randrange(count)})",
        f"{x}.permute({', '.join(map(str, order))})",
        f"{x}.movedim(0, -1)",
        f"{x}.mT",
        f"{x}.swapaxes(0, -1)",
    )))  # fmt: skip


@kind(2)
def reshaped(d: Draft) -> None:
    x = d.pick(at_least(1), small)
    last = d.shape(x)[-1]
    texts = [f"{x}.reshape(-1)", f"{x}.flatten()", f"{x}.reshape(-1, {last})", f"{x}.unsqueeze(0)"]
    texts += [f"{x}.unsqueeze(-1)"]
    if d[x].dim() > 1:
        texts += [f"{x}.view(-1, {last})", f"{x}.flatten(0, 1)", f"{x}.unsqueeze(1).squeeze(1)"]
    size = d.fixed(x)[-1]
    if size is not None and size % 2 == 0 and size:
        texts += [f"{x}.unflatten(-1, (2, {size // 2}))", f"{x}.view({', '.join(d.shape(x)[:-1])}, {size // 2}, 2)"]
    d.let(d.rng.choice(texts))


@kind(2)
def overlapping(d: Draft) -> None:
    """Views whose elements share memory."""
    x = d.pick(real, at_least(1), filled, small)
    sizes = d.shape(x)
    size = d.fixed(x)[-1]
    same = ", ".join(["-1"] * len(sizes))
    texts = [f"{x}.unsqueeze(0).expand(2, {same})", f"{x}[..., :1].expand({', '.join(sizes)})"]
    if size is not None and size >= 4:
        texts += [f"{x}.unfold(-1, 3, 1)", f"{x}.unfold(-1, 2, 2)"]
    d.let(d.rng.choice(texts))


@kind(2)
def strided(d: Draft) -> None:
    """Views by numbers of memory."""
    x = d.pick(dims(2), filled, apart)
    if d.settings.dynamic:
        d.let(f"{x}.diagonal()")
        return
    rows, columns = d[x].shape
    inner, outer = d[x].stride()[1], d[x].stride()[0]
    texts = [f"{x}.diagonal()", f"{x}.diagonal(1)" if columns > 1 else f"{x}.diagonal()"]
    if inner and outer and rows > 1 and columns > 2:
        texts += [
            f"torch.as_strided({x}, ({rows - 1}, {columns // 2}), ({outer}, {2 * inner}), {d[x].storage_offset()})",
            f"{x}.as_strided(({columns - 1}, {rows}), ({inner}, {outer}), {d[x].storage_offset() + inner})",
        ]
    d.let(d.rng.choice(texts))


@kind(3)
def parts(d: Draft) -> None:
    """Several views at once, of which some are used later."""
    x = d.pick(at_least(1), filled)
    sizes = d.fixed(x)
    dim = d.rng.choice([i for i, size in enumerate(sizes) if size is not None and size > 1] or [None])
    if dim is None:
        raise NotApplicable
    size = sizes[dim]
    assert size is not None
    half = (size + 1) // 2
    match d.rng.randrange(5):
        case 0:
            d.let_all(2, f"{x}.chunk(2, {dim})")
        case 1:
            d.let_all(2, f"torch.split({x}, [{half}, {size - half}], {dim})")
        case 2 if size <= 8:
            d.let_all(size, f"{x}.unbind({dim})")
        case 3:
            d.let_all(2, f"torch.tensor_split({x}, 2, {dim})")
        case _:
            held = d.new_name("v")
            d.do(f"{held} = {x}.split({half}, {dim})")
            d.let(f"{held}[{d.rng.randrange(2)}]")


@kind()
def other_dtype(d: Draft) -> None:
    """The same memory as another dtype, to and fro."""
    if d.settings.dynamic:
        raise NotApplicable  # AOTAutograd forgets the dtype of such a view of an input, so stages return a copy of it
    x = d.pick(single, at_least(1), filled)
    bits = d.let(f"{x}.view(torch.int32)")
    d.let(f"{bits}.view(torch.float32)")


@kind(2)
def dense(d: Draft) -> None:
    x = d.pick()
    texts = [f"{x}.contiguous()", f"{x}.clone()", f"{x}.detach()", f"{x}.view_as({x})"]
    texts += [f"torch.empty_like({x}).copy_({x})"]
    if d[x].dim():
        texts += [f"{x}.flip(0)", f"{x}.roll(1, -1)"]
    if d[x].dim() == 4:
        texts.append(f"{x}.to(memory_format=torch.channels_last)")
    d.let(d.rng.choice(texts))
