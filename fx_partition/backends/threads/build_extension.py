"""Compile ``stage_loop.cpp`` on first use, with the compiler that inductor needs on a CPU anyway, and load it.

The library is kept in the user's cache directory as ``_stage_loop-KEY-CONTENTS.so``, and ``_stage_loop-KEY.sha256`` is
the digest of its contents. The key covers the source, its headers, Python and torch. A library that does not match
its digest, as after a full disk or a loss of power, is compiled again. Benchmarks compile their own C++ in the same
way.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.machinery
import importlib.util
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch.utils import cpp_extension

from fx_partition.common.errors import PartitionError
from fx_partition.hardware.cache_dir import VARIABLE, CacheDirectoryError, cache_directory, check_writable, put_whole

_SOURCE = Path(__file__).with_name("stage_loop.cpp")
_NAME = "_stage_loop"  # the name in the source's PyInit function


@functools.lru_cache(maxsize=1)
def stage_loop() -> ModuleType:
    """Return the extension module.

    Raises:
        PartitionError (a ValueError): the cache directory cannot be used; nothing was compiled.
        RuntimeError: the compilation failed; the message has the compiler's output.
    """
    library = compiled(_SOURCE)
    loader = importlib.machinery.ExtensionFileLoader(_NAME, str(library))
    spec = importlib.util.spec_from_loader(_NAME, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def compiled(source: Path, options: Sequence[str] = ()) -> Path:
    """Return the shared object of a C++ file; compile it unless an earlier one is kept.

    Args:
        options: further options of the compiler.

    Raises:
        PartitionError (a ValueError): the cache directory cannot be used; nothing was compiled.
        RuntimeError: the compilation failed; the message has the compiler's output.
    """
    files = [source, *sorted(source.parent.glob("*.h"))]  # it may include any header of its folder
    text = b"".join(file.read_bytes() for file in files)
    text += f"{sys.version} {platform.machine()} {torch.__version__} {torch.__file__} {options}".encode()
    try:
        directory = cache_directory()
        _refuse_noexec(directory)
        digest_file = directory / f"_{source.stem}-{hashlib.sha256(text).hexdigest()[:16]}.sha256"
        library = _kept(digest_file)
        if library is None:
            check_writable(directory)
            library = _keep(digest_file, _compile(source, options, directory))
    except OSError as error:
        raise PartitionError(
            str(error)
            if isinstance(error, CacheDirectoryError)
            else f"{source.name} cannot be kept in the cache directory {directory} ({error}); name another directory "
            f"with ${VARIABLE}"
        ) from error
    return library


def _kept(digest_file: Path) -> Path | None:
    """Return the library that a digest file names; None if there is none, or if its contents differ."""
    try:
        digest = digest_file.read_text()
        library = _library_path(digest_file, digest)
        return library if hashlib.sha256(library.read_bytes()).hexdigest() == digest else None
    except (OSError, ValueError):  # ValueError: the digest file is not text
        return None


def _keep(digest_file: Path, contents: bytes) -> Path:
    digest = hashlib.sha256(contents).hexdigest()
    library = _library_path(digest_file, digest)
    put_whole(library, contents)
    put_whole(digest_file, digest.encode())
    return library


def _library_path(digest_file: Path, digest: str) -> Path:
    return digest_file.with_name(f"{digest_file.stem}-{digest[:16]}.so")


def _refuse_noexec(directory: Path) -> None:
    noexec = getattr(os, "ST_NOEXEC", 0)
    if noexec and os.statvfs(directory).f_flag & noexec:
        raise CacheDirectoryError(
            f"code cannot run from the cache directory {directory}: its file system is mounted noexec; name another "
            f"directory with ${VARIABLE}"
        )


def _compile(source: Path, options: Sequence[str], directory: Path) -> bytes:
    """Return the compiled contents of a C++ file; work in a temporary folder below ``directory``."""
    if sys.platform != "linux":
        raise RuntimeError(f"stage threads need Linux (futexes, core affinity), and this is {sys.platform}")
    compiler = os.environ.get("CXX", "g++")
    libraries = cpp_extension.library_paths()
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        made = Path(folder) / "made.so"
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
        return made.read_bytes()
