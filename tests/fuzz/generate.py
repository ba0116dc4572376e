"""Make a program from a seed."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from . import kinds_math, kinds_regions, kinds_states, kinds_views, kinds_writes
from .draft import WIDTH, Draft, NotApplicable
from .kinds import DISABLED, KINDS, write
from .observe import run
from .program import CONTAINERS, Program, Settings, new_random, tensors_of

_KINDS_ARE_WRITTEN_BY = (kinds_math, kinds_regions, kinds_states, kinds_views, kinds_writes)

#: What an input may be, and how often; ``S`` is its seed.
INPUTS = {
    f"rand(n, {WIDTH}, seed=S)": 6,
    f"rand({WIDTH}, n, seed=S).t()": 1,
    f"rand(n, {2 * WIDTH}, seed=S)[:, ::2]": 1,
    f"rand(n, {2 * WIDTH}, seed=S)[:, 3:{3 + WIDTH}]": 1,
    f"rand(n, 1, seed=S).expand(n, {WIDTH})": 1,
    f"rand({WIDTH}, seed=S)": 1,
    "rand(seed=S)": 1,
    "ints(n, seed=S, high=10)": 2,
    f"rand(n, {WIDTH}, seed=S, dtype=torch.bfloat16)": 1,
    f"rand(n, {WIDTH}, seed=S, dtype=torch.float64)": 1,
    "rand(n, 2, 4, 4, seed=S).to(memory_format=torch.channels_last)": 1,
    "rand(n, 3, 4, seed=S)": 2,
    "rand(n, 0, seed=S)": 0.5,
    f"rand(n, {WIDTH}, seed=S) > 0": 1,
    "0.5": 0.5,
}


#: Kinds whose numbers inductor computes in another precision, or of which rounding makes others.
_ROUGH = {"dropped", "cast", "autocast", "other_dtype", "integers"}


def programs(first: int, count: int, kinds: Collection[str] = ()) -> Iterator[Program]:
    """The programs of ``count`` seeds from ``first`` on; of ``kinds`` alone, where some are named."""
    for seed in range(first, first + count):
        yield generate(seed, kinds)


def generate(seed: int, kinds: Collection[str] = (), *, smooth: bool = False) -> Program:
    """The program of a seed: one that runs, and whose results depend on its inputs and on its weights.

    Args:
        smooth: a small one for kernels that round otherwise than eager mode's: what is off by little stays so.
    """
    for attempt in range(100):
        program = _attempt(seed, attempt, kinds, smooth)
        if program is not None and depends(program) and (not smooth or _is_smooth(program)):
            return _with_backward(program)
    raise AssertionError(f"no program comes of seed {seed}")


def _with_backward(program: Program) -> Program:
    """The program with gradients of its results, where eager mode can compute them: what was saved for them may be
    written in place before they are."""
    if not program.settings.grad:
        return program
    more = replace(program, settings=replace(program.settings, backward=True))
    try:
        model = more.build()
        run(model, model, more)
    except RuntimeError:
        return program
    return more


def _attempt(seed: int, attempt: int, kinds: Collection[str], smooth: bool) -> Program | None:
    rng = new_random(seed, f"settings {attempt}")
    settings = Settings(
        grad=rng.random() < 0.2 and not smooth,
        train=rng.random() < 0.3 and not smooth,
        dynamic=rng.random() < 0.3,
        data_sizes=rng.random() < 0.15 and not smooth,
        smooth=smooth,
        shuffled=rng.random() < 0.4 and not smooth,
        stages=rng.choice(("eager", "eager", "dense", "dense", "aot")),
    )
    d = Draft(seed, settings)
    d.rng = new_random(seed, f"statements {attempt}")
    _inputs(d)
    names = [name for name in (kinds or KINDS) if name not in DISABLED and not (smooth and name in _ROUGH)]
    weights = [KINDS[name][1] for name in names]
    wanted, tries = d.rng.choice((4, 5, 6) if smooth else (4, 6, 8, 10, 12, 16)), 0
    while wanted and tries < 100:
        tries += 1
        name = d.rng.choices(names, weights)[0]
        before = len(d.statements)
        with contextlib.suppress(NotApplicable):
            write(d, name)
        wanted -= len(d.statements) > before
    results = _results(d)
    if not results or not d.statements:
        return None
    program = d.program(results, d.rng.choice(CONTAINERS))
    program = program.with_statements(program.statements)
    options = {"cache_bytes": 1 << 30} if settings.shuffled else _options(rng, program)
    return replace(program, settings=replace(settings, options=options))


def _inputs(d: Draft) -> None:
    texts = [f"rand(n, {WIDTH}, seed=S)"]
    texts += d.rng.choices(list(INPUTS), list(INPUTS.values()), k=d.rng.randrange(4))
    for i, text in enumerate(texts):
        if d.settings.smooth and "dtype" in text:
            continue
        text = text.replace("S", f"seed + {i}")
        if d.settings.grad and text.startswith("rand") and text.endswith(")") and d.rng.random() < 0.3:
            text += ".requires_grad_()"
        d.inputs[f"x{i}"] = text
    if d.rng.random() < 0.15:
        d.setup = f"base = rand(n, {2 * WIDTH}, seed=seed + 9)"
        d.inputs["y0"] = f"base[:, :{WIDTH}]"
        d.inputs["y1"] = d.rng.choice((f"base[:, {WIDTH}:]", f"base[:, 4:{4 + WIDTH}]", f"base[:, :{WIDTH}]", "base"))
    names = list(d.inputs)
    if len(names) > 1 and d.rng.random() < 0.3:
        d.keywords = tuple(names[-d.rng.randrange(1, len(names)):])
    d.start()


def _results(d: Draft) -> tuple[str, ...]:
    """What nothing reads, and some of the rest."""
    variables = [name for name, value in d.worlds[0].items() if isinstance(value, Tensor)]
    read = {name for statement in d.statements for name in statement.names[0]}
    unread = [name for name in variables if name not in read and name not in d.inputs]
    if len(unread) > 8:
        unread = unread[-8:]
    others = d.rng.sample(variables, min(len(variables), d.rng.randrange(4)))
    results = [*unread, *others]
    states = [f"self.{name}" for name in d.members if name.startswith("b")]
    if states and d.rng.random() < 0.2:
        results.append(d.rng.choice(states))
    if d.rng.random() < 0.15:
        results.append(d.rng.choice(["3", "None", "'text'", "x0.shape[0]", "x0.shape"]))
    d.rng.shuffle(results)
    return tuple(results)


def _options(rng: Any, program: Program) -> dict[str, Any]:
    """How it is planned."""
    model = program.build()
    state = sum(t.untyped_storage().nbytes() for t in {*model.parameters(), *model.buffers()})
    inputs = sum(t.untyped_storage().nbytes() for t in tensors_of(program.make_inputs(0)))
    options: dict[str, Any] = {}
    match rng.randrange(10):
        case 0 | 1 | 2:
            options["cache_bytes"] = 1  # a partition for each atom
        case 3 | 4:
            options["devices"] = rng.randrange(2, 7)
        case _:
            options["cache_bytes"] = max(1, int((state + 2 * inputs) * rng.choice((0.15, 0.25, 0.4, 0.6, 0.8))))
    if rng.random() < 0.4:
        options["order"] = "trace"
    if rng.random() < 0.2:
        options["algorithm"] = "greedy"
    elif rng.random() < 0.2:
        options["objective"] = "traffic"
    if rng.random() < 0.15:
        options["footprint"] = "fused"
    return options


# ---- whether a program can show a fault


def depends(program: Program) -> bool:
    """Whether it runs, and its results change with its inputs and with its weights."""
    try:
        first = _run(program, 0, 1.0)
        second, other = _run(program, 2, 1.0), _run(program, 0, 1.5)
        _run(program, 1, 1.0)
    except Exception:
        return False
    weighs = any(True for _ in program.build().parameters())
    finite = all(t.isfinite().all() for t in first if t.dtype.is_floating_point)
    return finite and _differ(first, second) and (not weighs or _differ(first, other))


def _is_smooth(program: Program) -> bool:
    """Whether a change of the weights as small as rounding's stays small in the results."""
    first, second = _run(program, 0, 1.0), _run(program, 0, 1.0 + 1e-5)

    def near(a: Tensor, b: Tensor) -> bool:
        x, y = a.double(), b.double()
        return a.shape == b.shape and bool((x - y).abs().max() <= 3e-4 * x.abs().max().clamp_min(1))

    return all(near(a, b) for a, b in zip(first, second, strict=True) if a.numel())


def _run(program: Program, call: int, scale: float) -> list[Tensor]:
    model = program.build()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(scale)
    torch.manual_seed(0)
    args, kwargs = program.make_inputs(call)
    with torch.set_grad_enabled(program.settings.grad):
        result = model(*args, **kwargs)
    return [t.detach().clone() for t in (*tensors_of(result), *_states(model))]


def _states(model: nn.Module) -> list[Tensor]:
    return list(model.buffers())


def _differ(first: list[Tensor], second: list[Tensor]) -> bool:
    return any(a.shape == b.shape and not torch.equal(a, b) for a, b in zip(first, second, strict=True))

