"""A process of a batch: does one member after the other, as told on stdin, and reports on stdout.

    in    {"path", "scenario" (YAML text), "command", "retry_failed", "device"?, "trust_lock"?}
    out   {"event": "message", "text"}  {"event": "progress", "step", "total", "metrics"}
          {"event": "end", "status", "reason", "trace", "seconds"}

One JSON object per line. It ends when stdin does; a member that is running then is checkpointed first, so that a batch
that was killed leaves neither processes nor lost work behind.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TextIO

from toolkit.core.errors import Interrupted, PhinverseError
from toolkit.runs import execute
from toolkit.runs.events import Events
from toolkit.runs.lock import DirectoryInUse
from toolkit.scenario.load import scenario_from_text

PROGRESS_SECONDS = 0.2
"""At most one report of progress in this time, but for those with a validation."""

Task = Mapping[str, Any]


class Channel:
    """Lines to the process that started this one."""

    def __init__(self, file: TextIO):
        self._file: TextIO | None = file
        self._last = 0.0

    def send(self, event: str, **content: Any) -> None:
        """Write one line; silent once nobody reads."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps({"event": event, **content}) + "\n")
            self._file.flush()
        except OSError:
            # The batch is gone. Its death reaches this process through stdin, where the run is stopped in order.
            self._file = None

    def progress(self, step: int, total: int | None, metrics: Mapping[str, float]) -> None:
        """`Events.progress`, thinned out."""
        now = time.monotonic()
        if step == total or "validation_loss" in metrics or now - self._last >= PROGRESS_SECONDS:
            self._last = now
            self.send("progress", step=step, total=total, metrics={k: float(v) for k, v in metrics.items()})


class Inbox:
    """Tasks as they come; None when there will be no more, or a signal asked to stop."""

    def __init__(self, file: TextIO):
        # A SimpleQueue may be filled by a signal handler, whatever the main thread is doing.
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._file = file
        self.stopped = False
        signal.signal(signal.SIGTERM, self._stop)
        threading.Thread(target=self._read, daemon=True).start()

    def next(self) -> Task | None:
        """The next task, waited for."""
        return None if self.stopped else self._tasks.get()

    def _stop(self, number: int, frame: Any) -> None:
        self.stopped = True
        self._tasks.put(None)

    def _read(self) -> None:
        for line in self._file:
            self._tasks.put(json.loads(line))
        # Also without a word from a batch that was killed: a run that is going on stops at its next step, by the
        # signal, which is then used up; an idle process ends by either.
        self._tasks.put(None)
        os.kill(os.getpid(), signal.SIGTERM)


def work(task: Task, channel: Channel) -> dict[str, Any]:
    """Do one member; its end as it is reported."""
    events = Events(lambda text: channel.send("message", text=text), channel.progress)
    began = time.monotonic()
    try:
        scenario = scenario_from_text(task["scenario"], source=task["path"])
        status = execute.complete(
            Path(task["path"]),
            scenario,
            events,
            tuple(task["command"]),
            task["retry_failed"],
            task.get("device"),
            task.get("trust_lock", False),
        )
        result = {"status": status, "reason": None, "trace": None}
    except Interrupted as error:
        result = {"status": "interrupted", "reason": str(error), "trace": None}
    except DirectoryInUse as error:
        result = {"status": "in use", "reason": str(error), "trace": None}
    except PhinverseError as error:
        result = {"status": "failed", "reason": str(error), "trace": None}
    except Exception as error:
        # A bug in one member must not cost the others; it is shown in full.
        trace = "".join(traceback.format_exception(error))
        result = {"status": "failed", "reason": f"{type(error).__name__}: {error}", "trace": trace}
    return {**result, "seconds": time.monotonic() - began}


def main() -> None:
    """Work until there are no more tasks."""
    faulthandler.enable()
    # Whatever libraries and plugins print must not mix with the reports.
    channel = Channel(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    inbox = Inbox(sys.stdin)
    while (task := inbox.next()) is not None:
        channel.send("end", **work(task, channel))


if __name__ == "__main__":
    main()
