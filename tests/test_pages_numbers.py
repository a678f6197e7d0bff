"""Numbers on pages: exact value, address and words; and none without."""

from __future__ import annotations

import math
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noscratch.results.pages import numbers
from noscratch.results.pages.markup import Html, code, link, tag

FINITE = st.floats(allow_nan=False, allow_infinity=False, min_value=1e-30, max_value=1e12)
NAMES = st.text(min_size=1, max_size=8)


class Data(HTMLParser):
    """The one <data> element of a text: its attributes and its words."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.values: dict[str, str | None] = {}
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "data":
            self.values = dict(attrs)

    def handle_data(self, data: str) -> None:
        self.words += data


def plain(html: Html) -> str:
    return Data(html).words


@given(FINITE, FINITE, FINITE, st.integers(1, 99), st.lists(NAMES, min_size=1, max_size=4))
def test_a_number_carries_its_value_and_its_address(
    mean: float, low: float, high: float, n: int, names: list[str]
) -> None:
    for interval in ((low, high), (None, None)):
        given_values = (mean, *interval, n)
        element = Data(numbers.shown(numbers.at("results", *names), "percent-mean", *given_values))
        read = [None if word == "-" else float(word) for word in str(element.values["value"]).split()]
        assert read == list(given_values)
        source, *parts = str(element.values["data-cell"]).split("/")
        assert (source, [unquote(part) for part in parts]) == ("results", names)
        assert element.words == plain(numbers.spoken(str(element.values["data-form"]), *given_values))


@given(st.sampled_from(["number", "percent", "decimal", "bytes", "two", "si:FLOP", "estimate:points"]), FINITE)
def test_no_form_leaves_a_number_outside_its_element(form: str, value: float) -> None:
    values = (value, None, None, 1) if form.startswith("estimate") else (value,)
    assert not list(numbers.bare(numbers.shown("record/x#/y", form, *values)))
    assert list(numbers.bare(tag("p", numbers.spoken(form, *values))))


@pytest.mark.parametrize(
    ("html", "found"),
    [
        (tag("td", "12"), ["12"]),
        (tag("td", tag("b", "1,234.5"), " of −3"), ["1,234.5", "−3"]),
        (tag("p", "s4d and dss-2 at v1.2.3 in seed0, x86"), []),
        (tag("p", link("x.html", "seed 3"), code("lr = 0.1"), tag("svg", tag("text", "7"))), []),
        (tag("td", "5", class_="ns-wide ns-words") + tag("td", "6"), ["6"]),
        (Html('<p>1<br>2 <img alt="3">') + numbers.words("Table 4"), ["1", "2"]),
        (tag("h3", "Table 1") + tag("p", tag("span", "9")), ["9"]),
    ],
)
def test_bare_numbers_are_found(html: str, found: list[str]) -> None:
    assert list(numbers.bare(html)) == found


@given(FINITE)
def test_a_value_is_written_to_the_last_digit(value: float) -> None:
    assert float(numbers.exact(value)) == value
    assert numbers.exact(None) == "-"
    assert math.isnan(float(numbers.exact(math.nan)))


def test_addresses_go_on_from_the_base_around_them() -> None:
    inner = numbers.shown("curves/mini/listops/0", "two", 0.5) + numbers.shown("count/cells?tier=mini", "number", 3)
    outer = numbers.under("curves/mini/", Html(inner))
    assert outer.startswith('<div data-base="curves/mini/"><data ')
    assert outer.count('data-cell="./listops/0"') == outer.count('data-cell="count/cells?tier=mini"') == 1
