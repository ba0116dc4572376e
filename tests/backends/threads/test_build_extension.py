"""Compiled C++ is cached by its source with headers, and used only if its contents are intact."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import fx_partition
from fx_partition import PartitionError
from fx_partition.backends import pipeline as pipeline_module
from fx_partition.backends.threads import build_extension
from fx_partition.backends.threads.build_extension import compiled


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FX_PARTITION_CACHE_DIR", str(tmp_path / "cache"))
    source = tmp_path / "answer.cpp"
    source.write_text('#include "answer.h"\nextern "C" int answer() { return ANSWER; }\n')
    source.with_suffix(".h").write_text("#define ANSWER 41\n")
    return source


def test_a_changed_header_is_compiled_again(source: Path) -> None:
    first = compiled(source)
    assert compiled(source) == first and ctypes.CDLL(str(first)).answer() == 41
    source.with_suffix(".h").write_text("#define ANSWER 42\n")
    assert ctypes.CDLL(str(compiled(source))).answer() == 42


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


def with_other_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a library that is cut short": (".so", cut_short),
    "an empty library": (".so", lambda path: path.write_bytes(b"")),
    "a library with another byte": (".so", with_other_byte),
    "no library": (".so", Path.unlink),
    "an empty digest": (".sha256", lambda path: path.write_bytes(b"")),
    "a digest that is not text": (".sha256", lambda path: path.write_bytes(b"\xff\xfe\x00")),
    "a digest that is a path": (".sha256", lambda path: path.write_text("../../../../etc")),
    "no digest": (".sha256", Path.unlink),
}


def test_what_is_damaged_is_compiled_again(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = compiled(source)
    whole = library.read_bytes()
    compiles = []
    monkeypatch.setattr(build_extension, "_compile", lambda *_: compiles.append(1) or whole)
    for count, (suffix, damage) in enumerate(DAMAGE.values(), start=1):
        (path,) = library.parent.glob(f"_answer-*{suffix}")
        damage(path)
        assert compiled(source) == library and library.read_bytes() == whole
        assert compiled(source) == library and len(compiles) == count
    assert ctypes.CDLL(str(library)).answer() == 41


def test_processes_that_compile_at_once_and_differently_leave_what_can_be_used(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one puts its library and its digest between ours."""
    monkeypatch.setattr(build_extension, "_compile", lambda *_: b"ours")
    put_whole, others = build_extension.put_whole, [b"theirs"]

    def put(path: Path, contents: bytes) -> None:
        put_whole(path, contents)
        if others:
            build_extension._keep(path.with_name(path.name.rpartition("-")[0] + ".sha256"), others.pop())

    monkeypatch.setattr(build_extension, "put_whole", put)
    assert compiled(source).read_bytes() == b"ours"
    monkeypatch.setattr(build_extension, "_compile", lambda *_: pytest.fail("compiled again"))
    assert compiled(source).read_bytes() == b"ours"


def make_file(path: Path) -> None:
    path.write_text("")


def make_open(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)


@pytest.mark.parametrize("make", [make_file, make_open])
def test_a_directory_that_cannot_be_used_is_found_before_anything_is_compiled(
    make: Callable[[Path], None], source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = source.with_name("cache")
    make(folder)
    monkeypatch.setattr(build_extension, "_compile", lambda *_: pytest.fail("compiled"))
    with pytest.raises(PartitionError, match=r"\$FX_PARTITION_CACHE_DIR") as found:
        compiled(source)
    assert str(folder) in str(found.value)


def test_one_that_is_full_or_allows_no_code_is_found_too(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_extension, "_compile", lambda *_: pytest.fail("compiled"))

    def refuse(directory: Path) -> None:
        raise build_extension.CacheDirectoryError(f"{directory} is full")

    with monkeypatch.context() as patch, pytest.raises(PartitionError, match="is full"):
        patch.setattr(build_extension, "check_writable", refuse)
        compiled(source)
    if hasattr(os, "ST_NOEXEC"):
        monkeypatch.setattr(build_extension.os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_NOEXEC))
        with pytest.raises(PartitionError, match=r"noexec.*CACHE_DIR"):
            compiled(source)


def test_a_full_disk_at_the_last_moment_names_the_directory(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_extension, "_compile", lambda *_: b"code")

    def refuse(path: Path, contents: bytes) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(build_extension, "put_whole", refuse)
    with pytest.raises(PartitionError, match=r"cannot be kept.*no space left.*CACHE_DIR") as found:
        compiled(source)
    assert str(source.with_name("cache")) in str(found.value)


def test_a_pipeline_looks_for_it_before_it_plans(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_open(source.with_name("cache"))
    monkeypatch.setattr(pipeline_module, "stage_loop", build_extension.stage_loop.__wrapped__)
    monkeypatch.setattr(pipeline_module, "capture", lambda *_: pytest.fail("planned"))
    with pytest.raises(PartitionError, match="others may write"):
        fx_partition.pipeline(nn.Linear(2, 2), torch.ones(1, 2), devices=["cores:0"])
