"""The command line: arguments in, exit code out. What a command does is in `toolkit.commands`, one module each.

Nothing heavy is imported here, so that `phinverse --help` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

EXIT_INTERRUPTED = 130


class Group(TyperGroup):
    """Turns the toolkit's own errors into one message and an exit code; anything else is a bug and keeps its trace."""

    def invoke(self, ctx: Any) -> Any:
        from toolkit.core.errors import PhinverseError

        try:
            return super().invoke(ctx)
        except PhinverseError as error:
            sys.stderr.write(f"{error}\n")
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            sys.stderr.write("interrupted\n")
            raise typer.Exit(EXIT_INTERRUPTED) from None


app = typer.Typer(
    cls=Group,
    help="Declarative, differentiable PhiFlow simulations, and the gradients that solve them backwards.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Scenario = Annotated[str, typer.Argument(metavar="SCENARIO", help="a scenario file, or the name of a shipped one")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="change a value; may be repeated")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="where run directories are made")]
RunDir = Annotated[str, typer.Argument(metavar="RUN_DIR", help="a run directory, its id, or 'last'")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
RUNS = Path("runs")


@app.callback()
def main() -> None:
    """Every command ends by naming the next useful one."""


@app.command()
def run(
    scenario: Scenario,
    overrides: Set = None,
    out: Out = RUNS,
    name: Annotated[
        str | None, typer.Option("--name", metavar="ID", help="id of the run; default: time and hash")
    ] = None,
    backend: Annotated[str | None, typer.Option(help="torch or jax")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, gpu or gpu:N")] = None,
    precision: Annotated[str | None, typer.Option(help="float32 or float64, for physics and networks")] = None,
    seed: Annotated[int | None, typer.Option(help="seed of initial weights and batches")] = None,
    steps: Annotated[int | None, typer.Option(help="updates; time steps of a plain simulation")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would run, and stop")] = False,
    together: Annotated[
        bool, typer.Option("--together", help="make the updates of seeds of one cell side by side where that is faster")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress, only the run directory")] = False,
) -> None:
    """Compile and run one scenario; a sweep runs all its cells."""
    from toolkit.commands import run as command

    short = {"run.backend": backend, "run.device": device, "run.precision": precision, "run.seed": seed}
    raise typer.Exit(command.run(scenario, overrides or [], short, steps, out, name, dry_run, together, quiet))


@app.command()
def batch(
    scenarios: Annotated[list[str], typer.Argument(metavar="SCENARIO...", help="scenario files or shipped names")],
    overrides: Set = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", metavar="N", min=1, help="processes; default: half the cores, or one per GPU"),
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option("--scheduler", metavar="ADDRESS", help="a Dask cluster instead, as tcp://host:port")
    ] = None,
    out: Out = RUNS,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="begin members anew that failed in an earlier batch")
    ] = False,
    backend: Annotated[str | None, typer.Option(help="torch or jax")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, gpu or gpu:N")] = None,
    precision: Annotated[str | None, typer.Option(help="float32 or float64, for physics and networks")] = None,
    seed: Annotated[int | None, typer.Option(help="seed of initial weights and batches")] = None,
    steps: Annotated[int | None, typer.Option(help="updates; time steps of a plain simulation")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress, only the directories and failures")] = False,
) -> None:
    """Run many scenarios and sweeps in parallel processes; run again, it does what is missing."""
    from toolkit.commands import batch as command

    short = {"run.backend": backend, "run.device": device, "run.precision": precision, "run.seed": seed}
    code = command.batch(scenarios, overrides or [], short, steps, workers, scheduler, out, retry_failed, quiet)
    raise typer.Exit(code)


@app.command()
def resume(
    run_dir: RunDir,
    out: Out = RUNS,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress, only the run directory")] = False,
) -> None:
    """Go on from the last checkpoint; the result is that of an uninterrupted run."""
    from toolkit.commands import resume as command

    raise typer.Exit(command.resume(run_dir, out, quiet))


@app.command()
def validate(
    scenarios: Annotated[list[str], typer.Argument(metavar="SCENARIO...", help="scenario files or shipped names")],
    overrides: Set = None,
    explain: Annotated[bool, typer.Option("--explain", help="every value with its origin")] = False,
    as_json: Json = False,
) -> None:
    """Check scenarios without running, and say what will be built."""
    from toolkit.commands import validate as command

    raise typer.Exit(command.validate(scenarios, overrides or [], explain, as_json))


@app.command()
def diagnose(
    scenario: Scenario,
    overrides: Set = None,
    samples: Annotated[
        int | None, typer.Option("--samples", metavar="N", help="at most so many samples of the first batch")
    ] = None,
    out: Out = RUNS,
    backend: Annotated[str | None, typer.Option(help="torch or jax")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, gpu or gpu:N")] = None,
    precision: Annotated[str | None, typer.Option(help="float32 or float64, of the updates that are timed")] = None,
    seed: Annotated[int | None, typer.Option(help="seed of initial weights and batches")] = None,
    as_json: Json = False,
) -> None:
    """Conditioning, gradients per time step and saturation before training, and which update rules suit."""
    from toolkit.commands import diagnose as command

    short = {"run.backend": backend, "run.device": device, "run.precision": precision, "run.seed": seed}
    raise typer.Exit(command.diagnose(scenario, overrides or [], short, samples, out, as_json))


@app.command("list")
def list_(
    kind: Annotated[
        str | None, typer.Argument(help="pdes, rules, solvers, networks, losses, samplers, scenarios or runs")
    ] = None,
    name: Annotated[str | None, typer.Argument(help="one of them: its options, units and defaults")] = None,
    out: Out = RUNS,
    as_json: Json = False,
) -> None:
    """What is installed, with its options; or the runs so far."""
    from toolkit.commands import listing as command

    raise typer.Exit(command.show(kind, name, out, as_json))


@app.command()
def schema() -> None:
    """JSON Schema of scenario files, with the installed plugins, for completion in editors."""
    from toolkit.commands import schema as command

    raise typer.Exit(command.schema())


@app.command()
def devices(as_json: Json = False) -> None:
    """What can compute: backends, their versions and devices."""
    from toolkit.commands import devices as command

    raise typer.Exit(command.devices(as_json))


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="name of the scenario; writes NAME.yaml here")],
    template: Annotated[
        str, typer.Option("--from", metavar="TEMPLATE", help="a shipped scenario or a file")
    ] = "heat_sip",
) -> None:
    """Start a scenario from a template."""
    from toolkit.commands import new as command

    raise typer.Exit(command.new(name, template))


@app.command()
def plot(
    run_dir: RunDir,
    out: Out = RUNS,
    film: Annotated[bool, typer.Option("--film", help="also write an animation (GIF)")] = False,
    sample: Annotated[int, typer.Option("--sample", min=0, help="the sample that it shows")] = 0,
) -> None:
    """Draw the pictures of a run anew."""
    from toolkit.commands import plot as command

    raise typer.Exit(command.plot(run_dir, out, film, sample))


@app.command()
def report(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="a run or sweep directory, its id, or 'last'")],
    out: Out = RUNS,
) -> None:
    """One self-contained HTML page of a run or sweep: numbers, equations, curves, fields over time."""
    from toolkit.commands import report as command

    raise typer.Exit(command.report(directory, out))


@app.command()
def compare(
    directories: Annotated[
        list[str], typer.Argument(metavar="DIR...", help="runs, sweeps, folders that hold some, ids, or 'last'")
    ],
    out: Out = RUNS,
    figure: Annotated[
        Path | None,
        typer.Option("--figure", metavar="FILE", help="the picture; default: comparison.png beside the runs"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Runs side by side: losses, control errors, equal budgets, seconds, memory; table and picture."""
    from toolkit.commands import compare as command

    raise typer.Exit(command.compare(directories, out, figure, as_json))


@app.command()
def predict(
    run_dir: RunDir,
    source: Annotated[Path, typer.Option("--input", metavar="FILE", help="netCDF file of targets")],
    output: Annotated[
        Path, typer.Option("--output", metavar="FILE", help="netCDF file to write; replaced if it is there")
    ],
    out: Out = RUNS,
    batch: Annotated[
        int | None, typer.Option("--batch", metavar="N", help="samples at a time; default: as in training")
    ] = None,
    backend: Annotated[str | None, typer.Option(help="torch or jax; default: as in training")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, gpu or gpu:N")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress, only the path of the file")] = False,
) -> None:
    """Apply the trained networks of a run to the targets in a file, and simulate what follows."""
    from toolkit.commands import predict as command

    raise typer.Exit(command.predict(run_dir, out, source, output, batch, backend, device, quiet))


if __name__ == "__main__":
    app()
