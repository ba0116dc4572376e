"""Compiled C++ is kept for its text, headers included."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from fx_partition.backends.local.build import compiled


def test_a_changed_header_is_compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FX_PARTITION_CACHE_DIR", str(tmp_path / "cache"))
    source, header = tmp_path / "answer.cpp", tmp_path / "answer.h"
    source.write_text('#include "answer.h"\nextern "C" int answer() { return ANSWER; }\n')
    header.write_text("#define ANSWER 41\n")
    first = compiled(source)
    assert compiled(source) == first and ctypes.CDLL(str(first)).answer() == 41
    header.write_text("#define ANSWER 42\n")
    assert ctypes.CDLL(str(compiled(source))).answer() == 42
