"""torch's CUDA build on a software GPU: devices in the memory of the host, for tests where there is no GPU.

``library`` is a stand-in for CUDA's runtime, in C++, which is preloaded before torch. `build` compiles it, `machine`
counts calls and makes devices fail, `triton_stand_in` lets inductor lower to cubin, `l2_calls` is ``cuda.bindings``.
``python -m tests.software_gpu`` prepares all and runs the tests. docs/software_gpu.md says what is simulated.
"""
