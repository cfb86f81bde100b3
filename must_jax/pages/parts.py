"""Pieces of a page: everything that is not written here is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from must_jax.errors import one_line

_UNBROKEN = 9  # characters of a cell that stay on one line, such as 100.0 %


def escaped(text: object) -> str:
    """`text` as it may stand between tags and in an attribute, without control characters."""
    return html.escape(one_line(str(text)), quote=True)


def section(title: str, *parts: str, kind: str = "") -> str:
    """A titled part of the page."""
    opening = f'<section class="{kind}">' if kind else "<section>"
    return f"{opening}<h2>{escaped(title)}</h2>{''.join(parts)}</section>"


def paragraph(text: str, *, quiet: bool = False) -> str:
    """Running text."""
    opening = '<p class="quiet">' if quiet else "<p>"
    return f"{opening}{escaped(text)}</p>"


def listing(items: Iterable[str]) -> str:
    """A list of one text an item."""
    return f"<ul>{''.join(f'<li>{escaped(item)}</li>' for item in items)}</ul>"


def tile(figure: str, meaning: str) -> str:
    """A number that is read first."""
    return f'<div class="tile"><b>{escaped(figure)}</b><span>{escaped(meaning)}</span></div>'


def table(
    head: Sequence[str], rows: Iterable[Sequence[object]], *, marked: Sequence[int] = ()
) -> str:
    """A table whose first column heads its rows; `marked` are rows to stress."""
    lines = []
    for place, (first, *rest) in enumerate(rows):
        cells = "".join(_cell(cell) for cell in rest)
        opening = '<tr class="mark">' if place in marked else "<tr>"
        lines.append(f'{opening}<th scope="row">{escaped(first)}</th>{cells}</tr>')
    heads = "".join(f'<th scope="col">{escaped(cell)}</th>' for cell in head)
    top = f"<thead><tr>{heads}</tr></thead>" if head else ""
    return f'<div class="scroll"><table>{top}<tbody>{"".join(lines)}</tbody></table></div>'


def _cell(content: object) -> str:
    kind = "short" if len(str(content)) <= _UNBROKEN else "long"
    return f'<td class="{kind}">{escaped(content)}</td>'


def histogram(
    counts: Sequence[float],
    *,
    axis: Sequence[str],
    on: Sequence[bool],
    told: str,
    mark: float | None = None,
) -> str:
    """Columns of counts.

    Args:
        counts: Height of each column.
        axis: Labels to spread below, from the left edge to the right one.
        on: Which columns are stressed.
        told: What the picture shows, for those who do not see it.
        mark: Height of a line across all columns.
    """
    highest = max(*counts, mark or 0, 1)
    columns = "".join(
        f'<span class="{"on" if lit else "off"}" '
        f'style="height:{100 * count / highest:.1f}%"></span>'
        for count, lit in zip(counts, on, strict=True)
    )
    labels = "".join(f"<span>{escaped(label)}</span>" for label in axis)
    line = "" if mark is None else f'<u style="bottom:{100 * mark / highest:.1f}%"></u>'
    return (
        f'<div class="chart" role="img" aria-label="{escaped(told)}">'
        f'<div class="bins">{columns}{line}</div><div class="axis">{labels}</div></div>'
    )


def bars(rows: Sequence[tuple[str, float, str]], *, mark: float) -> str:
    """Horizontal bars of (name, value, text), with a line across all of them at `mark`."""
    highest = max([value for _, value, _ in rows] + [mark]) or 1
    line = f'<u style="left:{100 * mark / highest:.1f}%"></u>'
    lines = "".join(
        f'<span>{escaped(name)}</span><div class="track">'
        f'<i style="width:{100 * value / highest:.1f}%"></i>{line}</div>'
        f'<span class="number">{escaped(text)}</span>'
        for name, value, text in rows
    )
    return f'<div class="bars">{lines}</div>'


def folded(title: str, *parts: str) -> str:
    """Something to open."""
    return f"<details><summary>{escaped(title)}</summary>{''.join(parts)}</details>"
