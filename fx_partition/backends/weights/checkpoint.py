"""Open a checkpoint: its tensors by name, each a view of a mapped file that is read when the tensor is used.

It may have one of four forms:

- ``model.safetensors`` (see `safetensors_file`).
- ``model.safetensors.index.json``, or a directory with one: ``{"weight_map": {name: file}}`` over several such files,
  which are in the directory of the index or below.
- a file of ``torch.save``, in the format that torch writes since 1.6.
- a mapping of names to tensors, which are used as they are.
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
_MOST_INDEX = 100_000_000  # bytes; the same limit as for a header


class Opened(NamedTuple):
    """A checkpoint whose tensors can be read.

    Attributes:
        name: its name in messages.
        tensors: its tensors by name, on the CPU if they come from a file.
        ours: whether they are views of files that were mapped here, so that their pages may be given back.
    """

    name: str
    tensors: dict[str, Tensor]
    ours: bool


def open_checkpoint(checkpoint: Checkpoint) -> Opened:
    """Map the files of a checkpoint, and read only their headers.

    Raises:
        PartitionError: there is no such file, or it is not a checkpoint of one of the four forms.
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
    """Return the index of a directory, or its only .safetensors file."""
    for pattern in (f"*{_INDEX}", "*.safetensors"):
        found = sorted(directory.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            raise PartitionError(
                f"{directory} has {', '.join(path.name for path in found)}: name one, or an index of all"
            )
    raise PartitionError(f"{directory} has neither a *{_INDEX} nor a *.safetensors: name the file of the checkpoint")


def _sharded(index: Path) -> dict[str, Tensor]:
    if index.stat().st_size > _MOST_INDEX:
        raise PartitionError(f"{index} has more than {_MOST_INDEX} bytes, so it is not an index")
    weight_map = json_object(index.read_bytes(), index).get("weight_map")
    if not isinstance(weight_map, Mapping) or not all(isinstance(file, str) for file in weight_map.values()):
        raise PartitionError(f"{index} has no weight_map that names the file of each tensor: name another checkpoint")
    names: list[str] = list(dict.fromkeys(weight_map.values()))
    outside = [name for name in names if _leads_away(name)]
    if outside:
        raise PartitionError(
            f"{index} names files that are not below its directory: {', '.join(map(repr, outside))}; put the files of "
            "a checkpoint into the directory of its index"
        )
    files = {name: index.parent / name for name in names}
    missing = [name for name, path in files.items() if not path.is_file()]
    if missing:
        raise PartitionError(f"{index} names files that do not exist: {', '.join(missing)}; put them next to it")
    shards = {name: _of_file(path) for name, path in files.items()}
    lost = [name for name, file in weight_map.items() if name not in shards[file]]
    if lost:
        raise PartitionError(f"{index} names tensors that its files lack: {', '.join(lost)}; it is of other files")
    return {name: shards[file][name] for name, file in weight_map.items()}


def _leads_away(name: str) -> bool:
    """Return whether the name of a file leads out of its directory, on this system or on another.

    Symbolic links are allowed: in the cache of Hugging Face's hub all files are links.
    """
    return any(path.anchor or ".." in path.parts for path in (PurePosixPath(name), PureWindowsPath(name)))


def _of_file(path: Path) -> dict[str, Tensor]:
    return read_safetensors(path) if path.suffix == ".safetensors" else _torch_file(path)


def _torch_file(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # torch documents no class of error for a file that is not a checkpoint
        raise PartitionError(
            f"{path} cannot be mapped: {str(error) or type(error).__name__}. A checkpoint is a .safetensors file or "
            "one that torch.save wrote (in its zip format) of a state_dict()"
        ) from error
    tensors = _tensors_of(loaded) if isinstance(loaded, Mapping) else {}
    if not tensors:
        keys = f"the keys {', '.join(map(repr, loaded))}" if isinstance(loaded, Mapping) else type(loaded).__name__
        raise PartitionError(
            f"{path} has {keys} and is not a state_dict(): load it with torch.load(path, mmap=True), and pass the "
            "state_dict() in it"
        )
    return tensors


def _tensors_of(mapping: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a mapping, without extra state of modules; inference tensors cannot become weights."""
    return {
        name: value.clone() if value.is_inference() else value.detach()
        for name, value in mapping.items()
        if isinstance(value, Tensor)
    }
