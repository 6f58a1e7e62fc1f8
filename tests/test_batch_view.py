"""How a batch is shown: a table that fits the terminal, lines elsewhere."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console
from whole_runs import WAVE, write_scenario

import toolkit
from toolkit.commands import console
from toolkit.commands.batch_view import clock, table, view
from toolkit.runs.batch_plan import plan
from toolkit.runs.batch_state import MemberState


@pytest.fixture
def states(tmp_path):
    """Four members: done, failed, at work, waiting."""
    path = write_scenario(tmp_path, WAVE)
    scenarios = [toolkit.load_scenario(path, {"time.steps": steps}) for steps in (1, 2, 3, 4)]
    found = [MemberState(member) for member in plan(scenarios, tmp_path).members]
    for state, status in zip(found, ("done", "failed", "running", "waiting"), strict=True):
        state.status = status
    return found


def drawn(rows):
    file = io.StringIO()
    Console(file=file, width=120).print(rows)
    return file.getvalue()


def test_the_table_shows_all_members_or_what_matters(states):
    states[2].step, states[2].total, states[2].metrics = 5, 10, {"train_loss": 0.25, "validation_loss": 0.5}
    whole = drawn(table(states, 10))
    assert [line.split()[1] for line in whole.splitlines()[1:]] == ["done", "failed", "running", "waiting"]
    assert "5/10" in whole
    assert "0.5" in whole
    short = drawn(table(states, 2))
    assert "running" in short
    assert "failed" in short
    assert "… and 1 waiting, 1 done" in short


def test_what_is_left_is_estimated_from_the_steps_of_this_batch(states, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("toolkit.runs.batch_state.time.monotonic", lambda: now[0])
    state = states[2]
    assert state.remaining() is None
    state.first, state.step, state.total = (90.0, 50), 60, 100
    assert state.remaining() == pytest.approx(40.0, rel=1e-12)  # 10 steps took 10 s
    assert [clock(s) for s in (None, 3, 65, 3725)] == ["", "0:03", "1:05", "1:02:05"]


def test_lines_say_each_change_once(states, capsys, monkeypatch):
    with view(quiet=False) as events:
        events.begin(states, 2)
        events.changed(states[2])
        events.changed(states[2])
        states[1].reason = "it diverged\nmore of it"
        events.changed(states[1])
        monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
        states[2].step = 7
        events.tick()
    out, err = capsys.readouterr()
    assert out == ""
    assert "4 members, 2 processes; 1 done, 1 failed before" in err
    assert err.count(": running") == 1
    assert "failed: it diverged\n" in err
    assert "1 of 4 done" in err
    assert "step 7" in err


def test_a_terminal_gets_a_table_and_quiet_gets_nothing(states, monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    with view(quiet=True) as events:
        events.begin(states, 1)
        events.message("unheard")
    assert terminal.getvalue() == ""
    with view(quiet=False) as events:
        events.begin(states, 1)
        events.message("a [word] in brackets")
    assert "a [word] in brackets" in terminal.getvalue()
    assert "waiting" in terminal.getvalue()
