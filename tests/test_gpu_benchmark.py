"""The arithmetic of benchmarks/gpu, and what it writes; what it measures needs a GPU."""

from __future__ import annotations

import doctest
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu import check, command, curve, figures, installation, llama, packed_module, product, stages
from benchmarks.gpu.results import DRY, Results

ROOT = Path(__file__).resolve().parents[1]
MIB = 2**20
README = (ROOT / "benchmarks" / "gpu" / "README.md").read_text(encoding="utf-8")
COMMANDS = {"check": check, "curve": curve, "product": product}

# Parts of measured curves: (MiB, GB/s). A100: the first size is too small to fill it; H100: the small ones are fastest.
A100 = [(1.5, 4316), (4, 5467), (12, 5435), (23, 5427), (27.5, 5170), (30, 4000), (36, 3004), (39.5, 2462), (98, 1867)]
H100 = [(1, 7758), (3, 7254), (9, 6994), (18, 6921), (30, 6953), (36, 6847), (39.5, 5729), (43, 4253), (47, 3453)]


# ---- arithmetic


@pytest.mark.parametrize(("measured", "at_90", "at_50"), [(A100, 27.5, 36), (H100, 36, 43)], ids=["A100", "H100"])
def test_the_knee_of_measured_curves(measured: list[tuple[float, float]], at_90: float, at_50: float) -> None:
    assert figures.knee(measured, 0.9) == at_90
    assert figures.knee(measured, 0.5) == at_50
    assert figures.plateau(measured) == pytest.approx(5400 if measured is A100 else 6950, rel=0.05)


def test_a_curve_that_never_falls_has_no_knee() -> None:
    assert figures.knee([(1, 10), (2, 100), (4, 99), (8, 97)], 0.9) is None
    assert figures.knee([(1, 10), (2, 100), (4, 99), (8, 88)], 0.9) == 4


def test_examples_say_what_happens() -> None:
    found = doctest.testmod(figures, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.failed == 0 and found.attempted >= 3


def test_a_time_is_the_median_and_a_bandwidth_its_bytes() -> None:
    assert figures.summary([5e-6, 1e-6, 2e-6, 3e-6]) == {"us": 2.5, "least_us": 1.0, "most_us": 5.0}
    assert figures.gigabytes_a_second(30_000_000, 3.0) == pytest.approx(10_000)


def test_copies_that_are_read_in_turn_are_several_times_the_l2() -> None:
    for size in (8 * MIB, 30 * MIB, 90 * MIB, 400 * MIB):
        count = figures.copies_to_miss(size, 60 * MIB)
        assert count >= 2 and count * size >= 4 * 60 * MIB


def test_a_pipeline_is_as_fast_as_its_slowest_stage_or_link() -> None:
    bound_by_stage = figures.project(whole=80e-6, stages=[4e-6, 5e-6, 3e-6], hop=1e-6)
    assert bound_by_stage.period == 5e-6
    assert bound_by_stage.latency == pytest.approx(12e-6 + 2e-6)
    assert (bound_by_stage.speedup, bound_by_stage.per_gpu) == (pytest.approx(16), pytest.approx(16 / 3))
    bound_by_link = figures.project(whole=80e-6, stages=[5e-6] * 8, hop=40e-6)
    assert bound_by_link.period == 40e-6
    assert bound_by_link.per_gpu == pytest.approx(0.25)
    assert figures.project(whole=8.0, stages=[4.0], hop=100.0).period == 4.0  # a lone stage has no hop


def test_a_gain_is_over_the_faster_of_resident_and_window() -> None:
    times = {"30": {"hbm": 9.0, "resident": 6.0, "window": 4.5}, "43": {"hbm": 12.0, "resident": 8.0}}
    assert figures.gains(times) == {"30": 2.0, "43": 1.5}


def test_the_verdict_is_by_inductors_stage() -> None:
    read = {"30": 2.5, "43": 2.0}
    assert figures.verdict(read, {"30": 1.2, "43": 1.3}).endswith("pay at 30 MiB and 43 MiB")
    assert figures.verdict(read, {"30": 1.19, "43": 1.1}).endswith("weights in L2 do not pay")
    with pytest.raises(KeyError):
        figures.verdict(read, {"30": 1.2})


def test_an_error_that_is_not_a_number_passes_no_bound() -> None:
    assert figures.relative_error(1.0, 4.0) == 0.25
    assert not figures.relative_error(float("nan"), 1.0) < product.MOST_ERROR
    assert product.worst([0.1, 0.3, 0.2]) == 0.3
    assert not product.worst([0.1, float("nan"), 0.2]) < product.MOST_ERROR


def test_a_table_is_aligned() -> None:
    assert figures.table(("MiB", "GB/s"), [("1", "12345"), ("1000", "7")]) == " MiB   GB/s\n   1  12345\n1000      7"


def test_a_projection_takes_the_faster_way_of_each_stage() -> None:
    whole = {"graph": {"us": 60.0}}
    rows = [
        {"resident": {"us": 6.0}, "window": {"us": 5.0}, "received_bytes": 0},
        {"resident": {"us": 4.0}, "received_bytes": 450_000},
    ]
    found = product.projected(whole, {"stages": rows, "copies": {"us": 1.0}})
    assert found["gpus"] == 2 and found["hop_us"] == pytest.approx(2.5 + 1.0)
    assert found["bare"]["period"] == 5.0 and found["bare"]["per_gpu"] == 6.0
    assert found["with_copies"]["period"] == 6.0
    assert product.conclusion([["bf16", "1", *"....", "1.10", "0.90"]]).endswith("it pays")
    assert product.conclusion([["bf16", "1", *"....", "1.00", "0.90"]]).endswith("it does not pay")


# ---- results


def test_results_are_written_after_each_section(tmp_path: Path) -> None:
    results = Results("curve", tmp_path, False, {"device": "none"})

    def on_disk() -> dict[str, object]:
        return json.loads((tmp_path / "curve.json").read_text(encoding="utf-8"))

    assert on_disk()["sections"] == {}
    assert results.section("first", lambda: {"us": 1.0}) == {"us": 1.0}
    assert on_disk()["sections"]["first"]["us"] == 1.0
    assert results.section("second", lambda: {"us": 1 // 0}) is None
    assert on_disk()["sections"]["second"]["error"].startswith("ZeroDivisionError")
    results.section("third", lambda: {"error": float("nan"), "rows": [float("inf")]})
    third = on_disk()["sections"]["third"]
    assert (third["error"], third["rows"]) == ("nan", ["inf"])
    assert results.finish(lambda: "it pays") == 1  # the second section raised
    assert on_disk()["verdict"] == "it pays" and len(on_disk()["failures"]) == 1


def test_a_dry_run_has_no_verdict_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = Results("curve", tmp_path, True, {})
    assert results.finish(lambda: pytest.fail("a dry run asks for no verdict")) == 0
    written = json.loads((tmp_path / "curve.json").read_text(encoding="utf-8"))
    assert written["dry_run"] is True and written["verdict"] is None and written["note"] == DRY
    assert DRY in capsys.readouterr().out


def test_a_verdict_without_its_measurements_is_a_failure(tmp_path: Path) -> None:
    results = Results("curve", tmp_path, False, {})
    assert results.finish(lambda: figures.verdict({}, {})) == 1
    written = json.loads((tmp_path / "curve.json").read_text(encoding="utf-8"))
    assert written["verdict"] is None and "was not measured" in written["failures"][0]


def test_numerics_that_are_off_are_a_failure(tmp_path: Path) -> None:
    results = Results("product", tmp_path, False, {})
    for error in (0.0, 1.0, float("nan")):
        product.check_errors(results, "whole", {"error": error})
    assert len(results.failures) == 2
    dry = Results("product", tmp_path, True, {})
    product.check_errors(dry, "whole", {"error": float("nan")})
    assert dry.failures == []


# ---- what is timed


def test_a_stage_has_the_size_asked_for() -> None:
    for size in curve.SIZES:
        width = stages.width_for(size * MIB)
        assert 2 * width * width * 2 == pytest.approx(size * MIB, rel=0.06)
    assert set(figures.VERDICT_MIB) <= set(curve.SIZES)


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_a_model_has_several_times_the_l2_and_a_block_fits_it(precision: str) -> None:
    shape = llama.BLOCK
    matrices = 2 * shape.hidden * shape.heads * shape.head + 2 * shape.hidden * shape.kv_heads * shape.head
    block = (matrices + 3 * shape.hidden * shape.ffn) * (2 if precision == "bf16" else 1)
    assert 3 * 60 * MIB < product.BLOCKS[precision] * block < 4 * 60 * MIB
    assert block < 43 * MIB


def test_fp8_is_close_to_its_own_weights_in_float32() -> None:
    torch.manual_seed(0)
    made = llama.Product(64, 32, "fp8")
    x = torch.randn(5, 1, 64, dtype=torch.bfloat16)
    right = x.float() @ (made.weight.float() * made.scale).t()
    assert made.weight.dtype is llama.FP8 and made(x).shape == (5, 1, 32)
    native = made(x)
    assert curve.error_of(native, right) < 0.05  # of rounding x to three bits
    made.precision = "fp8 by bf16"
    assert curve.error_of(made(x), native) < 5e-3  # of rounding the result


@pytest.mark.parametrize("rows", [1, 4])
def test_the_models_attention_is_that_of_its_formula(rows: int) -> None:
    torch.manual_seed(0)
    block = llama.llama(llama.TINY, 1, "bf16")[0].float()
    x = llama.example(llama.TINY, rows).float()
    shape, y = llama.TINY, block.norm(x)
    turned = [block._rotated(block._heads(p(y), n)) for p, n in ((block.queries, shape.heads), (block.keys, 2))]
    keys = torch.cat([block.cached_keys[:rows], turned[1]], 2).repeat_interleave(2, 1)
    values = torch.cat([block.cached_values[:rows], block._heads(block.values(y), 2)], 2).repeat_interleave(2, 1)
    scores = (turned[0] @ keys.mT / shape.head**0.5).softmax(-1)
    right = block.out((scores @ values).transpose(1, 2).reshape(rows, 1, -1))
    torch.testing.assert_close(block._attend(y), right, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_packing_a_module_changes_no_result(precision: str) -> None:
    model = llama.llama(llama.TINY, 2, precision)
    x = llama.example(llama.TINY, 3)
    right = model(x)
    pack = packed_module.pack_module(model, torch.device("cpu"))
    assert torch.equal(model(x), right)
    start, end = pack.buffer.data_ptr(), pack.buffer.data_ptr() + pack.buffer.numel()
    assert all(start <= tensor.data_ptr() < end for tensor in (*model.parameters(), *model.buffers()))


# ---- the commands


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_a_command_says_so(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert COMMANDS[name].main(["--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "no CUDA device: nothing measured\n" and not any(tmp_path.iterdir())


def test_the_readme_names_the_commands_with_options_that_they_have(capsys: pytest.CaptureFixture[str]) -> None:
    found = re.findall(r"^ {4}.*python3 -m benchmarks\.gpu\.(\w+)(.*)$", README, re.MULTILINE)
    assert {name for name, _ in found} == set(COMMANDS)
    for name, options in found:
        with pytest.raises(SystemExit):
            COMMANDS[name].main([*options.split(), "--help"])
        assert set(re.findall(r"--[a-z-]+", options)) <= set(re.findall(r"--[a-z-]+", capsys.readouterr().out))


def test_the_check_installs_what_it_needs_and_tests_what_is_marked() -> None:
    assert all((ROOT / name).exists() for name in installation.SOURCES)
    marked = [p for p in (ROOT / "tests").rglob("test_*.py") if "pytest.mark.gpu" in p.read_text(encoding="utf-8")]
    assert {str(path.relative_to(ROOT)) for path in marked if path != Path(__file__)} == set(check.GPU_TESTS)


def test_torch_is_all_that_the_measured_code_needs() -> None:
    """A lent machine lacks packages that only readers of plans need; it has what torch and transformers bring."""
    code = """
import sys

sys.modules.update(jsonschema=None)
import torch, fx_partition, benchmarks.gpu.check
from benchmarks.gpu.product import TINY, example, llama

model, x = llama(TINY, 2, "fp8"), example(TINY, 4)
plan = fx_partition.plan(model, x, cache_bytes="64KiB")
assert plan.num_partitions > 1 and fx_partition.simulate(model, x, plan=plan, device="H200").stages
assert torch.equal(fx_partition.split(model, x, plan=plan)(x), model(x))
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.slow
def test_a_copy_is_installed_without_an_index(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    assert installation.install(tmp_path) == str(tmp_path / "fx_partition" / "__init__.py")


def test_the_driver_is_what_proc_says_or_unknown() -> None:
    assert re.fullmatch(r"\?|\d[\d.]*", command.driver_version())
