"""Generate tokens with transformers' own ``generate``: the decoding step runs in partitions, its KV cache is state.

The model is a Llama with random weights; give ``generate`` your own model in the same way. The static cache has a fixed
length, so each step is the same graph. A second prompt length makes one more graph, in which the length is symbolic.
"""

from __future__ import annotations

import argparse

import torch
from transformers import AutoConfig, AutoModelForCausalLM, CompileConfig

import fx_partition


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--cache", default="200KiB", help="bytes of on-chip memory of one device")
    parser.add_argument("--tokens", type=int, default=8, help="tokens to generate")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", hidden_size=64, intermediate_size=128, num_hidden_layers=arguments.layers, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=256, max_position_embeddings=256,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    # Random weights know no end of a text.
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0

    compile_config = CompileConfig(
        backend="l2partition", mode=None, dynamic=None, fullgraph=False, options={"cache_bytes": arguments.cache}
    )
    compile_config._compile_all_devices = True  # transformers compiles for GPUs alone without it
    asked = {"max_new_tokens": arguments.tokens, "do_sample": False, "cache_implementation": "static"}
    for length in (5, 11):
        prompt = torch.randint(1, 256, (1, length), generator=torch.Generator().manual_seed(length))
        expected = model.generate(prompt, **asked, disable_compile=True)
        tokens = model.generate(prompt, **asked, compile_config=compile_config)
        same = "as in eager mode" if torch.equal(tokens, expected) else "NOT AS IN EAGER MODE"
        print(f"prompt of {length}: {tokens[0, length:].tolist()}, {same}")

    for graph in fx_partition.compiled_graphs(model):
        plan = graph.plan
        weights = sum(p.weight_bytes for p in plan.partitions)
        state = sum(p.state_bytes for p in plan.partitions)
        print(f"a graph in {plan.num_partitions} partitions: {weights:,} bytes of weights, {state:,} of KV cache")
        if dims := list(plan.symbols.dims):  # the length of the cache of each layer, and of the mask
            length = 1
            while plan.fits(dict.fromkeys(dims, length + 1)):
                length += 1
            print(f"it fits up to a cache of {length} tokens")


if __name__ == "__main__":
    main()
