"""Inline: stages run one after another in the caller's thread; the reference for every other runtime.

In: compiled stages and the graph that calls them. Out: one generated Python function that frees each value after its
last use (`runtime`). `whole_batch` compiles the whole graph when it is first called, for batches that cannot be cut.
`malloc_settings` lets malloc keep freed memory in the process, if the user asks for it. The *host* is the CPU thread
that makes the call.
"""
