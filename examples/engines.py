"""Find where to cut a language model, and print it as the options of other engines.

Shows `Fit.to`: `fx_partition.fit` places the layers by what the devices hold, and vLLM, SGLang, llama.cpp and
accelerate are told to cut there. Nothing is downloaded or loaded.

    python examples/engines.py
    python examples/engines.py --config Llama-3.1-8B --devices 24GiB,24GiB,16GiB
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from itertools import groupby
from pathlib import Path

import fx_partition

#: The parts of the config.json of Llama 3.1 8B that decide its size.
LLAMA = {
    "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
    "intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
    "tie_word_embeddings": False, "dtype": "bfloat16",
}  # fmt: skip


def ask(config: Path | None, devices: str, length: int) -> fx_partition.Fit:
    """Return the answer of `fit`, for the Llama above where no configuration is named."""
    if config is not None:
        return fx_partition.fit(config, devices=devices, length=length, margin="10%")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "Llama-3.1-8B"
        place.mkdir()
        (place / "config.json").write_text(json.dumps(LLAMA), encoding="utf-8")
        return fx_partition.fit(place, devices=devices, length=length, margin="10%")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="a config.json, or a folder that has one (Llama 3.1 8B)")
    parser.add_argument("--devices", default="3x8GiB", help="as for fx_partition.fit (%(default)s)")
    parser.add_argument("--length", type=int, default=8192, help="tokens (%(default)s)")
    arguments = parser.parse_args()
    answer = ask(arguments.config, arguments.devices, arguments.length)
    print(answer, "\n")

    layers = answer.to("vllm")
    stages = layers.count(",") + 1
    print(f"VLLM_PP_LAYER_PARTITION={layers} vllm serve MODEL --pipeline-parallel-size {stages}")
    server = f"python -m sglang.launch_server --model-path MODEL --pp-size {stages}"
    print(f"SGLANG_PP_LAYER_PARTITION={answer.to('sglang')} {server}")
    print(f"llama-server -m MODEL.gguf -ngl 999 --split-mode layer --tensor-split {answer.to('llama.cpp')}")
    print("AutoModelForCausalLM.from_pretrained(MODEL, device_map=device_map), where device_map puts")
    for device, placed in groupby(answer.to("accelerate").items(), key=lambda pair: pair[1]):
        paths = [path for path, _ in placed]
        print(f"    {paths[0]} to {paths[-1]} ({len(paths)}) on device {device}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
