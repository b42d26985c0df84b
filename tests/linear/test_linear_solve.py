"""Every linear solver on every system that is for it, against dense inverses; see systems.py."""

import contextlib
import functools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, hessian, jacfwd, jacrev, vmap
from torch.utils._pytree import tree_leaves

import implicit_solvers as ims
from implicit_solvers import Status
from tests.cases import check_gradients
from tests.linear import systems as made
from tests.linear.systems import BY_NAME, EYE, F32, F64, SOLVERS, B, W, cube, error, pairs, seeded

# The solvers promise a relative residual of eps**(2/3), 3.7e-11 in float64. Values may be off by
# the condition times that, LSMR's by its square; a derivative of each order by the condition again.
FIRST, SECOND = 1e-8, 1e-7
# the rectangular systems have conditions of 8 to 27, the others of 1 to 3
RECTANGULAR = 10


def promise(system, solver, dtype):
    condition = system.condition ** (2 if solver == "LSMR" else 1)
    return 4 * condition * torch.finfo(dtype).eps ** (2 / 3)


def ill(system):
    return RECTANGULAR if system.condition > 5 else 1


@pairs()
@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
def test_value(system, solver, dtype):
    tensors, b = [t.to(dtype) for t in system.tensors], system.b.to(dtype)
    sol = system.run(SOLVERS[solver][0], b, *tensors, check=solver == "default")
    x = made.FORMS[system.form][1](sol.value)
    exact = np.linalg.pinv(system.real(*system.tensors).numpy(), rcond=1e-10)
    rhs = system.b if system.columns else system.b.unsqueeze(-1)
    exact = torch.from_numpy(exact @ rhs.numpy()).reshape(x.shape)
    assert x.dtype == sol.residual.dtype == dtype
    assert error(x.double(), exact) < promise(system, solver, dtype)
    assert sol.status.shape == sol.iterations.shape == sol.residual.shape == system.outcomes
    assert bool(sol.converged.all()) and bool((sol.status == Status.CONVERGED).all())
    # the residual reported is that of the solution returned
    matrix = system.real(*(t.double() for t in tensors))
    product = matrix @ x.double() if system.columns else made.times(matrix, x.double())
    size = torch.linalg.vector_norm(b.double() - product, dim=-2 if system.columns else -1)
    rms = size / math.sqrt(matrix.shape[-2] // (2 if system.form == "complex" else 1))
    rounding = 20 * torch.finfo(dtype).eps * float(b.abs().max()) * system.condition
    assert float((sol.residual.double() - rms).abs().max()) <= rounding


@functools.cache
def expected(system, mode, which):
    """Return the derivatives of the oracle, which all solvers share."""
    return made.MODES[mode](system.oracle, which)(system.b, *system.tensors)


def check_derivatives(system, solver, mode, which, limit):
    run = made.MODES[mode](lambda *t: system.solve(SOLVERS[solver][0], *t), which)
    ours = run(system.b, *system.tensors)
    for g, e in zip(tree_leaves(ours), tree_leaves(expected(system, mode, which)), strict=True):
        assert error(g, e) < limit, which


# derivatives by the default only of what two solvers have solved; else by all that it stands for
DERIVED = [
    f"{system}-{solver}"
    for system, solver in made.PAIRS.values()
    if (solver == "default") == (len(system.solvers) == 2) or system.lanes or system.columns
]


@pairs(DERIVED)
@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_first_derivatives(system, solver, mode):
    every = tuple(range(1 + len(system.tensors)))
    check_derivatives(system, solver, mode, every, FIRST * ill(system))


FEW = (
    "matrix-LU matrix-GMRES-2 definite-Cholesky definite-CG definite-MINRES matrix-BiCGStab"
    " symmetric-MINRES function-tree-GMRES function-0d-default jacobian-LU jacobian-GMRES"
    " hessian-definite-CG diagonal-Diagonal sum-Neumann product-default transpose-LU"
    " tridiagonal-Banded sparse-SuperLU structure-default chain-default no-structure-default"
    " matrix-GMRES-mixed tall-QR wide-QR tall-deficient-SVD wide-deficient-SVD"
    " square-deficient-SVD tall-deficient-LSMR complex-LU complex-QR complex-SVD complex-GMRES-2"
    " complex-BiCGStab complex-LSMR complex-hermitian-MINRES complex-hermitian-LU"
    " complex-definite-CG complex-definite-Cholesky complex-Neumann"
)


@pairs(FEW)
@pytest.mark.parametrize("mode", ["hessian", "rev-fwd", "rev-rev", "fwd-fwd"])
def test_second_derivatives(system, solver, mode):
    for one in range(1 + len(system.tensors)):
        check_derivatives(system, solver, mode, one, SECOND * ill(system))


@pairs(DERIVED)
def test_backward_of_everything_at_once(system, solver):
    def derivatives(solve):
        leaves = [t.clone().requires_grad_() for t in (system.b, *system.tensors)]
        first = torch.autograd.grad(cube(solve(*leaves)), leaves, create_graph=True)
        second = torch.autograd.grad(sum((g**2).sum() for g in first), leaves, allow_unused=True)
        return zip([FIRST] * len(leaves) + [SECOND] * len(leaves), first + second, strict=True)

    ours = derivatives(lambda *t: system.solve(SOLVERS[solver][0], *t))
    for (limit, g), (_, e) in zip(ours, derivatives(system.oracle), strict=True):
        assert (g is None) == (e is None)
        assert g is None or error(g, e) < limit * ill(system)


@pairs(
    "definite-CG definite-MINRES matrix-GMRES-mixed tridiagonal-Banded sparse-SuperLU tall-QR"
    " square-deficient-SVD complex-LU"
)
def test_gradcheck(system, solver):
    solve = lambda *t: system.solve(SOLVERS[solver][0], *t)
    check_gradients(solve, system.b, *system.tensors, batched=False)


OVER = {"b": (True, False), "A": (False, True), "both": (True, True)}


@pytest.mark.parametrize("over", OVER)
@pairs(
    "matrix-LU matrix-GMRES-2 matrix-GMRES-1 matrix-Neumann definite-Cholesky definite-CG"
    " function-LU matrix-BiCGStab definite-MINRES symmetric-MINRES function-tree-GMRES"
    " matrix-GMRES-mixed diagonal-Diagonal tridiagonal-Banded sparse-SuperLU chain-default tall-QR"
    " wide-QR tall-LSMR wide-LSMR square-deficient-SVD complex-LU complex-QR complex-SVD"
    " complex-definite-CG complex-GMRES complex-hermitian-MINRES complex-BiCGStab"
)
def test_vmap(system, solver, over):
    lanes = [t + 0.05 * seeded(4, *t.shape, seed=k) for k, t in enumerate(system.tensors)]
    arguments = (system.b + seeded(4, len(system.b)), *lanes)
    of_b, of_A = OVER[over]
    dims = (0 if of_b else None, *[0 if of_A else None] * len(lanes))
    arguments = [t if d == 0 else t[0] for t, d in zip(arguments, dims, strict=True)]

    def solution(*t):
        return system.solve(SOLVERS[solver][0], *t)

    ours, exact = vmap(solution, dims), vmap(system.oracle, dims)
    assert error(ours(*arguments), exact(*arguments)) < FIRST * ill(system)
    every = tuple(range(len(arguments)))
    # derivatives of a batch, and a batch of derivatives
    checks = [lambda f, g: grad(lambda *t: cube(f(*t)), every)]
    checks += [lambda f, g, mode=mode: vmap(mode(g, every), dims) for mode in (jacrev, jacfwd)]
    limits = [FIRST, FIRST, FIRST]
    if over == "both":
        checks.append(lambda f, g: vmap(hessian(lambda *t: cube(g(*t))), dims))
        limits.append(SECOND)
    for check, limit in zip(checks, limits, strict=True):
        got, reference = check(ours, solution), check(exact, system.oracle)
        for g, e in zip(got(*arguments), reference(*arguments), strict=True):
            assert error(g, e) < limit * ill(system)


def test_nested_vmap():
    """Lanes over b inside lanes over A."""
    inner = vmap(lambda b, A: BY_NAME["matrix"].solve(None, b, A), (0, None))
    b = made.MANY_B[:, :3]
    exact = torch.einsum("aij,bj->abi", torch.linalg.inv(EYE + made.MANY_W), b)
    assert error(vmap(inner, (None, 0))(b, made.MANY_W), exact) < 1e-12  # condition 3, float64


EMPTY = [
    (ims.MatrixOperator(torch.ones(0, 3, 3)), torch.ones(0, 3), 1),
    (ims.MatrixOperator(torch.eye(3)), torch.ones(3, 0), 0),
    (ims.MatrixOperator(torch.ones(0, 0)), torch.ones(0), 0),
]


@pytest.mark.parametrize(
    "A, b, batch_dims", EMPTY, ids=["no-lanes", "no-right-hand-sides", "no-unknowns"]
)
def test_empty(A, b, batch_dims):
    sol = ims.linear_solve(A, b, batch_dims=batch_dims)
    assert sol.value.shape == b.shape
    assert bool(sol.converged.all())


def test_an_operator_that_lanes_share_is_not_taken_for_one_of_all_lanes():
    b, entries = seeded(5, 5), torch.linspace(1, 50, 5, dtype=F64)  # as many lanes as unknowns
    value = ims.linear_solve(ims.DiagonalOperator(entries), b, batch_dims=1).value
    assert torch.equal(value, b / entries)


BY_DEFAULT = {
    "matrix": "LU",
    "definite": "Cholesky",
    "diagonal": "Diagonal",
    "hessian-definite": "Cholesky",
    "identity-scaled": "Diagonal",
    "tridiagonal": "Banded",
    "sparse": "SuperLU",
    "tall": "QR",
    "chain": "Structured",
}


def test_default_solver():
    big, tall = torch.ones(600, dtype=F64), torch.ones(601, dtype=F64)
    with ims.monitor() as log:
        for name in BY_DEFAULT:
            BY_NAME[name].solve(None, BY_NAME[name].b, *BY_NAME[name].tensors)
        ims.linear_solve(ims.FunctionOperator(lambda v: 2 * v, big), big)
        ims.linear_solve(ims.FunctionOperator(lambda v: 2 * v, big, positive_definite=True), big)
        A = ims.FunctionOperator(lambda v: torch.cat([2 * v, v[:1]]), big, out_like=tall)
        ims.linear_solve(A, tall)
    expected = [*BY_DEFAULT.values(), "GMRES", "CG", "LSMR"]
    assert [record.solver for record in log.records] == expected


def test_warnings_stay_silent_where_nothing_fails():
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("error")
        for name in FEW.split():
            system, solver = made.PAIRS[name]
            system.solve(SOLVERS[solver][0], system.b, *system.tensors, on_failure="warn")


# -- flags -------------------------------------------------------------------------------------

INDEFINITE = ims.FunctionOperator(lambda v: (EYE + W) @ v, B[:3], symmetric=True)
C = BY_NAME["complex"].matrix(*BY_NAME["complex"].tensors)
CLAIM = {"positive_definite": True}
# by the flag that is wrong
REFUTED = {
    "symmetric": {
        "matrix": ims.MatrixOperator(EYE + W, symmetric=True),
        "matrix-slightly": ims.MatrixOperator(EYE + 1e-6 * W, symmetric=True),
        "function": INDEFINITE,
        "jacobian": ims.JacobianOperator(lambda z: torch.sin(W @ z), B[:3], symmetric=True),
        "definite-but-not-symmetric": ims.MatrixOperator(EYE + W, positive_definite=True),
        "sum": INDEFINITE + ims.IdentityOperator(),
        "sparse": ims.SparseOperator((EYE + W).to_sparse_csr(), symmetric=True),
        "complex": ims.MatrixOperator(C, symmetric=True),
        "complex-symmetric-is-not-hermitian": ims.MatrixOperator(C + C.T, symmetric=True),
    },
    "positive_definite": {
        "negative": ims.MatrixOperator(-EYE, positive_definite=True),
        "negative-diagonal": ims.DiagonalOperator(-B[:3].abs(), positive_definite=True),
        "negative-hessian": ims.HessianOperator(lambda z: -(z**2).sum(), B[:3], **CLAIM),
        "complex-negative": ims.MatrixOperator(-made.spd(C), positive_definite=True),
    },
}


@pytest.mark.parametrize("flag, name", [(flag, name) for flag in REFUTED for name in REFUTED[flag]])
def test_check_refutes_wrong_flags(flag, name):
    A = REFUTED[flag][name]
    with pytest.raises(ValueError, match=f"A says.*{flag}=True"):
        ims.linear_solve(A, B[:3].to(A.structure.dtype), check=True)


# -- properties --------------------------------------------------------------------------------

DEFINITE = [ims.Cholesky(), ims.CG(), ims.MINRES(), ims.LU(), ims.GMRES()]
DEFINITE += [ims.GMRES(restart=3, max_steps=20_000)]
# flags: the largest condition, a power of ten (GMRES stalls beyond), and the solvers
FITTING = {
    "": (1.0, [ims.LU(), ims.GMRES()]),
    "symmetric": (1.0, [ims.MINRES()]),
    "positive_definite": (2.0, DEFINITE),
}


def orthogonal(n, seed, dtype):
    return torch.linalg.qr(seeded(n, n, seed=seed, dtype=dtype))[0]


@st.composite
def systems(draw, lanes=1):
    """Draw matrices with a chosen spectrum, right-hand sides, and a solver that fits."""
    n, seed = draw(st.integers(1, 8)), draw(st.integers(0, 10**6))
    dtype = draw(st.sampled_from([F32, F64, torch.complex64, torch.complex128]))
    wide = torch.promote_types(dtype, F64)
    flag = draw(st.sampled_from([*FITTING]))
    most, solvers = FITTING[flag]
    values = torch.logspace(0, min(draw(st.floats(0, 2)), most), n, dtype=F64)
    if flag == "symmetric":
        values[::2] *= -1
    matrices = []
    for lane in range(lanes):
        q = orthogonal(n, seed + lane, wide)
        p = q if flag else orthogonal(n, seed + lane + 1000, wide)
        matrix = q @ torch.diag(values).to(wide) @ p.mH
        matrices.append((matrix + matrix.mH) / 2 if flag else matrix)
    b = seeded(lanes, n, seed=seed + 17, dtype=wide)
    return torch.stack(matrices).to(dtype), b.to(dtype), flag, draw(st.sampled_from(solvers))


def run(matrix, b, flag, solver):
    A = ims.MatrixOperator(matrix, **({flag: True} if flag else {}))
    return ims.linear_solve(A, b, solver=solver)


def bound(matrix, b, x):
    """Return what the residual may be: the solver's tolerance, or the rounding of the product."""
    eps, n = torch.finfo(b.dtype).eps, b.shape[-1]
    rounding = 8 * n * eps * torch.linalg.matrix_norm(matrix, 2) * torch.linalg.vector_norm(x)
    return 1.1 * eps ** (2 / 3) * torch.linalg.vector_norm(b) + rounding


def wide(t):
    return t.to(torch.promote_types(t.dtype, F64))


@given(systems(), st.floats(-3, 3), st.floats(-3, 3))
def test_solution_solves_and_is_linear_in_b(drawn, s, t):
    (matrix,), (b,), flag, solver = drawn
    c = seeded(len(b), seed=99).to(b)
    x, y, z = (run(matrix, v, flag, solver) for v in (b, c, s * b + t * c))
    assert bool(x.converged)
    residual = torch.linalg.vector_norm(wide(b) - wide(matrix) @ wide(x.value))
    assert residual <= bound(matrix, b, x.value)
    r = wide(matrix) @ wide(z.value - (s * x.value + t * y.value))
    size = abs(s) * bound(matrix, b, x.value) + abs(t) * bound(matrix, c, y.value)
    assert torch.linalg.vector_norm(r) <= size + bound(matrix, s * b + t * c, z.value) + 1e-30


@given(systems(lanes=4), st.permutations(range(4)))
def test_lanes_equal_the_loop_over_lanes_and_permute(drawn, order):
    matrices, b, flag, solver = drawn
    solve = vmap(lambda A, b: run(A, b, flag, solver))
    batch, permuted = solve(matrices, b), solve(matrices[order], b[order])
    singles = [run(A, v, flag, solver) for A, v in zip(matrices, b, strict=True)]

    def agree(i, status, iterations, value):
        assert int(status) == int(batch.status[i])
        # a product of a batch and one of a single lane differ by roundings
        assert abs(int(iterations) - int(batch.iterations[i])) <= 1
        r = wide(matrices[i]) @ wide(value - batch.value[i])
        assert torch.linalg.vector_norm(r) <= 2 * bound(matrices[i], b[i], batch.value[i])

    for i, single in enumerate(singles):
        agree(i, single.status, single.iterations, single.value)
    for place, i in enumerate(order):
        agree(i, permuted.status[place], permuted.iterations[place], permuted.value[place])


@given(systems())
def test_gradients_solve_the_transposed_system(drawn):
    (matrix,), (b,), flag, solver = drawn
    b, A = b.clone().requires_grad_(), matrix.clone().requires_grad_()
    x = run(A, b, flag, solver).value
    weights = seeded(len(b), seed=5).to(b)
    (weights.conj() @ x).real.backward()
    r = wide(matrix).mH @ wide(b.grad) - wide(weights)
    assert torch.linalg.vector_norm(r) <= bound(matrix, weights, b.grad)
    outer = torch.outer(b.grad, x.detach().conj())
    atol = 10 * torch.finfo(b.dtype).eps * float(outer.abs().max())
    assert torch.allclose(A.grad, -outer, rtol=0, atol=atol)
