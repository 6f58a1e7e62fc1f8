r"""Starts and targets of the Burgers equation: waves, random waves, a closed-form solution, a published target.

`sine` breaks after t = 1 / (amplitude · wavenumber) where viscosity is small. `cole_hopf` has a solution for all times
(Cole 1951, Hopf 1950). `evolved_sine` is the target of the control problem in Thuerey et al., Physics-based Deep
Learning: the published array is, within 0.008 everywhere, the state at t = ½ that grew out of −sin πx on 128 cells with
viscosity 0.01/π and 16 semi-Lagrangian steps, x running from −1 to 1 with both ends included.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from toolkit import Grid, Options, Sampler, Timing, option


class SineOptions(Options):
    """A sine wave; its steepest descent becomes a shock at t = 1 / (amplitude · wavenumber)."""

    waves: int = option(1, ge=1, description="full waves along the line")
    amplitude: float = option(1.0, units="length / time", description="amplitude; negative: −sin")


def _sine(grid: Grid | None, parameters: Any, options: SineOptions, rng: Any, count: int) -> dict[str, np.ndarray]:
    """amplitude sin(2π waves x / extent); on an extent of 2 this is −sin πx of the interval (−1, 1)."""
    assert grid is not None
    wave = options.amplitude * np.sin(2 * np.pi * options.waves * grid.coordinates("x") / grid.extent["x"])
    return {"initial.velocity": np.repeat(wave[None], count, axis=0)}


class RandomWavesOptions(Options):
    """Sums of a few sines of random amplitude and phase."""

    modes: int = option(3, ge=1, description="longest waves in the sum")
    amplitude: float = option(1.0, gt=0, units="length / time", description="largest possible |u|")


def _random_waves(
    grid: Grid | None, parameters: Any, options: RandomWavesOptions, rng: np.random.Generator, count: int
) -> dict[str, np.ndarray]:
    """u = Σ_m a_m sin(2π m x / extent + φ_m), m = 1 … modes, a_m uniform in ±amplitude / modes."""
    assert grid is not None
    mode = np.arange(1, options.modes + 1)[:, None]
    amplitude = rng.uniform(-1, 1, (count, options.modes, 1)) * options.amplitude / options.modes
    phase = rng.uniform(0, 2 * np.pi, (count, options.modes, 1))
    angle = 2 * np.pi * mode * grid.coordinates("x") / grid.extent["x"]
    return {"initial.velocity": np.sum(amplitude * np.sin(angle + phase), axis=1)}


def _wave_pairs(
    grid: Grid | None, parameters: Any, options: RandomWavesOptions, rng: np.random.Generator, count: int
) -> dict[str, np.ndarray]:
    """A start and a target that know nothing of each other."""
    start, target = (_random_waves(grid, parameters, options, rng, count) for _ in range(2))
    return {"initial.velocity": start["initial.velocity"], "target.velocity": target["initial.velocity"]}


def _check_waves(number: int, key: str, grid: Grid | None) -> str | None:
    assert grid is not None
    cells = grid.cells["x"]
    return f"data.{key}: {number} waves need more than {2 * number} cells, not {cells}" if 2 * number >= cells else None


class ColeHopfOptions(Options):
    """A start with a solution in closed form for all times."""

    waves: int = option(1, ge=1, description="full waves along the line")
    contrast: float = option(1.5, gt=1, description="c; the closer to 1 the steeper the front")


def cole_hopf(grid: Grid, viscosity: float, waves: int, contrast: float, t: float) -> np.ndarray:
    """u = 2νk s sin kx / (c + s cos kx) with s = e^{−νk²t}: −2ν ∂ ln θ/∂x, θ a solution of the heat equation."""
    k = 2 * np.pi * waves / grid.extent["x"]
    angle, decay = k * grid.coordinates("x"), np.exp(-viscosity * k**2 * t)
    return 2 * viscosity * k * decay * np.sin(angle) / (contrast + decay * np.cos(angle))


def _cole_hopf(
    grid: Grid | None, parameters: Any, options: ColeHopfOptions, rng: Any, count: int
) -> dict[str, np.ndarray]:
    assert grid is not None
    wave = cole_hopf(grid, parameters.viscosity, options.waves, options.contrast, 0.0)
    return {"initial.velocity": np.repeat(wave[None], count, axis=0)}


def _check_cole_hopf(grid: Grid | None, parameters: Any, options: ColeHopfOptions) -> str | None:
    if parameters.viscosity == 0:
        return "data.type: cole_hopf is zero without viscosity; set pde.viscosity > 0"
    return _check_waves(options.waves, "waves", grid)


class EvolvedSineOptions(Options):
    """A target: what −sin πx has become in a simulation with a viscosity of its own."""

    viscosity: float = option(ge=0, units="length² / time", description="viscosity of the simulation of the target")
    duration: float = option(gt=0, units="time", description="its time")
    steps: int = option(ge=1, le=10_000, description="its time steps")
    end_points: bool = option(
        True,
        description="true: the first and last cell hold the two ends of the period, as in the published data, which "
        "makes the wave longer by a cell; false: values at cell centres",
    )


def _evolved_sine(
    grid: Grid | None, parameters: Any, options: EvolvedSineOptions, rng: Any, count: int
) -> dict[str, np.ndarray]:
    """Per step two explicit half steps of diffusion, then semi-Lagrangian advection; in NumPy."""
    assert grid is not None
    cells, dt, dx = grid.cells["x"], options.duration / options.steps, grid.dx[0]
    index = np.arange(cells)
    place = index / (cells - 1) if options.end_points else (index + 0.5) / cells
    u = np.sin(2 * np.pi * place)
    for _ in range(options.steps):
        for _ in range(2):
            u = u + 0.5 * dt * options.viscosity / dx**2 * (np.roll(u, 1) - 2 * u + np.roll(u, -1))
        u = np.interp(index - dt / dx * u, index, u, period=cells)
    return {"target.velocity": np.repeat(u[None], count, axis=0)}


def _check_evolved_sine(grid: Grid | None, parameters: Any, options: EvolvedSineOptions) -> str | None:
    assert grid is not None
    number = 0.5 * options.duration / options.steps * options.viscosity / grid.dx[0] ** 2
    if number > 0.5:
        return f"data.steps: the target's diffusion number is {number:.3g}, the limit is 0.5; raise data.steps"
    return None


class FineSolutionOptions(RandomWavesOptions):
    """Random waves, and what they become on a finer grid with finer steps."""

    refine: int = option(4, ge=1, description="cells and time steps of the fine solution per coarse one")


def _fine_solution(
    grid: Grid | None,
    parameters: Any,
    options: FineSolutionOptions,
    timing: Timing,
    rng: np.random.Generator,
    count: int,
) -> dict[str, np.ndarray]:
    """Start at cell centres, target after each coarse step: spectral, 2/3 rule, RK4 with integrating factor.

    Only modes that the coarse grid can show are kept of the fine solution, which is then read at its cell centres.
    """
    assert grid is not None
    coarse, fine = grid.cells["x"], grid.cells["x"] * options.refine
    dx, extent = grid.extent["x"] / fine, grid.extent["x"]
    mode = np.fft.rfftfreq(fine, 1 / fine)
    k, dt = 2 * np.pi * mode / extent, timing.dt / options.refine
    decay = np.exp(-0.5 * dt * parameters.viscosity * k**2)
    # Fine centres begin half a fine cell from the edge, coarse ones half a coarse cell.
    shift = np.exp(1j * k[: coarse // 2 + 1] * 0.5 * dx * (options.refine - 1))

    def rate(spectrum: np.ndarray) -> np.ndarray:
        u = np.fft.irfft(np.where(mode < fine / 3, spectrum, 0), fine)
        return np.where(mode < fine / 3, -0.5j * k, 0) * np.fft.rfft(u**2)

    def restrict(spectrum: np.ndarray) -> np.ndarray:
        return np.fft.irfft(spectrum[:, : coarse // 2 + 1] * shift / options.refine, coarse)

    waves = Grid({"x": fine}, {"x": extent})
    spectrum = np.fft.rfft(_random_waves(waves, parameters, options, rng, count)["initial.velocity"])
    start, states = restrict(spectrum), []
    for i in range(timing.steps * options.refine):
        a = rate(spectrum)
        b = rate(decay * (spectrum + 0.5 * dt * a))
        c = rate(decay * spectrum + 0.5 * dt * b)
        d = rate(decay * (decay * spectrum + dt * c))
        spectrum = decay * (decay * (spectrum + dt / 6 * a) + dt / 3 * (b + c)) + dt / 6 * d
        if (i + 1) % options.refine == 0:
            states.append(restrict(spectrum))
    return {"initial.velocity": start, "target.velocity": np.stack(states, axis=1)}


def _check_fine_solution(
    grid: Grid | None, parameters: Any, options: FineSolutionOptions, timing: Timing
) -> str | None:
    assert grid is not None
    if 2 * options.modes * 3 >= grid.cells["x"] * options.refine * 2:
        return f"data.modes: the fine grid holds fewer than {grid.cells['x'] * options.refine // 3} waves"
    number = options.amplitude * timing.dt / grid.dx[0]
    if number > 1.35:
        return (
            f"data.amplitude: the fine solution's CFL number is {number:.3g}, its limit is 1.35; lower time.dt or "
            "data.amplitude"
        )
    return _check_waves(options.modes, "modes", grid)


SAMPLERS = {
    "sine": Sampler(
        "one sine wave", _sine, SineOptions, lambda grid, p, options: _check_waves(options.waves, "waves", grid)
    ),
    "random_waves": Sampler(
        "sums of a few waves with random amplitudes and phases",
        _random_waves,
        RandomWavesOptions,
        lambda grid, p, options: _check_waves(options.modes, "modes", grid),
    ),
    "wave_pairs": Sampler(
        "a start and, independent of it, a target to steer to, both sums of a few waves",
        _wave_pairs,
        RandomWavesOptions,
        lambda grid, p, options: _check_waves(options.modes, "modes", grid),
    ),
    "cole_hopf": Sampler("a wave with a solution in closed form", _cole_hopf, ColeHopfOptions, _check_cole_hopf),
    "fine_solution": Sampler(
        "random waves and, as target after each step, their solution on a finer grid",
        _fine_solution,
        FineSolutionOptions,
        _check_fine_solution,
        in_time=True,
    ),
    "evolved_sine": Sampler(
        "the target of the published control problem, no start given",
        _evolved_sine,
        EvolvedSineOptions,
        _check_evolved_sine,
    ),
}
