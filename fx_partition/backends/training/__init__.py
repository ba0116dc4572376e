"""Training: stages for the schedules of torch.distributed.pipelining.

In: a model and one microbatch, the same on every rank. Out: the stages of this rank (`pipeline_stages`), each a
module whose parameters have the model's own names. A stage receives only from the stage before it, so a value is
*relayed* by stages that do not use it. A *tied weight* is read by several stages: the sum of its gradients is put into
the copy of each rank (`tied_weights`).
"""
