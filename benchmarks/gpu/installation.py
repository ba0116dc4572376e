"""Install a copy of the tree without an index, as on a machine that can reach none."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("fx_partition", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")


def provide() -> None:
    """Put an installed copy on the path where the package is not installed: without its metadata it is not imported."""
    try:
        version("fx-partition")
    except PackageNotFoundError:
        folder = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        install(Path(folder))
        sys.path.insert(0, folder)


def install(folder: Path) -> str:
    """Install a copy of the tree into ``folder``, and return where Python then imports the package from.

    Raises:
        RuntimeError: pip failed, or Python imports another copy; the message has the end of what was said.
    """
    with tempfile.TemporaryDirectory() as copied:  # building leaves folders behind, which are not wanted in the tree
        for name in SOURCES:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, Path(copied, name), ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copied)
        options = ["--no-index", "--no-deps", "--no-build-isolation", "--target", str(folder)]
        run([sys.executable, "-m", "pip", "install", "-q", *options, "."], cwd=copied)
    where = run([sys.executable, "-c", "import fx_partition; print(fx_partition.__file__)"], folder, cwd=str(folder))
    if not where.strip().startswith(str(folder)):
        raise RuntimeError(f"installed into {folder}, and Python imports {where.strip()}")
    return where.strip()


def run(command: Sequence[str], path: Path | None = None, *, cwd: str) -> str:
    """Return what a command prints; ``path`` comes first on its PYTHONPATH.

    Raises:
        RuntimeError: it failed, or took more than eight minutes.
    """
    paths = [str(path)] if path else []
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])}
    try:
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=480, check=False)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{' '.join(command)} took more than {error.timeout} s") from error
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed ({done.returncode}):\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout
