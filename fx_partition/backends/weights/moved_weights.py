"""Let the weights of a model be the copies that its stages have, so that each is in memory once.

A stage on another device than the model's has copies of its weights. Moved, the model's own tensors are those copies,
and their former memory is free::

    before      layers.0.weight on cuda:0       stage 0 on cuda:1 has a copy        in memory twice
    after       layers.0.weight on cuda:1       is what stage 0 reads               in memory once

The tensors are the same objects, as after ``model.to(...)``. What a weight of several stages becomes is the copy of the
first; later stages have copies of their own. Tensors that share memory stay together only if one stage has them all.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from torch import Tensor

from fx_partition.common.errors import PartitionError
from fx_partition.passes.capture.tensor_storage import storage_key


class Moves:
    """Says which weights of a model move to which stage.

    Args:
        names: the parameters and buffers of the model, each under all of its names.
        stays: those that stay where they are, as the graph returns them.
    """

    def __init__(self, names: Mapping[str, Tensor], stays: Sequence[Tensor] = ()) -> None:
        self._tensors = [*names.values(), *stays]
        self._names = {id(tensor): name for name, tensor in reversed(list(names.items()))}
        self._stays = set(map(id, stays))

    def to_stages(self, stages: Sequence[Sequence[Tensor]]) -> list[frozenset[int]]:
        """Return for each stage which weights move to it, by ``id``.

        Args:
            stages: the weights of which each stage makes copies.

        Raises:
            PartitionError: tensors that share memory would come apart; it names them.

        Example::

            >>> a, b = torch.zeros(2), torch.zeros(2)
            >>> Moves({"a": a, "b": b}).to_stages([[a], [a, b]]) == [{id(a)}, {id(b)}]
            True
        """
        first: dict[int, int] = {}
        for index, weights in enumerate(stages):
            for weight in weights:
                if id(weight) in self._names and id(weight) not in self._stays:
                    first.setdefault(id(weight), index)
        sharing: dict[Hashable, dict[int, int | None]] = {}
        for tensor in (*self._tensors, *(weight for weights in stages for weight in weights)):
            sharing.setdefault(storage_key(tensor), {})[id(tensor)] = first.get(id(tensor))
        for places in sharing.values():
            if len(set(places.values())) > 1:
                self._refuse(places)
        return [frozenset(key for key, stage in first.items() if stage == index) for index in range(len(stages))]

    def _refuse(self, places: Mapping[int, int | None]) -> None:
        found = [
            f"{self._names.get(key, 'a constant')} ({'stays' if place is None else f'to stage {place}'})"
            for key, place in places.items()
        ]
        raise PartitionError(
            f"move=True would part tensors that share memory: {', '.join(found)}; clone() all but one of them, keep "
            "them in one stage with keep_together=, or leave move= out"
        )
