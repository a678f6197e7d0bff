"""The strategies and the tolerance rule keep their word; otherwise the laws say less than they seem to."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, find, given
from hypothesis import strategies as st

import strategies as own
from tolerances import assert_close, error, tolerance


@given(st.data(), st.integers(1, 600))
def test_lengths_stay_in_range(data: st.DataObject, most: int) -> None:
    least = data.draw(st.integers(1, most))
    assert least <= data.draw(own.lengths(most, least)) <= most


@pytest.mark.parametrize(
    "wanted",
    [
        pytest.param(lambda n: n == 1, id="one"),
        pytest.param(lambda n: n > 20 and own.is_prime(n), id="large prime"),
        pytest.param(lambda n: n > 16 and n & (n - 1) == 0, id="power of two"),
        pytest.param(lambda n: n > 16 and (n + 1) & n == 0, id="one below a power"),
        pytest.param(lambda n: n > 16 and (n - 1) & (n - 2) == 0, id="one above a power"),
    ],
)
def test_lengths_reach_the_corners(wanted: object) -> None:
    assert find(own.lengths(300), wanted)


@given(own.lengths(40), own.dtypes(), st.data())
def test_values_are_exact_in_float32(n: int, dtype: torch.dtype, data: st.DataObject) -> None:
    make = own.Source(data.draw, dtype)
    for x in (make.reals(2, n), make.complexes(2, n), make.steps(2, n), make.spectra(2, n), make.poles(2, n)):
        narrow = torch.complex64 if x.is_complex() else torch.float32
        assert x.shape[-1] == n
        assert x.dtype == (own.complex_of(dtype) if x.is_complex() else dtype)
        assert torch.equal(x.to(narrow).to(x.dtype), x)


@pytest.mark.parametrize("family", own.FAMILIES)
@given(st.data(), own.lengths(40, 2))
def test_families_are_what_they_are_called(family: str, data: st.DataObject, n: int) -> None:
    x = own.Source(data.draw).reals(3, n, families=(family,))
    if family == "zero":
        assert not x.any()
    elif family == "impulse":
        assert (x.sum(-1) == 1).all()
        assert (x != 0).sum() == 3
    elif family == "constant":
        assert (x == 1).all()
    elif family == "alternating":
        assert (x[:, 1:] == -x[:, :-1]).all()
    else:
        assert x.unique().numel() > 1


@given(st.data(), own.sizes(), own.dtypes())
def test_parameters_are_admissible(data: st.DataObject, n: int, dtype: torch.dtype) -> None:
    make = own.Source(data.draw, dtype)
    dt = make.steps(n, low=1e-3, high=0.1)
    assert ((dt >= 1e-3 * (1 - 1e-6)) & (dt <= 0.1 * (1 + 1e-6))).all()
    assert (make.spectra(2, n).real < 0).all()
    assert (make.poles(2, n).to(torch.complex128).abs() <= 1).all()


@given(own.seeds(), own.sizes(), own.lengths(40), own.dtypes())
def test_a_source_repeats_itself_by_its_seed(seed: int, m: int, n: int, dtype: torch.dtype) -> None:
    first, again, other = (own.normal(s, m, n, dtype=dtype) for s in (seed, seed, seed + 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.dtype == dtype
    assert torch.equal(first.float().to(dtype), first)


def test_spectra_reach_the_axis_and_both_signs() -> None:
    spectra = own.made(lambda make: make.spectra(8))
    assert (find(spectra, lambda A: bool((A.real > -1e-5).all())).real < 0).all()
    assert find(spectra, lambda A: bool((A.imag < 0).any() and (A.imag > 0).any())).shape == (8,)


@given(own.lengths(2**12), own.lengths(2**12))
def test_tolerance_grows_with_length_condition_and_eps(short: int, long: int) -> None:
    assume(short < long)
    assert tolerance(torch.float32, short) < tolerance(torch.float32, long)
    assert tolerance(torch.float64, long) < tolerance(torch.float32, short) < tolerance(torch.bfloat16, short)
    assert tolerance(torch.float32, short, 3.0) == pytest.approx(3 * tolerance(torch.float32, short))


def test_tolerance_stays_tight() -> None:
    assert tolerance(torch.float32, 2**16) < 1e-5
    assert tolerance(torch.float64, 2**16) < 2e-14


@given(st.data(), own.lengths(40))
def test_error_reports_max_and_rms(data: st.DataObject, n: int) -> None:
    want = own.Source(data.draw).reals(n, families=("constant",))
    got = want.clone()
    got[0] += 0.5
    found = error(got, want)
    assert found.max == pytest.approx(0.5)
    assert found.rms == pytest.approx(0.5 / math.sqrt(n))
    assert_close(got, want, 0.5)
    with pytest.raises(AssertionError, match=r"max error 0\.5, RMS"):
        assert_close(got, want, 0.49)


def test_nan_fails() -> None:
    with pytest.raises(AssertionError, match="nan"):
        assert_close(torch.tensor([math.nan]), torch.tensor([1.0]), 1.0)
