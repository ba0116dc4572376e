"""Make the environment of the software GPU and run the tests on it: ``python -m tests.software_gpu [OPTION ...]``.

It needs torch's CUDA build and the libraries that it links to, some 5 GB; where pip cannot install them it says so in
one line and ends with 0. Arguments behind ``--`` are a command for python in place of the tests.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import venv
from pathlib import Path

from .build import build, environment

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
#: In addition to the folder's own tests: those for GPUs that a software GPU can run.
TESTS = [
    "tests/software_gpu",
    "tests/backends/cuda/test_cuda_gpu.py",
    # Kernels of Triton have no values here.
    "--deselect=tests/backends/cuda/test_cuda_gpu.py::test_code_compiled_by_inductor",
    # Large products take minutes on the host; test_requests has the same with small ones.
    "--deselect=tests/backends/cuda/test_cuda_gpu.py::test_a_hundred_requests_in_flight",
]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.software_gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv-cuda", help="made if it is not there")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "software_gpu", help="folder of the libraries")
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="of the schedule")
    parser.add_argument("command", nargs="*", help="arguments of python, after --; default: pytest and its tests")
    arguments = parser.parse_args()
    missing = "" if (arguments.venv / ".installed").exists() else install(arguments.venv)
    headers = list(arguments.venv.glob("lib/python*/site-packages/nvidia/cu13/include"))
    if missing or not headers:
        why = missing or "pip installed another build"
        print(f"software GPU: not run, as torch's CUDA build is not at hand: {why}")
        return 0
    build(arguments.build, headers[0])
    command = arguments.command or ["-m", "pytest", "-q", "-p", "software_gpu.plugin", *TESTS]
    variables = environment(arguments.build.resolve(), devices=arguments.devices, seed=arguments.seed)
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    run = [str(arguments.venv / "bin" / "python"), *command]
    return subprocess.run(run, cwd=ROOT, env={**os.environ, **variables, "PYTHONPATH": path}).returncode


def install(folder: Path) -> str:
    """Make a virtual environment with what the tests need; return why that was not possible, or nothing."""
    venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "-q", "--disable-pip-version-check", "install"]
    for what in (["-r", str(REQUIREMENTS)], ["--no-deps", "-e", str(ROOT)]):
        done = subprocess.run([*pip, *what], capture_output=True, text=True)
        if done.returncode != 0:
            return next(line for line in reversed(done.stderr.splitlines()) if line.strip())
    (folder / ".installed").touch()
    return ""


if __name__ == "__main__":
    sys.exit(main())
