"""Projections against cvxpy, other closed forms, differences, and the laws of projections."""

import warnings
from functools import partial

import cvxpy as cp
import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch.func import grad, hessian, jacfwd, jacrev, vmap

import implicit_solvers as ims
from implicit_solvers.problems.projections import (
    entmax,
    entropic_transport,
    group_soft_threshold,
    project_box,
    project_l1_ball,
    project_l2_ball,
    project_psd_cone,
    project_second_order_cone,
    project_simplex,
    singular_value_threshold,
    sinkhorn,
    soft_threshold,
    sparsemax,
)
from tests.cases import check_gradients

# projections of v onto sets of the size r, and the sets for cvxpy
SETS = {
    "simplex": (project_simplex, lambda x, r: [x >= 0, cp.sum(x) == r]),
    "box": (lambda v, r: project_box(v, -r / 3, r / 2), lambda x, r: [x >= -r / 3, x <= r / 2]),
    "l1_ball": (project_l1_ball, lambda x, r: [cp.norm1(x) <= r]),
    "l2_ball": (project_l2_ball, lambda x, r: [cp.norm2(x) <= r]),
    "second_order_cone": (
        lambda v, _: project_second_order_cone(v),
        lambda x, _: [cp.norm2(x[1:]) <= x[0]] if x.size > 1 else [x >= 0],
    ),
    "psd_cone": (lambda v, _: project_psd_cone(v), lambda x, _: [x >> 0]),
}
# proximal operators of what is to be small, too
THRESHOLDS = {
    "soft": (soft_threshold, cp.norm1),
    "group": (group_soft_threshold, cp.norm2),
    "singular": (singular_value_threshold, cp.normNuc),
}
MAPS = {
    **{name: lambda v, map_=row[0]: map_(v, 0.8) for name, row in THRESHOLDS.items()},
    **{name: lambda v, project=row[0]: project(v, 1.5) for name, row in SETS.items()},
    "entmax": entmax,
    "sinkhorn": sinkhorn,
}
SUMS = torch.tensor([0.5, 1.0, 1.5, 1.0]).double()


def drawn(name, lanes, seed=0, size=4):
    """Draw what to project: symmetric matrices for maps of matrices, vectors otherwise."""
    matrices = name.startswith(("psd_cone", "sinkhorn", "singular"))
    generator = torch.Generator().manual_seed(seed)
    shape = (*lanes, size, size) if matrices else (*lanes, size)
    v = 1.5 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return (v + v.mT) / 2 if matrices else v


def nearest(name):
    return MAPS[name], lambda x, v: -cp.sum_squares(x - v), lambda x: SETS[name][1](x, 1.5)


def threshold(name):
    norm = THRESHOLDS[name][1]
    return MAPS[name], lambda x, v: -0.5 * cp.sum_squares(x - v) - 0.8 * norm(x), lambda x: []


def tsallis(alpha):
    def value(p, s):
        return s @ p + (cp.sum(p) - cp.sum(cp.power(p, alpha))) / (alpha * (alpha - 1))

    return lambda s: entmax(s, alpha), value, lambda p: [cp.sum(p) == 1, p >= 0]


def transport(temperature):
    def value(P, S):
        return cp.sum(cp.multiply(S, P)) + temperature * cp.sum(cp.entr(P))

    map_ = lambda S: sinkhorn(S, SUMS, torch.ones(4).double(), temperature=temperature)
    return map_, value, lambda P: [cp.sum(P, 1) == SUMS.numpy(), cp.sum(P, 0) == 1]


MAXIMA = {
    **{name: nearest(name) for name in SETS},
    **{name: threshold(name) for name in THRESHOLDS},
    **{f"entmax {alpha}": tsallis(alpha) for alpha in (1.2, 1.5, 3.0)},
    **{f"sinkhorn {temperature}": transport(temperature) for temperature in (1.0, 0.3)},
}


@pytest.mark.parametrize("name", MAXIMA)
@pytest.mark.parametrize("seed", range(3))
def test_what_is_maximal_by_cvxpy(name, seed):
    map_, value, constraints = MAXIMA[name]
    v = drawn(name, (), seed)
    x = cp.Variable(v.shape, symmetric=name == "psd_cone")
    with warnings.catch_warnings():
        # to rounding, as far as Clarabel gets: how far that is, the comparison tells
        warnings.filterwarnings("ignore", message="Solution may be inaccurate|invalid value")
        tight = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), 1e-14)
        cp.Problem(cp.Maximize(value(x, v.numpy())), constraints(x)).solve(cp.CLARABEL, **tight)
    np.testing.assert_allclose(map_(v), x.value, atol=1e-7)


def dot(a, b):
    return float((a * b).sum())


class TestLaws:
    @pytest.mark.parametrize("name", SETS)
    @given(seed=st.integers(0, 2**31), size=st.integers(1, 9), r=st.floats(0.1, 10))
    def test_of_projections(self, name, seed, size, r):
        project, constraints = SETS[name]
        u, v = drawn(name, (2,), seed, size)
        x, y = project(u, r), project(v, r)
        scale = 1 + float(u.norm() + v.norm())
        rounding = 1e-13 * scale
        point = cp.Variable(x.shape, value=x.numpy())
        assert max(c.violation().max() for c in constraints(point, r)) <= rounding
        assert name != "simplex" or bool((x >= 0).all())  # not by rounding either
        assert (project(x, r) - x).norm() <= rounding
        # firmly nonexpansive; and, from y on, which stays where it is, no point is nearer than x
        assert dot(x - y, x - y) <= dot(x - y, u - v) + rounding * scale
        assert dot(u - x, y - x) <= rounding * scale
        if "cone" in name:  # its own dual: v = P(v) - P(-v), and the parts are orthogonal
            rest = project(-u, r)
            torch.testing.assert_close(x - rest, u, rtol=0, atol=rounding)
            assert abs(dot(x, rest)) <= rounding * scale

    @given(seed=st.integers(0, 2**31), size=st.integers(1, 9), alpha=st.floats(1.05, 4))
    def test_entmax_gives_probabilities_in_the_order_of_the_scores(self, seed, size, alpha):
        scores = drawn("", (3,), seed, size)
        p = entmax(scores, alpha)
        torch.testing.assert_close(p.sum(-1), torch.ones(3).double())
        assert bool((p >= 0).all())
        assert bool((p.gather(-1, scores.argsort(-1)).diff(dim=-1) >= 0).all())
        torch.testing.assert_close(entmax(scores + 100, alpha), p, rtol=1e-9, atol=1e-11)

    @given(seed=st.integers(0, 2**31), n=st.integers(1, 6), m=st.integers(1, 6))
    def test_sinkhorn_has_its_sums_and_its_form(self, seed, n, m):
        generator = torch.Generator().manual_seed(seed)
        S = 3 * torch.randn(n, m, generator=generator, dtype=torch.float64)
        r, c = torch.rand(n + m, generator=generator, dtype=torch.float64).add(0.1).split([n, m])
        c = c * r.sum() / c.sum()
        P = sinkhorn(S, r, c)
        torch.testing.assert_close(P.sum(1), r, rtol=1e-9, atol=0)
        torch.testing.assert_close(P.sum(0), c, rtol=1e-9, atol=0)
        rest = P.log() - S  # f_i + g_j: rows differ by numbers
        torch.testing.assert_close(rest - rest[:1], (rest - rest[:1])[:, :1].expand(n, m))


class TestOtherForms:
    def test_entmax_between_softmax_and_sparsemax(self):
        scores = drawn("", (5,))
        torch.testing.assert_close(entmax(scores, 1.0), scores.softmax(-1))
        torch.testing.assert_close(entmax(scores, 1 + 1e-6), scores.softmax(-1), rtol=0, atol=1e-5)
        torch.testing.assert_close(entmax(scores, 2.0), sparsemax(scores))
        assert torch.equal(sparsemax(scores), project_simplex(scores))

    def test_minus_infinity_rules_an_entry_out(self):
        alpha = torch.tensor(1.5).double().requires_grad_()
        scores = drawn("", ()).requires_grad_()
        mask, kept = torch.tensor([0.0, -torch.inf, 0.0, 0.0]).double(), [0, 2, 3]
        for map_ in (sparsemax, lambda s: entmax(s, alpha)):
            p = map_(scores + mask)
            assert p[1] == 0
            torch.testing.assert_close(p[kept], map_(scores[kept]))
            slope = torch.autograd.grad((p * torch.arange(4)).sum(), scores, retain_graph=True)[0]
            assert bool(slope.isfinite().all())
        assert bool(torch.autograd.grad(p[0], alpha)[0].isfinite())

    def test_of_sinkhorn(self):
        zeros, columns = torch.zeros(2, 3), torch.tensor([1.0, 2.0, 3.0])
        torch.testing.assert_close(sinkhorn(zeros), torch.full((2, 3), 1 / 3))
        rows = sinkhorn(zeros, column_sums=columns).sum(1)
        torch.testing.assert_close(rows, torch.tensor([3.0, 3.0]))
        # a low temperature gives the best permutation
        S = torch.tensor([[0.0, 2.0, 1.0], [1.0, 0.0, 3.0], [2.0, 1.0, 0.0]]).double()
        P = sinkhorn(S, temperature=0.05)
        torch.testing.assert_close(P, torch.eye(3).double()[[1, 2, 0]], rtol=0, atol=1e-8)

    @pytest.mark.parametrize("size", [1e200, 1e-200])
    def test_large_and_small_numbers(self, size):
        double = partial(torch.tensor, dtype=torch.float64)
        v = size * double([3.0, 4.0])
        expected = v if size < 1 else double([0.6, 0.8])
        torch.testing.assert_close(project_l2_ball(v), expected, rtol=1e-14, atol=0)
        w = project_second_order_cone(size * double([1.0, 3.0, 4.0]))
        torch.testing.assert_close(w / size, double([3.0, 1.8, 2.4]))


def transported(S, T):
    r, c = torch.tensor([0.25, 0.75]).double(), torch.tensor([0.625, 0.375]).double()
    return entropic_transport(S, r, c, temperature=T).value


class TestTransport:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize(("n", "temperature"), [(6, 0.01), (12, 0.003), (30, 0.003)])
    def test_a_low_temperature_is_an_assignment(self, n, temperature, dtype):
        generator = torch.Generator().manual_seed(n)
        costs = 10 * torch.rand(8, n, n, generator=generator, dtype=dtype)
        temperatures = torch.full((8,), temperature, dtype=dtype).requires_grad_()
        costs.requires_grad_()
        solution = entropic_transport(-costs, temperature=temperatures)
        plan, f, g = (part.detach().double() for part in solution.value)
        assert solution.status.shape == (8,) and bool(solution.converged.all())
        # in float64 within: rounding of scores / temperature, and of what is returned
        atol = 1e-10 if dtype == torch.float64 else 1e-6
        ones = torch.ones(8, n).double()
        torch.testing.assert_close(plan.sum(-1), ones, rtol=0, atol=atol)
        torch.testing.assert_close(plan.sum(-2), ones, rtol=0, atol=atol)
        scores = -costs.detach().double()
        for i in range(8):
            rows, columns = linear_sum_assignment(-scores[i].numpy())
            best, found = scores[i, rows, columns].sum(), (plan[i] * scores[i]).sum()
            # what entropy may cost: at most T n log n
            assert best - temperature * n * np.log(n) <= found <= best + 1e-4
            # the potentials are feasible duals, and so as good
            assert float((scores[i] + f[i][:, None] + g[i]).max()) <= 1e-4
            assert best <= -(f[i] + g[i]).sum() + 1e-4
        weights = torch.randn_like(solution.value.plan)
        slopes = torch.autograd.grad((weights * solution.value.plan).sum(), [costs, temperatures])
        assert all(bool(slope.isfinite().all()) for slope in slopes)

    @pytest.mark.parametrize("temperature", [0.3, 0.01, 0.003])
    def test_derivatives_at_low_temperatures(self, temperature):
        generator = torch.Generator().manual_seed(0)
        draw = partial(torch.randn, 7, 7, generator=generator, dtype=torch.float64)
        S, weights, move = 10 * draw().sigmoid(), draw(), draw()
        value = lambda S: (weights * sinkhorn(S, temperature=temperature)).sum()
        step = 1e-3 * temperature
        near, far = (value(S + k * step * move) - value(S - k * step * move) for k in (1, 2))
        slope, own = (8 * near - far) / (12 * step), (jacrev(value)(S) * move).sum()
        # sums are right to 20 eps S / T, 1e-11, which is divided by the step
        torch.testing.assert_close(own, slope, rtol=1e-6, atol=1e-10 / step)

    @pytest.mark.parametrize("temperature", [1e-2, 1e-3, 1e-4, 1e-5])
    def test_a_cold_plan_does_not_move_with_the_temperature(self, temperature):
        S = torch.tensor([[0.0, 1, 2], [1, 0.3, 1.1], [0.2, 0.7, 0]]).double()
        r, c = torch.tensor([0.2, 0.3, 0.5]).double(), torch.tensor([0.35, 0.25, 0.4]).double()
        plan = lambda t: sinkhorn(S, r, c, temperature=t)
        slope = jacrev(plan)(torch.tensor(temperature).double())
        # at a vertex, up to exp(-gap / T); roundings of S / T^2 remain
        assert float(slope.abs().max()) <= 1e-5 + 4e-15 / temperature**2

    def test_the_potentials_are_the_slope_of_the_optimum(self):
        S = drawn("sinkhorn", ())[:3]
        r, c = torch.tensor([0.2, 0.3, 0.5]).double(), torch.tensor([0.4, 0.3, 0.2, 0.1]).double()

        def optimum(r, c):
            P = sinkhorn(S, r, c, temperature=0.7)
            return (P * S).sum() - 0.7 * (P * (P.log() - 1)).sum()

        plan, f, g = entropic_transport(S, r, c, temperature=0.7).value
        torch.testing.assert_close(plan, ((S + f[:, None] + g) / 0.7).exp())
        torch.testing.assert_close(f.mean(), g.mean())
        # rows and columns change together, by as much
        move, other = torch.tensor([1.0, -2, 1]).double(), torch.tensor([1.0, 0, -3, 2]).double()
        slopes = jacrev(optimum, (0, 1))(r, c)
        torch.testing.assert_close(slopes[0] @ move + slopes[1] @ other, -f @ move - g @ other)

    @pytest.mark.parametrize("temperature", [0.5, 0.003])
    def test_minus_infinity_rules_an_entry_out(self, temperature):
        S, rows = drawn("sinkhorn", ()), torch.arange(4)
        T = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
        S[rows, rows] = -torch.inf
        S.requires_grad_()
        P = sinkhorn(S, temperature=T)
        assert bool((P.diagonal() == 0).all())
        torch.testing.assert_close(P.sum(0), torch.ones(4).double())
        # as a score does that is far below the others
        far = torch.where(S.isinf(), -30.0, S.detach()).requires_grad_()
        weights = torch.arange(16.0).reshape(4, 4).sin().double()
        slopes = torch.autograd.grad((weights * P).sum(), [S, T])
        Q = sinkhorn(far, temperature=T)
        expected = torch.autograd.grad((weights * Q).sum(), [far, T])
        torch.testing.assert_close(slopes[0], expected[0], rtol=1e-6, atol=1e-8)
        # of terms of the size S / T^2, the sums being right to 20 eps S / T
        torch.testing.assert_close(slopes[1], expected[1], rtol=1e-6, atol=1e-11 / temperature**2)

    def test_the_message_names_the_argument(self):
        S = drawn("sinkhorn", ())
        with pytest.raises(ims.ConvergenceError, match="raise max_steps"):
            sinkhorn(S, temperature=1e-3, max_steps=2)
        assert bool(entropic_transport(S, temperature=1e-3, max_steps=100).converged)

    def test_a_temperature_that_is_none_fails_its_lane_silently(self):
        S, T = drawn("sinkhorn", (3,)), torch.tensor([0.1, -1.0, 0.003]).double().requires_grad_()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            solution = entropic_transport(S, temperature=T, on_failure="mask")
            solution.value.plan.nansum().backward()
        assert solution.status.tolist() == [0, ims.Status.NONFINITE, 0]
        assert bool(T.grad.isfinite().all()) and T.grad[1] == 0


# off the kinks, on every piece of every projection
SMOOTH = {
    "simplex": (project_simplex, drawn("", (2,)), [1.5, 0.7]),
    "sparsemax": (sparsemax, drawn("", (2,), 3)),
    "box": (project_box, drawn("", (2,)), [-0.5] * 4, 0.75),
    "l1_ball": (project_l1_ball, drawn("", (2,)), [1.5, 20.0]),
    "l2_ball": (project_l2_ball, drawn("", (2,)), [1.5, 20.0]),
    "second_order_cone": (
        project_second_order_cone,
        [[1.0, 2.0, -1.0], [3.0, 1.0, 1.0], [-3.0, 1.0, 1.0]],
    ),
    "psd_cone": (project_psd_cone, drawn("psd_cone", (2,), 1, 3)),
    "soft": (soft_threshold, drawn("", (2,)), [0.5, 0.1, 2.0, 1.0]),
    "group": (group_soft_threshold, [[1.0, 2.0, -1.0], [0.3, 0.1, -0.2]], [0.5, 0.6]),
    "singular": (singular_value_threshold, [[2.0, 0.0, 0.3], [0.1, 2.0, -0.4]], 0.7),
    "singular, equal": (singular_value_threshold, [[2.0, 0, 0], [0, 2, 0], [0, 0, 0.3]], 0.7),
    "entmax": (entmax, drawn("", (2,)), [1.3, 1.9]),
    "sinkhorn": (
        lambda S, a: sinkhorn(S, 2 * a.softmax(-1), torch.ones(2).double()),
        drawn("", (2,), 1, 2),
        [0.3, -0.2],
    ),
    "transport": (
        lambda S, T: torch.cat([part.flatten(1) for part in transported(S, T)], 1),
        drawn("sinkhorn", (2,), 1, 2),
        [0.7, 1.5],
    ),
}


class TestDerivatives:
    @pytest.mark.parametrize("name", SMOOTH)
    def test_both_orders_in_every_mode(self, name):
        map_, *values = SMOOTH[name]
        check_gradients(map_, *(torch.as_tensor(v).double() for v in values), batched=False)

    def test_equal_eigenvalues(self):
        # where those of eigh are NaN: P(diag(2, 2, -1, -1)) with its slopes 1, 0, 2 / (2 + 1)
        S = torch.diag(torch.tensor([2.0, 2.0, -1.0, -1.0]).double())
        weights = torch.full((4, 4), 2 / 3).double()
        weights[:2, :2], weights[2:, 2:] = 1, 0
        identity = torch.eye(16).double().reshape(4, 4, 4, 4)
        expected = weights[:, :, None, None] * (identity + identity.swapaxes(2, 3)) / 2
        for jacobian in (jacrev, jacfwd):
            torch.testing.assert_close(jacobian(project_psd_cone)(S), expected)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("n", [1, 3])
    def test_zero_eigenvalues_have_the_derivative_from_inside(self, n, dtype):
        # P(S) = S in the cone: the derivative is the identity on symmetric matrices
        identity = torch.eye(n * n, dtype=dtype).reshape(n, n, n, n)
        expected = (identity + identity.swapaxes(2, 3)) / 2
        zero, ones = torch.zeros(n, n, dtype=dtype), torch.ones(n, n, dtype=dtype)
        assert torch.equal(project_psd_cone(zero), zero)
        for jacobian in (jacrev, jacfwd):
            torch.testing.assert_close(jacobian(project_psd_cone)(zero), expected)
        second = jacfwd(jacrev(project_psd_cone))(zero)
        torch.testing.assert_close(second, torch.zeros_like(second), rtol=0, atol=1e-4)
        lanes = torch.stack([zero, -torch.eye(n, dtype=dtype), zero]).requires_grad_()
        project_psd_cone(lanes).sum().backward()
        torch.testing.assert_close(lanes.grad, torch.stack([ones, 0 * ones, ones]))
        corner = zero.clone()
        corner[0, 0] = 1
        torch.testing.assert_close(project_psd_cone(corner), corner)
        slope = jacrev(lambda S: project_psd_cone(S).sum())(corner)
        torch.testing.assert_close(slope, ones, rtol=0, atol=10 * torch.finfo(dtype).eps)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @given(small=st.floats(2, 40), second=st.floats(-40, 40), third=st.floats(-1, 1))
    def test_eigenvalues_that_are_small_have_their_own_derivative(
        self, dtype, small, second, third
    ):
        """By divided differences of ``max(x, 0)``; Daleckii and Krein (1965)."""
        eps = torch.finfo(dtype).eps
        values = torch.tensor([-1.0, third, small * 8 * eps, -small * 8 * eps, second * 8 * eps])
        values[4] = values[4] + 4 * eps * values[4].sign()
        values = torch.where(values.abs() < 6 * eps, 6 * eps, values).to(dtype)
        positive, sizes = values.clamp(min=0), values.abs()
        share = (positive[:, None] + positive) / (sizes[:, None] + sizes)
        move = drawn("psd_cone", (), 1, 5).to(dtype)
        value, slope = torch.func.jvp(project_psd_cone, (torch.diag(values),), (move,))
        assert torch.equal(value, torch.diag(positive))
        torch.testing.assert_close(slope, share * move, rtol=8 * eps, atol=8 * eps)

    def test_no_threshold_is_the_identity(self):
        V = torch.tensor([[1.0, 2.0], [2.0, 4.0]]).double()
        for map_, v in ((singular_value_threshold, V), (group_soft_threshold, 0 * V[0])):
            J = jacrev(map_)(v, 0.0).reshape(v.numel(), -1)
            torch.testing.assert_close(J, torch.eye(v.numel()).double())
        by_threshold = jacrev(singular_value_threshold, 1)(V, torch.tensor(0.0).double())
        torch.testing.assert_close(by_threshold, -V / 5)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("exponent", [-15, -12, -8, -6, -4, -2])
    def test_of_entmax_by_alpha_near_one(self, dtype, exponent):
        s = torch.tensor([0.9, 0.2, -0.5], dtype=dtype)
        alpha = torch.tensor(1 + max(10.0**exponent, float(torch.finfo(dtype).eps)), dtype=dtype)
        first = lambda a: entmax(s, a)[0]
        found = [grad(first)(alpha), grad(grad(first))(alpha)]
        with mp.workdps(60):
            scores = [mp.mpf(x) for x in s.tolist()]

            def value(a):
                p = lambda tau: [(1 + (a - 1) * (x - tau)) ** (1 / (a - 1)) for x in scores]
                return p(mp.findroot(lambda tau: sum(p(tau)) - 1, mp.mpf(1), tol=1e-50))[0]

            at, h = mp.mpf(alpha.item()), (mp.mpf(alpha.item()) - 1) / 4
            exact = [mp.diff(value, at, k, h=min(h, mp.mpf(10) ** -12)) for k in (1, 2)]
        expected = [torch.tensor(float(x), dtype=dtype) for x in exact]
        torch.testing.assert_close(found, expected, rtol=1e3 * torch.finfo(dtype).eps, atol=0)

    @given(seed=st.integers(0, 2**31), exponent=st.integers(-250, 250))
    def test_units_do_not_change_the_derivatives_of_a_matrix_projection(self, seed, exponent):
        # P(c S) / c = P(S) for c > 0
        S, c = drawn("psd_cone", (), seed, 3), 10.0**exponent
        weights = torch.arange(9.0).reshape(3, 3).double()
        plain = lambda S: (weights * project_psd_cone(S)).sum()
        scaled = lambda S: (weights * project_psd_cone(c * S) / c).sum()
        torch.testing.assert_close(jacrev(scaled)(S), jacrev(plain)(S), rtol=1e-9, atol=1e-9)
        H = hessian(plain)(S)
        close = 1e-9 * float(1 + H.abs().max())
        torch.testing.assert_close(hessian(scaled)(S), H, rtol=0, atol=close)

    def test_third_order_of_a_matrix_projection(self):
        S, D = drawn("psd_cone", (2,), 1, 3)
        assert 0 < int((torch.linalg.eigvalsh(S) > 0).sum()) < 3
        f = lambda t: project_psd_cone(S + t * D).pow(2).sum()
        third = jacrev(jacfwd(jacrev(f)))(torch.tensor(0.0).double())
        ahead, behind = (hessian(f)(torch.tensor(t).double()) for t in (1e-5, -1e-5))
        torch.testing.assert_close(third, (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-6)

    def test_at_a_kink_the_entry_counts_as_zero(self):
        J = jacrev(project_simplex)(torch.tensor([1.25, 0.25]).double())  # tau = 0.25
        assert torch.equal(J, torch.zeros(2, 2).double())


class TestLanes:
    @pytest.mark.parametrize("name", MAPS)
    def test_batches_vmap_loops_and_float32_agree(self, name):
        map_, v = MAPS[name], drawn(name, (2, 3))
        whole = map_(v)
        torch.testing.assert_close(vmap(vmap(map_))(v), whole, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(map_(v[1, 2]), whole[1, 2], rtol=1e-9, atol=1e-10)
        rows = vmap(jacrev(map_))(v[0])
        torch.testing.assert_close(jacrev(map_)(v[0, 1]), rows[1], rtol=1e-8, atol=1e-9)
        assert map_(v[:0]).shape == v[:0].shape
        x = map_(v.float())
        assert x.dtype == torch.float32
        # entmax and sinkhorn: the root's default tolerance, 6e-6, and its condition
        torch.testing.assert_close(x, whole.float(), rtol=1e-4, atol=5e-5)

    @pytest.mark.parametrize("name", MAPS)
    def test_a_nan_lane_changes_nothing_for_the_others(self, name):
        maps = {"psd_cone": project_psd_cone, "entmax": entmax, "sinkhorn": sinkhorn}
        mask = partial(maps[name], on_failure="mask") if name in maps else MAPS[name]
        v = drawn(name, (3,))
        bad = v.clone()
        bad.reshape(3, -1)[1, 0] = torch.nan
        v.requires_grad_(), bad.requires_grad_()
        x, y, others = MAPS[name](v), mask(bad), [0, 2]
        torch.testing.assert_close(x[others], y[others], rtol=1e-9, atol=1e-10)
        weights = torch.randn_like(x)[others]
        g = torch.autograd.grad((weights * x[others]).sum(), v)[0]
        k = torch.autograd.grad((weights * y[others]).sum(), bad)[0]
        torch.testing.assert_close(g[others], k[others], rtol=1e-8, atol=1e-9)
        if name not in maps and name not in ("box", "soft"):  # of entries, not of rows
            assert bool(y[1].isnan().all())

    def test_infeasible_and_inverted_sets(self):
        v, radius = torch.ones(2, 3), torch.tensor([1.0, -1.0])
        for project in (project_simplex, project_l1_ball, project_l2_ball):
            x = project(v, radius)
            assert bool(x[0].isfinite().all()) and bool(x[1].isnan().all())
        assert bool(project_box(v, v + 1, v).isnan().all())
        rows = torch.tensor([[0.5, 0.5], [1.0, 0.5], [0.5, 0.5]])
        columns = torch.tensor([0.25, 0.75], requires_grad=True)
        P = sinkhorn(torch.zeros(3, 2, 2), rows, columns, on_failure="mask")
        assert bool(P[1].isnan().all()) and bool(P[[0, 2]].isfinite().all())
        P[[0, 2]].square().sum().backward()
        assert bool(columns.grad.isfinite().all())

    @pytest.mark.parametrize("spoiled", ["scores", "sums", "temperature"])
    def test_a_failed_lane_of_a_transport_has_no_part_in_gradients(self, spoiled):
        scores, sums = torch.randn(3, 2, 4).double(), torch.ones(3, 2).double()
        temperature, columns = torch.full((3,), 0.5).double(), torch.full((4,), 0.5).double()
        given = {"scores": scores, "sums": sums, "temperature": temperature}

        def slopes(keep=slice(None)):
            leaves = [t.clone().requires_grad_() for t in (*given.values(), columns)]
            own, rows, T = (t[keep] for t in leaves[:-1])
            options = {"temperature": T, "on_failure": "mask"}
            solution = entropic_transport(own, rows, leaves[-1], **options)
            plan = solution.value.plan.nan_to_num()
            return torch.autograd.grad(plan.square().sum(), leaves)

        expected = slopes([0, 2])
        given[spoiled][1] = torch.nan
        found = slopes()
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)
        assert all((slope[1] == 0).all() for slope in found[:-1])


@pytest.mark.parametrize("dtype, offset", [(torch.float32, 2e7), (torch.float64, 1e17)])
def test_large_scores_are_not_lost(dtype, offset):
    """A row's sum is right beside entries in whose rounding the radius is nothing."""
    v = torch.tensor([offset * (1 + 2 * torch.finfo(dtype).eps), offset, 0.0], dtype=dtype)
    for project in (sparsemax, project_simplex, project_l1_ball):
        assert project(v).tolist() == [1.0, 0.0, 0.0]
        assert project(v[[1, 1, 2]]).tolist() == [0.5, 0.5, 0.0]
    slopes = jacrev(sparsemax)(v[[1, 1, 2]])[:2, :2]
    torch.testing.assert_close(slopes, torch.tensor([[0.5, -0.5], [-0.5, 0.5]], dtype=dtype))
