"""Measure: the memory that compiled code really allocates, to compare with the plan.

In: a compiled stage or any callable. Out: the peak of the bytes that one call allocates (`peak_allocation`), without
those allocated before it. `stage_allocation` calls a stage once on *dummy inputs* (zeros of its shapes), and
copies the weights that the stage writes, so nothing of the model changes.
"""
