"""Footprint: which bytes each node reads, writes, allocates and keeps.

In: a captured graph. Out: a `graph_memory.GraphMemory`, in symbolic bytes; `analyze.analyze_memory` makes it. A *step*
is a node that runs; a *free* node costs nothing and is repeated wherever it is needed. A *weight* is a part of a
storage that the model owns; *state* is the weights and inputs that the graph writes; an *activation* is a storage that
a node makes. The *effect* of a node is the storages that it reads, writes and makes, seen in one run on fake tensors.
"""
