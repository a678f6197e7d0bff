"""When runs begin to learn: survival curves of "still at chance" on the page of a task, from reports/cells.parquet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from noscratch.results.pages import charts
from noscratch.results.pages.evidence import Evidence
from noscratch.results.pages.markup import Html, Page, backbone_page, details, link, table, tag
from noscratch.results.pages.numbers import at, shown

KEY = ("tier", "task", "backbone", "protocol", "code", "setting")


def onsets(page: Page, evidence: Evidence, tier: str, task: str) -> None:
    """The share of runs that is still at chance, step by step; nothing where no run of the task has onsets."""
    rows = [row for row in evidence.cells if (row["tier"], row["task"]) == (tier, task) and json.loads(row["onsets"])]
    if not rows:
        return
    page.heading("When runs begin to learn", 4)
    page.say(
        "The share of runs that is still at chance (Kaplan and Meier). A run has learned once its validation score "
        "exceeds chance by a margin; one that never does counts to the end of its budget."
    )
    figures = []
    for protocol in dict.fromkeys(row["protocol"] for row in rows):
        mine = [row for row in rows if row["protocol"] == protocol]
        for some in (mine[k : k + charts.STYLES] for k in range(0, len(mine), charts.STYLES)):
            series = {row["backbone"]: [survival(row)] for row in some}
            figures.append(charts.line_chart(protocol, "step", "share", series, tier == "smoke"))
    page.add(tag("div", *figures, class_="ns-figures"), details("The onsets as text", _table(rows)))


def survival(row: Mapping[str, Any]) -> list[tuple[float, float]]:
    """The Kaplan-Meier estimate as the corners of its steps, from (0, 1) to the budget."""
    steps = [row["budget"] if step is None else step for step in json.loads(row["onsets"]).values()]
    learned = sorted(step for step in json.loads(row["onsets"]).values() if step is not None)
    share, corners = 1.0, [(0.0, 1.0)]
    for step in sorted(set(learned)):
        at_risk = sum(other >= step for other in steps)
        corners.append((float(step), share))
        share *= 1 - learned.count(step) / at_risk
        corners.append((float(step), share))
    return [*corners, (float(row["budget"]), share)]


def _table(rows: Sequence[Mapping[str, Any]]) -> Html:
    lines = []
    for row in rows:
        address = at("cells", *(row[name] for name in KEY))
        share = ("learned", "learned_low", "learned_high", "runs")
        median = ("onset_median", "onset_low", "onset_high")
        p = row["onset_p"]
        lines.append(
            (
                link("../" + backbone_page(row["backbone"]), row["backbone"]),
                row["protocol"],
                shown(f"{address}/{','.join(share)}", "percent-mean", *(row[name] for name in share)),
                shown(f"{address}/{','.join(median)}", "onset", *(row[name] for name in median)),
                "" if p is None else shown(f"{address}/onset_p", "two", p),
            )
        )
    columns = ["Backbone", "Protocol", "Learned within the budget", "Median step", "p against scratch, adjusted"]
    return table(columns, lines, "Share of the runs that learned, and when")
