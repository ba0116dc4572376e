"""Weights: where they come from, and one copy of each on every device that uses it.

In: a checkpoint (.safetensors, sharded, or of ``torch.save``) or a model's own tensors. Out: tensors on the devices
of their stages (`device_copies`). A *lazy weight* is bound to a tensor of a checkpoint and read when a stage needs it
(`lazy_weights`). Files are mapped into memory and not read (`mmap_file`): headers alone are looked at when they are
opened.
"""
