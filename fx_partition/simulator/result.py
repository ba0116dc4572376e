"""What a simulation found, for readers, programs and timeline viewers."""

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
        places: of the devices that hold it.
        seconds: of one run.
        hop: seconds that what it receives is on its way, over a shared link also what the caller takes; 0.0 without a
            hop.
        utilisation: share of the time in which its devices run it.
        offchip_bytes: of a request.
        bound: what takes most of a run: "arithmetic", "on-chip", "off-chip" or "launch".
    """

    places: tuple[int, ...]
    seconds: float
    hop: float
    utilisation: float
    offchip_bytes: float
    bound: str


@dataclass(frozen=True)
class Simulation:
    """What `simulate` found.

    Attributes:
        devices: names of the records, by place.
        microbatches: runs of the graph in a request.
        steps: requests that were looked at.
        throughput: runs of the graph a second; infinite where nothing takes time.
        latency: seconds of a request that is alone.
        offchip_bytes: of a request, once memories are filled.
        first_offchip_bytes: of the first one, which fills them.
        stages: by partition.
        spans: all that happened, once memories are filled.

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
        """For a reader: "text" for a terminal, "markdown", or "json": `to_dict` as text.

        Raises:
            ValueError: an unknown format; it names those that there are.
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
        """As plain data, without the spans: of a long simulation these are many. An infinite throughput is None."""
        found = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "spans"}
        throughput = None if self.throughput == math.inf else self.throughput
        return {**found, "throughput": throughput, "stages": tuple(map(asdict, self.stages))}

    def trace(self) -> str:
        """JSON in Chrome's trace event format, for Perfetto or chrome://tracing; a row for each device and link."""
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
