"""The tensors of a ``.safetensors`` file, none of them read: each lies in the mapped file.

Eight bytes (the length of the header), the header (JSON: for each name its dtype, its shape, and which of the bytes
after the header are its own), the bytes. It is read here, as the package safetensors does not say where in the file a
tensor lies. What that package refuses is refused here: the header is at most 100 MB and tensors fill the rest of the
file, without holes, overlaps and a remainder, so that no file holds what is hidden from one of its readers.
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

#: Bytes of a header, as the package safetensors has it.
MOST_HEADER = 100_000_000

_LARGEST = 2**63 - 1  # what torch takes for a size
_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "U16": torch.uint16, "I16": torch.int16,
    "U32": torch.uint32, "I32": torch.int32, "U64": torch.uint64, "I64": torch.int64, "F16": torch.float16,
    "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Map a file; each tensor is a view of its bytes.

    Raises:
        PartitionError: it is damaged, or not of this form.
    """
    size = path.stat().st_size
    if size < 8:
        raise PartitionError(f"{path} is cut short: it has {size} bytes")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MOST_HEADER:
            raise PartitionError(
                f"{path} is no safetensors file: its header would have {length} bytes, and {MOST_HEADER} is the most"
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
    """The object that a file's JSON is, read as strictly as the format says: UTF-8, and each name once.

    Raises:
        PartitionError: it is something else.
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
        raise ValueError("it says one name twice")
    for name in found:
        name.encode()  # half of a surrogate pair is no text
    return found


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is not in JSON")


def _integer(text: str) -> int | float:
    return -0.0 if text == "-0" else int(text)


def _are_texts(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


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
        raise PartitionError(f"{name} in {path} is of type {kind[:200]}; known are {', '.join(_DTYPES)}")
    return _Entry(_DTYPES[kind], shape, *offsets)


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(size) is int and 0 <= size <= _LARGEST for size in value)


def _check_layout(path: Path, entries: Mapping[str, _Entry], size: int) -> None:
    """Each tensor has the bytes of its shape, and together they are those after the header, each once."""
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
            raise PartitionError(f"{path} is damaged: {before} and {name} lie over one another in it")
        if first > end:
            raise PartitionError(f"{path} is damaged: {first - end} bytes between {before} and {name} are no tensor's")
        if last > size:
            raise PartitionError(
                f"{path} is cut short or damaged: {name} would be bytes {first} to {last} after its header, and the "
                f"file has {size} there"
            )
        end, before = last, name
    if end < size:
        raise PartitionError(f"{path} is damaged: its last {size - end} bytes are no tensor's")


def _bytes(entry: _Entry) -> int | None:
    """Of a tensor; None if they, or the sizes multiplied on the way there, are more than an address can say."""
    count = 1
    for size in entry.shape:
        count *= size
        if count > _LARGEST:
            return None
    return None if count * entry.dtype.itemsize > _LARGEST else count * entry.dtype.itemsize


def _view(data: mmap.mmap, entry: _Entry, start: int) -> Tensor:
    """A tensor over its bytes in the mapped file."""
    dtype, shape, first, last = entry
    if first == last:
        return torch.empty(shape, dtype=dtype, device="cpu")
    raw = torch.frombuffer(data, dtype=torch.uint8, count=last - first, offset=start + first)
    if raw.data_ptr() % dtype.itemsize:
        raw = raw.clone()  # the format does not promise that numbers lie at multiples of their size
    return raw.view(dtype).view(shape)
