"""The folder in which this machine keeps what later processes can use: measurements, compiled code."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_directory() -> Path:
    """``$FX_PARTITION_CACHE_DIR``, else ``fx_partition`` below the user's cache directory; made if it is not there."""
    named = os.environ.get("FX_PARTITION_CACHE_DIR")
    base = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fx_partition"
    base.mkdir(parents=True, exist_ok=True)
    return base


def put_whole(path: Path, contents: bytes) -> None:
    """Write a file at once: whoever looks for it finds all of it or nothing.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with open(descriptor, "wb") as file:
            file.write(contents)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
