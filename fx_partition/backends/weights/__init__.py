"""Weights: read from checkpoints, with one copy on every device that uses them.

In: a checkpoint (.safetensors, sharded, or of ``torch.save``) or a model's own tensors. Out: tensors on the devices
of their stages (`device_copies`). A *lazy weight* is bound to a tensor of a checkpoint and read when a stage needs it
(`lazy_weights`). Files are mapped into memory (`mmap_file`): opening a checkpoint reads the headers of its files only.
"""
