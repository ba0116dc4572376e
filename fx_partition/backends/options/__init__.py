"""Options: what a user may ask of the backend and of the runtime on ranks.

In: the mapping ``options={...}`` of ``torch.compile``. Out: a `backend_options.Options` or a
`rank_options.RankOptions`, or an error that names the option and what it may be. What is asked of the plan itself is
`plan.request.Request`. A *device* is a torch device, or "cpu:threads" for stage threads, or "ranks" for the ranks of
a process group.
"""
