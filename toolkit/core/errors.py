"""Every error this package raises on purpose.

* PhinverseError
  - ScenarioError     the scenario or the command line asks for something impossible   exit 2
  - MissingError      a backend, device, package or plugin is not there                exit 4
  - RunError          a run failed                                                     exit 1
    - DivergenceError   non-finite numbers, or a monitor over its limit
    - StorageError      a file of a run cannot be written or read
  - Interrupted       stopped early but resumable                                      exit 75 or 130

Anything else that escapes is a bug in the toolkit. Only the command line catches these.
"""

from __future__ import annotations


class PhinverseError(Exception):
    """Base of all errors that a user can act upon; the text says what, where and what to do."""

    exit_code = 1


class ScenarioError(PhinverseError):
    """The scenario asks for something impossible; `problems` holds every finding, one line each."""

    exit_code = 2

    def __init__(self, *problems: str):
        super().__init__("\n".join(problems))
        self.problems = problems


class MissingError(PhinverseError):
    """A backend, device, package or plugin is not installed or not present."""

    exit_code = 4


class RunError(PhinverseError):
    """A run failed for a reason that its inputs explain."""


class DivergenceError(RunError):
    """A run produced non-finite numbers or broke the limit of a monitor."""


class StorageError(RunError):
    """A file of a run cannot be written or read, or does not hold what it should."""


class Interrupted(PhinverseError):
    """The run was stopped from outside; its checkpoint is saved and `phinverse resume` goes on."""

    def __init__(self, message: str, exit_code: int = 130):
        super().__init__(message)
        self.exit_code = exit_code
