"""Ordering: find an order of the atoms that needs fewer or smaller partitions than trace order.

In: a chain in *trace order* (the order in which the graph was traced), the predecessors of each atom, and a budget.
Out: another order with its boundaries, never a worse one (`search`). A *downset* is a set of atoms that holds all
predecessors of its members: the atoms before a boundary are one. `downsets` is exact, for graphs with few of them;
`resplit`, `rolling_beam` and `list_schedules` are for others. `order_bound` finds a number of partitions that no order
can go below, `order_ends` a larger one for small graphs.
"""
