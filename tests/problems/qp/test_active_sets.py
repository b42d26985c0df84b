"""The right active set: against elimination on it, in any units, at kinks, and from a start."""

import warnings

import pytest
import torch
from torch.func import jacrev, vmap

import implicit_solvers as ims
from implicit_solvers.problems.qp import InteriorPoint, quadratic_program
from tests.problems.qp.drawn_programs import inequalities, on_active_set, regular_programs

F64 = torch.float64
EYE, ZERO = torch.eye(2, dtype=F64), torch.zeros(2, 2, dtype=F64)


def vector(*entries):
    return torch.tensor(entries, dtype=F64)


def solved(operands, weight, **options):
    """Solve with ``on_failure="mask"``, and differentiate ``weight @ x`` in all inputs."""
    own = [t.detach().clone().requires_grad_() for t in operands]
    solution = quadratic_program(*own, on_failure="mask", **options)
    return solution, torch.autograd.grad((weight * solution.value.x).sum(), own)


@pytest.mark.parametrize("kind", ["linear", "half", "definite"])
@pytest.mark.parametrize(
    ("n", "lanes"),
    [(10, 40), (30, 12), *(pytest.param(n, 340, marks=pytest.mark.nightly) for n in (10, 30))],
)
def test_no_derivative_under_converged_is_wrong(kind, n, lanes):
    operands = inequalities(kind, lanes, n, 3 * n, seed=n + lanes)
    weight = torch.linspace(1, 2, n, dtype=F64)
    solution, (_, dp, _, dh) = solved(operands, weight)
    assert bool(solution.converged.all())
    for lane in range(lanes):
        program = [t[lane].numpy() for t in operands]
        active = (solution.value.inequality_duals[lane] > 0).numpy()
        exact = on_active_set(program, active, weight.numpy())
        x, duals, slack, *slopes = (torch.from_numpy(t) for t in exact)
        # it is optimal, and strictly so: no lane drawn here has a kink
        assert duals.min() > -1e-9 and slack.min() > -1e-9 and not bool(solution.degenerate[lane])
        # 1e-16 times the condition of a vertex, 1e6 in the worst of a thousand
        for ours, truth in zip((dp[lane], dh[lane]), slopes, strict=True):
            assert (ours - truth).abs().max() <= 1e-8 * (1 + truth.abs().max())
        assert (solution.value.x[lane] - x).abs().max() <= 1e-9 * (1 + x.abs().max())


def in_units(what, t, operands):
    """Return programs in other units, and what their ``x`` and their gradients in ``p`` come to."""
    Q, p, G, h, A, b = operands
    if what == "objective":
        return (t * Q, t * p, G, h, A, b), 1, 1 / t
    if what == "row":
        s = torch.ones_like(h)
        s[..., 0] = t
        return (Q, p, s.unsqueeze(-1) * G, s * h, A, b), 1, 1
    if what == "unknown":
        return (Q, t * p, G, t * h, A, t * b), t, 1
    return tuple(t * operand for operand in operands), 1, 1 / t


@pytest.mark.parametrize("linear", [False, True], ids=["quadratic", "linear"])
@pytest.mark.parametrize("what", ["objective", "row", "unknown", "everything"])
def test_units_do_not_matter(what, linear):
    Q, p, G, h, A, b = regular_programs((8,), 6, 9, 1, 3)
    if linear:
        box = torch.eye(6, dtype=F64).expand(8, 6, 6)
        G, h = (
            torch.cat([G, box, -box], 1),
            torch.cat([h.abs(), torch.ones_like(h), h[:, :3] ** 0], 1),
        )
        Q, b = 0 * Q, 0 * b
    operands, weight = (Q, p, G, h, A, b), torch.linspace(1, 2, 6, dtype=F64)
    before, slopes = solved(operands, weight)
    assert bool(before.converged.all())
    for t in (1e-12, 1e-10, 1e-5, 1e5, 1e10, 1e12):
        scaled, size, rate = in_units(what, t, operands)
        after, other = solved(scaled, weight)
        assert torch.equal(after.status, before.status) and not bool(after.degenerate.any())
        # two solves to rounding
        torch.testing.assert_close(after.value.x / size, before.value.x, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(other[1] / rate, slopes[1], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("room", [1e6, 1e12, torch.inf])
def test_a_constraint_that_is_far_away_is_none(room):
    operands = regular_programs((8,), 6, 9, 1, 3)
    weight, (Q, p, G, h, A, b) = torch.ones(6, dtype=F64), operands
    h = h.clone()
    h[:, 0] = room
    with_it, slopes = solved((Q, p, G, h, A, b), weight)
    without, expected = solved((Q, p, G[:, 1:], h[:, 1:], A, b), weight)
    assert bool(with_it.converged.all())
    torch.testing.assert_close(with_it.value.x, without.value.x)
    torch.testing.assert_close(slopes[1], expected[1])
    assert bool((slopes[2][:, 0] == 0).all()) and bool((slopes[3][:, 0] == 0).all())
    assert bool((with_it.value.slack[:, 0] >= 0.9 * room).all())
    never = quadratic_program(Q, p, G, -torch.inf * h.abs(), A, b, on_failure="mask")
    assert bool((never.status == int(ims.Status.INFEASIBLE)).all())


@pytest.mark.parametrize("q", [2.0, 0.0], ids=["quadratic", "linear"])
def test_a_narrow_interval_is_right_or_flagged(q):
    # the nearest to 3 between 1 and 1 + e: at the upper end, and moving with it
    for k in range(16):
        h = vector(1 + 10.0**-k, -1.0).requires_grad_()
        sol = quadratic_program(vector(q)[:, None], vector(-6.0), vector(1, -1)[:, None], h)
        (slope,) = torch.autograd.grad(sol.value.x.sum(), h)
        torch.testing.assert_close(slope, vector(1.0, 0.0))
        assert bool(sol.degenerate) == (k > 10)  # a slack below eps**0.75 is nothing


def test_a_trust_region_of_any_size():
    Q, p, *_ = regular_programs((20,), 8, 1, 1, 5)
    box, center = (
        torch.eye(8, dtype=F64),
        torch.randn(20, 8, dtype=F64, generator=torch.Generator().manual_seed(0)),
    )
    for k in range(11):
        d = torch.full((20, 1), 10.0**-k, dtype=F64, requires_grad=True)
        sol = quadratic_program(
            Q, p, torch.cat([box, -box]), torch.cat([center + d, d - center], -1)
        )
        (slope,) = torch.autograd.grad(sol.value.x.sum(), d)
        assert int(sol.iterations.max()) < 10 and not bool(sol.degenerate.any())
        for lane in range(20):
            upper, lower = (sol.value.inequality_duals[lane] > 0).view(2, 8)
            moved = upper.double() - lower.double()
            free = moved == 0
            left = Q[lane][free][:, ~free] @ moved[~free]
            moved[free] = -torch.linalg.solve(Q[lane][free][:, free], left)
            torch.testing.assert_close(slope[lane, 0], moved.sum())


# programs with a kink, and the Jacobian in h of one side
ROOF = (
    torch.tensor([[1.0, 0, 1], [-1, 0, 1], [0, 1, 1], [0, -1, 1]], dtype=F64),
    torch.ones(4, dtype=F64),
)
WEDGE = torch.tensor([[0.0, -1], [1, -1], [-1, -1]], dtype=F64), torch.zeros(3, dtype=F64)
KINKS = {
    "four planes in a point": (torch.zeros(3, 3, dtype=F64), vector(0.1, 0.05, -1), *ROOF),
    "the same, curved": (torch.eye(3, dtype=F64), vector(0.5, 0.25, -5), *ROOF),
    "one row three times": (EYE, vector(-3, -1), vector(1, 0).repeat(3, 1), vector(1, 1, 1)),
    "a multiplier of zero": (EYE, vector(-1, -1), EYE, vector(1, 2)),
    "a vertex by rows without multipliers": (ZERO, vector(0, 1), *WEDGE),
}


@pytest.mark.parametrize("name", KINKS)
def test_at_a_kink_the_derivative_is_that_of_one_side_and_flagged(name):
    Q, p, G, h = KINKS[name]
    sol = quadratic_program(Q, p, G, h)
    assert bool(sol.degenerate) and bool(sol.converged)
    J = jacrev(lambda h: quadratic_program(Q, p, G, h).value.x)(h)
    active = sol.value.inequality_duals > 0
    assert torch.linalg.matrix_rank(G[active]) == int(active.sum())
    if int(active.sum()) == len(p):  # a vertex of these rows
        columns = torch.linalg.inv(G[active])
    else:  # the rows that are not active give way: then nothing is degenerate, and that is the side
        aside = h + torch.where(active, 0.0, 1e-3)
        assert not bool(quadratic_program(Q, p, G, aside).degenerate)
        columns = jacrev(lambda h: quadratic_program(Q, p, G, h).value.x)(aside)[:, active]
    torch.testing.assert_close(J[:, active], columns)
    assert bool((J[:, ~active] == 0).all())
    mapped = vmap(lambda p: quadratic_program(Q, p, G, h).degenerate)(torch.stack([p, p]))
    assert mapped.tolist() == [True, True]
    with pytest.warns(ims.ConvergenceWarning, match="is degenerate"):
        quadratic_program(Q, p, G, h, on_failure="warn")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quadratic_program(Q, p, G, h, on_failure="mask")


def test_a_start_takes_one_step_where_its_active_set_holds_and_is_right_elsewhere():
    operands = regular_programs((16,), 32, 32, 2)
    before = quadratic_program(*operands)
    assert int(quadratic_program(*operands, start=before).iterations.max()) == 1
    away = torch.randn(16, 32, dtype=F64, generator=torch.Generator().manual_seed(1))
    for distance, most in ((1e-6, 1.0), (0.1, 2.5), (1.0, 6.0), (10.0, 20.0)):
        Q, p, *rest = operands
        moved = (Q, p + distance * away, *rest)
        cold, warm = quadratic_program(*moved), quadratic_program(*moved, start=before.value)
        assert float(warm.iterations.double().mean()) <= most
        # the minimizer and the multipliers of two solves to rounding, and a condition of 1e4
        torch.testing.assert_close(tuple(warm.value), tuple(cold.value), rtol=1e-9, atol=1e-10)
    one = quadratic_program(*(t[0] for t in operands))
    assert int(quadratic_program(*(t[:1] for t in operands), start=one).iterations) == 1


def test_the_optimum_is_differentiated_as_the_envelope_theorem_says():
    operands = [t.requires_grad_() for t in regular_programs((3,), 6, 7, 2)]
    x, duals, nu, _, optimum = quadratic_program(*operands).value
    found = torch.autograd.grad(optimum.sum(), operands)
    outer = lambda a, b: a.unsqueeze(-1) * b.unsqueeze(-2)
    expected = outer(x, x) / 2, x, outer(duals, x), -duals, outer(nu, x), -nu
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    # so it is where the minimizer is not the only one
    box, p = torch.cat([EYE, -EYE]), vector(1, 0).requires_grad_()
    h = torch.ones(4, dtype=F64, requires_grad=True)
    value = quadratic_program(ZERO, p, box, h).value
    slopes = torch.autograd.grad(value.objective, (p, h))
    torch.testing.assert_close(slopes, (value.x.detach(), vector(0, 0, -1, 0)))


@pytest.mark.parametrize("bad", ["infeasible", "unbounded", "NaN"])
def test_one_bad_lane_in_64_changes_no_bit_of_the_others(bad):
    good = regular_programs((64,), 8, 10, 2, 7)
    Q, p, G, h, A, b = spoiled = [t.clone() for t in good]
    if bad == "infeasible":
        G[5, 1], h[5, 1] = -G[5, 0], -h[5, 0] - 1
    elif bad == "unbounded":
        Q[5], G[5], A[5], b[5], h[5] = 0, G[5, :1], 0, 0, 1
    else:
        p[5, 0] = torch.nan
    weight = torch.linspace(1, 2, 8, dtype=F64)
    # (products of one lane and of two differ in the last bits: so nobody leaves here)
    solver = InteriorPoint(compact=False)
    clean, expected = solved(good, weight, solver=solver)
    other, found = solved(spoiled, weight, solver=solver)
    keep = torch.arange(64) != 5
    assert bool(other.status[5] > 0) and bool(other.converged[keep].all())
    for ours, theirs in zip((*other.value, *found), (*clean.value, *expected), strict=True):
        assert torch.equal(ours[keep], theirs[keep])
    assert all(bool((slope[5] == 0).all()) for slope in found)


def test_an_indefinite_matrix_is_not_sent_to_another_linear_solver():
    with pytest.raises(ims.ConvergenceError, match="INDEFINITE") as caught:
        quadratic_program(EYE - 3 * torch.ones_like(EYE), vector(1, 1))
    assert "LU()" not in str(caught.value) and "GMRES" not in str(caught.value)


def test_a_failed_lane_has_no_part_in_gradients_of_what_lanes_share():
    p, h = torch.randn(4, 3, dtype=F64), torch.ones(4, 3, dtype=F64)
    shared = torch.eye(3, dtype=F64), torch.eye(3, dtype=F64)
    h[1] = torch.nan

    def slopes(keep):
        Q, G = (t.clone().requires_grad_() for t in shared)
        value = quadratic_program(Q, p[keep], G, h[keep], on_failure="mask").value
        parts = value.x, value.slack, value.objective
        return torch.autograd.grad(sum(t.nan_to_num().sin().sum() for t in parts), (Q, G))

    for one, other in zip(slopes(slice(None)), slopes([0, 2, 3]), strict=True):
        torch.testing.assert_close(one, other)
