"""Workspace: what a kernel allocates while it runs and frees before it returns.

In: one call of an ATen operator on fake tensors (a `layout_copies.LeafCall`). Out: bytes, as a size. *Workspace* (or
scratch memory) is all of that beyond the operator's outputs. A *rule* is a function of a call's shapes, one table for
each family of operators, joined in `rules`. Where the processor decides, `measured_scratch` runs the kernel once, and
the rule stands for sizes that were not run.
"""
