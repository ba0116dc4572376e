"""Compile the library that is preloaded, and say with which environment it is used."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent / "library"
RUNTIME, DRIVER = "libsoftware_gpu.so", "libcuda.so.1"
_CXX = ["g++", "-std=c++20", "-O2", "-fPIC", "-Wall", "-Wextra"]


def build(folder: Path, headers: Path) -> None:
    """Compile into a folder what is older than its sources there.

    Args:
        headers: the folder with CUDA's headers, as the wheel ``nvidia-cuda-runtime`` has them.

    Raises:
        subprocess.CalledProcessError: the compiler refuses a source; it has printed why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    newest_header = max(header.stat().st_mtime for header in SOURCES.glob("*.h"))
    objects, commands = [], []
    for source in sorted(SOURCES.glob("*.cpp")):
        objects.append(folder / f"{source.stem}.o")
        if not _is_newer(objects[-1], max(newest_header, source.stat().st_mtime)):
            commands.append([*_CXX, "-c", f"-isystem{headers}", str(source), "-o", str(objects[-1])])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_run, commands))
    runtime, driver, stub = folder / RUNTIME, folder / DRIVER, SOURCES / "driver_stub.c"
    if commands or not runtime.exists():
        _run(["g++", "-shared", *map(str, objects), "-o", str(runtime), "-lpthread", "-ldl"])
    if not _is_newer(driver, stub.stat().st_mtime):
        _run(["gcc", "-shared", "-fPIC", f"-Wl,-soname,{DRIVER}", str(stub), "-o", str(driver)])


def _is_newer(target: Path, than: float) -> bool:
    return target.exists() and target.stat().st_mtime > than


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True)


def environment(folder: Path, *, devices: int, seed: int = 0) -> Mapping[str, str]:
    """Return the variables, in addition to the process's own, under which a program has the software GPU."""
    return {
        "LD_PRELOAD": str(folder / RUNTIME),
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("LD_LIBRARY_PATH")])),
        "SWGPU_DEVICES": str(devices),
        "SWGPU_SEED": str(seed),
        # torch keeps 32 MiB for cuBLAS on each stream otherwise, more than the weights of a test.
        "CUBLAS_WORKSPACE_CONFIG": ":16:8",
        # These go to libraries that call the driver themselves.
        "DISABLE_ADDMM_CUDA_LT": "1",
        "TORCHINDUCTOR_USE_STATIC_CUDA_LAUNCHER": "0",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }
