"""Compiled stages on disk, for later processes.

An entry is ``stage-KEY.json`` and the shared object that it names, ``stage-KEY-CONTENTS.so``, both below
`hardware.cache_dir.cache_directory`. The key is a digest of all that compiling reads: the stage, the options, what is
known of sizes, and `compiler_fingerprint`. The JSON holds the digest of the shared object, why it may not be used (it
needs Python), and what compiling has decided about sizes: `Signature` checks each request against it, so whoever takes
the code from here decides the same, and takes nothing if then not exactly the same is known of sizes as after
compiling.

Files are put in place whole, the JSON last, and each names its contents; so several processes may write at once, and
what is damaged is found out and compiled anew. Nothing is ever deleted: the user may delete entries at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fx_partition.common.errors import PartitionError
from fx_partition.hardware.cache_dir import CacheDirectoryError, cache_directory, check_writable, put_whole
from fx_partition.passes.capture.fake_tensors import ShapeEnv, facts_of, shape_env_of

from ..lowering.guard_text import assume_all, guards_to_text
from ..lowering.stage_key import stage_key
from ..lowering.torch_internals import caches_are_off
from ..streaming.program import Step
from .compiler_fingerprint import compiler_state
from .portable_key import NotPortableError, to_portable

# To be raised when `compile_native`, `boundary_strides.in_order`, or what it means that an entry is there, changes.
_SCHEME = 3


@dataclass(frozen=True)
class Compiled:
    """What AOTInductor made of a stage.

    Attributes:
        path: the shared object.
        reason: why it may not be used; "" where it may.
    """

    path: str
    reason: str


class Entry:
    """The place of a stage on disk, ``path``; made before the stage is compiled.

    Args:
        key: what compiling reads, as text.
        env: where compiling decides about sizes; None for a stage that takes nothing.
    """

    def __init__(self, key: str, env: ShapeEnv | None) -> None:
        self.path = cache_directory() / f"stage-{_digest(key.encode())[:32]}.json"
        self._env = env
        self._guards = 0 if env is None else len(env.guards)

    def read(self) -> Compiled | None:
        """What another process has kept; None if there is nothing, or nothing that can be relied on."""
        try:
            record = _opened(self.path.read_text())
            library = self.path.with_name(record["library"])
            if _digest(library.read_bytes()) != record["digest"]:
                return None
            if self._env is not None:
                assume_all(self._env, record["guards"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if _facts(self._env) != record["facts"]:
            return None
        return Compiled(str(library), record["reason"])

    def check(self) -> None:
        """See before a compile that its code can be kept.

        Raises:
            PartitionError (a ValueError): the cache directory cannot be written to.
        """
        try:
            check_writable(self.path.parent)
        except CacheDirectoryError as error:
            raise PartitionError(str(error)) from error

    def write(self, compiled: Compiled) -> None:
        """Keep what was compiled, unless the disk refuses it or what was decided has no text."""
        try:
            added = [] if self._env is None else self._env.guards[self._guards :]
            guards = guards_to_text(guard.expr for guard in added)
            facts = _facts(self._env)
        except (NotPortableError, ValueError):
            return
        with contextlib.suppress(OSError):
            contents = Path(compiled.path).read_bytes()
            digest = _digest(contents)
            library = self.path.with_name(f"{self.path.stem}-{digest[:16]}.so")
            record = {
                "library": library.name,
                "digest": digest,
                "reason": compiled.reason,
                "guards": guards,
                "facts": facts,
            }
            put_whole(library, contents)
            put_whole(self.path, _closed(record).encode())


def entry_of(step: Step, options: Mapping[str, Any]) -> Entry | None:
    """Where a stage is kept; None if torch's caches are off, or if the stage has no name that others know.

    Args:
        options: of inductor.

    Raises:
        PartitionError (a ValueError): the cache directory cannot be used.
    """
    if caches_are_off(options):
        return None
    env = shape_env_of(step.takes)
    known = None if env is None else facts_of(env)
    if env is not None and known is None:
        return None
    stage = stage_key(step.module, step.takes, step.makes)
    try:
        return Entry(to_portable((_SCHEME, stage, dict(options), known, compiler_state())), env)
    except CacheDirectoryError as error:
        raise PartitionError(str(error)) from error
    except (NotPortableError, OSError):  # OSError: nothing says what processor this is
        return None


def _facts(env: ShapeEnv | None) -> str:
    return _digest(to_portable(None if env is None else facts_of(env)).encode())


def _digest(contents: bytes) -> str:
    return hashlib.sha256(contents).hexdigest()


def _closed(record: Mapping[str, Any]) -> str:
    """JSON of a record, and a line with its digest before."""
    text = json.dumps(record)
    return f"{_digest(text.encode())}\n{text}"


def _opened(text: str) -> dict[str, Any]:
    """Read back what `_closed` wrote.

    Raises:
        ValueError: it is damaged.
    """
    digest, _, body = text.partition("\n")
    if _digest(body.encode()) != digest:
        raise ValueError("damaged")
    record = json.loads(body)
    assert isinstance(record, dict)
    return record
