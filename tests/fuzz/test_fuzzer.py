"""The fuzzer finds faults that are put in, makes them small, and prints them as scripts that reproduce them."""

import subprocess
import sys
from dataclasses import replace
from unittest import mock

import pytest

from fx_partition.passes.constraints import dependencies

from .check import check
from .generate import depends, generate
from .kinds import DISABLED, KINDS
from .observe import differences, run
from .processes import try_in_processes
from .program import Program, Settings, Statement
from .script import script
from .shrink import shrink


def program(*lines, results=("v9",), inputs=("rand(n, 8, seed=seed)",), **settings):
    """A program by hand."""
    statements = tuple(Statement(line, "by hand") for line in lines)
    members = {
        "b1": 'self.register_buffer("b1", rand(5, 8, seed=1))',
        "w1": "self.w1 = nn.Parameter(rand(8, 8, seed=2))",
    }
    named = {f"x{i}": text for i, text in enumerate(inputs)}
    settings.setdefault("options", {"cache_bytes": 1})
    whole = Program(0, members, named, (), statements, tuple(results), "tuple", Settings(**settings))
    return whole.with_statements(whole.statements)


def seen(of):
    model = of.build()
    return run(model, model, of)


def test_a_seed_is_a_program():
    first, again, other = generate(5), generate(5), generate(6)
    assert first.model_text() == again.model_text() != other.model_text()
    assert first.settings == again.settings
    assert not differences(seen(first), seen(again))


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - DISABLED.keys()))
def test_each_kind_is_written(kind):
    assert any(kind in generate(seed, (kind, "linear", "elementwise", "average", "mask")).kinds for seed in range(40))


def test_programs_whose_results_do_not_change_are_left_out():
    assert depends(program("v9 = F.linear(x0, self.w1)"))
    assert not depends(program("v9 = F.linear(torch.ones(5, 8), self.w1)"))
    assert not depends(program("v8 = F.linear(x0, self.w1)", "v9 = x0 * 2"))


@pytest.mark.parametrize(
    ("line", "other", "what"),
    [
        ("v9 = x0 * 2", "v9 = x0 * 2.0000002", "values"),
        ("v9 = x0 * 2", "v9 = (x0 * 2).t().contiguous().t()", "strides"),
        ("v9 = x0 * 2", "v9 = (x0 * 2).double()", "dtype"),
        ("v9 = x0 * 2", "v9 = (x0 * 2)[:2]", "shape"),
        ("v9 = x0.view_as(x0)", "v9 = x0.clone()", "alias"),
        ("v9 = self.b1.add_(x0)", "v9 = self.b1 + x0", "values"),
        ("v9 = F.dropout(x0, 0.5)", "v9 = F.dropout(x0, 0.5)\ntorch.rand(1)", "values"),
    ],
)
def test_differences_are_seen(line, other, what):
    assert what in {found.what for found in differences(seen(program(line)), seen(program(other)))}
    assert not differences(seen(program(line)), seen(program(line)))


@pytest.fixture
def broken():
    """A planner that lets random numbers be drawn in any order."""

    def by_operands_alone(memory, nodes, span):
        index = {memory.steps[t].node: t for t in span}
        names = {t: [source.name for source in nodes[memory.steps[t].node].all_input_nodes] for t in span}
        return {t: sorted({index[name] for name in names[t] if name in index}) for t in span}

    with mock.patch.object(dependencies, "step_predecessors", by_operands_alone):
        yield


def test_a_fault_is_found_made_small_and_printed(broken, tmp_path):
    lines = [
        "v1 = F.dropout(x0, 0.5)",
        "v2 = v1 * self.b1",
        "v3 = torch.relu(x0)",
        "v4 = F.linear(v3, self.w1)",
        "v5 = F.dropout(v3, 0.5)",
        "v9 = v5 + v2 + v4",
    ]
    drawn = (replace(program(*lines, shuffled=True, options={"cache_bytes": 1 << 30}), seed=seed) for seed in range(40))
    found, verdict = next((p, v) for p in drawn for v in check(p, ("backend",)) if v.fault)
    assert "values of result" in verdict.signature
    small = shrink(found, verdict)
    assert len(small.statements) <= 4
    path = tmp_path / "small.py"
    path.write_text(script(small, "backend", verdict.fault), encoding="utf-8")
    shown = subprocess.run([sys.executable, path], capture_output=True, text=True, check=True).stdout.splitlines()
    eager, ours = ([line.split(" ", 1)[1] for line in shown if line.startswith(name)] for name in ("eager", "ours"))
    assert len(eager) == len(ours) >= 2 and eager != ours


def test_what_torch_itself_makes_of_a_program_is_not_a_fault():
    # torch.fx.symbolic_trace takes `+=` of a variable as an addition
    (verdict,) = check(program("v1 = x0 * 2", "v2 = v1.view_as(v1)", "v1 += 1", "v9 = v2 * 1"), ("symbolic_trace",))
    assert verdict.torch_differs and not verdict.fault


def test_what_torch_refuses_is_not_a_fault():
    (verdict,) = check(program("v9 = x0 * 2 if x0.sum() > 0 else x0"), ("export",))
    assert verdict.refused and not verdict.fault


def test_a_program_that_ends_its_process_is_a_failure_and_ends_no_other():
    tasks = [(0, ("symbolic_trace",), ()), (1, ("no road",), ()), (2, ("symbolic_trace",), ())]
    found = dict(try_in_processes(tasks, 1))
    assert found.keys() == {0, 1, 2}
    assert [verdict.fault for verdict in found[1]] == ["the process ended with exit code 1"]
    assert not any(verdict.fault for seed in (0, 2) for verdict in found[seed])
