"""A process finds the stages that an earlier one compiled, and its results are right."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pipelines_in_processes import RIGHT, WRONG
from torch import nn

import fx_partition
from fx_partition import PartitionWarning
from fx_partition.backends.threads import aoti_compile
from fx_partition.backends.threads.build_extension import stage_loop

SCRIPT = Path(__file__).with_name("pipelines_in_processes.py")


def fresh_directory(folder):
    """A directory for compiled code with the stage threads' alone."""
    folder.mkdir()
    for file in Path(stage_loop().__file__).parent.glob("_stage_loop-*"):
        shutil.copy(file, folder)
    return folder


def start(directory, **environment):
    """A process that makes a pipeline, with nothing in torch's own caches."""
    inductor = str(directory) + "-inductor"
    shutil.rmtree(inductor, ignore_errors=True)
    environment |= {"FX_PARTITION_CACHE_DIR": str(directory), "TORCHINDUCTOR_CACHE_DIR": inductor}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def compiles_of(process):
    """How many stages were compiled, once results and refusals are seen to be right."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    found = json.loads(out.splitlines()[-1])
    assert found["equal"] == [[height, True] for height in RIGHT]
    assert [height for height, _ in found["refused"]] == list(WRONG)
    assert all("7" in guard for _, guard in found["refused"])
    return found["compiled"]


@pytest.fixture(scope="module")
def code_cache(tmp_path_factory):
    """A code cache that one process has written."""
    directory = fresh_directory(tmp_path_factory.mktemp("code_cache") / "stages")
    assert compiles_of(start(directory)) == 1
    return directory


def files(directory):
    return {path.name: path.stat().st_mtime_ns for path in directory.glob("stage-*")}


@pytest.mark.slow
def test_a_second_process_compiles_nothing_and_refuses_the_same_sizes(code_cache):
    before = files(code_cache)
    assert len(before) == 2
    assert compiles_of(start(code_cache)) == 0
    assert files(code_cache) == before


@pytest.mark.slow
def test_a_damaged_library_is_compiled_again(code_cache):
    (library,) = code_cache.glob("stage-*.so")
    library.write_bytes(library.read_bytes()[:5000])
    assert compiles_of(start(code_cache)) == 1
    assert compiles_of(start(code_cache)) == 0


@pytest.mark.slow
def test_caches_that_are_off_are_neither_read_nor_written(code_cache):
    before = files(code_cache)
    assert compiles_of(start(code_cache, TORCHINDUCTOR_FORCE_DISABLE_CACHES="1")) == 1
    assert files(code_cache) == before


@pytest.mark.slow
def test_two_processes_at_once_leave_one_entry_that_a_third_uses(tmp_path):
    directory = fresh_directory(tmp_path / "stages")
    assert [compiles_of(process) for process in [start(directory), start(directory)]] == [1, 1]
    assert len(list(directory.glob("stage-*.json"))) == 1
    assert compiles_of(start(directory)) == 0


class Exponential(nn.Module):
    """Of a matrix; torch's operator has no C interface."""

    def forward(self, x):
        return torch.linalg.matrix_exp(torch.relu(x))


@pytest.mark.slow
def test_that_a_stage_needs_python_is_cached_too(tmp_path, monkeypatch):
    monkeypatch.setenv("FX_PARTITION_CACHE_DIR", str(fresh_directory(tmp_path / "stages")))
    compiled = []
    compile_native = aoti_compile.compile_native
    monkeypatch.setattr(aoti_compile, "compile_native", lambda *args: compiled.append(args) or compile_native(*args))
    x = torch.randn(8, 8)
    for _ in range(2):
        with pytest.warns(PartitionWarning, match="no C interface"):
            pipe = fx_partition.pipeline(Exponential(), x, cache_bytes="1GiB")
        with pipe:
            torch.testing.assert_close(pipe(x), Exponential()(x))
        assert len(compiled) == 1
