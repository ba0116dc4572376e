"""A hundred small models of many kinds, and what must hold for each of them however it is run.

What comes in: the registries of this folder (``hf_*``: classes of transformers; ``plain_*``: written here). `check`
says what must hold, `table` keeps what was found, ``python -m tests.families --write`` writes it.

>>> family = FAMILIES["bart"]
>>> args, kwargs = family.inputs(seed=0)
>>> result = family.build()(*args, **kwargs)
"""

from __future__ import annotations

from . import (
    hf_decoders,
    hf_encoders,
    hf_others,
    hf_vision,
    plain_attention,
    plain_diffusion,
    plain_functional,
    plain_graphs,
    plain_images,
    plain_others,
    plain_sequences,
)
from .family import Family, Missing

_REGISTRIES = (
    hf_decoders, hf_encoders, hf_vision, hf_others,
    plain_images, plain_diffusion, plain_sequences, plain_attention, plain_functional, plain_graphs, plain_others,
)  # fmt: skip

FAMILIES: dict[str, Family] = {family.name: family for registry in _REGISTRIES for family in registry.FAMILIES}

__all__ = ["FAMILIES", "Family", "Missing"]
