"""The performance page: how fast, and in how much memory, beside public layers and plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from noscratch.results.pages import charts
from noscratch.results.pages.evidence import PLACE, Evidence, Measurement
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
    link,
    listing,
    note,
    short,
    table,
    tag,
)
from noscratch.results.pages.numbers import number, shown, words

KERNELS, GENERATORS = "bench-kernels", "bench-generators"
# Measurements that have a page or a section of their own; every other one is shown as the table that it is.
ELSEWHERE = (KERNELS, GENERATORS, "bench-error-growth", "bench-impulse")
# What a measurement that is shown as a table is about.
ABOUT = {
    "bench-batching": "What it is worth not to compute padding: a step of training on batches of similar length, on "
    "batches padded to the longest example of the task, and in a plain PyTorch loop on those. Real share: of the "
    "tokens that are computed in an epoch. Loading share: of the time of a step. Tokens are real ones.",
    "bench-training": "A step of training on sequences without padding, beside a plain PyTorch loop (lengths), under "
    "torch.compile (compiler), and for several seeds at once (ensembles, the time of a step of all of them). "
    "Utilization: counted operations, in which Fourier transforms are none, by time and by the machine's measured rate "
    "of matrix products.",
    "bench-generation": "Sequences generated from nothing, one token after the other, with carried state; the "
    "Transformer with a cache of keys and values and without. Times: tokens per second beside the Transformer with the "
    "faster cache, and beside the one without.",
    "bench-scale": "What the engines take for plans of so many cells with made-up results: seconds elapsed on a "
    "machine that did other work too, seconds of one processor (cpu), and the largest memory of one process in MiB.",
    "bench-estimates": "What `noscratch estimate` predicted of runs that it had not seen, from a few steps of each "
    "kind of run, and what they then took.",
}
FORM_OF = {
    "s": "duration",
    "seconds": "duration",
    "cpu": "duration",
    "bytes": "bytes",
    "ratio": "times",
    "share": "percent",
    "utilization": "percent",
    "flops": "si:FLOP",
}
COMMANDS = {
    KERNELS: "python -m bench.kernels --peer-s4 PATH --peer-sgconv PATH --peer-bigs PATH "
    "--out reports/records/bench-kernels",
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
    "s4d-mix": "S4D layer, GELU, GLU",
    "s4-mix": "S4 layer, GELU, GLU",
    "s4d-block": "S4D block: norm, layer, GELU, GLU, residual",
    "s4-block": "S4 block: norm, layer, GELU, GLU, residual",
    "bigs": "BiGS layer",
    "linear": "Linear map",
    "scan": "Linear scan",
    "rotary": "Rotary embedding",
    "attention": "Causal attention",
}
# The item of a backbone is the one of its name; only these are called otherwise.
ITEMS_OF = {"dss": ("dss-exp",), "transformer": ("attention",)}
ENVIRONMENTS = {
    "plain": "as shipped",
    "equal": "the whole process keeps freed memory, which helps every side",
}
# A table of more rows is folded.
FOLDED = 24

Rows = Sequence[Mapping[str, Any]]
SETTING = ("device", "environment", "threads")
LAYER = ("item", "device", "heads", "states")
# Of one sequence: the name, its unit, the column, the form of its numbers and the scale of the figure.
QUANTITIES = (("time", "ms", "best:batch", "milli", 1e3), ("peak memory", "MB", "peak:batch", "mega", 1e-6))


def pages(evidence: Evidence) -> Iterator[Page]:
    page = Page(
        "performance.html",
        "Performance",
        "Time and peak memory of the kernels against length, beside public layers and plain PyTorch.",
        wide=True,
    )
    page.say(
        "One forward and backward pass of each layer, beside what people would use instead. What is compared runs in "
        "turn in one process on one machine, and the least time of all rounds counts. A ratio above one says that the "
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
    for name, other in evidence.measurements.items():
        if name.startswith("bench-") and name not in ELSEWHERE:
            page.heading(name.removeprefix("bench-").replace("-", " ").capitalize())
            if name in ABOUT:
                page.say(ABOUT[name])
            page.add(provenance(other), *_whole(other))
    yield page


def of_backbone(page: Page, evidence: Evidence, family: str) -> None:
    """What was measured of a backbone's layer against length."""
    measured = evidence.measurements.get(KERNELS)
    items = ITEMS_OF.get(family, (family, f"{family}-bidirectional", f"{family}-block"))
    rows = [row for row in measured.rows if row["item"] in items] if measured else []
    if not measured or not rows:
        return
    page.heading("Speed")
    page.say(
        "One forward and backward pass of its layer; more on the ", link("../performance.html", "performance"), " page."
    )
    page.add(*_scaling(measured, rows))


def not_measured(page: Page, name: str, line: str | None = None) -> None:
    """Say that there is no measurement, and what makes it."""
    page.add(note(tag("strong", "Not measured yet."), " This measures it:"))
    page.command(line or COMMANDS[name])


def provenance(measured: Measurement) -> Html:
    """Where a measurement comes from: machine, libraries, commit, address and the bytes."""
    about, record = measured.provenance, measured.record
    commit = about.get("commit")
    libraries = about.get("libraries", {})
    devices = "; ".join(sorted({str(row["device"]) for row in measured.rows if "device" in row}))
    rows: list[tuple[str, object]] = [
        ("Device", words(devices or about["processor"])),
        (
            "Software",
            words(f"Python {about['python']}, " + ", ".join(f"{k} {libraries[k]}" for k in sorted(libraries))),
        ),
        (
            "Commit",
            join([short(commit), " and changes not committed" if about.get("dirty") else ""]) if commit else "none",
        ),
        ("Measured", tag("time", about["started"][:10])),
        ("Address", code(record["address"])),
    ]
    files = [f"{file['sha256']}  {measured.folder}/{name}" for name, file in sorted(record["artifacts"].items())]
    settings = [f"{name} = {value}" for name, value in sorted(record["settings"].items())]
    return details("Where it was measured, and the files behind it", facts(rows), listing([*settings, *files]))


# ---------------------------------------------------------------- kernels


def _kernels(page: Page, measured: Measurement) -> None:
    order = {item: place for place, item in enumerate(ITEMS)}
    rows = sorted(measured.rows, key=lambda row: order.get(row["item"], len(order)))
    devices = sorted({row["device"] for row in rows})
    page.say(
        "Measured on ",
        tag("strong", words("; ".join(devices))),
        " with PyTorch ",
        words(", ".join(sorted({row["torch"] for row in rows}))),
        ", float32. Environments: ",
        "; ".join(f"{name}: {ENVIRONMENTS.get(name, name)}" for name in _values(rows, "environment")),
        ". A shape is batch × width × length × states.",
    )
    page.add(provenance(measured))
    page.heading("How many times as fast")
    page.say("The least time of the other one divided by ours, and n, the rounds that each had.")
    settings = sorted({tuple(row[key] for key in SETTING) for row in rows}, key=lambda s: (s[0], s[1] != "plain"))
    matrices = {
        setting: _matrix(measured, [row for row in rows if tuple(row[key] for key in SETTING) == setting], *setting)
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
        "The slope is the exponent: one is linear in length, two quadratic."
    )
    page.add(*_scaling(measured, rows))
    page.heading("Every comparison")
    page.add(details("All comparisons, with times and memory", _comparisons(measured)))


def _values(rows: Rows, key: str) -> list[Any]:
    """The distinct values in the order in which they stand."""
    return list(dict.fromkeys(row[key] for row in rows))


def _shape(row: Mapping[str, Any]) -> tuple[int, int, int, int]:
    return row["batch"], row["heads"], row["length"], row["states"]


def _times(shape: Sequence[int]) -> str:
    return " × ".join(map(number, shape))


def _matrix(measured: Measurement, rows: Rows, device: str, environment: str, threads: int) -> Html:
    """Items and what they are compared with down, shapes across."""
    shapes = sorted({_shape(row) for row in rows}, key=lambda shape: (shape[2], shape))
    lines: dict[tuple[str, str], dict[tuple[int, ...], Mapping[str, Any]]] = {}
    for row in rows:
        if row["candidate"] != OURS:
            lines.setdefault((row["item"], row["candidate"]), {})[_shape(row)] = row
    body = []
    for (item, candidate), cells in lines.items():
        name = tag("span", ITEMS.get(item, item), tag("small", f"beside {candidate}"), class_="ns-stack ns-words")
        body.append([name, *(_ratio(measured, cells.get(shape)) for shape in shapes)])
    heads: list[Column | str] = ["What", *(Column(_times(shape), sort=None) for shape in shapes)]
    count = "1 thread" if threads == 1 else f"{threads} threads"
    return table(heads, body, words(f"{count}, {environment}, {device}"))


def _ratio(measured: Measurement, row: Mapping[str, Any] | None) -> Cell:
    if row is None:
        return Cell("", key="")
    ratio = shown(measured.at(row, "ratio,rounds"), "times-rounds", row["ratio"], row["rounds"])
    return Cell(ratio, kind="ns-quiet" if row["ratio"] < 1 else None)


def _scaling(measured: Measurement, rows: Rows) -> list[Html]:
    """Time and memory against length of every item, in the first environment at the most threads: figures and text."""
    environment = "plain" if any(row["environment"] == "plain" for row in rows) else rows[0]["environment"]
    threads = max(row["threads"] for row in rows if row["environment"] == environment)
    alike = [row for row in rows if row["environment"] == environment and row["threads"] == threads]
    several = len({row["device"] for row in alike}) > 1
    figures: list[Html] = []
    texts: list[Html] = []
    for item, device, heads, states in dict.fromkeys(tuple(row[key] for key in LAYER) for row in alike):
        these = sorted(
            (row for row in alike if tuple(row[key] for key in LAYER) == (item, device, heads, states)),
            key=lambda row: (row["candidate"] != OURS, row["candidate"], row["length"]),
        )
        where = f"{environment}, {threads} threads, width {heads}, {states} states, {device}"
        for what, unit, column, form, scale in QUANTITIES:
            series = {
                name: [row for row in these if row["candidate"] == name and row[column.partition(":")[0]] is not None]
                for name in _values(these, "candidate")
            }
            series = {name: of for name, of in series.items() if len({row["length"] for row in of}) > 1}
            if series:
                name = f"{ITEMS.get(item, item)}: {what} of a sequence, {unit}" + (f", on {device}" if several else "")
                figures.append(charts.log_chart(name, "length", unit, sloped(series, column, scale)))
                texts.append(log_table(measured, words(f"{name} ({where})"), series, column, form))
    return [tag("div", *figures, class_="ns-figures"), details("The figures as text", *texts)] if figures else []


def sloped(series: Mapping[str, Rows], column: str, scale: float = 1.0) -> dict[str, charts.Points]:
    """Each series as the points of a curve over length, with its slope in its name."""
    named: dict[str, charts.Points] = {}
    for name, rows in series.items():
        points = [(float(row["length"]), scale * _quotient(row, column)) for row in rows]
        exponent = charts.slope(points)
        named[name if exponent is None else f"{name}, slope {exponent:.2f}"] = points
    return named


def log_table(measured: Measurement, caption: object, series: Mapping[str, Rows], column: str, form: str) -> Html:
    """Curves over length as a table, three digits each, their slopes in the last row."""
    by_length = {name: {row["length"]: row for row in rows} for name, rows in series.items()}
    lines: list[list[object]] = []
    for length in sorted({row["length"] for rows in series.values() for row in rows}):
        found = (of.get(length) for of in by_length.values())
        cells = ("" if row is None else shown(measured.at(row, column), form, _quotient(row, column)) for row in found)
        lines.append([number(length), *cells])
    slopes: list[object] = []
    for rows in series.values():
        exponent = charts.slope([(float(row["length"]), _quotient(row, column)) for row in rows])
        address = measured.exponent_at(rows, "length", column)
        slopes.append("" if exponent is None else shown(address, "fixed", exponent))
    return table(["Length", *series], [*lines, ["slope", *slopes]], caption, named=True)


def _quotient(row: Mapping[str, Any], column: str) -> float:
    """A column of a row, or the ratio a:b of two."""
    above, _, below = column.partition(":")
    return float(row[above] / row[below] if below else row[above])


def _comparisons(measured: Measurement) -> Html:
    rows = measured.rows
    ours = {(row["item"], _shape(row), *(row[key] for key in SETTING)): row for row in rows if row["candidate"] == OURS}
    lines = []
    for row in rows:
        if row["candidate"] == OURS:
            continue
        own = ours[(row["item"], _shape(row), *(row[key] for key in SETTING))]
        revision = tag("small", f"at {row['revision'][:12]}", title=row["revision"]) if row["revision"] else ""
        cells = (
            words(ITEMS.get(row["item"], row["item"])),
            Cell(words(_times(_shape(row))), key=row["length"]),
            tag("span", row["candidate"], revision, class_="ns-stack ns-words"),
            words(f"{row['environment']}, {row['threads']}"),
            _time(measured, own),
            _time(measured, row),
            _ratio(measured, row),
            _memory(measured, own, row),
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
    caption = (
        "Least time over the rounds, below it the median; peak memory of one pass; setting: environment and threads"
    )
    return table(columns, lines, caption, tools)


def _time(measured: Measurement, row: Mapping[str, Any]) -> Html:
    values = row["best"], row["median"], row["rounds"]
    return shown(measured.at(row, "best,median,rounds"), "best-median-rounds", *values)


def _memory(measured: Measurement, own: Mapping[str, Any], row: Mapping[str, Any]) -> Cell:
    if row["peak_ratio"] is None:
        return Cell("", key="")
    peaks = join((shown(measured.at(each, "peak"), "bytes", each["peak"]) for each in (row, own)), " / ")
    ratio = tag("b", shown(measured.at(row, "peak_ratio"), "times", row["peak_ratio"]))
    return Cell(join([ratio, " ", tag("small", peaks)]))


# ---------------------------------------------------------------- generators and others


def _generators(page: Page, measured: Measurement) -> None:
    page.add(provenance(measured))
    forms = {"fast_per_s": "three", "straightforward_per_s": "three", "ratio": "times", "compile_s": "duration"}
    rows = [
        (words(row["data"]), *(shown(measured.at(row, name), form, row[name]) for name, form in forms.items()))
        for row in measured.rows
    ]
    columns = ["Data", "Ours, examples per second", "Straightforward form", "Ratio", "Compiled once, in"]
    page.add(table(columns, rows, "One measurement of each"))


def _whole(measured: Measurement) -> list[Html]:
    """A measurement as the tables that it is, one for each file: names as they are, numbers short."""
    sheets = []
    for file in dict.fromkeys(row[PLACE][0] for row in measured.rows):
        rows = [row for row in measured.rows if row[PLACE][0] == file]
        columns = list(dict.fromkeys(name for row in rows for name in row if name != PLACE))
        texts = [name for name in columns if any(isinstance(row.get(name), str) for row in rows)]
        columns.sort(key=lambda name: name not in texts)
        facets = [name for name in texts if 1 < len({row.get(name) for row in rows}) <= FOLDED]
        lines = [
            Row([_plain_cell(measured, row, name) for name in columns], {name: [str(row.get(name))] for name in facets})
            for row in rows
        ]
        heads = [Column(name.replace("_", " "), sort="text" if name in texts else "number") for name in columns]
        name = file.partition(".")[0].replace("_", " ")
        sheet = table(heads, lines, f"{name}: every row of the measurement", facets)
        sheets.append(details(f"{name}, row by row", sheet) if len(lines) > FOLDED else sheet)
    return sheets


def _plain_cell(measured: Measurement, row: Mapping[str, Any], name: str) -> Cell:
    value = row.get(name)
    if value is None:
        return Cell("", key="")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return Cell(shown(measured.at(row, name), _form(name), value))
    return Cell(words(value))


def _form(name: str) -> str:
    """How the numbers of a column are put into words, by the last words of its name."""
    first, _, unit = name.rpartition("_")
    if name.endswith("_per_s"):
        return f"si:{name.removesuffix('_per_s').rpartition('_')[2]}/s"
    if first == "times":
        return "times"
    return FORM_OF.get(unit, "number")
