"""Constraints: which nodes must stay together, and which must run before which.

In: a captured graph and its memory. Out: *atoms*, runs of steps that no boundary may divide (`atoms`), and for each
atom its predecessors (`dependencies`). A *colocation group* is the first and the last step of a run that must not be
divided; groups that overlap are one atom. A value is *handed on* if it is written in place and yet may cross a
boundary, because every use of it is of its newest version (`handed_on_writes`).
"""
