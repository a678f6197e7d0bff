"""How many seeds a claim needs: the power of its own test, from the spread between the seeds that there are.

Every verdict is a t test against the edges of a region (statistics.region), so one formula covers equivalence and
one-sided claims. With W^2 a chi-squared variable over its f degrees of freedom, the estimate X normal around the truth
with standard error e, and t the critical value, the test passes where low + t e W < X < high - t e W:

    power = E_W[ max(0, Phi((high - truth) / e - t W) - Phi((low - truth) / e + t W)) ]

which for an infinite edge is the non-central t distribution.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import integrate, special, stats

from noscratch.errors import NoscratchError
from noscratch.results import statistics
from noscratch.results.claims import TIERS, Cell, Paper, Quantity, Trained
from noscratch.results.judge import Grid, Sample, Scale

POWERS = (0.8, 0.9)
MOST = 1000
"""Seeds beyond which a claim is not worth asking."""
ASSURANCE = 0.8
"""A spread that was estimated from few seeds is likely to be too small: this is how sure one is to stay below the
upper limit that is used beside it (Browne 1995, doi 10.1002/sim.4780141709)."""
STUDIES = 4000
"""Simulated courses of a sequential rule."""


@dataclass(frozen=True)
class Spread:
    """The standard deviations of one comparison: of one sample or of paired differences, or of two samples; and the
    degrees of freedom behind them (infinite for an assumed spread)."""

    deviations: tuple[float, ...]
    freedom: float

    @property
    def one(self) -> float:
        """The deviation of one seed's contribution to the estimate."""
        return math.sqrt(sum(deviation**2 for deviation in self.deviations))

    @property
    def at_most(self) -> Spread:
        """The upper limit of the deviations that ASSURANCE asks for."""
        if not math.isfinite(self.freedom):
            return self
        factor = math.sqrt(self.freedom / float(special.chdtri(self.freedom, ASSURANCE)))
        return Spread(tuple(deviation * factor for deviation in self.deviations), self.freedom)

    def estimate(self, n: int) -> tuple[float, float]:
        """Standard error of the estimate from n seeds, and its degrees of freedom (Satterthwaite's for two samples)."""
        error = self.one / math.sqrt(n)
        squares = [deviation**2 for deviation in self.deviations]
        if len(squares) == 1 or sum(squares) == 0:
            return error, n - 1.0
        return error, (n - 1) * sum(squares) ** 2 / sum(square**2 for square in squares)


def power(truth: float, low: float, high: float, error: float, freedom: float, alpha: float) -> float:
    """The probability that a value inside [low, high] is shown to be so, with p < alpha; an edge may be infinite."""
    if error == 0:
        return float(low < truth < high)
    t = float(special.stdtrit(freedom, 1 - alpha))
    to_low, to_high = (truth - low) / error, (high - truth) / error

    def passes(w: float) -> float:
        return float(special.ndtr(to_high - t * w) - special.ndtr(t * w - to_low))

    def density(w: float) -> float:
        return 2 * freedom * w * float(stats.chi2.pdf(freedom * w * w, freedom))

    end = (to_low + to_high) / (2 * t)  # beyond it the region is narrower than what the test asks for
    end = min(end, math.sqrt(float(special.chdtri(freedom, 1e-14)) / freedom))
    return float(integrate.quad(lambda w: passes(w) * density(w), 0, end, limit=200, epsabs=1e-10)[0])


def _least(enough: Callable[[int], bool]) -> int | None:
    """The least number of seeds from 2 to MOST that is enough; more are enough too."""
    if not enough(MOST):
        return None
    least, most = 1, 2
    while not enough(most):
        least, most = most, min(2 * most, MOST)
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if enough(middle) else (middle, most)
    return most


@dataclass(frozen=True)
class Pilot:
    """What present results say of a quantity: the tier, the seeds, our estimate in the claim's unit, and the spread."""

    tier: str
    n: int
    estimate: float
    spread: Spread


@dataclass(frozen=True)
class Need:
    """One quantity of a claim: its pilot (None where no tier has two seeds of every cell), the true value that is
    assumed and why, and the region on the scale of the test."""

    quantity: Quantity
    pilot: Pilot | None
    spread: Spread | None
    truth: float | None
    because: str
    edges: tuple[float, float]

    def misses(self, n: int, alpha: float, cautious: bool = False) -> float:
        """The probability that n seeds do not show what is true; `cautious` takes the upper limit of the spread. 1
        where spread or truth are unknown."""
        if self.spread is None or self.truth is None:
            return 1.0
        spread = self.spread.at_most if cautious else self.spread
        return 1.0 - power(self.truth, *self.edges, *spread.estimate(n), alpha)

    def seeds(self, alpha: float, wanted: float, cautious: bool = False) -> int | None:
        """The seeds for `wanted` power at `alpha`; None beyond MOST."""
        return _least(lambda n: self.misses(n, alpha, cautious) <= 1 - wanted)


@dataclass(frozen=True)
class Plan:
    """What a claim needs. `family`: with how many other quantities it shares alpha, by Holm, in the worst case."""

    claim: Trained
    needs: tuple[Need, ...]
    family: int
    cells: tuple[Cell, ...]

    @property
    def wanted(self) -> int:
        """How many of the quantities must hold."""
        return self.claim.need or len(self.needs)

    def seeds(self, wanted: float, cautious: bool = False) -> int | None:
        """Seeds with which the claim as a whole is supported with probability `wanted`, if it is true: the misses of
        the quantities that must hold add up to the rest at most."""
        alpha = self.claim.test.alpha / self.family
        return _least(
            lambda n: sum(sorted(need.misses(n, alpha, cautious) for need in self.needs)[: self.wanted]) <= 1 - wanted
        )


def trained(papers: Sequence[Paper], name: str) -> tuple[Paper, Trained]:
    """The claim of that id, and its paper. Raises NoscratchError where there is none, or it needs no training."""
    found = {claim.id: (paper, claim) for paper in papers for claim in paper.claims}
    if name not in found:
        near = difflib.get_close_matches(name, found, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise NoscratchError(f"A claim is named by its id in claims/*.yaml; there is no {name!r}.{hint}")
    paper, claim = found[name]
    if not isinstance(claim, Trained):
        raise NoscratchError(
            f"Seeds are planned for claims about trained models; {name} is a claim of kind {claim.kind}, which a "
            "measurement or the sources settle."
        )
    return paper, claim


def missing(plan: Plan, grid: Grid) -> str:
    """What a pilot lacks: the cells without two finished seeds at any tier."""
    lacking = []
    for cell in plan.cells:
        most = max(len(grid.sample(tier, [cell], plan.claim.split, "").values) for tier in TIERS)
        if most < 2:
            lacking.append(f"{cell} (has {most})")
    listed = ", ".join(lacking) if lacking else "its cells share no tier and metric with two seeds each"
    return f"No pilot: a spread needs two finished seeds of each cell at one tier. Missing: {listed}"


def plan(
    claim: Trained,
    paper: Paper,
    grid: Grid,
    planned: Collection[Cell],
    *,
    truth: float | None = None,
    deviation: float | None = None,
) -> Plan:
    """What each quantity of a claim needs, from the strongest tier that has two seeds of its cells.

    `planned`: the cells of the claim's tier. `truth` (in the claim's unit) and `deviation` (in it too; relative
    percents on the log scale, in percent) replace what would be assumed from the paper and the pilot.
    """
    scale = Scale(claim.unit)
    cells = {cell for q in claim.quantities for cell in (*q.cells, *(c for group in q.against for c in group))}
    family = sum(
        all(cell in planned for cell in (*q.cells, *(c for group in q.against for c in group)))
        for other in paper.claims
        if isinstance(other, Trained)
        for q in other.quantities
    )
    needs = tuple(_need(claim, quantity, scale, grid, truth, deviation) for quantity in claim.quantities)
    return Plan(claim, needs, max(family, 1), tuple(sorted(cells)))


def course(
    looks: Sequence[int], truth: float, low: float, high: float, spread: Spread, alpha: float, studies: int = STUDIES
) -> tuple[float, ...]:
    """The probability that statistics.sequential shows a value to be inside at each look, for the first time; of
    simulated studies with a fixed seed."""
    random = np.random.default_rng(0)
    samples = [random.normal(0, deviation, (studies, looks[-1])) for deviation in spread.deviations]
    open_, found = np.ones(studies, bool), []
    for look, part in zip(looks, statistics.spending(looks), strict=True):
        means = [sample[:, :look].mean(axis=1) for sample in samples]
        squares = [sample[:, :look].var(axis=1, ddof=1) / look for sample in samples]
        value = truth + (means[0] - means[1] if len(means) > 1 else means[0])
        error = np.sqrt(sum(squares))
        freedom = (look - 1) * sum(squares) ** 2 / sum(square**2 for square in squares)
        above, below = special.stdtr(freedom, (low - value) / error), special.stdtr(freedom, (value - high) / error)
        shown = open_ & (np.maximum(above, below) < alpha * part)
        open_ &= ~shown
        found.append(float(shown.mean()))
    return tuple(found)


def _need(
    claim: Trained, quantity: Quantity, scale: Scale, grid: Grid, truth: float | None, deviation: float | None
) -> Need:
    published = claim.test.region(quantity.low, quantity.high)
    edges = scale.edge(published[0]), scale.edge(published[1])
    pilot = _pilot(claim, quantity, scale, grid)
    spread = pilot.spread if pilot else None
    if deviation is not None:
        spread = Spread((deviation / 100 if scale.relative else deviation,), math.inf)
    assumed, because = _assumed(quantity, published, pilot, truth)
    return Need(quantity, pilot, spread, None if assumed is None else scale.edge(assumed), because, edges)


def _assumed(
    quantity: Quantity, edges: tuple[float, float], pilot: Pilot | None, truth: float | None
) -> tuple[float | None, str]:
    """A value inside the region to plan for, and where it is from."""
    if truth is not None:
        return truth, "given"
    middle = (quantity.low + quantity.high) / 2
    if edges[0] < middle < edges[1]:
        return middle, "published"
    if pilot is None:
        return None, "the published value is on the edge of what agrees; say --effect, or run a pilot"
    if edges[0] < pilot.estimate < edges[1]:
        return pilot.estimate, "pilot"
    return None, "the pilot points the other way; say --effect to plan for a value that agrees"


def _pilot(claim: Trained, quantity: Quantity, scale: Scale, grid: Grid) -> Pilot | None:
    metric = quantity.metric or ""
    for tier in reversed(TIERS):
        first = grid.sample(tier, quantity.cells, claim.split, metric)
        others = [grid.sample(tier, group, claim.split, metric) for group in quantity.against]
        if min(len(sample.values) for sample in (first, *others)) < 2:
            continue
        spreads = [_spread(scale, first, other) for other in others] or [_spread(scale, first, None)]
        estimates = [estimate for estimate, _ in scale.estimates(first, others)]
        hardest = max(range(len(spreads)), key=lambda i: spreads[i].one)
        n = min(estimate.n for estimate in estimates)
        # Of several comparisons, all of which must hold, the one of the greatest spread is planned for.
        return Pilot(tier, n, scale.back(estimates[hardest].value), spreads[hardest])
    return None


def _spread(scale: Scale, first: Sample, other: Sample | None) -> Spread:
    estimate, comparison = scale.estimate(first, other)
    if comparison != "welch":
        return Spread((estimate.error * math.sqrt(estimate.n),), estimate.freedom)
    assert other is not None
    deviations = [float(np.std(scale.values(sample), ddof=1)) for sample in (first, other)]
    return Spread(tuple(deviations), estimate.freedom)
