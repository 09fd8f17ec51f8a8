"""Charts as SVG, made here.

A page needs lines, a histogram and a matrix. Their SVG is a few kilobytes each and takes its
colours from the page, so that it is right in light and in dark; a library for charts would bring
50 kB (uPlot) to 4 MB (Plotly) of script into every report, and be one more thing to keep current.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

WIDTH, HEIGHT = 440, 210
LEFT, RIGHT, TOP, BOTTOM = 48, 14, 10, 36
MOST_POINTS = 400
"""Of a line; a longer one is drawn by the mean of its neighbours."""

_INNER_WIDTH, _INNER_HEIGHT = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

Line = tuple[NDArray[np.float64], NDArray[np.float64]]


def lines(
    title: str, series: Mapping[str, Line], across: str = "iteration", decades: bool = False
) -> Markup:
    """Lines over one axis. series: name -> x, y.  decades: where values are positive and lie far
    apart the axis is logarithmic, and says so."""
    thin = {name: _thinned(line) for name, line in series.items() if len(line[0])}
    values = np.concatenate([y for _, y in thin.values()]) if thin else np.zeros(1)
    places = np.concatenate([x for x, _ in thin.values()]) if thin else np.zeros(1)
    log = bool(decades and values.min() > 0 and values.max() > 30 * values.min())
    scale = np.log10 if log else np.asarray
    down = _ticks(*_span(scale(values)))
    along = _ticks(*_span(places))

    def x(value: NDArray[np.float64]) -> NDArray[np.float64]:
        return LEFT + (value - along[0]) / (along[-1] - along[0]) * _INNER_WIDTH

    def y(value: NDArray[np.float64]) -> NDArray[np.float64]:
        return TOP + (1 - (scale(value) - down[0]) / (down[-1] - down[0])) * _INNER_HEIGHT

    parts = [_grid(along, down, log), _words(across + (", log scale" if log else ""))]
    for number, (name, (xs, ys)) in enumerate(thin.items()):
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x(xs), y(ys), strict=True))
        drawn = (
            Markup('<polyline class="line" points="{}"/>').format(points)
            if len(xs) > 1
            else Markup('<circle class="dot" cx="{}" cy="{}" r="3"/>').format(*points.split(","))
        )
        said = f"{name}: {_number(float(ys[-1]))} at {across} {_number(float(xs[-1]))}"
        parts.append(_group(number, said, drawn))
    return _figure(title, parts, list(thin))


def histogram(title: str, values: NDArray[np.int64], across: str) -> Markup:
    """How often each number occurs, in at most 32 bars."""
    top = int(values.max()) if len(values) else 0
    width = max(1, -(-(top + 1) // 32))
    counts = np.bincount(values // width, minlength=1) if len(values) else np.zeros(1, np.int64)
    down = _ticks(0.0, float(max(1, counts.max())))
    along = _ticks(0.0, float(len(counts) * width))
    parts = [_grid(along, down), _words(across)]
    for place, count in enumerate(counts.tolist()):
        step = _INNER_WIDTH * width / (along[-1] - along[0])
        tall = _INNER_HEIGHT * count / down[-1]
        last = place * width + width - 1
        said = f"{place * width}" if width == 1 else f"{place * width} to {last}"
        bar = Markup('<rect class="column" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>')
        drawn = bar.format(LEFT + place * step, TOP + _INNER_HEIGHT - tall, step * 0.9, tall)
        parts.append(_group(0, f"{said}: {count:,} frames", drawn))
    return _figure(title, parts, [])


def matrix(title: str, names: Sequence[str], shares: NDArray[np.float64]) -> Markup:
    """A square of cells. shares: [K,K], 0..1, row by row; cells below a thousandth stay empty."""
    size, room = 18, 10 + round(7.4 * max(map(len, names)))
    side = room + size * len(names) + 4
    parts: list[Markup] = []
    for row, name in enumerate(names):
        at = room + row * size
        text = Markup('<text class="{}" {}>{}</text>')
        parts.append(text.format("end", Markup(f'x="{room - 5}" y="{at + 13}"'), name))
        turned = Markup(f'transform="translate({at + 13} {room - 5}) rotate(-90)"')
        parts.append(text.format("start", turned, name))
        for column in np.flatnonzero(shares[row] >= 0.001).tolist():
            share = float(shares[row, column])
            kind = "right" if row == column else "wrong"
            cell = Markup('<rect class="cell {}" x="{}" y="{}" width="17" height="17" {}/>')
            strength = Markup(f'fill-opacity="{max(0.06, math.sqrt(share)):.2f}"')
            drawn = cell.format(kind, room + column * size, at, strength)
            said = f"{name} taken for {names[column]}: {100 * share:.1f} %"
            parts.append(_group(0, said, drawn))
    frame = Markup(f'<rect class="frame" x="{room}" y="{room}" width="{size * len(names)}" ')
    parts.append(frame + Markup(f'height="{size * len(names)}"/>'))
    return _svg(title, side, side, parts, fixed=True)


# --- parts of a chart -------------------------------------------------------------------------


def _figure(title: str, parts: Sequence[Markup], names: Sequence[str]) -> Markup:
    legend = Markup("").join(
        Markup('<li class="s{}">{}</li>').format(number % 8, name)
        for number, name in enumerate(names)
    )
    listed = Markup('<ul class="legend">{}</ul>').format(legend) if len(names) > 1 else ""
    head = Markup("<figure class=chart><figcaption>{}</figcaption>{}").format(title, listed)
    return head + _svg(title, WIDTH, HEIGHT, parts) + Markup("</figure>")


def _svg(
    title: str, width: int, height: int, parts: Sequence[Markup], fixed: bool = False
) -> Markup:
    size = Markup(f' width="{width}" height="{height}"') if fixed else ""
    head = Markup('<svg viewBox="0 0 {} {}"{} role="img" aria-label="{}">')
    return head.format(width, height, size, title) + Markup("").join(parts) + Markup("</svg>")


def _group(number: int, said: str, drawn: Markup) -> Markup:
    return Markup('<g class="s{}"><title>{}</title>{}</g>').format(number % 8, said, drawn)


def _grid(along: Sequence[float], down: Sequence[float], log: bool = False) -> Markup:
    parts: list[str] = []
    for value in down:
        y = TOP + (1 - (value - down[0]) / (down[-1] - down[0])) * _INNER_HEIGHT
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" ')
        shown = _number(10**value) if log else f"{value:,.6g}"
        parts.append(
            f'y2="{y:.1f}"/><text class="end" x="{LEFT - 6}" y="{y + 4:.1f}">{shown}</text>'
        )
    for value in along:
        x = LEFT + (value - along[0]) / (along[-1] - along[0]) * _INNER_WIDTH
        shown = f"{value:,.6g}"
        parts.append(f'<text class="middle" x="{x:.1f}" y="{HEIGHT - 20}">{shown}</text>')
    return Markup("".join(parts))


def _words(across: str) -> Markup:
    place = Markup('<text class="middle" x="{}" y="{}">{}</text>')
    return place.format(LEFT + _INNER_WIDTH / 2, HEIGHT - 3, across)


def _thinned(line: Line) -> Line:
    """At most `MOST_POINTS` points, and the last one as it is."""
    xs, ys = line
    if len(xs) <= MOST_POINTS:
        return line
    parts = np.array_split(np.arange(len(xs) - 1), MOST_POINTS - 1)
    thin = [np.array([*(each[part].mean() for part in parts), each[-1]]) for each in (xs, ys)]
    return thin[0], thin[1]


def _span(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from at most `low` to at least `high`."""
    rough = (high - low) / count
    unit = 10 ** math.floor(math.log10(rough))
    step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
