"""Process group: ranks as one team, which compare their inputs, connect, and fail together.

In: a process group of torch.distributed. Out: a `rank_team.Team` with connections of its own (`transports`). A *rank*
is one process of the group. Ranks compare documents in the group's store before they work (`consistency`): a
difference is an error that names it. A rank that fails says why in the store, and all others end with an error that
names it (`failures`).
"""
