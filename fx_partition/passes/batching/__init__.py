"""Batching: decide whether a graph may run in microbatches, and how many rows each has.

In: a captured graph, its memory and a request. Out: the dimensions to cut and join along (`separability`), or the
operator that mixes rows; and the number of rows of a microbatch (`microbatch_size`). A *row* is what belongs to one
index of the batch. A graph is *separable* if each row of its results depends on that row of its inputs alone.
`microbatch_cost` compares schedules by the bytes that they move; `cache_traffic` estimates these.
"""
