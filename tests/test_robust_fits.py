"""Robust fits: SciPy's objective, its minima, and derivatives of the objective itself."""

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from torch.func import grad, jacfwd, jacrev, vmap

import implicit_solvers as ims
from implicit_solvers import Status
from implicit_solvers.robust_loss import robust
from tests.cases import newton_oracle

F32, F64 = torch.float32, torch.float64
T = torch.linspace(0, 4, 30, dtype=F64)
START, SCALE = torch.tensor([1.0, 0.5, 0.0], dtype=F64), torch.tensor(0.1, dtype=F64)


def observations():
    y = 2 * torch.exp(-0.8 * T) + 0.5 + 0.05 * torch.sin(37 * T)
    y[[5, 17, 25]] += torch.tensor([3.0, -2.0, 1.0])
    return y


Y = observations()
# rho, as SciPy defines it
RHO = {
    "soft_l1": lambda s: 2 * (torch.sqrt(1 + s) - 1),
    "huber": lambda s: torch.where(s <= 1, s, 2 * torch.where(s <= 1, 1.0, s).sqrt() - 1),
    "cauchy": torch.log1p,
    "arctan": torch.atan,
}
losses = pytest.mark.parametrize("loss", RHO)


def residuals(b, y):
    return b[..., :1] * torch.exp(-b[..., 1:2] * T.to(b)) + b[..., 2:] - y


def fit(y, scale, loss, **options):
    return ims.least_squares(residuals, START.to(y), (y,), loss=loss, f_scale=scale, **options)


def slope(loss):
    """Return the gradient of the objective, as it is defined."""

    def objective(b, y, scale):
        return 0.5 * scale**2 * RHO[loss]((residuals(b, y) / scale) ** 2).sum()

    return grad(objective)


def one(rho, scale=1.0):
    """Return what becomes of one residual."""
    return lambda r: robust(lambda r: r, rho, False)(r, scale)


@pytest.mark.parametrize("loss", ["linear", *RHO])
def test_values_and_minima_are_those_of_scipy(loss):
    f = lambda b: residuals(torch.from_numpy(b.copy()), Y).numpy()
    exact = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15}
    # arctan has many minima: from where ours is
    start = fit(Y, 0.1, loss).value
    scipys = scipy.optimize.least_squares(f, start.numpy(), loss=loss, f_scale=0.1, **exact)
    rest = residuals(start, Y)
    rest = rest if loss == "linear" else robust(residuals, loss, False)(start, Y, 0.1)
    assert float(0.5 * (rest**2).sum()) == pytest.approx(scipys.cost, rel=1e-13)
    # SciPy goes by an objective that is flat to sqrt(eps)
    assert np.abs(start.numpy() - scipys.x).max() < 1e-7
    single = fit(Y.float(), 0.1, loss)
    assert float((single.value - start).abs().max()) < 5 * float(single.error) < 1e-3


@losses
def test_bounds_and_many_starts_go_with_a_loss(loss):
    """The rate is held to its bound, and the lowest minimum is found from any of the starts."""
    lo, hi = torch.tensor([0.0, 0.0, 0.0], dtype=F64), torch.tensor([9.0, 0.6, 9.0], dtype=F64)
    starts = START + torch.tensor([[0.0], [0.3], [-0.2]], dtype=F64)
    sol = ims.least_squares(
        residuals, ims.multistart(starts), (Y,), loss=loss, f_scale=0.1, bounds=(lo, hi)
    )
    f = lambda b: residuals(torch.from_numpy(b.copy()), Y).numpy()
    exact = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15, "bounds": (lo.numpy(), hi.numpy())}
    within = sol.value.clamp(lo + 1e-3, hi - 1e-3).numpy()
    scipys = scipy.optimize.least_squares(f, within, loss=loss, f_scale=0.1, **exact)
    assert float(sol.value[1]) == 0.6 and not bool(sol.degenerate)
    assert np.abs(sol.value.numpy() - scipys.x).max() < 1e-6


@losses
def test_derivatives_are_those_of_the_objective(loss):
    """In the data, in the scale, and mixed, to the second order."""

    def moved(p):
        return Y + p[0] * torch.cos(T), SCALE * (1 + p[1])

    def oracle(p):
        return newton_oracle(lambda b, p: slope(loss)(b, *moved(p)), start, p)

    p, start = torch.zeros(2, dtype=F64), fit(Y, 0.1, loss).value
    solve = lambda p: fit(*moved(p), loss).value
    for mode in (jacrev, jacfwd):
        # the inverse of the Hessian times rounding
        torch.testing.assert_close(mode(solve)(p), mode(oracle)(p), rtol=1e-8, atol=1e-10)
    for mode in (lambda f: jacfwd(jacrev(f)), lambda f: jacrev(jacrev(f))):
        torch.testing.assert_close(mode(solve)(p), mode(oracle)(p), rtol=1e-7, atol=1e-8)


# the first coefficients of sqrt(rho(s) / s) in s
SERIES = {"soft_l1": (1, -1 / 8), "huber": (1, 0), "cauchy": (1, -1 / 4), "arctan": (1, 0)}


@pytest.mark.parametrize("form", ["named", "function"])
@losses
def test_a_residual_of_zero_is_transformed_to_the_third_derivative(loss, form):
    rho = loss if form == "named" else RHO[loss]
    for dtype in (F64, F32):
        zero, f = torch.zeros((), dtype=dtype), one(rho)
        found = []
        for _ in range(4):
            found.append(float(f(zero)))
            f = grad(f)
        first, second = SERIES[loss]
        expected = torch.tensor([0, first, 0, 6 * second], dtype=F64)
        # quadrature is exact to rounding
        torch.testing.assert_close(torch.tensor(found, dtype=F64), expected, rtol=2e-6, atol=1e-6)


@losses
def test_pieces_meet_and_nothing_overflows(loss):
    for near in (math.sqrt(0.1), 10.0):
        x = near * torch.tensor([1 - 1e-9, 1 + 1e-9], dtype=F64)
        f = one(loss)
        for order, bound in enumerate((1e-8, 1e-8, 1e-7, 1e-6)):
            left, right = vmap(f)(x).tolist()
            assert abs(left - right) < bound, (near, order)
            f = grad(f)
    for size in (1e12, 1e20, 1e30):
        r = torch.tensor([size, -size], dtype=F32)
        value, slopes = one(loss)(r), vmap(grad(one(loss)))(r)
        expected = RHO[loss](r.double() ** 2).sqrt() * r.sign()
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)
        assert bool((slopes >= 0).all())


@losses
def test_lanes_have_scales_of_their_own(loss):
    scales = torch.tensor([0.1, 0.2, -1.0, 0.05], dtype=F64)
    mask = {"on_failure": "mask"}
    by_vmap = vmap(lambda scale: fit(Y, scale, loss, **mask))(scales)
    starts, ys = START.expand(4, 3), Y.expand(4, 30)
    lanes = {"batch_dims": 1, "in_dims": (0,), **mask}
    native = ims.least_squares(residuals, starts, (ys,), loss=loss, f_scale=scales, **lanes)
    for sol in (by_vmap, native):
        codes = [Status.NONFINITE if i == 2 else Status.CONVERGED for i in range(4)]
        assert sol.status.tolist() == codes
        for i in (0, 1, 3):
            torch.testing.assert_close(sol.value[i], fit(Y, scales[i], loss).value)


def test_a_function_may_capture_what_is_learned():
    def value(a):
        return fit(Y, 0.1, lambda s: torch.log1p(a * s) / a + 3).value.sum()

    a = torch.tensor(0.7, dtype=F64, requires_grad=True)
    (ours,) = torch.autograd.grad(value(a), a)
    h = 1e-4  # the error of the difference is about h^2
    difference = (value(a.detach() + h) - value(a.detach() - h)) / (2 * h)
    assert float(ours) == pytest.approx(float(difference), rel=1e-5)


def test_a_complex_residual_is_one_observation():
    """Turning its argument changes nothing; parts counted on their own would."""
    A = torch.polar(1 + 0.3 * torch.cos(3 * T), 7 * T).reshape(15, 2)
    y = A @ torch.tensor([1 + 0.5j, 0.3 - 1j], dtype=A.dtype)
    y = y + 0.05 * torch.polar(T[:15].cos(), 5 * T[:15])
    y[3] += 5j
    start = torch.zeros(2, dtype=A.dtype)
    turns = torch.polar(torch.ones(3, dtype=F64), torch.tensor([0.0, 0.7, 2.0], dtype=F64))
    fits = [
        ims.least_squares(lambda z, u=u: u * (A @ z - y), start, loss="cauchy", f_scale=0.05)
        for u in turns
    ]
    for other in fits[1:]:
        torch.testing.assert_close(other.value, fits[0].value, rtol=1e-10, atol=1e-10)


def test_gauss_newton_is_right_where_residuals_vanish():
    exact = 2 * torch.exp(-0.8 * T) + 0.5
    full, half = (
        jacrev(lambda y, g=g: fit(y, 0.1, "cauchy", gauss_newton=g).value)(exact)
        for g in (False, True)
    )
    torch.testing.assert_close(half, full, rtol=1e-6, atol=1e-8)


WELSCH = lambda s: -torch.expm1(-s)
TUKEY = lambda s: torch.where(s < 1, 1 - (1 - s) ** 3, 1.0) / 3


@pytest.mark.parametrize("exponent", [-6, -3, -2, -1, 0, 2])
@pytest.mark.parametrize("rho", [*RHO.values(), WELSCH, TUKEY], ids=[*RHO, "welsch", "tukey"])
def test_a_function_may_have_a_scale_of_its_own(rho, exponent):
    """``c^2 rho(s / c^2)`` is the loss of the scale ``c``, also where that is small."""
    c = 10.0**exponent
    r = torch.cat([c * torch.logspace(-9, 3, 60, dtype=F64), torch.zeros(1, dtype=F64)])
    own, scaled = one(lambda s: c**2 * rho(s / c**2)), one(rho, c)
    torch.testing.assert_close(own(r), scaled(r), rtol=1e-9, atol=0)
    for slope in (grad, lambda f: grad(grad(f))):
        found, wanted = vmap(slope(own))(r), vmap(slope(scaled))(r)
        # second derivatives are of the size of a first one over the scale
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9 * float(wanted.abs().max()))
    squares = (r / c) ** 2
    exact = c * rho(squares).sqrt()
    torch.testing.assert_close(own(r)[20:-1], exact[20:-1], rtol=1e-6, atol=0)
