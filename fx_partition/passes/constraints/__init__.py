"""Constraints: which nodes must stay together, and which must run before which.

In: a captured graph and its memory. Out: *atoms*, runs of steps that no boundary may divide (`atoms`), and for each
atom its predecessors (`dependencies`). A *colocation group* is a set of steps that must stay in one partition; groups
whose spans overlap are one atom. A value is *handed on* if it is written in place and may cross a boundary all the
same, because every step that uses it uses its newest version (`handed_on_writes`). Where a caller wants modules to
stay whole, `module_boundaries` leaves only the boundaries between them.
"""
