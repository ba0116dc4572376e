"""Training: stages for the schedules of torch.distributed.pipelining.

In: a model and one microbatch, the same on every rank. Out: the stages of this rank (`pipeline_stages`), each a
module whose parameters have the model's own names. A value *relays* through stages that do not use it, since a stage
receives from the stage before it alone. A *tied weight* is read by several stages: its gradients are added up and put
into each copy (`tied_weights`).
"""
