"""Footprint: which bytes each node reads, writes, allocates and keeps.

In: a captured graph. Out: a `graph_memory.GraphMemory`, in symbolic bytes; `analyze.gather_facts` makes it. A *step*
is a node that runs; a *free* node costs nothing and is repeated wherever it is needed. A *weight* is bytes of a
storage that the model owns; *state* is what the graph writes of its weights and inputs; an *activation* is what a
node makes. The *effect* of a node is the storages that it reads, writes and makes, seen in one run on fake tensors.
"""
