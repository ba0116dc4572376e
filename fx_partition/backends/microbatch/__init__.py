"""Microbatch: a graph's batch is cut into microbatches, which go through one partition after another.

In: a separable graph, its memory and the options. Out: a plan for one microbatch and its number of rows (`cutting`),
and the code that takes rows out of a tensor and joins them again (`batch_slices`). All microbatches run through one
partition before the next, so its weights are fetched once a call. Where no cut gains, the batch runs whole.
"""
