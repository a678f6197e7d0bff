"""Numbers: each one on a page carries the exact value, the place that it comes from, and how it is put into words.

    <data value="0.612 0.604 0.62 5" data-cell="results/mini/listops/s4d/scratch/*/finetune/test/accuracy/value"
          data-form="percent-mean"><b>61.2 %</b> <small>[60.4, 62.0] n = 5</small></data>

`value`        one number or a few that belong together, as Python's repr writes them, blanks between; "-" for none
`data-cell`    their address in the checkout, as below
`data-form`    FORMS[form](*values) is the element's text, so that nothing but `value` decides what is read

No other text of a generated page may hold a number: `bare` finds those that do, and `publish` refuses them. Names,
titles, settings and quoted words are no numbers of ours; they stand in links, headings, heads of tables, <code>, <pre>,
<time> or an element of class "ns-words". A figure (<svg>) and its caption are drawn from the values of the table under
it.

An address is a source and what identifies the number in it; parts are percent-encoded, so none holds a slash. One that
starts with "./" goes on where the `data-base` of the nearest element around it ends.

results/TIER/TASK/BACKBONE/PROTOCOL/SEED/PHASE/SPLIT/METRIC/COLUMN
    a row of reports/results.parquet and a column of it. SEED * stands for all finished seeds that are repetitions of
    each other (one `setting`: that of the present plan, else the one with the most seeds), and gives four values: mean,
    low and high of its 95 % t interval ("-" for one seed), n
difference/TIER/TASK/BACKBONE/PROTOCOL/BACKBONE/PROTOCOL/METRIC
    the first backbone and protocol less the second, test scores paired over the seeds that both have: four values again
cells/TIER/TASK/BACKBONE/PROTOCOL/CODE/SETTING/COLUMN,COLUMN...
    a row of reports/cells.parquet, and columns of it
verdicts/CLAIM/QUANTITY/TIER/COLUMN,COLUMN...
    a row of reports/verdicts.parquet (QUANTITY is empty for a headline), and columns of it
compute/CLAIM/QUANTITY/TIER/WAY/COLUMN,COLUMN...
    a row of reports/compute.parquet, and columns of it
claims/CLAIM/QUANTITY
    the published value or range: low, high
claims/CLAIM#POINTER
    a place (JSON pointer) in the claim as claims/<paper>.yaml has it
history/LINE#POINTER
    a place in a line (from 0) of reports/verdicts.jsonl; the last step may be several members: a,b
curves/TIER/TASK/BACKBONE/PROTOCOL/SEED/PHASE/STEP/SPLIT/METRIC
    a point of a curve
record/FOLDER#POINTER, provenance/FOLDER#POINTER
    a place in FOLDER/record.json or FOLDER/provenance.json; FOLDER is below the checkout, its slashes are plain. A *
    stands for every folder or every member of the pointer's, and the numbers found are added up (math.fsum)
sum/COLUMN?COLUMN=VALUE&...
    COLUMN of reports/results.parquet added up (math.fsum) over the runs that agree, one per cell, seed and phase
size/PATH
    the bytes of a file below the folder of the generated pages
bench/NAME/FILE/ROW/COLUMN,COLUMN...
    a row (from 0) and columns of a table below reports/records/NAME; COLUMN a:b is the ratio of two. Several rows and
    two columns (3,7,9/length,best) give the exponent p of the least-squares fit y = c x^p over those rows
count/TABLE?COLUMN=VALUE&...
    how many rows of TABLE agree, VALUE a|b being either of two: `verdicts`, `flags`; `cells`, one row per tier, task,
    backbone, protocol and seed, with its worst state and the first reason of it; `sources`, the records below data/raw
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from html.parser import HTMLParser
from urllib.parse import quote, urlencode

from noscratch.results.pages.markup import Html, join, tag

Value = float | int | None
PERCENT = ("accuracy", "f1")
# In words of these elements, and of this class, a digit is part of a name.
NAMING = ("a", "code", "pre", "svg", "h1", "h2", "h3", "h4", "th", "time", "title", "script", "style", "nav")
WORDS = "ns-words"
NUMBER = re.compile(r"(?<![\w.])(?<!\w-)[-+−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?![\w])")


def shown(cell: str, form: str, *values: Value) -> Html:
    """The numbers at the address `cell`, put into words by `form` (a key of FORMS, with `:unit` where it takes one)."""
    return tag("data", spoken(form, *values), value=" ".join(map(exact, values)), data_cell=cell, data_form=form)


def spoken(form: str, *values: Value) -> Html:
    """What the reader sees of the values."""
    name, _, unit = form.partition(":")
    return join([FORMS[name](*values, unit) if unit else FORMS[name](*values)])


def exact(value: Value) -> str:
    return "-" if value is None else repr(value)


def words(*text: object) -> Html:
    """Names and quoted words, whose digits are not numbers of ours."""
    return tag("span", *text, class_=WORDS)


def at(source: str, *parts: object, **filters: str) -> str:
    """The address of a number: at("verdicts", "spt-gain", "listops", "mini", "n")."""
    path = "/".join([source, *(quote(str(part), safe="*,:.") for part in parts)])
    return f"{path}?{urlencode(filters)}" if filters else path


def inside(source: str, folder: str, *pointer: object) -> str:
    """The address of a place in a JSON file: inside("record", "data/runs/...", "result", "counts", "flops")."""
    steps = (str(step).replace("~", "~0").replace("/", "~1") for step in pointer)
    return f"{source}/{quote(folder, safe='/*')}#" + "".join(f"/{quote(step, safe='*:.,')}" for step in steps)


def under(base: str, *children: object) -> Html:
    """The children, with the addresses that start with `base` cut to what follows it."""
    return tag("div", Html(join(children).replace(f' data-cell="{base}', ' data-cell="./')), data_base=base)


def of_metric(metric: str, form: str = "") -> str:
    """The form of a metric's value, or of a mean or gain of it: accuracy and F1 in percent, the others plain."""
    return ("percent" if metric in PERCENT else "decimal") + (f"-{form}" if form else "")


def number(value: float, digits: int = 4) -> str:
    """A plain number, short: 12,345 or 0.1235 or 3.2e-07."""
    if not math.isfinite(value):
        return str(value)
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:.{digits}f}".rstrip("0").rstrip(".")
    return f"{value:.2e}"


def si(value: float, unit: str) -> str:
    """A large number with a prefix: 30000000000 FLOP is 30 GFLOP."""
    prefixes = iter("kMGTPE")
    prefix = ""
    while value >= 1000:
        value, prefix = value / 1000, next(prefixes)
    return f"{value:.3g} {prefix}{unit}"


def size(count: float) -> str:
    """Bytes for people: 376,971 B is 368.1 KiB."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"


def duration(seconds: float) -> str:
    """Time for people: 3 ms, 4.5 s, 12 min, 3.4 h."""
    if seconds < 1:
        return f"{1e3 * seconds:.3g} ms"
    if seconds < 90:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 5400 else f"{seconds / 3600:.3g} h"


def _mean(one: Callable[[float], str]) -> Callable[[float, Value, Value, int], Html]:
    """Mean, interval and n; the unit stands once."""

    def spoken_mean(mean: float, low: Value, high: Value, n: int) -> Html:
        ends = (re.sub(r" (%|points)$", "", one(end)) for end in (low, high) if end is not None)
        return _with_interval(one(mean), ", ".join(ends), n)

    return spoken_mean


def _with_interval(words: str, ends: str, n: int) -> Html:
    return join([tag("b", words), " ", tag("small", f"[{ends}]" if ends else "no interval", f" n = {n}")])


def _in_unit(value: float, unit: str, digits: int = 4) -> str:
    sign = "%" if unit in ("percent", "relative-percent") else unit.replace("-", " ")
    return f"{number(value, digits)} {sign}"


def _estimate(value: float, low: Value, high: Value, n: int, unit: str) -> Html:
    ends = (number(end, 2) for end in (low, high) if end is not None)
    return _with_interval(_in_unit(value, unit, 2), ", ".join(ends), n)


def _published(low: float, high: float, unit: str) -> str:
    return _in_unit(low, unit) if low == high else f"{number(low)} to {_in_unit(high, unit)}"


def _region(low: Value, high: Value, unit: str) -> str:
    """The values that agree with a published one; None is an open side."""
    if low is None or high is None:
        return f"below {_in_unit(high, unit)}" if high is not None else f"above {_in_unit(low or 0.0, unit)}"
    return _published(low, high, unit)


def _onset(median: Value, low: Value, high: Value) -> Html:
    """A median step and its interval; what lies beyond the budget is not known."""
    ends = ("beyond" if end is None else number(end) for end in (low, high))
    return join(
        [tag("b", "beyond the budget" if median is None else number(median)), " ", tag("small", f"[{', '.join(ends)}]")]
    )


def _multiple(ratio: float) -> str:
    return f"{ratio:.0f}×" if ratio >= 100 else f"{ratio:.1f}×" if ratio >= 10 else f"{ratio:.2f}×"


def _error(worst: float, length: int, rms: Value = None, allowed: Value = None) -> Html:
    others = [f"{name} {value:.2g}" for name, value in (("RMS", rms), ("allowed", allowed)) if value is not None]
    about = ", ".join([f"at {number(length)}", *others])
    return join([tag("b", f"{worst:.2g}"), " ", tag("small", about)])


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _decimal(value: float) -> str:
    return f"{value:.3f}"


FORMS: Mapping[str, Callable[..., object]] = {
    "number": number,
    "percent": _percent,
    "decimal": _decimal,
    "percent-mean": _mean(_percent),
    "decimal-mean": _mean(_decimal),
    "percent-gain": _mean(lambda value: f"{100 * value:+.1f} points"),
    "decimal-gain": _mean(lambda value: f"{value:+.3f}"),
    "estimate": _estimate,
    "published": _published,
    "region": _region,
    "p-for-against": lambda support, contradict: f"{support:.2g} for, {contradict:.2g} against",
    "unit": _in_unit,
    "si": si,
    "bytes": size,
    "times": _multiple,
    "times-rounds": lambda ratio, n: join([tag("b", _multiple(ratio)), " ", tag("small", f"n = {n}")]),
    "best-median-rounds": lambda best, median, n: join(
        [tag("b", duration(best)), " ", tag("small", f"median {duration(median)}, n = {n}")]
    ),
    "milli": lambda value: f"{1e3 * value:.3g}",
    "mega": lambda value: f"{1e-6 * value:.3g}",
    "three": lambda value: f"{value:.3g}",
    "two": lambda value: f"{value:.2g}",
    "error": _error,
    "onset": _onset,
    "duration": duration,
    "fixed": lambda value: f"{value:.2f}",
}


class _Bare(HTMLParser):
    """Collects the numbers that stand outside <data> and outside what names things."""

    EMPTY = ("br", "img", "input", "link", "meta", "hr", "path", "rect", "circle", "line")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.exempt = 0
        self.stack: list[bool] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.EMPTY:
            return
        free = tag == "data" or tag in NAMING or WORDS in (dict(attrs).get("class") or "").split()
        self.stack.append(free)
        self.exempt += free

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.EMPTY and self.stack:
            self.exempt -= self.stack.pop()

    def handle_data(self, data: str) -> None:
        if not self.exempt:
            self.found += NUMBER.findall(data)


def bare(html: str) -> Iterator[str]:
    """The numbers of a page's HTML that have no address."""
    parser = _Bare()
    parser.feed(html)
    parser.close()
    yield from parser.found
