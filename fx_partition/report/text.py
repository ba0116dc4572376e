"""Lay out a document as plain text for a terminal."""

from __future__ import annotations

from tabulate import SEPARATING_LINE, tabulate

from .document import Document, Section, Table


def to_text(document: Document) -> str:
    """Return the document as text: no markup, tables in columns, points indented.

    Example::

        >>> print(to_text(Document("Fits one device.", (Section("Totals", points=("cut: 0 B",)),), "Inference.")))
        Fits one device.
        <BLANKLINE>
        Totals
          cut: 0 B
        <BLANKLINE>
        Inference.
    """
    parts = [document.headline, *map(_section, document.sections), document.closing]
    return "\n\n".join(parts).replace("`", "")


def _section(section: Section) -> str:
    lines = [section.title]
    if section.lead:
        lines.append(f"  {section.lead}")
    lines += [f"  {line}".rstrip() for line in section.drawing]
    if section.table is not None:
        lines += [f"  {line}".rstrip() for line in _table(section.table).splitlines()]
    lines += [f"  {point}" for point in section.points]
    return "\n".join(lines)


def _table(table: Table) -> str:
    def plain(row: tuple[str, ...]) -> list[str]:
        # Drop the backticks before the table is made: dropping them afterwards would shift its columns.
        return [cell.replace("`", "") for cell in row]

    rows: list[list[str]] = [plain(row) for row in table.rows]
    if table.totals:
        rows += [[SEPARATING_LINE], plain(table.totals)]
    return tabulate(
        rows,
        headers=table.headers,
        tablefmt="simple",
        colalign=["right" if number else "left" for number in table.numeric],
        disable_numparse=True,
    )
