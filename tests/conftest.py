"""What every test shares: one thread, Hypothesis profiles, where outside data lie (absent: skipped with the reason)."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

import tally
from checkout import Checkout, make_checkout

SHARED = Path(__file__).resolve().parents[2] / "shared"

# `pytest --hypothesis-profile=laws` (or HYPOTHESIS_PROFILE=laws) runs the long form of every law.
settings.register_profile("default", max_examples=20, deadline=None, print_blob=True)
settings.register_profile(
    "laws",
    max_examples=10_000,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
torch.set_num_threads(1)


def _outside(variable: str, beside: str) -> Path:
    path = Path(os.environ.get(variable, SHARED / beside))
    if not path.is_dir():
        pytest.skip(f"no {beside}: set {variable} to its folder")
    return path


@pytest.fixture(autouse=True, scope="session")
def heap_left_alone() -> Iterator[None]:
    """Trainings in this process leave its heap as it is, since other tests in it measure memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("noscratch.train.keep_freed_memory", lambda: True)
        yield


@pytest.fixture(scope="session")
def mirror() -> Path:
    """The folder with copies of the public data sources."""
    return _outside("NOSCRATCH_MIRROR", "data")


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder with float64 reference vectors; its README gives shapes and formulas."""
    return _outside("NOSCRATCH_GOLDEN", "golden")


@pytest.fixture(scope="session")
def vectors(golden: Path) -> Callable[[str], dict[str, Any]]:
    """`vectors("conv")` -> the arrays of public_conv.npz as float64 or complex128 tensors, and `meta` as a dict."""

    def load(name: str) -> dict[str, Any]:
        with np.load(golden / f"public_{name}.npz") as arrays:
            found: dict[str, Any] = {key: torch.from_numpy(arrays[key]) for key in arrays.files if key != "meta"}
            return found | {"meta": json.loads(str(arrays["meta"]))}

    return load


def built_once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], object]) -> Path:
    """A copy of what `build` makes in a folder, which the first worker that wants it has it make for all."""
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    common = factory.getbasetemp() if alone else factory.getbasetemp().parent
    place, made = common / "shared" / name, common / "shared" / f"{name}.made"
    place.parent.mkdir(exist_ok=True)
    with (common / "shared" / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(place, ignore_errors=True)  # of a worker that failed
            build(place)
            made.touch()
    return Path(shutil.copytree(place, factory.mktemp(name) / "checkout", symlinks=True))


@pytest.fixture(scope="session")
def by_dvc(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """The tiny plan, built by `noscratch repro`, that is by `dvc repro`, and committed."""

    def build(folder: Path) -> None:
        checkout = make_checkout(folder)
        checkout.noscratch("repro")
        checkout.run("git", "add", "--all")
        checkout.run("git", "commit", "--quiet", "--message=results")

    return Checkout(built_once(tmp_path_factory, "engines", build))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tally", type=Path, help="write what passed into this file; see tests/tally.py")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--tally")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(tally.Tally(path))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.user_properties += tally.properties(item.iter_markers("proves"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    statistics = getattr(item, "hypothesis_statistics", "") if call.when == "call" else ""
    if statistics:
        report.user_properties.append(("examples", tally.examples(statistics)))
    return report


@pytest.fixture(scope="session")
def honest_checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkout with runs, reports, published records and a history; nobody may change it."""
    from noscratch.audit.honest import honest

    repository = Path(__file__).resolve().parents[1]
    return built_once(tmp_path_factory, "honest", lambda folder: honest(folder, repository))
