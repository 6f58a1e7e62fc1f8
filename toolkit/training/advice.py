"""Which update rules suit a problem, from its spectra, and what an update of each costs compared with `dp`.

κ is the condition number of the physics ∂y/∂x (median over samples), typical = s_max / s_median of ∂y/∂θ.

    κ ≥ BAD, or LOST of the rank    the gradient of the weakest direction is off by κ², so dp needs κ² times the steps
                                    and no learning rate per parameter mends it: an inverse of the physics (sip) does
    κ ≤ GOOD                        nothing to invert: dp with Adam is simpler (measured: sine at ξ = 1)
    between                         an inverse that costs no more than a gradient still pays (poisson on 8² cells: 32)
    typical ≥ STALLED               half of all directions of the batch progress typical² times slower than the first,
                                    though the physics may be harmless: only the whole Jacobian (hig) sees it
                                    (measured: oscillators 6e5, oscillators_linear 3e7, toy_regression 6e6, where hig
                                    wins; sine at ξ = 1 2e2, poisson_hig 5, where it does not at equal time)
    growth over a rollout ≥ EXPLODING, ≤ 1 / EXPLODING    gradients through time are noise or nothing

Costs are counted in updates of dp (one forward and one backward pass) unless timed; decompositions are counted in
multiplications at the rate of a matrix product timed on this machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from toolkit.training.diagnosis import Saturation, StepGradients
from toolkit.training.spectra import Sizes, Spectra
from toolkit.training.update_cost import Cost

GOOD, BAD = 10.0, 100.0
SLOW, STALLED = 1e3, 1e5
EXPLODING = 100.0
AFFORDABLE = 1e4
"""Updates of dp that one of hig may cost: far less than typical², which a stalled direction would take otherwise."""
LOST = 0.25
"""Fraction of directions; a norm that is conserved costs one of many and harms nothing."""
FEW = 32
"""Controls per sample up to which a Hessian costs little."""
MANY_DEAD = 0.5
SUITS, POSSIBLE, POOR = "suits", "possible", "poor"
GRADES = (SUITS, POSSIBLE, POOR)


@dataclass(frozen=True)
class Findings:
    """What the advice rests on."""

    sizes: Sizes
    spectra: Spectra
    steps: StepGradients | None
    saturation: tuple[Saturation, ...]

    @property
    def condition(self) -> float:
        """κ of the physics; NaN where it was too large to be taken apart."""
        return self.spectra.physics.condition if self.spectra.physics else math.nan

    @property
    def lost(self) -> bool:
        """Whether the physics loses more of the directions that its shape allows than conserved quantities would."""
        physics = self.spectra.physics
        return physics is not None and physics.rank < (1 - LOST) * min(physics.rows, physics.columns)

    @property
    def injective(self) -> bool:
        """Whether y determines x near the batch."""
        physics = self.spectra.physics
        return physics is not None and physics.rank == self.sizes.controls

    @property
    def bad(self) -> bool:
        """Whether the physics is badly conditioned."""
        return self.lost or self.condition >= BAD

    @property
    def stalled(self) -> bool:
        """Whether half of the directions of the batch are out of reach of first-order steps."""
        total = self.spectra.total
        return total is not None and not total.typical < STALLED

    @property
    def flow(self) -> str:
        """`exploding`, `vanishing` or `steady` backward in time; empty without a rollout."""
        if self.steps is None or math.isnan(self.steps.total):
            return ""
        # A loss on every state adds one part per step to the adjoint of the first.
        tolerance = EXPLODING * (len(self.steps.state) if self.steps.trajectory else 1)
        if self.steps.total >= tolerance:
            return "exploding"
        return "vanishing" if self.steps.total <= 1 / EXPLODING else "steady"


@dataclass(frozen=True)
class Candidate:
    """A registered rule as this scenario would use it."""

    rule: str
    solver: str | None
    special: bool
    """Whether its inverse solver was made for this PDE."""
    refused: str | None
    """Why the scenario's checks do not accept it; None where they do."""
    cost: Cost | None
    """None where nothing is known of it."""
    own: bool = False
    """Whether the scenario names it."""

    @property
    def name(self) -> str:
        """`dp`, or `sip with newton`."""
        return self.rule if self.solver is None else f"{self.rule} with {self.solver}"


@dataclass(frozen=True)
class Verdict:
    """What is said of a candidate."""

    candidate: Candidate
    grade: str
    """One of GRADES."""
    reason: str


def judge(found: Findings, candidates: Iterable[Candidate]) -> list[Verdict]:
    """Verdicts on what is usable, best first; the order of equals is that of `_RANK`."""
    verdicts = [Verdict(c, *_verdict(found, c)) for c in candidates if c.refused is None]
    return sorted(verdicts, key=lambda v: (GRADES.index(v.grade), _rank(found, v.candidate), _ratio(v.candidate)))


def remarks(found: Findings, registered: Iterable[str]) -> list[str]:
    """What the numbers say, in sentences."""
    said = [_on_physics(found)]
    total, network = found.spectra.total, found.spectra.network
    if total is not None:
        said.append(
            f"Networks and physics together: half of the directions of the batch are weaker than the strongest by more "
            f"than {total.typical:.2g}, {total.rank} of {min(total.rows, total.columns)} are above 1e-6 of it; "
            + _reach(total.typical)
        )
    if network is not None and found.stalled and not found.bad:
        said.append("The networks, not the physics, make it so: smooth or narrow ones tell samples hardly apart.")
    if found.steps is not None:
        said.append(_on_steps(found, found.steps, registered))
    said += [
        f"{100 * s.share:.0f} % of {s.network}/{s.layer} ({s.kind}) are saturated: scale its inputs down."
        for s in found.saturation
        if s.share >= MANY_DEAD
    ]
    return said


def _reach(typical: float) -> str:
    if typical < SLOW:
        return "first-order steps reach them."
    return "first-order steps reach them slowly." if typical < STALLED else "first-order steps hardly move that half."


def _on_physics(found: Findings) -> str:
    physics = found.spectra.physics
    if physics is None:
        return "The Jacobian of the physics is too large to be taken apart: use fewer cells or time steps to see more."
    if found.lost:
        return (
            f"The physics loses directions: {physics.rank} of {min(physics.rows, physics.columns)} singular values are "
            f"above 1e-6 of the largest, over {physics.decades:.1f} decades; gradients of the others carry nothing."
        )
    words = "badly" if found.bad else "well" if found.condition <= GOOD else "moderately"
    return (
        f"The physics is {words} conditioned: κ = {found.condition:.3g} (median over samples); the weakest direction "
        f"takes gradient descent κ² = {found.condition**2:.2g} times as many steps as the strongest."
    )


def _on_steps(found: Findings, steps: StepGradients, registered: Iterable[str]) -> str:
    if not found.flow:
        return "The loss reaches at most one state of the rollout: nothing flows back through time."
    text = (
        f"Backward in time gradients are {found.flow}: a factor {steps.growth:.3g} per step, {steps.total:.3g} over "
        f"all {len(steps.state) - 1}."
    )
    if found.flow == "exploding":
        known = "stable_bptt" in set(registered)
        text += " stable_bptt is made for this" + ("." if known else ", but is not installed; clip the update.")
    return text


def _verdict(found: Findings, candidate: Candidate) -> tuple[str, str]:
    """(grade, reason)."""
    match candidate.rule:
        case "dp":
            return _of_dp(found)
        case "supervised":
            if found.injective:
                return SUITS, "x* is known and y determines x here: the answers can be learned without the physics"
            return POSSIBLE, "x* is known, but several x give one y: it learns their mean, which may solve nothing"
        case "sip":
            return _of_sip(found, candidate)
        case "hig":
            return _of_hig(found, candidate)
        case "gauss_newton":
            return (POOR if _dear(candidate) else POSSIBLE), (
                "inverts every singular value that is kept: small ones carry noise far, so hig is the safer half"
            )
        case "levenberg_marquardt":
            return (POOR if _dear(candidate) else POSSIBLE), (
                "damps small singular values instead of cutting them off; its damping has to be tried"
            )
        case "stable_bptt":
            if found.flow == "exploding":
                return SUITS, "gradients explode through time; it removes the paths by which they do"
            return POSSIBLE, "gradients do not explode through time, which is what it mends"
    return POSSIBLE, "no rule of thumb is known for it"


def _of_dp(found: Findings) -> tuple[str, str]:
    if found.lost:
        return POOR, "the gradient does not see the directions that the physics loses"
    if found.bad:
        return POOR, f"the weakest direction takes about κ² = {found.condition**2:.1g} times the steps of the strongest"
    if found.flow in ("exploding", "vanishing"):
        return POSSIBLE, f"the physics is fine step by step, but gradients are {found.flow} through time; clip them"
    if found.stalled:
        return POSSIBLE, "cheapest per update, but first-order steps hardly move the weaker half of the directions"
    return SUITS, "nothing needs an inverse; with Adam it is the simplest rule"


def _of_sip(found: Findings, candidate: Candidate) -> tuple[str, str]:
    if candidate.solver in ("gradient", "accumulated_gradient"):
        return POOR, "its solver is the gradient: it learns what dp learns"
    if found.condition <= GOOD and not found.lost:
        return POSSIBLE, "an inverse brings little where the physics is well conditioned"
    if math.isnan(found.condition):
        return POSSIBLE, "the conditioning is unknown; an inverse of the physics is at hand"
    if candidate.special:
        return SUITS, "an inverse of this physics puts every direction back at the size that it has in x"
    if candidate.solver in ("newton", "damped_newton") and found.sizes.controls <= FEW:
        if not found.bad:
            return POSSIBLE, "a Newton step brings something at this conditioning, for a Hessian per sample"
        return (
            SUITS,
            f"with n = {found.sizes.controls} a Newton step per sample costs little and undoes the conditioning",
        )
    return POSSIBLE, "undoes the conditioning, but solves the physics many times per update"


def _of_hig(found: Findings, candidate: Candidate) -> tuple[str, str]:
    if _dear(candidate):
        return POOR, "taking the Jacobian of the batch apart costs more than it can win"
    if found.stalled:
        return SUITS, "half-inverts networks and physics together, so that the weaker half of the directions moves, too"
    if found.bad:
        return POSSIBLE, "half-inverts the bad conditioning of the physics together with the network"
    return POSSIBLE, "likely better per update; whether at equal time, a run will tell"


def _dear(candidate: Candidate) -> bool:
    return candidate.cost is None or not candidate.cost.ratio <= AFFORDABLE


_RANK = ("sip", "hig", "dp", "supervised", "levenberg_marquardt", "gauss_newton", "stable_bptt")


def _rank(found: Findings, candidate: Candidate) -> tuple[int, bool, bool]:
    """Sip before hig unless the networks are to blame, which sip leaves as they are; solvers for the PDE first."""
    order = list(_RANK)
    network = found.spectra.network
    if found.stalled and (not found.bad or (network is not None and network.typical >= STALLED)):
        order.remove("hig")
        order.insert(0, "hig")
    if found.flow == "exploding":
        order.remove("stable_bptt")
        order.insert(0, "stable_bptt")
    place = order.index(candidate.rule) if candidate.rule in order else len(order)
    return place, not candidate.special, not candidate.own


def _ratio(candidate: Candidate) -> float:
    return candidate.cost.ratio if candidate.cost is not None else math.inf
