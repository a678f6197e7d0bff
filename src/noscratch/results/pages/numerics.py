"""The numerics page: the laws that every kernel keeps, worst errors, and how errors grow with length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from noscratch.results.pages import charts
from noscratch.results.pages.evidence import Evidence, Measurement
from noscratch.results.pages.markup import Cell, Column, Html, Page, Row, code, details, join, link, table, tag
from noscratch.results.pages.numbers import shown, words
from noscratch.results.pages.performance import log_table, not_measured, provenance, sloped

# The kernels of a backbone bear its name; only these are called otherwise.
KERNELS_OF = {"transformer": ("attend",), "bigs": ("dss_kernel",)}
GROWTH = "bench-error-growth"
COMMAND = "python -m bench.error_growth --out reports/records/bench-error-growth"


class Law(NamedTuple):
    """A law in words, and the tests that draw examples of it: (file of tests/, function)."""

    name: str
    words: str
    tests: Sequence[tuple[str, str]]


LAWS = (
    Law(
        "Fast is reference",
        "The fast form and the slow one, written as the paper writes it, agree in values and in every gradient.",
        (
            ("conv", "test_fast_is_direct_values_and_gradients"),
            ("ssm", "test_fast_is_the_recurrence"),
            ("ssm", "test_gradients_are_those_of_the_recurrence"),
            ("scan", "test_fast_is_stepwise_values_and_gradients"),
            ("attention", "test_attend_fast_is_explicit_values_and_gradients"),
            ("structured", "test_fast_is_the_dense_matrix_values_and_gradients"),
        ),
    ),
    Law(
        "Convolution is recurrence",
        "Convolving with a state-space kernel gives what stepping its state gives.",
        (("ssm", "test_convolution_is_the_recurrence"), ("scan", "test_scan_is_a_convolution_with_powers")),
    ),
    Law(
        "Convolution is NumPy's",
        "The FFT form gives the direct sum, whatever the length: one, odd, prime.",
        (("conv", "test_causal_form_is_numpy_convolve"),),
    ),
    Law(
        "Causality",
        "What comes later changes nothing before it; a reverse kernel sees only the future.",
        (
            ("conv", "test_causality"),
            ("conv", "test_reverse_kernel_sees_only_the_future"),
            ("scan", "test_causality_is_exact"),
            ("attention", "test_attend_causality"),
        ),
    ),
    Law(
        "Linearity",
        "A weighted sum of inputs, or of kernels, gives the weighted sum of outputs.",
        (
            ("conv", "test_linear_in_u"),
            ("conv", "test_linear_in_kernels"),
            ("ssm", "test_linear_in_c"),
            ("scan", "test_linear_in_what_enters"),
        ),
    ),
    Law("Shift", "A later input gives the same output, later.", (("conv", "test_shift"),)),
    Law("Adjoint", "⟨K u, v⟩ is ⟨u, K* v⟩, where K* reads the kernel backwards.", (("conv", "test_adjoint"),)),
    Law(
        "Prefix",
        "A shorter kernel is the start of a longer one. Softmax DSS is the exception: it normalizes over its length.",
        (
            ("ssm", "test_a_shorter_kernel_is_the_start_of_a_longer"),
            ("ssm", "test_the_softmax_normalizes_over_its_length"),
            ("conv", "test_sgconv_shorter_is_a_prefix"),
        ),
    ),
    Law(
        "Two directions",
        "A bidirectional convolution is the forward one plus the reversed one.",
        (("conv", "test_bidirectional_is_forward_plus_reversed"),),
    ),
    Law(
        "Blocks do not matter",
        "How the work is cut into blocks changes no result; a state that is handed on continues exactly.",
        (
            ("conv", "test_blocks_do_not_matter"),
            ("ssm", "test_blocking_changes_nothing"),
            ("scan", "test_state_passing"),
            ("attention", "test_rotary_offset_continues"),
        ),
    ),
    Law(
        "Stability",
        "Discretized systems never expand a state, and errors of a scan do not grow with its length.",
        (
            ("ssm", "test_discretized_systems_are_stable"),
            ("ssm", "test_s4_never_expands_a_state"),
            ("scan", "test_stability"),
            ("scan", "test_errors_do_not_grow_with_length"),
        ),
    ),
    Law(
        "HiPPO",
        "The LegS matrix is normal plus low rank, with the eigenvalues that theory gives.",
        (("ssm", "test_hippo_is_normal_plus_low_rank"),),
    ),
    Law(
        "Distance alone",
        "Products of rotated vectors depend on the distance of their positions only.",
        (("attention", "test_rotary_products_depend_on_distance_only"),),
    ),
    Law(
        "Padding",
        "Attention ignores what is masked, exactly in effect.",
        (("attention", "test_attend_ignores_padding"),),
    ),
    Law(
        "Golden vectors",
        "Vectors computed elsewhere in float64 are matched to ten digits, and in float32 within the bound.",
        (
            ("conv", "test_golden_convolutions"),
            ("ssm", "test_golden_kernels"),
            ("scan", "test_golden_lru"),
            ("attention", "test_golden_attention"),
            ("structured", "test_golden_structured"),
        ),
    ),
)


def suite(area: str) -> str:
    return f"tests/test_kernels_{area}.py"


def pages(evidence: Evidence) -> Iterator[Page]:
    page = Page(
        "numerics.html",
        "Numerics",
        "The laws that every kernel keeps and where they are tested; worst errors and how they grow with length.",
        wide=True,
    )
    page.say(
        "A kernel is believed for three reasons: it keeps laws on inputs drawn at random, it gives known answers on "
        "the very device that a job runs on, and its error against float64 stays small up to the longest sequences."
    )
    page.heading("Laws")
    page.add(
        table(["Law", "Tested for"], [_law(law) for law in LAWS], "Every law, and the kernels that it is tested for")
    )
    page.say("The tests are those of ", code("tests/test_kernels_*.py"), ", one file for each group of kernels.")
    page.heading("How much error is allowed")
    page.say(
        "One formula for all, none tuned until a test passes: ",
        code("4 eps (1 + log2(2 L)) × condition"),
        ", relative to the largest value, where eps is that of the number format. An FFT or a pairwise sum of L terms "
        "passes each value through ",
        code("log2(2 L)"),
        " rounded additions; the one stands for the few roundings around it, the four for both sides of a comparison. "
        "The condition is stated where errors of the data are amplified: L for a recurrence taken step by step, the "
        "phase of a parameter that was rounded, the cancellation of a sum.",
    )
    page.heading("Known answers on this device")
    page.say(
        "Before a device runs its first job, every kernel and backend answers questions whose answers were written out "
        "by hand or as plain float64 sums. A device that fails is refused. To see its report:"
    )
    page.command("noscratch passport")
    measured = evidence.measurements.get(GROWTH)
    if measured is None:
        page.heading("Worst errors and their growth")
        not_measured(page, GROWTH, COMMAND)
    else:
        _errors(page, measured)
    yield page


def _law(law: Law) -> tuple[object, ...]:
    areas = join((code(area) for area in dict.fromkeys(area for area, _ in law.tests)), " ")
    functions = ", ".join(function for _, function in law.tests)
    return (
        Cell(tag("span", tag("b", law.name), law.words, class_="ns-stack"), kind="ns-wide"),
        Cell(tag("span", areas, title=functions), kind="ns-wrap"),
    )


Rows = Sequence[Mapping[str, Any]]
Curves = Mapping[tuple[str, str], Rows]


def _errors(page: Page, measured: Measurement) -> None:
    """Worst errors by kernel, and how they grow with length."""
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in measured.rows:
        groups.setdefault((row["kernel"], row["backend"], row["dtype"]), []).append(row)
    page.heading("Worst errors")
    page.say(
        "Of values against the formulas in extended precision, of gradients against float64, relative to the largest "
        "value, over every length measured. Backend fast is this project's; plain is the kernel as its paper "
        "writes it, in the same number format."
    )
    page.add(provenance(measured), _worst(measured, groups))
    page.heading("How errors grow with length")
    page.say(
        "Both axes logarithmic. A slope near zero is an error that does not grow, one half a random walk of roundings, "
        "one an error that adds up at every step."
    )
    page.add(*_figures(measured, _curves(measured)))


def of_backbone(page: Page, evidence: Evidence, family: str) -> None:
    """How the errors of a backbone's own kernel grow."""
    measured = evidence.measurements.get(GROWTH)
    names = kernels_of(family)
    curves = {k: s for k, s in _curves(measured).items() if _bare_name(k) in names} if measured else {}
    if measured and curves:
        page.heading("Numerics")
        page.say("The error of its kernel against length; more on the ", link("../numerics.html", "numerics"), " page.")
        page.add(*_figures(measured, curves))


def kernels_of(family: str) -> tuple[str, ...]:
    """What a backbone's own kernel may be called."""
    return KERNELS_OF.get(family, (f"{family}_kernel", family))


def _bare_name(kernel: str) -> str:
    return kernel.partition(",")[0].rpartition(".")[2]


def _curves(measured: Measurement) -> dict[str, Curves]:
    """Kernel -> (backend, number format) -> rows by length."""
    found: dict[str, dict[tuple[str, str], list[Mapping[str, Any]]]] = {}
    for row in sorted(measured.rows, key=lambda row: row["length"]):
        found.setdefault(row["kernel"], {}).setdefault((row["backend"], row["dtype"]), []).append(row)
    return {kernel: found[kernel] for kernel in dict.fromkeys(row["kernel"] for row in measured.rows)}


def _figures(measured: Measurement, curves: Mapping[str, Curves]) -> list[Html]:
    parts = [part for kernel, series in curves.items() for part in _split(kernel, series).items()]
    drawn = [charts.log_chart(title, "length", "error", sloped(series, "max")) for title, series in parts]
    texts = [
        log_table(measured, words(f"{title}: worst relative error"), series, "max", "three") for title, series in parts
    ]
    return [tag("div", *drawn, class_="ns-figures"), details("The figures as text", *texts)]


def _split(kernel: str, series: Curves) -> dict[str, dict[str, Rows]]:
    """The curves of a kernel in one figure, or in one for each number format where they are too many."""
    if len(series) <= charts.STYLES:
        return {kernel: {f"{dtype}, {backend}": rows for (backend, dtype), rows in series.items()}}
    return {
        f"{kernel}, {dtype}": {backend: rows for (backend, of), rows in series.items() if of == dtype}
        for dtype in dict.fromkeys(dtype for _, dtype in series)
    }


def _worst(measured: Measurement, groups: Mapping[tuple[str, str, str], Rows]) -> Html:
    """Kernels and backends down, number formats across."""
    formats = list(dict.fromkeys(dtype for *_, dtype in groups))
    lines = []
    for kernel, backend in dict.fromkeys((kernel, backend) for kernel, backend, _ in groups):
        cells = (_worst_cell(measured, groups.get((kernel, backend, dtype), ())) for dtype in formats)
        lines.append(
            Row([words(kernel), backend, *cells], {"kernel": [kernel.partition(",")[0]], "backend": [backend]})
        )
    columns: list[Column | str] = ["Kernel", "Backend", *(Column(dtype, sort="number") for dtype in formats)]
    caption = "Worst error by kernel, backend and number format, and the length at which it was found"
    return table(columns, lines, caption, facets=["kernel", "backend"])


def _worst_cell(measured: Measurement, rows: Rows) -> Cell:
    """The worst error with its length, and where it was measured the mean one and what is allowed."""
    if not rows:
        return Cell("", key="")
    worst = max(rows, key=lambda row: float(row["max"]))
    columns = [name for name in ("max", "length", "rms", "allowed") if name in worst]
    return Cell(shown(measured.at(worst, ",".join(columns)), "error", *(worst[name] for name in columns)))
