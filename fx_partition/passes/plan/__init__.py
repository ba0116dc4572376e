"""Plan: from a request to a plan, and a plan as data.

In: a captured graph, its memory and a `request.Request`. Out: a `plan.Plan` (`make_plan`): the partitions, what each
holds, and why no plan is better. `problem` has the graph in numbers, `placement` chooses the planner, `builder` puts
its numbers into the names of the graph. `serialization` and `json_reader` write and read a plan as JSON. A *budget*
is the usable bytes of one device; a partition above it *spills*. A *certificate* is a proof to be checked.
"""
