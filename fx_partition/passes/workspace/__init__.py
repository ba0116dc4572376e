"""Workspace: the memory that a kernel allocates while it runs and frees before it returns.

In: one call of an ATen operator on fake tensors (a `capture.op_call.LeafCall`). Out: bytes, as a size. *Workspace* (or
scratch memory) excludes the operator's outputs. A *rule* is a function of a call's shapes; each family of operators has
a table of rules, and `rules` joins them. Where the processor decides, `measured_scratch` runs the kernel once, and the
rule extends the measurement to other sizes.
"""
