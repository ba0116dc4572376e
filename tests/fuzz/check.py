"""Run a program on all roads and compare with eager mode."""

from __future__ import annotations

import functools
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from .compiled import by_inductor, by_inductor_alone, by_pipeline, by_pipeline_alone
from .observe import Difference, Seen, differences, has_gaps
from .program import Program
from .roads import (
    Ran,
    TorchRefuses,
    by_backend,
    by_dynamo_alone,
    by_export,
    by_export_alone,
    by_symbolic_trace,
    by_symbolic_trace_alone,
    eager,
)


@dataclass(frozen=True)
class Road:
    """A way to run a program by fx_partition, and the same way with torch alone.

    Attributes:
        tolerance: how far numbers may be off, where kernels are others than eager mode's.
        shares: whether results share memory as in eager mode.
    """

    run: Callable[[Program], Ran]
    alone: Callable[[Program], Seen]
    tolerance: float = 0.0
    shares: bool = True


#: A boundary may change a layout, and kernels add numbers up in the order of the layout.
ROUNDING = 1e-5

ROADS = {
    "export": Road(by_export, by_export_alone),
    "symbolic_trace": Road(by_symbolic_trace, by_symbolic_trace_alone),
    "backend": Road(by_backend, by_dynamo_alone),
    "inductor": Road(by_inductor, by_inductor_alone, tolerance=1e-3),
    "pipeline": Road(by_pipeline, by_pipeline_alone, tolerance=1e-3, shares=False),
}


#: Faults that are known and not yet mended, by the beginning of their signatures, each with its reason.
KNOWN: dict[str, str] = {}


@dataclass
class Verdict:
    """What came of a program by one road.

    Attributes:
        fault: what is wrong, as text; "" where nothing is.
        signature: the fault without what is particular to the program, to tell faults apart.
        torch_differs: how torch alone differs from eager mode, or why it cannot run the program.
        refused: whether torch alone cannot run it.
        dense: whether a view with gaps of an intermediate result is returned without them, as it crosses a boundary.
        rounded: whether numbers differ by rounding alone, where layouts may be others than in eager mode.
        unlike_compiled: whether strides differ as stages run eagerly, and do not where inductor compiles them.
    """

    road: str
    fault: str = ""
    signature: str = ""
    partitions: int = 0
    warned: list[str] = field(default_factory=list)
    torch_differs: str = ""
    dense: bool = False
    rounded: bool = False
    unlike_compiled: bool = False
    refused: bool = False

    @property
    def known(self) -> bool:
        return any(self.signature.startswith(known) for known in KNOWN)


def check(program: Program, roads: tuple[str, ...] = tuple(ROADS)) -> list[Verdict]:
    """Run a program by some roads; each result must be eager mode's, or what torch alone makes of it by that road."""
    expected = eager(program)
    return [_check_road(program, name, expected) for name in roads]


def _check_road(program: Program, name: str, expected: Seen) -> Verdict:
    road = ROADS[name]
    verdict = Verdict(name)

    @functools.cache
    def alone() -> Seen:
        return road.alone(program)

    try:
        ran = road.run(program)
    except TorchRefuses as error:
        verdict.torch_differs, verdict.refused = str(error), True
        return verdict
    except Exception as error:
        try:
            alone()
        except Exception as other:
            verdict.torch_differs, verdict.refused = f"{name}: {type(other).__name__}", True
            return verdict
        verdict.fault = "".join(traceback.format_exception(error))
        verdict.signature = _signature(error)
        return verdict
    verdict.partitions, verdict.warned = ran.partitions, ran.warned
    if not road.shares:
        expected = expected.without_sharing()
    different = differences(expected, ran.seen, tolerance=road.tolerance)
    if different:
        try:
            others = alone() if road.shares else alone().without_sharing()
            theirs = {(d.place, d.what) for d in differences(expected, others, tolerance=road.tolerance)}
            unlike_theirs = {(d.place, d.what) for d in differences(others, ran.seen, tolerance=road.tolerance)}
            excused = theirs - unlike_theirs
        except Exception:
            excused = set()
        wrong = [d for d in different if (d.place, d.what) not in excused]
        if name in ("backend", "inductor"):
            dense = [d for d in wrong if d.what in ("strides", "alias") and _is_of_gaps(d, expected)]
            verdict.dense, wrong = bool(dense), [d for d in wrong if d not in dense]
        if name == "backend" and wrong:
            beyond = {(d.place, d.what) for d in differences(expected, ran.seen, tolerance=ROUNDING)}
            verdict.rounded = any((d.place, d.what) not in beyond for d in wrong)
            wrong = [d for d in wrong if (d.place, d.what) in beyond]
        if name == "backend" and wrong and all(d.what in ("strides", "alias") for d in wrong):
            # Strides are promised as inductor makes them; an eager stage copies into what a fake kernel has wrong, and
            # a copy is not an alias.
            compiled = _check_road(program, "inductor", expected)
            verdict.unlike_compiled = not compiled.fault and not compiled.refused
            wrong = [] if verdict.unlike_compiled else wrong
        verdict.torch_differs = "" if len(wrong) == len(different) else f"{name}: {_kinds(different)}"
        if wrong:
            verdict.fault = "\n".join(map(str, wrong))
            verdict.signature = f"{name}: {_kinds(wrong)}"
    return verdict


def _is_of_gaps(difference: Difference, expected: Seen) -> bool:
    """Whether a result that differs is a view with gaps, or shares its memory with one, or elsewhere in that memory."""
    call = " ".join(difference.place.split()[:2])
    theirs, ours = (text.partition(" at ")[0] for text in (difference.expected, difference.found))
    owner = expected.leaves.get(f"{call} {theirs}")
    if has_gaps(expected.leaves[difference.place]) or (owner is not None and has_gaps(owner)):
        return True
    return difference.what == "alias" and theirs == ours and theirs.startswith("result")


def _kinds(found: list[Difference]) -> str:
    return ", ".join(sorted({f"{d.what} of {[*d.place.split(), '', 'call'][2]}" for d in found}))


def _signature(error: BaseException) -> str:
    """The innermost error, and the last line of the package that it came through."""
    while (inner := getattr(error, "inner_exception", error.__cause__)) is not None:
        error = inner
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/fx_partition/" in f.filename]
    where = f"{frames[-1].filename.rsplit('/fx_partition/', 1)[1]}:{frames[-1].name}" if frames else "torch"
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__} in {where}: {re.sub(r'[0-9]+', 'N', text)[:80]}"
