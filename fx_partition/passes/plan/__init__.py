"""Plan: make a plan for a request, and write and read plans as data.

In: a captured graph, its memory and a `request.Request`. Out: a `plan.Plan` (`make_plan`): the partitions, the bytes of
each, and a proof that no plan is better. `problem` turns the graph into numbers, `placement` chooses the planner, and
`builder` turns the planner's numbers into names of the graph. `follow_weights` is for graphs whose weights other graphs
have placed. `serialization` and `json_reader` write and read a plan as JSON. A *budget* is the usable bytes of one
device; a partition above it *spills*. A *certificate* is a proof that can be checked.
"""
