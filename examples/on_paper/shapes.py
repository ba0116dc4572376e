"""Compute shapes of decoder-only models: bytes of weights and of the KV cache, operations of a token.

The layer is Llama's: attention (four projections, grouped keys and values), a gated feed-forward of three matrices (one
set for each expert, and a router, in a mixture of experts), two norms. All figures are of one decode step, a token for
each sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple


class Precision(NamedTuple):
    """Bytes of a weight and of a value in the KV cache; scales of quantised groups are not counted.

    Attributes:
        name: "bf16", "fp8" or "int4".
        weight, kv: bytes of one.
    """

    name: str
    weight: float
    kv: int


#: int4 keeps its KV cache in eight bits, as is usual.
PRECISIONS = {"bf16": Precision("bf16", 2, 2), "fp8": Precision("fp8", 1, 1), "int4": Precision("int4", 0.5, 1)}
BF16 = PRECISIONS["bf16"]


@dataclass(frozen=True)
class Shape:
    """The sizes of a model.

    Attributes:
        name: for tables.
        layers, hidden, ffn, heads, kv_heads, head, vocabulary: ``head`` is the width of one head.
        experts, active: feed-forwards of a layer, and how many of them a token takes.
        tied: the embedding is the output head's matrix.

    Example::

        >>> round(LLAMA_8B.parameters / 1e9, 2)
        8.03
    """

    name: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    experts: int = 1
    active: int = 1
    tied: bool = False

    @property
    def attention_parameters(self) -> int:
        """Of a layer: queries and output, keys and values, both norms, and a router where there are experts."""
        router = self.experts * self.hidden if self.experts > 1 else 0
        return self.hidden * self.head * (2 * self.heads + 2 * self.kv_heads) + 2 * self.hidden + router

    @property
    def expert_parameters(self) -> int:
        """The parameters of one feed-forward."""
        return 3 * self.hidden * self.ffn

    @property
    def layer_parameters(self) -> int:
        return self.attention_parameters + self.experts * self.expert_parameters

    @property
    def head_parameters(self) -> int:
        """The output matrix and the last norm; a decode step reads only a few rows of the embedding."""
        return self.vocabulary * self.hidden + self.hidden

    @property
    def parameters(self) -> int:
        embedding = 0 if self.tied else self.vocabulary * self.hidden
        return self.layers * self.layer_parameters + self.head_parameters + embedding

    def touched_parameters(self, rows: float) -> float:
        """Of a layer, that a step of ``rows`` tokens reads: of experts those that a token takes, all as likely."""
        spared: float = (1 - self.active / self.experts) ** rows
        return self.attention_parameters + self.experts * (1 - spared) * self.expert_parameters

    def kv_bytes(self, precision: Precision) -> int:
        """Return the bytes of keys and values of one token in one layer."""
        return 2 * self.kv_heads * self.head * precision.kv

    def layer_flops(self, length: int) -> int:
        """Return the operations of one token in one layer that attends to ``length`` tokens."""
        matrices = self.attention_parameters + self.active * self.expert_parameters
        return 2 * matrices + 4 * length * self.heads * self.head

    def layer_activations(self, parts: float) -> float:
        """Values that the kernels of a layer read and write for one token, with the layer split over ``parts`` devices.

        The hidden state ten times (norm, queries, output, sum and norm, feed-forward, its result), each projection
        where it is made and where it is read, the gated product twice more.
        """
        return 10 * self.hidden + (4 * self.heads * self.head + 6 * self.active * self.ffn) / parts

    def with_kv_heads(self, kv_heads: int) -> Shape:
        """Return the same model with other key-value heads and the same feed-forward."""
        return replace(self, name=f"{self.name}, {kv_heads} KV heads", kv_heads=kv_heads)


# Chosen, as the paper states neither: 16 layers and 60 GB in bf16. A small vocabulary favours partitions by layer.
PAPER_DENSE = Shape("dense", 16, hidden=12288, ffn=40960, heads=96, kv_heads=8, head=128, vocabulary=32000)
PAPER_MOE = Shape(
    "MoE", 16, hidden=8192, ffn=8704, heads=64, kv_heads=8, head=128, vocabulary=32000, experts=8, active=2
)  # fmt: skip

# Published configurations: SmolLM2, Llama 3.2 and Llama 3.
SMOL_135M = Shape("135M", 30, 576, 1536, 9, 3, 64, 49152, tied=True)
SMOL_360M = Shape("360M", 32, 960, 2560, 15, 5, 64, 49152, tied=True)
LLAMA_1B = Shape("1B", 16, 2048, 8192, 32, 8, 64, 128256, tied=True)
LLAMA_3B = Shape("3B", 28, 3072, 8192, 24, 8, 128, 128256, tied=True)
LLAMA_8B = Shape("8B", 32, 4096, 14336, 32, 8, 128, 128256)
LLAMA_70B = Shape("70B", 80, 8192, 28672, 64, 8, 128, 128256)
LLAMA_405B = Shape("405B", 126, 16384, 53248, 128, 8, 128, 128256)
