"""Cut a PyTorch graph into contiguous partitions that each fit one device's on-chip memory, and run them."""
