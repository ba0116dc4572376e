"""From a plan to code that runs: the two entries, and a room for each step and each runtime.

In: a Dynamo graph (`l2partition`, for ``torch.compile``) or a model (`pipeline`). Out: a callable, or a running
pipeline. A *stage* is a partition that is lowered to one device. `options` says what may be asked, `lowering` makes
and compiles stages, `weights` and `devices` say where tensors are. The runtimes are `inline` (in the caller's
thread), `microbatch`, `threads` and `cuda` (under `streaming`), `ranks` (over a `process_group`) and `training`. No
runtime imports an entry.
"""

if __name__ != "fx_partition.backends":  # the top-level link `backends` is a door for readers
    raise ImportError("import fx_partition.backends, not the link of the same name")
