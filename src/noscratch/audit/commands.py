"""The auditor's sub-commands; noscratch.cli adds them to its own. Heavy imports wait until a command needs them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from noscratch.terminal import EXIT_ERROR, out

SHOWN = 40  # cells in the terminal
BUNDLE = Path("noscratch.intoto.json")


def audit(
    models: Annotated[
        bool, typer.Option("--models", help="Let the stored weights predict again; about a second for each run.")
    ] = False,
    cheats: Annotated[
        bool, typer.Option("--cheats", help="Examine the auditor: doctor copies of a small honest checkout.")
    ] = False,
) -> None:
    """Hash every artifact, compute every published number again, check that nothing was left out or opened twice.

    Each line is a place, the rule that it breaks, what was got and what to do. Exit code 1 when there is any.

    Example: noscratch audit
    """
    from noscratch.audit.case import RULES
    from noscratch.audit.check import audit as run

    if cheats:
        _exam()
        return
    report = run(Path.cwd(), models)
    for finding in report.findings:
        out.print(f"[bold]{escape(finding.path)}[/]: {escape(finding.got)}")
        out.print(f"    rule {finding.rule}: {RULES[finding.rule]}. {escape(finding.next)}")
    if report.absent:
        out.print(f"not here, so not audited: {', '.join(report.absent)}")
    rate = report.bytes / report.seconds / 1e9 if report.seconds else 0.0
    out.print(
        f"{report.entries:,} records, {report.numbers:,} numbers on pages, {report.bytes / 1e6:,.1f} MB hashed at "
        f"{rate:.2f} GB/s: " + (f"{len(report.findings)} findings" if report.findings else "nothing is wrong")
    )
    if report.findings:
        raise typer.Exit(EXIT_ERROR)


def _exam() -> None:
    """Every cheat, and what gave it away; exit code 1 when one passed, or when the honest checkout raised an alarm."""
    from noscratch.audit.exam import exam

    table = Table("cheat", "traces", "found by", "other findings", box=None, pad_edge=False)
    passed = count = 0
    for outcome in exam(Path.cwd()):
        rules = ", ".join(dict.fromkeys(finding.rule for finding in outcome.caught))
        others = len(outcome.findings) - len(outcome.caught)
        wanted = outcome.cheat.rules
        passed += not outcome.caught if wanted else bool(outcome.findings)
        count += bool(wanted)
        verdict = rules or ("[red]not found[/]" if wanted else "")
        table.add_row(outcome.cheat.name, "covered" if outcome.cheat.settled else "", verdict, str(others or ""))
    out.print(table)
    out.print(
        f"{count} cheats and one honest checkout: " + (f"{passed} judged wrongly" if passed else "all judged right")
    )
    if passed:
        raise typer.Exit(EXIT_ERROR)


def compare(
    before: Annotated[str, typer.Argument(help="A commit: a hash, a branch, a tag, HEAD~3.")] = "HEAD~1",
    after: Annotated[str, typer.Argument(help="Another one.")] = "HEAD",
    page: Annotated[Path | None, typer.Option(help="Also write it all as Markdown into this file.")] = None,
    beside: Annotated[bool, typer.Option(help="Show `dvc diff`, `params diff` and `metrics diff` too.")] = True,
) -> None:
    """Say which cells moved from one commit to another, whether beyond the noise of their seeds, and why.

    Example: noscratch compare HEAD~1 HEAD --page changes.md
    """
    from noscratch.audit import compare as comparing

    found = comparing.compare(Path.cwd(), before, after)
    out.print(comparing.summary(found))
    for cause, count in found.causes.most_common():
        out.print(f"{count:5} because of {escape(str(cause))}")
    table = Table("cell", "before", "after", "difference", "noise", "why", box=None, pad_edge=False)
    for change in found.moved[:SHOWN]:
        why = "; ".join(map(str, change.causes))
        table.add_row("/".join(change.cell), *comparing.words(change), escape(why))
    if found.moved:
        out.print(table)
    if len(found.moved) > SHOWN:
        out.print(f"and {len(found.moved) - SHOWN} more cells; --page lists all")
    for claim, (was, now) in found.verdicts.items():
        out.print(f"verdict of {escape(claim)}: {was} -> {now}")
    said = list(comparing.beside(Path.cwd(), before, after)) if beside else []
    for command, output in said:
        out.print(f"\n[bold]{escape(command)}[/]\n{escape(output)}")
    if page is not None:
        page.write_text(comparing.page(found, said), encoding="utf-8")


def redo(
    cell: Annotated[
        str,
        typer.Argument(
            help="TIER/TASK/BACKBONE/PROTOCOL, with /SEED for one run; or the address of a run or of a number."
        ),
    ],
    keep: Annotated[Path | None, typer.Option(help="Keep what is built in this folder.")] = None,
) -> None:
    """Build the runs behind one number again in a scratch store and compare: equal, within tolerance or different.

    Exit code 1 when one is different.

    Example: noscratch redo smoke/listops/s4d/spt-masked
    """
    from noscratch.audit.redo import redo as build_again

    different = 0
    with tempfile.TemporaryDirectory(prefix="noscratch-redo-") as folder:
        for run in build_again(Path.cwd(), cell, keep or Path(folder), progress=True):
            different += run.outcome == "different"
            within = f", tolerance {run.tolerance:.2g} (n = {run.examples})" if not run.equal else ""
            out.print(f"{run.outcome:16} {run.cell}: {run.metric} {run.kept!r}, again {run.again!r}{within}")
            for line in run.differences:
                out.print(f"    {escape(line)}")
    if different:
        raise typer.Exit(EXIT_ERROR)


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


COMMANDS: tuple[Callable[..., None], ...] = (audit, compare, redo, keygen, sign, verify)
