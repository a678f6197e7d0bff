"""The auditor's sub-commands; noscratch.cli adds them to its own. Heavy imports wait until a command needs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from noscratch.terminal import out

BUNDLE = Path("noscratch.intoto.json")


def keygen(
    key: Annotated[Path, typer.Argument(help="Where the private key is written; the public one gets `.pub` behind.")],
) -> None:
    """Make a pair of ed25519 keys for `sign` and `verify`. Keep the first file to yourself, give the second away.

    Example: noscratch keygen ~/.noscratch-key
    """
    from noscratch.audit.bundle import make_key

    public = make_key(key)
    out.print(f"private {escape(str(key))} (keep it), public {escape(str(public))} (give it away)")


def sign(
    paths: Annotated[
        list[str] | None, typer.Argument(help="Files and folders of the checkout; the evidence if none is named.")
    ] = None,
    *,
    key: Annotated[Path, typer.Option(help="The private key that `noscratch keygen` made.")],
    to: Annotated[Path, typer.Option(help="Where the bundle is written.")] = BUNDLE,
) -> None:
    """Sign the digests of the evidence: settings, claims, reports and views, or the paths that are named.

    Example: noscratch sign --key ~/.noscratch-key
    """
    from noscratch.audit.bundle import sign as write_bundle

    count = write_bundle(Path.cwd(), paths or [], key, to)
    out.print(f"signed {count:,} files: {escape(str(to))}")


def verify(
    bundle: Annotated[Path, typer.Argument(help="The bundle that `noscratch sign` wrote.")] = BUNDLE,
    *,
    key: Annotated[Path, typer.Option(help="The public key of who signed it.")],
) -> None:
    """Check a signed bundle and every file that it names; any altered byte fails with exit code 1.

    Example: noscratch verify --key noscratch-key.pub
    """
    from noscratch.audit.bundle import verify as check_bundle

    statement = check_bundle(Path.cwd(), bundle, key)
    commit = statement["predicate"]["commit"]
    out.print(
        f"{len(statement['subject']):,} files are as they were signed" + (f", at commit {commit}" if commit else "")
    )


COMMANDS: tuple[Callable[..., None], ...] = (keygen, sign, verify)
