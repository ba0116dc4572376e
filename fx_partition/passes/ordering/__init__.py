"""Ordering: an order of the atoms that needs fewer or smaller partitions than trace order.

In: a chain in *trace order* (the order in which the graph was traced), the predecessors of each atom, and a budget.
Out: another order with its boundaries, never a worse one (`search`). A *downset* is a set of atoms that holds all
predecessors of its members: what can have run at a boundary. `downsets` is exact and for few; `resplit`,
`rolling_beam` and `list_schedules` are for more. `order_bound` finds a number of partitions that no order can go
below, `order_ends` a larger one for small graphs.
"""
