"""`phinverse report`: one self-contained HTML page per run or sweep, beside its files.

The page needs nothing but itself: styles, script, pictures and data are in it, and its content security policy lets
the browser load nothing else. All texts are escaped.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from toolkit.core.errors import ScenarioError
from toolkit.runs import atomic
from toolkit.runs.directory import RECORD_FILE, SWEEP_FILE
from toolkit.runs.provenance import installed_versions, utc_now
from toolkit.runs.report.run_page import run_page
from toolkit.runs.report.sweep_page import sweep_page
from toolkit.runs.report.texts import REPORT

TEMPLATES = "templates"


def report(path: str | Path) -> Path:
    """Write `report.html` into the directory of a run or of a sweep; its path.

    ScenarioError if the folder is neither; what cannot be read of a run is said on the page.
    """
    folder = Path(path)
    if (folder / SWEEP_FILE).is_file():
        text = render("sweep.html.j2", sweep_page(folder))
    elif (folder / RECORD_FILE).is_file():
        text = render("run.html.j2", run_page(folder))
    else:
        raise ScenarioError(f"{path} is neither a run nor a sweep: it holds no {RECORD_FILE} and no {SWEEP_FILE}")
    target = folder / REPORT
    atomic.write_text(target, text)
    return target


def render(template: str, variables: dict[str, Any]) -> str:
    """A page from its template."""
    environment = Environment(
        loader=FunctionLoader(_source),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    version = installed_versions(("phinverse",)).get("phinverse", "")
    # Our own files, which hold no markup of the page: nothing of a run gets into them.
    own = {"style": Markup(_source("page.css")), "script": Markup(_source("page.js"))}
    return environment.get_template(template).render(**variables, **own, version=version, written=utc_now()[:19])


def _source(name: str) -> str:
    return (files("toolkit.runs.report") / TEMPLATES / name).read_text(encoding="utf-8")
