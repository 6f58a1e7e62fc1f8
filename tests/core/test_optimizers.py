"""Optimizers walk the path of torch.optim on both backends and go on exactly where they stopped."""

import jax
import numpy as np
import pytest
import torch

from toolkit.core.errors import ScenarioError
from toolkit.core.optimizers import OPTIMIZERS, clip
from toolkit.core.schedules import Cosine

# (kind, options of ours, class and options of torch.optim)
CASES = [
    ("sgd", {}, torch.optim.SGD, {}),
    ("sgd", {"momentum": 0.9}, torch.optim.SGD, {"momentum": 0.9}),
    (
        "sgd",
        {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
        torch.optim.SGD,
        {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
    ),
    ("adam", {}, torch.optim.Adam, {}),
    (
        "adam",
        {"beta1": 0.7, "beta2": 0.9, "epsilon": 1e-4, "weight_decay": 0.1},
        torch.optim.Adam,
        {"betas": (0.7, 0.9), "eps": 1e-4, "weight_decay": 0.1},
    ),
    ("adamw", {}, torch.optim.AdamW, {}),
    ("adagrad", {}, torch.optim.Adagrad, {}),
    (
        "adagrad",
        {"initial_accumulator": 0.5, "weight_decay": 0.1},
        torch.optim.Adagrad,
        {"initial_accumulator_value": 0.5, "weight_decay": 0.1},
    ),
    ("adadelta", {}, torch.optim.Adadelta, {}),
    ("adadelta", {"rho": 0.8, "weight_decay": 0.1}, torch.optim.Adadelta, {"rho": 0.8, "weight_decay": 0.1}),
    ("rmsprop", {}, torch.optim.RMSprop, {}),
    (
        "rmsprop",
        {"alpha": 0.9, "momentum": 0.5, "centered": True, "weight_decay": 0.1},
        torch.optim.RMSprop,
        {"alpha": 0.9, "momentum": 0.5, "centered": True, "weight_decay": 0.1},
    ),
]
KERAS = [("adam", {"epsilon": 1e-4, "epsilon_placement": "uncorrected"})]
KERAS += [("adamw", {"epsilon_placement": "uncorrected"})]
"""What torch.optim has no twin of."""
RATES = {"sgd": 1e-3, "adam": 1e-2, "adamw": 1e-2, "adagrad": 1e-1, "adadelta": 1.0, "rmsprop": 1e-3}
STEPS = 50


def quadratic(p):
    return 0.5 * (p["a"] ** 2).sum() + 5 * (p["b"] ** 2).sum()


def rosenbrock(p):
    a, b = p["a"].reshape(-1), p["b"].reshape(-1)
    return ((1 - a) ** 2).sum() + 100 * ((b - a**2) ** 2).sum()


START = {"a": np.array([[-1.2, 0.3], [1.0, 0.7]]), "b": np.array([1.0, 2.0, -0.5, 0.0])}


def walk(backend, optimizer, objective, params, state, steps):
    """Parameters after each step, and the last state; a step is one program on JAX."""

    def step(params, state):
        _, _, gradient = backend.value_and_gradient(lambda p: (objective(p), {}), params)
        return optimizer.update(gradient, state, params)

    program, path = backend.compile(step, params, state), []
    for _ in range(steps):
        params, state = program(params, state)
        path.append(np.concatenate([backend.numpy(v).ravel() for v in params.values()]))
    return np.array(path), params, state


def reference(torch_class, options, objective, rate):
    """The same path with torch.optim used in the ordinary way."""
    params = {k: torch.tensor(v, requires_grad=True) for k, v in START.items()}
    optimizer = torch_class(params.values(), lr=rate, **options)
    path = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        objective(params).backward()
        optimizer.step()
        path.append(np.concatenate([v.detach().numpy().ravel().copy() for v in params.values()]))
    return np.array(path)


@pytest.mark.parametrize("objective", [quadratic, rosenbrock])
@pytest.mark.parametrize(("kind", "options", "torch_class", "torch_options"), CASES)
def test_the_path_is_that_of_torch_optim(backend, kind, options, torch_class, torch_options, objective):
    optimizer = backend.optimizer(kind, options, RATES[kind])
    params = {k: backend.array(v) for k, v in START.items()}
    path, _, state = walk(backend, optimizer, objective, params, optimizer.init(params), STEPS)
    expected = reference(torch_class, torch_options, objective, RATES[kind])

    assert int(state["step"]) == STEPS
    assert not optimizer.needs_objective
    if backend.name == "torch":
        np.testing.assert_array_equal(path, expected)
    else:
        # Round-off over 50 steps of a path that amplifies it by up to 10 on the Rosenbrock function.
        np.testing.assert_allclose(path, expected, rtol=1e-12, atol=1e-13)
    for name, value in START.items():
        assert np.array_equal(backend.numpy(params[name]), value), "the old parameters were changed"


@pytest.mark.parametrize(("kind", "options"), [case[:2] for case in CASES])
def test_defaults_are_those_of_torch(kind, options):
    ours = OPTIMIZERS[kind]().model_dump()
    # Torch knows this one alone.
    assert ours.pop("epsilon_placement", "corrected") == "corrected"
    theirs = next(case[2] for case in CASES if case[0] == kind)([torch.zeros(1, requires_grad=True)]).defaults
    theirs |= {"learning_rate": theirs["lr"], "epsilon": theirs.get("eps")}
    if "betas" in theirs:
        theirs["beta1"], theirs["beta2"] = theirs["betas"]
    if "initial_accumulator_value" in theirs:
        theirs["initial_accumulator"] = theirs["initial_accumulator_value"]
    assert ours == {name: theirs[name] for name in ours}


@pytest.mark.parametrize("options", [{"epsilon": 0.1, "beta1": 0.7, "beta2": 0.9}, {"epsilon": 1e-30}])
def test_epsilon_before_the_correction_is_the_formula_of_keras(backend, options):
    """θ ← θ - η √(1 - β₂ᵗ) / (1 - β₁ᵗ) m / (√v + ε), written out in NumPy; the gradient comes from the backend."""
    beta1, beta2 = options.get("beta1", 0.9), options.get("beta2", 0.999)
    optimizer = backend.optimizer("adam", {**options, "epsilon_placement": "uncorrected"}, 1e-2)
    params = {k: backend.array(v) for k, v in START.items()}
    state = optimizer.init(params)
    theta, m, v = dict(START), *({k: np.zeros_like(a) for k, a in START.items()} for _ in range(2))
    for t in range(1, 16):
        at = {k: backend.array(a) for k, a in theta.items()}
        _, _, gradient = backend.value_and_gradient(lambda p: (rosenbrock(p), {}), at)
        for k in theta:
            g = backend.numpy(gradient[k])
            m[k], v[k] = beta1 * m[k] + (1 - beta1) * g, beta2 * v[k] + (1 - beta2) * g**2
            rate = 1e-2 * np.sqrt(1 - beta2**t) / (1 - beta1**t)
            theta[k] = theta[k] - rate * m[k] / (np.sqrt(v[k]) + options["epsilon"])
        _, params, state = walk(backend, optimizer, rosenbrock, params, state, 1)
        for k in theta:
            # Round-off, amplified along the path.
            np.testing.assert_allclose(backend.numpy(params[k]), theta[k], rtol=1e-12, atol=1e-13)
    corrected = backend.optimizer("adam", options, 1e-2)
    start = {k: backend.array(a) for k, a in START.items()}
    _, other, _ = walk(backend, corrected, rosenbrock, start, corrected.init(start), 15)
    # Next to nothing: its place does not matter.
    assert np.allclose(backend.numpy(other["b"]), theta["b"], rtol=1e-9) == (options["epsilon"] < 1e-20)


def test_an_uncorrected_epsilon_damps_the_first_step_of_small_gradients(backend):
    """At t = 1 it acts like ε / √(1 - β₂), 3.2e-6 for 1e-7: a gradient of 1e-6 moves by η / 4.16 instead of η / 1.1."""
    moved = {}
    for placement in ("corrected", "uncorrected"):
        options = {"epsilon": 1e-7, "epsilon_placement": placement}
        optimizer, params = backend.optimizer("adam", options, 1.0), {"a": backend.array(np.zeros(1))}
        new, _ = optimizer.update({"a": backend.array(np.full(1, 1e-6))}, optimizer.init(params), params)
        moved[placement] = -float(new["a"][0])
    # One division each; 1 - 0.999 has lost three digits.
    assert moved["corrected"] == pytest.approx(1 / 1.1, rel=1e-12)
    assert moved["uncorrected"] == pytest.approx(1 / (1 + 0.1 / 0.001**0.5), rel=1e-12)


@pytest.mark.parametrize(("kind", "options"), [*(case[:2] for case in CASES), *KERAS])
def test_a_resumed_walk_is_the_same_to_the_last_bit(backend, kind, options):
    rate = Cosine(initial=RATES[kind], steps=20)
    optimizer = backend.optimizer(kind, options, rate)
    params = {k: backend.array(v) for k, v in START.items()}
    whole, _, _ = walk(backend, optimizer, rosenbrock, params, optimizer.init(params), 12)
    _, params, state = walk(backend, optimizer, rosenbrock, params, optimizer.init(params), 5)

    saved = [{k: backend.numpy(v) for k, v in tree.items()} for tree in (params, state)]
    params, state = ({k: backend.array(v) for k, v in tree.items()} for tree in saved)
    again = backend.optimizer(kind, options, rate)
    rest, _, _ = walk(backend, again, rosenbrock, params, state, 7)

    np.testing.assert_array_equal(rest, whole[5:])


@pytest.mark.parametrize(("kind", "options"), [*(case[:2] for case in CASES), *KERAS])
@pytest.mark.parametrize("backend", ["jax"], indirect=True)
def test_compiles_once_and_keeps_single_precision(backend, kind, options):
    optimizer = backend.optimizer(kind, options, Cosine(initial=1e-2, steps=20))
    params = {k: backend.array(v.astype(np.float32)) for k, v in START.items()}
    state = optimizer.init(params)
    # Ahead of time: other shapes, precisions or devices at a later call would be refused.
    compiled = backend.compile(optimizer.update, params, state, params)
    for _ in range(3):
        new, new_state = compiled(params, state, params)
        shapes = jax.tree.map(lambda a: (a.shape, a.dtype), (params, state))
        assert jax.tree.map(lambda a: (a.shape, a.dtype), (new, new_state)) == shapes
        params, state = new, new_state


def test_a_walk_may_go_on_with_the_other_backend(backend):
    # What torch remembers is what JAX remembers, under the same names.
    from toolkit.core import jax_optimizers, torch_optimizers

    for kind, options, _, _ in CASES:
        ours = backend.optimizer(kind, options, 1e-3).init({k: backend.array(v) for k, v in START.items()})
        other = (torch_optimizers if backend.name == "jax" else jax_optimizers).make_optimizer(kind, options, 1e-3)
        array = torch.tensor if backend.name == "jax" else jax.numpy.asarray
        theirs = other.init({k: array(v) for k, v in START.items()})
        assert {k: tuple(v.shape) for k, v in ours.items()} == {k: tuple(v.shape) for k, v in theirs.items()}


def test_schedules_move_the_rate_with_the_counter(backend):
    schedule = Cosine(initial=0.5, final=0.1, steps=4)
    optimizer = backend.optimizer("sgd", {"learning_rate": 7.0}, schedule)
    params = {"a": backend.array(np.zeros(1))}
    state, seen = optimizer.init(params), []
    for _ in range(6):
        new, state = optimizer.update({"a": backend.array(np.ones(1))}, state, params)
        seen.append(-float(new["a"][0]))
    # One cosine in double precision.
    np.testing.assert_allclose(seen, [schedule(i) for i in range(6)], rtol=1e-14)
    from_options = backend.optimizer("sgd", {"learning_rate": 7.0}, None)
    new, _ = from_options.update({"a": backend.array(np.ones(1))}, from_options.init(params), params)
    assert float(new["a"][0]) == -7.0


def test_clipping(backend):
    direction = {"a": backend.array(np.array([3.0, 0.0])), "b": backend.array(np.array([[-4.0]]))}

    def values(**limits):
        return [backend.numpy(v).ravel().tolist() for v in clip(direction, backend.xp, **limits).values()]

    assert values() == [[3.0, 0.0], [-4.0]]
    assert values(norm=10.0) == [[3.0, 0.0], [-4.0]]
    # 5 is the norm over both tensors; one division away from exact.
    np.testing.assert_allclose(np.concatenate(values(norm=1.0)), [0.6, 0.0, -0.8], rtol=1e-15)
    assert values(value=3.5) == [[3.0, 0.0], [-3.5]]
    zero = {"a": backend.array(np.zeros(2))}
    assert backend.numpy(clip(zero, backend.xp, norm=1.0)["a"]).tolist() == [0.0, 0.0]


def test_wrong_options_are_refused(backend):
    with pytest.raises(ScenarioError, match="did you mean 'adam'"):
        backend.optimizer("adm", {}, 1e-3)
    with pytest.raises(ScenarioError, match="needs momentum"):
        backend.optimizer("sgd", {"nesterov": True}, 1e-3)
