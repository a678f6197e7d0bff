"""Small charts as inline SVG, each with a title and a description; the style sheet colours them.

Series differ by dash and marker as well as by colour. Coordinates are rounded to a tenth: equal data, equal bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from hashlib import sha256

from noscratch.results.pages.markup import PERCENT, Html, interval_text, join, metric_value, number, slug, tag

Points = Sequence[tuple[float, float]]
# A curve longer than this is thinned to it for the eye; the download has every point.
MOST_POINTS = 60
# With more points than this only the last has its marker.
MARKED_POINTS = 8
# Where a metric cannot go: an interval that reaches beyond is cut there, with an arrow.
BOUNDS = {
    "accuracy": (0.0, 1.0),
    "f1": (0.0, 1.0),
    "matthews": (-1.0, 1.0),
    "pearson": (-1.0, 1.0),
    "spearman": (-1.0, 1.0),
}


def line_chart(title: str, x_label: str, y_label: str, series: Mapping[str, Sequence[Points]]) -> Html:
    """Bundles of curves (one a run) over a common x. Points that are not finite break the line."""
    width, height, left, right, top, bottom = 440.0, 250.0, 52.0, 16.0, 16.0, 40.0
    finite = [(x, y) for bundle in series.values() for points in bundle for x, y in points if math.isfinite(y)]
    if not finite:
        return tag("p", f"{title}: no finite value to draw.", class_="ns-empty")
    x_ticks = ticks(min(x for x, _ in finite), max(x for x, _ in finite), 5)
    y_ticks = ticks(min(y for _, y in finite), max(y for _, y in finite), 4)
    x_low, x_high = x_ticks[0], x_ticks[-1]
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def across(x: float) -> float:
        return round(left + (x - x_low) / (x_high - x_low) * (width - left - right), 1)

    def down(y: float) -> float:
        return round(height - bottom - (y - y_low) / (y_high - y_low) * (height - top - bottom), 1)

    parts: list[Html] = []
    parts += _rows([(down(y), _tick(y, y_label)) for y in y_ticks], left, width - right)
    for x in x_ticks:
        parts.append(_label(across(x), height - bottom + 17, number(x), "middle"))
    parts.append(_line(left, height - bottom, width - right, height - bottom, "ns-axis"))
    parts.append(_label((left + width - right) / 2, height - 6, x_label, "middle"))
    for index, bundle in enumerate(series.values()):
        for points in bundle:
            shown = thin(points, MOST_POINTS)
            paths = ("M" + "L".join(_at(across(x), down(y)) for x, y in piece) for piece in _pieces(shown))
            parts.append(tag("path", d="".join(paths), class_=f"ns-series ns-series--{index % 4}"))
            marked = shown if len(shown) <= MARKED_POINTS else shown[-1:]
            parts.extend(_marker(index, across(x), down(y)) for x, y in marked if math.isfinite(y))
    ends = {name: [points[-1] for points in bundle if points] for name, bundle in series.items()}
    description = "; ".join(f"{name} ends at {_ends(last, x_label, y_label)}" for name, last in ends.items() if last)
    return _figure(title, description, width, height, parts, list(series))


def _rows(marks: Sequence[tuple[float, str]], left: float, right: float) -> list[Html]:
    """The grid of the y axis and its labels: (height, words)."""
    grid = "".join(f"M{_at(left, y)}H{_short(right)}" for y, _ in marks)
    labels = (_label(left - 7, y + 4, words, "middle") for y, words in marks)
    return [tag("path", d=grid, class_="ns-grid"), tag("g", *labels, text_anchor="end")]


def _ends(points: Points, x_label: str, y_label: str) -> str:
    values = sorted({y for _, y in points})
    words = dict.fromkeys(metric_value(y, y_label) for y in (values[0], values[-1]))
    return f"{' to '.join(words)} at {x_label} {number(max(x for x, _ in points))}"


def log_chart(title: str, x_label: str, y_label: str, series: Mapping[str, Points]) -> Html:
    """Curves over lengths on logarithmic axes, x in powers of two; points that are not positive are left out.

    The slope of each curve (exponent of a power of x) is in the description and, by `slope`, for the caller to print.
    """
    width, height, left, right, top, bottom = 440.0, 250.0, 58.0, 26.0, 16.0, 40.0
    drawn = {name: [(x, y) for x, y in points if x > 0 and 0 < y < math.inf] for name, points in series.items()}
    every = [point for points in drawn.values() for point in points]
    if not every:
        return tag("p", f"{title}: nothing to draw, every value is zero.", class_="ns-empty")
    x_ticks = powers_of_two(min(x for x, _ in every), max(x for x, _ in every))
    y_ticks = log_ticks(min(y for _, y in every), max(y for _, y in every))

    def across(x: float) -> float:
        share = math.log(x / x_ticks[0]) / math.log(x_ticks[-1] / x_ticks[0])
        return round(left + share * (width - left - right), 1)

    def down(y: float) -> float:
        share = math.log(y / y_ticks[0]) / math.log(y_ticks[-1] / y_ticks[0])
        return round(height - bottom - share * (height - top - bottom), 1)

    parts: list[Html] = []
    parts += _rows([(down(y), _log_tick(y)) for y in y_ticks], left, width - right)
    step = math.ceil(len(x_ticks) / 6)
    for x in x_ticks[::step]:
        parts.append(_label(across(x), height - bottom + 17, number(x), "middle"))
    parts.append(_line(left, height - bottom, width - right, height - bottom, "ns-axis"))
    parts.append(_label((left + width - right) / 2, height - 6, x_label, "middle"))
    for index, points in enumerate(drawn.values()):
        if len(points) > 1:
            path = "M" + "L".join(_at(across(x), down(y)) for x, y in points)
            parts.append(tag("path", d=path, class_=f"ns-series ns-series--{index % 4}"))
        marked = points if len(points) <= MARKED_POINTS else points[-1:]
        parts.extend(_marker(index, across(x), down(y)) for x, y in marked)
    ends = [
        f"{name} ends at {points[-1][1]:.3g} at {number(points[-1][0])}" for name, points in drawn.items() if points
    ]
    description = f"{y_label} against {x_label}, both logarithmic: " + "; ".join(ends)
    return _figure(title, description, width, height, parts, list(series))


def slope(points: Points) -> float | None:
    """The exponent p of the least-squares fit y = c x^p; None for fewer than two positive points."""
    logs = [(math.log(x), math.log(y)) for x, y in points if x > 0 and 0 < y < math.inf]
    middle = sum(x for x, _ in logs) / max(len(logs), 1)
    spread = sum((x - middle) ** 2 for x, _ in logs)
    return sum((x - middle) * y for x, y in logs) / spread if spread > 0 else None


def powers_of_two(low: float, high: float) -> list[float]:
    """The powers of two that enclose [low, high], at least two of them."""
    first, last = math.floor(math.log2(low)), math.ceil(math.log2(high))
    return [2.0**k for k in range(first, max(last, first + 1) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers that enclose [low, high] on a logarithmic axis: 1, 2, 5 over short ranges, else powers of ten."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    last = max(last, first + 1)
    if last - first > 2:
        step = math.ceil((last - first) / 6)
        return [10.0**k for k in range(first, last + step, step)]
    fine = [float(f"{factor}e{k}") for k in range(first, last + 1) for factor in (1, 2, 5)]
    start = max(index for index, tick in enumerate(fine) if tick <= low * (1 + 1e-9))
    end = min((index for index, tick in enumerate(fine) if tick >= high * (1 - 1e-9)), default=len(fine) - 1)
    return fine[start : max(end, start + 1) + 1]


def _log_tick(value: float) -> str:
    return f"{value:,g}" if 1e-3 <= value < 1e5 else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


def interval_chart(title: str, metric: str, rows: Sequence[tuple[str, float, float | None, float | None, int]]) -> Html:
    """One line per row: (label, mean, low, high, n). A hollow dot has one seed and no interval."""
    row_height, top, bottom, left, right, width = 36.0, 6.0, 26.0, 20.0, 20.0, 440.0
    height = top + bottom + row_height * len(rows)
    least, most = BOUNDS.get(metric, (-math.inf, math.inf))
    edges = [
        min(max(edge, least), most) for _, mean, low, high, _ in rows for edge in (mean, low, high) if edge is not None
    ]
    x_ticks = ticks(min(edges), max(edges), 5)

    def across(x: float) -> float:
        return round(left + (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (width - left - right), 1)

    parts = []
    for x in x_ticks:
        parts.append(_line(across(x), top, across(x), height - bottom, "ns-grid"))
        parts.append(_label(across(x), height - bottom + 17, _tick(x, metric), "middle"))
    for index, (label, mean, low, high, n) in enumerate(rows):
        y = top + row_height * (index + 0.66)
        parts.append(_label(2, y - 11, label, "start", "ns-row-label"))
        if low is not None and high is not None:
            parts.append(_line(across(max(low, least)), y, across(min(high, most)), y, "ns-interval"))
            parts.append(_end(across(max(low, least)), y, -1 if low < least else 0))
            parts.append(_end(across(min(high, most)), y, 1 if high > most else 0))
        hint = tag("title", f"{label}: {metric_value(mean, metric)}, 95 % {interval_text(low, high, metric)}, n = {n}")
        parts.append(
            tag(
                "circle",
                hint,
                cx=across(mean),
                cy=y,
                r=4.5,
                class_="ns-dot" if low is not None else "ns-dot ns-dot--hollow",
            )
        )
    description = (
        f"{len(rows)} rows: mean {metric} and its 95 % t interval over seeds. Hollow dots have one seed; "
        "an arrow is an interval that reaches beyond what the metric can be. The table below has the numbers."
    )
    return _figure(title, description, width, height, parts, [])


def _tick(value: float, metric: str) -> str:
    return f"{number(100 * value)} %" if metric in PERCENT else number(value)


def _end(x: float, y: float, beyond: int) -> Html:
    """The end of an interval: a bar, or an arrow to the left (-1) or right (1)."""
    if not beyond:
        return _line(x, y - 4, x, y + 4, "ns-interval")
    return tag("path", d=f"M{x} {y - 4.5}L{round(x + 6 * beyond, 1)} {y}L{x} {y + 4.5}Z", class_="ns-arrowhead")


def share_bar(title: str, counts: Mapping[str, int]) -> Html:
    """How a whole divides: one bar; every part has its colour, its hatching and its word with the count."""
    total = sum(counts.values())
    if not total:
        return Html("")
    parts = [
        tag(
            "span",
            tag("span", f"{count}", class_="ns-share__count"),
            class_=f"ns-share__part ns-share__part--{slug(name)}",
            style=f"flex-grow:{count}",
            title=f"{name}: {count} of {total}",
        )
        for name, count in counts.items()
        if count
    ]
    words = [
        tag("span", f"{name} ", tag("b", count), class_=f"ns-chip ns-chip--{slug(name)}")
        for name, count in counts.items()
        if count
    ]
    bar = tag(
        "div",
        *parts,
        class_="ns-share",
        role="img",
        aria_label=f"{title}: " + ", ".join(f"{c} {n}" for n, c in counts.items() if c),
    )
    return tag("figure", bar, tag("figcaption", join(words, " ")), class_="ns-shares")


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers that enclose [low, high]: steps of 1, 2 or 5 times a power of ten."""
    if low == high:
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if abs(low) > 1e-300 else (0.0, 1.0)
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{k * step:.12g}") for k in range(first, last + 1)]


def thin(points: Points, most: int) -> list[tuple[float, float]]:
    """At most `most` of the points, evenly, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(k * (len(points) - 1) / (most - 1))] for k in range(most)]


def _pieces(points: Points) -> list[list[tuple[float, float]]]:
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if math.isfinite(y):
            pieces[-1].append((x, y))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _figure(
    title: str, description: str, width: float, height: float, parts: Sequence[Html], names: Sequence[str]
) -> Html:
    mark = "c" + sha256(f"{title}{description}".encode()).hexdigest()[:8]
    head = join([tag("title", title, id=f"{mark}t"), tag("desc", description, id=f"{mark}d")])
    picture = tag(
        "svg",
        head,
        *parts,
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        text_anchor="middle",
        aria_labelledby=f"{mark}t {mark}d",
        class_="ns-svg",
    )
    keys = [tag("span", name, class_=f"ns-key ns-key--{index % 4}") for index, name in enumerate(names)]
    caption = tag("figcaption", tag("span", title, class_="ns-figure-title"), join(keys, " "))
    return tag("figure", caption, picture, class_="ns-figure")


def _marker(index: int, x: float, y: float) -> Html:
    style = f"ns-marker ns-marker--{index % 4}"
    if index % 4 == 0:
        return tag("circle", cx=x, cy=y, r=2.6, class_=style)
    if index % 4 == 1:
        return tag("rect", x=round(x - 2.6, 1), y=round(y - 2.6, 1), width=5.2, height=5.2, class_=style)
    return tag(
        "path",
        d=f"M{x} {round(y - 3.4, 1)}L{round(x + 3.2, 1)} {round(y + 2.6, 1)}L{round(x - 3.2, 1)} {round(y + 2.6, 1)}Z",
        class_=style,
    )


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> Html:
    return tag("path", d=f"M{_at(x1, y1)}L{_at(x2, y2)}", class_=style)


def _label(x: float, y: float, words: str, anchor: str, style: str | None = None) -> Html:
    inherited = None if anchor == "middle" else anchor
    return tag("text", words, x=_short(x), y=_short(y), text_anchor=inherited, class_=style)


def _at(x: float, y: float) -> str:
    return f"{_short(x)} {_short(y)}"


def _short(x: float) -> str:
    """A coordinate to a tenth: 52 or 70.6."""
    return f"{x:.1f}".removesuffix(".0")
