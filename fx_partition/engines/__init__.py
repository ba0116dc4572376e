"""Engines: a plan's boundaries as the options by which other engines take them.

In: `module_stages.ModuleStages`, the modules of a model in the order in which they run, each with its stage. Out: the
value that an engine takes: a device map, split points, the layers of each stage. There is one file an engine, and
`registry` knows them by name. A *stage* is a partition of a plan, or a device of a fit. A module is *whole* if all its
steps run on one stage; what no engine can say is refused with the name of the module that is cut.
"""
