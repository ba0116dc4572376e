"""Ranks: for ``devices="ranks"``, each rank of a process group runs its own stages of one graph.

In: a captured graph, the same on every rank, and a team. Out: a function that runs a rank's part of a call
(`runtime`). A *message* holds all values that one stage sends to one rank; `schedule` orders the messages,
`message_codec` writes and reads their values. In *microbatches* a rank runs one microbatch while the next rank runs
the one before it.
"""
