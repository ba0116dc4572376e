"""`fit` on configurations of Hugging Face: Llama's largest shape on paper, and small ones against the whole model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import fx_partition
from fx_partition.cli import main
from fx_partition.fit import hugging_face
from fx_partition.fit.module_graph import ModuleGraph, module_graph
from fx_partition.fit.precision import _footprints
from fx_partition.fit.repeats import NotRepeatedError, lengthened
from fx_partition.passes.footprint.analyze import analyze_memory

transformers = pytest.importorskip("transformers")

#: The shape of Llama-3.1-405B.
LARGEST = {
    "model_type": "llama", "hidden_size": 16384, "num_hidden_layers": 126, "num_attention_heads": 128,
    "num_key_value_heads": 8, "intermediate_size": 53248, "vocab_size": 128256, "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05, "tie_word_embeddings": False, "dtype": "bfloat16",
}  # fmt: skip
PARAMETERS = 405_853_388_800
SMALL = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 8, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 256, "max_position_embeddings": 512,
}  # fmt: skip

EXPERTS = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 32,
    "first_k_dense_replace": 2, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "num_key_value_heads": 4,
}  # fmt: skip
SLOW_FAMILIES = ("gpt2", "opt", "phi", "mixtral", "mistral", "gemma2", "falcon", "deepseek_v3")


def saved(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_the_largest_llama_is_placed_from_its_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = saved(tmp_path, LARGEST)
    assert main(["fit", str(place), "--devices", "80GiB", "--length", "8192", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    devices = found["devices"]
    assert found["fits"] and len(devices) == 11
    assert sum(d["weight_bytes"] for d in devices) - 11 * 256 < 2 * PARAMETERS + 1024
    assert sum(d["weight_bytes"] for d in devices) >= 2 * PARAMETERS
    keys_and_values = 2 * 8192 * 8 * 128 * 2
    assert sum(d["state_bytes"] for d in devices) == 126 * keys_and_values
    listed = [module for device in devices for module in device["modules"]]
    layers = [f"model.layers.{i}" for i in range(126)]
    assert [module for module in listed if module in layers] == layers
    assert (listed[0], listed[-1]) == ("model.embed_tokens", "lm_head")
    assert found["largest"]["batch"] >= 1 and found["largest"]["length"] >= 8192


def graph_of(config: Any, *, whole: bool) -> tuple[ModuleGraph, hugging_face.Prefill]:
    prefill = hugging_face.capture_prefill(hugging_face.build(config, torch.float32), 2, 64, whole=whole)
    memory = analyze_memory(prefill.captured)
    kept = hugging_face.cache_values(prefill, memory)
    return module_graph(prefill.captured, memory, "modules", hugging_face.ROOT, kept), prefill


def chains(graph: ModuleGraph, dims: dict[str, str], batch: int, length: int) -> Any:
    return graph.chain(graph.memory.symbols.bind({dims["batch"]: batch, dims["length"]: length}))


@pytest.mark.parametrize(
    "family", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_FAMILIES)]
)
def test_a_model_with_its_blocks_put_back_is_the_whole_model(family: str) -> None:
    more = {"n_layer": 8, "n_embd": 64, "n_head": 4} if family == "gpt2" else {}
    more |= {"ffn_dim": 128, "word_embed_proj_dim": 64} if family == "opt" else {}
    more |= {"num_hidden_layers": 12, "head_dim": 16} if family == "gemma2" else {}  # layers of two kinds alternate
    more |= EXPERTS if family == "deepseek_v3" else {}
    config = transformers.AutoConfig.for_model(**{**SMALL, "model_type": family, **more})
    short, prefill = graph_of(config, whole=False)
    assert prefill.shortened
    for shortened in prefill.shortened:
        short = lengthened(short, shortened)
    whole, _ = graph_of(config, whole=True)
    assert short.labels == whole.labels and short.blocks == whole.blocks
    for batch, length in ((2, 64), (3, 100)):
        sizes = [_footprints(chains(graph, dict(prefill.dims), batch, length)) for graph in (short, whole)]
        assert sizes[0] == sizes[1]


def test_a_model_that_takes_no_other_attention_has_its_own() -> None:
    config = transformers.AutoConfig.for_model(**{**SMALL, "model_type": "falcon"})
    model = hugging_face.build(config, torch.float32)
    assert next(model.parameters()).is_meta and config._attn_implementation != hugging_face._ATTENTION


@pytest.mark.slow
def test_the_state_of_mamba_is_kept() -> None:
    """It computes its scan with the length as a number, token by token."""
    more = {"model_type": "mamba", "state_size": 8, "num_hidden_layers": 6}
    config = transformers.AutoConfig.for_model(**{**SMALL, **more})
    prefill = hugging_face.capture_prefill(hugging_face.build(config, torch.float32), 1, 4)
    assert not prefill.dims and [found.numbers for found in prefill.shortened] == [(0, 1, 2, 5)]
    memory = analyze_memory(prefill.captured)
    kept = hugging_face.cache_values(prefill, memory)
    graph = module_graph(prefill.captured, memory, "modules", hugging_face.ROOT, kept)
    whole = lengthened(graph, prefill.shortened[0])
    assert [label for label in whole.labels if label.startswith("backbone.layers.")][-1] == "backbone.layers.5"
    inner = 2 * SMALL["hidden_size"]
    sizes = [whole.memory.weight_bytes[weight] for weight in whole.memory.state]
    assert sizes.count(inner * 8 * 4) == 6  # the recurrent state of each layer


@pytest.mark.parametrize(
    ("widths", "period"),
    [
        ([4, 8] * 5, 2), ([4, 8] * 5 + [4], 2), ([4, 8] * 4, 0), ([4, 4, 4, 8] * 6, 4), ([4, 8] * 5 + [8, 4], 0),
        ([4, 8, 4] * 2 + [4, 8] * 5, 0), ([*range(1, 10)] * 6, 0),
    ],
)  # fmt: skip
def test_the_period_of_a_list_of_blocks(widths: list[int], period: int) -> None:
    """The last group may be incomplete; a list that is too short for its period is left whole."""
    with torch.device("meta"):
        assert hugging_face._period([torch.nn.Linear(width, width) for width in widths]) == period


def test_blocks_that_do_not_follow_one_another_are_refused() -> None:
    config = transformers.AutoConfig.for_model(**SMALL)
    graph, prefill = graph_of(config, whole=False)
    third = graph.labels.index("model.layers.2")
    step = graph.memory.steps[graph.starts[third] + 3]
    step.workspace = (12345,)
    with pytest.raises(NotRepeatedError, match="differ"):
        lengthened(graph, prefill.shortened[0])


@pytest.mark.parametrize(
    ("text", "words"), [("{", "is not a configuration"), ('{"model_type": "clip"}', "no causal language model")]
)
def test_a_bad_configuration_is_named(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(fx_partition.PartitionError, match=words):
        fx_partition.fit(tmp_path, devices=1)


def test_a_length_beyond_the_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(fx_partition.PartitionError, match="more than the 512 tokens"):
        fx_partition.fit(saved(tmp_path, SMALL), devices=1, length=513)
