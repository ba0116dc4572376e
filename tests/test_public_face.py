"""The public face: an import without compilers, the public names, and the arguments of the verbs."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch

import fx_partition


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, timeout=300)
    return done.stdout


def test_an_import_brings_no_compiler_and_no_warning() -> None:
    compilers = ("torch._dynamo", "torch._inductor")
    code = f"import sys, fx_partition; print([name for name in {compilers} if name in sys.modules])"
    assert run("-W", "error", "-c", code).strip() == "[]"


@pytest.mark.parametrize("name", fx_partition.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(fx_partition, name) is not None


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'plans'"):
        fx_partition.plans  # type: ignore[attr-defined]  # noqa: B018


def test_the_version_is_that_of_the_package() -> None:
    assert fx_partition.__version__ == version("fx-partition")
    assert run("-m", "fx_partition", "--version").strip() == f"fx-partition {fx_partition.__version__}"


@pytest.mark.parametrize("name", ["plan", "split", "pipeline", "to_pipeline_stages", "simulate"])
def test_verbs_take_a_model_its_inputs_and_a_budget_by_name(name: str) -> None:
    parameters = list(inspect.signature(getattr(fx_partition, name)).parameters.values())
    assert [p.name for p in parameters[:3]] == ["model", "example_inputs", "cache_bytes"]
    plain, by_name = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    assert [p.kind for p in parameters[:3]] == [plain, plain, by_name]


@pytest.mark.parametrize("name", ["plan", "split", "pipeline"])
def test_a_budget_in_the_place_of_the_inputs_is_named(name: str) -> None:
    with pytest.raises(fx_partition.PartitionError, match="give a budget by name, cache_bytes='1MiB'"):
        getattr(fx_partition, name)(torch.nn.Linear(4, 4), "1MiB", cache_bytes="1MiB")


@pytest.mark.parametrize("name", ["split", "simulate"])
@pytest.mark.parametrize("more", [{"cache_bytes": "1MiB"}, {"order": "trace"}])
def test_a_plan_and_a_budget_or_options_are_not_given_together(name: str, more: dict[str, str]) -> None:
    model, x = torch.nn.Linear(4, 4), torch.randn(1, 4)
    made = fx_partition.plan(model, x, cache_bytes="1MiB")
    with pytest.raises(fx_partition.PartitionError, match=f"{name} takes either cache_bytes="):
        getattr(fx_partition, name)(model, x, plan=made, **more)
