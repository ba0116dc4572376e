"""The tensors of a checkpoint by name, none of them read: each lies in a mapped file, and is read when it is used.

Four forms:

- ``model.safetensors`` (see `safetensors_file`).
- ``model.safetensors.index.json``, or a directory with one: ``{"weight_map": {name: file}}`` over several such files,
  which are beside the index or below its directory.
- a file of ``torch.save``, in the format that torch writes since 1.6.
- a mapping of names to tensors, which are taken as they are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from fx_partition.common.errors import PartitionError

from .safetensors_file import json_object, read_safetensors

#: A path, or names and tensors.
Checkpoint: TypeAlias = "str | os.PathLike[str] | Mapping[str, Tensor]"

_INDEX = ".safetensors.index.json"
_MOST_INDEX = 100_000_000  # bytes, as of a header


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
    try:
        if path.is_dir():
            path = _file_of(path)
        if not path.is_file():
            raise PartitionError(f"there is no checkpoint {path}")
        is_index = path.name.endswith(".index.json")
        return Opened(str(path), _sharded(path) if is_index else _of_file(path), True)
    except OSError as error:
        raise PartitionError(f"the checkpoint {path} cannot be read: {error}") from error


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
    if index.stat().st_size > _MOST_INDEX:
        raise PartitionError(f"{index} has more than {_MOST_INDEX} bytes, so it is no index")
    weight_map = json_object(index.read_bytes(), index).get("weight_map")
    if not isinstance(weight_map, Mapping) or not all(isinstance(file, str) for file in weight_map.values()):
        raise PartitionError(f"{index} has no weight_map, so it does not say which file holds which tensor")
    names: list[str] = list(dict.fromkeys(weight_map.values()))
    outside = [name for name in names if _leads_away(name)]
    if outside:
        raise PartitionError(
            f"{index} names files that are not below its directory: {', '.join(map(repr, outside))}; the files of a "
            "checkpoint are beside its index"
        )
    files = {name: index.parent / name for name in names}
    missing = [name for name, path in files.items() if not path.is_file()]
    if missing:
        raise PartitionError(f"{index} names files that are not beside it: {', '.join(missing)}")
    shards = {name: _of_file(path) for name, path in files.items()}
    lost = [name for name, file in weight_map.items() if name not in shards[file]]
    if lost:
        raise PartitionError(f"{index} names tensors that their files lack: {', '.join(lost)}")
    return {name: shards[file][name] for name, file in weight_map.items()}


def _leads_away(name: str) -> bool:
    """Whether a file's name leads out of its directory, on this system or on another.

    Links are followed: in the cache of Hugging Face's hub all files are links.
    """
    return any(path.anchor or ".." in path.parts for path in (PurePosixPath(name), PureWindowsPath(name)))


def _of_file(path: Path) -> dict[str, Tensor]:
    return read_safetensors(path) if path.suffix == ".safetensors" else _torch_file(path)


def _torch_file(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # a file that is no checkpoint fails in many ways, none of them documented
        raise PartitionError(
            f"{path} cannot be mapped: {str(error) or type(error).__name__}. A checkpoint is a .safetensors file or "
            "one that torch.save wrote (in its zip format) of a state_dict()"
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
