"""The directory that keeps measurements and compiled code for later processes.

Code is run from there, so it must be the user's own: a directory that others may write to is refused, and so is one
that belongs to another user. A file is complete and on the disk before it gets its name.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import BinaryIO

VARIABLE = "FX_PARTITION_CACHE_DIR"

_PAGE = 4096


class CacheDirectoryError(OSError, ValueError):
    """A cache directory that cannot be used; the message names it and the way out."""


class UntrustedCacheError(CacheDirectoryError):
    """A cache directory whose files other users may have written."""


def cache_directory() -> Path:
    """Return ``$FX_PARTITION_CACHE_DIR``, else ``fx_partition`` in the user's cache directory; make it if necessary.

    Raises:
        CacheDirectoryError: the directory cannot be made.
        UntrustedCacheError: the directory belongs to another user, or others may write to it.
    """
    try:
        directory = _named()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
    except (OSError, RuntimeError, ValueError) as error:  # ValueError: a null byte; RuntimeError: there is no home
        named = os.environ.get(VARIABLE) or "~/.cache/fx_partition"
        raise CacheDirectoryError(
            f"the cache directory {named} cannot be made ({_reason(error)}); name one with ${VARIABLE}"
        ) from error
    _refuse_others(directory, status)
    return directory


def check_writable(directory: Path) -> None:
    """Write a page to a file in a directory, and delete it again.

    Raises:
        CacheDirectoryError: the directory is read-only, or the disk is full.
    """
    try:
        descriptor, name = tempfile.mkstemp(dir=directory, prefix=".try-")
        try:
            with open(descriptor, "wb") as file:
                _write(file, bytes(_PAGE))
        finally:
            os.unlink(name)
    except OSError as error:
        raise CacheDirectoryError(
            f"the cache directory {directory} cannot be written to ({_reason(error)}); name another one with "
            f"${VARIABLE}"
        ) from error


def put_whole(path: Path, contents: bytes) -> None:
    """Write a file atomically: a reader finds all of it or no file, even after the machine has lost its power.

    Raises:
        OSError: the file cannot be written; nothing is left behind.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with open(descriptor, "wb") as file:
            _write(file, contents)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _write(file: BinaryIO, contents: bytes) -> None:
    """Write to the disk; without fsync a loss of power may leave a name without its contents."""
    file.write(contents)
    file.flush()
    os.fsync(file.fileno())


def _named() -> Path:
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named).absolute()  # libraries are loaded by this name even after a change of directory
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home).absolute() / "fx_partition"


def _refuse_others(directory: Path, status: os.stat_result) -> None:
    if os.name != "posix":
        return
    if status.st_uid not in (os.geteuid(), 0):  # root may do anything anyway
        raise UntrustedCacheError(
            f"the cache directory {directory} belongs to user {status.st_uid}, and this process runs as user "
            f"{os.geteuid()}: it would run the code that user {status.st_uid} keeps there; name a directory of your "
            f"own with ${VARIABLE}"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UntrustedCacheError(
            f"others may write to the cache directory {directory} (mode {stat.S_IMODE(status.st_mode):o}), and code is "
            f"run from there: chmod go-w {directory}, or name another directory with ${VARIABLE}"
        )


def _reason(error: BaseException) -> str:
    if isinstance(error, FileExistsError):
        return "its name belongs to something that is not a directory"
    return (error.strerror if isinstance(error, OSError) else "") or str(error)
