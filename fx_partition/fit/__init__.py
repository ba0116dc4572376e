"""Fit: whether a model fits a set of devices, where to cut it, and what to give up first; nothing is loaded.

In: a configuration of Hugging Face, a module (on "meta" too) or an exported program, and the sizes of devices. Out: a
`result.Fit` with the bytes and the modules of each device. `model_graph` makes the *module graph*: a graph's memory as
a device holds it, with boundaries between modules only. `hugging_face` captures a model with few of its repeated
blocks, and `repeats` puts the others back. `placing` places boundaries, `precision` finds the fewest blocks to
quantise, `largest` the largest batch and length. A *block* is a module that repeats: a decoder layer.
"""
