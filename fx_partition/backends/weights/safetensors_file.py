"""Read the header of a ``.safetensors`` file; its tensors are views of the mapped file.

The file has eight bytes (the length of the header), the header (JSON: for each tensor its name, dtype, shape and range
of bytes), and the bytes of the tensors. This module reads it, as the package safetensors does not say where in the
file a tensor is. It refuses what the package refuses: the header has at most 100 MB, and the tensors fill the rest of
the file without holes, overlaps or a remainder, so that no file has contents that one of its readers cannot see.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

from fx_partition.common.errors import PartitionError

from .mmap_file import map_file

#: The most bytes of a header, as in the package safetensors.
MOST_HEADER = 100_000_000

_LARGEST = 2**63 - 1  # the largest size of torch
_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "U16": torch.uint16, "I16": torch.int16,
    "U32": torch.uint32, "I32": torch.int32, "U64": torch.uint64, "I64": torch.int64, "F16": torch.float16,
    "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Map a file, and return its tensors by name, each a view of its bytes.

    Raises:
        PartitionError: the file is damaged, or not a safetensors file.
    """
    size = path.stat().st_size
    if size < 8:
        raise PartitionError(f"{path} is cut short: it has {size} bytes")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MOST_HEADER:
            raise PartitionError(
                f"{path} is not a safetensors file: its header would have {length} bytes, and {MOST_HEADER} is the most"
            )
        if 8 + length > size:
            raise PartitionError(f"{path} is cut short: its header would end at byte {8 + length} of {size}")
        header = json_object(file.read(length), path)
    metadata = header.pop("__metadata__", None)
    if not _are_texts({} if metadata is None else metadata):
        raise PartitionError(f"{path} is damaged: its __metadata__ does not map texts to texts")
    entries = {name: _entry(path, name, given) for name, given in header.items()}
    _check_layout(path, entries, size - 8 - length)
    data = map_file(path)
    return {name: _view(data, entry, 8 + length) for name, entry in entries.items()}


def json_object(text: bytes, path: Path) -> dict[str, Any]:
    """Parse the JSON object of a file, as strictly as the format says: UTF-8, and each name once.

    Raises:
        PartitionError: the text is not such an object.
    """
    try:
        found = json.loads(
            text.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_number, parse_int=_integer
        )
    except (ValueError, RecursionError) as error:
        raise PartitionError(f"{path} is damaged, or not what its name says: {error}") from error
    if not isinstance(found, dict):
        raise PartitionError(f"{path} is damaged, or not what its name says")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it has one name twice")
    for name in found:
        name.encode()  # fails for half of a surrogate pair
    return found


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is not in JSON")


def _integer(text: str) -> int | float:
    return -0.0 if text == "-0" else int(text)


def _are_texts(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


class _Entry(NamedTuple):
    """The entry of one tensor in a header: it has the bytes from ``first`` to before ``last`` after the header."""

    dtype: torch.dtype
    shape: list[int]
    first: int
    last: int


def _entry(path: Path, name: str, given: Any) -> _Entry:
    fields = given if isinstance(given, dict) else {}
    kind, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(kind, str) or not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise PartitionError(
            f"{path} is damaged: of {name} its header says {str(given)[:200]}, which is not a dtype with a shape and "
            "two data_offsets"
        )
    if kind not in _DTYPES:
        raise PartitionError(f"{name} in {path} has the type {kind[:200]}; known are {', '.join(_DTYPES)}")
    return _Entry(_DTYPES[kind], shape, *offsets)


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(size) is int and 0 <= size <= _LARGEST for size in value)


def _check_layout(path: Path, entries: Mapping[str, _Entry], size: int) -> None:
    """Raise an error unless each tensor has the bytes of its shape, and each byte after the header has one tensor."""
    end, before = 0, "the header"
    for (first, last), name in sorted(((entry.first, entry.last), name) for name, entry in entries.items()):
        entry = entries[name]
        count = _bytes(entry)
        if last - first != count:
            raise PartitionError(
                f"{path} is damaged: {name} would be bytes {first} to {last} after its header, and a {entry.dtype} of "
                f"shape {str(entry.shape)[:200]} has {'too many' if count is None else count}"
            )
        if first < end:
            raise PartitionError(f"{path} is damaged: {before} and {name} overlap in it")
        if first > end:
            raise PartitionError(f"{path} is damaged: {first - end} bytes before {name} belong to no tensor")
        if last > size:
            raise PartitionError(
                f"{path} is cut short or damaged: {name} would be bytes {first} to {last} after its header, and the "
                f"file has {size} there"
            )
        end, before = last, name
    if end < size:
        raise PartitionError(f"{path} is damaged: its last {size - end} bytes belong to no tensor")


def _bytes(entry: _Entry) -> int | None:
    """Return the bytes of a tensor; None where they, or a product of its first sizes, exceed the largest size."""
    count = 1
    for size in entry.shape:
        count *= size
        if count > _LARGEST:
            return None
    return None if count * entry.dtype.itemsize > _LARGEST else count * entry.dtype.itemsize


def _view(data: mmap.mmap, entry: _Entry, start: int) -> Tensor:
    """Return a tensor that is a view of the mapped file."""
    dtype, shape, first, last = entry
    if first == last:
        return torch.empty(shape, dtype=dtype, device="cpu")
    raw = torch.frombuffer(data, dtype=torch.uint8, count=last - first, offset=start + first)
    if raw.data_ptr() % dtype.itemsize:
        raw = raw.clone()  # the format does not promise addresses that are multiples of the item size
    return raw.view(dtype).view(shape)
