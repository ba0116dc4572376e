"""Report: plans, devices and probes for readers, as text, Markdown or JSON.

In: a plan, a split or compiled model (`compiled_plans` knows its plans), device records, or a probe. Out: text. A
`document.Document` is what a report says before it is laid out; `text` and `markdown` lay it out, `output` writes it.
`plan_document` is a plan as a document: a headline, the table of partitions, the proof, other shapes.
"""

from .api import render, report

__all__ = ["render", "report"]
