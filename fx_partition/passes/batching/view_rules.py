"""Rules of operators that lay out, pick or join elements: the position of the batch after each. See `batch_dim`.

A view keeps the batch findable: the elements of a batched tensor, in row-major order, are ``before * B * after``, and
one dimension of the view must be ``outer * B * inner`` with the same numbers of elements before and after it.
"""

from __future__ import annotations

from typing import Any

import torch

from ..capture.symbolic_sizes import to_expr
from .batch_dim import (
    Batched,
    NotSeparable,
    Place,
    RowCall,
    batch_dims,
    flattened,
    lacks,
    product,
    quotient,
    same,
    tensors,
)


def wrap(dim: int, rank: int) -> int:
    return dim + rank if dim < 0 else dim


def keep(call: RowCall) -> Place:
    return call.of("self")


def view(call: RowCall) -> Place:
    place = call.batched("self")
    source, shape = call.first.shape, call.result.shape
    before = product(source[: place.dim]) * place.outer
    after = product(source[place.dim + 1 :]) * place.inner
    dims = batch_dims(shape, call.batch)
    if len(dims) == 1:
        dim = dims[0]
        outer = quotient(before, product(shape[:dim]))
        inner = quotient(after, product(shape[dim + 1 :]))
        if outer is not None and inner is not None and same(to_expr(shape[dim]), outer * inner * call.batch):
            return Batched(dim, outer, inner, place.numbered)
    raise NotSeparable(f"views {list(source)} as {list(shape)}, in which the rows of the batch are not separate")


def expand(call: RowCall) -> Place:
    place = call.of("self")
    rank = call.result.dim()
    if place is not None:
        return place.at(place.dim + rank - call.first.dim())
    found = made(call)
    if found is not None and not lacks(call.first, found.dim, rank):
        raise NotSeparable("combines rows of the batch with rows of another tensor")
    return found


def made(call: RowCall) -> Place:
    """Return the position of the batch in a new tensor, all rows of which are the same."""
    dims = batch_dims(call.result.shape, call.batch)
    return flattened(call.result.shape, dims[0], call.batch) if dims else None


def arange(call: RowCall) -> Place:
    start = call["start"]
    counts = start in (None, 0) and call["step"] in (None, 1) and to_expr(call.result.shape[0]) == call.batch
    if not counts or call.result.is_floating_point():
        raise NotSeparable("counts over the batch, and each microbatch would start again")
    return Batched(0, numbered=True)


def repeat(call: RowCall) -> Place:
    place = call.of("self")
    if place is None:
        return made(call)
    repeats = call["repeats"]
    dim = place.dim + len(repeats) - call.first.dim()
    if to_expr(repeats[dim]) != 1:
        raise NotSeparable("repeats the whole batch")
    return place.at(dim)


def permute(call: RowCall) -> Place:
    place, rank = call.batched("self"), call.first.dim()
    return place.at([wrap(d, rank) for d in call["dims"]].index(place.dim))


def transpose(call: RowCall) -> Place:
    place, rank = call.batched("self"), call.first.dim()
    a, b = (0, 1) if call["dim0"] is None else (wrap(call["dim0"], rank), wrap(call["dim1"], rank))
    if rank < 2:
        return place
    return place.at({a: b, b: a}.get(place.dim, place.dim))


def unsqueeze(call: RowCall) -> Place:
    place = call.batched("self")
    return place.at(place.dim + (wrap(call["dim"], call.result.dim()) <= place.dim))


def squeeze(call: RowCall) -> Place:
    """Move the batch forward by the dimensions of size 1 that are removed before it."""
    place, source = call.batched("self"), call.first.shape
    dims = range(len(source)) if call["dim"] is None else call["dim"]
    chosen = {wrap(d, len(source)) for d in ([dims] if isinstance(dims, int) else dims)}
    return place.at(place.dim - sum(d < place.dim and to_expr(source[d]) == 1 for d in chosen))


def other_dim(call: RowCall, what: str, name: str = "dim") -> tuple[Batched, int]:
    place = call.batched("self")
    dim = call[name]
    dim = wrap(0 if dim is None else dim, call.first.dim())
    if dim == place.dim:
        raise NotSeparable(what)
    return place, dim


def select(call: RowCall) -> Place:
    place, dim = other_dim(call, "takes a part of the batch apart")
    return place.at(place.dim - (dim < place.dim))


def slice_(call: RowCall) -> Place:
    place = call.batched("self")
    dim = wrap(call["dim"], call.first.dim())
    if dim == place.dim:
        whole = call["start"] in (None, 0) and call["step"] == 1
        if not whole or not same(to_expr(call.first.shape[dim]), to_expr(call.result.shape[dim])):
            raise NotSeparable("takes a part of the batch")
    return place


def along(call: RowCall) -> Place:
    """Return the rule of an operator that works along one dimension and keeps it."""
    return other_dim(call, "works along the batch")[0]


def split(call: RowCall) -> Place:
    return other_dim(call, "takes the batch apart")[0]


def unfold(call: RowCall) -> Place:
    return other_dim(call, "slides a window over the batch", "dimension")[0]


def along_dims(call: RowCall) -> Place:
    place = call.batched("self")
    dims = {wrap(d, call.first.dim()) for d in call["dims"]}
    if place.dim in dims or not dims:
        raise NotSeparable("reorders the batch")
    return place


def diagonal(call: RowCall) -> Place:
    place, rank = call.batched("self"), call.first.dim()
    gone = {wrap(call["dim1"], rank), wrap(call["dim2"], rank)}
    if place.dim in gone:
        raise NotSeparable("takes a diagonal over the batch")
    return place.at(place.dim - sum(d < place.dim for d in gone))


def triangle(call: RowCall) -> Place:
    place = call.batched("self")
    if place.dim >= call.first.dim() - 2:
        raise NotSeparable("keeps a triangle over the batch")
    return place


def pad(call: RowCall) -> Place:
    place = call.batched("self")
    padded = len(call["pad" if call["pad"] is not None else "padding"]) // 2
    if place.dim >= call.first.dim() - padded:
        amounts = call["pad"]
        last = 2 * (call.first.dim() - 1 - place.dim)
        if amounts is None or tuple(amounts[last : last + 2]) != (0, 0):
            raise NotSeparable("pads the batch")
    return place


def cat(call: RowCall) -> Place:
    parts = tensors(call["tensors"])
    places = {call.place(part) for part in parts}
    (place, *others) = places
    if place is None or others:
        raise NotSeparable("joins the batch with what is not of the same rows")
    dim = wrap(call["dim"] or 0, parts[0].dim())
    if dim == place.dim:
        raise NotSeparable("concatenates along the batch")
    return place


def stack(call: RowCall) -> Place:
    parts = tensors(call["tensors"])
    (place, *others) = {call.place(part) for part in parts}
    if place is None or others:
        raise NotSeparable("joins the batch with what is not of the same rows")
    return place.at(place.dim + (wrap(call["dim"] or 0, parts[0].dim() + 1) <= place.dim))


# ---- Picking by index


def embedding(call: RowCall) -> Place:
    call.only("indices")
    return call.batched("indices")


def index_select(call: RowCall) -> Place:
    dim = wrap(call["dim"], call.first.dim())
    index = call.of("index")
    if index is None:
        return other_dim(call, "picks rows of the batch")[0]
    call.only("index")
    return index.at(dim)


def gather(call: RowCall) -> Place:
    dim = wrap(call["dim"], call.first.dim())
    place, index = call.of("self"), call.batched("index")
    if place is None:
        if index.dim != dim:
            raise NotSeparable("pairs rows of the batch with rows of a tensor that all rows share")
        return index
    return _paired(call, dim, place, index)


def scatter(call: RowCall) -> Place:
    dim = wrap(call["dim"], call.first.dim())
    place = call.batched("self")
    source = [call.batched("src")] if isinstance(call["src"], torch.Tensor) else []
    return _paired(call, dim, place, call.batched("index"), *source)


def _paired(call: RowCall, dim: int, place: Batched, *others: Batched) -> Batched:
    if any(other != place for other in others):
        raise NotSeparable("pairs rows of the batch with others")
    if dim == place.dim:
        raise NotSeparable("moves values between rows of the batch")
    return place


def index_write(call: RowCall) -> Place:
    """Apply the rule of ``index_copy`` and ``index_add``: the source has the rows of what is written, or is shared."""
    place, _ = other_dim(call, "writes rows of the batch by index")
    call.only("self", "source")
    if call.batched("source") != place:
        raise NotSeparable("writes rows of the batch into others")
    return place


def scatter_view(call: RowCall) -> Place:
    """Apply the rule of ``slice_scatter`` and ``select_scatter``, which replace a part of a tensor."""
    place, dim = other_dim(call, "replaces a part of the batch")
    source = call.batched("src")
    shift = dim < place.dim and call["index"] is not None
    if source.at(source.dim + shift) != place:
        raise NotSeparable("writes rows of the batch into others")
    return place


def index(call: RowCall) -> Place:
    """Apply the rule of ``x[:, ids]``, ``table[ids]`` and ``x[arange(B), ids]``."""
    place = call.of("self")
    indices = list(call["indices"])
    if any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices):
        raise NotSeparable("picks by a mask, so the number of elements that it picks depends on all rows")
    used = [d for d, i in enumerate(indices) if i is not None]
    rank = max(indices[d].dim() for d in used)
    first = used[0] if used == list(range(used[0], used[-1] + 1)) else 0
    row = _index_rows(call, indices, rank)
    numbered = [d for d in used if (number := call.place(indices[d])) is not None and number.numbered]
    if place is None:
        if row is None or numbered:
            raise NotSeparable("picks from a tensor that all rows share by the number of the row")
        return row.at(first + row.dim)
    if place.dim in used:
        # the number of a row may pick that row only: x[arange(B), arange(B)] is a diagonal
        if numbered != [place.dim] or row is None or not _exact(place):
            raise NotSeparable("picks rows of the batch by index")
        return Batched(first + row.dim)
    if row is not None:
        raise NotSeparable("picks from all rows of the batch by an index of each")
    kept = [d for d in range(call.first.dim()) if d not in used]
    position = kept.index(place.dim)
    before = sum(d < first for d in kept)
    return place.at(position + rank if position >= before else position)


def _exact(place: Batched) -> bool:
    return place.outer == place.inner == 1


def _index_rows(call: RowCall, indices: list[Any], rank: int) -> Place:
    """Return the position of the batch in the broadcast indices."""
    places = {
        Batched(place.dim + rank - i.dim(), place.outer, place.inner)
        for i in indices
        if i is not None and (place := call.place(i)) is not None
    }
    if len(places) > 1:
        raise NotSeparable("picks by indices whose rows differ")
    found = next(iter(places), None)
    if found is not None and not all(call.place(i) or lacks(i, found.dim, rank) for i in indices if i is not None):
        raise NotSeparable("picks by indices whose rows differ")
    return found


def index_put(call: RowCall) -> Place:
    """Apply the rule of ``x[:, ids] = y`` and ``x[arange(B), ids] = y``: y is broadcast to the shape of ``x[...]``."""
    place = call.batched("self")
    picked = call["self"][tuple(slice(None) if i is None else i for i in call["indices"])]
    spot = index(
        RowCall(torch.ops.aten.index.Tensor, (call["self"], call["indices"]), {}, picked, 0, call.batch, call.place)
    )
    assert isinstance(spot, Batched)
    values, rank = call.of("values"), picked.dim()
    if values is None:
        fits = lacks(call["values"], spot.dim, rank)
    else:
        fits = values.at(values.dim + rank - call.rank("values")) == spot
    if not fits:
        raise NotSeparable("writes rows of the batch into others")
    return place
