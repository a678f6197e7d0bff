"""What git knows of the checkout: commits, and files as they were in one."""

from __future__ import annotations

import subprocess
from pathlib import Path

from noscratch.errors import NoscratchError


class GitError(NoscratchError):
    """No repository, or a commit or file that it does not have."""


def git(root: Path, *arguments: str) -> bytes:
    """The output of a git command in `root`; raises GitError with its message."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=False)
    except OSError as error:
        raise GitError(f"The history of a checkout is read with git, which does not start here: {error}.") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise GitError(f"`git {' '.join(arguments)}` in {root} gave: {said}. Name a commit or file that is there.")
    return done.stdout


def commit_of(root: Path, name: str = "HEAD") -> str:
    """The full hash of a commit by any of its names."""
    return git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}").decode().strip()
