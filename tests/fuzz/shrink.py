"""Drop from a program what its failure does not need."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from .check import Verdict, check
from .program import Program, Statement


def shrink(program: Program, verdict: Verdict, *, limit: int = 400) -> Program:
    """The smallest program found that fails by the same road in the same way.

    Args:
        limit: how many programs to try.
    """
    tries = 0

    def fails(candidate: Program) -> bool:
        nonlocal tries
        tries += 1
        try:
            (found,) = check(candidate, (verdict.road,))
        except Exception:  # eager mode cannot run it
            return False
        return _same_fault(verdict.signature, found.signature)

    changed = True
    while changed and tries < limit:
        changed = False
        for candidate in _smaller(program):
            if tries >= limit:
                break
            if fails(candidate):
                program, changed = candidate, True
                break
    return program


def _same_fault(wanted: str, found: str) -> bool:
    if not found:
        return False
    if " in " in wanted:  # an exception: its type and where it comes from
        return wanted.split(":")[:2] == found.split(":")[:2]
    return set(found.split(": ", 1)[1].split(", ")) <= set(wanted.split(": ", 1)[1].split(", "))


def _smaller(program: Program) -> Iterator[Program]:
    """Programs with less, the least first."""
    count = len(program.statements)
    size = count // 2
    while size:
        for first in range(count - size, -1, -size):
            found = _without(program, set(range(first, first + size)))
            if found is not None:
                yield found
        size //= 2
    for i in range(count):
        found = _short_cut(program, i)
        if found is not None:
            yield found
    if len(program.results) > 1:
        for i in range(len(program.results)):
            yield _tidied(replace(program, results=program.results[:i] + program.results[i + 1:]))
    yield from _simpler_settings(program)


def _without(program: Program, dropped: set[int]) -> Program | None:
    """The program without some statements and all that needs them."""
    gone = {name for i in dropped for name in program.statements[i].names[1]}
    kept: list[Statement] = []
    for i, statement in enumerate(program.statements):
        reads, defines, _ = statement.names
        if i in dropped or reads & gone:
            gone |= defines - set(program.inputs)
        else:
            kept.append(statement)
    results = tuple(r for r in program.results if r.split(".")[0] not in gone)
    if not results:
        return None
    return _tidied(replace(program, results=results).with_statements(tuple(kept)))


def _short_cut(program: Program, i: int) -> Program | None:
    """The program with the first variable that a statement reads in place of what it defines."""
    reads, defines, _ = program.statements[i].names
    sources = [name for name in sorted(reads, key=program.statements[i].text.find) if re.fullmatch(r"[vxy]\d+", name)]
    if len(defines) != 1 or not sources or "\n" in program.statements[i].text:
        return None
    (old,) = defines

    def renamed(text: str) -> str:
        return re.sub(rf"\b{old}\b", sources[0], text)

    later = tuple(replace(s, text=renamed(s.text)) for s in program.statements[i + 1:])
    results = tuple(map(renamed, program.results))
    return _tidied(replace(program, results=results).with_statements(program.statements[:i] + later))


def _tidied(program: Program) -> Program:
    """Without inputs that nothing reads."""
    read = {name for s in program.statements for name in s.names[0]} | {r.split(".")[0] for r in program.results}
    inputs = {name: text for name, text in program.inputs.items() if name in read} or program.inputs
    setup = program.setup if any("base" in text for text in inputs.values()) else ""
    keywords = tuple(name for name in program.keywords if name in inputs)
    return replace(program, inputs=inputs, keywords=keywords, setup=setup)


def _simpler_settings(program: Program) -> Iterator[Program]:
    settings = program.settings
    options: Callable[..., Program] = lambda **kw: replace(program, settings=replace(settings, **kw))  # noqa: E731
    if settings.backward:
        yield options(backward=False)
    if settings.grad and not settings.backward:
        yield options(grad=False)
    if settings.train:
        yield options(train=False)
    if settings.dynamic:
        yield options(dynamic=False)
    if settings.data_sizes:
        yield options(data_sizes=False)
    if settings.shuffled:
        yield options(shuffled=False, options={"cache_bytes": 1})
    if settings.stages != "eager":
        yield options(stages="eager")
    for name in settings.options:
        if name != "cache_bytes" and len(settings.options) > 1:
            yield options(options={k: v for k, v in settings.options.items() if k != name})
    if settings.options.get("cache_bytes") != 1 and not settings.shuffled:
        yield options(options={"cache_bytes": 1})
    if program.keywords:
        yield replace(program, keywords=())
    if program.container not in ("tuple", "single"):
        yield replace(program, container="tuple")
    for name, text in program.inputs.items():
        if text != "rand(n, 8, seed=seed)":
            yield replace(program, inputs=program.inputs | {name: "rand(n, 8, seed=seed)"})
