"""Each run-time fix: the fault with PhiML's own method put back, and the right result with the fix."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from typing import Any

import numpy as np
import pytest
from phi.field import CenteredGrid, Field, StaggeredGrid
from phi.geom import Box
from phi.physics import advect, diffuse, fluid
from phiml import math
from phiml.backend import NUMPY
from phiml.math import Tensor, channel, extrapolation, spatial
from phiml.math._lin_trace import LinTracer

from toolkit.core import compat
from toolkit.core.errors import MissingError

only_torch = pytest.mark.parametrize("backend", ["torch"], indirect=True)
only_jax = pytest.mark.parametrize("backend", ["jax"], indirect=True)


box: Any = Box  # called as box(x=size), which type checkers cannot follow


def phiml_backend() -> Any:
    return math.choose_backend(math.tensor(np.zeros(1), spatial("x")))


def put_back(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
    monkeypatch.setattr(owner, name, getattr(getattr(owner, name), compat.ORIGINAL))


def scalar_1d(backend: Any, values: np.ndarray) -> Field:
    tensor = math.reshaped_tensor(backend.array(values, "physics"), [spatial("x")], convert=False)
    return CenteredGrid(tensor, extrapolation.PERIODIC, box(x=1.0), x=len(values))


def test_other_versions_are_refused_with_the_command_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "3.4.0" if name == "phiflow" else "1.17.0")
    with pytest.raises(MissingError, match=r"pip install phiflow==3\.4\.0 phiml==1\.16\.1") as caught:
        compat.apply("numpy")
    assert "phiml 1.17.0" in str(caught.value)
    assert caught.value.exit_code == 4


def test_apply_twice_changes_nothing_more(backend: Any) -> None:
    owner = type(phiml_backend())
    before = {name: getattr(owner, name) for name in ("ravel_multi_index", "grid_sample", "tanh")}
    compat.apply(backend.name)
    assert before == {name: getattr(owner, name) for name in before}
    assert not hasattr(getattr(owner.ravel_multi_index, compat.ORIGINAL), compat.ORIGINAL)


def test_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="known: numpy, torch, jax"):
        compat.apply("tensorflow")


def test_importing_and_the_numpy_fixes_load_no_framework() -> None:
    code = (
        "import sys; from toolkit.core import compat; compat.apply('numpy'); "
        "print(sorted({'torch', 'jax'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_flat_indices_beyond_int32(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in (NUMPY, phiml_backend()):
        index = library.as_tensor(np.array([[49_999, 49_999]], dtype=np.int32))
        assert int(library.ravel_multi_index(index, (50_000, 50_000))[0]) == 49_999 * 50_000 + 49_999
        put_back(monkeypatch, type(library), "ravel_multi_index")
        if library.name == "jax":
            with pytest.raises(ValueError, match="not large enough"):
                library.ravel_multi_index(index, (50_000, 50_000))
        else:
            assert int(library.ravel_multi_index(index, (50_000, 50_000))[0]) < 0


def test_small_flat_indices_are_as_before(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in (NUMPY, phiml_backend()):
        index = library.as_tensor(np.array([[3, 4]], dtype=np.int32))
        flat = library.ravel_multi_index(index, (10, 10))
        put_back(monkeypatch, type(library), "ravel_multi_index")
        assert int(flat[0]) == 34
        assert library.dtype(flat) == library.dtype(library.ravel_multi_index(index, (10, 10)))


def shifted_sine(backend: Any, shift: float) -> tuple[np.ndarray, np.ndarray]:
    x = (np.arange(64) + 0.5) / 64
    field = scalar_1d(backend, np.sin(2 * np.pi * x))
    velocity = CenteredGrid(math.vec(x=1.0), extrapolation.PERIODIC, box(x=1.0), x=64)
    moved = advect.semi_lagrangian(field, velocity, shift)
    return moved.values.numpy("x"), np.sin(2 * np.pi * (x - shift))


def test_semi_lagrangian_in_1d(backend: Any) -> None:
    moved, exact = shifted_sine(backend, 0.1)
    # Error of linear interpolation: dx²/8 max|u''|.
    assert np.abs(moved - exact).max() <= (2 * np.pi) ** 2 / (8 * 64**2)


@only_torch
def test_semi_lagrangian_in_1d_fails_without_the_fix(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put_back(monkeypatch, type(phiml_backend()), "grid_sample")
    with pytest.raises(RuntimeError, match="grid_sampler"):
        shifted_sine(backend, 0.1)


def test_semi_lagrangian_in_1d_is_differentiable(backend: Any) -> None:
    def total(tree: dict[str, Any]) -> tuple[Any, Any]:
        tensor = math.reshaped_tensor(tree["u"], [spatial("x")], convert=False)
        field = CenteredGrid(tensor, extrapolation.PERIODIC, box(x=1.0), x=8)
        velocity = CenteredGrid(math.vec(x=1.0), extrapolation.PERIODIC, box(x=1.0), x=8)
        return math.sum(advect.semi_lagrangian(field, velocity, 0.03).values).native(), None

    _, _, gradient = backend.value_and_gradient(total, {"u": backend.array(np.arange(8.0), "physics")})
    # A uniform shift moves all of every cell's content somewhere: ∂(Σ result)/∂u = 1 up to rounding.
    np.testing.assert_allclose(backend.numpy(gradient["u"]), 1.0, rtol=1e-12)


DERIVATIVES = {
    "arctan": (math.arctan, lambda x: 1 / (1 + x**2), 0.4),
    "sinh": (math.sinh, np.cosh, 0.4),
    "arcsinh": (math.arcsinh, lambda x: 1 / np.sqrt(1 + x**2), 0.4),
    "cosh": (math.cosh, np.sinh, 0.4),
    "arccosh": (math.arccosh, lambda x: 1 / np.sqrt(x**2 - 1), 1.4),
    "tanh": (math.tanh, lambda x: 1 - np.tanh(x) ** 2, 0.4),
    "arctanh": (math.arctanh, lambda x: 1 / (1 - x**2), 0.4),
    "arctan2": (
        lambda x: math.arctan(x, divide_by=math.tensor([2.0], spatial("x"))),
        lambda x: 2 / (4 + x**2),
        0.4,
    ),
}


def derivative(function: Any, at: float) -> float:
    gradient = math.gradient(lambda x: math.sum(function(x)), get_output=False)
    (result,) = gradient(math.tensor(np.array([at]), spatial("x")))
    return float(result.sum)


@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivatives_of_elementary_functions(backend: Any, name: str) -> None:
    function, exact, at = DERIVATIVES[name]
    # Both sides are rounded once or twice.
    assert derivative(function, at) == pytest.approx(exact(at), rel=1e-13)


@only_jax
@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivatives_fail_without_the_fix(backend: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, _, at = DERIVATIVES[name]
    monkeypatch.setattr(type(phiml_backend()), name, staticmethod(getattr(np, name)))
    with pytest.raises(Exception, match="traced array"):
        derivative(function, at)


def implicit_step_with_inflow(backend: Any) -> tuple[Tensor, Tensor]:
    boundary = extrapolation.ConstantExtrapolation(1.5)
    values = math.tensor(np.random.default_rng(0).standard_normal(8), spatial("x"))
    start = CenteredGrid(values, boundary, box(x=2.0), x=8)
    end = diffuse.implicit(start, 0.1, 0.1, compat.linear_solve(1e-12, 1e-12))
    return diffuse.explicit(end, 0.1, -0.1).values, values


def test_float_boundary_value_in_a_linear_solve(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    back, values = implicit_step_with_inflow(backend)
    # Bounded by the solver's tolerance.
    assert float(math.max(abs(back - values))) < 1e-10
    put_back(monkeypatch, LinTracer, "__post_init__")
    with pytest.raises(AssertionError):
        implicit_step_with_inflow(backend)


def three_iterations(backend: Any) -> Tensor:
    random = np.random.default_rng(1).standard_normal((16, 16, 2))
    values = math.tensor(random, spatial("x,y"), channel(vector="x,y"))
    domain = box(x=16.0, y=16.0)
    velocity = CenteredGrid(values, extrapolation.ZERO, domain, x=16, y=16)
    velocity = velocity.at(StaggeredGrid(0, extrapolation.ZERO, domain, x=16, y=16))
    projected, _ = fluid.make_incompressible(velocity, (), compat.linear_solve(1e-9, 1e-9, max_iterations=3))
    return compat.residual_check(projected)


def failing(x: Tensor) -> Tensor:
    raise RuntimeError("while tracing")


@only_torch
@pytest.mark.parametrize("fixed", [False, True])
def test_a_failed_trace_does_not_silence_later_solves(
    backend: Any, fixed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from phiml.backend.torch import _torch_backend

    if not fixed:
        put_back(monkeypatch, _torch_backend.JITFunction, "__call__")
    try:
        with pytest.raises(RuntimeError, match="while tracing"):
            math.jit_compile(failing)(math.tensor(np.ones(3), spatial("x")))
        assert len(_torch_backend.CURRENT_JIT_CALLS) == (0 if fixed else 1)
        if fixed:
            with pytest.raises(math.NotConverged):
                three_iterations(backend)
        else:
            three_iterations(backend)  # far from converged, and nothing says so
    finally:
        _torch_backend.CURRENT_JIT_CALLS.clear()
