"""Stages for the training schedules of torch.distributed.pipelining."""
