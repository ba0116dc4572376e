"""Where `fit` cuts a configuration, for other engines: blocks that were not captured are there all the same."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest

import fx_partition
from fx_partition.engines.module_stages import ModuleStages, list_member
from fx_partition.engines.registry import ENGINES
from fx_partition.fit import api, hugging_face

pytest.importorskip("transformers")

LLAMA = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 12, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 256, "max_position_embeddings": 512,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 10, "n_head": 4, "vocab_size": 256, "n_positions": 128}


def answer_for(folder: Path, config: dict[str, Any], devices: int) -> fx_partition.Fit:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return fx_partition.fit(folder, devices=devices, length=32)


def by_block(stages: ModuleStages) -> list[tuple[str, int]]:
    return list(dict.fromkeys((list_member(run.path) or run.path, run.stage) for run in stages.runs))


def said(answer: fx_partition.Fit, engine: str) -> Any:
    """What an engine takes, or why it cannot."""
    try:
        return answer.to(engine)
    except fx_partition.PartitionError as error:
        return str(error)


@pytest.mark.slow
@pytest.mark.parametrize("config", [LLAMA, {**LLAMA, "tie_word_embeddings": True}, GPT2])
@pytest.mark.parametrize("devices", [1, 3])
def test_few_blocks_say_what_all_blocks_say(
    config: dict[str, Any], devices: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = answer_for(tmp_path, config, devices)
    monkeypatch.setattr(
        api.hugging_face, "capture_prefill", functools.partial(hugging_face.capture_prefill, whole=True)
    )
    monkeypatch.setattr(api, "_prefill_graph", functools.partial(api._prefill_graph, whole=True))
    every = answer_for(tmp_path, config, devices)
    assert few.devices == every.devices
    assert by_block(few.modules) == by_block(every.modules)
    for engine in ENGINES:
        assert said(few, engine) == said(every, engine)


def test_each_engine_takes_a_llama(tmp_path: Path) -> None:
    answer = answer_for(tmp_path, LLAMA, 3)
    layers = [[m for m in device.modules if m.startswith("model.layers.")] for device in answer.devices]
    counts = [len(found) for found in layers]
    assert sum(counts) == 12 and all(counts)
    assert answer.to("vllm") == answer.to("sglang") == ",".join(map(str, counts))
    assert answer.to("llama.cpp") == f"{counts[0]},{counts[1]},{counts[2] + 1}"
    found = answer.to("accelerate")
    assert {m: d for d, device in enumerate(answer.devices) for m in device.modules}.items() <= found.items()
    assert list(answer.to("torch.distributed.pipelining")) == [found[0] for found in layers[1:]]
    with pytest.raises(fx_partition.PartitionError, match=r"cuts the module 'model'"):
        answer.to("torchtitan")
