"""The source archive holds everything that its readers and testers need."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_source_archive_has_tests_docs_and_examples(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--sdist", "-o", str(tmp_path), str(ROOT)], check=True, capture_output=True
    )
    (archive,) = tmp_path.iterdir()
    with tarfile.open(archive) as found:
        names = {name.partition("/")[2] for name in found.getnames()}
    shipped = ["fx_partition", "tests", "docs", "examples", "benchmarks"]
    listed = subprocess.run(["git", "ls-files", *shipped], cwd=ROOT, check=True, capture_output=True, text=True)
    assert {*listed.stdout.split()} - names == set()
    assert {name.split("/")[0] for name in names} >= {*shipped}
