"""Columns and paragraphs of plain text, as wide as the terminal.

click lays out help pages; for a table of any number of columns there is nothing in it nor in the
standard library, and a package that draws boxes would take longer to import than the list to print.

Colour is somebody else's: a `Paint` gets a text and what it means (``"bad"``), after all widths
have been counted. Whatever a plugin says of itself is shown, never obeyed: control characters come
out escaped.
"""

import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple, TypeAlias

__all__ = ["GAP", "Cell", "Paint", "paragraph", "plain", "printable", "table"]

GAP = "  "
BELOW = "    "
LEAST = 32
"""Columns that a wrapped text needs at least to be readable."""

Paint: TypeAlias = Callable[[str, str], str]
"""``paint(text, meaning)``: ``head``, ``name``, ``good``, ``warn``, ``bad``, ``dim`` or nothing."""


class Cell(NamedTuple):
    """A text, and what it means."""

    text: str
    meaning: str = ""


def plain(text: str, meaning: str) -> str:
    """Return the text as it is."""
    return text


def printable(text: str) -> str:
    """Return `text` with everything that would steer a terminal escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def table(
    rows: Iterable[Sequence[str | Cell]],
    *,
    paint: Paint = plain,
    width: int | None = None,
    flow: Sequence[int] = (),
) -> list[str]:
    """Return lines with aligned columns, the first row being the head.

    Parameters
    ----------
    rows : iterable of sequences of str or Cell
        A column that no row below the head fills is left out.
    paint : Paint, optional
        Colours each cell.
    width : int, optional
        Columns of the terminal; None leaves every row on one line.
    flow : sequence of int
        Columns that make room, in this order, as long as the rows are too long: wrapped where
        their words and `LEAST` characters have the room, else moved below their row.

    Examples
    --------
    >>> table([("SOLVER", "MODE"), ("heat1d", "split_vjp")])
    ['SOLVER  MODE', 'heat1d  split_vjp']
    """
    cells = [[_cell(item) for item in row] for row in rows]
    widths = _widths(cells)
    below = _make_room(cells, widths, width, flow) if width is not None else []
    lines: list[str] = []
    for i, row in enumerate(cells):
        lines += _lines(row, widths, paint)
        for column in below if i else ():
            text = row[column].text
            lines += paragraph(text, width=width, first=BELOW, indent=BELOW + "  ") if text else []
    return lines


def _make_room(
    cells: Sequence[Sequence[Cell]], widths: list[int], width: int, flow: Sequence[int]
) -> list[int]:
    """Narrow the `widths` until they fit, as far as they may; return the columns to put below."""
    below: list[int] = []
    for column in flow:
        excess = sum(w + len(GAP) for w in widths if w) - len(GAP) - width
        if excess <= 0:
            break
        if not widths[column]:
            continue
        words = [word for row in cells for word in row[column].text.split()]
        least = max([LEAST, *map(len, words)])
        room = widths[column] - excess
        widths[column] = room if room >= least else 0
        if room < least:
            below.append(column)
    return sorted(below)


def _cell(item: str | Cell) -> Cell:
    cell = item if isinstance(item, Cell) else Cell(item)
    return cell._replace(text=printable(cell.text))


def _widths(cells: Sequence[Sequence[Cell]]) -> list[int]:
    """Return each column's width, 0 where only the head says something."""
    columns = list(zip(*cells, strict=True))
    return [
        max(len(cell.text) for cell in column) if any(cell.text for cell in column[1:]) else 0
        for column in columns
    ]


def _lines(row: Sequence[Cell], widths: Sequence[int], paint: Paint) -> Iterator[str]:
    """Yield the lines of one row: one, or more where a cell is wider than its column."""
    shown = [(cell, width) for cell, width in zip(row, widths, strict=True) if width]
    stacks = [
        [cell.text] if len(cell.text) <= width else paragraph(cell.text, width=width, indent="  ")
        for cell, width in shown
    ]
    for texts in zip_longest(*stacks, fillvalue=""):
        last = max((i for i, text in enumerate(texts) if text), default=-1)
        padded = [
            text.ljust(width) if i < last else text
            for i, (text, (_, width)) in enumerate(zip(texts, shown, strict=True))
        ]
        meanings = [cell.meaning for cell, _ in shown]
        yield GAP.join(map(paint, padded[: last + 1], meanings))


def paragraph(text: str, *, width: int | None, first: str = "", indent: str = "") -> list[str]:
    """Return `text` in lines of at most `width` characters; one line where there is no width.

    A word longer than a line (a path, an address) stays whole: it is there to be copied.
    """
    text = printable(text)
    if width is None:
        return [first + text]
    return textwrap.wrap(
        text,
        max(width, len(first) + 20),
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [first]
