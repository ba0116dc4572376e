"""Kinds of statements that compute: with weights, elementwise, reductions, other dtypes, random numbers."""

from __future__ import annotations

import torch

from .draft import WIDTH, Draft, NotApplicable
from .kinds import at_least, dims, filled, kind, real, single, small, truth, whole


@kind(5)
def linear(d: Draft) -> None:
    x = d.pick(real, at_least(1), small)
    w = d.weight(d.rng.choice((WIDTH, WIDTH, WIDTH, 4)), d.last(x), dtype=d[x].dtype)
    match d.rng.randrange(4):
        case 0:
            d.let(f"F.linear({x}, {w}, {d.weight(d.member_tensor(w[5:]).shape[0], dtype=d[x].dtype)})")
        case 1:
            d.let(f"{x} @ {w}.t()")
        case _:
            d.let(f"F.linear({x}, {w})")


@kind(2)
def layer(d: Draft) -> None:
    """A module of torch.nn."""
    x = d.pick(single, at_least(2), filled, small)
    width = d.last(x)
    text = d.rng.choice((
        f"nn.Linear({width}, {d.rng.choice((WIDTH, 4))})",
        f"nn.LayerNorm({width})",
        f"nn.Sequential(nn.Linear({width}, {WIDTH}), nn.ReLU(inplace=True), nn.Linear({WIDTH}, {WIDTH}))",
        f"nn.RMSNorm({width})",
    ))  # fmt: skip
    d.let(f"{d.member('m', f'tamed({text})')}({x})")


@kind()
def batch_norm(d: Draft) -> None:
    """In training mode it writes its buffers."""
    x = d.pick(single, dims(2), filled)
    # Torch's fake kernel keeps the strides of what is turned, and inductor returns these; the real kernel does not.
    d.let(f"{d.member('m', f'tamed(nn.BatchNorm1d({d.last(x)}))')}({x}.contiguous())")


@kind(2)
def slices_of_a_weight(d: Draft) -> None:
    x = d.pick(real, at_least(2), small)
    width, dtype = d.last(x), d[x].dtype
    w = d.weight(WIDTH, width, dtype=dtype)
    cut = d.rng.randrange(1, WIDTH)
    match d.rng.randrange(6):
        case 0:
            first, second = d.let(f"F.linear({x}, {w}[:{cut}])"), d.let(f"F.linear({x}, {w}[{cut}:])")
            if d.rng.random() < 0.7:
                d.let(f"torch.cat([{first}, {second}], -1)")
        case 1:
            halves = d.let_all(2, f"{w}.chunk(2)")
            d.let(f"{x} @ {d.rng.choice(halves)}.t()")
        case 2:
            d.let(f"{x} * {w}[{d.rng.randrange(WIDTH)}]")
        case 3:
            d.let(f"{x} @ {w}.t()[:, ::2]")
        case 4:
            stacked = d.weight(3, WIDTH, width, dtype=dtype)
            d.let(f"F.linear({x}, {stacked}[{d.rng.randrange(3)}])")
        case _:
            d.let(f"{x} + {w}.narrow(0, {cut - 1}, 1).expand(2, -1)[1]")


@kind()
def weight_changed(d: Draft) -> None:
    """A weight that is computed before it is used."""
    x = d.pick(single, at_least(2), small)
    w = d.weight(WIDTH, d.last(x))
    d.let(f"F.linear({x}, {d.rng.choice((f'torch.tanh({w})', f'{w} / {w}.norm()', f'{w}.abs().clone()'))})")


@kind(4)
def elementwise(d: Draft) -> None:
    x = d.pick(real)
    name = d.rng.choice(("relu", "tanh", "sigmoid", "sin", "neg", "abs", "exp", "square"))
    d.let(d.rng.choice((f"torch.{name}({x})", f"{x}.{name}()", f"F.gelu({x})", f"F.silu({x})", f"{x} * 0.5 + 1.0")))


@kind(4)
def combine(d: Draft) -> None:
    """Two variables, the second expanded where it is smaller."""
    x = d.pick(real)
    y = d.pick(real, among=[name for name in d.variables() if d.broadcasts(x, name)])
    sign = d.rng.choice(("+", "-", "*", "*"))
    d.let(d.rng.choice((f"{x} {sign} {y}", f"{y} {sign} {x}", f"torch.maximum({x}, {y})")))


@kind(2)
def product(d: Draft) -> None:
    """A matrix product of two variables."""
    x = d.pick(single, at_least(2), filled, small)
    y = d.pick(single, dims(2), filled, among=[n for n in d.variables() if d[n].shape[-1:] == d[x].shape[-1:]])
    d.last(y)
    match d.rng.randrange(3):
        case 0:
            d.let(f"{x} @ {y}.t() / {WIDTH}")
        case 1:
            d.let(f"torch.einsum('...i,ji->...j', {x}, {y}) / {WIDTH}")
        case _:
            d.let(f"torch.addmm({y}, {y}, {d.weight(d.last(x), d.last(x))})")


@kind(2)
def reduction(d: Draft) -> None:
    x = d.pick(real, at_least(1), filled)
    dim = d.rng.randrange(-d[x].dim(), d[x].dim())
    keep = d.rng.choice(("True", "False"))
    d.let(d.rng.choice((
        f"{x}.mean({dim}, keepdim={keep})",
        f"{x}.sum({dim}, keepdim={keep}) / 4",
        f"{x}.amax({dim}, keepdim={keep})",
        f"{x}.mean()",
        f"{x}.softmax({dim})",
        f"{x}.cumsum({dim}) / 4",
        f"{x}.std({dim}, unbiased=False, keepdim={keep})",
        f"torch.logsumexp({x}, {dim})",
    )))  # fmt: skip


@kind()
def pair(d: Draft) -> None:
    """An operator of two results."""
    x = d.pick(real, at_least(1), filled)
    size = d.last(x)
    values, places = d.let_all(2, d.rng.choice((
        f"{x}.max(-1)",
        f"{x}.topk({min(3, size)}, -1)",
        f"{x}.sort(-1)",
        f"torch.min({x}, -1, keepdim=True)",
    )))  # fmt: skip
    if d.rng.random() < 0.5:
        d.do(f"del {d.rng.choice((values, places))}")


@kind(2)
def mask(d: Draft) -> None:
    x = d.pick(real)
    chosen = [name for name in d.variables() if d[name].dtype == torch.bool and d.alike(x, name)]
    m = d.rng.choice(chosen) if chosen and d.rng.random() < 0.5 else d.let(f"{x} > {d.rng.choice((0, 0.5))}")
    d.let(d.rng.choice((
        f"torch.where({m}, {x}, {x} * 0.1)",
        f"{x}.masked_fill({m}, 0.25)",
        f"torch.where({m}, {x}, 0.5)",
        f"{x} * {m}",
        f"~{m}",
    )))  # fmt: skip


@kind(2)
def cast(d: Draft) -> None:
    x = d.pick()
    dtype = d.rng.choice(("torch.float32", "torch.float32", "torch.bfloat16", "torch.float64", "torch.float16"))
    d.let(d.rng.choice((f"{x}.to({dtype})", f"{x}.type({dtype})", f"{x}.to({dtype}, copy=True)")))


@kind()
def integers(d: Draft) -> None:
    """Numbers of which some index a table."""
    x = d.pick(real, at_least(1), filled)
    rows = 10
    index = d.let(f"({x} * 4).to(torch.int64).remainder({rows})")
    d.let(f"F.embedding({index}, {d.weight(rows, WIDTH)})")


@kind()
def embedding(d: Draft) -> None:
    index = d.pick(whole, small)
    d.let(f"F.embedding({index}.remainder(10).abs(), {d.weight(10, WIDTH)})")


@kind(2)
def indexed(d: Draft) -> None:
    """Rows or elements by their numbers."""
    x = d.pick(real, at_least(1), filled)
    size = d.fixed(x)[0] or min(d.batches)
    rows = ", ".join(str(d.rng.randrange(size)) for _ in range(3))
    index = f"torch.tensor([{rows}])"
    if d.rng.random() < 0.5:
        index = d.buffer(f"torch.tensor([{rows}])")
    d.let(d.rng.choice((
        f"{x}[{index}]",
        f"{x}.index_select(0, {index})",
        f"torch.take({x}, {index})",
        f"{x}.gather(-1, {x}.argsort(-1))",
    )))  # fmt: skip


@kind(2)
def joined(d: Draft) -> None:
    """A concatenation of variables or of their views."""
    x = d.pick(at_least(1))
    y = d.pick(among=[n for n in d.variables() if d.alike(n, x) and d[n].dtype == d[x].dtype])
    dim = d.rng.randrange(-d[x].dim(), d[x].dim())
    d.let(d.rng.choice((
        f"torch.cat([{x}, {y}], {dim})",
        f"torch.stack([{y}, {x}], {dim})",
        f"torch.cat([{x}[:2], {y}[1:]])",
        f"torch.cat([{x}[..., ::2], {y}[..., 1::2]], -1)",
    )))  # fmt: skip


@kind()
def attention(d: Draft) -> None:
    x = d.pick(single, dims(2, 3), filled, small)
    heads = d.let(f"{x}.unflatten(-1, (2, {d.last(x) // 2})).transpose(-2, -3)")
    extra = d.rng.choice(("", ", is_causal=True"))
    mixed = d.let(f"F.scaled_dot_product_attention({heads}, {heads}, {heads}{extra})")
    if d.rng.random() < 0.7:
        d.let(f"{mixed}.transpose(-2, -3).flatten(-2)")


@kind()
def image(d: Draft) -> None:
    """A convolution, at times on channels_last."""
    x = d.pick(single, dims(2, 3, 4), filled, small)
    if d[x].dim() < 4:
        x = d.let(f"{x}.reshape(1, 1, {d.shape(x)[0]}, -1)")
    if d.rng.random() < 0.5:
        x = d.let(f"{x}.to(memory_format=torch.channels_last)")
    channels = d.fixed(x)[1]
    if channels is None:
        raise NotApplicable
    w = d.weight(d.rng.choice((2, 4)), channels, 3, 3)
    y = d.let(f"F.conv2d({x}, {w}, padding=1)")
    if d.rng.random() < 0.5:
        d.let(f"F.group_norm({y}, 2)")


@kind()
def dropped(d: Draft) -> None:
    """Random numbers; the state that they are drawn from is compared as well."""
    x = d.pick(real, filled)
    text = f"F.dropout({x}, 0.5, self.training)"
    if not d.settings.train:
        text += ".clone()"  # eager mode returns the tensor itself there, and AOTAutograd a copy
    d.let(d.rng.choice((
        text,
        f"F.dropout({x}, 0.3)",
        f"{x} + torch.rand_like({x})",
        f"{x} * torch.bernoulli(torch.full_like({x}, 0.5))",
        f"{x} + torch.randn({', '.join(d.shape(x)) or '()'}).to({d[x].dtype})",
    )))  # fmt: skip


@kind()
def truths(d: Draft) -> None:
    m = d.pick(truth, at_least(1), filled)
    d.let(d.rng.choice((f"{m}.any(-1)", f"{m}.sum(-1)", f"{m}.float()", f"{m}.long().cumsum(-1)", f"~{m}")))


@kind(2)
def truths_combined(d: Draft) -> None:
    """``&`` is traced as ``and_``, a name that ends like those of operators in place."""
    x = d.pick(real)
    first, second = d.let(f"{x} > {d.rng.choice((0, 0.5))}"), d.let(f"{x} < 1")
    d.let(f"{first} {d.rng.choice('&|^')} {second}")
    d.let(f"torch.where({d.rng.choice((first, second))}, {x}, 0.25)")
