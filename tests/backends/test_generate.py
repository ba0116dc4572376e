"""Generation by transformers with a static cache: each step runs in partitions, and tokens are as in eager mode."""

from __future__ import annotations

import pytest
import torch
from eager_stages import use_eager_stages

from fx_partition.report.compiled_plans import compiled_graphs

transformers = pytest.importorskip("transformers")

SIZES = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 256,
}  # fmt: skip
FAMILIES = {
    "llama": (SIZES, "100KiB"),
    "gpt2": ({"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 256, "n_positions": 256}, "250KiB"),
    "mixtral": ({**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2}, "400KiB"),
}


@pytest.mark.parametrize(
    "family", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mixtral", "gpt2"))]
)
def test_tokens_are_those_of_eager_mode(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_eager_stages(monkeypatch)
    torch._dynamo.reset()
    torch.manual_seed(0)
    sizes, budget = FAMILIES[family]
    config = transformers.AutoConfig.for_model(family, **sizes)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    compile_config = transformers.CompileConfig(
        backend="l2partition", mode=None, fullgraph=False, dynamic=None, options={"cache_bytes": budget}
    )
    compile_config._compile_all_devices = True  # without it transformers compiles on GPUs alone
    for length in (5, 11):
        prompt = torch.randint(1, 256, (1, length), generator=torch.Generator().manual_seed(length))
        asked = {"max_new_tokens": 6, "do_sample": False, "cache_implementation": "static"}
        expected = model.generate(prompt, **asked, disable_compile=True)
        found = model.generate(prompt, **asked, compile_config=compile_config)
        assert found.tolist() == expected.tolist()
    plans = [graph.plan for graph in compiled_graphs(model)]
    assert 1 <= len(plans) <= 2
    assert all(plan.num_partitions >= 3 for plan in plans)
    # The keys and values of each layer are state, of the length that the second graph was compiled for.
    keys = sum(p.state_bytes for p in plans[-1].partitions)
    heads = 4 if family == "gpt2" else 2
    assert keys >= 3 * 2 * (11 + 6 - 1) * heads * 16 * 4
