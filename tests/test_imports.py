"""The floors of the house: each room imports those below it, nothing goes in a circle, private names have few users."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import fx_partition

ROOT = Path(fx_partition.__file__).parent

#: From the ground up. A room may import itself and what is before it; rooms on one line may not import one another.
FLOORS = (
    ("common",),
    ("hardware", "engines"),
    ("passes/capture",),
    ("passes/workspace",),
    ("passes/footprint",),
    ("passes/constraints",),
    ("passes/inductor",),
    ("passes/partitioner",),
    ("passes/ordering",),
    ("passes/timing",),
    ("passes/slicing",),
    ("passes/plan",),
    ("passes/split",),
    ("passes/verify",),
    ("passes/batching",),
    ("passes",),
    ("report",),
    ("fit",),
    ("backends/devices",),
    ("backends/options", "backends/weights"),
    ("backends/lowering",),
    ("backends/measure", "backends/streaming", "backends/process_group", "backends/inline"),
    ("backends/microbatch", "backends/threads", "backends/cuda"),
    ("backends/ranks", "backends/training"),
    ("backends/dynamo",),
    ("backends", "simulator"),
    ("",),  # the package and its command line
)
#: Arrows that go up, or around in a circle, all the same: (from, to) and why.
EXCEPTIONS: Mapping[tuple[str, str], str] = {}

#: The modules that may use private names of torch and sympy, and which; None: any.
PRIVATE: Mapping[str, set[str] | None] = {
    "passes/capture/fake_tensors": None,
    "passes/capture/operators": None,
    "passes/capture/export_tracer": None,
    "backends/devices/cuda_driver": {"_C", "_cuda_clearCublasWorkspaces"},
    "backends/lowering/torch_internals": None,
    "backends/lowering/stage_key": {"_base", "_cdata", "_is_view"},
    "backends/threads/portable_key": {"_C"},
    "backends/weights/device_copies": {"_version"},
    "passes/capture/block_call": {"_getframe"},
    "passes/capture/block_template": {"_target_to_str"},
    "passes/capture/module_members": {"_buffers", "_non_persistent_buffers_set"},
    "passes/capture/repeated_blocks": {"_buffers", "_modules", "_non_persistent_buffers_set", "_parameters"},
    "passes/plan/serialization": {"_assumptions_orig"},
}
#: No module of these is private in fact: torch's own documentation tells to import them.
ACCEPTED = {"torch.utils._pytree", "torch.utils._python_dispatch"}
#: Names with an underscore that are public: of named tuples, and of operators behind ``aten``.
PUBLIC = {"_replace", "_asdict", "_fields", "_make"}


def _files() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py"))


def _name(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix()


def _imported(path: Path) -> set[str]:
    """The files of the package that a file imports, wherever in it, as paths without their ending."""
    package = ("fx_partition", *path.relative_to(ROOT).parts[:-1])
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            stem = base + (node.module.split(".") if node.module else [])
            names = [[*stem, alias.name] for alias in node.names]
        else:
            continue
        for parts in names:
            if parts[0] == "fx_partition":
                found |= set(_file_of(parts[1:]))
    return found - {_name(path)}


def _file_of(parts: list[str]) -> Iterator[str]:
    """The file that ``a.b.name`` is imported from: a module, or the ``__init__`` of a folder."""
    for end in (len(parts), len(parts) - 1):
        place = "/".join(parts[:end])
        if end and (ROOT / f"{place}.py").exists():
            yield place
            return
        if (ROOT / place / "__init__.py").exists() and place:
            yield f"{place}/__init__"
            return


def _room(name: str) -> str:
    return name.rpartition("/")[0]


@functools.cache
def imports() -> Mapping[str, set[str]]:
    """What each file imports; read by the tests and not when they are collected, which each worker does."""
    return {_name(path): _imported(path) for path in _files()}


ROOMS = {room for floor in FLOORS for room in floor}
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}


def test_every_room_has_a_floor_and_says_what_it_is() -> None:
    assert {_room(name) for name in imports()} == ROOMS
    for room in ROOMS:
        text = ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text(encoding="utf-8")))
        assert text, room
        assert room in ("", "passes/verify") or ("In: " in text and "Out: " in text), room


def test_imports_go_down() -> None:
    up = {
        (name, other)
        for name, others in imports().items()
        for other in others
        if _room(name) != _room(other) and FLOOR[_room(name)] <= FLOOR[_room(other)]
    }
    assert up == {(name, other) for name, other in EXCEPTIONS if _room(name) != _room(other)}


def test_no_files_go_in_a_circle() -> None:
    """Files without imports are taken away, again and again; what is left imports itself in a circle."""
    assert {(name, other) for name, other in EXCEPTIONS if other not in imports()[name]} == set()
    left = {name: {o for o in others if (name, o) not in EXCEPTIONS} for name, others in imports().items()}
    while free := {name for name, others in left.items() if not others}:
        left = {name: others - free for name, others in left.items() if name not in free}
    assert left == {}


def _private_names(path: Path) -> set[str]:
    """The private names that a file takes of modules that are not the package's."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {part for alias in node.names for part in _private_part(alias.name)}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            for alias in node.names:
                found |= set(_private_part(f"{node.module}.{alias.name}"))
        elif isinstance(node, ast.Attribute) and _is_private(node.attr) and node.attr not in _own_names() | PUBLIC:
            holder = ast.unparse(node.value).split(".")
            if holder not in (["self"], ["cls"]) and "aten" not in holder:  # an operator is public, whatever its name
                found.add(node.attr)
    return found


def _private_part(name: str) -> Iterator[str]:
    if not name.startswith(("fx_partition", "__future__")) and not any(name.startswith(good) for good in ACCEPTED):
        yield from (part for part in name.split(".") if _is_private(part))


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@functools.cache
def _own_names() -> set[str]:
    """The private names that the package itself gives to attributes of its own objects and to its functions."""
    found: set[str] = set()
    for path in _files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.attr)
            elif isinstance(node, ast.ClassDef):
                found |= {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
    return found - {"_base", "_buffers", "_cdata", "_modules", "_parameters", "_schema", "_version"}


def test_private_names_have_few_users() -> None:
    used = {_name(path): names for path in _files() if (names := _private_names(path))}
    allowed = {name: used[name] if names is None else set(names) for name, names in PRIVATE.items()}
    assert used == allowed


@pytest.mark.parametrize(
    ("name", "imported"), [("cli", "passes/api"), ("passes/api", "passes/plan/plan"), ("__init__", "report/__init__")]
)
def test_the_check_sees_imports(name: str, imported: str) -> None:
    assert imported in imports()[name]
