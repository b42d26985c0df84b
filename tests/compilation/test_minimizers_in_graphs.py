"""Minimizers with line searches inside one compiled graph, and with steps that are one."""

import functools
import shutil

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import implicit_solvers as ims
from implicit_solvers import Status

from .comparison import agree

LANES = {"batch_dims": 1, "in_dims": (0, None), "on_failure": "mask"}


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def gradient_descent(search, **options):
    options = {"max_steps": 700, **options}
    return ims.GradientDescent(1.0, line_search=search, **options)


SOLVERS = {
    "LBFGS": ims.LBFGS,
    "NewtonCG": ims.NewtonCG,
    "Backtracking": functools.partial(gradient_descent, ims.Backtracking()),
    "StrongWolfe": functools.partial(gradient_descent, ims.StrongWolfe(curvature=0.1)),
}
LONG = ("Backtracking", "StrongWolfe")
X, STEEP = 1 + 0.2 * drawn(4, 3), torch.tensor(0.5, dtype=torch.float64)


def valley(z, x, w):
    """Rosenbrock's function, whose curved valley is as steep as ``w``."""
    bend = w * (z[..., 1:] - z[..., :-1] ** 2) ** 2
    return ((x[..., :-1] - z[..., :-1]) ** 2 + bend).sum(-1)


def in_valley(solver, **options):
    def run(x, w):
        start, lanes = torch.zeros_like(x), {**LANES, **options}
        return ims.minimize(valley, start, (x, w), solver=solver, **lanes)

    return run


@pytest.mark.parametrize("name", SOLVERS)
def test_lanes(name):
    solver = SOLVERS[name]()
    (sol, _), _ = agree(in_valley(solver), (X, STEEP), steps=0)
    assert sol.converged.all()
    assert sol.iterations.min() < sol.iterations.max()


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("name", ["LBFGS", "NewtonCG"])
def test_lanes_through_the_tracer_of_derivatives(name):
    agree(in_valley(SOLVERS[name]()), (X, STEEP), backend="aot_eager", steps=0)


@pytest.mark.parametrize("name", ["LBFGS", pytest.param("NewtonCG", marks=pytest.mark.nightly)])
def test_one_lane_of_float32(name):
    solver = SOLVERS[name]()

    def run(x, w):
        return ims.minimize(valley, torch.zeros_like(x), (x, w), solver=solver, on_failure="mask")

    agree(run, (X[0].float(), STEEP.float()))


def test_lanes_that_cannot_be_selected():
    agree(in_valley(ims.LBFGS(), in_dims=None), (X, STEEP), steps=0)


@pytest.mark.parametrize("make", [ims.LBFGS, lambda: None], ids=["LBFGS", "default"])
def test_a_solver_made_in_the_graph_and_the_default(make):
    def run(x, w):
        return in_valley(make())(x, w)

    (sol, _), _ = agree(run, (X, STEEP), steps=0)
    assert torch.equal(sol.iterations, run(X, STEEP).iterations)
    assert sol.converged.all()


@pytest.mark.parametrize(
    "name, steps",
    [
        ("LBFGS", 3),
        ("Backtracking", 20),
        *(
            pytest.param(*case, marks=pytest.mark.nightly)
            for case in [("NewtonCG", 2), ("LBFGS", 20)]
        ),
    ],
)
def test_a_budget_of_steps(name, steps):
    solver = SOLVERS[name](rtol=None, max_steps=steps)
    (sol, _), _ = agree(in_valley(solver), (X, STEEP), steps=0)
    assert sol.status.tolist() == [Status.BUDGET] * 4
    assert sol.iterations.tolist() == [steps] * 4


def uneven(z, x, w):
    """A bowl where ``x`` is positive; a line downhill where it is -1; a cliff where it is -2."""
    bowl = w * ((z - x) ** 2 + 0.1 * z**4).sum(-1)
    downhill = 4 * w * (x * z).sum(-1)
    cliff = torch.log((x + 2 + 0.1 - z.abs()).clamp(min=0)).sum(-1) + (z * w).sum(-1)
    kind = x[..., 0]
    return torch.where(kind == -1, downhill, torch.where(kind == -2, cliff, bowl))


@pytest.mark.parametrize(
    "name", ["LBFGS", "NewtonCG", *(pytest.param(n, marks=pytest.mark.nightly) for n in LONG)]
)
def test_lanes_that_fail_do_so_alone(name):
    kinds = [1.5, -1.0, float("nan"), -2.0, 0.5]
    x = torch.tensor(kinds, dtype=torch.float64).unsqueeze(-1).expand(-1, 2).clone()
    # Backtracking does not see that there is no minimum: it goes down as long as it may
    solver = SOLVERS[name](max_steps=60)

    def run(x, w):
        return ims.minimize(uneven, torch.zeros_like(x), (x, w), solver=solver, **LANES)

    (sol, (gx, gw)), _ = agree(run, (x, STEEP), steps=0)
    assert sol.converged.tolist()[0::4] == [True, True]
    out_of_steps = Status.MAX_STEPS if name == "Backtracking" else Status.STALLED
    assert sol.status.tolist()[1:3] == [out_of_steps, Status.NONFINITE]
    assert not sol.converged[3]
    assert (gx[1:4] == 0).all()
    assert torch.isfinite(gw) and gw != 0
    torch.testing.assert_close(sol.value[[0, 4]], run(x[[0, 4]], STEEP).value)


def test_negative_curvature_is_left():
    # four lanes begin at the top between two minima, one beside it
    def run(x, w):
        start = torch.tensor([[1e-3, 0.0]] * 4 + [[0.4, 0.1]], dtype=x.dtype)
        return ims.minimize(lambda z, x, w: (z**4 - w * x * z**2).sum(-1), start, (x, w), **LANES)

    x = torch.tensor([1.0, 2.0, 0.5, -1.0, 3.0], dtype=torch.float64).unsqueeze(-1)
    x = x.expand(-1, 2).clone()
    (sol, _), _ = agree(run, (x, STEEP), steps=0)
    z = sol.value[[0, 1, 2], 0]
    torch.testing.assert_close(z.abs(), (STEEP * x[:3, 0] / 2).sqrt())


@pytest.mark.parametrize(
    "name, gauss_newton", [("LBFGS", False), ("LBFGS", True), ("Backtracking", False)]
)
def test_least_squares(name, gauss_newton):
    times = torch.linspace(0, 2, 6, dtype=torch.float64)
    y = 2 * torch.exp(-1.3 * times) + 0.05 * drawn(3, 6)
    solver = SOLVERS[name]()

    def run(y, w):
        def residuals(z, y, w):
            return z[..., :1] * torch.exp(-z[..., 1:] * times) + w * z[..., :1] - y

        start = torch.ones(3, 2, dtype=torch.float64)
        options = {"solver": solver, "gauss_newton": gauss_newton, **LANES}
        return ims.least_squares(residuals, start, (y, w), **options)

    agree(run, (y, 0.05 * STEEP), steps=0)


def test_a_module_and_captured_tensors():
    cell = nn.Linear(3, 3).double()
    layer = ims.nn.Minimize(
        lambda z, x: ((cell(z) - x) ** 2).sum(-1) + (z**4).sum(-1) + (z**2).sum(-1),
        solver=ims.LBFGS(check_every=3),
        batch_dims=1,
        on_failure="mask",
        return_solution=True,
    )
    agree(layer, (X,), list(cell.parameters()), steps=0)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
def test_lbfgs_in_code_of_c_plus_plus():
    x = X.clone()
    x[2] = torch.nan
    agree(in_valley(ims.LBFGS(memory=3)), (x, STEEP), backend="inductor")


@pytest.mark.parametrize(
    "name", ["LBFGS", "NewtonCG", *(pytest.param(n, marks=pytest.mark.nightly) for n in LONG)]
)
def test_compiled_steps(name, steps_compiled_by):
    steps_compiled_by("aot_eager" if name == "Backtracking" else "eager")
    x = torch.cat([X, 1 + drawn(36, 3, seed=1)])
    results = []
    for compiled in (False, True):
        leaf, w = x.clone().requires_grad_(), STEEP.clone().requires_grad_()
        sol = in_valley(SOLVERS[name](compile=compiled))(leaf, w)
        results.append((sol, torch.autograd.grad((sol.value**2).sum(), (leaf, w))))
    (expected, expected_gradients), (actual, gradients) = results
    assert torch.equal(actual.status, expected.status)
    assert torch.equal(actual.iterations, expected.iterations)
    assert actual.iterations.min() < actual.iterations.max()
    torch.testing.assert_close(actual.value, expected.value)
    torch.testing.assert_close(gradients, expected_gradients)
    # all lanes, then 16 and 8 places at the most
    assert 1 <= counters["stats"]["unique_graphs"] <= 3
