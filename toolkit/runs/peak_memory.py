"""The largest memory of this process since a run began, as Linux counts it; nothing elsewhere.

A process may run several scenarios one after the other, so the count is set back at the start of each.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")


def reset() -> None:
    """Begin to count anew, from what is in use now."""
    with contextlib.suppress(OSError):
        # 5: the peak of the resident set, see proc(5).
        RESET.write_text("5", encoding="ascii")


def peak_bytes() -> int | None:
    """Bytes that were resident at most; None where the system does not tell."""
    try:
        lines = STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    found = [line.split() for line in lines if line.startswith("VmHWM:")]
    return 1024 * int(found[0][1]) if found else None
