"""Ranks: the ranks of a process group run the stages of one graph, each its own, for ``devices="ranks"``.

In: a captured graph, the same on every rank, and a team. Out: a function that runs a rank's part of a call
(`runtime`). A *message* is all that one stage gives one rank; `schedule` says who sends which message when,
`message_codec` how its values travel. In *microbatches* a rank runs one microbatch while the next rank runs the one
before it.
"""
