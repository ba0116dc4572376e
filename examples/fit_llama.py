"""Ask whether Llama 3.1 fits devices, from the shape of the model alone: nothing is downloaded or loaded.

Shows `fx_partition.fit` on a configuration of Hugging Face: the modules of each device, the largest batch, and how many
decoder layers must be quantised where the devices are too small.

    python examples/fit_llama.py
    python examples/fit_llama.py --shape 405B --devices 8x80GiB
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import fx_partition

#: Layers, width, heads and inner width of the models; all have 8 heads of keys and values, and the same vocabulary.
SHAPES = {"8B": (32, 4096, 32, 14336), "70B": (80, 8192, 64, 28672), "405B": (126, 16384, 128, 53248)}


def config(shape: str) -> dict[str, object]:
    """Return the parts of the model's config.json that decide its size."""
    layers, width, heads, inner = SHAPES[shape]
    return {
        "model_type": "llama", "num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads,
        "intermediate_size": inner, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
        "tie_word_embeddings": False, "dtype": "bfloat16",
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="8B")
    parser.add_argument("--devices", default="12GiB,8GiB", help="as for fx_partition.fit")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=8192)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / f"Llama-3.1-{arguments.shape}"
        place.mkdir()
        (place / "config.json").write_text(json.dumps(config(arguments.shape)), encoding="utf-8")
        answer = fx_partition.fit(
            place, devices=arguments.devices, batch=arguments.batch, length=arguments.length, margin="5%",
            weights=["bf16", "int8", "int4"],
        )  # fmt: skip
    print(answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
