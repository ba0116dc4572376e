"""Measure: what compiled code really allocates, beside what was planned.

In: a compiled stage or any callable. Out: the peak of bytes allocated during one call (`peak_allocation`), beyond
what was allocated before it. `stage_allocation` calls a stage once on *dummy inputs* (zeros of its shapes), and
copies the weights that the stage writes, so nothing of the model changes.
"""
