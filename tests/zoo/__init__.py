"""Small models of many families for the tests and the benchmarks.

>>> family = FAMILIES["gpt2"]
>>> args, kwargs = family.inputs(batch=2)
>>> logits, = family.output(family.build()(*args, **kwargs))
"""

from __future__ import annotations

from . import hf, plain
from .family import Family, Inputs, mark_batch

FAMILIES: dict[str, Family] = {family.name: family for family in [*hf.FAMILIES, *plain.FAMILIES]}

__all__ = ["FAMILIES", "Family", "Inputs", "mark_batch"]
