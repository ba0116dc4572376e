"""The answer of `fit`: what each device holds, and what would make a model fit that does not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from fx_partition.common.errors import PartitionError
from fx_partition.common.units import format_bytes
from fx_partition.engines.module_stages import ModuleStages
from fx_partition.engines.registry import to_engine

from ..report.document import Document, Section, Table, code, count
from ..report.text import to_text


@dataclass(frozen=True)
class DeviceFit:
    """One device; every ``*_bytes`` is a number of bytes.

    Attributes:
        budget_bytes: its size.
        usable_bytes: its size without the margin.
        weight_bytes: the weights of its modules, each once.
        state_bytes: what stays from call to call: the KV cache, buffers that the model writes.
        activation_bytes, workspace_bytes: values resident and scratch memory at the moment that needs most.
        total_bytes: their sum.
        modules: paths of its modules, in the order in which they run.
        quantised: those of them whose weights are quantised.
    """

    budget_bytes: int
    usable_bytes: int
    weight_bytes: int
    state_bytes: int
    activation_bytes: int
    workspace_bytes: int
    total_bytes: int
    modules: tuple[str, ...]
    quantised: tuple[str, ...] = ()


@dataclass(frozen=True)
class Precision:
    """One precision of the weights.

    Attributes:
        weights: its name, "bfloat16" or "int8".
        fits: whether the devices hold the model if enough blocks have it.
        quantised: the fewest blocks that must have it; all of them where it does not fit.
        blocks: how many blocks the model has.
    """

    weights: str
    fits: bool
    quantised: int
    blocks: int


@dataclass(frozen=True)
class Fit:
    """Whether a model fits, and how.

    Attributes:
        fits: whether no device is overfull.
        model: what was asked about, in words.
        dtype: the precision of most weights.
        sizes: the sizes of the inputs: {"batch": 1, "length": 4096}.
        margin: the share of each device that stays empty.
        devices: each device, in order; one that is not needed has no modules.
        largest: for each size the largest for which these devices hold the model; empty where sizes are fixed.
        precisions: the precisions that were asked for, in order.
        give_up: what each alone would make the model fit, the least loss first; empty if it fits.
        note: a sentence on how figures were found; "" for none.
        modules: the device of each module of the model, which `to` writes for other engines.

    Example::

        >>> answer = fx_partition.fit("Llama-3.1-8B/config.json", devices="24GiB")     # doctest: +SKIP
        >>> answer.fits, answer.devices[0].total_bytes                                 # doctest: +SKIP
    """

    fits: bool
    model: str
    dtype: str
    sizes: Mapping[str, int]
    margin: float
    devices: tuple[DeviceFit, ...]
    largest: Mapping[str, int]
    precisions: tuple[Precision, ...] = ()
    give_up: tuple[str, ...] = ()
    note: str = ""
    modules: ModuleStages = field(default_factory=ModuleStages, repr=False)

    def to(self, engine: str) -> Any:
        """Return where to cut as the value that another engine takes, as `Plan.to` does; docs/engines.md says more.

        Args:
            engine: "accelerate", "torch.distributed.pipelining", "torchtitan", "vllm", "sglang" or "llama.cpp".

        Raises:
            PartitionError: the model does not fit; or the engine is unknown, or cannot say where the model is cut.

        Example::

            >>> model = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(8))).to("meta")
            >>> answer = fx_partition.fit(model, torch.zeros(4, 256, device="meta"), devices="2x1200KiB")
            >>> [module for module, device in answer.to("accelerate").items() if device == 1]
            ['4', '5', '6', '7']
        """
        if not self.fits:
            ways = " or ".join(self.give_up)
            raise PartitionError(f"the model does not fit these devices, so it is not placed; it fits with {ways}")
        return to_engine(engine, self.modules, [i for i, device in enumerate(self.devices) if device.modules])

    def to_json(self, indent: int | None = 1) -> str:
        """Return the answer as JSON text, with the names of the attributes as keys, as `to_dict` does."""
        return json.dumps(self.to_dict(), indent=indent)

    def to_dict(self) -> dict[str, Any]:
        """Return the data that `to_json` writes: all but ``modules``, which ``devices`` lists for readers."""
        found = asdict(replace(self, modules=ModuleStages()))
        del found["modules"]
        return found

    def document(self) -> Document:
        """Return the answer as a report: what fits where, and what else would fit."""
        sections = [Section("Devices", table=_table(self.devices))]
        if self.largest:
            sections.append(Section(
                "Largest sizes that these devices hold, the others as now",
                points=tuple(f"{code(name)}: {number or 'none'}" for name, number in self.largest.items()),
            ))  # fmt: skip
        if self.precisions:
            sections.append(Section("Precision of the weights", points=tuple(map(_told, self.precisions))))
        if self.give_up:
            sections.append(Section("It fits with any one of these, the least loss first", points=self.give_up))
        closing = "Counted are the kernels of a CPU; other devices have others, so leave a margin."
        return Document(self._headline(), tuple(sections), f"{self.note} {closing}".strip())

    def _headline(self) -> str:
        sizes = "".join(f", {name} {number}" for name, number in self.sizes.items())
        needed = sum(bool(device.modules) for device in self.devices)
        given = count(len(self.devices), "device")
        on = f"{needed} of {given}" if needed < len(self.devices) else given
        verdict = f"fits on {on}" if self.fits else f"does not fit on {given}"
        return f"{self.model} ({self.dtype}{sizes}) {verdict}."

    def __str__(self) -> str:
        """Return the answer as a text for readers."""
        return to_text(self.document())


def _table(devices: tuple[DeviceFit, ...]) -> Table:
    columns = ("weights", "state", "activations", "workspace", "total", "size")
    return Table(
        ("device", *columns, "", "modules"),
        (True, *[True] * len(columns), False, False),
        tuple(
            (
                str(index),
                *map(format_bytes, (
                    d.weight_bytes, d.state_bytes, d.activation_bytes, d.workspace_bytes, d.total_bytes, d.budget_bytes,
                )),
                "over" if d.total_bytes > d.usable_bytes else "",
                _span(d.modules),
            )
            for index, d in enumerate(devices)
        ),
    )  # fmt: skip


def _span(modules: tuple[str, ...]) -> str:
    if not modules:
        return "not needed"
    return code(modules[0]) if len(modules) == 1 else f"{code(modules[0])} to {code(modules[-1])} ({len(modules)})"


def _told(precision: Precision) -> str:
    if not precision.fits:
        return f"{precision.weights}: does not fit"
    if not precision.quantised:
        return f"{precision.weights}: fits"
    number = f"{precision.quantised} of {count(precision.blocks, 'block')}"
    return f"{precision.weights}: fits with {number} quantised, and with no fewer"
