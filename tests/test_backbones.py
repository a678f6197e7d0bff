"""Every file of noscratch/backbones keeps the contract; the names are the files."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import contract
from noscratch import backbones


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", backbones.names())
def test_contract(name: str, check: Callable[[str], None]) -> None:
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", backbones.names())
def test_compiles_to_machine_code(name: str) -> None:
    contract.compiles(name, backend="inductor")


def test_a_dash_names_the_same_file() -> None:
    assert backbones.load("s4d-random") is backbones.load("s4d")


def test_unknown_name_lists_the_known_and_the_nearest() -> None:
    with pytest.raises(backbones.BackboneError, match=r"s4d.*got 's4e'.*mean 's4d'"):
        backbones.load("s4e")
