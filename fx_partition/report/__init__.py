"""Report: describe plans, devices and probes as text, Markdown or JSON.

In: a plan, a split or compiled model (`compiled_plans` finds its plans), device records, or a probe. Out: text. A
`document.Document` is the contents of a report without a layout; `text` and `markdown` lay it out, `output` writes it.
`plan_document` makes the document of a plan: a headline, the table of partitions, the proof, other shapes.
"""

from .api import render, report

__all__ = ["render", "report"]
