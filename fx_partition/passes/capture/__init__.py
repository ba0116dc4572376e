"""Capture: from a user's model to a graph whose every node has a fake value.

In: a GraphModule, an exported program, or a module with example inputs. Out: a `captured_graph.CapturedGraph`: the
graph, a fake tensor for each node, the tensors that are weights, and the names that a user knows. A *fake tensor* has
a shape, strides and a device, but no memory. A *symbol* is a dimension whose size is not fixed; a *size* is an int,
or a sympy expression over symbols. A *region* is a run of nodes under a mode such as autocast. torch's private names
for all this are in `fake_tensors`, `operators` and `export_tracer`.
"""
