"""Devices: where a graph's tensors are, and the calls that are made to torch.cuda.

In: a captured graph. Out: its *home*, the device of its model, and for a tensor of the trace the device where a stage
has it (`home_device`). `cuda_driver.Driver` has all calls of `torch.cuda` that weights and the CUDA runtime make, in
one class that a test can replace. `fx_partition.hardware` knows which devices exist and what they can do.
"""
