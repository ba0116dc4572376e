"""Simulator: predict what a plan takes on devices from their records, without the devices.

In: a plan, its model and device records. Out: a `result.Simulation`: throughput, latency, bytes off chip and why.
`cache_model` follows what stays on chip from one run to the next, `steady_state` does so for a long stream, `run_time`
computes the time of a run, and `event_loop` the waits for devices and links. The *distance* of an access is the bytes
of distinct tensors touched since the same tensor was touched last. Backends do not import this room.
"""
