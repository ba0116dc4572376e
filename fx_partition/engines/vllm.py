"""vLLM: the value of the environment variable ``VLLM_PP_LAYER_PARTITION``."""

from __future__ import annotations

from collections.abc import Sequence

from .layers import partition_text
from .module_stages import ModuleStages

NAME = "vllm"


def layer_partition(stages: ModuleStages, devices: Sequence[int | str]) -> str:
    """Return the decoder layers of each stage, "10,10,8"; ``--pipeline-parallel-size`` is their count.

    Raises:
        PartitionError: as `partition_text`.
    """
    return partition_text(NAME, stages, devices)
