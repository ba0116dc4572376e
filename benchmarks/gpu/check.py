"""Check that the package is right on a GPU: install it, run the tests marked gpu, and look for results that come early.

    python -m benchmarks.gpu.check

The tree is installed without an index into a folder of its own, and the tests run on that copy. The checks after it let
every stage sleep on the GPU before and after its work (`torch.cuda._sleep`), so that a result that is read without
waiting is wrong every time. Stages run eagerly there: the checks are of the waits, and of the devices of the results.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import fx_partition
from fx_partition.backends.lowering import torch_internals

from .command import begin, parser_of
from .installation import ROOT, install, run

GPU_TESTS = (
    "tests/backends/cuda/test_cuda_gpu.py",
    "tests/backends/measure/test_peak_allocation.py",
    "tests/backends/weights/test_load_stage_weights.py",
)
WIDTH = 256
CALLS = 12
CYCLES = 1_000_000  # half a millisecond of an H200


def gpu_tests(folder: Path) -> dict[str, Any]:
    """Run the tests marked gpu on the installed copy.

    Raises:
        RuntimeError: one failed; the message has the end of pytest's report.
    """
    tests = [str(ROOT / path) for path in GPU_TESTS]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", *tests]
    with tempfile.TemporaryDirectory() as empty:  # the current folder comes first on the path, before the copy
        said = run(command, folder, cwd=empty)
    return {"pytest": said.strip().splitlines()[-1]}


@contextlib.contextmanager
def late_stages() -> Iterator[None]:
    """Let stages run as they are written, and sleep on the current GPU before and after."""

    def compile_late(gm: Any, inputs: Any, config_patches: Any = None) -> Callable[..., Any]:
        def late(*arguments: Any) -> Any:
            torch.cuda._sleep(CYCLES)
            results = gm(*arguments)
            torch.cuda._sleep(CYCLES)
            return results

        return late

    torch.compiler.reset()
    with patch.object(torch_internals, "compile_fx", compile_late):
        yield
    torch.compiler.reset()


class Layers(nn.Module):
    """Two layers on one device, and what is added to their result."""

    def __init__(self, device: str, form: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        weights = [torch.randn(WIDTH, WIDTH) / WIDTH**0.5 for _ in range(2)]
        self.weights = nn.ParameterList(weight.to(device) for weight in weights)
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for weight in self.weights:
            y = torch.relu(y @ weight)
        return y if self.form is None else y + self.form(x, y)


FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "text": lambda x, y: torch.ones(8, WIDTH, device="cuda:0"),
    "text without an index": lambda x, y: torch.ones(8, WIDTH, device="cuda"),
    "number": lambda x, y: torch.ones(8, WIDTH, device=0),
    "to text": lambda x, y: torch.ones(8, WIDTH).to("cuda:0"),
    "cuda": lambda x, y: torch.ones(8, WIDTH).cuda(),
    "new_ones": lambda x, y: x.new_ones(8, WIDTH),
    "round trip": lambda x, y: y.cpu().cuda(),
    "value on the CPU": lambda x, y: torch.tensor(2.0).expand(8, WIDTH).to(y.device),
}


def places() -> list[list[str]]:
    """Return placements of two stages: on one GPU by two names, and on two where there are two."""
    found = [["cuda:0"], ["cuda", "cuda:0"]]
    return [*found, ["cuda:0", "cuda:1"], ["cuda:1", "cuda:0"]] if torch.cuda.device_count() > 1 else found


def to_host(devices: list[str]) -> dict[str, Any]:
    """Run a model of the CPU on stages of GPUs and read each result at once.

    Raises:
        RuntimeError: a result was not there when it was returned.
    """
    model = Layers("cpu")
    with late_stages(), torch.no_grad():
        call = torch.compile(model, backend="l2partition", options={"devices": devices})
        early = []
        for i in range(CALLS):
            x = torch.randn(8, WIDTH)
            right = model(x)
            if not torch.allclose(call(x), right, rtol=1e-3, atol=1e-3):
                early.append(i)
    if early:
        raise RuntimeError(f"results of calls {early} of {CALLS} were read before they were there, or are wrong")
    return {"calls": CALLS}


def placement(form: Callable[[Tensor, Tensor], Tensor], devices: list[str], *, streamed: bool) -> dict[str, Any]:
    """Run a model of cuda:0 that makes a tensor in its last stage; by `pipeline` if ``streamed``.

    Raises:
        RuntimeError: a result is wrong, or not on the device on which eager mode has it.
    """
    model, x = Layers("cuda:0", form), torch.randn(8, WIDTH).to("cuda:0")
    with torch.no_grad():
        right = model(x)
        with late_stages(), contextlib.ExitStack() as stack:
            if streamed:
                call: Any = stack.enter_context(fx_partition.pipeline(model, x, devices=devices, l2_persistence=False))
            else:
                call = torch.compile(model, backend="l2partition", options={"devices": devices})
            for _ in range(4):
                found = call(x)
                if found.device != right.device:
                    raise RuntimeError(f"the result is on {found.device}, and eager mode has it on {right.device}")
                if not torch.allclose(found.cpu(), right.cpu(), rtol=1e-3, atol=1e-3):
                    raise RuntimeError("the result is wrong")
    return {"calls": 4}


def main(argv: Sequence[str] | None = None) -> int:
    parser = parser_of("check", __doc__ or "")
    options = parser.parse_args(argv)
    results = begin("check", options)
    if results is None:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder)
        if results.section("install", lambda: {"imported": install(site)}) is not None and not options.dry_run:
            results.section("tests marked gpu", lambda: gpu_tests(site))
    for devices in (["cuda:0"], ["cuda:0", "cuda:0"], ["cuda:0", "cpu"], ["cpu", "cuda:0"]):
        results.section(f"to the host, {devices}", partial(to_host, devices))
    for name, form in FORMS.items():
        for devices in places():
            for streamed in (False, True):
                how = "pipeline" if streamed else "at once"
                results.section(f"{name}, {devices}, {how}", partial(placement, form, devices, streamed=streamed))
    failed = len(results.failures)
    return results.finish(lambda: f"{failed} checks failed" if failed else "every check passed")


if __name__ == "__main__":
    sys.exit(main())
