"""Streaming: many requests go through the stages of one model at the same time.

In: stages, and requests of the sizes that they were compiled for (`request_signature`). Out: a future for each
request (`futures`). A *program* is the stages over numbered values, in the form that every pipelined runtime reads. A
*request* is one call of the model; it is *pending*, or *in flight*, from its start until its results are taken.
`pipeline.Pipeline` is the object that a user holds; the rooms `threads` and `cuda` run its stages.
"""
