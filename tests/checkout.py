"""A checkout of its own for a test: the tracked files copied, a git repository, the tiny plan, commands run in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PARTS = (
    "reports/records",
    "src",
    "profiles",
    "claims",
    "site",
    ".dvc/config",
    ".dvcignore",
    ".gitignore",
    "CHANGELOG.md",
    "CITATION.cff",
    "Snakefile",
    "dvc.yaml",
)


@dataclass(frozen=True)
class Checkout:
    """A folder that commands run in, with its own copy of the package first on the path."""

    root: Path

    def environment(self, **extra: str) -> dict[str, str]:
        """The environment of a command: this checkout's package, no mirror, no colours."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("NOSCRATCH_", "DVC_", "SNAKEMAKE_"))}
        return {
            **kept,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}",
            "PYTHONPATH": str(self.root / "src"),
            "PYTHONWARNINGS": "ignore",
            "NO_COLOR": "1",
            "GIT_AUTHOR_NAME": "test",
            "GIT_AUTHOR_EMAIL": "test@example.org",
            "GIT_COMMITTER_NAME": "test",
            "GIT_COMMITTER_EMAIL": "test@example.org",
            **extra,
        }

    def run(self, *command: str, check: bool = True, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run a command here; with `check`, a failure raises with its output."""
        done = subprocess.run(
            command, cwd=self.root, env=self.environment(**extra), capture_output=True, text=True, check=False
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)} exited {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def noscratch(self, *arguments: str, check: bool = True, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run a sub-command of noscratch here."""
        return self.run(sys.executable, "-m", "noscratch", *arguments, check=check, **extra)

    def snakemake(self, *arguments: str, check: bool = True, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run snakemake here on two cores."""
        return self.run(sys.executable, "-m", "snakemake", "--cores", "2", *arguments, check=check, **extra)

    def dvc(self, *arguments: str, check: bool = True, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run dvc here."""
        return self.run(sys.executable, "-m", "dvc", *arguments, check=check, **extra)

    def edit(self, path: str, before: str, after: str) -> None:
        """Replace the one place where `before` stands in a file."""
        file = self.root / path
        text = file.read_text()
        assert text.count(before) == 1, f"{path} holds {before!r} {text.count(before)} times"
        file.write_text(text.replace(before, after))

    def jobs(self) -> list[str]:
        """Names of the store's finished jobs."""
        return sorted(p.parent.name for p in (self.root / "data/store").glob("[0-9a-f]*/record.json"))

    def clone(self, target: Path) -> Checkout:
        """A git clone of what is committed here."""
        self.run("git", "clone", "--quiet", str(self.root), str(target))
        return Checkout(target)

    def files(self, *folders: str) -> dict[str, bytes]:
        """Every file below the folders, with its bytes."""
        return {
            path.relative_to(self.root).as_posix(): path.read_bytes()
            for folder in folders
            for path in sorted((self.root / folder).rglob("*"))
            if path.is_file()
        }


def make_checkout(root: Path) -> Checkout:
    """A committed checkout of the present working tree with the tiny plan, no data and no lock file."""
    root.mkdir(parents=True)
    for part in PARTS:
        source, target = ROOT / part, root / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            # Published runs are not those of the tiny plan.
            ignored = shutil.ignore_patterns("__pycache__", "generated", "*.egg-info", "runs")
            shutil.copytree(source, target, ignore=ignored)
        else:
            shutil.copyfile(source, target)
    shutil.copyfile(ROOT / "tests/tiny/params.yaml", root / "params.yaml")
    (root / "reports/verdicts.jsonl").touch()  # its verdicts are its own
    checkout = Checkout(root)
    checkout.run("git", "init", "--quiet", "--initial-branch=main")
    checkout.run("git", "add", "--all")
    checkout.run("git", "commit", "--quiet", "--message=start")
    return checkout
