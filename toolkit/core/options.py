"""Options: the strict, frozen base of everything a YAML section may set, with units."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    """Keys allowed beside `type:` in one section of a scenario; unknown keys are refused.

    Subclass it with annotated fields. Give every field an `option(...)`, so that
    `phinverse list` and the JSON schema can say what it means and in which unit it is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def option(default: Any = ..., *, description: str, units: str = "1", **constraints: Any) -> Any:
    """A field of `Options`: default (required if left out), meaning, unit and pydantic constraints (gt, ge, …)."""
    return Field(default, description=description, json_schema_extra={"units": units}, **constraints)
