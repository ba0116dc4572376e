"""Weights are read from a checkpoint when a stage first needs them."""

from __future__ import annotations

import copy
import functools
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from zoo import FAMILIES

import fx_partition
from fx_partition import PartitionError, PartitionWarning
from fx_partition.backends.l2partition import l2partition
from fx_partition.backends.weights import lazy_weights
from fx_partition.backends.weights import load as weights_load
from fx_partition.backends.weights.checkpoint import open_checkpoint
from fx_partition.backends.weights.lazy_weights import (
    fingerprint,
    is_lazy,
    make_lazy,
    materialize,
    materialize_on_first_call,
)

WIDTH = 64  # a linear layer is 16.25 KiB


class Net(nn.Module):
    """An embedding tied to the head, layers, a batch norm, and a table that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm = nn.BatchNorm1d(WIDTH)
        self.head = nn.Linear(WIDTH, 100, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.arange(WIDTH) / WIDTH, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) * self.scale
        for layer in self.layers:
            x = torch.relu(layer(x)) + x
        return self.head(self.norm(x))


IDS = torch.arange(8)
OTHERS = {"scale": torch.arange(WIDTH) / WIDTH}
AT_ONCE = {"scale", "norm.num_batches_tracked"}  # single numbers are read when the model is bound


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    net = Net().eval()
    net.norm.running_mean.uniform_()
    return net


def on_meta(build: Callable[[], nn.Module] = Net) -> Any:
    with torch.device("meta"):
        return build().eval()


def fake() -> Any:
    with FakeTensorMode():
        return Net().eval()


def untied(net: nn.Module) -> dict[str, Tensor]:
    """The model's state as safetensors takes it: each tensor under its first name."""
    seen: set[int] = set()
    state = net.state_dict()
    first = [n for n, t in state.items() if t.data_ptr() not in seen and not seen.add(t.data_ptr())]  # type: ignore[func-returns-value]
    return {name: state[name].contiguous() for name in first}


def sharded(net: nn.Module, directory: Path) -> Path:
    state = untied(net)
    weight_map = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(state)}
    for file in set(weight_map.values()):
        save_file({n: t for n, t in state.items() if weight_map[n] == file}, directory / file)
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def save(net: nn.Module, form: str, directory: Path) -> Any:
    if form == "file":
        save_file(untied(net), directory / "model.safetensors", metadata={"format": "pt"})
        return str(directory / "model.safetensors")
    if form == "directory of one":
        save(net, "file", directory)
        return directory
    if form in ("index", "directory"):
        index = sharded(net, directory)
        return index if form == "index" else directory
    torch.save(net.state_dict(), directory / "model.pt")
    return directory / "model.pt" if form == "torch" else torch.load(directory / "model.pt", mmap=True)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def lazy_names(model: nn.Module) -> set[str]:
    return {name for name, tensor in tensors(model).items() if is_lazy(tensor)}


def same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        a.dtype == b.dtype and a.stride() == b.stride() and a.requires_grad == b.requires_grad and torch.equal(a, b)
        for a, b in ((found[name], expected[name]) for name in expected)
    )


def mapped(path: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(path))


@pytest.mark.parametrize("build", [on_meta, fake])
@pytest.mark.parametrize("form", ["file", "directory of one", "index", "directory", "torch", "mapping"])
def test_each_form_of_checkpoint_is_read_when_materialized(net: Net, tmp_path: Path, form: str, build: Any) -> None:
    model = build()
    fx_partition.load_stage_weights(model, save(net, form, tmp_path), others=OTHERS)
    assert lazy_names(model) == tensors(net).keys() - AT_ONCE
    assert model.head.weight is model.embed.weight
    assert isinstance(model.embed.weight, nn.Parameter) and not isinstance(model.scale, nn.Parameter)
    assert "scale" not in model.state_dict()
    assert torch.equal(model(IDS), net(IDS))  # what is not read yet can be read
    known, versions = tensors(model), {name: tensor._version for name, tensor in tensors(model).items()}
    materialize(model.layers[0].parameters())
    assert lazy_names(model) == tensors(net).keys() - AT_ONCE - {"layers.0.weight", "layers.0.bias"}
    materialize([*known.values(), 3, None])
    assert not lazy_names(model) and same(tensors(model), tensors(net))
    assert all(tensor is known[name] and tensor._version == versions[name] for name, tensor in tensors(model).items())


def test_files_are_let_go_once_all_is_read(net: Net, tmp_path: Path) -> None:
    model, path = on_meta(), sharded(net, tmp_path)
    fx_partition.load_stage_weights(model, path, others=OTHERS)
    assert mapped(tmp_path) == 2
    materialize(tensors(model).values())
    assert mapped(tmp_path) == 0


def compiled_logits(model: nn.Module, **options: Any) -> Tensor:
    torch._dynamo.reset()
    with torch.no_grad():
        result: Tensor = torch.compile(model, backend="l2partition", options=options)(IDS)
    return result


@pytest.mark.parametrize(
    "options", [{"cache_bytes": "40KiB"}, {"cache_bytes": "1MiB"}, {"inductor": {"freezing": True}}]
)
def test_compiled_as_if_loaded_the_usual_way(net: Net, tmp_path: Path, options: dict[str, Any]) -> None:
    model = on_meta()
    fx_partition.load_stage_weights(model, save(net, "file", tmp_path), others=OTHERS)
    found = compiled_logits(model, **options)
    assert not lazy_names(model) and mapped(tmp_path) == 0
    assert torch.equal(found, compiled_logits(net, **options))
    assert same(model.state_dict(), net.state_dict())


def test_reading_weights_is_no_reason_to_compile_again(net: Net, tmp_path: Path) -> None:
    model = on_meta()
    fx_partition.load_stage_weights(model, save(net, "file", tmp_path), others=OTHERS)
    counter = CompileCounterWithBackend(lambda gm, inputs: l2partition(gm, inputs, options={"cache_bytes": "40KiB"}))
    run = torch.compile(model, backend=counter)
    with torch.no_grad():
        assert torch.equal(run(IDS), run(IDS))
    assert counter.frame_count == 1


@pytest.mark.parametrize("options", [{}, {"cache_bytes": "40KiB"}])
def test_code_of_one_model_reads_the_weights_of_another(tmp_path: Path, options: dict[str, Any]) -> None:
    count = CompileCounterWithBackend(functools.partial(l2partition, options=options))
    for folder in ("one", "two"):
        usual, model = Net().eval(), on_meta()
        (tmp_path / folder).mkdir()
        fx_partition.load_stage_weights(model, save(usual, "file", tmp_path / folder), others=OTHERS)
        run = torch.compile(model, backend=count)
        with torch.no_grad():
            for _ in range(2):
                torch.testing.assert_close(run(IDS), usual(IDS))
        assert not lazy_names(model)
    assert count.frame_count == 1


@pytest.mark.parametrize("options", [{}, {"cache_bytes": "40KiB"}])
def test_code_of_a_model_loaded_the_usual_way_reads_the_weights_of_another(
    net: Net, tmp_path: Path, options: dict[str, Any]
) -> None:
    count = CompileCounterWithBackend(functools.partial(l2partition, options=options))
    model = on_meta()
    fx_partition.load_stage_weights(model, save(net, "file", tmp_path), others=OTHERS)
    with torch.no_grad():
        for each in (net, model):
            torch.testing.assert_close(torch.compile(each, backend=count)(IDS), net(IDS))
    assert count.frame_count == 1 and not lazy_names(model)


def test_a_weight_at_the_address_of_one_that_is_gone_is_read() -> None:
    source = torch.arange(4.0)
    run = materialize_on_first_call(lambda weight: None, [0])
    for _ in range(9):
        weight = make_lazy(source, source, source.device, ours=False)
        assert is_lazy(weight)
        run(weight)
        assert not is_lazy(weight)
        del weight


def test_trains_as_if_loaded_the_usual_way(net: Net, tmp_path: Path) -> None:
    model = on_meta()
    fx_partition.load_stage_weights(model, save(net, "torch", tmp_path), others=OTHERS)
    optimisers = [torch.optim.SGD(m.parameters(), 0.1) for m in (model, net)]  # one that knows lazy weights
    for trained, optimiser in zip((model, net), optimisers, strict=True):
        torch._dynamo.reset()
        run = torch.compile(trained, backend="l2partition", options={"cache_bytes": "40KiB"})
        for _ in range(2):
            optimiser.zero_grad()
            run(IDS).square().mean().backward()
            optimiser.step()
    assert same(tensors(model), tensors(net))


def test_a_plan_that_cannot_be_made_reads_nothing(net: Net, tmp_path: Path) -> None:
    model = on_meta()
    fx_partition.load_stage_weights(model, save(net, "file", tmp_path), others=OTHERS)
    with pytest.raises(Exception, match=r"oversize="), torch.no_grad():
        compiled_logits(model, cache_bytes="4KiB", oversize="error")
    assert len(lazy_names(model)) == len(tensors(net)) - len(AT_ONCE)


def test_a_split_model_reads_nothing_before_it_runs(net: Net, tmp_path: Path) -> None:
    model = on_meta()
    fx_partition.load_stage_weights(model, save(net, "file", tmp_path), others=OTHERS)
    with torch.no_grad():
        parts = fx_partition.split(model, IDS, cache_bytes="40KiB")
        assert parts.plan.num_partitions > 1
        assert lazy_names(model) == tensors(net).keys() - AT_ONCE and torch.equal(parts(IDS), net(IDS))


def test_a_pipeline_reads_the_weights_of_its_stages(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(3)))

    usual, model, x = build(), on_meta(build), torch.randn(4, WIDTH)
    save_file(untied(usual), tmp_path / "model.safetensors")
    fx_partition.load_stage_weights(model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # stages take turns on the one group of cores
        pipe = fx_partition.pipeline(model, x, cache_bytes="20KiB", devices=["cores:0"], on_shortage="wrap")
    with pipe:
        assert pipe.plan.num_partitions == 3 and not lazy_names(model) and mapped(tmp_path) == 0
        assert same(tensors(model), tensors(usual))
        assert torch.allclose(pipe(x), usual(x), atol=1e-6)


def test_what_is_missing_or_unlike_is_listed_and_nothing_changed(net: Net, tmp_path: Path) -> None:
    state = untied(net)
    del state["layers.1.bias"]
    state["layers.2.weight"] = state["layers.2.weight"][:3].clone()
    state["layers.3.bias"] = state["layers.3.bias"].half()
    save_file(state, tmp_path / "model.safetensors")
    model = on_meta()
    before = {name: id(tensor) for name, tensor in tensors(model).items()}
    with pytest.raises(PartitionError) as caught:
        fx_partition.load_stage_weights(model, tmp_path, others={"heads": torch.ones(1)})
    message = str(caught.value)
    assert "layers.1.bias is not in the checkpoint" in message and "scale is not in the checkpoint" in message
    assert "layers.2.weight is torch.float32 [64, 64] in the model and torch.float32 [3, 64]" in message
    assert "layers.3.bias is torch.float32 [64] in the model and torch.float16 [64]" in message
    assert "others names heads" in message and 'others={"name": tensor}' in message
    assert before == {name: id(tensor) for name, tensor in tensors(model).items()}
    assert all(tensor.is_meta for tensor in tensors(model).values())


def test_what_the_model_lacks_is_named_in_a_warning(net: Net) -> None:
    with pytest.warns(PartitionWarning, match="not loaded: adapter, more"):
        fx_partition.load_stage_weights(
            on_meta(), {**net.state_dict(), "more": torch.ones(1), "adapter": torch.ones(1)}, others=OTHERS
        )


def test_what_is_real_stays(net: Net) -> None:
    model = on_meta()
    model.norm, model.scale = nn.BatchNorm1d(WIDTH), torch.ones(WIDTH)
    kept = tensors(model.norm)
    fx_partition.load_stage_weights(model, net.state_dict())
    assert all(tensors(model.norm)[name] is tensor for name, tensor in kept.items()) and model.scale.sum() == WIDTH
    assert len(lazy_names(model)) == len(tensors(model)) - len(kept) - 1
    with pytest.warns(PartitionWarning, match="nothing is loaded"):
        fx_partition.load_stage_weights(net, {})


def test_weights_tied_in_one_of_model_and_checkpoint_alone(net: Net) -> None:
    state = net.state_dict()
    state["head.weight"] = state["embed.weight"] + 1
    with pytest.raises(PartitionError, match=r"embed\.weight, head\.weight are one tensor in the model, and differ in"):
        fx_partition.load_stage_weights(on_meta(), state, others=OTHERS)
    pair = {"0.weight": state["embed.weight"], "1.weight": state["embed.weight"]}
    model = on_meta(lambda: nn.Sequential(*(nn.Linear(WIDTH, 100, bias=False) for _ in range(2))))
    fx_partition.load_stage_weights(model, pair)
    with torch.no_grad():
        model[1].weight.zero_()
    assert torch.equal(model[0].weight, pair["0.weight"]) and model[0].weight.any()


def test_values_written_before_they_were_read_are_kept(net: Net, tmp_path: Path) -> None:
    model, path = on_meta(), save(net, "file", tmp_path)
    bits = Path(path).read_bytes()
    fx_partition.load_stage_weights(model, path, others=OTHERS)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model.layers[0].weight.add_(1)
    assert is_lazy(model.layers[0].weight) and not lazy_names(twin)
    materialize(model.parameters())
    assert torch.equal(model.layers[0].weight, net.layers[0].weight + 1)
    assert same(tensors(twin), tensors(net)) and Path(path).read_bytes() == bits


def test_what_was_moved_is_not_read_again(net: Net) -> None:
    model = on_meta()
    fx_partition.load_stage_weights(model, net.state_dict(), others=OTHERS)
    model.double()
    assert not lazy_names(model)
    materialize(model.parameters())
    assert same(tensors(model), tensors(net.double()))


def test_layouts_of_the_model_and_modules_with_references(tmp_path: Path) -> None:
    def build() -> nn.Module:
        conv = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
        return nn.ModuleDict({"conv": conv, "lstm": nn.LSTM(8, 8), "thin": nn.Linear(1, 3), "empty": nn.Linear(0, 3)})

    usual, model = build(), on_meta(build)
    save_file(untied(usual), tmp_path / "model.safetensors")
    fx_partition.load_stage_weights(model, tmp_path)
    assert not is_lazy(model["conv"].weight) and is_lazy(model["thin"].weight)
    materialize(model.parameters())
    assert same(tensors(model), tensors(usual))
    x = torch.randn(2, 1, 8)
    assert torch.equal(model["lstm"](x)[0], usual["lstm"](x)[0])


@pytest.mark.parametrize("given", [False, True])
def test_strides_are_the_models_as_load_state_dict_leaves_them(given: bool) -> None:
    state = {"weight": torch.randn(3, 4).t(), "repeated": torch.arange(4.0).expand(3, 4).contiguous()}

    def build() -> nn.Module:
        model = nn.Linear(3, 4, bias=False)
        model.register_buffer("repeated", torch.zeros(4).expand(3, 4))
        return model

    model = on_meta(build)
    fx_partition.load_stage_weights(model, {} if given else state, others=state if given else None)
    assert model.weight.stride() == (3, 1) and not lazy_names(model)
    assert all(torch.equal(found, state[name]) for name, found in tensors(model).items())
    with torch.no_grad():
        model.weight.zero_(), model.repeated.zero_()
    assert state["weight"].any() and state["repeated"].any()


def test_under_inference_mode(net: Net, tmp_path: Path) -> None:
    with torch.inference_mode():
        model = on_meta()
        fx_partition.load_stage_weights(model, save(net, "mapping", tmp_path), others=OTHERS)
        run = torch.compile(model, backend="l2partition", options={"cache_bytes": "40KiB"})
        assert torch.allclose(run(IDS), net(IDS), atol=1e-5)
        assert not lazy_names(model)
    assert not model.embed.weight.is_inference() and same(tensors(model), tensors(net))


def test_under_fake_tensor_mode_it_says_so(net: Net) -> None:
    with FakeTensorMode(), pytest.raises(PartitionError, match="outside of FakeTensorMode"):
        fx_partition.load_stage_weights(net, {})


def broken(path: Path, kind: str) -> tuple[Path, str]:
    """A checkpoint with a fault, and the words for it."""
    file = path / "model.safetensors"
    save_file({"weight": torch.ones(100)}, file)
    whole = file.read_bytes()
    if kind == "cut short":
        file.write_bytes(whole[:-4])
    elif kind == "header cut short":
        file.write_bytes(whole[:20])
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "no JSON":
        file.write_bytes(whole[:8] + b"x" * (len(whole) - 8))
    elif kind == "strange type":
        file.write_bytes(whole.replace(b'"F32"', b'"F4x"'))
    elif kind == "absent":
        return path / "weights.pt", "there is no checkpoint"
    elif kind == "several":
        save_file({"weight": torch.ones(100)}, path / "b.safetensors")
        return path, "name one, or an index"
    elif kind == "nothing there":
        file.unlink()
        return path, "name the file"
    elif kind in ("lost shard", "lost name"):
        index = path / "model.safetensors.index.json"
        weight_map = {"bias": "other.safetensors"} if kind == "lost shard" else {"bias": "model.safetensors"}
        index.write_text(json.dumps({"weight_map": weight_map}))
        return index, "do not exist: other" if kind == "lost shard" else "lack: bias"
    elif kind == "nested":
        torch.save({"model": {"weight": torch.ones(1)}, "step": 3}, path / "a.pt")
        return path / "a.pt", "'model', 'step' and is not a state_dict"
    elif kind == "old":
        torch.save({"weight": torch.ones(1)}, path / "a.pt", _use_new_zipfile_serialization=False)
        return path / "a.pt", "cannot be mapped"
    return file, {"no JSON": "damaged", "strange type": "known are"}.get(kind, "cut short")


KINDS = [
    "cut short", "header cut short", "empty", "no JSON", "strange type", "absent", "several", "nothing there",
    "lost shard", "lost name", "nested", "old",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_with_faults_are_refused(tmp_path: Path, kind: str) -> None:
    checkpoint, words = broken(tmp_path, kind)
    with pytest.raises(PartitionError, match=words):
        fx_partition.load_stage_weights(on_meta(), checkpoint)


ENTRY: dict[str, Any] = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def with_header(path: Path, header: Any) -> Path:
    """A .safetensors file of 16 bytes after this header."""
    text = json.dumps(header).encode()
    file = path / "model.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    return file


@pytest.mark.parametrize("field", [*ENTRY, "all"])
def test_a_header_that_says_no_tensor_is_refused_with_its_name(tmp_path: Path, field: str) -> None:
    assert open_checkpoint(with_header(tmp_path, {"weight": ENTRY})).tensors["weight"].shape == (2, 2)
    entries = [
        {**ENTRY, field: wrong}
        for wrong in (None, 3, -3, 2.5, True, "two", {}, [], [None], [0, 16.0], ["0", "16"], [True, 4], [[0], 16],
                      [-16, 0], [16, 0], [-2, -2], [8, 24], [0, 10**30], [0, 16, 16], [2**62, 2**62], [0])
    ]  # fmt: skip
    if field == "all":
        entries = [None, 3, [], "weight", *({k: v for k, v in ENTRY.items() if k != lost} for lost in ENTRY)]
    for entry in entries:
        with pytest.raises(PartitionError, match="weight") as caught:
            open_checkpoint(with_header(tmp_path, {"weight": entry}))
        assert "model.safetensors" in str(caught.value)


def test_overlapping_tensors_are_refused(tmp_path: Path) -> None:
    half = {**ENTRY, "shape": [2]}
    apart = {"b": {**half, "data_offsets": [8, 16]}, "a": {**half, "data_offsets": [0, 8]}}
    empty = {"none": {**ENTRY, "shape": [0], "data_offsets": [8, 8]}, "__metadata__": {"format": "pt"}}
    assert open_checkpoint(with_header(tmp_path, {**apart, **empty})).tensors.keys() == {"a", "b", "none"}
    for offsets in ([4, 12], [8, 16]):
        with pytest.raises(PartitionError, match=r"model.safetensors is damaged: (a|b) and (b|c) overlap"):
            open_checkpoint(with_header(tmp_path, {**apart, "c": {**half, "data_offsets": offsets}}))


def test_numbers_of_every_type_also_where_they_are_not_aligned(tmp_path: Path) -> None:
    types = [torch.bool, torch.uint8, torch.int16, torch.int64, torch.float16, torch.bfloat16, torch.float64]
    state = {str(dtype): torch.tensor([0, 1, 1]).to(dtype) for dtype in types}
    state |= {"float8": torch.tensor([0.5, 1]).to(torch.float8_e4m3fn), "scalar": torch.tensor(2.5)}
    save_file(state, tmp_path / "a.safetensors")
    before = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
    text = json.dumps({"a": before, "b": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]}}).encode()
    text += b" " * (-len(text) % 8)
    shifted = torch.tensor([1.5, -2])
    data = len(text).to_bytes(8, "little") + text + b"\0" + shifted.numpy().tobytes()
    (tmp_path / "b.safetensors").write_bytes(data)
    for name, expected in (("a", state), ("b", {"a": torch.zeros(1, dtype=torch.uint8), "b": shifted})):
        model = nn.Module()
        for key, tensor in expected.items():
            model.register_buffer(key.replace(".", "_"), tensor.to("meta"))
        opened = fx_partition.backends.weights.checkpoint.open_checkpoint(tmp_path / f"{name}.safetensors").tensors
        fx_partition.load_stage_weights(model, {key.replace(".", "_"): tensor for key, tensor in opened.items()})
        materialize(model.buffers())
        for key, tensor in expected.items():
            found = model.get_buffer(key.replace(".", "_"))
            assert found.dtype == tensor.dtype and found.shape == tensor.shape
            assert torch.equal(found.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def test_fingerprints_depend_on_contents_and_not_on_where_they_are(net: Net, tmp_path: Path) -> None:
    model = on_meta()
    fx_partition.load_stage_weights(model, save(net, "index", tmp_path), others=OTHERS)
    real = fingerprint(tensors(net))
    assert fingerprint(tensors(model)) == real and lazy_names(model)
    materialize(model.parameters())
    assert fingerprint(tensors(model)) == real
    assert (
        fingerprint(fx_partition.backends.weights.checkpoint.open_checkpoint(tmp_path).tensors).items() < real.items()
    )
    weight = torch.randn(3, 5, 700)
    known = fingerprint({"w": weight})
    assert fingerprint({"w": weight.permute(2, 0, 1).contiguous().permute(1, 2, 0)}) == known
    wide = torch.randn(2000, 2000)
    for strided in (wide.t(), torch.arange(10.0)[::2], torch.ones(1).expand(5)):
        assert fingerprint({"w": strided}) == fingerprint({"w": strided.contiguous()})
    changed = [weight.double(), weight.reshape(5, 3, 700)]
    for index in (0, 1023, -1, -1024):
        changed.append(weight.clone())
        changed[-1].view(-1)[index] += 1
    assert known not in [fingerprint({"w": tensor}) for tensor in changed]
    assert fingerprint({"w": torch.ones(0)}) != fingerprint({"v": torch.ones(0)})


@pytest.fixture
def no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU as a device that cannot read mapped files."""
    for module in (lazy_weights, weights_load):
        monkeypatch.setattr(module, "stays_in_file", lambda device: False)


def check_without_memory(net: Net, path: Any, device: str) -> None:
    model = on_meta()
    fx_partition.load_stage_weights(model, path, device=device, others=OTHERS)
    assert all(tensors(model)[name].untyped_storage().nbytes() == 0 for name in lazy_names(model))
    assert lazy_names(model) == tensors(net).keys() - AT_ONCE
    assert fingerprint(tensors(model)) == fingerprint(tensors(net))
    with pytest.raises(RuntimeError, match=r"a call that is not compiled .* of them, such as embed\.weight"):
        model(IDS.to(device))
    with pytest.raises(RuntimeError, match=r"state_dict\(\) needs all weights of Net"):
        model.state_dict()
    counter = CompileCounterWithBackend(lambda gm, inputs: l2partition(gm, inputs, options={"cache_bytes": "40KiB"}))
    with torch.no_grad():
        run = torch.compile(model, backend=counter, fullgraph=True)
        found = run(IDS.to(device))
        assert torch.equal(found, run(IDS.to(device))) and counter.frame_count == 1
        assert torch.equal(found, compiled_logits_on(net.to(device), device))
        assert torch.equal(model(IDS.to(device)), net(IDS.to(device)))
    assert same(model.state_dict(), net.state_dict())


def compiled_logits_on(net: Net, device: str) -> Tensor:
    torch._dynamo.reset()
    run: Callable[..., Tensor] = torch.compile(net, backend="l2partition", options={"cache_bytes": "40KiB"})
    return run(IDS.to(device))


@pytest.mark.usefixtures("no_file")
def test_weights_without_memory_are_guarded_until_they_are_read(net: Net, tmp_path: Path) -> None:
    check_without_memory(net, save(net, "file", tmp_path), "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_weights_of_a_gpu(net: Net, tmp_path: Path) -> None:
    check_without_memory(net, save(net, "file", tmp_path), "cuda")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_models_of_transformers(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    usual, model = family.build(), on_meta(family.make)
    save_file(untied(usual), tmp_path / "model.safetensors")
    others = {n: b for n, b in usual.named_buffers() if n not in usual.state_dict()}
    fx_partition.load_stage_weights(model, tmp_path, others=others)
    assert lazy_names(model) == tensors(usual).keys() - others.keys()
    args, kwargs = family.inputs(2)
    results = []
    for each in (model, usual):
        torch._dynamo.reset()
        with torch.no_grad():
            run = torch.compile(each, backend="l2partition", options={"cache_bytes": "512KiB"})
            results.append(family.output(run(*args, **kwargs)))
    assert not lazy_names(model) and same(tensors(model), tensors(usual))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


SIZES = {"weight": (2048, 2048), "bias": (2048,)}  # of each of 16 layers: 256 MiB
PEAKS = """
import json, sys, torch, fx_partition
from pathlib import Path
from safetensors.torch import load_file
from torch import nn
from fx_partition.backends.weights.lazy_weights import materialize

def status(key):
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) * 1024

def model():
    with torch.device("meta"):
        return nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(16)))

def a_quarter(path):
    mine = model()
    fx_partition.load_stage_weights(mine, path)
    materialize(mine[4:8].parameters())
    assert all((p == i / 7).all() for i in range(4, 8) for p in mine[i].parameters())

def usual(path):
    mine = model().to_empty(device="cpu")
    mine.load_state_dict(load_file(path))

def peak(run, path):
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is what is resident now
    before = status("VmRSS")
    run(path)
    return (status("VmHWM") - before) / Path(path).stat().st_size

file, pickled = sys.argv[1:]
print(json.dumps([peak(a_quarter, file), peak(a_quarter, pickled), peak(usual, file)]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads peaks from /proc")
def test_no_more_than_the_weights_of_the_stages_is_in_memory(tmp_path: Path) -> None:
    state = {f"{i}.{name}": torch.full(size, i / 7) for i in range(16) for name, size in SIZES.items()}
    paths = [str(tmp_path / "model.safetensors"), str(tmp_path / "model.pt")]
    save_file(state, paths[0])
    torch.save(state, paths[1])
    command = [sys.executable, "-c", PEAKS, *paths]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    file, pickled, usual = json.loads(found)
    assert 0.2 < file < 0.35 and 0.2 < pickled < 0.35 and usual > 0.95, found
