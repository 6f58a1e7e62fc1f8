"""`phinverse devices`: backends, versions, devices."""

from __future__ import annotations

from toolkit.commands import console
from toolkit.core import backend
from toolkit.core.errors import MissingError


def devices(as_json: bool) -> int:
    """Exit code 0 if any backend works, otherwise MissingError."""
    found, missing = [], []
    for name in backend.NAMES:
        try:
            present = backend.devices(name)
        except MissingError as error:
            missing.append(str(error))
            continue
        found += [{"backend": name, "device": d.name, "description": d.description} for d in present]
    if as_json:
        console.print_json(found)
    else:
        console.result(console.table([(f["backend"], f["device"], f["description"]) for f in found]))
    for text in missing:
        console.say(text)
    if not found:
        raise MissingError("no backend is installed; pip install torch or pip install jax")
    console.hint("phinverse run SCENARIO --backend jax --device cpu")
    return 0
