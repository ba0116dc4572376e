"""Hash a graph, so that a plan is never applied to another graph."""

from __future__ import annotations

import hashlib

import torch.fx


def fingerprint(graph: torch.fx.Graph) -> str:
    """Return the first 16 hexadecimal digits of SHA-256 over each node's name, kind, target and inputs, in order."""
    digest = hashlib.sha256()
    for node in graph.nodes:
        inputs = ",".join(source.name for source in node.all_input_nodes)
        target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        digest.update(f"{node.op} {node.name} {target} {inputs}\n".encode())
    return digest.hexdigest()[:16]
