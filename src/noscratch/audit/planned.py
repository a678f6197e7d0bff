"""What a tree of the project plans: every job of every tier, asked of the tree's own code in a process of its own.

So a commit is asked what it planned by the code that it held, not by what we would plan today.
"""

from __future__ import annotations

import inspect
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noscratch.audit.git import commit_of, git
from noscratch.code import PACKAGE
from noscratch.errors import NoscratchError

# What a plan is made of.
NEEDED = ("params.yaml", "src/noscratch")


def describe(root: str, wanted: list[str], extra: list[str]) -> dict[str, Any]:
    """The plans of the tree at `root` by the package that is imported, as JSON has them; `wanted` are the tiers (none:
    all), `extra` modules whose closures are described too.

    Its source is also run in the process of another tree (see `plans`): it imports all that it uses, and only what
    every version of the package has.
    """
    import ast
    import dataclasses
    import hashlib
    from pathlib import Path

    from noscratch import code
    from noscratch.params import load
    from noscratch.plan import Plan

    params = load(Path(root))
    tiers = {}
    for tier in params.tiers:
        if not wanted or tier in wanted:
            run = params.run.model_copy(update={"tier": tier})
            tiers[tier] = Plan(params.model_copy(update={"run": run}))
    jobs: dict[str, Any] = {}
    closures: dict[str, list[str]] = {}
    for tier, plan in tiers.items():
        for job in plan.jobs.values():
            described = {
                "kind": job.kind,
                "name": job.name,
                "address": job.address,
                "settings": job.settings,
                "code": job.code,
                "modules": list(job.modules),
                "needs": dict(job.needs),
                "view": job.view,
                "cell": dataclasses.asdict(job.cell) if job.cell else None,
                "tiers": [],
            }
            jobs.setdefault(job.address, described)["tiers"].append(tier)
            if job.code not in closures:
                closures[job.code] = list(code.closure(tuple(job.modules)))
    closures |= {module: list(code.closure((module,))) for module in extra if code.path_of(module)}
    digests = {}
    for module in {module for modules in closures.values() for module in modules}:
        path = code.path_of(module)
        assert path is not None
        text = code.canonical(ast.parse(path.read_text(encoding="utf-8")))
        digests[module] = hashlib.sha256(text.encode()).hexdigest()
    seeds = {tier: list(plan.params.tier.seeds) for tier, plan in tiers.items()}
    return {"tier": params.run.tier, "jobs": jobs, "closures": closures, "digests": digests, "seeds": seeds}


ASK = f"""
from __future__ import annotations
import json, sys
from typing import Any
from noscratch.errors import NoscratchError
{inspect.getsource(describe)}
try:
    json.dump(describe(".", *json.loads(sys.argv[1])), sys.stdout)
except NoscratchError as error:
    sys.exit(str(error))
"""


class PlanError(NoscratchError):
    """A tree whose own code makes no plan of it."""


@dataclass(frozen=True)
class Planned:
    """A job as the plan of some tree has it; `tiers` are those whose plan names it."""

    kind: str
    name: str
    address: str
    settings: Mapping[str, Any]
    code: str
    modules: Sequence[str]
    needs: Mapping[str, str]
    view: str
    cell: Mapping[str, Any] | None
    tiers: Sequence[str]


@dataclass(frozen=True)
class Plans:
    """Every tier's plan of a tree. tier: the chosen one. closures: a job's `code` -> the modules that it covers.
    digests: module -> digest of its code. seeds: those of each tier."""

    tier: str
    jobs: Mapping[str, Planned]
    closures: Mapping[str, Sequence[str]]
    digests: Mapping[str, str]
    seeds: Mapping[str, Sequence[int]]

    def of_tier(self, tier: str) -> list[Planned]:
        """The jobs of one tier, in plan order."""
        return [job for job in self.jobs.values() if tier in job.tiers]


def plans(tree: Path, tiers: Iterable[str] = (), extra: Iterable[str] = ()) -> Plans:
    """The plans of the tree in a folder, of these tiers or of all; raises PlanError with what its code says.

    The closures of the `extra` modules are described too, under their names.
    """
    asked = [list(tiers), list(extra)]
    if not (tree / "src").is_dir() or _sources(tree / "src" / "noscratch") == _sources(PACKAGE):
        found = describe(str(tree), *asked)
    else:
        environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        ask = [sys.executable, "-c", ASK, json.dumps(asked)]
        done = subprocess.run(ask, cwd=tree, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
            raise PlanError(f"{tree}: its own code plans from its params.yaml; it says: {said} Mend that first.")
        found = json.loads(done.stdout)
    return Plans(**found | {"jobs": {address: Planned(**job) for address, job in found["jobs"].items()}})


def _sources(package: Path) -> dict[str, bytes]:
    """The modules of a package folder, by name."""
    return {path.relative_to(package).as_posix(): path.read_bytes() for path in sorted(package.rglob("*.py"))}


@contextmanager
def tree_of(root: Path, commit: str, paths: Sequence[str] = NEEDED) -> Iterator[Path]:
    """A folder with the given files and folders as a commit has them; removed at the end."""
    archive = git(root, "archive", "--format=tar", commit_of(root, commit), "--", *paths)
    with tempfile.TemporaryDirectory(prefix="noscratch-tree-") as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(folder, filter="data")
        yield Path(folder)


def plans_at(root: Path, commit: str, tiers: Iterable[str] = ()) -> Plans:
    """The plans of a commit, of these tiers or of all."""
    with tree_of(root, commit) as tree:
        return plans(tree, tiers)
