"""Check a plan against its model: every figure, the order, and what is claimed to be the best, by code of its own.

A captured graph and a plan come in; reasons go out, each ``path: why``, where the path is that of the field in the
plan's JSON (``partitions[2].recv_bytes: it is 0, and the model has 4096``). `find_faults` is the entry.

Terms
-----
memory
    One storage: a weight (overlapping tensors of one storage are one), an input of the graph, or what a node makes.
state
    A memory that is there before the graph runs, is written by it, and is no parameter.
activation
    A memory that is made by a node or passed in by the caller, and is no state.
run
    A node that costs something, so that it is in exactly one partition; the others are repeated where they are needed.
group
    Runs that give wrong results, or not what the caller asked for, if they are in different partitions.
atom
    A stretch of the plan's own order in which no boundary may be, because of a group.

What is shared with the planner, and what is not
------------------------------------------------
Nothing here imports the planner's memory, atoms, chains, searches or proofs. Shared is what defines the measure:

- the captured graph with its symbols and its regions, and the graph in slices (`slicing.rewrite`);
- what one operator by itself allocates in addition to its results, which operands it reads and how much of them,
  whether it has a rule, and what is assumed of one that does not run on fake tensors (`op_effects`,
  `assumed_effects`, `higher_order_writes`);
- by which names and schemas a node is known to have an effect, or to return what it writes (`dependencies.has_effect`,
  `partial_writes.returns_self`);
- which modules and weights belong to which partition (`module_runs`): what a plan says of them is only compared;
- for ``footprint="fused"`` alone which kernels inductor makes (`fused_footprint`, over the planner's own memory).

Found again are: which storages there are, who shares and who writes them (the whole graph is run once on fake tensors
that share memory as the real ones do; of calls that are alike and write nothing, only the first), how long each lives,
what crosses boundaries, every peak, the order and the groups, both bounds, the trade-offs, and the sets that a search
says it looked at.

Everything is linear in nodes and touches, but for the trade-offs and the choice of the objective, which take a
logarithm more (and, for devices of different sizes, a pass for each device that is used), and for a search that says it
was exhaustive, which is repeated as far as the planner itself may have gone.
"""
