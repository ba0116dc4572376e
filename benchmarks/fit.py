"""What `fit` says that devices hold, against what eager PyTorch allocates when every part runs for real.

    python benchmarks/fit.py [family ...]

Each model is a small causal language model of Hugging Face, made from its configuration. `fit` sees the configuration
alone, and names the smallest size with which a given number of devices hold the model. Then the model is made with
weights, its prefill is traced whole, and the modules of each device run node by node under the profiler: received
tensors are copied first, and each value is freed after its last use. "Allocated" is the weights of these modules, plus
the most bytes that were alive at one time in addition to them, with results and KV cache.

Target: allocated <= what `fit` says, for every device, and by at most 3% less in the median.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.fx
from tabulate import tabulate

import fx_partition
from fx_partition.backends.measure.peak_allocation import allocated_bytes
from fx_partition.common.units import format_bytes
from fx_partition.fit import hugging_face
from fx_partition.fit.module_graph import ModuleGraph, module_graph
from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.capture.captured_graph import CapturedGraph
from fx_partition.passes.footprint.analyze import analyze_memory

_SIZES = {
    "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 4,
    "intermediate_size": 512, "vocab_size": 1024, "max_position_embeddings": 512, "pad_token_id": 0,
}  # fmt: skip
#: What a family needs in addition to `_SIZES`, or in place of them.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {}, "mistral": {}, "qwen2": {"tie_word_embeddings": True}, "qwen3": {"head_dim": 32},
    "gpt2": {"n_embd": 256, "n_layer": 6, "n_head": 8, "n_positions": 512}, "phi3": {}, "phi": {},
    "gpt_neox": {}, "opt": {"ffn_dim": 512, "word_embed_proj_dim": 256}, "stablelm": {}, "olmo2": {},
    "starcoder2": {},
}  # fmt: skip
#: Batch, length, devices.
SETTINGS = ((1, 64, 2), (4, 128, 3), (2, 200, 2))


@dataclass(frozen=True)
class Row:
    """One device of one setting: what `fit` says, and what was allocated, in bytes."""

    family: str
    setting: tuple[int, int, int]
    device: int
    said: int
    allocated: int

    @property
    def slack(self) -> float:
        return self.said / self.allocated - 1


def rows_of(family: str, setting: tuple[int, int, int]) -> list[Row]:
    """Ask `fit`, then run each device's modules for real."""
    batch, length, count = setting
    config = {**_SIZES, "model_type": family, **FAMILIES[family]}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        answer = fx_partition.fit(folder, devices=count, dtype="fp32", batch=batch, length=length)
        model = hugging_face.build(hugging_face.read_config(Path(folder)), torch.float32, "cpu")
    ids = torch.randint(0, 1024, (batch, length))
    with torch.no_grad():
        captured = capture(hugging_face.PrefillModule(model), (ids,))
        graph = module_graph(captured, analyze_memory(captured), "modules", hugging_face.ROOT)
        run = _Run(captured, graph, ids)
        found = [run.allocated(device.modules) for device in answer.devices]
    return [
        Row(family, setting, i, device.total_bytes, allocated)
        for i, (device, allocated) in enumerate(zip(answer.devices, found, strict=True))
    ]


class _Run:
    """One run of a graph, device after device."""

    def __init__(self, captured: CapturedGraph, graph: ModuleGraph, ids: torch.Tensor) -> None:
        self._captured, self._interpreter = captured, torch.fx.Interpreter(captured.gm)
        nodes = {node.name: node for node in captured.gm.graph.nodes}
        self._label = {
            nodes[step.node]: label
            for label, start, end in zip(graph.labels, graph.starts, graph.starts[1:], strict=False)
            for step in graph.memory.steps[start:end]
        }
        (placeholder,) = captured.gm.graph.find_nodes(op="placeholder")
        self._values: dict[torch.fx.Node, Any] = {placeholder: ids}
        for node in captured.gm.graph.nodes:
            if node.op == "get_attr":
                self._values[node] = self._interpreter.run_node(node)

    def allocated(self, modules: tuple[str, ...]) -> int:
        """Run these modules, and return the bytes of their weights and of what they allocated at the most."""
        own = [node for node, label in self._label.items() if label in modules]
        steps = self._with_free(own)
        weights = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for node in steps for source in node.all_input_nodes
            if (tensor := self._captured.weights.get(source)) is not None
        }  # fmt: skip
        last = {source: node for node in steps for source in node.all_input_nodes}
        inside = set(steps)
        kept = {node for node in own if any(user not in inside for user in node.users)}
        taken = {s: self._values[s] for node in steps for s in node.all_input_nodes if s not in inside}
        results: dict[torch.fx.Node, Any] = {}
        call = self._caller(steps, taken, last, kept, results)
        peak = allocated_bytes(call, torch.device("cpu"))
        self._values |= results
        return sum(weights.values()) + peak

    def _with_free(self, own: list[torch.fx.Node]) -> list[torch.fx.Node]:
        """Add the nodes that are not steps (views of weights) and that these need, in the graph's order."""
        wanted = set(own)
        for node in reversed(list(self._captured.gm.graph.nodes)):
            if node in wanted:
                wanted |= {s for s in node.all_input_nodes if s not in self._label and s not in self._values}
        return [node for node in self._captured.gm.graph.nodes if node in wanted]

    def _caller(
        self, steps: list[torch.fx.Node], taken: Mapping[torch.fx.Node, Any],
        last: Mapping[torch.fx.Node, torch.fx.Node], kept: set[torch.fx.Node], results: dict[torch.fx.Node, Any],
    ) -> Callable[[], Any]:  # fmt: skip
        weights = self._captured.weights

        def call() -> Any:
            results.clear()
            here = {
                n: v.clone() if isinstance(v, torch.Tensor) and n not in weights else v for n, v in taken.items()
            }
            for node in steps:
                args, kwargs = torch.fx.map_arg((node.args, node.kwargs), here.__getitem__)
                here[node] = getattr(self._interpreter, node.op)(node.target, args, kwargs)
                del args, kwargs
                for source in node.all_input_nodes:
                    if last[source] is node and source not in kept:
                        here.pop(source, None)
                if not node.users:
                    del here[node]
            results.update((node, here[node]) for node in kept)

        return call


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help="only these")
    families = parser.parse_args().families or list(FAMILIES)
    rows: list[Row] = []
    for family in families:
        rows += [row for setting in SETTINGS for row in rows_of(family, setting)]
        table = [
            (r.family, "x".join(map(str, r.setting[:2])), r.device, format_bytes(r.allocated), format_bytes(r.said),
             f"{100 * r.slack:.2f}%", "ok" if r.slack >= 0 else "OVER")
            for r in rows if r.family == family
        ]  # fmt: skip
        print(tabulate(table, headers=("model", "tokens", "device", "allocated", "said", "slack", "")), flush=True)
    over = [row for row in rows if row.slack < 0]
    slack = statistics.median(row.slack for row in rows)
    print(f"{len(rows) - len(over)} of {len(rows)} devices hold it; median slack {100 * slack:.2f}%")
    return 1 if over or slack > 0.03 else 0


if __name__ == "__main__":
    sys.exit(main())
