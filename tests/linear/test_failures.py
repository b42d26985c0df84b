"""What cannot be solved is said, by a status and under every policy; other lanes do not notice."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch.func import hessian, jacfwd, jacrev, vmap

import implicit_solvers as ims
from implicit_solvers import Status
from tests.linear import systems
from tests.linear.systems import BY_NAME, EYE, F32, F64, SOLVERS, B, error, seeded, with_eigenvalues

MIXED = ims.GMRES(inner_dtype=F32)
FLAGS = {"CG": "positive_definite", "Cholesky": "positive_definite", "MINRES": "symmetric"}


def matrix_for(solver):
    """Return how to make an operator that the solver takes."""
    flag = FLAGS.get(type(solver).__name__)
    return lambda A: ims.MatrixOperator(A, **({flag: True} if flag else {}))


def diagonal(*entries):
    return torch.diag(torch.tensor(entries, dtype=F64))


# -- statuses ----------------------------------------------------------------------------------

I = torch.arange(12, dtype=F64)  # noqa: E741
HILBERT = 1 / (I[:, None] + I + 1)
ROTATION = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=F64)
SHIFT = torch.eye(8, dtype=F64).roll(1, 0)
SKEW = torch.tensor([[0.0, 1.0, 0.0], [-1.0, 0.0, 2.0], [0.0, -2.0, 0.0]], dtype=F64)
RANK_1 = torch.ones(3, 2, dtype=F64)
HUGE = 1e200 * EYE
ZERO, NAN, INF = 0 * EYE, math.nan * EYE, diagonal(1.0, math.inf, 2.0)

FAILURES = [
    (ims.CG(), diagonal(1, -2, 3), "INDEFINITE"),
    (ims.CG(), diagonal(-1, 1, 2), "INDEFINITE"),
    (ims.CG(), diagonal(-0.1, 1, 2), "INDEFINITE"),
    (ims.CG(), -EYE, "INDEFINITE"),
    (ims.CG(), ZERO, "INDEFINITE"),
    (ims.CG(), HILBERT, "MAX_STEPS", {"max_steps": 2}),
    (ims.CG(), HUGE, "NONFINITE", {}, 1e130),
    (ims.Cholesky(), diagonal(1, -2, 3), "INDEFINITE"),
    (ims.GMRES(), SHIFT, "MAX_STEPS", {"max_steps": 4}),
    (ims.GMRES(), SHIFT, "MAX_STEPS", {"max_steps": 50, "restart": 4}),
    (ims.GMRES(), ROTATION, "MAX_STEPS", {"max_steps": 50, "restart": 1}),
    (ims.GMRES(), diagonal(1, 0), "BREAKDOWN"),
    (ims.GMRES(), ZERO, "BREAKDOWN"),
    (MIXED, diagonal(1, 0), "BREAKDOWN"),
    (MIXED, ZERO, "BREAKDOWN"),
    (MIXED, ROTATION, "MAX_STEPS", {"max_steps": 40, "restart": 1}),
    (ims.MINRES(), diagonal(1, 0), "BREAKDOWN"),
    (ims.MINRES(), ZERO, "BREAKDOWN"),
    (ims.MINRES(), HILBERT, "MAX_STEPS", {"max_steps": 2}),
    (ims.BiCGStab(), ROTATION, "BREAKDOWN"),
    (ims.BiCGStab(), SKEW, "BREAKDOWN"),
    (ims.BiCGStab(), ZERO, "BREAKDOWN"),
    (ims.BiCGStab(), SHIFT, "MAX_STEPS", {"max_steps": 2}),
    (ims.BiCGStab(), torch.eye(50, dtype=F64).roll(1, 0), "BREAKDOWN", {}, diagonal(*seeded(50))),
    # a budget that is worse than zero: the residual of the other families never grows
    (ims.CG(), HILBERT, "MAX_STEPS", {"max_steps": 1, "rtol": None}, diagonal(*seeded(12))),
    (ims.BiCGStab(), diagonal(1, -2, 3), "MAX_STEPS", {"max_steps": 1, "rtol": None}),
    (ims.Neumann(), 3.75 * EYE, "MAX_STEPS", {"max_steps": 20, "rtol": None}),
    (ims.LSMR(), HILBERT, "MAX_STEPS", {"max_steps": 2}),
    (ims.Neumann(), 0.1 * EYE, "MAX_STEPS", {"max_steps": 5}),
    (ims.Neumann(), 3 * EYE, "MAX_STEPS", {"max_steps": 50}),
    (ims.Neumann(), 3 * EYE, "NONFINITE", {"max_steps": 3000}),
    (ims.LU(), ZERO, "SINGULAR"),
    (ims.QR(), RANK_1, "SINGULAR"),
    (ims.Structured(), ZERO, "SINGULAR"),
    (ims.Diagonal(), torch.tensor([1.0, 0.0], dtype=F64), "SINGULAR"),
    (ims.Diagonal(), torch.full((3,), math.nan, dtype=F64), "NONFINITE"),
]
EVERY = [SOLVERS[name][0] for name in ("LU", "Cholesky", "QR", "SVD", "Structured", "CG")]
EVERY += [SOLVERS[k][0] for k in ("MINRES", "GMRES", "GMRES-mixed", "BiCGStab", "LSMR", "Neumann")]
FAILURES += [(solver, bad, "NONFINITE") for solver in EVERY for bad in (NAN, INF)]
FAILURES += [(solver, EYE, "NONFINITE", {}, bad) for solver in EVERY for bad in (NAN, INF)]
IDS = [f"{type(row[0]).__name__}-{row[2]}-{i}" for i, row in enumerate(FAILURES)]


@pytest.mark.parametrize("row", FAILURES, ids=IDS)
def test_failure_is_reported(row):
    """Never accepted: the status says why, the policy what follows (wrong answer 10)."""
    solver, matrix, status, options, size = (*row, *({}, 1.0)[len(row) - 3 :])
    solver = type(solver)(**{"inner_dtype": F32} if solver is MIXED else {}, **options)
    A = ims.DiagonalOperator(matrix) if matrix.dim() == 1 else matrix_for(solver)(matrix)
    b = torch.ones(len(matrix), dtype=F64)
    b[0] = 2
    b = b * (size if isinstance(size, float) else size.diagonal())
    with pytest.raises(ims.ConvergenceError, match=f"linear_solve.*{status}"):
        ims.linear_solve(A, b, solver=solver)
    with pytest.warns(ims.ConvergenceWarning, match=status):
        warned = ims.linear_solve(A, b, solver=solver, on_failure="warn")
    masked = ims.linear_solve(A, b, solver=solver, on_failure="mask")
    two = torch.stack([b, b])
    # among others it fails at the same step, for the same reason
    lanes = ims.linear_solve(A, two, solver=solver, on_failure="mask", batch_dims=1)
    for s in (warned.status, masked.status, *lanes.status):
        assert Status(int(s)).name == status
    assert not bool(warned.converged) and not bool(masked.converged)
    assert int(lanes.iterations[0]) == int(masked.iterations)
    torch.testing.assert_close(lanes.value[0], masked.value, equal_nan=True)
    torch.testing.assert_close(lanes.residual[0], masked.residual, equal_nan=True)


@pytest.mark.parametrize("dtype, weak", [(F64, 1e-6), (F64, 0.1), (F32, 0.1)])
def test_minres_returns_the_least_residual_of_a_system_without_a_solution(dtype, weak):
    values = torch.logspace(0, math.log10(weak), 40, dtype=F64) * (-1.0) ** torch.arange(40)
    values[:3] = 0.0
    A, b = with_eigenvalues(values), seeded(40)
    least = ims.rms(b - A @ torch.linalg.pinv(A, rtol=1e-9) @ b)
    A = ims.MatrixOperator(A.to(dtype), symmetric=True)
    sol = ims.linear_solve(A, b.to(dtype), solver=ims.MINRES(), on_failure="mask")
    assert int(sol.status) == Status.BREAKDOWN and least > 0.1
    assert float(sol.residual) < 1.001 * least


def test_indefinite_preconditioner_is_reported():
    A, M = ims.MatrixOperator(diagonal(1, -2, 3), symmetric=True), ims.DiagonalOperator(-EYE[0] - 1)
    sol = ims.linear_solve(A, B[:3], solver=ims.MINRES(), preconditioner=M, on_failure="mask")
    assert Status(int(sol.status)) == Status.INDEFINITE


def test_lanes_are_named_in_the_error():
    with pytest.raises(ims.ConvergenceError, match=r"1 of 3 problems \(problem 1: SINGULAR"):
        A = torch.stack([EYE, 0 * EYE, EYE])
        vmap(lambda A: ims.linear_solve(ims.MatrixOperator(A), B[:3]))(A)


# -- singular matrices, and those that only look like it ---------------------------------------

SINGULAR = {
    "dependent-rows": [[1.0, 2.0], [2.0, 4.0]],
    "zero": [[0.0, 0.0], [0.0, 0.0]],
    "zero-row": [[1.0, 2.0], [0.0, 0.0]],
    "zero-column": [[1.0, 0.0], [2.0, 0.0]],
    "numerically": [[0.1, 0.3], [0.2, 0.6]],
    "numerically-3": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]],
    "tenths": [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9]],
    "tiny": [[1e-30, 3e-30], [2e-30, 6e-30]],
    "huge": [[1e9, 2e9, 3e9], [4e9, 5e9, 6e9], [7e9, 8e9, 9e9]],
    "scaled-rows": [[1e-10, 3e-10], [2e10, 6e10]],
    "scaled-columns": [[0.1e-10, 0.3e10], [0.2e-10, 0.6e10]],
    "nilpotent": [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]],
    "laplacian": [[1.0, -1.0, 0.0], [-1.0, 2.0, -1.0], [0.0, -1.0, 1.0]],
    "odd": [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]],
    "tall": [[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]],
    "wide": [[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]],
    "tall-numerically": [[0.1, 0.3], [0.2, 0.6], [0.7, 2.1]],
    "tall-zero-column": [[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]],
    "tall-badly-scaled": [[1e-10, 3e10], [2e-10, 6e10], [3e-10, 9e10]],
}


def tridiagonal(matrix):
    lower, main, upper = (matrix.diagonal(k, dim1=-2, dim2=-1) for k in (-1, 0, 1))
    return ims.TridiagonalOperator(lower, main, upper)


def banded(matrix):
    return bool((matrix == matrix.triu(-1).tril(1)).all())


@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", SINGULAR)
def test_singular_matrix(name, dtype):
    matrix = torch.tensor(SINGULAR[name], dtype=dtype)
    b = torch.arange(1.0, len(matrix) + 1, dtype=dtype)
    ways = [(ims.MatrixOperator, ims.QR())]
    if matrix.shape[0] == matrix.shape[1]:
        sparse = lambda m: ims.SparseOperator(m.to_sparse_csr())
        ways += [(ims.MatrixOperator, None), (sparse, ims.SuperLU())]
        ways += [(tridiagonal, ims.Banded())] if banded(matrix) else []
    for make, solver in ways:
        sol = ims.linear_solve(make(matrix), b, solver=solver, on_failure="mask")
        assert int(sol.status) == Status.SINGULAR and not bool(sol.converged), solver
    # what is singular to the others has a least solution of least norm
    exact = np.linalg.pinv(matrix.numpy(), rcond=1e-5 if dtype == F32 else 1e-14) @ b.numpy()
    svd = ims.linear_solve(ims.MatrixOperator(matrix), b, solver=ims.SVD())
    assert torch.allclose(svd.value, torch.from_numpy(exact), rtol=1e-3, atol=1e-5)


R = seeded(5, 5, seed=11)
WIDE = torch.logspace(-12, 12, 5, dtype=F64)
REGULAR = {
    "tiny": 1e-30 * R,
    "huge": 1e30 * R,
    "scaled-rows": WIDE[:, None] * R,
    "scaled-columns": R * WIDE,
    "scaled-rows-down": WIDE.flip(0)[:, None] * R,
    "scaled-columns-down": R * WIDE.flip(0),
    "diagonal": torch.diag(WIDE),
    "permuted-diagonal": torch.diag(WIDE)[[3, 1, 4, 0, 2]],
    "zero-pivot": torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=F64),
    "small-pivot": torch.tensor([[1e-20, 1.0], [1.0, 1.0]], dtype=F64),
    "triangular": torch.triu(R),
    "tridiagonal-without-a-diagonal": torch.diag(R[0, :3], 1) + torch.diag(R[1, :3], -1),
    "tridiagonal-scaled-rows": WIDE[:, None] * R.triu(-1).tril(1),
}


@pytest.mark.parametrize("name", REGULAR)
def test_badly_scaled_matrix_is_not_called_singular(name):
    matrix = REGULAR[name]
    # no digit is left of an unknown whose column is nothing beside the others
    exact = 1 / matrix.abs().amax(0) if "columns" in name else torch.ones(len(matrix), dtype=F64)
    ways = [(ims.MatrixOperator, ims.LU()), (ims.MatrixOperator, ims.QR())]
    ways += [(tridiagonal, ims.Banded())] if banded(matrix) else []
    for make, solver in ways:
        sol = ims.linear_solve(make(matrix), matrix @ exact, solver=solver)
        assert bool(sol.converged)
        backward = (matrix @ sol.value - matrix @ exact).abs() / (matrix.abs() @ sol.value.abs())
        assert float(backward.max()) < 1e-13


# -- bad lanes ---------------------------------------------------------------------------------

LANES = torch.stack([with_eigenvalues(torch.linspace(0.6, 1.4, 2), 6, k) for k in range(4)])
BANDS = seeded(4, 3, 6)
SPARSE = BY_NAME["lanes-sparse"].tensors[0]
COMPLEX = systems.near(0.2 * seeded(4, 4, 4, dtype=systems.C128))
# the solver, lanes of the tensor that operators are made of, and what a lane of zeros is called
HOMES = {
    "LU": (ims.LU(), LANES, Status.SINGULAR),
    "Structured": (ims.Structured(), LANES, Status.SINGULAR),
    "Cholesky": (ims.Cholesky(), LANES, Status.INDEFINITE),
    "CG": (ims.CG(), LANES, Status.INDEFINITE),
    "MINRES": (ims.MINRES(), LANES, Status.BREAKDOWN),
    "GMRES": (ims.GMRES(), LANES, Status.BREAKDOWN),
    "GMRES-mixed": (MIXED, LANES, Status.BREAKDOWN),
    "BiCGStab": (ims.BiCGStab(), LANES, Status.BREAKDOWN),
    "Neumann": (ims.Neumann(), LANES, None),
    "QR": (ims.QR(), seeded(4, 5, 3), Status.SINGULAR),
    "SVD": (ims.SVD(), seeded(4, 5, 3), None),
    "LSMR": (ims.LSMR(), seeded(4, 5, 3), None),
    "LU-complex": (ims.LU(), COMPLEX, Status.SINGULAR),
    "GMRES-complex": (ims.GMRES(), COMPLEX, Status.BREAKDOWN),
    "Diagonal": (ims.Diagonal(), 1 + seeded(4, 6).abs(), Status.SINGULAR),
    "Banded": (ims.Banded(), BANDS, Status.SINGULAR),
    "SuperLU": (ims.SuperLU(), SPARSE, Status.SINGULAR),
    "CG-slow": (ims.CG(max_steps=4), LANES, None),
}
MAKERS = {
    "Diagonal": ims.DiagonalOperator,
    "Banded": lambda t: ims.TridiagonalOperator(t[..., 0, 1:], t[..., 1, :], t[..., 2, :-1]),
    "SuperLU": systems.PATTERN.with_values,
}
WHATS = ["nan", "inf", "zero", "b-nan", "b-inf"]
BAD = [(name, what) for name, (*_, zero) in HOMES.items() if "slow" not in name
       for what in WHATS if zero is not None or what != "zero"]  # fmt: skip
BAD += [("CG-slow", "slow"), ("Banded", "overflow")]


@pytest.mark.parametrize("way", ["vmap", "batch_dims", "shared"])
@pytest.mark.parametrize("name, what", BAD, ids=["-".join(case) for case in BAD])
def test_bad_lane_changes_no_other(name, what, way):
    """Values, gradients and their gradients, those of a shared parameter too, are as without it."""
    solver, tensor, zero = HOMES[name]
    make = MAKERS.get(name, matrix_for(solver))
    like = make(tensor[0])
    m, n = like.dense().shape
    tensor, b = tensor.clone(), seeded(4, m, dtype=tensor.dtype)
    status = {"zero": zero, "slow": Status.MAX_STEPS}.get(what, Status.NONFINITE)
    if what == "slow":
        tensor[1] = with_eigenvalues(torch.logspace(-3, 0, n), n)
    elif what == "overflow":
        tensor[1], b[1] = 0.0, 1e160
        tensor[1, 1] = 1e-160
    elif what.startswith("b-"):
        b[1, 2] = float(what[2:])
    elif what == "zero":
        tensor[1] = 0.0
    else:
        tensor[1].view(-1)[2] = float(what)

    def run(tensor, b):
        leaves = tensor.clone().requires_grad_(), b.clone().requires_grad_()
        scale = torch.tensor(1.1, dtype=F64, requires_grad=True)
        options = {"solver": solver, "on_failure": "mask"}

        def one(t, b):
            A = make(t)
            if way == "shared" and name in MAKERS:
                A = scale * A if name != "SuperLU" else make(t)
            elif way == "shared":
                A = ims.FunctionOperator(
                    lambda v: scale * make(t).mv(v),
                    b.new_zeros(n),
                    A.symmetric,
                    A.positive_definite,
                    out_like=b.new_zeros(m),
                )
            return ims.linear_solve(A, b, **options)

        if way == "batch_dims":
            sol = ims.linear_solve(make(leaves[0]), leaves[1], batch_dims=1, **options)
        else:
            sol = vmap(one)(*leaves)
        with warnings.catch_warnings():
            if what == "slow":
                warnings.simplefilter("ignore", ims.ConvergenceWarning)
            x = torch.where(sol.converged.unsqueeze(-1), sol.value, 0.0)
            leaves += (scale,) if way == "shared" and name != "SuperLU" else ()
            first = torch.autograd.grad(x.abs().pow(2).sum(), leaves, create_graph=True)
            second = torch.autograd.grad(first[1].abs().pow(2).sum(), leaves)
        return sol, first, second

    good = torch.tensor([0, 2, 3])
    sol, *derivatives = run(tensor, b)
    alone, *expected = run(tensor[good], b[good])
    assert sol.status.tolist() == [0, int(status), 0, 0]
    # one product of a batch and one of a single lane differ by roundings; LAPACK's do not
    assert error(sol.value.detach()[good], alone.value.detach()) < 1e-12
    for (g, gb, *shared), (e, eb, *theirs) in zip(derivatives, expected, strict=True):
        assert error(gb[good], eb) < 1e-8 and error(g[good], e) < 1e-8
        assert torch.equal(gb[1], torch.zeros_like(gb[1]))
        assert torch.equal(g[1], torch.zeros_like(g[1]))
        assert all(error(s, t) < 1e-8 for s, t in zip(shared, theirs, strict=True))


@pytest.mark.parametrize("name", ["square-deficient", "complex", "matrix"])
def test_second_derivative_under_mask_is_that_without(name):
    system = BY_NAME[name]
    solver = ims.SVD() if "deficient" in name else ims.LU()
    b, (tensor, *others) = system.b, system.tensors

    def value(policy):
        run = lambda t: system.solve(solver, b, t, *others, on_failure=policy)
        return lambda t: systems.cube(run(t))

    for mode in (lambda f: jacrev(jacrev(f)), hessian, lambda f: jacfwd(jacfwd(f))):
        masked, raising = (mode(value(p))(tensor) for p in ("mask", "raise"))
        assert error(masked, raising) < 1e-9


# -- the backward solve ------------------------------------------------------------------------

WORDS = "adjoint of linear_solve.*MAX_STEPS"
POLICY = {
    "raise": pytest.raises(ims.ConvergenceError, match=WORDS),
    "warn": pytest.warns(ims.ConvergenceWarning, match=WORDS),
    "mask": pytest.warns(ims.ConvergenceWarning, match=WORDS),
}


@pytest.mark.parametrize("policy", POLICY)
@pytest.mark.parametrize(
    "solver", [ims.CG(), ims.MINRES(), ims.GMRES(), MIXED, ims.BiCGStab(), ims.Neumann()]
)
def test_backward_solve_is_held_to_the_policy(solver, policy):
    """The forward solve starts at its solution; one step is too few for the backward solve."""
    matrix, b = systems.spd(systems.W), B[:3].clone().requires_grad_()
    exact = torch.linalg.inv(matrix) @ B[:3]
    solver = type(solver)(max_steps=1, **{"inner_dtype": F32} if solver is MIXED else {})
    A = ims.MatrixOperator(matrix, positive_definite=True)
    sol = ims.linear_solve(A, b, solver=solver, x0=exact, on_failure=policy)
    assert bool(sol.converged)
    with POLICY[policy]:
        sol.value.sum().backward()
    if policy == "warn":
        assert b.grad is not None and float(b.grad.abs().max()) > 0
    if policy == "mask":
        assert torch.equal(b.grad, torch.zeros(3, dtype=F64))
