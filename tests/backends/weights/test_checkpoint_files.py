"""Damaged or hostile files of weights are refused, at least all that the package safetensors refuses."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, deserialize
from safetensors.torch import save_file
from torch import Tensor

from fx_partition import PartitionError
from fx_partition.backends.weights.checkpoint import open_checkpoint
from fx_partition.backends.weights.safetensors_file import MOST_HEADER, read_safetensors

Header = dict[str, Any]


def tensor(first: int, last: int, **change: Any) -> Header:
    return {"dtype": "U8", "shape": [last - first], "data_offsets": [first, last]} | change


def file_of(folder: Path, header: Header | str | bytes, data: bytes, length: int | None = None) -> Path:
    text = json.dumps(header) if isinstance(header, dict) else header
    text = text.encode() if isinstance(text, str) else text
    path = folder / "model.safetensors"
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def reference(path: Path) -> dict[str, Any] | None:
    """What the package reads in a file; None if it refuses it."""
    try:
        return dict(deserialize(path.read_bytes()))
    except SafetensorError:
        return None


# What is refused here alone: the format forbids to say a name twice, and torch has no such dtype or size.
STRICTER = ("one name twice", "known are", "which is not a dtype with a shape", "not an index")


def agree(path: Path) -> bool:
    """Whether a file is taken; asserts that the package says so too, and reads the same in it."""
    expected = reference(path)
    try:
        found = read_safetensors(path)
    except PartitionError as error:
        assert path.name in str(error)
        assert expected is None or any(words in str(error) for words in STRICTER), (error, path.read_bytes())
        return False
    assert expected is not None, f"the package refuses {path.read_bytes()!r}"
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert list(value.shape) == expected[name]["shape"]
        if value.numel():
            assert bytes(value.reshape(-1).view(torch.uint8).tolist()) == bytes(expected[name]["data"])
    return True


FOUR = b"1234"
TAKEN: dict[str, tuple[Header | str, bytes]] = {
    "no tensor": ({}, b""),
    "two, the later one first": ({"b": tensor(2, 4), "a": tensor(0, 2)}, FOUR),
    "nothing between two": ({"a": tensor(0, 2), "none": tensor(2, 2), "b": tensor(2, 4)}, FOUR),
    "a number": ({"a": tensor(0, 1, shape=[])}, b"1"),
    "metadata": ({"__metadata__": {"format": "pt"}, "a": tensor(0, 4)}, FOUR),
    "no metadata": ({"__metadata__": None, "a": tensor(0, 4)}, FOUR),
    "spaces": (f"  {json.dumps({'a': tensor(0, 4)})}   ", FOUR),
    "a further field": ({"a": tensor(0, 4, more=1)}, FOUR),
    "a name in another script": (json.dumps({"вес": tensor(0, 4)}, ensure_ascii=False), FOUR),
    "a long shape of nothing": ({"a": tensor(0, 0, shape=[2**62, 0])}, b""),
}
REFUSED: dict[str, tuple[Header | str | bytes, bytes]] = {
    "a hole": ({"a": tensor(0, 1), "b": tensor(2, 4)}, FOUR),
    "a hole at the start": ({"a": tensor(1, 4)}, FOUR),
    "bytes at the end": ({"a": tensor(0, 3)}, FOUR),
    "bytes and no tensor": ({}, FOUR),
    "an overlap": ({"a": tensor(0, 3), "b": tensor(2, 4)}, FOUR),
    "the same bytes": ({"a": tensor(0, 4), "b": tensor(0, 4)}, FOUR),
    "nothing in a hole": ({"a": tensor(0, 2), "none": tensor(3, 3), "b": tensor(2, 4)}, FOUR),
    "nothing within a tensor": ({"a": tensor(0, 4), "none": tensor(2, 2)}, FOUR),
    "nothing behind the end": ({"a": tensor(0, 4), "none": tensor(9, 9)}, FOUR),
    "too few bytes": ({"a": tensor(0, 5)}, FOUR),
    "backwards": ({"a": tensor(4, 0, shape=[4])}, FOUR),
    "another size": ({"a": tensor(0, 4, dtype="F32", shape=[2])}, FOUR),
    "an overflow on the way": ({"a": tensor(0, 0, shape=[2**62, 2**62, 0])}, b""),
    "an overflow": ({"a": tensor(0, 4, dtype="F64", shape=[2**61])}, FOUR),
    "metadata of numbers": ({"__metadata__": {"a": 1}, "a": tensor(0, 4)}, FOUR),
    "metadata of a tensor": ({"__metadata__": tensor(0, 4)}, FOUR),
    "a list": ("[]", b""),
    "nothing": ("", b""),
    "zeros at the end": (json.dumps({"a": tensor(0, 4)}) + "\0", FOUR),
    "UTF-16": (json.dumps({"a": tensor(0, 4)}).encode("utf-16"), FOUR),
    "a byte order mark": (json.dumps({"a": tensor(0, 4)}).encode("utf-8-sig"), FOUR),
    "no UTF-8": (b'{"\xff": {}}', b""),
    "half of a surrogate pair": ('{"\\ud800": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}', FOUR),
    "not a number": ('{"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4], "x": NaN}}', FOUR),
    "a negative zero": ('{"a": {"dtype": "U8", "shape": [4], "data_offsets": [-0, 4]}}', FOUR),
    "a field twice": ('{"a": {"dtype": "U8", "shape": [4], "shape": [4], "data_offsets": [0, 4]}}', FOUR),
    "deep": ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", b""),
    "many digits": ('{"a": {"dtype": "U8", "shape": [' + "9" * 5000 + '], "data_offsets": [0, 4]}}', FOUR),
}


@pytest.mark.parametrize("name", list(TAKEN))
def test_what_the_package_takes_is_taken(name: str, tmp_path: Path) -> None:
    assert agree(file_of(tmp_path, *TAKEN[name]))


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_the_package_refuses_is_refused(name: str, tmp_path: Path) -> None:
    path = file_of(tmp_path, *REFUSED[name])
    assert reference(path) is None and not agree(path)


def test_a_name_that_is_said_twice_is_refused(tmp_path: Path) -> None:
    """The package takes the last one, another reader may take the first."""
    twice = json.dumps({"a": tensor(0, 4)})[:-1] + "," + json.dumps({"a": tensor(0, 4)})[1:]
    with pytest.raises(PartitionError, match="one name twice"):
        open_checkpoint(file_of(tmp_path, twice, FOUR))


@pytest.mark.parametrize("length", [MOST_HEADER + 1, 2**63, 2**64 - 1])
def test_a_header_is_not_longer_than_the_package_has_it(length: int, tmp_path: Path) -> None:
    path = file_of(tmp_path, "{}", b"", length)
    assert reference(path) is None
    with pytest.raises(PartitionError, match=rf"would have {length} bytes, and 100000000 is the most"):
        open_checkpoint(path)


def test_a_long_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = file_of(tmp_path, "{}", b"", MOST_HEADER + 1)
    with path.open("r+b") as file:
        file.truncate(MOST_HEADER + 1000)  # a file with holes, which takes no space
    with pytest.raises(PartitionError, match="is the most"):
        open_checkpoint(path)
    file_of(tmp_path, "{}", b"", MOST_HEADER)
    with pytest.raises(PartitionError, match="cut short"):
        open_checkpoint(path)


def some_header(choose: random.Random) -> tuple[Header, bytes]:
    """A valid header of a few tensors, and their bytes."""
    header, end = {}, 0
    types = {"U8": 1, "BOOL": 1, "F16": 2, "BF16": 2, "I32": 4, "F32": 4, "F64": 8, "C64": 8}
    for i in range(choose.randint(0, 4)):
        dtype = choose.choice(list(types))
        shape = [choose.randint(0, 3) for _ in range(choose.randint(0, 3))]
        size = types[dtype]
        for length in shape:
            size *= length
        header[f"t{i}"] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    if choose.random() < 0.3:
        header["__metadata__"] = {"format": "pt"}
    names = list(header)
    choose.shuffle(names)
    return {name: header[name] for name in names}, bytes(choose.choice((0, 1)) for _ in range(end))


def changed_fields(header: Header, choose: random.Random) -> Header:
    entries = [entry for name, entry in header.items() if name != "__metadata__"]
    for entry in choose.sample(entries, min(len(entries), choose.randint(1, 2))):
        part = choose.choice(["shape", "data_offsets", "both", "dtype", "lost"])
        if part == "dtype":
            entry["dtype"] = choose.choice(["U8", "F32", "F4", "F8_E4M3FNUZ", "none", 3, None])
        elif part == "lost":
            del entry[choose.choice(list(entry))]
        elif part == "both":
            move = choose.choice([-8, -1, 1, 4, 8])
            entry["data_offsets"] = [offset + move for offset in entry["data_offsets"]]
        elif entry[part]:
            entry[part][choose.randrange(len(entry[part]))] = choose.choice([0, 1, 2, 8, 2**40, 2**63, -1, 1.0, "1"])
    return header


def changed_bytes(text: bytes, choose: random.Random) -> bytes:
    found = bytearray(text)
    for _ in range(choose.randint(1, 2)):
        at, byte = choose.randrange(len(found)), choose.choice(b'0123456789",:[]{} -.eE\\nullt\0\xff')
        how = choose.randrange(3)
        if how == 0:
            found[at] = byte
        elif how == 1:
            found.insert(at, byte)
        elif len(found) > 1:
            del found[at]
    return bytes(found)


@pytest.mark.parametrize("seed", range(4))
def test_files_that_are_changed_at_random_are_judged_as_the_package_judges_them(seed: int, tmp_path: Path) -> None:
    choose = random.Random(seed)
    taken = 0
    for _ in range(500):
        header, data = some_header(choose)
        kind = choose.choice(["none", "fields", "bytes", "data"])
        if kind == "fields":
            header = changed_fields(header, choose)
        text = json.dumps(header).encode()
        if kind == "bytes":
            text = changed_bytes(text, choose)
        if kind == "data":
            cut, more = choose.randint(0, len(data)), bytes(choose.randint(1, 9))
            data = data[:cut] if choose.random() < 0.5 else data + more
        taken += agree(file_of(tmp_path, text, data))
    assert 100 < taken < 400


OUTSIDE = ["../model.safetensors", "/model.safetensors", "a/../../model.safetensors", "..", "C:\\model.safetensors",
           "..\\model.safetensors", "//host/share/model.safetensors", "\\\\host\\share\\model.safetensors"]  # fmt: skip


def index_of(folder: Path, weight_map: Any) -> Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": weight_map}))
    return path


@pytest.mark.parametrize("name", [*OUTSIDE, "ABSOLUTE"])
def test_an_index_names_no_file_outside_of_its_directory(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    save_file({"weight": torch.ones(2)}, folder / "model.safetensors")
    name = str(folder / "model.safetensors") if name == "ABSOLUTE" else name
    with pytest.raises(PartitionError, match="not below its directory") as found:
        open_checkpoint(index_of(folder, {"weight": name}))
    assert repr(name) in str(found.value)


def test_files_below_an_index_may_be_links(tmp_path: Path) -> None:
    """As in the cache of Hugging Face's hub."""
    folder = tmp_path / "snapshot"
    (folder / "parts").mkdir(parents=True)
    save_file({"weight": torch.ones(2)}, tmp_path / "blob.safetensors")
    (folder / "parts" / "one..two.safetensors").symlink_to(tmp_path / "blob.safetensors")
    weights = open_checkpoint(index_of(folder, {"weight": "parts/one..two.safetensors"})).tensors
    assert torch.equal(weights["weight"], torch.ones(2))


@pytest.mark.parametrize(
    "weight_map", [3, [], "model.safetensors", None, {"weight": 3}, {"weight": None}, {"weight": ["a"]}]
)
def test_an_index_maps_names_to_names(weight_map: Any, tmp_path: Path) -> None:
    with pytest.raises(PartitionError, match="no weight_map"):
        open_checkpoint(index_of(tmp_path, weight_map))


@pytest.mark.parametrize("name", ["", ".", "x" * 300, "a\0b", "missing.safetensors"])
def test_an_index_names_files_that_are_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(PartitionError):
        open_checkpoint(index_of(tmp_path, {"weight": name}))


def test_an_index_that_is_as_large_as_weights_is_none(tmp_path: Path) -> None:
    path = index_of(tmp_path, {})
    with path.open("r+b") as file:
        file.truncate(10**9)
    with pytest.raises(PartitionError, match="not an index"):
        open_checkpoint(path)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "/dev/null", ""])
def test_a_name_that_is_not_a_file_is_refused(name: str) -> None:
    with pytest.raises(PartitionError):
        open_checkpoint(name)


def test_files_of_torch_that_are_damaged_anywhere_are_refused(tmp_path: Path) -> None:
    path, choose = tmp_path / "model.pt", random.Random(0)
    torch.save({"weight": torch.arange(6.0), "bias": torch.ones(3)}, path)
    whole = path.read_bytes()
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(choose.randint(1, 3)):
            damaged[choose.randrange(len(damaged))] = choose.randrange(256)
        path.write_bytes(damaged[: choose.randrange(len(damaged))] if choose.random() < 0.2 else damaged)
        try:
            found = open_checkpoint(path).tensors
        except PartitionError as error:
            assert "model.pt" in str(error)
        else:
            assert all(isinstance(value, Tensor) for value in found.values())
