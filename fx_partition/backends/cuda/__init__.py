"""CUDA: stages on GPUs; the caller's thread enqueues all work.

In: a program and a GPU for each stage. Out: a runtime for `streaming` (`runtime`, `stream_pipeline`). A *stream* runs
its work in order; an *event* orders two streams. A whole request is one CUDA graph in one of several *slots*
(`request_graph`), or each `streamed_stage` is enqueued, some as graphs of their own (`graphed_stage`). A *pack* is the
weights of a stage in one buffer (`weight_buffer`), so that one access policy *window* can keep them in L2
(`l2_persistence`). `copy_stream` copies between devices while both compute.
"""
