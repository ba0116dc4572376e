"""Batching: whether a graph may run in microbatches, and of how many rows.

In: a captured graph, its memory and a request. Out: what is cut and joined (`separability`), or the operator that
mixes rows; and how many rows a microbatch has (`microbatch_size`). A *row* is what belongs to one index of the batch.
A graph is *separable* if each row of its results depends on that row of its inputs alone. `microbatch_cost` compares
schedules by the bytes that they move; `cache_traffic` estimates these.
"""
