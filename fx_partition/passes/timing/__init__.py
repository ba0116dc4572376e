"""Timing: how long a partition takes on a device, and the boundaries of least time.

In: partitions with what they read, write and compute (`partition_work`), and a device's `roofline.Roofline`. Out: the
seconds of runs and hops, and boundaries for the objectives "throughput" and "latency" (`time_dp`). A *roofline* is a
device's peak operations, its bandwidths on chip and off chip, and its overheads. A *hop* brings a value from one
device to the next.
"""
