"""Runs that differ in `run.seed` alone, one after the other or side by side: built once, compiled once.

    the first, a few updates   how long one takes, and how long it took to compile
    all of them, as many       alone, too: they then stand at the same step
    some more, both ways       the common program has to give each run the numbers that it has alone, bit for bit
    all of them, side by side  one program makes the next update of all (`toolkit.training.joint`)

Where an update takes so long that nothing is won between updates, or where the common program turns out to be slower or
to round otherwise, each goes on alone: the numbers are the same in any case. A run that fails costs nothing but itself.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from toolkit.core.backend import Backend
from toolkit.core.errors import Interrupted
from toolkit.runs import outcome, work
from toolkit.runs.directory import RunDirectory
from toolkit.runs.events import Events
from toolkit.runs.lock import locked
from toolkit.runs.session import Session
from toolkit.scenario.scenario import Scenario
from toolkit.training.joint import JointTrainer, Made

_log = logging.getLogger(__name__)

ALONE = 6
"""Updates that each run makes alone; the first compiles and is not timed."""
SHORT_SECONDS = 0.02
"""Longest update that is tried together: around a longer one there is nothing to save."""
WON = 2.0
"""What has to be won, twice as fast being likely, over the time that the first run has compiled."""
BOTH_WAYS = 3
"""Updates that are made together and alone, and compared."""
TRIED = 16
"""Updates made together after which their time is judged."""
WORTH = 0.95
"""Largest ratio of a run's share of an update to one alone that is still worth it."""


@dataclass
class Member:
    """A run of a group."""

    name: str
    directory: RunDirectory
    scenario: Scenario
    error: Exception | None = None
    """Why it is not done."""
    steps: work.Steps | None = None
    """Its work while that goes on."""
    session: Session | None = None
    """Set while it waits for its next update."""
    alone: float = math.inf
    """Seconds of an update made alone."""
    left: bool = False
    """Whether it was left as it is, because another process has done something about it."""

    def advance(self) -> bool:
        """Make the next update and what belongs to it; whether there are more."""
        assert self.steps is not None
        try:
            self.session = next(self.steps)
            return True
        except StopIteration:
            self.session = None
        except Exception as error:
            self.error, self.session = error, None
        return False


def seedless(scenario: Scenario) -> str:
    """What a scenario says but for `run.seed`: the same text, the same group."""
    data = dict(scenario.data)
    data["run"] = {key: value for key, value in data["run"].items() if key != "seed"}
    return json.dumps(data, sort_keys=True)


def suits(scenario: Scenario) -> bool:
    """Whether its runs may be timed together: with `train.time_limit` each needs its own clock."""
    return scenario.sections.update is not None and scenario.sections.train.time_limit is None


@dataclass
class Group:
    """Does runs that have never begun and differ in `run.seed` alone."""

    members: Sequence[Member]
    events: Events
    command: tuple[str, ...]
    begins: Callable[[Member], None] = lambda member: None
    """Called before a run begins."""
    ends: Callable[[Member], None] = lambda member: None
    """Called when a run is done and its directory free again."""
    fails: Callable[[Member], None] = lambda member: None
    """Called when a run has failed."""
    _shared: work.Shared = field(default_factory=work.Shared)
    _told: Member | None = None
    """The run whose progress is shown."""

    def run(self) -> None:
        """Do all of them; `Member.error` says which failed, and why. Interrupted if that was asked for."""
        first, *others = self.members
        with work.environment(first.scenario) as (backend, stop):
            self._backend, self._stop = backend, stop
            try:
                if self._begin(first) and others and self._promising(first):
                    for member in others:
                        if stop.exit_code is None:
                            self._begin(member)
                    if stop.exit_code is None:
                        self._side_by_side([m for m in self.members if m.session is not None])
                for member in self.members:
                    if member.steps is None and stop.exit_code is None:
                        self._begin(member)
                    self._finish(member)
            except BaseException as error:
                self._abandon(error)
                raise
        for member in self.members:
            if isinstance(member.error, Interrupted):
                raise member.error
        # A request that came between two runs, or while pictures were drawn.
        stop.check(f"`phinverse resume {first.directory.path.parent}` goes on")

    # --- alone ----------------------------------------------------------------------------------------------------

    def _begin(self, member: Member) -> bool:
        """Begin a run and make its first updates; whether there are more."""
        self._told = member
        self.begins(member)
        events = Events(self.events.message, lambda *news: self._progress(member, *news))
        member.steps = self._owned(member, events)
        # The first call leads to its first update.
        clock = [0.0]
        for _ in range(1 + ALONE):
            if not self._advance(member):
                return False
            assert member.session is not None
            clock.append(member.session.seconds)
        member.alone = float(np.median(np.diff(clock[2:])))
        return True

    def _advance(self, member: Member) -> bool:
        """Make the next update of one run; what is compiled meanwhile is its own, not that of the others."""
        before = self._backend.trace_seconds
        more = member.advance()
        for other in self.members:
            if other is not member and other.session is not None:
                other.session.others_seconds += self._backend.trace_seconds - before
        if member.error is not None and not isinstance(member.error, Interrupted):
            self.fails(member)
        return more

    def _owned(self, member: Member, events: Events) -> work.Steps:
        shared = self._shared if self._backend.compiles else None
        place, scenario = member.directory, member.scenario
        with locked(place.path):
            # Looked at under the lock: it may have been begun, or done, by somebody who resumes the sweep.
            member.left = outcome.status_of(place) != ""
            if member.left:
                return {}
            trained = yield from work.stepwise(
                place, scenario, self._backend, events, self._stop, self.command, False, shared
            )
        self.ends(member)
        return trained

    def _finish(self, member: Member) -> None:
        self._told = member
        while member.session is not None:
            self._advance(member)

    def _progress(self, member: Member, *news: Any) -> None:
        if member is self._told:
            self.events.progress(*news)

    def _abandon(self, error: BaseException) -> None:
        """Let all that have begun say how they end."""
        for member in self.members:
            if member.session is not None and member.steps is not None:
                with suppress(BaseException):
                    member.steps.throw(error)

    # --- side by side ---------------------------------------------------------------------------------------------

    def _promising(self, first: Member) -> bool:
        """Whether to try: updates are short, and there are enough of them to win more than a compilation takes."""
        steps = first.scenario.sections.train.steps
        if first.session is None or not self._backend.compiles or not suits(first.scenario) or steps is None:
            return False
        won = (steps - first.session.step) * len(self.members) * first.alone / 2
        return first.alone < SHORT_SECONDS and won > WON * first.session.compile_seconds

    def _side_by_side(self, members: list[Member]) -> None:
        """Make the updates of all together until they are done, or as long as that is faster."""
        if len(members) < 2:
            return
        assert self._shared.built is not None
        assert self._shared.built.trainer is not None
        trainer, taken = JointTrainer(self._shared.built.trainer), []
        alone = np.median([member.alone for member in members])
        self._told = members[0]
        if not all(self._same(trainer, members) for _ in range(BOTH_WAYS)):
            if self._stop.exit_code is None:
                self.events.message("the seeds go on alone")
            return
        self.events.message(f"{len(members)} runs side by side: {', '.join(m.name for m in members)}")
        while len(members) > 1:
            self._told, sessions = members[0], _sessions(members)
            updates = self._updates(trainer, sessions)
            if updates is None:
                return
            for session, made in zip(sessions, updates, strict=True):
                session.made = made
            going_on = [member for member in members if self._advance(member)]
            if len(going_on) < len(members) or any(session.changed for session in sessions):
                trainer.forget()
            members = going_on
            taken.append(sessions[0].seconds)
            # Medians: other processes may stop one update or another for a while.
            if len(taken) == TRIED and np.median(np.diff(taken)) > WORTH * alone:
                self.events.message("side by side is slower here: the seeds go on alone")
                return

    def _same(self, trainer: JointTrainer, members: list[Member]) -> bool:
        """Whether an update made together is the one that each makes alone, bit for bit; it is made both ways."""
        sessions = _sessions(members)
        together = self._updates(trainer, sessions)
        if together is None:
            return False
        for member in members:
            self._advance(member)
        trainer.forget()
        if any(member.session is None for member in members):
            return False
        same = all(
            made is not None and equal(made, session, self._backend)
            for made, session in zip(together, sessions, strict=True)
        )
        if not same:
            self.events.message("a common program would round the numbers of the seeds otherwise")
        return same

    def _updates(self, trainer: JointTrainer, sessions: list[Session]) -> list[Made | None] | None:
        """The next update of each, made together; None if that is not possible, and each has to go on alone."""
        before = trainer.compile_seconds
        states = [] if trainer.knows_states else [session.state for session in sessions]
        try:
            updates = trainer.step(states, sessions[0].step, [session.batches for session in sessions])
        except Exception as error:
            # Too little memory for all, for example; what is a run's own fault it will meet again, alone.
            _log.debug("no common program", exc_info=error)
            self.events.message(f"no update of all seeds at once, they go on alone: {type(error).__name__}: {error}")
            return None
        for session in sessions:
            # What was compiled for all is nobody's own: each has its share.
            session.others_seconds += (trainer.compile_seconds - before) * (1 - 1 / len(sessions))
            session.changed = False
        return updates


def _sessions(members: Sequence[Member]) -> list[Session]:
    return [member.session for member in members if member.session is not None]


def equal(made: Made, session: Session, backend: Backend) -> bool:
    """Whether an update is the one that a run has just made alone, bit for bit: parameters, optimizer, what was
    measured."""
    one, other = made.state(session.seconds), session.state
    arrays = all(
        np.array_equal(backend.numpy(value), backend.numpy(getattr(other, group)[name]), equal_nan=True)
        for group in ("params", "optimizer")
        for name, value in getattr(one, group).items()
    )
    clock = {"step_seconds"}
    return arrays and all(session.measured[name] == value for name, value in made.metrics.items() if name not in clock)
