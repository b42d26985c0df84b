"""What a solve costs, counted: operations, and questions that the host waits for.

Budgets are what was measured when they were set: a step does not grow by an operation unseen.
Questions are what a GPU would be waited for, ``tolist()`` among them.
"""

import contextlib
from unittest import mock

import pytest
import torch
from torch.func import grad, jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

import implicit_solvers as ims
from implicit_solvers.problems.qp import quadratic_program

pytestmark = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13), reason="counted on torch 2.13"
)
F64 = torch.float64
QUESTIONS = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal")


class Count(TorchDispatchMode):
    """Counts operations and questions while it is open."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.questions = 0
        self.exits = contextlib.ExitStack()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += 1
        self.questions += func.__name__.split(".")[0] in QUESTIONS
        return func(*args, **(kwargs or {}))

    def __enter__(self):
        tolist = torch.Tensor.tolist

        def counted(tensor):
            self.questions += 1
            return tolist(tensor)

        self.exits.enter_context(mock.patch.object(torch.Tensor, "tolist", counted))
        return super().__enter__()

    def __exit__(self, *error):
        self.exits.close()
        return super().__exit__(*error)


torch.manual_seed(0)
N = 16
W = 0.5 * torch.randn(N, N, dtype=F64) / 4
X, START = torch.randn(1024, N, dtype=F64), torch.zeros(N, dtype=F64)


def f(z, x, W):
    return torch.tanh(W @ z) + z - x


def solve(x, W):
    return ims.root(f, START, (x, W), solver=ims.Newton()).value


def loss(x, W):
    return solve(x, W).sum()


def equilibrium(adjoint):
    """Return a batch of 256 equilibria of 128 unknowns, as a function of what drives them."""

    def solve(drive, W):
        cell = lambda z, W, drive: torch.tanh(z @ W.T + drive)
        options = {"solver": PICARD, "adjoint": ims.ImplicitAdjoint(adjoint)}
        options |= {"batch_dims": 1, "in_dims": (None, 0)}
        return ims.fixed_point(cell, torch.zeros_like(drive), (W, drive), **options).value

    return solve


def laplacian(b, d):
    """Solve with the five-point Laplacian on 64 x 64 points plus a positive field."""

    def product(v):
        grid = v.reshape(*v.shape[:-1], 64, 64)
        p = torch.nn.functional.pad(grid, (1, 1, 1, 1))
        near = p[..., :-2, 1:-1] + p[..., 2:, 1:-1] + p[..., 1:-1, :-2] + p[..., 1:-1, 2:]
        return ((4 + d.reshape(64, 64)) * grid - near).reshape(v.shape)

    A = ims.FunctionOperator(product, like=b, positive_definite=True)
    return ims.linear_solve(A, b, solver=ims.CG(rtol=1e-10)).value


IN_LANES = (0, None)
PICARD = ims.FixedPointIteration(rtol=1e-11, atol=1e-11)
Q = 0.95 * torch.linalg.qr(torch.randn(128, 128, dtype=F64))[0]
DRIVE, FIELD = torch.randn(256, 128, dtype=F64), torch.rand(4096, dtype=F64) + 0.5
RULES = {
    # forward; backward; both in operations and questions (of Picard's one whether residuals are
    # zero: rounding may hide what is left to go)
    "alone": (solve, X[0], W, (274, 10), (78, 1)),
    "lanes": (vmap(solve, IN_LANES), X, W, (711, 9), (77, 1)),
    "Picard, Neumann": (equilibrium(ims.Neumann(rtol=1e-10)), DRIVE, Q, (3225, 67), (1502, 67)),
    "Picard, LU": (equilibrium(ims.LU()), DRIVE, Q, (3225, 67), (97, 1)),
    "CG": (laplacian, torch.randn(4096, dtype=F64), FIELD, (1101, 77), (1089, 75)),
}
DRAW = {"generator": torch.Generator().manual_seed(0), "dtype": F64}
A, Y = torch.randn(60, N, **DRAW), (torch.rand(60, **DRAW) > 0.5).to(F64)


def logistic(w, weight):
    misfit = torch.nn.functional.binary_cross_entropy_with_logits(A @ w, Y, reduction="sum")
    return misfit + 0.5 * weight * w.dot(w)


def fit(solver):
    return lambda weight: ims.minimize(logistic, START, (weight,), solver=solver).value


def sparse_fit(weight):
    prox = lambda v, step, weight: v.sign() * (v.abs() - step).relu()
    return ims.minimize(logistic, START, (weight,), prox=prox)


def curve(z):
    return torch.exp(z[0] * TIMES) + z[1] - z[2] * TIMES - 2 * torch.exp(TIMES)


TIMES = torch.linspace(0, 1, 30, dtype=F64)
WEIGHTS = torch.linspace(1, 4, 64, dtype=F64)
ROOM = torch.rand(N, **DRAW)


def program(weight):
    """Solve eight quadratic programs."""
    Q = torch.eye(N, dtype=F64)
    return quadratic_program(Q, -weight * X[:8], W, ROOM).value.x


MORE = {
    "grad": (lambda W: grad(loss, 1)(X[0], W), (362, 11)),
    "grad of vmap": (lambda W: grad(lambda W: vmap(loss, IN_LANES)(X, W).sum())(W), (786, 10)),
    "jvp": (lambda W: jvp(lambda W: solve(X[0], W), (W,), (W,)), (367, 11)),
    "default": (lambda W: ims.root(f, START, (X[0], W)), (272, 10)),
    "default, lanes": (lambda W: vmap(lambda x: ims.root(f, START, (x, W)).value)(X), (771, 9)),
    "Levenberg-Marquardt": (lambda _: ims.least_squares(curve, START[:3]), (1319, 53)),
    "L-BFGS": (lambda _: fit(ims.LBFGS())(WEIGHTS[0]), (2174, 214)),
    "L-BFGS, lanes": (lambda _: vmap(fit(ims.LBFGS()))(WEIGHTS), (8158, 36)),
    "BFGS": (lambda _: fit(ims.BFGS())(WEIGHTS[0]), (1684, 181)),
    "conjugate gradients": (lambda _: fit(ims.NonlinearCG())(WEIGHTS[0]), (3671, 607)),
    "minimum": (lambda _: fit(None)(WEIGHTS[0]), (724, 47)),
    "minimum, lanes": (lambda _: vmap(fit(None))(WEIGHTS), (2284, 12)),
    "FISTA": (lambda _: sparse_fit(WEIGHTS[0]), (3769, 208)),
    # 11299 on torch 2.13, 11303 on 2.15
    "FISTA, lanes": (lambda _: vmap(sparse_fit)(WEIGHTS), (11303, 42)),
    "quadratic programs": (lambda _: program(WEIGHTS[0]), (1906, 42)),
    "Newton-CG": (lambda _: fit(ims.NewtonCG())(WEIGHTS[0]), (1207, 126)),
    "Newton-CG, lanes": (lambda _: vmap(fit(ims.NewtonCG()))(WEIGHTS), (6083, 52)),
}


def measured(call) -> tuple[tuple[int, int], object]:
    """Call twice, and count the second time."""
    call()
    with Count() as count:
        out = call()
    print(f"{count.operations} operations, {count.questions} questions")
    return (count.operations, count.questions), out


@pytest.mark.parametrize("name", RULES)
def test_a_solve_and_its_backward_pass_stay_within_their_budgets(name):
    call, x, weight, forward, backward = RULES[name]
    weight = weight.clone().requires_grad_()
    found, z = measured(lambda: call(x, weight))
    back, _ = measured(lambda: torch.autograd.grad(z.sum(), weight, retain_graph=True))
    assert all(a <= b for a, b in zip(found + back, forward + backward, strict=True))


@pytest.mark.parametrize("name", MORE)
def test_it_stays_within_its_budget(name):
    call, budget = MORE[name]
    found, _ = measured(lambda: call(W))
    assert all(a <= b for a, b in zip(found, budget, strict=True))


def test_the_count_counts():
    with Count() as count:
        [t := torch.ones(3) + 1, t.tolist(), bool((t == 2).all())]
    assert count.questions == 2 and count.operations >= 5
