"""The result of a simulation, for readers, programs and timeline viewers."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from fx_partition.common.units import format_bytes, format_seconds
from fx_partition.report.document import Document, Section, Table
from fx_partition.report.output import written

from .event_loop import Span


@dataclass(frozen=True)
class StageUse:
    """One partition in a simulation.

    Attributes:
        places: the numbers of the devices that hold it.
        seconds: seconds of one run.
        hop: seconds of the transfer of its inputs, over a shared link also of its results for the caller; 0.0 without
            a hop.
        utilisation: the share of the time in which its devices run it.
        offchip_bytes: the bytes that a request moves off chip.
        bound: the cause that takes most of a run: "arithmetic", "on-chip", "off-chip" or "launch".
    """

    places: tuple[int, ...]
    seconds: float
    hop: float
    utilisation: float
    offchip_bytes: float
    bound: str


@dataclass(frozen=True)
class Simulation:
    """The result of `simulate`.

    Attributes:
        devices: the names of the records, by the number of the device.
        microbatches: the number of runs of the graph in a request.
        steps: the number of requests that were measured.
        throughput: runs of the graph per second; infinite if nothing takes time.
        latency: seconds of a lone request.
        offchip_bytes: the bytes that a request moves off chip, once memories are filled.
        first_offchip_bytes: those of the first request, which fills the memories.
        stages: the use of each partition.
        spans: all events, once memories are filled.

    Example::

        >>> found = fx_partition.simulate(model, x, plan=plan, device="EdgeTPU")     # doctest: +SKIP
        >>> print(found.report()); Path("trace.json").write_text(found.trace())         # doctest: +SKIP
    """

    devices: tuple[str, ...]
    microbatches: int
    steps: int
    throughput: float
    latency: float
    offchip_bytes: float
    first_offchip_bytes: float
    stages: tuple[StageUse, ...]
    spans: tuple[Span, ...] = field(repr=False)

    def report(self, format: str = "text") -> str:
        """Return a report: "text" for a terminal, "markdown", or "json" (`to_dict` as text).

        Raises:
            ValueError: the format is unknown; the message lists the formats.
        """
        return written(self._document, lambda: json.dumps(self.to_dict(), indent=1), format)

    def _document(self) -> Document:
        names = list(dict.fromkeys(self.devices))
        per = "" if self.microbatches == 1 else f" (a request is {self.microbatches} of them)"
        runs = "any number of" if self.throughput == math.inf else f"{self.throughput:,.0f}"
        headline = (
            f"On {len(self.devices)} x {', '.join(names)}: {runs} runs a second{per}, "
            f"{format_seconds(self.latency)} for a request that is alone, {format_bytes(round(self.offchip_bytes))} "
            f"off chip a request ({format_bytes(round(self.first_offchip_bytes))} the first)."
        )
        rows = tuple(
            (
                str(i), ", ".join(map(str, s.places)), format_seconds(s.hop) if s.hop else "-",
                format_seconds(s.seconds), f"{s.utilisation:.0%}", format_bytes(round(s.offchip_bytes)), s.bound,
            )
            for i, s in enumerate(self.stages)
        )  # fmt: skip
        headers = ("#", "device", "hop", "run", "busy", "off chip a request", "bound by")
        table = Table(headers, (True, True, True, True, True, True, False), rows)
        return Document(headline, (Section("Partitions", table=table),), _CAUTION)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, without the spans, which can be very many. An infinite throughput is None."""
        found = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "spans"}
        throughput = None if self.throughput == math.inf else self.throughput
        return {**found, "throughput": throughput, "stages": tuple(map(asdict, self.stages))}

    def trace(self) -> str:
        """Return JSON in Chrome's trace event format for Perfetto and chrome://tracing; a row a device or link."""
        places = sorted({span.place for span in self.spans})
        row = {place: number for number, place in enumerate(places)}
        events: list[dict[str, Any]] = [
            {"name": "thread_name", "ph": "M", "pid": 0, "tid": row[place], "args": {"name": place}} for place in places
        ]
        for span in self.spans:
            args: dict[str, Any] = {"request": span.step, "microbatch": span.item}
            if span.price is not None:
                args |= {"off-chip bytes": round(span.price.moved), "bound by": span.price.bound}
            events.append({
                "name": f"{span.what} {span.stage}", "cat": span.what, "ph": "X", "pid": 0, "tid": row[span.place],
                "ts": span.start * 1e6, "dur": (span.end - span.start) * 1e6, "args": args,
            })  # fmt: skip
        return json.dumps({"traceEvents": events, "displayTimeUnit": "ns"})


_CAUTION = "An estimate from the device's record; see its figures' confidence. Times are those of compiled code."
