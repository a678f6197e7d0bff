"""The sub-commands that plan: estimate, power, factors. noscratch.cli adds them to its own; heavy imports wait."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from noscratch import device as devices
from noscratch.errors import NoscratchError
from noscratch.params import load
from noscratch.plan import Plan, at_tier, cells
from noscratch.record import Stopwatch
from noscratch.store import Store
from noscratch.terminal import out

if TYPE_CHECKING:
    from noscratch.estimate import Prices

DEVICE_CLASS = "Not by probes here but from operations counted, for a class of device: h200, h100, a100, t4."
UTILIZATION = "Share of the class's peak rates that is reached: an assumption."


def estimate(
    tier: Annotated[str | None, typer.Option(help="The tier to estimate; else the chosen one.")] = None,
    select: Annotated[
        list[str] | None,
        typer.Option(help="TASK/BACKBONE/PROTOCOL or a claim's id, * for any; repeatable. Else all."),
    ] = None,
    by_claim: Annotated[bool, typer.Option("--by-claim", help="What the least seeds of each claim cost.")] = False,
    device_class: Annotated[str | None, typer.Option(help=DEVICE_CLASS)] = None,
    utilization: Annotated[float, typer.Option(help=UTILIZATION)] = 0.5,
    record: Annotated[
        bool, typer.Option("--record", help="Write the costs of the claims below reports/records, for git and site.")
    ] = False,
) -> None:
    """Hours, memory, disk and energy of cells, from a few steps of each kind of run on this device, kept for later.

    Cells that are predicted not to fit the device are refused.

    Example: noscratch estimate --tier mini --select 'listops/*/scratch'
    """
    from noscratch import estimate as estimating
    from noscratch import tables
    from noscratch.results import claims

    if record and not (by_claim and device_class and not select):
        raise NoscratchError(
            "--record keeps what all claims cost on a class of device: add --by-claim, --device-class."
        )
    root = Path.cwd()
    params = load(root)
    plan = Plan(at_tier(params, _one_of("tiers", tier or params.run.tier, params.tiers)))
    prices = _prices(Store(root), plan, device_class, utilization)
    if by_claim:
        found = estimating.by_claim(prices, plan, claims.load(root / "claims"), select or [])
        out.print(tables.claim_costs(found))
        if record and device_class:
            from noscratch.roofline import publish

            folder = publish(found, plan.params.run.tier, device_class, utilization, root)
            out.print(f"recorded in {folder.relative_to(root)}")
        return
    costs = estimating.costs(prices, plan, estimating.select(plan, select or []))
    out.print(tables.costs(costs))
    if costs.made_up:
        out.print(f"not prepared, so from published lengths and random elements: {', '.join(costs.made_up)}")
    if costs.unfit:
        raise NoscratchError(
            f"The device has no memory for {len(costs.unfit)} of the cells: {', '.join(costs.unfit)}. The table says "
            "what to change."
        )


def _prices(store: Store, plan: Plan, device_class: str | None, utilization: float) -> Prices:
    if device_class is None:
        # Unlike a run, an estimate above the smoke tier may use the CPU: it takes seconds.
        from noscratch.probes import Probes

        on_gpu = plan.params.run.device != "cpu" and devices.gpu_count() > 0
        return Probes(store, plan, "cuda" if on_gpu else "cpu")
    from noscratch.roofline import CLASSES, Rooflines

    _one_of("device classes", device_class, CLASSES)
    if not 0 < utilization <= 1:
        raise NoscratchError(f"--utilization is a share of the peak rates, in (0, 1]; got {utilization:g}.")
    out.print(
        f"{device_class}: from operations and bytes, at {utilization:.0%} of the peak rates of its data sheet, which "
        "is an assumption; nothing was measured"
    )
    return Rooflines(plan, CLASSES[device_class], utilization)


def _one_of(what: str, name: str, known: Iterable[str]) -> str:
    if name not in known:
        raise NoscratchError(f"The {what} are {', '.join(known)}; got {name!r}. Name one of them.")
    return name


def power(
    claim: Annotated[str, typer.Argument(help="A claim's id, as on the site: spt-transformer-mean.")],
    effect: Annotated[
        float | None, typer.Option(help="The true value to plan for, in the claim's unit; else the published one.")
    ] = None,
    deviation: Annotated[
        float | None, typer.Option("--sd", help="Assume this standard deviation over seeds instead of the pilot's.")
    ] = None,
    looks: Annotated[
        str | None, typer.Option(help="Numbers of seeds of a sequential rule, such as 5,10,20, to follow its course.")
    ] = None,
    cost: Annotated[
        bool, typer.Option("--cost", help="Estimate what the seeds cost, too; probes take a while.")
    ] = False,
    device_class: Annotated[str | None, typer.Option(help=DEVICE_CLASS)] = None,
    utilization: Annotated[float, typer.Option(help=UTILIZATION)] = 0.5,
) -> None:
    """How many seeds a claim needs for its own test and margin, from the spread over the seeds that there are.

    Example: noscratch power spt-transformer-mean --looks 3,5,10 --cost --device-class h200
    """
    from noscratch import tables
    from noscratch.results import claims
    from noscratch.results import power as planning
    from noscratch.results.collect import read_results
    from noscratch.results.judge import Grid

    root = Path.cwd()
    paper, wanted = planning.trained(claims.load(root / "claims"), claim)
    grid = Grid(read_results(root / "reports" / "results.parquet"))
    params = at_tier(load(root), wanted.tier)
    planned = {claims.Cell(cell.task, cell.backbone, cell.protocol) for cell in cells(params)}
    found = planning.plan(wanted, paper, grid, planned, truth=effect, deviation=deviation)
    out.print(escape(f"{wanted.statement} ({wanted.where})"))
    out.print(
        f"{wanted.test.rule} in {wanted.unit}, alpha {wanted.test.alpha:g}, at tier {wanted.tier} with {wanted.seeds} "
        f"seeds at least; among all: with Holm over the paper's {found.family} quantities that the tier's plan holds"
    )
    out.print(tables.seeds_of(found))
    if found.seeds(planning.POWERS[0]) is not None:
        for line in tables.whole(found):
            out.print(line)
    elif any(need.spread is None for need in found.needs):
        out.print(escape(planning.missing(found, grid)))
        tried = {sd: planning.plan(wanted, paper, grid, planned, truth=effect, deviation=sd) for sd in tables.ASSUMED}
        out.print(tables.assumed(tried))
    if looks or wanted.looks:
        out.print(tables.courses(found, _numbers("--looks", looks) if looks else wanted.looks or ()))
    if cost or device_class:
        from noscratch.estimate import cells_of, one_seed

        plan = Plan(params)
        spent = one_seed(_prices(Store(root), plan, device_class, utilization), plan, cells_of(wanted))
        for line in tables.price_of_seeds(found, spent):
            out.print(line)


def factors(
    cell: Annotated[str, typer.Argument(help="TASK/BACKBONE/PROTOCOL, such as listops/s4d/scratch.")],
    tier: Annotated[str | None, typer.Option(help="Its tier; else the chosen one.")] = None,
    seeds: Annotated[str, typer.Option(help="Seeds, joined by commas.")] = "0,1,2,3,4",
    numerics: Annotated[
        str | None, typer.Option(help="Dtypes, each with a backend if need be, such as float64,float32/reference.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the runs with their addresses.")] = False,
    record: Annotated[bool, typer.Option("--record", help="Write the split below reports/records, for git.")] = False,
) -> None:
    """Numerics or seed? Train one cell with every seed in every numerics, and split the spread of its score.

    Example: noscratch factors listops/s4d/scratch --tier mini --seeds 0,1,2,3,4
    """
    from noscratch import factors as crossed
    from noscratch import tables

    root = Path.cwd()
    store, params = Store(root), load(root)
    watch = Stopwatch(root, params.run.device)
    forms = numerics.split(",") if numerics else crossed.NUMERICS
    made = crossed.design(params, cell, tier or params.run.tier, _numbers("--seeds", seeds), forms)
    if dry_run:
        for trial in made.trials:
            state = "done" if store.has(trial.job) else "planned"
            out.print(f"{trial.job.address} seed {trial.seed} {trial.numerics} {state}")
        return
    for trial in crossed.run(store, made, progress=True):
        out.print(f"{trial.job.name}: seed {trial.seed}, {trial.numerics}")
    rows = crossed.rows(store, made)
    found = crossed.split_of(made, rows)
    out.print(tables.scores(made, rows))
    out.print(tables.variances(found))
    out.print(f"p-values (F): no effect of the seed {found.p_seed:.3g}, no shift of numerics {found.p_numerics:.3g}")
    if record:
        out.print(f"recorded in {crossed.publish(made, rows, root, watch).relative_to(root)}")


def _numbers(option: str, text: str) -> list[int]:
    if not all(part.isdigit() for part in text.split(",")):
        raise NoscratchError(f"{option} takes whole numbers joined by commas, such as 0,1,2; got {text!r}.")
    return [int(part) for part in text.split(",")]


COMMANDS: tuple[Callable[..., None], ...] = (estimate, power, factors)
