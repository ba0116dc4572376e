"""Split: cut a graph at the boundaries of a plan.

In: a captured graph and a plan for it. Out: a `split_module.SplitModule` with a child for each partition, whose results
equal the model's bit by bit. An `extract.PartitionGraph` is one partition as a separate graph, with its inputs and
outputs. Weights stay in the model and are inputs of partitions; *free nodes* (views of weights, scalars) cost nothing
and are repeated in each partition that needs them. `input_sizes` refuses inputs of other sizes than the graph was
traced for.
"""
