"""The cache of compiled stages: what its names depend on, what it keeps and what it ignores; nothing is compiled."""

import contextlib
import operator
import threading

import pytest
import sympy
import torch
import torch._inductor.config
from torch import nn

from fx_partition import PartitionError
from fx_partition.backends.lowering.stage_key import stage_key
from fx_partition.backends.streaming.program import make_program
from fx_partition.backends.threads import aoti_compile
from fx_partition.backends.threads.code_cache import NativeCode, entry_of
from fx_partition.backends.threads.portable_key import NotPortableError, to_portable
from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.capture.fake_tensors import facts_of, shape_env_of
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.plan.make_plan import make_plan
from fx_partition.passes.plan.request import Request
from fx_partition.passes.split.extract import cut, planned_graph

WIDTH = 8


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    monkeypatch.setenv("FX_PARTITION_CACHE_DIR", str(tmp_path))
    return tmp_path


def layers(eps=1e-5):
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH, eps=eps), nn.ReLU()).eval()


def rows(largest=64):
    return ({0: torch.export.Dim("rows", min=2, max=largest)},)


def step_of(model, x, shapes=None):
    """The one stage of a model."""
    captured = capture(model, x, shapes)
    memory = analyze_memory(captured)
    plan = make_plan(captured, memory, Request.check("1GiB", ("cores:0",)))
    captured = planned_graph(captured, plan)
    (step,) = make_program(captured, cut(captured, plan), memory.written).steps
    return step


def place(model=None, x=None, shapes=None, **options):
    """Return where the code cache would keep it."""
    step = step_of(model or layers(), torch.randn(4, WIDTH) if x is None else x, shapes)
    entry = entry_of(step, {"cpp.threads": 1, **options})
    return entry and entry.path


def test_a_stage_with_none_among_its_arguments_has_a_place():
    assert place(nn.LayerNorm(WIDTH, elementwise_affine=False).eval()) is not None


def test_names_weights_and_where_it_was_traced_do_not_count():
    class Renamed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)

        def forward(self, other):
            scaled = self.second(self.first(other))
            return torch.relu(scaled)

    assert place() == place(Renamed().eval()) is not None


@contextlib.contextmanager
def matmul_precision(precision):
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = precision
    try:
        yield
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


@contextlib.contextmanager
def num_threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


SURROUNDINGS = {
    "a setting of inductor": lambda: torch._inductor.config.patch("cpp.simdlen", 1),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "precision": lambda: matmul_precision("bf16"),
    "threads of the process": lambda: num_threads(torch.get_num_threads() + 1),
}


@pytest.mark.parametrize("name", list(SURROUNDINGS))
def test_what_surrounds_a_compile_counts(name):
    step = step_of(layers(), torch.randn(4, WIDTH))
    before = entry_of(step, {}).path
    with SURROUNDINGS[name]():
        assert entry_of(step, {}).path != before
    assert entry_of(step, {}).path == before


OTHERS = {
    "a constant argument": {"model": layers(eps=1e-6)},
    "dtype": {"model": layers().double(), "x": torch.randn(4, WIDTH, dtype=torch.float64)},
    "shape": {"x": torch.randn(5, WIDTH)},
    "strides": {"x": torch.randn(WIDTH, 4).t()},
    "a symbolic size": {"shapes": rows()},
    "threads": {"cpp.threads": 2},
    "an option": {"cpp.simdlen": 1},
}


@pytest.mark.parametrize("name", list(OTHERS))
def test_a_change_has_another_entry(name):
    found = place(**OTHERS[name])
    assert found is not None and found != place()


def test_what_is_known_of_symbolic_sizes_counts():
    base = place(shapes=rows())
    assert base == place(shapes=rows())
    assert base != place(shapes=rows(largest=65))
    assert base != place(x=torch.randn(6, WIDTH), shapes=rows())  # the size that compiling takes for likely


def ours(x):
    return x + 1


def calls(target, module=None):
    """A graph of one call."""
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    graph.output((graph.call_module(target, (x,)) if module else graph.call_function(target, (x,)),))
    root = nn.Module()
    if module:
        root.add_module(target, module)
    return torch.fx.GraphModule(root, graph)


@pytest.fixture
def composite():
    library = torch.library.Library("fx_partition_kept", "FRAGMENT")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x * 2, "CompositeImplicitAutograd")
    yield torch.ops.fx_partition_kept.twice.default
    library._destroy()


@torch.library.custom_op("fx_partition_kept::opaque", mutates_args=())
def opaque(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@opaque.register_fake
def _(x):
    return torch.empty_like(x)


def has_name(gm):
    try:
        to_portable(stage_key(gm, [], []))
    except NotPortableError:
        return False
    return True


def test_code_that_may_change_under_its_name_has_none(composite):
    assert has_name(calls(torch.relu)) and has_name(calls(operator.neg)) and has_name(calls(nn.functional.gelu))
    assert has_name(calls(torch.ops.aten.relu.default))
    assert has_name(calls(torch.ops.fx_partition_kept.opaque.default))  # called, and not compiled
    assert not has_name(calls(ours))
    assert not has_name(calls("layer", nn.Linear(WIDTH, WIDTH)))
    assert not has_name(calls(composite))


def test_stages_with_functions_as_options_are_not_cached():
    assert place(post_grad_custom_post_pass=lambda graph: None) is None
    with torch._inductor.config.patch("joint_custom_pre_pass", lambda graph: None):
        assert place() is None


def test_caches_that_are_off_are_off():
    with torch._inductor.config.patch("force_disable_caches", True):
        assert place() is None
    assert place(force_disable_caches=True) is None


def keep(entry, contents=b"code", reason=""):
    made = entry.path.with_name("made.so")
    made.write_bytes(contents)
    entry.write(NativeCode(str(made), reason))


def test_what_is_cached_is_read_back(directory):
    step = step_of(layers(), torch.randn(4, WIDTH))
    assert entry_of(step, {}).read() is None
    keep(entry_of(step, {}), b"code", "it needs Python")
    found = entry_of(step, {}).read()
    assert found.reason == "it needs Python"
    with open(found.path, "rb") as file:
        assert file.read() == b"code"


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-1])


def with_other_byte(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut_short, with_other_byte, lambda path: path.unlink()])
@pytest.mark.parametrize("suffix", [".so", ".json"])
def test_a_damaged_entry_is_none_and_may_be_written_again(directory, damage, suffix):
    step = step_of(layers(), torch.randn(4, WIDTH))
    keep(entry_of(step, {}))
    (path,) = directory.glob(f"stage-*{suffix}")
    damage(path)
    assert entry_of(step, {}).read() is None
    keep(entry_of(step, {}))
    assert entry_of(step, {}).read() is not None


def refuse(*_):
    raise OSError("disk full")


def test_an_entry_that_cannot_be_written_is_not_an_error(directory, monkeypatch):
    entry = entry_of(step_of(layers(), torch.randn(4, WIDTH)), {})
    entry.write(NativeCode(str(directory / "does not exist.so"), ""))
    assert entry.read() is None

    monkeypatch.setattr("fx_partition.hardware.cache_dir.os.replace", refuse)
    keep(entry)
    assert entry.read() is None
    assert not list(directory.glob(".stage*"))


def test_a_place_that_cannot_be_used_is_found_before_a_compile(directory, monkeypatch):
    step = step_of(layers(), torch.randn(4, WIDTH))
    monkeypatch.setattr(aoti_compile, "compile_native", lambda *_: pytest.fail("compiled"))
    with monkeypatch.context() as patch:
        patch.setattr("fx_partition.hardware.cache_dir.os.fsync", refuse)
        with pytest.raises(PartitionError, match=r"disk full.*CACHE_DIR"):
            aoti_compile.compile_step(step, 1, {}, {})
    directory.chmod(0o777)
    with pytest.raises(PartitionError, match="others may write"):
        aoti_compile.compile_step(step, 1, {}, {})


DECISIONS = {
    "a multiple": lambda s: sympy.Eq(torch.utils._sympy.functions.Mod(s, 4), 0),
    "a bound": lambda s: sympy.Lt(s, 40),
    "one size": lambda s: sympy.Eq(s, 4),
    "a quotient": lambda s: sympy.Ne(torch.utils._sympy.functions.FloorDiv(s + 3, 4), 2),
}


@pytest.mark.parametrize("name", list(DECISIONS))
def test_a_reader_decides_about_sizes_what_compiling_decided(name):
    def fresh():
        step = step_of(layers(), torch.randn(4, WIDTH), rows())
        env = shape_env_of(step.fake_inputs)
        (symbol,) = (s for s in env.var_to_range if str(s).startswith("s"))
        return step, env, symbol

    step, env, symbol = fresh()
    before, entry = facts_of(env), entry_of(step, {})
    env.evaluate_expr(DECISIONS[name](symbol))  # as compiling does
    assert facts_of(env) != before
    keep(entry)
    step, other, _ = fresh()
    assert facts_of(other) == before
    assert entry_of(step, {}).read() is not None
    assert to_portable(facts_of(other)) == to_portable(facts_of(env))

    step, other, symbol = fresh()
    entry = entry_of(step, {})
    other.evaluate_expr(sympy.Gt(symbol, 3))
    assert entry.read() is None  # more is known than after compiling


def test_an_entry_is_whole_while_others_write_it():
    step = step_of(layers(), torch.randn(4, WIDTH))
    entries = [entry_of(step, {}) for _ in range(5)]
    made = []
    for number, entry in enumerate(entries):
        path = entry.path.with_name(f"made{number}.so")
        path.write_bytes(bytes([number]) * 100_000)
        made.append(NativeCode(str(path), str(number)))
    entries[0].write(made[0])
    done = threading.Event()
    failures, reads = [], []

    def read():
        try:
            while not done.is_set():
                found = entries[0].read()
                if found is None:
                    failures.append("torn")
                    continue
                with open(found.path, "rb") as file:
                    if file.read() != bytes([int(found.reason)]) * 100_000:
                        failures.append("mixed")
                reads.append(found.reason)
        except BaseException as error:
            failures.append(error)

    def write(number):
        for _ in range(20):
            entries[number].write(made[number])

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(number,)) for number in range(1, 5)]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert not failures and reads
