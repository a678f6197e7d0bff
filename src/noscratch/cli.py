"""The command line: one sub-command per stage or question. Heavy imports wait until a command needs them."""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live
from rich.markup import escape
from rich.table import Column, Table

from noscratch import availability, recorded, telemetry
from noscratch import device as devices
from noscratch.atomic import put, temporary_in
from noscratch.audit.commands import COMMANDS
from noscratch.cluster import queue_again
from noscratch.device import rank, together
from noscratch.errors import NoscratchError
from noscratch.locks import descendants, only_run
from noscratch.plan import BASELINES, KINDS, VIEWS, Plan, grid, plans_of_all_tiers, read_plan
from noscratch.planning import COMMANDS as PLANNING
from noscratch.sources import PARTIAL
from noscratch.sources import check as check_source
from noscratch.sources.registry import SOURCES, Source
from noscratch.status import STATES, Status, age
from noscratch.store import (
    Store,
    difference,
    expected,
    full_disk_explained,
    make_view,
    read_provenance,
    read_record,
    sync,
    target,
)
from noscratch.terminal import EXIT_AGAIN, EXIT_ERROR, err, out

SUBMISSION = "submission.parquet"  # a run's predictions of GLUE's hidden test sets

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Which published claims about long-sequence architectures hold, at what cost, and how sure are we?\n\n"
    "Start with [bold]make repro[/bold]: it builds everything of the smoke tier and names the page to open. "
    "Commands run in the checkout, beside params.yaml.",
)
for command in (*COMMANDS, *PLANNING):
    app.command()(command)


def main() -> None:
    """Entry point: a NoscratchError, or a disk that refuses, becomes one message and exit code 1."""
    try:
        app()
    except NoscratchError as error:
        message = str(error)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT):
            raise
        message = f"Commands write into the checkout; that gave: {error}. Make it writable, or free some space, and "
        message += "run the same command again."
    else:
        return
    err.print(f"[bold red]error:[/] {escape(message)}")
    sys.exit(EXIT_ERROR)


def _checkout() -> tuple[Store, Plan]:
    root = Path.cwd()
    plan = read_plan(root)
    return Store(root), plan


@app.command()
def plan(
    kind: Annotated[str | None, typer.Option(help=f"Only this kind of job: {', '.join(KINDS)}.")] = None,
    select: Annotated[
        list[str] | None,
        typer.Option(help="Only runs with these names, joined by commas: text,s4d,seed0. May be repeated."),
    ] = None,
    targets: Annotated[
        bool, typer.Option("--targets", help="Only the files that snakemake makes for them, but for those blocked.")
    ] = False,
) -> None:
    """List every job of the chosen tier with its address and state.

    Example: noscratch plan --kind finetune

    A part of the plan: snakemake --cores 8 $(noscratch plan --select listops,s4d --targets)
    """
    from noscratch import transfer

    if kind not in (None, *KINDS):
        raise NoscratchError(f"The kinds are {', '.join(KINDS)}; got {kind!r}. Name one of them.")
    store, the_plan = _checkout()
    jobs = transfer.chosen(the_plan, select) if select else list(the_plan.jobs.values())
    jobs = [job for job in jobs if kind in (None, job.kind)]
    states = Status(store, the_plan).states
    if targets:
        out.print("\n".join(target(job) for job in jobs if states[job.address] != "blocked"), markup=False)
        return
    table = Table("address", "kind", Column("job", overflow="fold"), "state", box=None, pad_edge=False)
    for job in jobs:
        table.add_row(job.address, job.kind, job.label, states[job.address])
    out.print(table)


@app.command()
def status(
    task: Annotated[str | None, typer.Option(help="Only the runs of this task.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Only the runs of this backbone.")] = None,
) -> None:
    """Count the jobs of the chosen tier by kind and state, then its runs by task and backbone with the ages of the
    newest and the oldest; give the reason of each job that is not done.

    Planned: nothing is there yet. Stale: only results of other settings, code or data are. Failed: so says its record,
    or the log of a job that ended in an error and left none.

    Example: noscratch status --task listops
    """
    store, the_plan = _checkout()
    found = Status(store, the_plan)
    lines = found.grid()
    for option, chosen, known in (
        ("task", task, dict.fromkeys(line.task for line in lines)),
        ("backbone", backbone, dict.fromkeys(line.backbone for line in lines)),
    ):
        if chosen is not None and chosen not in known:
            raise NoscratchError(f"--{option} is one of {', '.join(known)}; got {chosen!r}. Name one of them.")
    for kind, count in Counter(job.kind for job in the_plan.jobs.values()).items():
        by_state = Counter(found.states[job.address] for job in the_plan.of(kind))
        out.print(f"{kind:9} {count:5}: " + ", ".join(f"{n} {state}" for state, n in sorted(by_state.items())))
    lines = [line for line in lines if task in (None, line.task) and backbone in (None, line.backbone)]
    # Names stay whole on a narrow terminal; the rest of a line may take several there.
    names = (Column(name, no_wrap=True) for name in ("task", "backbone"))
    table = Table(*names, "runs", box=None, pad_edge=False)
    for line in lines:
        said = ", ".join(f"{line.counts[state]} {state}" for state in STATES if line.counts[state])
        ages = dict.fromkeys(age(each) for each in (line.newest, line.oldest) if each is not None)
        table.add_row(line.task, line.backbone, "; ".join(filter(None, [said, " to ".join(ages)])))
    out.print(table)
    for reason in found.reasons():
        out.print(escape(reason))


@app.command()
def run(
    address: Annotated[str, typer.Argument(help="Twelve hex digits from `noscratch plan`.")],
    stop_after: Annotated[
        float | None, typer.Option(help="Seconds; then checkpoint and exit with code 75. The same command goes on.")
    ] = None,
    shard: Annotated[
        bool, typer.Option("--shard", help="Split the model over torchrun's processes (FSDP), not only the batch.")
    ] = False,
    requeue: Annotated[
        bool, typer.Option("--requeue", help="Stopped at a checkpoint, put this Slurm job back into the queue.")
    ] = False,
) -> None:
    """Do one job, unless its result stands in the store; several processes under torchrun share the work.

    Example: noscratch run 3fa9c1d2e4b0 --stop-after 3000
    """
    from noscratch.stages import run_job

    store, the_plan = _checkout()
    job = the_plan[address]
    # An engine or scheduler that gives up on a job says so with SIGTERM: leave nothing behind. (Training saves first.)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(EXIT_AGAIN))
    try:
        state = run_job(store, the_plan, job, stop_after=stop_after, progress=True, sharded=shard)
    except Exception as error:
        if type(error).__name__ != "Interrupted":  # train.Interrupted; importing it would import torch for every fetch
            raise
        if not rank():
            out.print(f"{job.name}: stopped at a checkpoint; run the same command to go on")
            if requeue and queue_again():
                out.print("its Slurm job is in the queue again")
        sys.exit(0 if together() else EXIT_AGAIN)  # torchrun takes any other code for a failure
    if not rank():
        out.print(f"{job.name}: {state}")


@app.command()
def watch(
    once: Annotated[bool, typer.Option("--once", help="Show it once and end, as for a pipe.")] = False,
) -> None:
    """Show every training job that has begun and not ended: step, loss, speed, time left, memory.

    Example: noscratch watch
    """
    store, _ = _checkout()
    if once:
        out.print(_watched(store.data))
        return
    with Live(_watched(store.data), console=out, auto_refresh=False) as live, suppress(KeyboardInterrupt):
        while True:
            time.sleep(1.0)
            live.update(_watched(store.data), refresh=True)


def _watched(data: Path) -> Table:
    columns = ("", "step", "loss", "tokens/s", "left", "memory", "said")
    table = Table(Column("job", overflow="fold"), *columns, box=None, pad_edge=False)
    for job in telemetry.watched(data):
        line = job.line
        table.add_row(
            job.job,
            "runs" if job.running else "stopped",
            f"{line['step']}/{line['steps']}",
            f"{line['loss']:.4f}",
            "" if job.tokens_per_second is None else f"{job.tokens_per_second:,.0f}",
            "" if job.seconds_left is None or not job.running else _duration(job.seconds_left),
            f"{line['memory'] / 2**20:,.0f} MiB",
            f"{_duration(job.age)} ago",
        )
    return table


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if hours < 2 else f"{hours:.1f} h"


@app.command()
def sources(
    name: Annotated[
        str | None, typer.Argument(help="One source, in full: its forms, digests, terms, citation.")
    ] = None,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Look again; rewrite data/availability.json when something changed.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Ask every address what it holds, without downloading; needs the network.")
    ] = False,
) -> None:
    """List every source: its state, where it was found, bytes, digest and licence.

    Example: noscratch sources cola
    """
    store, the_plan = _checkout()
    if refresh:
        availability.refresh(store, the_plan)
        return
    if name is not None and name not in SOURCES:
        raise NoscratchError(f"The sources are {', '.join(SOURCES)}; got {name!r}. Name one of them.")
    chosen = list(SOURCES) if name is None else [name]
    if check:
        for source in chosen:
            for address, state in check_source(source).items():
                out.print(f"{source:12} {escape(state):40} {escape(address)}")
    elif name is not None:
        _show_source(SOURCES[name])
    else:
        out.print(_sources_table(store, the_plan))


def _sources_table(store: Store, the_plan: Plan) -> Table:
    states = availability.read(store, the_plan)
    names = dict.fromkeys([*SOURCES, *states])
    table = Table("source", "state", "form", "found", "bytes", "sha256", "licence", box=None, pad_edge=False)
    for name in names:
        job = next((job for job in the_plan.of("fetch") if job.label == name), None)
        cells = ["", "", "", ""]
        if job is not None and store.has(job):
            record = read_record(store.path(job))
            # What was adopted from a pulled view has no provenance: views hold what is the same on every machine.
            origin = read_provenance(store.path(job)).get("origin", "view")
            files = record["artifacts"].values()
            digests = sorted(file["sha256"][:12] for file in files)
            size = sum(file["bytes"] for file in files)
            cells = [record["result"]["form"], origin, f"{size:,}", " ".join(digests)]
        table.add_row(
            name, escape(states.get(name, "not in the plan")), *cells, SOURCES[name.removesuffix(PARTIAL)].licence
        )
    return table


def _show_source(source: Source) -> None:
    for title in ("title", "homepage", "licence", "terms", "citation", "edition"):
        out.print(f"[bold]{title:9}[/] {escape(getattr(source, title))}")
    for form in source.forms:
        out.print(f"[bold]form[/]      {form.label}" + (f" ({escape(form.note)})" if form.note else ""))
        for file in form.files:
            out.print(f"  {file.name}: {file.bytes or 'unknown'} bytes, sha256 {file.sha256 or 'trusted on first use'}")
            for address in file.urls:
                out.print(f"    {escape(address)}")


@app.command()
def fetch(
    network: Annotated[
        bool, typer.Option("--network", help="Download, whatever the tier says. What is here once is here for good.")
    ] = False,
) -> None:
    """Bring every source of the plan into the store.

    Example: noscratch fetch --network
    """
    store, the_plan = _checkout()
    with only_run(store.data):
        availability.refresh(store, the_plan, network or None)
        for job, state in availability.bring(store, the_plan, network or None, progress=True):
            out.print(f"{job.label}: {escape(state)}")


@app.command(name="sync")
def sync_command() -> None:
    """Adopt into the store what the views hold, as after `dvc pull` in a fresh clone; every byte is hashed first.

    Example: dvc pull && noscratch sync
    """
    store, the_plan = _checkout()
    adopted = sync(store, the_plan)
    if adopted:
        out.print(f"adopted {len(adopted)} results from the views")


@app.command()
def view(names: Annotated[list[str], typer.Argument(help="raw, prepared, runs")]) -> None:
    """Make views show exactly what the plan names.

    Example: noscratch view raw prepared runs
    """
    store, the_plan = _checkout()
    for name in names:
        if name not in VIEWS:
            raise NoscratchError(f"The views are {', '.join(VIEWS)}; got {name!r}. Name one of them.")
    records = availability.blocked_records(store, the_plan)
    for name in names:
        make_view(store, name, expected(store, the_plan, name, records))


@app.command()
def collect() -> None:
    """Gather the records of the plan's runs, and the published ones, into reports/results.parquet, metrics.json,
    curves.parquet and curves.csv.

    Example: noscratch collect
    """
    from noscratch.results.collect import collect as gather

    store, the_plan = _checkout()
    planned = {address for each in plans_of_all_tiers(the_plan.params) for address in each.jobs}
    gather(
        [store.data / "runs" / job.view for job in the_plan.of("pretrain", "finetune")], store.root / "reports", planned
    )


@app.command()
def pack(
    to: Annotated[Path, typer.Option("--out", help="The file to write.")],
    select: Annotated[
        list[str], typer.Option(help="Names of a cell, joined by commas: text,s4d,seed0. May be repeated.")
    ],
) -> None:
    """Pack runs that are not done, with code and data, for a bare host: `noscratch work` there, `import` here.

    Example: noscratch pack --select listops,s4d --select text,s4d --out cells.tar
    """
    from noscratch import transfer

    store, the_plan = _checkout()
    packed = transfer.pack(store, the_plan, transfer.chosen(the_plan, select), to)
    out.print(f"{to}: {len(packed)} runs, {to.stat().st_size / 1e6:,.1f} MB")


@app.command()
def work(
    file: Annotated[Path, typer.Argument(help="A pack.")],
    stop_after: Annotated[
        float | None, typer.Option(help="Seconds; then checkpoint and exit with code 75. The same command goes on.")
    ] = None,
) -> None:
    """Do the runs of a pack on this host, beside it; finished ones come back in FILE.results, parts below 16 MB.

    Example: noscratch work cells.tar --stop-after 500
    """
    from noscratch import transfer

    done, failed, status = transfer.work(file, stop_after)
    for log in failed:
        out.print(escape(f"{log}:\n{log.read_text(encoding='utf-8')[-1000:]}"))
    out.print("\n".join([*done, f"{len(done)} runs are in {file}.results; bring them home with `noscratch import`."]))
    sys.exit(status)


@app.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(help="FILE.results of `noscratch work`, or folders of runs.")],
) -> None:
    """Bring in runs made elsewhere, all or none: of a tier's present plan, with every digest right, and with the scores
    that their predictions give.

    Example: noscratch import cells.tar.results
    """
    from noscratch import transfer

    store, the_plan = _checkout()
    new = transfer.adopt(store, plans_of_all_tiers(the_plan.params), folder)
    out.print("\n".join(new) or "Every run was here already.")


@app.command("publish-records")
def publish_records() -> None:
    """Copy the finished runs of the chosen tier (mini or paper), without weights, to reports/records, for git.

    Example: noscratch publish-records
    """
    from noscratch.results.published import publish_records as copy

    new = copy(*_checkout())
    out.print("\n".join(str(place) for place in new) or "Every finished run of the plan is published.")


@app.command()
def tuning() -> None:
    """List the published trials of the search for learning rate and weight decay; the chosen ones are marked.

    Example: noscratch tuning
    """
    from noscratch.results.published import chosen, trials

    found = trials(Path.cwd())
    best = chosen(found).values()
    table = Table("tier", "task", "backbone", "lr", "weight decay", "validation", "", box=None, pad_edge=False)
    for trial in found:
        result = f"{trial.metric} {trial.value:.4f}" if trial.state == "done" else trial.state
        numbers = (f"{trial.lr:g}", f"{trial.weight_decay:g}", result, "chosen" if trial in best else "")
        table.add_row(trial.tier, trial.task, trial.backbone, *numbers)
    out.print(table if found else "No trial is published. Run the mini tier, then `noscratch publish-records`.")


@app.command()
def judge() -> None:
    """Test every claim in claims/ against the results: reports/verdicts.parquet. Beside it: gains at equal compute,
    cells summed up, runs flagged.

    Example: noscratch judge
    """
    from noscratch.results.judged import judge_all

    store, the_plan = _checkout()
    judge_all(store.root, grid(the_plan.params))


@app.command()
def count() -> None:
    """Count sizes and operations of the published models, and compute identities, unless the present code has done so;
    writes reports/records/architecture.

    Example: noscratch count
    """
    from noscratch.record import count_job, is_counted, write_count
    from noscratch.results.claims import load, units

    root = Path.cwd()
    folder = root / "reports" / "records" / "architecture"
    papers = load(root / "claims")
    job = count_job("architecture", {"units": units(papers)}, ("noscratch.results.architecture",))
    if not is_counted(folder, job):
        from noscratch.results import architecture, observations, write_if_changed

        write_if_changed(folder / observations.FILE, observations.as_bytes(architecture.count(papers)))
        write_count(folder, job)


@app.command()
def publish() -> None:
    """Generate the site's pages from the reports into site/docs/generated.

    Example: noscratch publish
    """
    from noscratch.results.publish import publish as write_pages

    root = Path.cwd()
    with only_run(root / "data"):  # it takes away what others, killed, have left half written
        write_pages(root)


@app.command()
def site() -> None:
    """Build the site into public/, strictly: a dead link is an error. What stands there stays until it is whole.

    Example: noscratch site
    """
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "SOURCE_DATE_EPOCH": "0"}
    root = Path.cwd()
    public, made = root / "public", temporary_in(root / "data", "site")
    made.parent.mkdir(exist_ok=True)
    # Not with MkDocs' own --quiet: it hides what --strict finds, and its exit code.
    command = ("-m", "mkdocs", "build", "--config-file", "site/mkdocs.yml", "--strict", "--site-dir", str(made))
    try:
        done = subprocess.run(
            [sys.executable, *command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise NoscratchError(
                f"{done.stdout}\nThe site builds without a warning; MkDocs gave the above. Mend the page that it "
                "names, or free some space if the disk is full, then `noscratch site`."
            )
        put(made, public)
    finally:
        shutil.rmtree(made, ignore_errors=True)


@app.command()
def commit() -> None:
    """Make reports and site of a finished `snakemake all` and record everything for DVC.

    Views that are not those of the present plan are refused: DVC would certify them for good.

    Example: noscratch commit
    """
    if "DVC_ROOT" in os.environ:
        return  # inside `dvc repro`, which records its stages itself
    store, the_plan = _checkout()
    records = availability.blocked_records(store, the_plan)
    unfinished = [job.name for job in the_plan.jobs.values() if not store.has(job) and job.address not in records]
    wrong = f"{unfinished[0]} has not been run" if unfinished else None
    for name in VIEWS:
        wrong = wrong or difference(store.data / name, expected(store, the_plan, name, records))
    if wrong:
        raise NoscratchError(
            f"DVC records only views of the present plan; {wrong}. Run `snakemake --cores all all`, which ends "
            "with this command."
        )
    if recorded.is_recorded(store.root):
        return
    asked = time.time_ns()
    if not _to_its_end("dvc", "status", "--quiet"):
        recorded.note_recorded(store.root, asked)
        return  # of these views, this code and these claims it recorded everything before
    for make in (count, collect, judge):  # whatever stands there may be of other views or claims
        make()
    _log_verdicts(store.root)  # the pages tell them too
    for make in (publish, site):
        make()
    asked = time.time_ns()
    if _record(store.root, "commit", "--force", "--quiet"):
        raise NoscratchError("`dvc commit` failed (see above). Mend that, then `noscratch commit`.")
    recorded.note_recorded(store.root, asked)


def _log_verdicts(root: Path) -> bool:
    """Append what changed since the last time to reports/verdicts.jsonl, which belongs to git and not to DVC; whether
    anything did."""
    from noscratch.record import Stopwatch
    from noscratch.results import history
    from noscratch.results.claims import load

    commit = Stopwatch(root, "cpu").commit
    new = history.append(root / "reports", load(root / "claims"), commit)
    for line in new:
        out.print(f"{line['claim']}: {line['verdict']}")
    return bool(new)


@app.command()
def repro() -> None:
    """Build everything of the chosen tier: availability, `dvc repro`, and a summary. What `make repro` calls.

    Example: NOSCRATCH_MIRROR=../mirror noscratch repro
    """
    store, the_plan = _checkout()
    with only_run(store.data):
        adopted = sync(store, the_plan)
        if adopted:
            out.print(f"adopted {len(adopted)} results from the views")
        availability.refresh(store, the_plan)
        failed = _record(store.root, "repro")
        # A verdict that is new belongs on the pages too.
        failed = failed or (_log_verdicts(store.root) and _record(store.root, "repro"))
    if failed:
        raise NoscratchError(
            "`dvc repro` stopped (see above). Mend what it names and run the same command: finished jobs are kept."
        )
    _summary(store, the_plan)


def _record(root: Path, *arguments: str) -> int:
    """Run a command of DVC that writes dvc.lock, and return its exit code.

    DVC rewrites the file in place, so a full disk cuts it short. A copy waits in DVC's own scratch folder meanwhile,
    and comes back when the command failed and left less than there was.
    """
    lock = root / "dvc.lock"
    kept = temporary_in(root / ".dvc" / "tmp", lock.name)
    stages = _recorded(lock)
    try:
        if lock.exists():
            with full_disk_explained("The copy of dvc.lock that is kept while DVC rewrites it"):
                kept.parent.mkdir(exist_ok=True)
                shutil.copyfile(lock, kept)
        failed = _to_its_end("dvc", *arguments)
        if failed and lock.exists() and not (lock.read_bytes().endswith(b"\n") and stages <= _recorded(lock)):
            if kept.exists():
                kept.replace(lock)
            else:
                lock.unlink()
        if not failed and not (kept.exists() and kept.read_bytes() == lock.read_bytes()):
            _to_its_end("noscratch.recorded")
        return failed
    finally:
        kept.unlink(missing_ok=True)


def _recorded(lock: Path) -> set[str]:
    """The stages that a dvc.lock names."""
    text = lock.read_text(encoding="utf-8", errors="replace") if lock.exists() else ""
    return set(re.findall(r"^  ([a-z]+):$", text, re.MULTILINE))


def _to_its_end(module: str, *arguments: str) -> int:
    """Run a module of the environment and return its exit code.

    Ctrl-C reaches all its children too, which wind up: wait for that, or they would go on unseen. (subprocess.run kills
    the child at once.) SIGTERM comes to this process alone; it is passed on to all of them as Ctrl-C, which DVC and
    Snakemake know how to end by.
    """
    process = subprocess.Popen([sys.executable, "-m", module, *arguments])

    def pass_on(number: int, _: object) -> None:
        for pid in descendants(os.getpid()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        return process.wait()
    finally:
        process.wait()
        signal.signal(signal.SIGTERM, before)


def _summary(store: Store, the_plan: Plan) -> None:
    found = Status(store, the_plan)
    total = Counter(found.states[job.address] for job in the_plan.of("finetune"))
    out.print()
    out.print(
        f"[bold]{the_plan.params.run.tier} tier[/]: {len(the_plan.jobs)} jobs, {sum(total.values())} cells: "
        + ", ".join(f"{n} {s}" for s, n in sorted(total.items()))
    )
    for line in found.reasons():
        out.print(escape(line))
    out.print("results   reports/results.parquet, reports/verdicts.parquet, reports/metrics.json")
    out.print("open      public/index.html")


@app.command()
def tune(
    seconds: Annotated[float, typer.Option(help="For each backbone and choice; more is less noise.")] = 2.0,
    write: Annotated[bool, typer.Option("--write", help="Put what is proposed into params.yaml.")] = False,
) -> None:
    """Measure which thread count and kernel backend make the plan's models train fastest on this device, and print the
    lines of params.yaml that say so. Other programs should rest meanwhile.

    Example: noscratch tune --seconds 5
    """
    from noscratch import tune as tuner

    if not 0 < seconds < math.inf:
        raise NoscratchError(f"--seconds is a positive number; got {seconds:g}. Change it.")
    store, the_plan = _checkout()
    device = devices.choose(the_plan.params.run.device, the_plan.params.run.tier, devices.gpu_count())
    devices.require(device)
    cores, present = len(os.sched_getaffinity(0)), tuner.present_choice(the_plan)
    probes = tuner.probes(store, the_plan)
    choices = tuner.choices(the_plan, probes, device, cores)
    rates = {choice: tuner.measure(probes, choice, device, cores, seconds) for choice in choices}
    faster = tuner.speeds(probes, rates, present)
    chosen = tuner.proposal(faster, present)
    table = Table("threads", "backend", *(probe.backbone for probe in probes), "plan", "", box=None, pad_edge=False)
    for choice in choices:
        each = (f"{rates[choice][probe.backbone]:,.0f}" for probe in probes)
        mark = " ".join(word for word, which in (("present", present), ("proposed", chosen)) if choice == which)
        table.add_row(str(choice.threads), choice.backend, *each, f"{faster[choice]:.2f}x", mark)
    out.print(
        f"Tokens per second on {device} ({cores} cores), all processes together; the plan beside the present one:"
    )
    out.print(table)
    values = tuner.lines(the_plan, chosen)
    out.print("\n".join(["run:", *(f"  {key}: {value}" for key, value in values.items())]), markup=False)
    if write and chosen != present:
        tuner.write(Path.cwd(), values)
        out.print("Written to params.yaml. Both are part of every address: the plan's jobs run again.")


@app.command()
def generate(
    name: Annotated[str, typer.Argument(help="Address or cell of a finished causal pretraining run (spt-causal).")],
    prompt: Annotated[str | None, typer.Option(help="What to go on with; a training example's first element.")] = None,
    tokens: Annotated[int, typer.Option(help="Elements to make, fewer where the text ends.")] = 64,
    temperature: Annotated[
        float | None, typer.Option(help="Divides the logits: 0 takes the likeliest; 1 if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed draws the same elements.")] = 0,
) -> None:
    """Go on with a sequence, one element after the other, by the model of a finished causal run.

    Example: noscratch generate smoke-listops-s4d-spt-causal-seed0 --prompt "[MAX 2 [MIN 4" --tokens 20
    """
    from noscratch import generate as generation

    store, the_plan = _checkout()
    others = (each for each in plans_of_all_tiers(the_plan.params) if each.params.run.tier != the_plan.params.run.tier)
    where, job = generation.find_run(chain([the_plan], others), name)
    prepared, folder = store.path(where[job.needs["prepared"]]), store.path(job)
    if not store.has(job) or read_record(folder)["state"] != "done":
        raise NoscratchError(
            f"Generation needs a finished run; {job.name} is none. `noscratch run {job.address}` first."
        )
    model, meta = generation.load_model(prepared, folder, dict(job.settings))
    codec = generation.codec(prepared, meta)
    start = generation.first_element(prepared) if prompt is None else codec.encode(prompt)
    made = generation.generate(model, meta, start, tokens, temperature, seed)
    out.print(codec.decode(made), markup=False)


@app.command()
def baseline(
    task: Annotated[str, typer.Argument(help="A task of the plan, such as listops.")],
    network: Annotated[bool, typer.Option("--network", help="Download the task's source if need be.")] = False,
) -> None:
    """Fit the cheapest honest models of a task (majority, bag of tokens, a small CNN on images) and print their scores.

    Example: noscratch baseline listops
    """
    from noscratch.stages import run_job

    store, the_plan = _checkout()
    rows = [(j, j.cell) for j in the_plan.of("finetune") if j.cell and j.cell.task == task]
    rows = [(job, cell) for job, cell in rows if cell.backbone in BASELINES]
    if not rows:
        known = dict.fromkeys(job.cell.task for job in the_plan.of("finetune") if job.cell)
        raise NoscratchError(f"The tasks of the plan are {', '.join(known)}; got {task!r}. Name one of them.")
    for row, cell in rows:
        for job in the_plan.with_needs(row):
            run_job(store, the_plan, job, network=network or None)
        result = read_record(store.path(row))["result"]
        for metric, value in result["metrics"]["test"].items():
            out.print(
                f"{cell.backbone:9} seed {cell.seed}  test {metric:9} {value:.4f}  "
                f"(n = {result['examples']['test']}, {cell.tier} tier)"
            )


@app.command()
def submission(
    folder: Annotated[Path, typer.Argument(help="Where the eleven files are written.")],
    backbone: Annotated[str, typer.Option(help="Whose predictions.")] = "transformer",
    protocol: Annotated[str, typer.Option(help="How it was trained.")] = "spt-masked",
    seed: Annotated[int, typer.Option(help="Which run.")] = 0,
) -> None:
    """Write the eleven files of a GLUE submission from the stored predictions of finished runs.

    Example: noscratch submission glue/ --backbone s4d --protocol scratch
    """
    from noscratch.submission import TASKS, write

    store, the_plan = _checkout()
    runs = {
        (cell.task, cell.backbone, cell.protocol, cell.seed): store.path(job) / SUBMISSION
        for job in the_plan.of("finetune")
        if (cell := job.cell)
    }
    predictions = {}
    for task in TASKS:
        path = runs.get((task, backbone, protocol, seed))
        if path is None or not path.is_file():
            raise NoscratchError(
                f"A submission takes one finished run for each of {', '.join(TASKS)}; there is none of {task} by "
                f"{backbone}, {protocol}, seed {seed}. Run its cell (`noscratch plan --kind finetune`), then this "
                f"again."
            )
        predictions[task] = path
    for name, rows in write(predictions, folder).items():
        out.print(f"{name}: {rows} rows")


@app.command()
def passport(
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:<number>.")] = "cpu",
) -> None:
    """Test every kernel and backend on a device against known answers; training jobs ask for the same, cached.

    Example: noscratch passport --device cuda
    """
    from noscratch.passport import check

    store, _ = _checkout()
    report = check(device, store.data / "passports")
    table = Table("kernel", "backend", "dtype", "worst", "rms", "allowed", box=None, pad_edge=False)
    for kernel, backends in report["worst"].items():
        for backend, dtypes in backends.items():
            for dtype, error in dtypes.items():
                table.add_row(kernel, backend, dtype, *(f"{error[key]:.1e}" for key in ("max", "rms", "allowed")))
    out.print(table)
    out.print(f"every kernel gives its known answers; digest {report['digest'][:12]}")


@app.command()
def gc(dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False) -> None:
    """Remove results and checkpoints that no tier of params.yaml names, and what killed jobs left.

    Example: noscratch gc --dry-run
    """
    store, the_plan = _checkout()
    total = 0
    with only_run(store.data):
        for path in [*store.leftovers(), *store.unnamed(plans_of_all_tiers(the_plan.params))]:
            files = [path, *path.rglob("*")]
            freed = sum(file.stat().st_size for file in files if file.is_file() and file.stat().st_nlink == 1)
            total += freed
            out.print(f"{'would remove' if dry_run else 'removed'} {path.relative_to(store.root)}: {freed:,} bytes")
            if dry_run:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    out.print(f"{'would free' if dry_run else 'freed'} {total:,} bytes (what a view or DVC's cache shares stays there)")
