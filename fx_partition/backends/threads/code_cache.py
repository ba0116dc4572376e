"""Compiled stages on disk, for later processes.

An entry is ``stage-KEY.json`` and the shared object that it names, ``stage-KEY-CONTENTS.so``, both in
`hardware.cache_dir.cache_directory`. The key is a digest of everything that compiling reads: the stage, the options,
the known facts about sizes, and `compiler_fingerprint`. The JSON holds the digest of the shared object, the reason why
it may not be used (it needs Python), and the guards that compiling added. `RequestSignature` checks each request
against these guards, so a process that loads an entry adds them too; it ignores the entry if it then knows other facts
about sizes than the process that compiled it.

Files are renamed into place, the JSON last, and each name has a digest of the contents. So several processes may write
at once, and a damaged entry is recognised and compiled again. Nothing is ever deleted: the user may delete entries at
any time.
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
from ..streaming.program import ProgramStep
from .compiler_fingerprint import compiler_state
from .portable_key import NotPortableError, to_portable

# Increase it when `compile_native`, `boundary_strides.in_order` or the meaning of an entry changes.
_SCHEME = 3


@dataclass(frozen=True)
class NativeCode:
    """A stage that AOTInductor compiled.

    Attributes:
        path: the shared object.
        reason: why it may not be used; "" if it may.
    """

    path: str
    reason: str


class CacheEntry:
    """The entry of one stage; made before the stage is compiled, as it must know which guards compiling adds.

    Args:
        key: everything that compiling reads, as text.
        env: the shape environment that compiling adds guards to; None for a stage without symbolic inputs.

    Attributes:
        path: the JSON file.
    """

    def __init__(self, key: str, env: ShapeEnv | None) -> None:
        self.path = cache_directory() / f"stage-{_digest(key.encode())[:32]}.json"
        self._env = env
        self._guards = 0 if env is None else len(env.guards)

    def read(self) -> NativeCode | None:
        """Return the code that another process kept; None if there is none, or if it is damaged or does not fit."""
        try:
            record = _unsealed(self.path.read_text())
            library = self.path.with_name(record["library"])
            if _digest(library.read_bytes()) != record["digest"]:
                return None
            if self._env is not None:
                assume_all(self._env, record["guards"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if _facts(self._env) != record["facts"]:
            return None
        return NativeCode(str(library), record["reason"])

    def check(self) -> None:
        """Check before compiling that the code can be kept.

        Raises:
            PartitionError (a ValueError): the cache directory cannot be written to.
        """
        try:
            check_writable(self.path.parent)
        except CacheDirectoryError as error:
            raise PartitionError(str(error)) from error

    def write(self, compiled: NativeCode) -> None:
        """Keep compiled code, unless the disk refuses it or its guards cannot be written as text."""
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
            put_whole(self.path, _sealed(record).encode())


def entry_of(step: ProgramStep, options: Mapping[str, Any]) -> CacheEntry | None:
    """Return the entry of a stage; None if torch's caches are off, or if the stage has no portable key.

    Args:
        options: options of inductor.

    Raises:
        PartitionError (a ValueError): the cache directory cannot be used.
    """
    if caches_are_off(options):
        return None
    env = shape_env_of(step.fake_inputs)
    known = None if env is None else facts_of(env)
    if env is not None and known is None:
        return None
    stage = stage_key(step.module, step.fake_inputs, step.fake_outputs)
    try:
        return CacheEntry(to_portable((_SCHEME, stage, dict(options), known, compiler_state())), env)
    except CacheDirectoryError as error:
        raise PartitionError(str(error)) from error
    except (NotPortableError, OSError):  # OSError: /proc/cpuinfo cannot be read
        return None


def _facts(env: ShapeEnv | None) -> str:
    return _digest(to_portable(None if env is None else facts_of(env)).encode())


def _digest(contents: bytes) -> str:
    return hashlib.sha256(contents).hexdigest()


def _sealed(record: Mapping[str, Any]) -> str:
    """Return a line with the digest of the record's JSON, then the JSON."""
    text = json.dumps(record)
    return f"{_digest(text.encode())}\n{text}"


def _unsealed(text: str) -> dict[str, Any]:
    """Read a text that `_sealed` wrote.

    Raises:
        ValueError: the text is damaged.
    """
    digest, _, body = text.partition("\n")
    if _digest(body.encode()) != digest:
        raise ValueError("damaged")
    record = json.loads(body)
    assert isinstance(record, dict)
    return record
