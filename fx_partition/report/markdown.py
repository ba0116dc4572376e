"""Lay out a document as Markdown, for a pull request or a wiki."""

from __future__ import annotations

from tabulate import tabulate

from .document import Document, Section, Table


def to_markdown(document: Document) -> str:
    """Return the document as GitHub-flavoured Markdown: sections, pipe tables, lists.

    Example::

        >>> print(to_markdown(Document("Fits one device.", (Section("Totals", points=("cut: 0 B",)),), "Inference.")))
        **Fits one device.**
        <BLANKLINE>
        ## Totals
        <BLANKLINE>
        - cut: 0 B
        <BLANKLINE>
        Inference.
    """
    return "\n\n".join([f"**{document.headline}**", *map(_section, document.sections), document.closing])


def _section(section: Section) -> str:
    parts = [f"## {section.title}"]
    if section.lead:
        parts.append(section.lead)
    if section.drawing:
        parts.append("\n".join(["```text", *section.drawing, "```"]))
    if section.table is not None:
        parts.append(_table(section.table))
    if section.points:
        parts.append("\n".join(f"- {point}" for point in section.points))
    return "\n\n".join(parts)


def _table(table: Table) -> str:
    def escaped(row: tuple[str, ...]) -> list[str]:
        return [cell.replace("|", "\\|") for cell in row]

    rows = [escaped(row) for row in table.rows]
    if table.totals:
        rows.append([f"**{cell}**" if cell else "" for cell in escaped(table.totals)])
    return tabulate(
        rows,
        headers=escaped(table.headers),
        tablefmt="pipe",
        colalign=["right" if number else "left" for number in table.numeric],
        disable_numparse=True,
    )
