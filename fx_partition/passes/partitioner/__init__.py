"""Partitioner: place the boundaries in a given order, and prove that they are the best.

In: a `chain.Chain`, the graph in numbers only, and a budget in bytes. Out: boundaries, positions between atoms, and a
certificate. The *footprint* of a run of atoms is its weights plus the most bytes resident at one of its steps.
*Farthest reach* fills each partition until the next atom does not fit. `dp` is the exact planner and `greedy` the
fast one; `mixed_devices` and `allowed_devices` are for devices that differ; `min_cut` finds the fewest bytes between
partitions. A *witness* is a run of atoms that is too large for one partition.
"""
