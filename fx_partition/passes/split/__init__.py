"""Split: a graph is cut where a plan says.

In: a captured graph and a plan for it. Out: a `split_module.SplitModule` with a child for each partition, equal to
the model bit by bit. An `extract.PartitionGraph` is one partition as a graph of its own, with what it takes and
gives. Weights stay where they are in the model and go into partitions as inputs; free nodes are repeated in each.
`input_sizes` refuses inputs of sizes other than those that the graph was traced for.
"""
