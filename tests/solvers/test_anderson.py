"""Anderson acceleration: weights, safeguard, regularization; and damped Picard iteration."""

import itertools

import pytest
import scipy.optimize
import torch
from torch.func import vmap

import implicit_solvers as ims
from implicit_solvers import Status
from tests.solvers.systems import (
    CONTRACTION,
    COSINE,
    F32,
    F64,
    KEPLER,
    System,
    check_bad_lanes,
    check_budget,
    check_derivative,
    check_float32,
    check_lanes,
    check_value,
    error,
    tensor,
)


def network(z, t):
    """A layer at equilibrium, of spectral radius below one."""
    n = len(z)
    i = torch.arange(n).to(z)
    W = torch.cos(3 * i.unsqueeze(1) + i**2 / 2) / n**0.5
    return torch.tanh(t[0] * W @ z + t[1] * torch.sin(i))


def linear(z, t):
    d = torch.linspace(0.1, 0.97, len(z)).to(z)
    return d * z + t[0] * torch.roll(z, 1) * 0.01 + t[1]


NETWORK = System("network", "fixed_point", network, [0.0] * 12, [1.1, 0.8])
LINEAR = System("linear", "fixed_point", linear, [0.0] * 8, [1.0, 1.0])
SYSTEMS = [KEPLER, CONTRACTION, COSINE, NETWORK, LINEAR]
SOLVERS = {
    "plain": ims.Anderson(),
    "regularized": ims.Anderson(regularization=1e-8),
    "damped": ims.Anderson(damping=0.6, window=3),
    "strict": ims.Anderson(growth=1.0),
    "picard": ims.FixedPointIteration(damping=0.9),
}
solvers = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


@solvers
@pytest.mark.parametrize("system", SYSTEMS, ids=str)
def test_value(solver, system):
    check_value(system, solver)


@solvers
@pytest.mark.parametrize("system", [KEPLER, NETWORK], ids=str)
def test_derivative(solver, system):
    check_derivative(system, solver)


@pytest.mark.filterwarnings("ignore::scipy.linalg.LinAlgWarning")
@pytest.mark.parametrize("system", [KEPLER, CONTRACTION, NETWORK], ids=str)
def test_fixed_points_of_scipys_anderson(system):
    theta = tensor(system.theta)

    def residual(x):
        return system.condition(torch.from_numpy(x), theta).numpy()

    exact = scipy.optimize.anderson(residual, tensor(system.start).numpy(), f_tol=1e-13)
    assert error(system.solve(ims.Anderson()).value, torch.from_numpy(exact)) < 1e-10


@solvers
@pytest.mark.parametrize("system", [NETWORK, COSINE], ids=str)
def test_float32(solver, system):
    check_float32(system, solver)


@solvers
@pytest.mark.parametrize("system", [NETWORK, COSINE], ids=str)
def test_lanes_equal_the_loop_over_lanes(solver, system):
    check_lanes(system, solver)


@solvers
def test_bad_lanes_stay_alone(solver):
    check_bad_lanes("fixed_point", solver)


@pytest.mark.parametrize("kind", [ims.Anderson, ims.FixedPointIteration])
def test_budget(kind):
    check_budget(CONTRACTION, kind, 3)


# -- weights -----------------------------------------------------------------------------------


@pytest.mark.parametrize("regularization", [0.0, 1e-3, 1e-1])
@pytest.mark.parametrize("damping", [1.0, 0.6])
def test_a_step_has_the_weights_of_the_normal_equations(regularization, damping):
    """Walker and Ni's formula with dense least squares, from the iterates of budgets."""
    theta = tensor(NETWORK.theta)
    solver = {"damping": damping, "regularization": regularization, "window": 3, "rtol": None}
    z = [NETWORK.solve(ims.Anderson(max_steps=k, **solver)).value for k in range(6)]
    f = [NETWORK.condition(v, theta) for v in z]
    for k in (1, 2, 3, 4):
        dz = torch.stack([b - a for a, b in itertools.pairwise(z[: k + 1])][-3:], 1)
        df = torch.stack([b - a for a, b in itertools.pairwise(f[: k + 1])][-3:], 1)
        gram = df.T @ df
        c = torch.linalg.inv(gram + regularization * torch.diag(gram.diagonal())) @ df.T @ f[k]
        expected = z[k] - damping * f[k] - (dz - damping * df) @ c
        assert error(z[k + 1], expected) < 1e-9, k


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
def test_differences_that_depend_on_each_other(dtype, scale):
    """All are multiples of one vector: the iteration is that of one unknown, the secant method."""
    u = torch.linspace(0.2, 1, 9, dtype=dtype)
    v, b = torch.linspace(-0.3, 0.5, 9, dtype=dtype), torch.cos(torch.arange(9, dtype=dtype))
    solver = ims.Anderson(rtol=0.0, atol=torch.finfo(dtype).eps ** 0.75 * scale)

    def g(z):
        return u * scale * torch.cos(v @ z / scale) + scale * b

    one = ims.fixed_point(
        lambda s: scale * ((v @ u) * torch.cos(s / scale) + v @ b), v @ g(0 * b), solver=solver
    )
    sol = ims.fixed_point(g, g(0 * b), solver=solver)
    assert bool(sol.converged) and bool(one.converged)
    assert int(sol.iterations) <= int(one.iterations) + 1 < 12
    eps = torch.finfo(dtype).eps
    assert error(sol.value, u * scale * torch.cos(one.value / scale) + scale * b) < eps**0.7 * scale


def test_regularization_shrinks_towards_the_plain_iteration():
    theta = tensor(NETWORK.theta)
    for weight, tolerance in ((1e12, 1e-9), (0.0, 1e-2)):
        options = {"regularization": weight, "rtol": None}
        z = NETWORK.solve(ims.Anderson(max_steps=3, **options)).value
        after = NETWORK.solve(ims.Anderson(max_steps=4, **options)).value
        plain = network(z, theta)
        assert (error(after, plain) < tolerance) == (weight > 0)


def test_regularization_bears_noise():
    """A map with noise of 1e-3: the regularized mean iterate stays near the fixed point."""
    exact = LINEAR.reference()
    generator = torch.Generator().manual_seed(0)

    def noisy(z, t):
        return linear(z, t) + 1e-3 * torch.randn(8, generator=generator, dtype=F64)

    def spread(regularization):
        generator.manual_seed(0)
        distances = []
        for steps in range(30, 40):
            solver = ims.Anderson(
                window=8, rtol=None, max_steps=steps, regularization=regularization
            )
            z = ims.fixed_point(
                noisy, torch.zeros(8, dtype=F64), (tensor([1.0, 1.0]),), solver=solver
            )
            distances.append(float((z.value - exact).abs().max()))
        return sum(distances) / len(distances)

    assert spread(1e-2) < 0.7 * spread(0.0)


# -- the safeguard -----------------------------------------------------------------------------


def kinked(z):
    """Two slopes: differences taken on one side mislead on the other."""
    return torch.where(z < 1, 0.9 * z + 0.2, 0.1 * z + 1)


def test_an_accelerated_step_that_is_worse_is_taken_back():
    """With ``growth`` below what the kink does; a plain step from the same point follows."""
    values = [
        ims.fixed_point(
            kinked, tensor([0.0]), solver=ims.Anderson(rtol=None, max_steps=k, growth=0.5)
        ).value
        for k in range(5)
    ]
    back = [torch.equal(a, b) for a, b in itertools.pairwise(values)]
    assert back[:2] == [False, True]
    assert error(values[3], kinked(values[2])) < 1e-14
    sol = ims.fixed_point(kinked, tensor([0.0]), solver=ims.Anderson())
    assert error(sol.value, tensor([10 / 9])) < 1e-10


def test_nan_in_an_accelerated_step_is_taken_back():
    """The extrapolation leaves the domain of the square root; the plain iteration stays inside."""

    def g(z):
        return torch.where(z > 2.5, torch.nan, torch.where(z < 0.5, 0.9 * z + 0.3, 0.5 * z + 0.5))

    values = [
        ims.fixed_point(g, tensor([0.0]), solver=ims.Anderson(rtol=None, max_steps=k)).value
        for k in range(4)
    ]
    # 0, then 0.3 by a plain step; the accelerated one, to 3, is taken back
    assert [float(v) for v in values[:3]] == pytest.approx([0.0, 0.3, 0.3])
    assert error(values[3], g(values[2])) < 1e-14
    sol = ims.fixed_point(g, tensor([0.0]), solver=ims.Anderson())
    assert error(sol.value, tensor([1.0])) < 1e-10
    # without the safeguard's memory of one step, nothing but NaN
    lost = ims.fixed_point(lambda z: z * torch.nan, tensor([1.0]), solver=ims.Anderson(),
                           on_failure="mask")  # fmt: skip
    assert int(lost.status) == Status.NONFINITE


def test_lanes_restart_for_themselves():
    """A lane with a kink beside one without: the counts are those of each alone."""
    kinks = tensor([1.0, 100.0])

    def g(z, kink):
        return torch.where(z < kink, 0.9 * z + 0.2, 0.1 * z + 1)

    def solve(kink):
        return ims.fixed_point(g, tensor([0.0]), (kink,), solver=ims.Anderson(growth=0.5))

    batch = vmap(solve)(kinks)
    alone = [solve(k) for k in kinks]
    assert batch.iterations.tolist() == [int(s.iterations) for s in alone]
    # a straight line is solved by the first accelerated step
    assert int(batch.iterations[1]) == 2 < int(batch.iterations[0])
    assert error(batch.value[:, 0], tensor([10 / 9, 2.0])) < 1e-9


def test_a_map_without_a_fixed_point_fails_honestly():
    for solver in (ims.Anderson(max_steps=60), ims.Anderson(max_steps=60, regularization=1e-3)):
        sol = ims.fixed_point(
            lambda z: z + 1 + 0.1 * torch.cos(z), tensor([0.0, 1.0]), solver=solver,
            on_failure="mask",
        )  # fmt: skip
        assert int(sol.status) == Status.MAX_STEPS and float(sol.residual) >= 0.9 - 1e-12


@pytest.mark.parametrize("weight", [-1.0, float("nan")])
def test_negative_regularization_is_refused(weight):
    with pytest.raises(ValueError, match="regularization=.*>= 0"):
        ims.Anderson(regularization=weight)


def test_regularization_in_float32_with_a_long_window():
    """Nearly dependent differences, whose weights rounding would choose."""
    sol = LINEAR.solve(ims.Anderson(window=8, regularization=1e-6), F32)
    assert bool(sol.converged) and error(sol.value.double(), LINEAR.reference()) < 1e-3
