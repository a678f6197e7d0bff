"""Pictures that explain: what a kernel answers to one impulse, from the measurement `bench-impulse`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from noscratch.results.pages import charts
from noscratch.results.pages.evidence import Evidence, Measurement
from noscratch.results.pages.markup import Html, details, table, tag
from noscratch.results.pages.numbers import number, shown, words
from noscratch.results.pages.performance import provenance

IMPULSE = "bench-impulse"


def impulse_responses(evidence: Evidence, family: str) -> list[Html]:
    """A figure per set of weights (as initialized, after training) with a curve per head, and the numbers as text."""
    measured = evidence.measurements.get(IMPULSE)
    rows = [row for row in measured.rows if row["backbone"] == family] if measured else []
    if not measured or not rows:
        return []
    figures, texts = [], []
    for weights in dict.fromkeys(row["weights"] for row in rows):
        heads: dict[str, list[Mapping[str, Any]]] = {}
        for row in rows:
            if row["weights"] == weights:
                step = "" if row["step"] is None else f", step {row['step']:.2g}"
                heads.setdefault(f"head {row['head']}{step}", []).append(row)
        for name, of in heads.items():
            points = [(float(row["position"]), row["value"]) for row in of]
            figures.append(
                charts.line_chart(f"{name}, {weights}", "position", "value", {"kernel": [points]}, most=len(of))
            )
        texts.append(_table(measured, weights, heads))
    about = tag(
        "p",
        "What one impulse at the first position does to every later one: the convolution kernel itself, relative to "
        "its largest value. Of the first block, the heads with the shortest, the middle and the longest step; where "
        "heads have no step, the first ones.",
    )
    return [
        about,
        tag("div", *figures, class_="ns-figures"),
        details("The kernels as text", *texts),
        provenance(measured),
    ]


def _table(measured: Measurement, weights: str, heads: Mapping[str, list[Mapping[str, Any]]]) -> Html:
    """The values at powers of two."""
    by_position = {name: {row["position"]: row for row in rows} for name, rows in heads.items()}
    positions = sorted({p for of in by_position.values() for p in of if p & (p - 1) == 0})
    lines = [
        [
            words(number(p)),
            *(shown(measured.at(of[p], "value"), "three", of[p]["value"]) for of in by_position.values()),
        ]
        for p in positions
    ]
    return table(["Position", *heads], lines, words(f"Impulse response, {weights}, at powers of two"), named=True)
