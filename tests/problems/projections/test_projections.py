"""Projections against cvxpy, other closed forms, differences, and the laws of projections."""

import warnings

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.func import hessian, jacfwd, jacrev, vmap

import implicit_solvers as ims
from implicit_solvers.problems.projections import (
    entmax,
    project_box,
    project_l1_ball,
    project_l2_ball,
    project_psd_cone,
    project_second_order_cone,
    project_simplex,
    sinkhorn,
    sparsemax,
)

VECTOR_PROJECTIONS = {
    "simplex": lambda v: project_simplex(v, 1.5),
    "box": lambda v: project_box(v, -0.5, 0.75),
    "l1_ball": lambda v: project_l1_ball(v, 1.5),
    "l2_ball": lambda v: project_l2_ball(v, 1.5),
    "second_order_cone": project_second_order_cone,
}
PROJECTIONS = {**VECTOR_PROJECTIONS, "psd_cone": project_psd_cone}

CONSTRAINTS = {
    "simplex": lambda x: [x >= 0, cp.sum(x) == 1.5],
    "box": lambda x: [x >= -0.5, x <= 0.75],
    "l1_ball": lambda x: [cp.norm1(x) <= 1.5],
    "l2_ball": lambda x: [cp.norm2(x) <= 1.5],
    "second_order_cone": lambda x: [cp.SOC(x[0], x[1:])],
    "psd_cone": lambda x: [x >> 0],
}


def drawn(name, lanes, seed=0, size=4, dtype=torch.float64):
    """Draw what to project: symmetric matrices for the cone of matrices, vectors otherwise."""
    generator = torch.Generator().manual_seed(seed)
    shape = (*lanes, size, size) if name == "psd_cone" else (*lanes, size)
    v = 1.5 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return ((v + v.mT) / 2 if name == "psd_cone" else v).to(dtype)


def solve(problem):
    """Solve to rounding, as far as Clarabel gets: how far that is, the comparison tells."""
    options = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), 1e-14)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Solution may be inaccurate")
        problem.solve(cp.CLARABEL, **options)


def dot(a, b):
    return float((a * b).sum())


class TestAgainstCvxpy:
    @pytest.mark.parametrize("name", PROJECTIONS)
    @pytest.mark.parametrize("seed", range(3))
    def test_the_nearest_point(self, name, seed):
        v = drawn(name, (), seed)
        x = cp.Variable(v.shape, symmetric=name == "psd_cone")
        problem = cp.Problem(cp.Minimize(cp.sum_squares(x - v.numpy())), CONSTRAINTS[name](x))
        solve(problem)
        np.testing.assert_allclose(PROJECTIONS[name](v), x.value, atol=1e-7)

    @pytest.mark.parametrize("temperature", [1.0, 0.3])
    def test_sinkhorn(self, temperature):
        S = drawn("", (4,), 1)
        r = torch.tensor([0.5, 1.0, 1.5, 1.0]).double()
        P = cp.Variable((4, 4))
        value = cp.sum(cp.multiply(S.numpy(), P)) + temperature * cp.sum(cp.entr(P))
        sums = [cp.sum(P, 1) == r.numpy(), cp.sum(P, 0) == 1]
        solve(cp.Problem(cp.Maximize(value), sums))
        found = sinkhorn(S, r, torch.ones(4).double(), temperature=temperature)
        np.testing.assert_allclose(found, P.value, atol=1e-7)

    @pytest.mark.parametrize("alpha", [1.2, 1.5, 3.0])
    def test_entmax_maximizes_with_the_entropy_of_tsallis(self, alpha):
        s = drawn("", (), 2)
        p = cp.Variable(4, nonneg=True)
        entropy = (cp.sum(p) - cp.sum(cp.power(p, alpha))) / (alpha * (alpha - 1))
        solve(cp.Problem(cp.Maximize(s.numpy() @ p + entropy), [cp.sum(p) == 1]))
        np.testing.assert_allclose(entmax(s, alpha), p.value, atol=1e-7)


class TestLaws:
    @pytest.mark.parametrize("name", PROJECTIONS)
    @given(seed=st.integers(0, 2**31), size=st.integers(2, 7))
    def test_idempotent_and_firmly_nonexpansive(self, name, seed, size):
        project = PROJECTIONS[name]
        u, v = drawn(name, (2,), seed, size)
        x, y = project(u), project(v)
        rounding = 1e-13 * (1 + u.norm() + v.norm())
        assert (project(x) - x).norm() <= rounding
        assert dot(x - y, x - y) <= dot(x - y, u - v) + rounding

    @pytest.mark.parametrize("name", PROJECTIONS)
    @given(seed=st.integers(0, 2**31))
    def test_no_point_of_the_set_is_nearer(self, name, seed):
        project = PROJECTIONS[name]
        v, other = drawn(name, (2,), seed)
        x, point = project(v), project(other)
        assert dot(v - x, point - x) <= 1e-12 * (1 + v.norm() * point.norm())

    @pytest.mark.parametrize("name", ["second_order_cone", "psd_cone"])
    @given(seed=st.integers(0, 2**31), size=st.integers(1, 7))
    def test_moreau(self, name, seed, size):
        # both cones are their own duals: v = P(v) - P(-v), and the parts are orthogonal
        project, v = PROJECTIONS[name], drawn(name, (), seed, size)
        x, y = project(v), project(-v)
        torch.testing.assert_close(x - y, v, rtol=0, atol=1e-13 * (1 + float(v.norm())))
        assert abs(dot(x, y)) <= 1e-13 * (1 + dot(v, v))

    @given(seed=st.integers(0, 2**31), size=st.integers(1, 9), radius=st.floats(0.1, 10))
    def test_the_sums(self, seed, size, radius):
        v = drawn("", (3,), seed, size)
        x = project_simplex(v, radius)
        ones = torch.ones(3).double()
        torch.testing.assert_close(x.sum(-1), radius * ones)
        assert bool((x >= 0).all())
        assert bool((project_l1_ball(v, radius).abs().sum(-1) <= radius * (1 + 1e-14)).all())
        assert bool((project_l2_ball(v, radius).norm(dim=-1) <= radius * (1 + 1e-14)).all())

    @given(seed=st.integers(0, 2**31), size=st.integers(1, 9), alpha=st.floats(1.05, 4))
    def test_entmax_gives_probabilities_in_the_order_of_the_scores(self, seed, size, alpha):
        scores = drawn("", (3,), seed, size)
        p = entmax(scores, alpha)
        torch.testing.assert_close(p.sum(-1), torch.ones(3).double())
        assert bool((p >= 0).all())
        order = scores.argsort(-1)
        assert bool((p.gather(-1, order).diff(dim=-1) >= 0).all())
        torch.testing.assert_close(entmax(scores + 100, alpha), p, rtol=1e-9, atol=1e-11)

    @given(seed=st.integers(0, 2**31), n=st.integers(1, 6), m=st.integers(1, 6))
    def test_sinkhorn_has_its_sums_and_its_form(self, seed, n, m):
        generator = torch.Generator().manual_seed(seed)
        S = 3 * torch.randn(n, m, generator=generator, dtype=torch.float64)
        r = torch.rand(n, generator=generator, dtype=torch.float64) + 0.1
        c = torch.rand(m, generator=generator, dtype=torch.float64) + 0.1
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
        mask = torch.tensor([0.0, -torch.inf, 0.0, 0.0]).double()
        kept = [0, 2, 3]
        for map_ in (sparsemax, lambda s: entmax(s, alpha)):
            p = map_(scores + mask)
            assert p[1] == 0
            torch.testing.assert_close(p[kept], map_(scores[kept]))
            slope = torch.autograd.grad((p * torch.arange(4)).sum(), scores, retain_graph=True)[0]
            assert bool(slope.isfinite().all())
        assert bool(torch.autograd.grad(p[0], alpha)[0].isfinite())

    def test_a_uniform_default(self):
        P = sinkhorn(torch.zeros(2, 3))
        torch.testing.assert_close(P, torch.full((2, 3), 1 / 3))
        torch.testing.assert_close(
            sinkhorn(torch.zeros(2, 3), column_sums=torch.tensor([1.0, 2.0, 3.0])).sum(1),
            torch.tensor([3.0, 3.0]),
        )

    def test_a_low_temperature_gives_the_best_permutation(self):
        S = torch.tensor([[0.0, 2.0, 1.0], [1.0, 0.0, 3.0], [2.0, 1.0, 0.0]]).double()
        P = sinkhorn(S, temperature=0.05)
        torch.testing.assert_close(P, torch.eye(3).double()[[1, 2, 0]], rtol=0, atol=1e-8)

    def test_the_absolute_value_of_a_matrix(self):
        S = drawn("psd_cone", (3,), 4)
        X = project_psd_cone(S)
        N = 2 * X - S
        torch.testing.assert_close(N @ N, S @ S)


def interior_inputs():
    """Inputs off the kinks, on every piece of every projection."""
    soc = torch.tensor([[1.0, 2.0, -1.0], [3.0, 1.0, 1.0], [-3.0, 1.0, 1.0]]).double()
    return {
        "simplex": (project_simplex, (drawn("", (2,)), torch.tensor([1.5, 0.7]).double())),
        "sparsemax": (sparsemax, (drawn("", (2,), 3),)),
        "box": (
            lambda v, lo, hi: project_box(v, lo, hi),
            (drawn("", (2,)), torch.full((4,), -0.5).double(), torch.tensor(0.75).double()),
        ),
        "l1_ball": (project_l1_ball, (drawn("", (2,)), torch.tensor([1.5, 20.0]).double())),
        "l2_ball": (project_l2_ball, (drawn("", (2,)), torch.tensor([1.5, 20.0]).double())),
        "second_order_cone": (project_second_order_cone, (soc,)),
        "psd_cone": (project_psd_cone, (drawn("psd_cone", (2,), 1, 3),)),
        "entmax": (entmax, (drawn("", (2,)), torch.tensor([1.3, 1.9]).double())),
        "sinkhorn": (
            lambda S, a: sinkhorn(S, 2 * a.softmax(-1), torch.ones(2).double()),
            (drawn("", (2,), 1, 2), torch.tensor([0.3, -0.2]).double()),
        ),
    }


class TestDerivatives:
    @pytest.mark.parametrize("name", interior_inputs())
    def test_first_order_in_every_mode(self, name):
        map_, inputs = interior_inputs()[name]
        assert gradcheck(
            map_,
            tuple(t.requires_grad_() for t in inputs),
            check_forward_ad=True,
            check_batched_grad=True,
            check_batched_forward_grad=True,
        )

    @pytest.mark.parametrize("name", interior_inputs())
    def test_second_order(self, name):
        map_, inputs = interior_inputs()[name]
        assert gradgradcheck(
            map_,
            tuple(t.requires_grad_() for t in inputs),
            check_fwd_over_rev=True,
            check_rev_over_rev=True,
        )

    def test_equal_eigenvalues(self):
        # where those of eigh are NaN: P(diag(2, 2, -1, -1)) with its slopes 1, 0, 2 / (2 + 1)
        S = torch.diag(torch.tensor([2.0, 2.0, -1.0, -1.0]).double())
        J = jacrev(project_psd_cone)(S)
        weights = torch.full((4, 4), 2 / 3).double()
        weights[:2, :2], weights[2:, 2:] = 1, 0
        identity = torch.eye(16).double().reshape(4, 4, 4, 4)
        expected = weights[:, :, None, None] * (identity + identity.swapaxes(2, 3)) / 2
        torch.testing.assert_close(J, expected)
        torch.testing.assert_close(jacfwd(project_psd_cone)(S), expected)

    def test_a_zero_eigenvalue_has_the_derivative_from_inside(self):
        S = torch.diag(torch.tensor([1.0, 0.0]).double()).requires_grad_()
        X = project_psd_cone(S)
        torch.testing.assert_close(X, S)
        slope = torch.autograd.grad(X.sum(), S)[0]
        torch.testing.assert_close(slope, torch.ones(2, 2).double(), rtol=0, atol=1e-7)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("n", [1, 3])
    def test_the_zero_matrix_has_the_derivative_from_inside(self, n, dtype):
        # P(S) = S in the cone: the derivative is the identity on symmetric matrices
        identity = torch.eye(n * n, dtype=dtype).reshape(n, n, n, n)
        expected = (identity + identity.swapaxes(2, 3)) / 2
        zero = torch.zeros(n, n, dtype=dtype)
        assert torch.equal(project_psd_cone(zero), zero)
        for jacobian in (jacrev, jacfwd):
            torch.testing.assert_close(jacobian(project_psd_cone)(zero), expected)
        second = jacfwd(jacrev(project_psd_cone))(zero)
        torch.testing.assert_close(second, torch.zeros_like(second), rtol=0, atol=1e-4)
        lanes = torch.stack([zero, -torch.eye(n, dtype=dtype), zero]).requires_grad_()
        project_psd_cone(lanes).sum().backward()
        ones = torch.ones(n, n, dtype=dtype)
        torch.testing.assert_close(lanes.grad, torch.stack([ones, 0 * ones, ones]))

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
        second = lambda t: hessian(f)(torch.tensor(t).double())
        torch.testing.assert_close(
            third, (second(1e-5) - second(-1e-5)) / 2e-5, rtol=1e-6, atol=1e-6
        )

    def test_at_a_kink_the_entry_counts_as_zero(self):
        J = jacrev(project_simplex)(torch.tensor([1.25, 0.25]).double())  # tau = 0.25
        assert torch.equal(J, torch.zeros(2, 2).double())


class TestLanes:
    @pytest.mark.parametrize("name", [*PROJECTIONS, "entmax", "sinkhorn"])
    def test_batches_vmap_and_loops_agree(self, name):
        map_ = {**PROJECTIONS, "entmax": entmax, "sinkhorn": sinkhorn}[name]
        kind = "psd_cone" if name == "sinkhorn" else name
        v = drawn(kind, (2, 3))
        whole = map_(v)
        torch.testing.assert_close(vmap(vmap(map_))(v), whole, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(map_(v[1, 2]), whole[1, 2], rtol=1e-9, atol=1e-10)
        rows = vmap(jacrev(map_))(v[0])
        torch.testing.assert_close(jacrev(map_)(v[0, 1]), rows[1], rtol=1e-8, atol=1e-9)
        assert map_(v[:0]).shape == v[:0].shape

    @pytest.mark.parametrize("name", [*PROJECTIONS, "entmax", "sinkhorn"])
    def test_float32(self, name):
        map_ = {**PROJECTIONS, "entmax": entmax, "sinkhorn": sinkhorn}[name]
        v = drawn("psd_cone" if name == "sinkhorn" else name, (5,))
        x = map_(v.float())
        assert x.dtype == torch.float32
        # entmax and sinkhorn: the root's default tolerance, 6e-6, and its condition
        torch.testing.assert_close(x, map_(v).float(), rtol=1e-4, atol=5e-5)

    @pytest.mark.parametrize("name", [*PROJECTIONS, "entmax", "sinkhorn"])
    def test_a_nan_lane_changes_nothing_for_the_others(self, name):
        options = {"on_failure": "mask"} if name in ("psd_cone", "entmax", "sinkhorn") else {}
        map_ = {**PROJECTIONS, "entmax": entmax, "sinkhorn": sinkhorn}[name]
        v = drawn("psd_cone" if name == "sinkhorn" else name, (3,))
        bad = v.clone()
        bad.reshape(3, -1)[1, 0] = torch.nan
        v.requires_grad_(), bad.requires_grad_()
        x, y = map_(v), map_(bad, **options)
        for lane in (0, 2):
            torch.testing.assert_close(x[lane], y[lane], rtol=1e-9, atol=1e-10)
        weights = torch.randn_like(x)
        weights[1] = 0
        g = torch.autograd.grad((weights * x).sum(), v)[0]
        k = torch.autograd.grad((weights * y)[[0, 2]].sum(), bad)[0]
        for lane in (0, 2):
            torch.testing.assert_close(g[lane], k[lane], rtol=1e-8, atol=1e-9)
        if name in VECTOR_PROJECTIONS and name != "box":
            assert bool(y[1].isnan().all())

    @pytest.mark.parametrize("map_", [project_psd_cone, sinkhorn, entmax])
    def test_a_nan_raises(self, map_):
        bad = torch.zeros(2, 2, 2)
        bad[1, 0, 0] = torch.nan
        with pytest.raises(ims.ConvergenceError, match="NONFINITE"):
            map_(bad)

    def test_large_and_small_numbers(self):
        for size in (1e200, 1e-200):
            v = size * torch.tensor([3.0, 4.0]).double()
            x = project_l2_ball(v)
            expected = v if size < 1 else torch.tensor([0.6, 0.8], dtype=torch.float64)
            torch.testing.assert_close(x, expected, rtol=1e-14, atol=0)
            w = size * torch.tensor([1.0, 3.0, 4.0]).double()
            expected = size * torch.tensor([3.0, 1.8, 2.4], dtype=torch.float64)
            torch.testing.assert_close(project_second_order_cone(w) / size, expected / size)


v = torch.ones(2, 3)
BAD = [
    (lambda: project_simplex([1.0]), TypeError, "v is a list: pass a tensor"),
    (lambda: project_simplex(v.long()), TypeError, "v is torch.int64"),
    (lambda: project_simplex(torch.tensor(1.0)), ValueError, r"v has the shape \(\)"),
    (lambda: project_simplex(v[:, :0]), ValueError, "pass a vector with entries"),
    (lambda: project_simplex(v, 0.0), ValueError, "radius is 0.0: pass a number above 0.0"),
    (lambda: project_l1_ball(v, -1), ValueError, "radius is -1"),
    (lambda: project_l2_ball(v, "1"), TypeError, "radius is a str"),
    (lambda: project_l2_ball(v, torch.ones(3)), ValueError, r"radius has the shape \(3,\)"),
    (lambda: project_l2_ball(v, torch.ones(2).double()), TypeError, "radius is torch.float64"),
    (lambda: project_box(v, 1.0, 0.0), ValueError, "pass lower <= upper"),
    (lambda: project_box(v, None, 0.0), TypeError, "lower is a NoneType"),
    (lambda: project_box(v, torch.ones(2), 3.0), ValueError, r"lower has the shape \(2,\)"),
    (lambda: project_box(v, 0.0, v.double()), TypeError, "upper is torch.float64"),
    (lambda: project_second_order_cone(v.int()), TypeError, "v is torch.int32"),
    (lambda: project_psd_cone(v), ValueError, r"S has the shape \(2, 3\): pass square matrices"),
    (lambda: project_psd_cone(v[0]), ValueError, "pass a matrix"),
    (lambda: entmax(v, 0.5), ValueError, "alpha is 0.5: pass a number >= 1"),
    (lambda: entmax(v, torch.ones(3)), ValueError, r"alpha has the shape \(3,\)"),
    (lambda: entmax(v, torch.ones(2).double()), TypeError, "alpha is torch.float64"),
    (lambda: sinkhorn(v, temperature=0.0), ValueError, "temperature is 0.0"),
    (lambda: sinkhorn(v, torch.ones(3)), ValueError, r"row_sums has the shape \(3,\)"),
    (lambda: sinkhorn(v, torch.ones(2).double()), TypeError, "row_sums is torch.float64"),
    (lambda: sinkhorn(v, [1, 1]), TypeError, "row_sums is a list"),
    (lambda: sparsemax(None), TypeError, "scores is a NoneType"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=range(len(BAD)))
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_sinkhorn_tells_totals_that_differ():
    scores, rows = torch.zeros(3, 2, 2), torch.tensor([[0.5, 0.5], [1.0, 0.5], [0.5, 0.5]])
    columns = torch.tensor([0.25, 0.75], requires_grad=True)
    words = "INFEASIBLE.* 1.5 and column_sums to 1 in lane 1 .1 of 3.*scale"
    with pytest.raises(ims.ConvergenceError, match=words):
        sinkhorn(scores, rows, columns)
    # under a transform the numbers cannot be read, and NONFINITE is what remains to be said
    with pytest.raises(ims.ConvergenceError, match="NONFINITE"):
        torch.func.vmap(sinkhorn, in_dims=(0, 0, None))(scores, rows, columns.detach())
    P = sinkhorn(scores, rows, columns, on_failure="mask")
    assert bool(P[1].isnan().all()) and bool(P[[0, 2]].isfinite().all())
    P[[0, 2]].square().sum().backward()
    assert bool(columns.grad.isfinite().all())
    with pytest.raises(ims.ConvergenceError, match="NONFINITE"):
        sinkhorn(scores, rows, torch.tensor([2.0, -1.0]).expand(3, 2) * rows.sum(-1, keepdim=True))


def test_bad_lanes():
    radius = torch.tensor([1.0, -1.0])
    for project in (project_simplex, project_l1_ball, project_l2_ball):
        x = project(v, radius)
        assert bool(x[0].isfinite().all()) and bool(x[1].isnan().all())
    assert bool(project_box(v, v + 1, v).isnan().all())
    with pytest.raises(ims.ConvergenceError, match="NONFINITE"):
        entmax(v, torch.tensor([1.5, 0.9]))
    with pytest.raises(ims.ConvergenceError, match="INFEASIBLE"):
        sinkhorn(v, torch.tensor([1.0, 2.0]), torch.ones(3) / 3)
