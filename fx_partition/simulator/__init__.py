"""Simulator: what a plan gives on devices whose records are known, without any of them.

In: a plan, its model and device records. Out: a `result.Simulation`: throughput, latency, bytes off chip and why.
`cache_model` says what stays on chip from one run to the next, `steady_state` does so for a long stream, `run_time`
how long a run takes, `event_loop` who waits for whom. The *distance* of an access is the bytes of distinct tensors
touched since the same tensor was touched last. Backends do not import this room.
"""
