"""Options: the options of the backend and of the runtime on ranks, checked.

In: the mapping ``options={...}`` of ``torch.compile``. Out: a `backend_options.Options` or a
`rank_options.RankOptions`, or an error that names the option and its choices. The options of the plan itself are
`plan.request.Request`. A *device* is a torch device, or "cpu:threads" for stage threads, or "ranks" for the ranks of
a process group.
"""
