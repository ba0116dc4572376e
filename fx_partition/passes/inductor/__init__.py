"""Inductor: predict the buffers and kernels of compiled code, before anything is compiled.

In: a captured graph and its memory in eager mode. Out: its memory in the code that inductor makes
(`fused_footprint.fuse`), for ``footprint="fused"``. A *kernel* is an external call or a fused loop. A value is
*realised* if it is a buffer, and *deferred* if each reader computes it again. A buffer is *reused* when another takes
over its memory after its last use. The rules follow torch 2.13 with default options on a CPU.
"""
