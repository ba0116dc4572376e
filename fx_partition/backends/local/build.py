"""Compiles ``stage_loop.cpp`` on first use, with the compiler that inductor needs on a CPU anyway, and loads it.

The library lies in the user's cache directory, under a name that holds for one source with the headers beside it, one
Python and one torch. Benchmarks compile their own C++ in the same way.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch.utils import cpp_extension

from fx_partition.hardware.user_cache import cache_directory

_SOURCE = Path(__file__).with_name("stage_loop.cpp")
_NAME = "_stage_loop"  # as the source's PyInit function says


@functools.lru_cache(maxsize=1)
def stage_loop() -> ModuleType:
    """The extension module.

    Raises:
        RuntimeError: it cannot be compiled here; the compiler's words are in the message.
    """
    loader = importlib.machinery.ExtensionFileLoader(_NAME, str(compiled(_SOURCE)))
    spec = importlib.util.spec_from_loader(_NAME, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def compiled(source: Path, options: Sequence[str] = ()) -> Path:
    """The shared object of a C++ file, compiled unless it was before.

    Args:
        options: further options of the compiler.

    Raises:
        RuntimeError: it cannot be compiled here; the compiler's words are in the message.
    """
    files = [source, *sorted(source.parent.glob("*.h"))]  # the headers beside it may be parts of it
    text = b"".join(file.read_bytes() for file in files)
    text += f"{sys.version} {torch.__version__} {torch.__file__} {options}".encode()
    library = cache_directory() / f"_{source.stem}-{hashlib.sha256(text).hexdigest()[:16]}.so"
    if not library.exists():
        _compile(source, library, options)
    return library


def _compile(source: Path, library: Path, options: Sequence[str]) -> None:
    if sys.platform != "linux":
        raise RuntimeError(f"stage threads need Linux (futexes, core affinity), and this is {sys.platform}")
    compiler = os.environ.get("CXX", "g++")
    libraries = cpp_extension.library_paths()
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        command = [compiler, "-O2", "-std=c++20", "-shared", "-fPIC", *options, str(source), "-o", str(made)]
        command += [f"-I{path}" for path in (*cpp_extension.include_paths(), sysconfig.get_paths()["include"])]
        command += [option for path in libraries for option in (f"-L{path}", f"-Wl,-rpath,{path}")]
        command += ["-ltorch_cpu"]
        try:
            result = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            raise RuntimeError(f"stage threads need a C++ compiler, and {compiler!r} does not run: {error}") from error
        if result.returncode:
            raise RuntimeError(f"stage threads could not be compiled:\n{' '.join(command)}\n{result.stderr}")
        made.replace(library)  # at once: another process may look for it
