"""Iterations of a map: Picard's, Anderson's, Aitken's, Steffensen's, and their own formulas."""

import itertools

import pytest
import torch
from torch.func import vmap

import implicit_solvers as ims
from tests.solvers import systems
from tests.solvers.systems import AFFINE, CONTRACTION, F32, F64, NETWORK, error, network, tensor

picard = ims.FixedPointIteration


def iterates(solver, g, start, count, **options):
    """Return the start and the first iterates, from budgets; one taken back comes again."""
    budget = lambda k: solver(rtol=None, max_steps=k, **options)
    return [ims.fixed_point(g, start, solver=budget(k)).value for k in range(count + 1)]


@pytest.mark.parametrize(
    "solver, system, damping",
    [(ims.Anderson(window=w), CONTRACTION, 1.0) for w in (1, 2, 5, 20)]
    + [(ims.Aitken(), system, 0.7) for system in (systems.COSINE, systems.FALLING, CONTRACTION)],
)
def test_acceleration_is_faster_than_picard(solver, system, damping):
    picard = system.solve(ims.FixedPointIteration(damping=damping))
    assert int(system.solve(solver).iterations) < int(picard.iterations)


def test_damping_tames_a_map_that_oscillates():
    g, z0 = lambda z: -1.5 * z + 5.0, tensor([0.0])
    with pytest.raises(ims.ConvergenceError):
        ims.fixed_point(g, z0, solver=ims.FixedPointIteration())
    sol = ims.fixed_point(g, z0, solver=ims.FixedPointIteration(damping=0.5))
    assert error(sol.value, tensor([2.0])) < 1e-10


def bend(z, kind):
    """A steady rate; one that becomes quadratic; a way to where nothing is defined; a way out."""
    late, lost = torch.where(z > 0.5, 0.9 * z, z**2), 0.9 * z - 0.02 + 0 * torch.sqrt(z)
    out = torch.where(z > 0.3, 0.9 * z, 2 * z)
    return torch.where(kind < 2, torch.where(kind < 1, 0.9 * z + 0.1, late), lost + kind // 3 * out)


@pytest.mark.parametrize("kinds", [[0], [1], [2], [3], [0, 1], [0, 2], [0, 1, 2, 3]], ids=str)
def test_lanes_end_where_they_would_if_no_step_were_foreseen(kinds):
    kind = tensor(kinds).unsqueeze(-1)
    options = {"batch_dims": 1, "in_dims": (0,), "on_failure": "mask"}
    seen, each = (
        ims.fixed_point(bend, 0 * kind + 10, (kind,), solver=picard(check_every=k), **options)
        for k in (1, 2)  # asked now and then, the loop judges each step
    )
    assert torch.equal(seen.status, each.status) and torch.equal(seen.iterations, each.iterations)
    torch.testing.assert_close(seen.value[each.converged], each.value[each.converged])


@pytest.mark.parametrize("unit", [2.0**-100, 2.0**100])
def test_squares_that_vanish_in_float32_end_no_lane(unit):
    x = torch.linspace(0.1, 0.9, 1100 * 64).reshape(1100, 64)  # more entries than MANY_ENTRIES
    own, one = (
        ims.fixed_point(
            lambda z, x, c=c: c * (0.5 * torch.cos(z / c) + x),
            c * x,
            (x,),
            solver=ims.FixedPointIteration(),
            batch_dims=1,
            in_dims=0,
        )
        for c in (unit, 1.0)
    )
    assert own.converged.all() and (own.iterations - one.iterations).abs().max() <= 1
    # a tolerance of 6.4e-6, and contraction by one half
    torch.testing.assert_close(own.value / unit, one.value, rtol=2e-5, atol=0)


# -- Anderson's weights --------------------------------------------------------------------------


@pytest.mark.parametrize("regularization", [0.0, 1e-3, 1e-1])
@pytest.mark.parametrize("damping", [1.0, 0.6])
def test_a_step_has_the_weights_of_the_normal_equations(regularization, damping):
    """Walker and Ni's formula with dense least squares, from the iterates of budgets."""
    theta = tensor(NETWORK.theta)
    options = {"damping": damping, "regularization": regularization, "window": 3}
    g = lambda z: network(z, theta)
    z = iterates(ims.Anderson, g, tensor(NETWORK.start), 5, **options)
    f = [v - g(v) for v in z]
    for k in (1, 2, 3, 4):
        dz = torch.stack([b - a for a, b in itertools.pairwise(z[: k + 1])][-3:], 1)
        df = torch.stack([b - a for a, b in itertools.pairwise(f[: k + 1])][-3:], 1)
        gram = df.T @ df
        c = torch.linalg.inv(gram + regularization * torch.diag(gram.diagonal())) @ df.T @ f[k]
        expected = z[k] - damping * f[k] - (dz - damping * df) @ c
        assert error(z[k + 1], expected) < 1e-9, k


def test_a_linear_equation_takes_n_plus_two_steps():
    """With a full window and an expansion, not a contraction."""
    A = tensor([[0.5, 2.0, 0.0], [0.1, -1.5, 0.3], [0.0, 0.7, 0.2]])
    b = tensor([1.0, -2.0, 0.5])
    sol = ims.fixed_point(lambda z: A @ z + b, torch.zeros(3, dtype=F64), solver=ims.Anderson())
    assert error(sol.value, torch.linalg.inv(torch.eye(3, dtype=F64) - A) @ b) < 1e-9
    assert int(sol.iterations) <= 6


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
def test_differences_that_depend_on_each_other(dtype, scale):
    """All are multiples of one vector: the iteration is that of one unknown, the secant method."""
    u = torch.linspace(0.2, 1, 9, dtype=dtype)
    v, b = torch.linspace(-0.3, 0.5, 9, dtype=dtype), torch.cos(torch.arange(9, dtype=dtype))
    eps = torch.finfo(dtype).eps
    solver = ims.Anderson(rtol=0.0, atol=eps**0.75 * scale)

    def g(z):
        return u * scale * torch.cos(v @ z / scale) + scale * b

    one = ims.fixed_point(
        lambda s: scale * ((v @ u) * torch.cos(s / scale) + v @ b), v @ g(0 * b), solver=solver
    )
    sol = ims.fixed_point(g, g(0 * b), solver=solver)
    assert bool(sol.converged) and bool(one.converged)
    assert int(sol.iterations) <= int(one.iterations) + 1 < 12
    exact = u * scale * torch.cos(one.value / scale) + scale * b
    assert error(sol.value, exact) < eps**0.7 * scale


def test_regularization_shrinks_towards_the_plain_iteration():
    theta = tensor(NETWORK.theta)
    g = lambda z: network(z, theta)
    for weight, tolerance in ((1e12, 1e-9), (0.0, 1e-2)):
        *_, z, after = iterates(ims.Anderson, g, tensor(NETWORK.start), 4, regularization=weight)
        assert (error(after, g(z)) < tolerance) == (weight > 0)


def test_regularization_bears_noise():
    """A map with noise of 1e-3: the regularized mean iterate stays near the fixed point."""
    generator, theta = torch.Generator(), tensor(AFFINE.theta)

    def noisy(z):
        return systems.affine(z, theta) + 1e-3 * torch.randn(8, generator=generator, dtype=F64)

    def spread(weight):
        generator.manual_seed(0)
        distances = []
        for k in range(30, 40):
            solver = ims.Anderson(window=8, rtol=None, max_steps=k, regularization=weight)
            z = ims.fixed_point(noisy, torch.zeros(8, dtype=F64), solver=solver).value
            distances.append(float((z - AFFINE.solution).abs().max()))
        return sum(distances) / len(distances)

    assert spread(1e-2) < 0.7 * spread(0.0)


def test_regularization_in_float32_with_a_long_window():
    """Nearly dependent differences, whose weights rounding would choose."""
    sol = AFFINE.solve(ims.Anderson(window=8, regularization=1e-6), F32)
    # the slopes are up to 0.97: the tolerance of 6e-6, 30 times, and the size of the iterate
    assert bool(sol.converged) and error(sol.value, AFFINE.solution) < 1e-3


# -- the safeguard -------------------------------------------------------------------------------


def kinked(z, kink=1.0):
    """Two slopes: differences taken on one side mislead on the other."""
    return torch.where(z < kink, 0.9 * z + 0.2, 0.1 * z + 1)


@pytest.mark.parametrize("solver", [ims.Anderson, ims.Aitken])
def test_an_accelerated_step_that_is_worse_is_taken_back(solver):
    """With ``growth`` below what the kink does; a plain step from the same point follows."""
    values = iterates(solver, kinked, tensor([0.0]), 4, growth=0.5)
    back = [torch.equal(a, b) for a, b in itertools.pairwise(values)]
    assert any(back) and not back[0]
    at = back.index(True)
    assert error(values[at + 2], kinked(values[at + 1])) < 1e-14
    sol = ims.fixed_point(kinked, tensor([0.0]), solver=solver())
    assert error(sol.value, tensor([10 / 9])) < 1e-10


def test_nan_in_an_accelerated_step_is_taken_back():
    """The extrapolation leaves the domain of the map; the plain iteration stays inside."""

    def g(z):
        return torch.where(z > 2.5, torch.nan, torch.where(z < 0.5, 0.9 * z + 0.3, 0.5 * z + 0.5))

    # 0, then 0.3 by a plain step; the accelerated one, to 3, is taken back
    solve = lambda k: ims.fixed_point(
        g, tensor([0.0]), solver=ims.Anderson(rtol=None, max_steps=k)
    )  # fmt: skip
    values = systems.accepted(solve, 2)
    assert [float(v) for v in values[:2]] == pytest.approx([0.0, 0.3])
    assert error(values[2], g(values[1])) < 1e-14
    for solver in (ims.Anderson(), ims.Aitken()):
        sol = ims.fixed_point(g, tensor([0.0]), solver=solver)
        assert error(sol.value, tensor([1.0])) < 1e-10


def test_lanes_restart_for_themselves():
    """A lane with a kink beside one without: the counts are those of each alone."""
    kinks = tensor([1.0, 100.0])

    def solve(kink):
        return ims.fixed_point(kinked, tensor([0.0]), (kink,), solver=ims.Anderson(growth=0.5))

    batch = vmap(solve)(kinks)
    assert batch.iterations.tolist() == [int(solve(k).iterations) for k in kinks]
    # a straight line is solved by the first accelerated step; one that is short shows it
    assert int(batch.iterations[1]) == 3 < int(batch.iterations[0])
    assert error(batch.value[:, 0], tensor([10 / 9, 2.0])) < 1e-9


# -- one unknown ---------------------------------------------------------------------------------


def test_a_step_is_aitkens_formula():
    """``z - (g(z) - z)^2 / (g(g(z)) - 2 g(z) + z)``, the step of SciPy's ``fixed_point`` too."""
    g, z = lambda z: 0.9 * torch.cos(z), tensor(0.7)
    for ours in iterates(ims.Steffensen, g, z, 3, reach=1e3)[1:]:
        z = z - (g(z) - z) ** 2 / (g(g(z)) - 2 * g(z) + z)
        # the increment is at least sqrt(eps), where the textbook's loses its digits
        assert error(ours, z) < 1e-12


def test_aitkens_second_step_is_delta_squared():
    """Of two iterates and their images; then it is the secant method on ``z - g(z)``."""
    g, z0 = lambda z: torch.exp(-z), tensor(0.3)
    z1 = g(z0)
    z2 = g(z1)
    expected = z0 - (z1 - z0) ** 2 / (z2 - 2 * z1 + z0)
    f = lambda z: z - g(z)
    third = expected - f(expected) * (expected - z1) / (f(expected) - f(z1))
    ours = iterates(ims.Aitken, g, z0, 3)
    assert error(ours[2], expected) < 1e-14 and error(ours[3], third) < 1e-13


def test_one_unknown_of_any_shape():
    z0 = torch.zeros(1, 1, dtype=F64)
    sol = ims.root(lambda z: z - 1, z0, solver=ims.Steffensen())
    assert error(sol.value, torch.ones(1, 1, dtype=F64)) < 1e-12


@pytest.mark.parametrize("unit", [1e-12, 1e-10, 1e-8, 1e-4, 1.0])
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize(
    "solver",
    [ims.Newton(), ims.NewtonDogleg(), ims.Broyden(), ims.LevenbergMarquardt(), ims.Chord()],
    ids=lambda solver: type(solver).__name__,
)
def test_rounding_of_a_map_that_hardly_moves_is_in_the_error(solver, dtype, unit):
    """``z - g(z)`` is the difference of numbers as large as ``z``."""
    unit = unit if dtype == F64 else unit**0.4
    start = tensor(1.0, dtype)
    sol = ims.fixed_point(
        lambda z: z - 0.1 * unit * (z**3 - 2), start, solver=solver, on_failure="mask"
    )
    off, eps = abs(float(sol.value) - 2 ** (1 / 3)), torch.finfo(dtype).eps
    assert off <= 4 * max(float(sol.error), eps)
    assert not sol.converged or float(sol.error) <= max(10 * eps / unit, 2 * eps**0.75)
