"""What is installed: versions pinned, files hashed but for torch's, licences looked at, one Dockerfile."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import licences
from licences import canonical, locked

ROOT = licences.ROOT
LOCK = (ROOT / "requirements.lock").read_text()
TORCH = "torch==2.13.0"


def wanted() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    return {canonical(re.split(r"[\[<>=~!; ]", line)[0]) for line in lines}


def test_every_dependency_is_pinned_and_hashed() -> None:
    pins = locked()
    assert wanted() - pins.keys() == {"torch"}
    assert all(hashes >= 1 for _, hashes in pins.values())
    assert "://" not in "".join(line for line in LOCK.splitlines() if not line.startswith("#"))
    assert len(pins) > 150


def test_the_environment_is_the_locked_one() -> None:
    installed = {canonical(d.metadata["Name"]): d.version for d in importlib.metadata.distributions()}
    pins = locked()
    differing = {name: v for name, v in installed.items() if name in pins and v != pins[name][0]}
    assert differing == {}
    assert {"numpy", "pyarrow", "dvc", "snakemake", "mkdocs-material"} <= installed.keys() & pins.keys()


def test_one_version_of_torch_is_named() -> None:
    for path in ("Makefile", "Dockerfile"):
        text = (ROOT / path).read_text()
        assert re.findall(r"torch==[0-9.]+", text) == [TORCH], path
        assert "--require-hashes --no-deps --requirement requirements.lock" in text


def test_the_dockerfile_is_sound() -> None:
    done = subprocess.run(["hadolint", "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
    lines = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text()).splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    (base,) = [rest for word, rest in steps if word == "FROM"]
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-[a-z]+", base)  # a version, never a moving tag
    users = [rest for word, rest in steps if word == "USER"]
    assert users == ["1000"], "commands do not run as root"
    assert steps.index(["USER", "1000"]) > max(k for k, (word, _) in enumerate(steps) if word == "RUN")


def test_the_image_holds_no_more_than_the_checkout() -> None:
    """What git ignores, and git's own folder, stay out of the build."""
    ignored = (ROOT / ".dockerignore").read_text().split()
    made = [line.strip("/") for line in (ROOT / ".gitignore").read_text().split("\n") if line and line[0] not in "#*_"]
    folders = {name for name in made if "*" not in name and "/" not in name}
    assert {".git", ".snakemake", "data", "public"} <= folders | {".git"} <= set(ignored)


def test_licences_are_listed_and_free() -> None:
    """Of the lock, of torch and of what is installed: the page says the same."""
    assert licences.PAGE.read_text() == licences.page(), "make licences"
    installed = {canonical(d.metadata["Name"]): d.version.partition("+")[0] for d in importlib.metadata.distributions()}
    rows = [line.strip("| ").split(" | ") for line in licences.PAGE.read_text().splitlines() if line.startswith("| ")]
    listed = {name: (version, licence) for name, version, licence in rows[2:]}
    tools = {"noscratch", "pip"}  # the project itself, and what installs the rest
    unlisted = {
        name for name in installed.keys() - listed.keys() if not name.startswith(("nvidia-", "cuda-", "triton"))
    }
    assert unlisted <= tools
    assert {n: v for n, v in installed.items() if n in listed and listed[n][0] != v} == {}
    unclear = {name for name, (_, licence) in listed.items() if not licences.FREE.search(licence)}
    assert unclear <= licences.LOOKED_AT.keys() <= listed.keys()


@pytest.mark.slow
def test_the_lock_installs_alone(tmp_path: Path) -> None:
    """Hashes are checked by pip itself, in a fresh environment."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv/bin/python")
    quiet = ("--quiet", "--disable-pip-version-check")
    subprocess.run([python, "-m", "pip", "install", *quiet, TORCH], check=True)
    lock = ("--require-hashes", "--no-deps", "--requirement", str(ROOT / "requirements.lock"))
    subprocess.run([python, "-m", "pip", "install", *quiet, *lock], check=True)
    assert subprocess.run([python, "-m", "pip", "check"], check=False).returncode == 0
