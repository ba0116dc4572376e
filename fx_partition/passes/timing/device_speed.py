"""Turn a device's record into the roofline that the planner computes times with."""

from __future__ import annotations

from fx_partition.hardware.device_names import find_device
from fx_partition.hardware.overheads import OVERHEADS
from fx_partition.hardware.records import Device

from .roofline import Roofline


def speed_of(device: Device | str) -> Roofline:
    """Return the roofline of a record, or of the device of a name, with the overheads of its kind.

    Raises:
        ValueError: no device has this name; it lists close matches.

    Example::

        >>> round(1e6 * speed_of("H100-SXM").hop(0), 2)
        2.5
    """
    record = find_device(device) if isinstance(device, str) else device
    overheads = OVERHEADS[record.kind]
    return Roofline(
        name=record.name,
        peak=record.peak_flops,
        onchip=record.onchip_bandwidth,
        offchip=record.memory_bandwidth,
        hit_rate=record.hit_rate,
        call=overheads.call,
        kernel=overheads.kernel,
        launch=overheads.launch,
        latency=record.link_latency,
        bandwidth=record.link_bandwidth,
        overlap=overheads.overlap,
    )
