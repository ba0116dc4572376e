"""Dynamo: one graph of ``torch.compile`` on its way to a compiled function.

In: a Dynamo graph, its inputs and the options. Out: a function of the inputs, registered with its plan for reports.
The way has six steps: capture, analyse, plan (`graph_compiler`), split, lower, runtime (`partition_compiler`); no step
calls an earlier one. The plan leaves weights where earlier graphs of the model have them (`weight_places`). Calls
beyond the sizes for which it fits get a warning, or another plan (`plan_sizes`). A *fallback* compiles the graph as one
partition, and says why (`fallback`). A *compiled graph* is the record of the function: its plan and its stages.
"""
