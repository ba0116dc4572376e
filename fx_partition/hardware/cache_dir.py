"""The directory in which this machine keeps what later processes can use: measurements, compiled code.

Code is run from there, so it has to be the user's own: a directory that others may write to is refused, as is one that
belongs to somebody else. Files are put in place whole, and on the disk before they get their names.
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
    """The cache directory cannot be used; the message names it and the way out."""


class UntrustedCacheError(CacheDirectoryError):
    """Others may have written what is in the cache directory."""


def cache_directory() -> Path:
    """``$FX_PARTITION_CACHE_DIR``, else ``fx_partition`` below the user's cache directory; made if it is not there.

    Raises:
        CacheDirectoryError: it cannot be made.
        UntrustedCacheError: it belongs to another user, or others may write to it.
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
    """Write a page to a directory, and take it away again.

    Raises:
        CacheDirectoryError: that is refused, or the disk is full.
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
    """Write a file at once: whoever looks for it finds all of it or nothing, also after the machine has lost its power.

    Raises:
        OSError: it cannot be written; nothing is left behind.
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
    """Write to the disk; without fsync a name may outlive a loss of power and its contents not."""
    file.write(contents)
    file.flush()
    os.fsync(file.fileno())


def _named() -> Path:
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named).absolute()  # a library is loaded by this name, also after a change of directory
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home).absolute() / "fx_partition"


def _refuse_others(directory: Path, status: os.stat_result) -> None:
    if os.name != "posix":
        return
    if status.st_uid not in (os.geteuid(), 0):  # the administrator may do anything anyway
        raise UntrustedCacheError(
            f"the cache directory {directory} belongs to user {status.st_uid}, and this process runs as user "
            f"{os.geteuid()}: it would run code that another user keeps there; name a directory of your own with "
            f"${VARIABLE}"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UntrustedCacheError(
            f"others may write to the cache directory {directory} (mode {stat.S_IMODE(status.st_mode):o}), and code is "
            f"run from there: chmod go-w {directory}, or name another directory with ${VARIABLE}"
        )


def _reason(error: BaseException) -> str:
    if isinstance(error, FileExistsError):
        return "something that is not a directory has its name"
    return (error.strerror if isinstance(error, OSError) else "") or str(error)
