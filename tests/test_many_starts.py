"""The best of many starts: which one it is, its derivatives, and that the others leave no trace."""

import math

import pytest
import torch
from torch.func import grad, jacfwd, jacrev, vmap

import implicit_solvers as ims
from implicit_solvers import Status
from implicit_solvers.compiling import COMPILES
from tests.cases import newton_oracle

F32, F64 = torch.float32, torch.float64
NAN = math.nan
STARTS = torch.tensor([1.5, 0.3, NAN, -1.5, -0.2], dtype=F64)
TILTS = torch.tensor([-0.7, -0.1, 0.3, 0.9], dtype=F64)


def tilted(z, a):
    """Two minima near 1 and -1, the lower one where ``a z`` is negative, and a hill between."""
    return (z**2 - 1) ** 2 + a * z


def lower(a):
    """Return the lowest minimum, by Newton's method from near it."""
    slope = lambda z, a: grad(lambda z: tilted(z[0], a[0]))(z)
    return newton_oracle(slope, -a.detach().sign(), a)


def best(a, starts=STARTS, **options):
    return ims.minimize(tilted, ims.multistart(starts.to(a.dtype)), (a,), **options)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("tilt", TILTS.tolist())
def test_the_lowest_minimum_and_its_derivatives(tilt, dtype):
    a = torch.tensor([tilt], dtype=dtype)
    solve = lambda a: best(a[0]).value.reshape(1)
    # the solver's tolerance, and its change of the derivatives
    bound = {"rtol": 0, "atol": 1e-9 if dtype == F64 else 2e-4}
    torch.testing.assert_close(solve(a), lower(a), **bound)
    torch.testing.assert_close(jacrev(solve)(a), jacrev(lower)(a), **bound)
    torch.testing.assert_close(jacfwd(jacrev(solve))(a), jacfwd(jacrev(lower))(a), **bound)


@pytest.mark.parametrize("in_dims", [0, None])
def test_lanes_choose_each_for_itself(in_dims):
    alone = [best(a) for a in TILTS]
    starts = STARTS.unsqueeze(-1).expand(5, 4)
    native = best(TILTS, starts, batch_dims=1, in_dims=in_dims)
    for batch in (vmap(best)(TILTS), native):
        assert batch.converged.all() and batch.value.sign().tolist() == [1, 1, -1, -1]
        assert batch.iterations.tolist() == [int(one.iterations) for one in alone]
        torch.testing.assert_close(batch.value, torch.stack([one.value for one in alone]))
    # starts of each lane, and two levels of lanes
    own = vmap(best, in_dims=(0, 1))(TILTS, starts)
    nested = vmap(lambda s: vmap(lambda a: best(a, s))(TILTS))(torch.stack([STARTS, -STARTS]))
    torch.testing.assert_close(own.value, native.value)
    torch.testing.assert_close(nested.value, native.value.expand(2, 4))


def test_of_equal_ends_the_first_start_counts():
    zero = torch.tensor(0.0, dtype=F64)
    ends = best(zero).value, best(zero, STARTS.flip(0)).value
    # (to the tolerance of a solve)
    assert [float(z) for z in ends] == pytest.approx([1, -1], rel=1e-11)
    square = lambda z: z**2 - 4
    for starts, root in (([NAN, 3.0, -3.0], 2.0), ([-1.0, 3.0], -2.0)):
        sol = ims.root(square, ims.multistart(torch.tensor(starts, dtype=F64)))
        assert float(sol.value) == pytest.approx(root, abs=1e-10) and bool(sol.converged)


def test_equal_ends_may_differ_by_rounding():
    """Himmelblau's four minima are zero, up to rounding, and so are those raised by a third."""

    def hills(z, a):
        return (z[0] ** 2 + z[1] - 11) ** 2 + (z[0] + z[1] ** 2 - 7) ** 2 + a

    starts = torch.tensor([[3.0, 3.0], [-3.0, 3.0], [-3.0, -3.0], [3.0, -2.0]], dtype=F64)
    for a in torch.tensor([0.0, 1 / 3], dtype=F64):
        for order in ([0, 1, 2, 3], [1, 2, 3, 0], [2, 3, 0, 1], [3, 0, 1, 2]):
            sol = ims.minimize(hills, ims.multistart(starts[order]), (a,))
            torch.testing.assert_close(sol.value, ims.minimize(hills, starts[order[0]], (a,)).value)


def test_what_failed_is_not_chosen_however_low():
    starts = torch.tensor([-2.0, 0.7, -4.0], dtype=F64)
    for solver in (ims.NewtonCG(max_steps=30), ims.LBFGS(max_steps=30)):
        cubic = lambda z: z**3 - z
        sol = ims.minimize(cubic, ims.multistart(starts), solver=solver)
        assert float(sol.value) == pytest.approx(3**-0.5, abs=1e-9)


def test_where_no_start_converges_the_problem_fails_alone():
    b = torch.tensor([4.0, -4.0, NAN, 9.0], dtype=F64)
    w = torch.tensor(2.0, dtype=F64, requires_grad=True)

    def solve(b, on_failure="mask"):
        options = {"on_failure": on_failure}
        return ims.root(lambda z: z**2 - b * w, ims.multistart(STARTS), **options)

    sol = vmap(solve)(b)
    assert sol.converged.tolist() == [True, False, False, True]
    assert int(sol.status[2]) == Status.NONFINITE
    # of the failures, that with the smallest residual
    assert float(sol.residual[1].detach()) == pytest.approx(8.0, abs=1e-3)
    (ours,) = torch.autograd.grad(sol.value.sum(), w)
    assert float(ours) == pytest.approx(math.sqrt(4 / 8) + math.sqrt(9 / 8), rel=1e-10)
    with pytest.raises(ims.ConvergenceError, match="failed"):
        solve(b[1], "raise")
    with pytest.warns(ims.ConvergenceWarning):
        solve(b[1], "warn")


def test_a_fit_of_a_tree_with_aux():
    """A sine has a minimum in each frequency; the lowest has the one that made the data."""
    t = torch.linspace(0, 3, 20, dtype=F64)
    y = torch.sin(2.5 * t + 0.3)
    starts = {"w": torch.linspace(0.5, 6, 12, dtype=F64), "p": torch.zeros(12, dtype=F64)}

    def residuals(z, y):
        return torch.sin(z["w"] * t + z["p"]) - y, 2 * z["w"]

    with pytest.raises(AssertionError):
        one = {name: leaf[-1] for name, leaf in starts.items()}
        far = ims.least_squares(residuals, one, (y,), has_aux=True, on_failure="mask")
        assert float(far.value["w"]) == pytest.approx(2.5)
    many = ims.multistart(starts)
    for options in ({}, {"loss": "cauchy", "f_scale": 0.1}):
        sol = ims.least_squares(residuals, many, (y,), has_aux=True, **options)
        assert float(sol.value["w"]) == pytest.approx(2.5) and float(sol.aux) == pytest.approx(5)


def test_a_budget_ends_at_the_lowest():
    sol = best(TILTS[0], solver=ims.LBFGS(rtol=None, max_steps=4))
    assert int(sol.status) == Status.BUDGET and float(sol.value) > 0.9
    sol = ims.fixed_point(
        lambda z: 0.5 * z,
        ims.multistart(torch.tensor([3.0, 1.0, 2.0])),
        solver=ims.FixedPointIteration(rtol=None, max_steps=1),
    )
    assert float(sol.value) == 0.5


@pytest.mark.skipif(not COMPILES, reason="torch is too old")
def test_in_one_graph():
    def solve(a):
        starts = STARTS.unsqueeze(-1).expand(5, 4)
        sol = best(a, starts, batch_dims=1, in_dims=0, on_failure="mask")
        return sol.value, sol.status

    a = TILTS.clone().requires_grad_()
    compiled = torch.compile(solve, fullgraph=True, backend="eager")
    (value, status), (expected, _) = compiled(a), solve(a)
    assert not status.any()
    torch.testing.assert_close(value, expected)
    ours, exact = (torch.autograd.grad(v.sum(), a)[0] for v in (value, expected))
    torch.testing.assert_close(ours, exact)
