"""Microbatch: a batch is cut into microbatches, which go through one partition after another.

In: the context of a separable graph. Out: a plan for one microbatch and its number of rows (`microbatch_plan`), and a
function that runs the compiled stages (`codegen`), with code that takes rows out of a tensor and joins them again
(`batch_slices`). All microbatches run through one partition before the next, so its weights are fetched once a call.
Where microbatches do not pay, the batch runs whole.
"""
