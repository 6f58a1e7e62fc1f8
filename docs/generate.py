"""Writes the parts of the documentation that the code already says: keys of scenarios, their JSON Schema, commands.

    python docs/generate.py            write the files that are out of date
    python docs/generate.py --check    write nothing; exit 1 if one is out of date

The facts come from the schema models, the options of the installed plugins and the Typer app, the same sources as
`phinverse list`, `phinverse schema` and `phinverse --help`. Nothing here depends on time, machine or order of import.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer.main

from toolkit.core.optimizers import OPTIMIZERS
from toolkit.core.options import Options
from toolkit.physics.losses import LOSSES
from toolkit.physics.plugin import PDEPlugin
from toolkit.scenario import kinds, schema
from toolkit.scenario.json_schema import json_schema
from toolkit.scenario.learning import DEFAULT_OPTIMIZER, SCHEDULES
from typer_cli import app

FOLDER = Path(__file__).resolve().parent
NOTE = "<!-- Written by docs/generate.py; do not edit, run `make docs`. -->"

READING = """\
A scenario is plain YAML data. Required are `name`, `pde` and what the case needs; every other key has the default
given here. Every unknown key, wrong kind or value out of range is an error with file, line, column and key; all errors
of a file are reported at once.

* Numbers follow YAML 1.2: `1e-3` is a number, `yes` and `on` are text. Wherever a number may stand, arithmetic may
  stand: `2*pi/64`, `1/32`, `sqrt(2)` (numbers, `+ - * / **`, parentheses, `pi`, `e`, `sqrt`).
* Arithmetic may name other numbers of the scenario by their dotted keys: `learning_rate: 1e-2/pde.xi**2`,
  `dt: 1/time.steps`. They count as they stand after `extends`, `--set` and the choices of a sweep's cell. A key has to
  be written to be named: defaults are filled in later.
* A choice among kinds is a `type:` with the keys of that kind beside it, or the bare word where no other key is
  needed: `loss: l2` is `loss: {type: l2}`.
* `extends` names another scenario file, relative to this one: maps merge, lists replace, a changed `type` replaces its
  whole section. `name` is not inherited.
* `--set update.optimizer.learning_rate=1e-4` changes one value by its dotted key. A changed `type` given this way keeps
  the keys that all kinds of the section share (those listed first in each section below, and `optimizer`).
* Units are words where the PDE leaves the system of units open (`length² / time`), and `1` for pure numbers.
* Names of states, controls and observations: `initial.<field>`, `force.<field>` (one value per time step),
  `source.<field>` (constant in time) and `parameter.<name>` say where a control acts; `final.<field>` and
  `trajectory.<field>` (after each time step) say what a loss judges.
"""

SECTIONS = (
    ("name, description, references", "what the scenario is called"),
    ("extends", "another scenario file to start from"),
    ("grid", "cells, extent and boundary; none for an ODE"),
    ("pde", "the equation and its parameters"),
    ("time", "number and length of time steps"),
    ("controls", "what is unknown"),
    ("data", "samples: targets, and true controls where known"),
    ("networks", "what gives the controls; none: they are optimised themselves"),
    ("loss", "how the result is judged; one term or a list"),
    ("update", "the rule and the optimizer; none: a plain simulation"),
    ("train", "how long"),
    ("run", "backend, device, precision, seed"),
    ("output", "what is written"),
    ("sweep", "axes of variants"),
)

SWEEP = """\
Axes multiply, the last one varies fastest. An axis is a dotted key with a list of values, or a name of your choice with
labelled variants, each a map of overrides:

```yaml
sweep:
  run.seed: [0, 1, 2]
  rule:
    sip: {}
    adam: {update: {type: dp, optimizer: {type: adam, learning_rate: 1e-3}}}
```
"""

EXIT_CODES = """\
## Exit codes

| code | meaning |
|---|---|
| 0 | done |
| 1 | a run failed: it diverged, a file could not be written, …; the reason is in `run.json` |
| 2 | wrong usage, or a scenario with errors |
| 3 | a sweep ended with failed members |
| 4 | a backend, device, package or plugin is missing |
| 75 | stopped early by SIGTERM; `phinverse resume` goes on |
| 130 | interrupted by Ctrl-C; the checkpoint is saved and `phinverse resume` goes on |

Results go to stdout; progress, messages and the last line, which names the next useful command, go to stderr.
"""


# --- types and tables -------------------------------------------------------------------------------------------


def type_words(node: Mapping[str, Any]) -> str:
    """The kind of value of a JSON Schema node, in words."""
    if "$ref" in node:
        return "a section" if node["$ref"].endswith("Options") else "a schedule"
    if "oneOf" in node:
        return "a schedule"
    if "const" in node or "enum" in node:
        return " or ".join(f"`{word}`" for word in node.get("enum", [node.get("const")]))
    if "anyOf" in node:
        # Nested lists of every depth share their words.
        return " or ".join(dict.fromkeys(type_words(part) for part in node["anyOf"]))
    kind = node.get("type")
    if kind == "array":
        return _array_words(node)
    if kind == "object":
        values = node.get("additionalProperties", {})
        return f"map to {type_words(values)}" if isinstance(values, Mapping) and values else "map"
    words = {"integer": "integer", "number": "number", "string": "text", "boolean": "`true` or `false`", "null": "null"}
    return words.get(str(kind), "any") + _bounds(node)


def _array_words(node: Mapping[str, Any]) -> str:
    if "prefixItems" in node:
        return "[" + ", ".join(type_words(part) for part in node["prefixItems"]) + "]"
    items = node.get("items", {})
    if items.get("type") == "array":
        return "nested lists of numbers"
    return f"list of {type_words(items)}"


def _bounds(node: Mapping[str, Any]) -> str:
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    # The bound of 64-bit seeds says nothing to a reader.
    found = [f"{sign} {node[key]:g}" for key, sign in signs.items() if key in node and abs(node[key]) < 1e12]
    return " " + ", ".join(found) if found else ""


def table(*models: type[Options], also: tuple[tuple[str, ...], ...] = (), without: tuple[str, ...] = ()) -> str:
    """Keys of options models as a Markdown table, rows of `also` first."""
    rows = ["| key | type | unit | default | meaning |", "|---|---|---|---|---|"]
    rows += ["| " + " | ".join(_escape(cell) for cell in row) + " |" for row in also]
    for model in models:
        nodes = model.model_json_schema()["properties"]
        for key, info in model.model_fields.items():
            if key in without:
                continue
            extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
            default = "required" if info.is_required() else f"`{_plain(info.default)}`"
            cells = (f"`{key}`", type_words(nodes[key]), str(extra.get("units", "1")), default, info.description or "")
            rows.append("| " + " | ".join(_escape(cell) for cell in cells) + " |")
    return "\n".join(rows) + "\n" if len(rows) > 2 else "No keys of its own.\n"


def _plain(value: Any) -> str:
    """A default as one would write it in YAML."""
    if isinstance(value, Options):
        value = value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_plain(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_plain, value)) + "]"
    if isinstance(value, str):
        return value or '""'
    return json.dumps(value)


def _escape(cell: str) -> str:
    """Text of one cell: a bar would end it, and `<name>` outside of code would be taken for HTML."""
    text = cell.replace("|", "\\|")
    return text if text.startswith("`") else re.sub(r"<(?=[A-Za-z])", "&lt;", text)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:].removesuffix('.')}."


def _either(numbers: tuple[int, ...]) -> str:
    """`1, 2 or 3`; 0 stands for no grid."""
    words = ["none" if n == 0 else str(n) for n in numbers]
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _summary(model: type[Options]) -> str:
    return (model.__doc__ or "").strip().splitlines()[0]


# --- scenario reference -----------------------------------------------------------------------------------------


def scenario_reference() -> str:
    """Every section, key, type, unit, default and meaning."""
    pdes = {name: kinds.load("PDE", name) for name in kinds.names("PDE")}
    overview = ["| section | says |", "|---|---|", *(f"| `{key}` | {says} |" for key, says in SECTIONS)]
    parts = [
        f"# Scenario reference\n\n{NOTE}\n",
        READING,
        "\n".join(overview) + "\n",
        "## name, description, references\n\n" + table(schema.HeaderOptions),
        "## grid\n\n" + table(schema.GridOptions),
        "## pde\n\n" + "\n".join(_pde(pde) for pde in pdes.values()),
        "## time\n\n" + table(schema.TimeOptions),
        "## controls\n\nA map from a name of your choice to:\n\n" + table(schema.ControlOptions),
        _data(pdes),
        _networks(),
        _loss(pdes),
        _update(pdes),
        "## train\n\n" + table(schema.TrainOptions),
        "## run\n\n" + table(schema.RunOptions) + "\nKeys of `precision`:\n\n" + table(schema.PrecisionOptions),
        "## output\n\n" + table(schema.OutputOptions),
        "## sweep\n\n" + SWEEP,
    ]
    return "\n".join(parts)


def _pde(pde: PDEPlugin) -> str:
    facts = [
        f"### pde: {pde.name}\n",
        f"{_sentence(pde.summary)}\n",
        f"* equation: {pde.equation}",
        f"* grid: {_either(pde.dimensions) + ' dimensions' if pde.dimensions else 'none'}",
    ]
    words = {
        "boundaries": sorted(pde.boundaries),
        "accepts `force` on": pde.forces,
        "accepts `source` on": pde.sources,
        "samplers": list(pde.samplers),
        "losses": list(kinds.losses(pde)),
        "inverse solvers": list(kinds.inverse_solvers(pde)),
    }
    facts += [f"* {what}: {', '.join(found)}" for what, found in words.items() if found]
    facts += [f"* reference: {text}" for text in pde.references]
    return "\n".join(facts) + "\n\n" + table(pde.parameters)


def _data(pdes: Mapping[str, PDEPlugin]) -> str:
    parts = ["## data\n\nKeys of every sampler:\n\n" + table(schema.DataOptions)]
    for pde in pdes.values():
        for name, sampler in pde.samplers.items():
            parts.append(
                f"### data: {name} (of pde {pde.name})\n\n{_sentence(sampler.summary)}\n\n{table(sampler.options)}"
            )
    parts.append(f"### data: file\n\n{_summary(schema.FileDataOptions)}\n\n{table(schema.FileDataOptions)}")
    return "\n".join(parts)


def _networks() -> str:
    parts = ["## networks\n\nA map from a name of your choice to a network. Keys of every kind:\n"]
    parts.append(table(schema.NetworkOptions))
    for name in kinds.names("network"):
        plugin = kinds.load("network", name)
        facts = f"{_sentence(plugin.summary)} Grid dimensions: {_either(plugin.dimensions)}."
        parts.append(f"### networks: {name}\n\n{facts}\n\n{table(plugin.options)}")
    return "\n".join(parts)


def _loss(pdes: Mapping[str, PDEPlugin]) -> str:
    found = [(name, "any PDE", plugin) for name, plugin in LOSSES.items()]
    found += [(name, f"pde {pde.name}", plugin) for pde in pdes.values() for name, plugin in pde.losses.items()]
    rows = ["| type | for | needs a target | L per sample |", "|---|---|---|---|"]
    rows += [f"| `{n}` | {f} | {'yes' if p.needs_target else 'no'} | {_escape(p.summary)} |" for n, f, p in found]
    own = [f"### loss: {name}\n\n{table(plugin.options)}" for name, _, plugin in found if plugin.options.model_fields]
    return "\n".join(["## loss\n\nKeys of every term:\n", table(schema.LossOptions), "\n".join(rows) + "\n", *own])


def _update(pdes: Mapping[str, PDEPlugin]) -> str:
    rule = ("`optimizer`", "an optimizer", "1", f"`{DEFAULT_OPTIMIZER}`", "takes the step; see below")
    parts = ["## update\n\nKeys of every rule:\n", table(schema.UpdateOptions, also=(rule,)), "Keys of `clip`:\n"]
    parts.append(table(schema.ClipOptions))
    for name in kinds.names("update rule"):
        plugin = kinds.load("update rule", name)
        facts = [_sentence(plugin.summary)]
        if plugin.needs:
            facts.append(f"Needs: {', '.join(sorted(plugin.needs)).replace('_', ' ')}.")
        formula = f"```text\n{plugin.formula}\n```\n\n" if plugin.formula else ""
        parts.append(f"### update: {name}\n\n{' '.join(facts)}\n\n{formula}{table(plugin.options)}")
    parts += [_solvers(pdes), _optimizers()]
    return "\n".join(parts)


def _solvers(pdes: Mapping[str, PDEPlugin]) -> str:
    registered = [(name, kinds.load("inverse solver", name)) for name in kinds.names("inverse solver")]
    found = [(name, ", ".join(s.inverts) if s.inverts else "any PDE", s) for name, s in registered]
    found += [(name, pde.name, s) for pde in pdes.values() for name, s in pde.inverse_solvers.items()]
    parts = ["### update.inverse_solver\n\nThe word, or `{type: …}` with these keys.\n"]
    for name, inverts, solver in found:
        facts = [f"{_sentence(solver.summary)} For: {inverts}. Works on the {solver.works_on}."]
        if solver.physics_precision:
            facts.append(f"Needs `run.precision.physics: {solver.physics_precision}`.")
        parts.append(f"#### inverse_solver: {name}\n\n{' '.join(facts)}\n\n{table(solver.options)}")
    return "\n".join(parts)


def _optimizers() -> str:
    about = "Formulas and defaults are those of torch, on both backends; `lbfgs` is phinverse's own."
    parts = [f"### update.optimizer\n\n{about}\n"]
    for name, model in OPTIMIZERS.items():
        parts.append(f"#### optimizer: {name}\n\n{_summary(model)}\n\n{table(model)}")
    parts.append("### update.optimizer.learning_rate\n\nA number, or a schedule of the step:\n")
    for name, model in SCHEDULES.items():
        parts.append(f"#### schedule: {name}\n\n{_summary(model)}\n\n{table(model, without=('type',))}")
    return "\n".join(parts)


# --- command line and schema ------------------------------------------------------------------------------------


def command_line() -> str:
    """Every command with its arguments and options."""
    commands: Mapping[str, Any] = getattr(typer.main.get_command(app), "commands", {})
    parts = [f"# Command line\n\n{NOTE}\n", _overview(commands)]
    for name, command in commands.items():
        rows = ["| argument or option | default | meaning |", "|---|---|---|"]
        for parameter in command.params:
            rows.append("| " + " | ".join(_escape(cell) for cell in _parameter(parameter)) + " |")
        body = "\n".join(rows) if command.params else "No options."
        parts.append(f"## phinverse {name}\n\n{command.help}\n\n{body}\n")
    return "\n".join([*parts, EXIT_CODES])


def _overview(commands: Mapping[str, Any]) -> str:
    rows = ["| command | does |", "|---|---|"]
    return "\n".join(rows + [f"| `phinverse {name}` | {command.help} |" for name, command in commands.items()]) + "\n"


def _parameter(parameter: Any) -> tuple[str, str, str]:
    """(how it is written, default, meaning)."""
    if parameter.param_type_name == "argument":
        word = parameter.metavar or parameter.name.upper()
        return f"`{word}`", "required" if parameter.required else "", parameter.help or ""
    word = parameter.opts[0]
    if not parameter.is_flag:
        word += f" {parameter.metavar or parameter.name.upper()}"
    default = "" if parameter.is_flag or parameter.default in (None, ()) else f"`{parameter.default}`"
    return f"`{word}`", default, parameter.help or ""


def documents() -> dict[str, str]:
    """Contents of every generated file, by name."""
    schema_text = json.dumps(json_schema(), indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    return {
        "scenario_reference.md": scenario_reference(),
        "command_line.md": command_line(),
        "scenario.schema.json": schema_text,
    }


def main(arguments: list[str]) -> int:
    """Exit code: 1 if `--check` finds a file that differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is out of date")
    check = parser.parse_args(arguments).check
    stale = []
    for name, text in documents().items():
        path = FOLDER / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                path.write_text(text, encoding="utf-8", newline="\n")
    verb = "out of date" if check else "written"
    print("\n".join(f"docs/{name}: {verb}" for name in stale) or "all files are up to date")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
