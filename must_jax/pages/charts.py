"""Lines over time, as SVG that scales with the page and takes its colours from the style."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from must_jax.pages.parts import escaped

WIDTH, HEIGHT = 340, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 8, 24
MAX_LINES = 4  # that the style tells apart
_TICKS = 4
_CHARACTER = 7  # units that one takes at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """Values over time.

    Attributes:
        name: In the legend.
        points: (x, y) in the order of x; those that are no numbers are left out.
    """

    name: str
    points: Sequence[tuple[float, float]]

    @property
    def finite(self) -> list[tuple[float, float]]:
        """The points that can be shown."""
        return [(x, y) for x, y in self.points if math.isfinite(x) and math.isfinite(y)]


def nice_ticks(low: float, high: float, *, count: int = _TICKS) -> list[float]:
    """Round numbers, 1, 2 or 5 times a power of ten apart, whose ends enclose `low` to `high`.

    Args:
        low: Lowest value.
        high: Highest value, not below it.
        count: About how many steps there are to be.
    """
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-9):
        margin = max(abs(low), 1e-3) / 10
        low, high = low - margin, high + margin
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [place * step for place in range(first, last + 1)]


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_name: str,
    as_percent: bool = False,
    x_marks: Sequence[float] = (),
    level: float | None = None,
) -> str:
    """Up to `MAX_LINES` lines in one frame with a legend; nothing where no line has a point.

    Args:
        title: What is shown.
        lines: The values.
        x_name: Of the horizontal axis.
        as_percent: Whether values are shares to be told in percent.
        x_marks: Where to draw a vertical line.
        level: Where to draw a horizontal line.
    """
    shown = [line for line in lines if line.finite]
    if not shown:
        return ""
    xs = [x for line in shown for x, _ in line.finite]
    ys = [y for line in shown for _, y in line.finite] + ([level] if level is not None else [])
    ticks = nice_ticks(min(ys), max(ys))
    if as_percent:  # a margin of the ticks is no share
        ticks = [tick for tick in ticks if -1e-9 <= tick <= 1 + 1e-9] or ticks
    left_x, right_x = min(0.0, *xs), max(xs) or 1.0

    def across(x: float) -> float:
        return _LEFT + (x - left_x) / (right_x - left_x) * (WIDTH - _LEFT - _RIGHT)

    bottom, top = min(ticks[0], *ys), max(ticks[-1], *ys)

    def down(y: float) -> float:
        share = (y - bottom) / (top - bottom or 1)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)

    drawn = []
    for tick in ticks:
        text = f"{100 * tick:.6g}%" if as_percent else f"{tick:.6g}"
        drawn.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" '
            f'y1="{down(tick):.1f}" y2="{down(tick):.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{down(tick) + 4:.1f}" text-anchor="end">'
            f"{escaped(text)}</text>"
        )
    drawn += _x_axis(left_x, right_x, across=across, name=x_name)
    for mark in x_marks:
        drawn.append(
            f'<line class="event" x1="{across(mark):.1f}" x2="{across(mark):.1f}" '
            f'y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>'
        )
    if level is not None:
        drawn.append(
            f'<line class="level" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" '
            f'y1="{down(level):.1f}" y2="{down(level):.1f}"/>'
        )
    legend = []
    for place, line in enumerate(shown):
        points = [(across(x), down(y)) for x, y in line.finite]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        drawn.append(f'<polyline class="line s{place % MAX_LINES}" points="{path}"/>')
        x, y = points[-1]
        drawn.append(f'<circle class="dot s{place % MAX_LINES}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
        value = line.finite[-1][1]
        told = f"{100 * value:.1f} %" if as_percent else f"{value:.3g}"
        legend.append(
            f'<span><i class="key s{place % MAX_LINES}"></i>{escaped(f"{line.name} {told}")}</span>'
        )
    words = "; ".join(
        f"{line.name} from {line.finite[0][1]:.3g} to {line.finite[-1][1]:.3g}" for line in shown
    )
    return (
        f'<figure class="plot"><figcaption>{escaped(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escaped(title)}: '
        f'{escaped(words)}">{"".join(drawn)}</svg><div class="legend">{"".join(legend)}</div>'
        "</figure>"
    )


def _x_axis(left: float, right: float, *, across, name: str) -> list[str]:
    """Labels that fit beside one another, the last one with the axis's name."""
    y = HEIGHT - 6
    end = f"{name} {right:.4g}"
    labels = []
    limit = WIDTH - _RIGHT - _CHARACTER * (len(end) + 1)
    for tick in nice_ticks(left, right):
        if left <= tick and across(tick) + _CHARACTER * len(f"{tick:.4g}") / 2 < limit:
            labels.append(
                f'<text x="{across(tick):.1f}" y="{y}" text-anchor="middle">{tick:.4g}</text>'
            )
    labels.append(f'<text x="{WIDTH - _RIGHT}" y="{y}" text-anchor="end">{escaped(end)}</text>')
    return labels
