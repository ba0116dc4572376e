"""Devices: what they can do, which ones this machine has, and what a measurement of their caches gives.

In: the name of a device, or this machine. Out: a `records.Device`, each figure with its source; and its usable bytes.
*Nominal* bytes are the figure of the data sheet; *usable* bytes are the largest working set that stays on chip. A
*hit curve* is the hit rate against the working set, as a share of the nominal bytes. A *sweep* measures read bandwidth
against working set; `probe` runs one on this machine. This room imports `common` alone.
"""
