"""The tensors of a checkpoint by name, none of them read: each lies in a mapped file, and is read when it is used.

Four forms:

- ``model.safetensors``: eight bytes (length of the header), the header (JSON: for each name its dtype, shape and where
  its bytes are), the bytes. It is read here, as the package safetensors does not say where in the file a tensor lies.
- ``model.safetensors.index.json``, or a directory with one: ``{"weight_map": {name: file}}`` over several such files.
- a file of ``torch.save``, in the format that torch writes since 1.6.
- a mapping of names to tensors, which are taken as they are.
"""

from __future__ import annotations

import itertools
import json
import math
import mmap
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeGuard

import torch
from torch import Tensor

from fx_partition.passes.errors import PartitionError

from .mapped import map_file

#: A path, or names and tensors.
Checkpoint: TypeAlias = "str | os.PathLike[str] | Mapping[str, Tensor]"

_INDEX = ".safetensors.index.json"
_LARGEST = 2**63 - 1  # what torch takes for a size
_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "U16": torch.uint16, "I16": torch.int16,
    "U32": torch.uint32, "I32": torch.int32, "U64": torch.uint64, "I64": torch.int64, "F16": torch.float16,
    "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip


class Opened(NamedTuple):
    """A checkpoint whose tensors can be read.

    Attributes:
        name: what to call it in a message.
        tensors: by name, on the CPU if they come from a file.
        ours: whether they lie in files that were mapped here, so that their pages may be given back.
    """

    name: str
    tensors: dict[str, Tensor]
    ours: bool


def open_checkpoint(checkpoint: Checkpoint) -> Opened:
    """Map a checkpoint; of its files only headers are read.

    Raises:
        PartitionError: no such file, or not a checkpoint of a form above.
    """
    if isinstance(checkpoint, Mapping):
        return Opened("the mapping", _tensors_of(checkpoint), False)
    path = Path(checkpoint)
    if path.is_dir():
        path = _file_of(path)
    if not path.is_file():
        raise PartitionError(f"there is no checkpoint {path}")
    if path.name.endswith(".index.json"):
        return Opened(str(path), _sharded(path), True)
    return Opened(str(path), _of_file(path), True)


def _file_of(directory: Path) -> Path:
    """The index of a directory, or its only .safetensors file."""
    for pattern in (f"*{_INDEX}", "*.safetensors"):
        found = sorted(directory.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            raise PartitionError(
                f"{directory} holds {', '.join(path.name for path in found)}: name the one to load, or the index of all"
            )
    raise PartitionError(f"{directory} holds neither a *{_INDEX} nor a *.safetensors: name the file of the checkpoint")


def _sharded(index: Path) -> dict[str, Tensor]:
    weight_map = _json_object(index.read_bytes(), index).get("weight_map")
    if not isinstance(weight_map, Mapping):
        raise PartitionError(f"{index} has no weight_map, so it does not say which file holds which tensor")
    files = {str(file): index.parent / str(file) for file in weight_map.values()}
    missing = [file for file, path in files.items() if not path.is_file()]
    if missing:
        raise PartitionError(f"{index} names files that are not beside it: {', '.join(missing)}")
    shards = {file: _of_file(path) for file, path in files.items()}
    lost = [name for name, file in weight_map.items() if name not in shards[str(file)]]
    if lost:
        raise PartitionError(f"{index} names tensors that their files lack: {', '.join(lost)}")
    return {name: shards[str(file)][name] for name, file in weight_map.items()}


def _of_file(path: Path) -> dict[str, Tensor]:
    return _safetensors(path) if path.suffix == ".safetensors" else _torch_file(path)


def _torch_file(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise PartitionError(
            f"{path} cannot be mapped: {error}. A checkpoint is a .safetensors file or one that torch.save wrote "
            "(in its zip format) of a state_dict()"
        ) from error
    tensors = _tensors_of(loaded) if isinstance(loaded, Mapping) else {}
    if not tensors:
        keys = f"the keys {', '.join(map(repr, loaded))}" if isinstance(loaded, Mapping) else type(loaded).__name__
        raise PartitionError(
            f"{path} holds {keys} and no state_dict(): load it by torch.load(path, mmap=True) and pass the part of it "
            "that is one"
        )
    return tensors


def _tensors_of(mapping: Mapping[str, Any]) -> dict[str, Tensor]:
    """Without what a module keeps beside tensors (extra state); what inference mode made cannot become a weight."""
    return {
        name: value.clone() if value.is_inference() else value.detach()
        for name, value in mapping.items()
        if isinstance(value, Tensor)
    }


def _safetensors(path: Path) -> dict[str, Tensor]:
    size = path.stat().st_size
    if size < 8:
        raise PartitionError(f"{path} is cut short: it has {size} bytes")
    data = map_file(path)
    start = 8 + int.from_bytes(data[:8], "little")
    if start > size:
        raise PartitionError(f"{path} is cut short, or no safetensors file: its header would end at byte {start}")
    header = _json_object(data[8:start], path)
    entries = {name: _entry(path, name, given) for name, given in header.items() if name != "__metadata__"}
    _refuse_overlaps(path, entries)
    return {name: _view(path, data, name, entry, start) for name, entry in entries.items()}


class _Entry(NamedTuple):
    """What a header says of one tensor: its bytes are ``first`` to ``last`` of those after the header."""

    dtype: torch.dtype
    shape: list[int]
    first: int
    last: int


def _entry(path: Path, name: str, given: Any) -> _Entry:
    fields = given if isinstance(given, dict) else {}
    kind, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(kind, str) or not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise PartitionError(
            f"{path} is damaged: of {name} its header says {str(given)[:200]}, which is no dtype with a shape and "
            "two data_offsets"
        )
    if kind not in _DTYPES:
        raise PartitionError(f"{name} in {path} is of type {kind}; known are {', '.join(_DTYPES)}")
    return _Entry(_DTYPES[kind], shape, *offsets)


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(size) is int and 0 <= size <= _LARGEST for size in value)


def _refuse_overlaps(path: Path, entries: Mapping[str, _Entry]) -> None:
    """No byte is two tensors': what is written to one would be the other's too."""
    filled = [(entry.first, entry.last, name) for name, entry in entries.items() if entry.first < entry.last]
    for (_, last, name), (first, _, other) in itertools.pairwise(sorted(filled)):
        if first < last:
            raise PartitionError(f"{path} is damaged: {name} and {other} lie over one another in it")


def _view(path: Path, data: mmap.mmap, name: str, entry: _Entry, start: int) -> Tensor:
    """A tensor over its bytes in the mapped file."""
    dtype, shape, first, last = entry
    count = math.prod(shape) * dtype.itemsize
    if last - first != count or start + last > len(data):
        raise PartitionError(
            f"{path} is cut short or damaged: {name} would be its bytes {start + first} to {start + last}, "
            f"{count} bytes, and the file has {len(data)}"
        )
    if not count:
        return torch.empty(shape, dtype=dtype, device="cpu")
    raw = torch.frombuffer(data, dtype=torch.uint8, count=count, offset=start + first)
    if raw.data_ptr() % dtype.itemsize:
        raw = raw.clone()  # the format does not promise that numbers lie at multiples of their size
    return raw.view(dtype).view(shape)


def _json_object(text: bytes, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PartitionError(f"{path} is damaged, or not what its name says: {error}") from error
    if not isinstance(found, dict):
        raise PartitionError(f"{path} is damaged, or not what its name says")
    return found
