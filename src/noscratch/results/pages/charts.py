"""Small charts as inline SVG, each told in its label; the style sheet colours them.

Series differ by dash and marker as well as by colour. Coordinates are rounded to a tenth: equal data, equal bytes.
A chart of smoke runs says across its middle that it is a draft.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from noscratch.results.pages.markup import Html, join, slug, tag
from noscratch.results.pages.numbers import PERCENT, number, of_metric, shown, spoken

Points = Sequence[tuple[float, float]]
# A curve longer than this is thinned to it for the eye; the download has every point.
MOST_POINTS = 32
# With more points than this only the last has its marker.
MARKED_POINTS = 8
# So many styles of series there are.
STYLES = 6
WIDTH = 440.0
# Where a metric cannot go: an interval that reaches beyond is cut there, with an arrow.
BOUNDS = {
    "accuracy": (0.0, 1.0),
    "f1": (0.0, 1.0),
    "matthews": (-1.0, 1.0),
    "pearson": (-1.0, 1.0),
    "spearman": (-1.0, 1.0),
}


class Interval(NamedTuple):
    """A mean and its interval; one seed has none."""

    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Scale:
    """From values, whose round numbers are the `ticks`, to coordinates from `start` to `end`."""

    ticks: Sequence[float]
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        low, high, of = self.ticks[0], self.ticks[-1], value
        if self.logarithmic:
            low, high, of = math.log(low), math.log(high), math.log(value)
        return round(self.start + (of - low) / (high - low) * (self.end - self.start), 1)


def line_chart(
    title: str,
    x_label: str,
    y_label: str,
    series: Mapping[str, Sequence[Points]],
    draft: bool = False,
    most: int = MOST_POINTS,
) -> Html:
    """Bundles of curves (one a run) over a common x, each thinned to `most` points; one not finite breaks the line."""
    finite = [(x, y) for bundle in series.values() for points in bundle for x, y in points if math.isfinite(y)]
    if not finite:
        return tag("p", f"{title}: no finite value to draw.", class_="ns-empty")
    height = 250.0
    across = Scale(ticks([x for x, _ in finite], 5), 52, WIDTH - 16)
    down = Scale(ticks([y for _, y in finite], 4), height - 40, 16)
    parts = _frame(across, down, [number(x) for x in across.ticks], [_tick(y, y_label) for y in down.ticks], x_label)
    for index, bundle in enumerate(series.values()):
        for points in bundle:
            shown_points = thin(points, most)
            parts += _curve(index, across, down, _pieces(shown_points))
            parts += _markers(index, across, down, [p for p in shown_points if math.isfinite(p[1])])
    ends = {name: [points[-1] for points in bundle if points] for name, bundle in series.items()}
    description = "; ".join(f"{name} ends at {_ends(last, x_label, y_label)}" for name, last in ends.items() if last)
    return _figure(title, description, height, parts, series, draft)


def log_chart(title: str, x_label: str, y_label: str, series: Mapping[str, Points]) -> Html:
    """Curves over lengths on logarithmic axes, x in powers of two; points that are not positive are left out."""
    drawn = {name: [(x, y) for x, y in points if x > 0 and 0 < y < math.inf] for name, points in series.items()}
    every = [point for points in drawn.values() for point in points]
    if not every:
        return tag("p", f"{title}: nothing to draw, every value is zero.", class_="ns-empty")
    height = 250.0
    across = Scale(powers_of_two(min(x for x, _ in every), max(x for x, _ in every)), 58, WIDTH - 26, True)
    down = Scale(log_ticks(min(y for _, y in every), max(y for _, y in every)), height - 40, 16, True)
    step = math.ceil(len(across.ticks) / 6)
    labels = [number(x) if k % step == 0 else "" for k, x in enumerate(across.ticks)]
    parts = _frame(across, down, labels, [_log_tick(y) for y in down.ticks], x_label)
    for index, points in enumerate(drawn.values()):
        parts += _curve(index, across, down, [points]) if len(points) > 1 else []
        parts += _markers(index, across, down, points)
    ends = [
        f"{name} ends at {points[-1][1]:.3g} at {number(points[-1][0])}" for name, points in drawn.items() if points
    ]
    description = f"{y_label} against {x_label}, both logarithmic: " + "; ".join(ends)
    return _figure(title, description, height, parts, series, draft=False)


def cost_chart(
    title: str, metric: str, series: Mapping[str, Sequence[tuple[float, Interval, str]]], draft: bool
) -> Html:
    """Scores against compute (logarithmic, FLOP): (compute, score, name) by series; a line joins the Pareto front.

    On the front is whatever no other point beats in both.
    """
    every = [point for points in series.values() for point in points]
    height = 270.0
    across = Scale(log_ticks(min(x for x, *_ in every), max(x for x, *_ in every)), 52, WIDTH - 16, True)
    down = Scale(ticks(_edges(metric, [score for _, score, _ in every]), 4), height - 40, 16)
    labels = [_log_tick(x) for x in across.ticks]
    parts = _frame(across, down, labels, [_tick(y, metric) for y in down.ticks], "training compute, FLOP")
    front = pareto([(x, score.mean) for x, score, _ in every])
    steps = [f"H{_short(across(x))}V{_short(down(y))}" for x, y in front[1:]]
    start = _at(across(front[0][0]), down(front[0][1]))
    parts.append(tag("path", d=f"M{start}{''.join(steps)}", class_="ns-front"))
    for index, points in enumerate(series.values()):
        for x, score, name in points:
            hint = tag("title", f"{name}: {_tick(score.mean, metric)} at {x:.2g} FLOP")
            parts += _bar(metric, score, down, across(x), f"ns-stroke--{index % STYLES}", upright=True)
            parts.append(tag("g", hint, *_markers(index, across, down, [(x, score.mean)])))
    names = [next(name for x, score, name in every if (x, score.mean) == point) for point in front]
    description = f"Test {metric} against training compute. On the Pareto front: {', '.join(names)}."
    return _figure(title, description, height, parts, series, draft)


def pareto(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (cost, gain) that no other beats in both, by rising cost."""
    front: list[tuple[float, float]] = []
    for cost, gain in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not front or gain > front[-1][1]:
            front.append((cost, gain))
    return front


def interval_chart(title: str, metric: str, rows: Sequence[tuple[str, Interval, int]], draft: bool) -> Html:
    """One line per row: (label, score, n). A hollow dot has one seed and no interval."""
    row_height, top, bottom = 36.0, 6.0, 26.0
    height = top + bottom + row_height * len(rows)
    across = Scale(ticks(_edges(metric, [score for _, score, _ in rows]), 5), 20, WIDTH - 20)
    parts = _columns(across, [_tick(x, metric) for x in across.ticks], top, height - bottom)
    for index, (label, score, n) in enumerate(rows):
        y = top + row_height * (index + 0.62)  # nearer to its own label than to the next
        parts.append(_label(2, y - 10, label, "start", "ns-row-label"))
        parts += _bar(metric, score, across, y, "ns-stroke--0")
        hollow = "ns-dot ns-dot--hollow" if score.low is None else "ns-dot"
        hint = tag("title", f"{label}: {_words(score.mean, metric)}, n = {n}")
        parts.append(tag("circle", hint, cx=across(score.mean), cy=y, r=4.5, class_=hollow))
    description = (
        f"{len(rows)} rows: mean {metric} and its 95 % t interval over seeds. Hollow dots have one seed; "
        "an arrow is an interval that reaches beyond what the metric can be. The table below has the numbers."
    )
    return _figure(title, description, height, parts, [], draft)


def pair_chart(
    title: str,
    metric: str,
    sides: tuple[str, str],
    rows: Sequence[tuple[str, Interval | None, Interval | None]],
    draft: bool,
) -> Html:
    """One line per row: (label, before, after) with intervals, an arrow from the one (hollow square) to the other."""
    row_height, top, bottom, left = 34.0, 8.0, 26.0, 108.0
    height = top + bottom + row_height * len(rows)
    across = Scale(ticks(_edges(metric, [s for _, *both in rows for s in both if s]), 5), left, WIDTH - 18)
    parts = _columns(across, [_tick(x, metric) for x in across.ticks], top, height - bottom)
    told = []
    for index, (label, before, after) in enumerate(rows):
        y = top + row_height * (index + 0.5)
        parts.append(_label(2, y + 4, label, "start", "ns-row-label"))
        for score, style, shift in ((before, "ns-stroke--1", -5), (after, "ns-stroke--0", 5)):
            parts += _bar(metric, score, across, y + shift, style) if score else []
        if before and after:
            ends = across(before.mean), across(after.mean)
            parts.append(_line(ends[0], y - 5, ends[1], y + 5, "ns-link"))
            told.append(f"{label} from {_words(before.mean, metric)} to {_words(after.mean, metric)}")
        parts += [_marker(1, across(before.mean), y - 5, hollow=True)] if before else []
        parts += [_marker(0, across(after.mean), y + 5)] if after else []
    description = f"Mean test {metric} with its t interval: {sides[0]} (square), {sides[1]} (dot). " + "; ".join(told)
    keys = [tag("span", sides[1], class_="ns-key ns-key--dot"), tag("span", sides[0], class_="ns-key ns-key--square")]
    return _figure(title, description, height, parts, keys, draft)


def share_bar(title: str, counts: Mapping[str, tuple[int, str]], slim: bool = False) -> Html:
    """How a whole divides, name -> (count, its address): one bar, then every part's word, colour and count."""
    counts = {name: count for name, count in counts.items() if count[0]}
    if not counts:
        return Html("")
    parts = [
        tag("span", class_=f"ns-share__part ns-share__part--{slug(name)}", style=f"flex-grow:{count}")
        for name, (count, _) in counts.items()
    ]
    words = [
        tag("span", f"{name} ", tag("b", shown(cell, "number", count)), class_=f"ns-chip ns-chip--{slug(name)}")
        for name, (count, cell) in counts.items()
    ]
    told = ", ".join(f"{count} {name}" for name, (count, _) in counts.items())
    bar = tag("div", *parts, class_="ns-share", role="img", aria_label=f"{title}: {told}")
    style = "ns-shares ns-shares--slim" if slim else "ns-shares"
    return tag("figure", bar, tag("figcaption", join(words, " ")), class_=style)


def slope(points: Points) -> float | None:
    """The exponent p of the least-squares fit y = c x^p; None for fewer than two positive points."""
    logs = [(math.log(x), math.log(y)) for x, y in points if x > 0 and 0 < y < math.inf]
    middle = sum(x for x, _ in logs) / max(len(logs), 1)
    spread = sum((x - middle) ** 2 for x, _ in logs)
    return sum((x - middle) * y for x, y in logs) / spread if spread > 0 else None


def ticks(values: Sequence[float], about: int) -> list[float]:
    """Round numbers that enclose the values: steps of 1, 2 or 5 times a power of ten."""
    low, high = min(values), max(values)
    if low == high:
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if abs(low) > 1e-300 else (0.0, 1.0)
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{k * step:.12g}") for k in range(first, last + 1)]


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


def thin(points: Points, most: int) -> list[tuple[float, float]]:
    """At most `most` of the points, evenly, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(k * (len(points) - 1) / (most - 1))] for k in range(most)]


# ---------------------------------------------------------------- parts of charts


def _words(value: float, metric: str) -> str:
    return spoken(of_metric(metric), value)


def _tick(value: float, metric: str) -> str:
    return f"{number(100 * value)} %" if metric in PERCENT else number(value)


def _log_tick(value: float) -> str:
    return (
        f"{value:,g}"
        if 1e-3 <= value < 1e5
        else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    )


def _ends(points: Points, x_label: str, y_label: str) -> str:
    values = sorted({y for _, y in points})
    words = dict.fromkeys(_words(y, y_label) for y in (values[0], values[-1]))
    return f"{' to '.join(words)} at {x_label} {number(max(x for x, _ in points))}"


def _edges(metric: str, scores: Iterable[Interval]) -> list[float]:
    """Everything that the axis must reach, cut to where the metric can go."""
    least, most = BOUNDS.get(metric, (-math.inf, math.inf))
    return [min(max(edge, least), most) for score in scores for edge in score if edge is not None]


def _frame(across: Scale, down: Scale, x_words: Sequence[str], y_words: Sequence[str], x_label: str) -> list[Html]:
    """The axes of a chart whose values go up: grid lines, labels, the name of x."""
    left, right, floor = across.start, across.end, down.start
    grid = "".join(f"M{_at(left, down(y))}H{_short(right)}" for y in down.ticks)
    y_labels = (_label(left - 7, down(y) + 4, words, "middle") for y, words in zip(down.ticks, y_words, strict=True))
    x_labels = (
        _label(across(x), floor + 17, words, "middle") for x, words in zip(across.ticks, x_words, strict=True) if words
    )
    return [
        tag("path", d=grid, class_="ns-grid"),
        tag("g", *y_labels),
        *x_labels,
        _label((left + right) / 2, floor + 34, x_label, "middle"),
    ]


def _columns(across: Scale, words: Sequence[str], top: float, floor: float) -> list[Html]:
    """The axis of a chart whose values go to the right."""
    grid = "".join(f"M{_at(across(x), top)}V{_short(floor)}" for x in across.ticks)
    labels = (_label(across(x), floor + 17, word, "middle") for x, word in zip(across.ticks, words, strict=True))
    return [tag("path", d=grid, class_="ns-grid"), *labels]


def _curve(index: int, across: Scale, down: Scale, pieces: Sequence[Points]) -> list[Html]:
    # Of a long curve whole pixels are enough.
    digits = 1 if max(map(len, pieces)) <= MARKED_POINTS else 0
    paths = ("M" + "L".join(_at(across(x), down(y), digits) for x, y in piece) for piece in pieces)
    return [tag("path", d="".join(paths), class_=f"ns-series--{index % STYLES}")]


def _markers(index: int, across: Scale, down: Scale, points: Points) -> list[Html]:
    marked = points if len(points) <= MARKED_POINTS else points[-1:]
    return [_marker(index, across(x), down(y)) for x, y in marked]


def _bar(metric: str, score: Interval, scale: Scale, at: float, style: str, upright: bool = False) -> list[Html]:
    """An interval: a line with a bar at each end, or an arrow where it reaches beyond what the metric can be."""
    if score.low is None or score.high is None:
        return []
    least, most = BOUNDS.get(metric, (-math.inf, math.inf))
    ends = [scale(max(score.low, least)), scale(min(score.high, most))]
    low, high = ((at, end) if upright else (end, at) for end in ends)
    caps = [_end(low, high, score.low < least, style), _end(high, low, score.high > most, style)]
    return [_line(*low, *high, f"ns-interval {style}"), *caps]


def _end(end: tuple[float, float], other: tuple[float, float], beyond: bool, style: str) -> Html:
    x, y = end
    lying = y == other[1]
    if not beyond:
        dx, dy = (0, 4) if lying else (4, 0)
        return _line(x - dx, y - dy, x + dx, y + dy, f"ns-interval {style}")
    if lying:
        tip = round(x + (6 if x >= other[0] else -6), 1)
        return tag("path", d=f"M{_at(x, y - 4.5)}L{_at(tip, y)}L{_at(x, y + 4.5)}Z", class_="ns-arrowhead")
    tip = round(y + (6 if y > other[1] else -6), 1)
    return tag("path", d=f"M{_at(x - 4.5, y)}L{_at(x, tip)}L{_at(x + 4.5, y)}Z", class_="ns-arrowhead")


def _pieces(points: Points) -> list[list[tuple[float, float]]]:
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if math.isfinite(y):
            pieces[-1].append((x, y))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _figure(
    title: str, description: str, height: float, parts: Sequence[Html], names: Iterable[object], draft: bool
) -> Html:
    """The chart with its title, and a key for every series (a name, or an element of its own)."""
    water = _label(WIDTH / 2, height / 2, "smoke: not evidence", "middle", "ns-draft") if draft else ""
    told = f"{title}. {description}"
    picture = tag("svg", water, *parts, viewBox=f"0 0 {WIDTH:g} {height:g}", role="img", aria_label=told)
    keys = [
        name if isinstance(name, Html) else tag("span", name, class_=f"ns-key ns-key--{index % STYLES}")
        for index, name in enumerate(names)
    ]
    caption = tag("figcaption", tag("span", title, class_="ns-figure-title"), join(keys, " "), class_="ns-words")
    return tag("figure", caption, picture, class_="ns-figure")


def _marker(index: int, x: float, y: float, hollow: bool = False) -> Html:
    style = f"ns-marker--{index % STYLES}" + (" ns-marker--hollow" if hollow else "")
    shape = index % 3
    if shape == 0:
        return tag("circle", cx=_short(x), cy=_short(y), r=3.4 if index == 0 else 2.8, class_=style)
    if shape == 1:
        return tag("rect", x=_short(x - 3), y=_short(y - 3), width=6, height=6, class_=style)
    return tag("path", d=f"M{_at(x, y - 3.6)}L{_at(x + 3.4, y + 2.8)}L{_at(x - 3.4, y + 2.8)}Z", class_=style)


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> Html:
    return tag("path", d=f"M{_at(x1, y1)}L{_at(x2, y2)}", class_=style)


def _label(x: float, y: float, words: str, anchor: str, style: str | None = None) -> Html:
    inherited = None if anchor == "middle" else anchor
    return tag("text", words, x=_short(x), y=_short(y), text_anchor=inherited, class_=style)


def _at(x: float, y: float, digits: int = 1) -> str:
    return f"{_short(x, digits)} {_short(y, digits)}"


def _short(x: float, digits: int = 1) -> str:
    """A coordinate to a tenth: 52 or 70.6."""
    return f"{x:.{digits}f}".removesuffix(".0")
