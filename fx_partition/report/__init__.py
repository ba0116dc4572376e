"""Plans for readers: text, Markdown, JSON."""

from .api import render, report

__all__ = ["render", "report"]
