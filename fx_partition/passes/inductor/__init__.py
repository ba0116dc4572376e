"""Inductor: which buffers and kernels compiled code will have, before anything is compiled.

In: a captured graph and its memory for eager mode. Out: the memory of the code that inductor makes
(`fused_footprint.fuse`), for ``footprint="fused"``. A *kernel* is an external call or a fused loop. A value is
*realised* if it is a buffer, and *deferred* if each reader computes it again. A buffer is *reused* when it takes over
the memory of one that is no longer needed. Follows torch 2.13 with default options on a CPU.
"""
