"""What `noscratch power`, `noscratch factors` and `noscratch estimate` print."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from noscratch.estimate import ClaimCost, Cost, Costs, SeedCost
from noscratch.factors import Design
from noscratch.results import power
from noscratch.results.judge import Scale
from noscratch.results.power import Need, Plan
from noscratch.results.variance import Split

ASSUMED = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Standard deviations over seeds that are tried where there is no pilot, in the claim's unit."""
PARTS = {
    "seed": "seed",
    "numerics": "numerics",
    "rest": "seed and numerics together",
    "another_seed": "between two seeds of one numerics",
    "another_numerics": "between two numerics of one seed",
}


def seeds_of(plan: Plan) -> Table:
    """The seeds that each quantity needs, by power; in brackets with the upper limit of the spread."""
    scale = Scale(plan.claim.unit)
    alpha = plan.claim.test.alpha
    table = Table("quantity", "pilot", "sd", "plans for", "agrees", box=None, pad_edge=False)
    for wanted in power.POWERS:
        table.add_column(f"{wanted:.0%} power", justify="right")
        table.add_column("among all", justify="right")
    for need in plan.needs:
        counts = [_counts(need, level, wanted) for wanted in power.POWERS for level in (alpha, alpha / plan.family)]
        truth = need.because if need.truth is None else f"{scale.back(need.truth):.4g} ({need.because})"
        table.add_row(need.quantity.name, *_pilot(need, scale), truth, _region(need, scale), *counts)
    return table


def _pilot(need: Need, scale: Scale) -> tuple[str, str]:
    unit = 100.0 if scale.relative else 1.0
    spread = "" if need.spread is None else f"{unit * need.spread.one:.3g} ({unit * need.spread.at_most.one:.3g})"
    if need.pilot is None:
        return "none", spread
    return f"{need.pilot.tier}, n = {need.pilot.n}: {need.pilot.estimate:.4g}", spread


def _region(need: Need, scale: Scale) -> str:
    low, high = (scale.back(edge) for edge in need.edges)
    if math.isinf(low):
        return f"below {high:.4g}"
    return f"above {low:.4g}" if math.isinf(high) else f"{low:.4g} to {high:.4g}"


def _counts(need: Need, alpha: float, wanted: float) -> str:
    if need.spread is None or need.truth is None:
        return "?"
    plain, cautious = (need.seeds(alpha, wanted, each) for each in (False, True))
    return f"{_number(plain)}" if plain == cautious else f"{_number(plain)} ({_number(cautious)})"


def _number(seeds: int | None) -> str:
    return f"> {power.MOST}" if seeds is None else str(seeds)


def whole(plan: Plan) -> Iterator[str]:
    """What the claim as a whole needs."""
    for wanted in power.POWERS:
        plain, cautious = (plan.seeds(wanted, each) for each in (False, True))
        which = "all" if plan.wanted == len(plan.needs) else f"{plan.wanted} of its {len(plan.needs)}"
        yield (
            f"The claim ({which} quantities hold), {wanted:.0%} power: {_number(plain)} seeds; {_number(cautious)} if "
            f"the spread is at its upper limit ({power.ASSURANCE:.0%} sure)"
        )


def assumed(plans: Mapping[float, Plan]) -> Table:
    """The seeds for the claim as a whole by assumed standard deviation."""
    table = Table("sd over seeds", *(f"{wanted:.0%} power" for wanted in power.POWERS), box=None, pad_edge=False)
    for deviation, plan in plans.items():
        table.add_row(f"{deviation:g}", *(_number(plan.seeds(wanted)) for wanted in power.POWERS))
    return table


def courses(plan: Plan, looks: Sequence[int]) -> Table:
    """How often each look of a sequential rule shows a quantity first, and how many seeds that takes on average."""
    alpha = plan.claim.test.alpha / plan.family
    table = Table("quantity", *(f"by {look} seeds" for look in looks), "seeds on average", box=None, pad_edge=False)
    for need in plan.needs:
        if need.spread is None or need.truth is None:
            table.add_row(need.quantity.name, *("?" for _ in looks), "?")
            continue
        found = power.course(looks, need.truth, *need.edges, need.spread, alpha)
        mean = sum(p * look for p, look in zip(found, looks, strict=True)) + (1 - sum(found)) * looks[-1]
        shares = (f"{sum(found[: k + 1]):.0%}" for k in range(len(looks)))
        table.add_row(need.quantity.name, *shares, f"{mean:.1f}")
    return table


def scores(made: Design, rows: Sequence[Mapping[str, Any]]) -> Table:
    """One line per seed, one column per numerics."""
    values = {(row["seed"], row["numerics"]): row["value"] for row in rows}
    table = Table(f"{rows[0]['metric']} on test", *made.numerics, box=None, pad_edge=False)
    for seed in made.seeds:
        table.add_row(f"seed {seed}", *(f"{values[seed, form]:.4f}" for form in made.numerics))
    return table


def variances(found: Split) -> Table:
    """Standard deviations with their intervals; those between two runs are of a difference."""
    table = Table("standard deviation", "estimate", "95 % interval", box=None, pad_edge=False)
    for name, part in found.parts.items():
        factor = math.sqrt(2) if name.startswith("another") else 1.0
        low, middle, high = (f"{factor * math.sqrt(value):.4f}" for value in (part.low, part.value, part.high))
        table.add_row(PARTS[name], middle, f"[{low}, {high}]")
    return table


def costs(found: Costs) -> Table:
    """One line for each cell, by name: its seeds, and what one of them costs, or why that is not known."""
    table = Table("cell", "seeds", box=None, pad_edge=False)
    for column in COST:
        table.add_column(column, justify="right")
    for name, (seeds, cost) in found.cells.items():
        table.add_row(name, str(seeds), *((escape(cost),) if isinstance(cost, str) else _cost(cost)))
    table.add_row("in total, all seeds", "", *_cost(found.total))
    return table


def claim_costs(found: Sequence[ClaimCost]) -> Table:
    """One line for each claim with its least seeds, and one for each paper and for all, whose cells count once."""
    table = Table("claim", "seeds", "cells", "left out", box=None, pad_edge=False)
    for column in COST:
        table.add_column(column, justify="right")
    for row in found:
        name = row.claim or (f"{row.paper}: all of these" if row.paper else "all papers")
        price = _cost(row.cost) if row.cells else ()
        table.add_row(name, str(row.seeds), str(row.cells), str(row.left_out or ""), *price)
    return table


def price_of_seeds(plan: Plan, spent: SeedCost) -> Iterator[str]:
    """What the claim's seeds cost: the least, and those for each power."""
    if spent.absent:
        yield f"not in the plan, and so not in the sums: {', '.join(spent.absent)}"
    for name, why in spent.unfit.items():
        yield escape(f"not in the sums: {name} {why}")
    counts = {"its least": plan.claim.seeds} | {f"{p:.0%} power": plan.seeds(p) for p in power.POWERS}
    for what, seeds in counts.items():
        if seeds is not None:
            hours, cpu, *_, energy = _cost(spent.cost.times(seeds))
            processor = f" ({cpu} CPU hours)" if cpu else ""
            yield f"{what}, {seeds} seeds: {seeds * spent.cells} runs, {hours} hours{processor}, {energy} kWh"


COST = ("hours", "CPU hours", "memory", "disk", "beside it", "kWh")


def _cost(cost: Cost) -> tuple[str, ...]:
    energy = "unknown" if cost.joules is None else _hours(cost.joules / 1000)
    hours = (_hours(seconds) if seconds else "" for seconds in (cost.time.wall, cost.time.cpu))
    return *hours, *map(_size, (cost.memory, cost.disk, cost.scratch)), energy


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.0f}" if seconds >= 3.6e5 else f"{seconds / 3600:.3g}"


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
