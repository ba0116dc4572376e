"""CUDA: stages on GPUs, everything enqueued by the caller's thread.

In: a program and a GPU for each stage. Out: a runtime for `streaming` (`runtime`, `stream_pipeline`). A *stream* runs
what is enqueued on it in order; an *event* orders two streams. A `graphed_stage` replays a CUDA graph. A *pack* is
the weights of a stage in one buffer (`weight_buffer`), so that one access-policy *window* can keep them in L2
(`l2_persistence`). `copy_stream` copies between devices while both compute.
"""
