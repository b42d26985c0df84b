"""Lanes: a batch is the loop over its lanes, and a lane that fails is alone with it.

Each entry point has a table of good and bad lanes: an unknown of two entries, its start, and six
coefficients of one family of equations, with a parameter ``s`` that all lanes share in ``args``
and another, ``c``, that the function captures.
"""

import itertools
import math
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils._pytree import tree_leaves

import implicit_solvers as ims
from implicit_solvers import Status

F64 = torch.float64
EPS = torch.finfo(F64).eps
NAN = math.nan
S, C = torch.tensor(1.1, dtype=F64), torch.tensor(0.9, dtype=F64)


def tensor(x):
    return torch.tensor(x, dtype=F64)


def f(z, p, s, c):
    p = p.unsqueeze(-2)
    powers = p[..., 1] * z + p[..., 2] * z**2 + p[..., 3] * z**3
    return s * c * p[..., 0] + powers + p[..., 4] * z.flip(-1) + p[..., 5] * torch.exp(-z)


def objective(z, p, s, c):
    """Return a function whose gradient is ``f``."""
    q = p.unsqueeze(-2)
    powers = q[..., 1] * z**2 / 2 + q[..., 2] * z**3 / 3 + q[..., 3] * z**4 / 4
    rest = s * c * q[..., 0] * z + q[..., 4] * z * z.flip(-1) / 2 - q[..., 5] * torch.exp(-z)
    return (powers + rest).sum(-1)


def picard_map(z, p, s, c):
    return z - 0.3 * f(z, p, s, c)


def residuals(z, p, s, c):
    """Return three residuals, which do not vanish together."""
    return torch.cat([f(z, p, s, c), 0.1 * s * (z.sum(-1, keepdim=True) - 1)], -1)


def by_newton(z, p, s):
    """Solve ``f = 0`` in plain torch: full steps, and whatever they lead to."""
    q = p.unsqueeze(-2)
    for _ in range(60):
        slope = q[..., 1] + 2 * q[..., 2] * z + 3 * q[..., 3] * z**2 - q[..., 5] * torch.exp(-z)
        r, mix = f(z, p, s, C.detach()), q[..., 4]
        step = (slope.flip(-1) * r - mix * r.flip(-1)) / (slope.prod(-1, keepdim=True) - mix**2)
        z = z - torch.where(r == 0, 0.0, step)
    return z


# the start (both entries) and the coefficients of a lane
EASY = (1.0, (-1, 2, 0, 0.1, 0.3, 0))
OTHER = (0.3, (-0.5, 1.5, 0.1, 0.2, -0.4, 0))
HARD = (20.0, (-1, 0, 0, 1, 0, 0))
DOUBLE = (1.0, (0, 0, 1, 0, 0, 0))
NO_ROOT = (2.0, (1, 0, 1, 0, 0, 0))
DIVERGENT = (1.0, (0.1, 0, 0, 0, 0, 1))
SINGULAR = (0.0, (-1, 0, 0, 1, 0, 0))
# not finite in what multiplies the shared parameters: zero times it is NaN
NAN_LANE = (1.0, (NAN, 2, 0, 0.1, 0.3, 0))

NEWTON = (
    {"easy": EASY, "hard": HARD, "other": OTHER, "double": DOUBLE},
    {"no root": NO_ROOT, "divergent": DIVERGENT, "singular": SINGULAR, "nan": NAN_LANE},
)
PICARD = (
    {"easy": EASY, "hard": (1.0, (-1, 0.8, 0, 0, 0, 0)), "other": OTHER,
     "quick": (1.0, (-1, 3, 0, 0, 0, 0))},
    {"no root": (1.0, (1, 0, 0, 0, 0, 0)), "divergent": (1.0, (-1, -1, 0, 0, 0, 0)),
     "double": DOUBLE, "nan": NAN_LANE},
)  # fmt: skip
MINIMA = (
    {"easy": EASY, "hard": HARD, "other": OTHER, "singular": SINGULAR},
    {"no minimum": NO_ROOT, "unbounded": (1.0, (-1, 0, 0, 0, 0, 0)),
     "concave": (1.0, (-0.1, -1, 0, 0, 0, 0)), "nan": NAN_LANE},
)  # fmt: skip
FITS = (
    {"easy": EASY, "hard": HARD, "other": OTHER, "double": DOUBLE},
    {"inf": (1.0, (math.inf, 1, 0, 0, 0, 0)), "flat": (1.0, (0, 0, 0, 0, 0, 0)),
     "singular": SINGULAR, "nan": NAN_LANE},
)  # fmt: skip
# for linear systems the start is the right-hand side, and p a matrix that a shared factor scales
SYSTEMS = (
    {"easy": (1.0, (2, 0.5, 0.5, 1)), "other": (-2.0, (3, -1, -1, 2)),
     "diagonal": (0.5, (0.3, 0, 0, 5)), "hard": (1.0, (1, 0.99, 0.99, 1))},
    {"zero": (1.0, (0, 0, 0, 0)), "nan": (1.0, (2, NAN, NAN, 1)), "nan b": (NAN, (2, 0, 0, 1)),
     "inf": (1.0, (math.inf, 0, 0, 1))},
)  # fmt: skip


def lane_tensors(lanes):
    """Return starts (L, 2) and coefficients (L, k)."""
    starts = torch.stack([torch.full((2,), z0, dtype=F64) for z0, _ in lanes])
    starts = starts * tensor([1.0, 1.2])
    return starts, torch.stack([tensor(p) for _, p in lanes])


@dataclass(frozen=True)
class Entry:
    """An entry point: ``solve(z0, p, s, c, policy, **lane options)`` and its lanes."""

    name: str
    solve: Callable[..., Any]
    condition: Callable[..., Any]
    table: tuple[dict[str, Any], dict[str, Any]]
    native: bool = True

    def __str__(self):
        return self.name

    good = property(lambda self: list(self.table[0].values()))
    bad = property(lambda self: list(self.table[1].values()))

    @property
    def ways(self):
        return WAYS if self.native else ("vmap", "nested")

    def batch(self, way, Z, P, s=S, c=C, policy="mask"):
        """Solve many lanes and return the solution with its lanes in one dimension."""
        count = len(Z)
        lanes = {"batch_dims": 1, "in_dims": (0, None)} if way in ("in_dims", "mixed") else {}

        def one(z, p):
            return self.solve(z, p, s, c, policy, **lanes)

        if way == "in_dims":
            return one(Z, P)
        if way == "vmap":
            return vmap(one)(Z, P)
        Z, P = (t.reshape(*grid(way, count), -1) for t in (Z, P))
        for _ in grid(way, count)[way == "mixed" :]:
            one = vmap(one)
        sol = one(Z, P)
        fields = (sol.converged, sol.iterations, sol.residual, sol.error, sol.status)
        return ims.Solution(sol.value.reshape(count, 2), *(t.reshape(count) for t in fields))


WAYS = ("vmap", "in_dims", "mixed", "nested")


def grid(way, count):
    """Return the dimensions of lanes: up to two that are mixed, up to three that are nested."""
    if way in ("vmap", "in_dims"):
        return (count,)
    outer = next(k for k in (2, 3, 5, 1) if count % k == 0)
    return (2, 2, 2) if way == "nested" and count == 8 else (outer, count // outer)


def gradient_of_fit(z, p, s, c):
    return grad(lambda z: 0.5 * residuals(z, p, s, c).square().sum())(z)


# of each equation: the function, the condition, and the lanes
EQUATIONS = {
    "root": (f, f, NEWTON),
    "fixed_point": (picard_map, lambda *a: 0.3 * f(*a), PICARD),
    "minimize": (objective, f, MINIMA),
    "least_squares": (residuals, gradient_of_fit, FITS),
}


def equation(kind, solver, adjoint=None, name=None):
    fn, condition, table = EQUATIONS[kind]

    def solve(z, p, s, c, policy, **lanes):
        options = {"solver": solver, "adjoint": adjoint, "on_failure": policy, **lanes}
        return getattr(ims, kind)(lambda z, p, s: fn(z, p, s, c), z, (p, s), **options)

    return Entry(name or kind, solve, condition, table)


def attached(kind, solver):
    """Return the solution of a solver, with derivatives that are attached to it afterwards."""
    (fn, condition, table), find = EQUATIONS[kind], getattr(ims, kind)

    def solve(z, p, s, c, policy, **lanes):
        call, options = lambda z, p, s: fn(z, p, s, c), {"on_failure": policy, **lanes}
        found = find(call, z, (p.detach(), s.detach()), solver=solver, **options)
        return ims.attach(call, found, (p, s), equation=find, **options)

    return Entry(f"attached-{kind}", solve, condition, table)


def custom(method):
    def solve(z, p, s, c, policy):
        decorate = ims.custom_root(
            lambda z, p, s: f(z, p, s, c), vmap_method=method, on_failure=policy
        )
        return decorate(by_newton)(z, p, s)

    # a double root is found to 1e-8 only or so; full steps leave the singular start by infinity
    return Entry(f"custom_root-{method}", solve, f, NEWTON, native=False)


def system(solver):
    def solve(b, p, s, c, policy):
        A = ims.FunctionOperator(
            lambda v: s * c * (p.reshape(2, 2) @ v), like=b.detach(), positive_definite=True
        )
        return ims.linear_solve(A, b, solver=solver, on_failure=policy)

    condition = lambda x, p, s, c: s * c * (p.reshape(2, 2) @ x) - 1
    return Entry(f"linear_solve-{type(solver).__name__}", solve, condition, SYSTEMS, native=False)


def entries(compact):
    """Return the entries whose solvers compact their lanes, or mask them."""
    how = {"compact": compact}
    return [
        equation("root", ims.Newton(max_steps=50, halvings=8, **how)),
        equation("fixed_point", ims.FixedPointIteration(max_steps=150, **how)),
        equation("minimize", ims.NewtonCG(max_steps=15, **how)),
        equation("least_squares", ims.GaussNewton(max_steps=40, halvings=8, **how)),
        system(ims.CG(**how)),
        system(ims.GMRES(**how)),
    ]


def krylov_entries(compact):
    """Return further ones, whose steps and adjoints are lane by lane too."""
    gmres, cg = (kind(rtol=1e-13, compact=compact) for kind in (ims.GMRES, ims.CG))
    newton = ims.Newton(max_steps=50, linear_solver=gmres, compact=compact)
    descent = ims.NewtonCG(max_steps=15, compact=compact)
    return [
        equation("root", newton, ims.ImplicitAdjoint(gmres), "root-GMRES"),
        equation("fixed_point", ims.Anderson(max_steps=50, compact=compact), name="Anderson"),
        equation("minimize", descent, ims.ImplicitAdjoint(cg), "minimize-CG"),
    ]


ENTRIES = [*entries(True), system(ims.LU()), custom("loop"), custom("batched")]
ENTRIES += [attached("minimize", ims.NewtonCG(max_steps=15, max_products=50))]
PAIRS = [*zip(entries(True), entries(False), strict=True)]
PAIRS += zip(krylov_entries(True), krylov_entries(False), strict=True)
CASES = [pytest.param(e, w, id=f"{e}-{w}") for e in ENTRIES for w in e.ways]
COMPACT = [c for c in CASES if c.values[0].name != "custom_root-loop"]
FEW = [c for c in CASES if c.values[1] in ("vmap", "in_dims")]
two_ways = pytest.mark.parametrize("entry, way", FEW)


def quiet(fn):
    """Run ``fn`` and return its result and the convergence warnings it gave."""
    with warnings.catch_warnings(record=True) as log:
        warnings.simplefilter("always")
        out = fn()
    return out, [w for w in log if issubclass(w.category, ims.ConvergenceWarning)]


def loss(sol):
    """Return a smooth function of the lanes that converged."""
    kept = torch.where(sol.converged.unsqueeze(-1), sol.value, 0.0)
    return (kept.sin() * tensor([1.0, -0.5])).sum()


def gradients(entry, way, Z, P, policy="mask"):
    """Return the solution, and the gradients of the loss in the lanes' tensors, s and c."""
    P, s, c = (t.clone().requires_grad_() for t in (P, S, C))
    (sol, grads), log = quiet(lambda: _backward(entry, way, Z, P, s, c, policy))
    return sol, grads, log


def _backward(entry, way, Z, P, s, c, policy):
    sol = entry.batch(way, Z, P, s, c, policy)
    return sol, torch.autograd.grad(loss(sol), (P, s, c))


def single(entry, z, p, policy="mask"):
    p, s, c = (t.clone().requires_grad_() for t in (p, S, C))

    def run():
        sol = entry.solve(z, p, s, c, policy)
        if not bool(sol.converged):
            return sol, None
        return sol, torch.autograd.grad(loss(sol), (p, s, c))

    return quiet(run)[0]


def condition_number(entry, z, p):
    """Return the norm of the inverse Jacobian at a solution, at least 1."""
    J = torch.func.jacrev(lambda z: entry.condition(z, p, S, C))(z.detach())
    return max(1.0, float(torch.linalg.matrix_norm(torch.linalg.inv(J), 2)))


def close(a, b, bound, what):
    a, b = a.detach(), b.detach()
    size = max(1.0, float(b.abs().max())) if b.numel() else 1.0
    worst = float((a - b).abs().max()) if b.numel() else 0.0
    assert worst <= bound * size, (what, worst, bound * size)


# -- a batch is the loop over its lanes --------------------------------------------------------

# by way: the places of the good lanes (numbers 0 to 3) and the bad ones
ORDERS = {
    "vmap": [0, 4, 1, 5, 2, 6, 3, 7],
    "in_dims": [6, 3, 0, 5, 2, 7, 1, 4],
    "mixed": [4, 5, 6, 7, 0, 1, 2, 3],
    "nested": [3, 2, 7, 1, 0, 6, 5, 4],
}


@pytest.mark.parametrize(
    "entry, way, policy",
    [pytest.param(*c.values, "mask", id=c.id) for c in CASES]
    + [pytest.param(*c.values, "warn", id=f"{c.id}-warn") for c in COMPACT if c in FEW],
)
def test_a_batch_is_the_loop_over_its_lanes(entry, way, policy):
    lanes, order = [*entry.good, *entry.bad], torch.tensor(ORDERS[way])
    Z, P = lane_tensors([lanes[i] for i in order])
    sol, (gP, gs, gc), log = gradients(entry, way, Z, P, policy)
    assert torch.equal(sol.converged, order < 4)
    words = [str(w.message) for w in log]
    assert policy == "mask" or any("failed in 4 of 8 problems (problem " in w for w in words), words
    total_s, total_c, slack = 0.0, 0.0, 0.0
    for i in range(8):
        one, grads = single(entry, Z[i], P[i], policy)
        assert int(sol.status[i]) == int(one.status), i
        if not bool(one.converged):
            assert policy == "warn" or not gP[i].any()
            continue
        assert abs(int(sol.iterations[i]) - int(one.iterations)) <= 1, i
        cond = condition_number(entry, one.value, P[i])
        bound = 100 * EPS * cond
        if int(sol.iterations[i]) != int(one.iterations):
            bound = 10 * EPS**0.75 * cond**2
        close(sol.value[i], one.value, bound, ("value", i))
        close(gP[i], grads[0], bound, ("gradient", i))
        total_s, total_c = total_s + grads[1], total_c + grads[2]
        slack += bound * max(1.0, float(grads[1].abs()), float(grads[2].abs()))
    if policy == "mask":
        close(gs, total_s, slack, "shared")
        close(gc, total_c, slack, "captured")


# -- mask: a bad lane is alone with it ---------------------------------------------------------


def total(entry, way, Z):
    return lambda P, s, c: loss(entry.batch(way, Z, P, s, c))


def derivative_backward(entry, way, Z, P):
    _, (gP, gs, gc), _ = gradients(entry, way, Z, P)
    return gP, (gs, gc)


def derivative_grad_over_vmap(entry, way, Z, P):
    gP, gs, gc = grad(total(entry, way, Z), argnums=(0, 1, 2))(P, S, C)
    return gP, (gs, gc)


def derivative_vmap_of_grad(entry, way, Z, P):
    """The gradient of each lane, in its own tensors and in those that the lanes share."""
    if way == "in_dims":
        weights = torch.eye(len(Z), dtype=F64)  # one cotangent for each lane, batched
        fn = lambda P, s, c: entry.batch(way, Z, P, s, c).value.sum(-1)
        _value, pull = torch.func.vjp(fn, P, S, C)
        gP, gs, gc = vmap(pull)(weights)
        return torch.stack([gP[i, i] for i in range(len(Z))]), (), (gs, gc)

    def one(z, p, s, c):
        return entry.solve(z, p, s, c, "mask").value.sum()

    gp, gs, gc = vmap(grad(one, argnums=(1, 2, 3)), in_dims=(0, 0, None, None))(Z, P, S, C)
    return gp, (), (gs, gc)


def derivative_jvp(entry, way, Z, P):
    """The tangents of the lanes, along their own tensors and along the shared ones."""
    fn = lambda P, s, c: entry.batch(way, Z, P, s, c).value
    _, dz = jvp(fn, (P, S, C), (torch.ones_like(P), torch.zeros_like(S), torch.zeros_like(C)))
    _, ds = jvp(fn, (P, S, C), (torch.zeros_like(P), torch.ones_like(S), torch.ones_like(C)))
    return dz, (), (ds,)


def second_order(outer, first):
    """Differentiate the gradient in the arguments ``first``: by lane, and in shared tensors."""

    def derive(entry, way, Z, P):
        H = outer(grad(total(entry, way, Z), argnums=first), argnums=(0, 1, 2))(P, S, C)
        rows = [blocks[0] for k, blocks in zip(first, H, strict=True) if k]
        if first[0] == 0:
            rows += [torch.stack([H[0][0][i, :, i] for i in range(len(Z))]), *H[0][1:]]
        shared = [x for k, blocks in zip(first, H, strict=True) if k for x in blocks[1:]]
        return torch.cat([r.reshape(len(Z), -1) for r in rows], 1), shared

    return derive


def derivative_double_backward(entry, way, Z, P):
    P, s, c = (t.clone().requires_grad_() for t in (P, S, C))
    value = total(entry, way, Z)(P, s, c)
    gP, gs, gc = torch.autograd.grad(value, (P, s, c), create_graph=True)
    again = gs.sin() + gc**2 + (gP.sum(-1) ** 2).sum()
    gP, gs, gc = torch.autograd.grad(again, (P, s, c))
    return gP, (gs, gc)


DERIVATIVES = {
    "backward": derivative_backward,
    "grad_over_vmap": derivative_grad_over_vmap,
    "vmap_of_grad": derivative_vmap_of_grad,
    "jvp": derivative_jvp,
    "double_backward": derivative_double_backward,
    "hessian": second_order(jacfwd, (0, 1, 2)),
    "reverse_over_reverse": second_order(jacrev, (1, 2)),
}
MASKED = [
    pytest.param(*c.values, what, id=f"{c.id}-{what}")
    for c in FEW
    for what in DERIVATIVES
    if what == "backward" or c in COMPACT
]


def interleaved(entry):
    """Return lanes, the good ones among them alone, and where these are."""
    # a double root's derivatives are as large as its Jacobian is small: not among the good here
    good = [lane for name, lane in entry.table[0].items() if name != "double"]
    bad = entry.bad
    lanes = [bad[0], good[0], bad[1], *good[1:], *bad[2:]]
    return lanes, good, torch.tensor([lane in good for lane in lanes])


@pytest.mark.parametrize("entry, way, what", MASKED)
def test_mask_bad_lanes_change_no_other_derivative(entry, way, what):
    lanes, good, keep = interleaved(entry)
    derive = DERIVATIVES[what]
    own, shared, *by_lane = quiet(lambda: derive(entry, way, *lane_tensors(lanes)))[0]
    alone, alone_shared, *alone_by_lane = quiet(lambda: derive(entry, way, *lane_tensors(good)))[0]
    bound = 1e-8 if what in ("hessian", "double_backward", "reverse_over_reverse") else 1e-10
    close(own[keep], alone, bound, "own")
    assert not own[~keep].any()
    for a, b in zip(shared, alone_shared, strict=True):
        assert float(b.abs()) > 1e-6  # so that an averaged or lost gradient is seen
        close(a, b, bound, "shared")
    for per_lane, alone_per_lane in zip(by_lane, alone_by_lane, strict=True):
        for a, b in zip(per_lane, alone_per_lane, strict=True):
            close(a[keep], b, bound, "shared, of each lane")
            assert not a[~keep].any()


# long, and of the mechanism of the rows linear_solve-CG and linear_solve-GMRES
ITERATIVE, LONG = {"minimize-CG", "root-GMRES"}, pytest.mark.nightly


@pytest.mark.parametrize(
    "pair, way",
    [
        pytest.param(pair, w, id=f"{pair[0]}-{w}", marks=LONG if str(pair[0]) in ITERATIVE else ())
        for pair in PAIRS
        for w in pair[0].ways
    ],
)
def test_masked_mode_and_compaction_agree(pair, way):
    """With ``compact=False``: values, statistics, every derivative."""
    Z, P = lane_tensors(interleaved(pair[0])[0])
    sol, masked = (quiet(lambda e=e: e.batch(way, Z, P))[0] for e in pair)
    assert torch.equal(masked.status, sol.status)
    assert torch.equal(masked.iterations, sol.iterations)
    close(masked.value[sol.converged], sol.value[sol.converged], 1e-9, "value")
    for what in DERIVATIVES if way in ("vmap", "in_dims") else ("backward",):
        both = [tree_leaves(quiet(lambda: DERIVATIVES[what](e, way, Z, P))[0]) for e in pair]  # noqa: B023
        for a, b in zip(*both, strict=True):
            # batches of another size round in another order
            close(a, b, 1e-9, what)


@pytest.mark.parametrize("entry, way", [c for c in COMPACT if c in FEW])
def test_every_lane_bad(entry, way):
    sol, grads, _ = gradients(entry, way, *lane_tensors(entry.bad))
    assert not sol.converged.any() and not any(g.any() for g in grads)


# -- raise names the lanes ---------------------------------------------------------------------


def named(message):
    """Return the lanes that an error names: numbers, or tuples of them."""
    found = re.findall(r"problem (\d+|\(\d+(?:, \d+)*\)): ([A-Z_]+) after", message)
    return {
        tuple(map(int, re.findall(r"\d+", lane))): Status[status].value for lane, status in found
    }


@pytest.mark.parametrize("entry, way", COMPACT)
def test_raise_names_the_failed_lanes(entry, way):
    lanes = [*entry.good, *entry.bad]
    order = [5, 0, 1, 4, 2, 6, 7, 3]
    Z, P = lane_tensors([lanes[i] for i in order])
    status = quiet(lambda: entry.batch(way, Z, P))[0].status
    with pytest.raises(ims.ConvergenceError) as error:
        entry.batch(way, Z, P, policy="raise")
    places = [0, 3, 5, 6]
    index = list(itertools.product(*map(range, grid(way, 8))))
    assert named(str(error.value)) == {index[i]: int(status[i]) for i in places}
    assert "failed in 4 of 8 problems" in str(error.value)


def at_double_root(way, policy, cotangent, p=None):
    """Stop in four lanes, of which number 2 is at a double root exactly, and pull back."""
    easy, other = EASY[1], OTHER[1]
    Z = tensor([[1.0, 1.0], [0.5, 0.5], [0.0, 0.0], [1.0, 0.3]])
    P = tensor([easy, other, (0, 0, 1, 0, 0, 0), easy]).requires_grad_()
    s = S.clone().requires_grad_()
    budget = equation("root", ims.Newton(rtol=None, max_steps=0))
    sol = budget.batch(way, Z, P, s, C, policy)
    assert (sol.status == Status.BUDGET).all()
    assert torch.equal(sol.value[2].detach(), torch.zeros(2, dtype=F64))
    weighted = (sol.value * tensor(cotangent).unsqueeze(-1)).sum()
    (gP, gs), log = quiet(lambda: torch.autograd.grad(weighted, (P, s)))
    return gP, gs, log


@pytest.mark.parametrize("way", WAYS)
def test_backward_at_a_double_root_fails_under_the_policy(way):
    all_four, but_one = [1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 1.0]
    with pytest.raises(ims.ConvergenceError, match="adjoint of root.*SINGULAR") as error:
        at_double_root(way, "raise", all_four)
    place = (2,) if way in ("vmap", "in_dims") else (1, 0)
    assert named(str(error.value)) == {place: Status.SINGULAR}
    for policy in ("warn", "mask", "raise"):
        # a lane that nothing depends on does not fail
        exact, exact_s, log = at_double_root(way, policy, but_one)
        assert not log and not exact[2].any()
        assert torch.isfinite(exact).all() and torch.isfinite(exact_s)
        assert float(exact[0].abs().max()) > 0.1
    for policy in ("warn", "mask"):
        ours, shared, log = at_double_root(way, policy, all_four)
        assert len(log) == 1 and re.search("adjoint of root.*SINGULAR", str(log[0].message))
        # the same systems, in other company
        close(ours[[0, 1, 3]], exact[[0, 1, 3]], 1e-12, policy)
    assert not ours[2].any()
    close(shared, exact_s, 1e-12, "shared")


# -- levels of lanes ---------------------------------------------------------------------------


def cube_system(z, a, b, s):
    """Return an equation whose Jacobian is coupled and whose parameters come at three levels."""
    return z + 0.2 * z**3 + 0.3 * s * z.flip(-1) - a * b


A3 = torch.linspace(-1, 1, 2 * 3 * 2, dtype=F64).reshape(2, 3, 2)
B3 = tensor([0.5, -1.5, 2.0])


def coupled(a, b, s):
    start = torch.ones(2, dtype=F64)
    return ims.root(cube_system, start, (a, b, s), on_failure="mask").value


def test_three_levels_are_three_loops():
    """``a`` has levels 0 and 2, ``b`` level 1, ``s`` level 0."""
    s = tensor([0.7, 1.3])
    a = tensor([[0.5, 1.0], [-2.0, 0.1]])

    def three(fn):
        inner = vmap(fn, in_dims=(0, None, None))
        return vmap(vmap(inner, in_dims=(None, 0, None)), in_dims=(0, None, 0))

    functions = {
        "value": coupled,
        "grad": grad(lambda a, b, s: coupled(a, b, s).sin().sum(), argnums=(0, 1, 2)),
        "hessian": hessian(lambda a, b, s: coupled(a, b, s).sin().sum(), argnums=2),
        "jvp": lambda a, b, s: jvp(coupled, (a, b, s), (a + 1, b * 2, s))[1],
    }
    for name, fn in functions.items():
        batch = tree_leaves(three(fn)(a, B3, s))
        for place in itertools.product(range(2), range(3), range(2)):
            i, j, k = place
            alone = tree_leaves(fn(a[i, k], B3[j], s[i]))
            for x, y in zip(batch, alone, strict=True):
                close(x[place], y, 1e-12, (name, place))


def test_vmap_of_grad_inside_vmap():
    """The outer lanes share ``s`` among the inner; the inner gradient is summed over nothing."""
    one = lambda a, s: coupled(a, tensor(1.0), s).square().sum()
    s, alone = tensor([0.5, 1.0]), grad(one, argnums=(0, 1))
    batch = vmap(lambda a, s: vmap(alone, (0, None))(a, s))(A3, s)
    summed = vmap(grad(lambda s, a: vmap(one, (0, None))(a, s).sum()))(s, A3)
    for i, j in itertools.product(range(2), range(3)):
        for x, y in zip(batch, alone(A3[i, j], s[i]), strict=True):
            close(x[i, j], y, 1e-12, (i, j))
    close(summed, batch[1].sum(1), 1e-12, "summed")


@two_ways
@pytest.mark.parametrize("count", [0, 1])
def test_no_lane_and_one_lane(entry, way, count):
    """``vmap`` itself allows a dimension of size 0 for most operations, and so does a solve."""
    Z, P = (t[:count] for t in lane_tensors([entry.good[0]]))
    sol, grads, log = gradients(entry, way, Z, P)
    assert sol.value.shape == (count, 2) and sol.status.shape == (count,) and not log
    assert grads[0].shape == P.shape
    if count == 0:
        assert float(grads[1]) == float(grads[2]) == 0
        return
    one, alone = single(entry, Z[0], P[0])
    assert int(sol.status[0]) == int(one.status) == 0
    for a, b in zip(
        (sol.value, *grads), (one.value[None], alone[0][None], *alone[1:]), strict=True
    ):
        close(a, b, 1e-12, "one lane")


@pytest.mark.parametrize("way", ["vmap", "in_dims"])
@pytest.mark.parametrize("compact", [True, False])
def test_very_many_lanes(way, compact):
    """x^2 = a s and x y = b: x = sqrt(a s), y = b / x; one lane in 1,000 has a NaN."""
    count = 65_536
    good = torch.arange(count) % 1000 != 0
    a = torch.linspace(0.1, 10, count, dtype=F64)
    b = torch.linspace(-3, 3, count, dtype=F64)
    p = torch.stack([torch.where(good, a, NAN), b], -1).requires_grad_()
    s = tensor(1.3).requires_grad_()

    def fn(z, p, s):
        x, y = z.unbind(-1)
        return torch.stack([x**2 - p[..., 0] * s, x * y - p[..., 1]], -1)

    options = {"solver": ims.Newton(compact=compact), "on_failure": "mask"}
    start = torch.ones(count, 2, dtype=F64)
    began = time.perf_counter()
    if way == "vmap":
        sol = vmap(lambda z, p: ims.root(fn, z, (p, s), **options))(start, p)
    else:
        sol = ims.root(fn, start, (p, s), batch_dims=1, in_dims=(0, None), **options)
    sol.value[sol.converged].sum().backward()
    assert time.perf_counter() - began < 20
    assert torch.equal(sol.converged, good)
    x = (a * s.detach()).sqrt()
    y = b / x
    torch.testing.assert_close(sol.value[good], torch.stack([x, y], -1)[good])
    torch.testing.assert_close(s.grad, ((x - y) / (2 * s))[good].sum().detach())
    exact = torch.stack([(x - y) / (2 * a), 1 / x], -1)
    torch.testing.assert_close(p.grad[good], exact[good])
    assert not p.grad[~good].any()
