"""Lowering: from the partitions of a plan to compiled stages.

In: a captured graph and a plan, in a `graph_context.GraphContext`. Out: a compiled function for each stage. A *stage*
is a partition on one device (`stage`), with sends and receives in its graph (`send_recv_ops`). A *crossing* is a tensor
that goes from one stage to another; `boundary_strides` finds the strides that it really has. A *stage key* is all that
a compiler reads of a stage: stages with equal keys are compiled once (`dedup_compile`). `torch_internals` has the
private names of torch.
"""
