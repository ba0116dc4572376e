"""Devices: what they can do, which ones this machine has, and what their caches measure.

In: the name of a device, or this machine. Out: a `records.Device`, every figure of it with its source; usable bytes.
*Nominal* bytes are what a data sheet says; *usable* bytes are what a working set may have and still stay on chip. A
*hit curve* is the hit rate by working set, as a share of the nominal bytes. A *sweep* measures read bandwidth against
working set; `probe` runs one here. Imports `common` alone.
"""
