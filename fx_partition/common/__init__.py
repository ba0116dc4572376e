"""Shared by all rooms: errors, units and a segment tree.

In: texts and numbers that a user gives. Out: bytes and counts within bounds (`units`), and errors that name what is
wrong and the way out (`errors`). `own_process` refuses work in a forked child, `segment_tree` is the planners' data
structure, and `module_paths` reads the dotted paths of modules. Nothing here imports another room. An *oversize*
partition is one whose footprint is above the budget of its device.
"""
