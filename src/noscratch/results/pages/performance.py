"""The performance page: how fast, and in how much memory, beside public layers and plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from noscratch.results.pages import charts
from noscratch.results.pages.evidence import Evidence, Measurement
from noscratch.results.pages.markup import (
    Cell,
    Column,
    Html,
    Page,
    Row,
    code,
    details,
    facts,
    join,
    listing,
    note,
    number,
    short,
    size,
    table,
    tag,
)

KERNELS, GENERATORS = "bench-kernels", "bench-generators"
COMMANDS = {
    KERNELS: "python -m bench.kernels --threads 1 2 --environment plain equal "
    "--peer-s4 PATH --peer-sgconv PATH --peer-bigs PATH --out reports/records/bench-kernels",
    GENERATORS: "python -m bench.generators reports/records/bench-generators/generators.json",
}
OURS = "noscratch"
# What bench/kernels.py compares, in words; a measurement of something else is shown by its own name.
ITEMS = {
    "s4d": "S4D layer",
    "s4d-bidirectional": "S4D layer, both directions",
    "s4": "S4 layer (NPLR)",
    "dss-exp": "DSS layer (exp)",
    "sgconv": "SGConv layer",
    "s4d-block": "S4D block: norm, layer, GELU, GLU, residual",
    "s4-block": "S4 block: norm, layer, GELU, GLU, residual",
    "bigs": "BiGS layer",
    "linear": "Linear map",
    "scan": "Linear scan",
    "rotary": "Rotary embedding",
    "attention": "Causal attention",
}
ENVIRONMENTS = {
    "plain": "as shipped",
    "equal": "the whole process keeps freed memory, which helps every side",
}


def pages(evidence: Evidence) -> Iterator[Page]:
    page = Page(
        "performance.html",
        "Performance",
        "Time and peak memory of the kernels against length, beside public layers and plain PyTorch.",
        wide=True,
    )
    page.say(
        "One forward and backward pass of each layer, beside what people would use instead. What is compared runs in "
        "turn in one process on one machine, and the least time of all rounds counts. A ratio above 1 says that the "
        "other one needs more."
    )
    measured = evidence.measurements.get(KERNELS)
    if measured is None:
        not_measured(page, KERNELS)
    else:
        _kernels(page, measured)
    page.heading("Generators of data")
    page.say(
        "Examples per second of one core, beside a straightforward form of the same algorithm, which for Pathfinder "
        "gives the same bytes."
    )
    made = evidence.measurements.get(GENERATORS)
    if made is None:
        not_measured(page, GENERATORS)
    else:
        _generators(page, made)
    yield page


def not_measured(page: Page, name: str, line: str | None = None) -> None:
    """Say that there is no measurement, and what makes it."""
    page.add(note(tag("strong", "Not measured yet."), " This measures it:"))
    page.command(line or COMMANDS[name])


def provenance(measured: Measurement) -> Html:
    """Where a measurement comes from: machine, libraries, commit, address and the bytes."""
    about, record = measured.provenance, measured.record
    commit = about.get("commit")
    libraries = about.get("libraries", {})
    rows: list[tuple[str, object]] = [
        ("Device", ", ".join(sorted({str(r["device"]) for r in measured.rows if "device" in r})) or about["processor"]),
        ("Software", f"Python {about['python']}, " + ", ".join(f"{k} {libraries[k]}" for k in sorted(libraries))),
        (
            "Commit",
            join([short(commit), " and changes not committed" if about.get("dirty") else ""]) if commit else "none",
        ),
        ("Measured", about["started"][:10]),
        ("Address", code(record["address"])),
    ]
    files = [f"{file['sha256']}  {measured.folder}/{name}" for name, file in sorted(record["artifacts"].items())]
    settings = [f"{name} = {value}" for name, value in sorted(record["settings"].items())]
    return details("Where it was measured, and the files behind it", facts(rows), listing([*settings, *files]))


# ---------------------------------------------------------------- kernels

Rows = Sequence[Mapping[str, Any]]
SETTING = ("device", "environment", "threads")


def _kernels(page: Page, measured: Measurement) -> None:
    rows = measured.rows
    devices = sorted({row["device"] for row in rows})
    page.say(
        "Measured on ",
        tag("strong", " and ".join(devices)),
        f" with PyTorch {', '.join(sorted({row['torch'] for row in rows}))}, float32. Environments: ",
        "; ".join(f"{name}: {ENVIRONMENTS.get(name, name)}" for name in _values(rows, "environment")),
        ". A shape is batch × width × length × states.",
    )
    page.add(provenance(measured))
    page.heading("How many times as fast")
    page.say("The least time of the other one divided by ours, with the rounds that each had.")
    settings = sorted({tuple(row[key] for key in SETTING) for row in rows}, key=lambda s: (s[0], s[1] != "plain"))
    matrices = {
        setting: _matrix([row for row in rows if tuple(row[key] for key in SETTING) == setting], *setting)
        for setting in settings
    }
    # A job gets every thread that there is; fewer are for the curious.
    most = max(threads for *_, threads in settings)
    page.add(*(sheet for (*_, threads), sheet in matrices.items() if threads == most))
    if fewer := [sheet for (*_, threads), sheet in matrices.items() if threads < most]:
        page.add(details("With fewer threads", *fewer))
    page.heading("Against length")
    page.say(
        "Time and peak memory of one sequence (those of the batch, divided by it), both axes logarithmic. "
        "The slope is the exponent: 1 is linear in length, 2 quadratic."
    )
    for item in _values(rows, "item"):
        figures = _scaling(item, [row for row in rows if row["item"] == item])
        if figures:
            page.heading(ITEMS.get(item, item), 3)
            page.add(*figures)
    page.heading("Every comparison")
    page.add(_comparisons(rows))


def _values(rows: Rows, key: str) -> list[Any]:
    """The distinct values in the order in which they stand."""
    return list(dict.fromkeys(row[key] for row in rows))


def _shape(row: Mapping[str, Any]) -> tuple[int, int, int, int]:
    return row["batch"], row["heads"], row["length"], row["states"]


def _times(shape: Sequence[int]) -> str:
    return " × ".join(map(number, shape))


def _multiple(ratio: float) -> str:
    return f"{ratio:.0f}×" if ratio >= 100 else f"{ratio:.1f}×" if ratio >= 10 else f"{ratio:.2f}×"


def _matrix(rows: Rows, device: str, environment: str, threads: int) -> Html:
    """Items and what they are compared with down, shapes across."""
    shapes = sorted({_shape(row) for row in rows}, key=lambda shape: (shape[2], shape))
    lines: dict[tuple[str, str], dict[tuple[int, ...], Mapping[str, Any]]] = {}
    for row in rows:
        if row["candidate"] != OURS:
            lines.setdefault((row["item"], row["candidate"]), {})[_shape(row)] = row
    body = []
    for (item, candidate), cells in lines.items():
        name = tag("span", ITEMS.get(item, item), tag("small", f"beside {candidate}"), class_="ns-stack")
        body.append([name, *(_ratio(cells.get(shape)) for shape in shapes)])
    heads: list[Column | str] = ["What", *(Column(_times(shape), sort=None) for shape in shapes)]
    count = "1 thread" if threads == 1 else f"{threads} threads"
    caption = f"{count}, {environment}, {device}"
    return table(heads, body, caption)


def _ratio(row: Mapping[str, Any] | None) -> Cell:
    if row is None:
        return Cell("", key="")
    about = tag("small", f"n = {row['rounds']} rounds")
    slower = "ns-quiet" if row["ratio"] < 1 else None
    return Cell(
        tag("span", tag("b", _multiple(row["ratio"]), class_=slower), about, class_="ns-stack"), key=row["ratio"]
    )


def _scaling(item: str, rows: Rows) -> list[Html]:
    """Time and memory against length of one item, in its first environment at the most threads."""
    environment = "plain" if any(row["environment"] == "plain" for row in rows) else rows[0]["environment"]
    threads = max(row["threads"] for row in rows if row["environment"] == environment)
    figures: list[Html] = []
    texts: list[Html] = []
    alike = [row for row in rows if row["environment"] == environment and row["threads"] == threads]
    for device, heads, states in dict.fromkeys((row["device"], row["heads"], row["states"]) for row in alike):
        these = sorted(
            (row for row in alike if (row["device"], row["heads"], row["states"]) == (device, heads, states)),
            key=lambda row: (row["candidate"] != OURS, row["candidate"], row["length"]),
        )
        if len({row["length"] for row in these}) < 2:
            continue
        where = f"{environment}, {threads} threads, width {heads}, {states} states, {device}"
        for title, unit, column, scale in (("Time", "ms", "best", 1e3), ("Peak memory", "MB", "peak", 1e-6)):
            series = {
                candidate: [
                    (float(row["length"]), scale * row[column] / row["batch"])
                    for row in these
                    if row["candidate"] == candidate and row[column] is not None
                ]
                for candidate in _values(these, "candidate")
            }
            series = {candidate: points for candidate, points in series.items() if points}
            if not series:
                continue
            figures.append(charts.log_chart(f"{title} of a sequence, {unit}", "length", unit, sloped(series)))
            texts.append(log_table(f"{title} of a sequence, {unit} ({where})", "Length", series))
    if not figures:
        return []
    return [tag("div", *figures, class_="ns-figures"), details("The figures as text", *texts)]


def sloped(series: Mapping[str, charts.Points]) -> dict[str, charts.Points]:
    """The same curves, each with its slope in its name."""
    named = {}
    for name, points in series.items():
        exponent = charts.slope(points)
        named[name if exponent is None else f"{name}, slope {exponent:.2f}"] = points
    return named


def log_table(caption: str, label: str, series: Mapping[str, charts.Points]) -> Html:
    """Curves as a table, three digits each, their slopes in the last row."""
    values = {name: dict(points) for name, points in series.items()}
    lines: list[list[object]] = [
        [number(x), *("" if x not in of else f"{of[x]:.3g}" for of in values.values())]
        for x in sorted({x for of in values.values() for x in of})
    ]
    exponents = [charts.slope(points) for points in series.values()]
    lines.append(["slope", *("" if exponent is None else f"{exponent:.2f}" for exponent in exponents)])
    return table([label, *series], lines, caption)


def _comparisons(rows: Rows) -> Html:
    ours = {(row["item"], _shape(row), *(row[key] for key in SETTING)): row for row in rows if row["candidate"] == OURS}
    lines = []
    for row in rows:
        if row["candidate"] == OURS:
            continue
        own = ours[(row["item"], _shape(row), *(row[key] for key in SETTING))]
        revision = tag("small", f"at {row['revision'][:12]}", title=row["revision"]) if row["revision"] else ""
        cells = (
            tag("span", ITEMS.get(row["item"], row["item"]), code(row["item"]), class_="ns-stack"),
            Cell(_times(_shape(row)), key=row["length"]),
            tag("span", row["candidate"], revision, class_="ns-stack"),
            f"{row['environment']}, {row['threads']}",
            _time(own),
            _time(row),
            _ratio(row),
            _memory(own, row),
        )
        facets = {
            "what": [row["item"]],
            "beside": [row["candidate"]],
            "length": [str(row["length"])],
            "environment": [row["environment"]],
            "threads": [str(row["threads"])],
            "device": [row["device"]],
        }
        lines.append(Row(cells, facets))
    columns = [
        Column("What"),
        Column("Shape", sort="number"),
        Column("Beside"),
        Column("Setting"),
        *(Column(name, sort="number") for name in ("Our time", "Their time", "Ratio", "Memory, ratio")),
    ]
    tools = ["what", "beside", "length", "environment", "threads"]
    if len({row["device"] for row in rows}) > 1:
        tools.append("device")
    return table(
        columns,
        lines,
        "Least time over the rounds, below it the median; peak memory of one pass; setting: environment and threads",
        tools,
    )


def _time(row: Mapping[str, Any]) -> Cell:
    about = tag("small", f"median {1e3 * row['median']:.3g}, n = {row['rounds']}")
    return Cell(tag("span", f"{1e3 * row['best']:.3g} ms", about, class_="ns-stack"), key=row["best"])


def _memory(own: Mapping[str, Any], row: Mapping[str, Any]) -> Cell:
    if row["peak_ratio"] is None:
        return Cell("", key="")
    about = tag("small", f"{size(row['peak'])} / {size(own['peak'])}")
    return Cell(tag("span", tag("b", _multiple(row["peak_ratio"])), about, class_="ns-stack"), key=row["peak_ratio"])


# ---------------------------------------------------------------- generators


def _generators(page: Page, measured: Measurement) -> None:
    page.add(provenance(measured))
    rows = [
        (
            row["data"],
            f"{row['fast_per_s']:,.3g}" if row["fast_per_s"] < 1000 else f"{row['fast_per_s']:,.0f}",
            f"{row['straightforward_per_s']:,.3g}",
            tag("b", _multiple(row["ratio"])),
            f"{row['compile_s']:.1f} s",
        )
        for row in measured.rows
    ]
    columns = ["Data", "Ours, examples per second", "Straightforward form", "Ratio", "Compiled once, in"]
    page.add(table(columns, rows, "One measurement of each, over at least the seconds named above"))
