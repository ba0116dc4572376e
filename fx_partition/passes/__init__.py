"""From a graph to a plan, and from a plan to a split graph; no pass knows a runtime.

In: a GraphModule, an exported program or a module with example inputs. Out: a `plan.plan.Plan`, a split module, or
the faults of a plan. `api` has the verbs. A graph goes through the rooms in this order, and each imports only those
before it: `capture`, `workspace`, `footprint`, `constraints`, `inductor`, `partitioner`, `ordering`, `timing`,
`slicing`, `plan`, `split`, `verify`, `batching`. A *partition* is the nodes that run together on one device.
"""

if __name__ != "fx_partition.passes":  # the top-level link `passes` is a door for readers
    raise ImportError("import fx_partition.passes, not the link of the same name")
