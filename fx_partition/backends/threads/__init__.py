"""Threads: stages on threads of C++, each pinned to the cores of one cache.

In: a program and groups of cores. Out: a runtime for `streaming` (`runtime`), in code that needs no Python where
AOTInductor can compile it (`aoti_compile`). `code_cache` keeps compiled stages on disk. A *portable key* names a
stage by everything that its compiler reads; `compiler_fingerprint` adds the compiler itself. `build_extension`
compiles ``stage_loop.cpp`` and its headers on first use.
"""
