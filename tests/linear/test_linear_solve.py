"""Linear solves against dense inverses: values, derivatives, failures, and what they cost.

The oracle of every derivative is ``torch.linalg.inv``; never ``torch.linalg.solve``, which torch
2.13 differentiates wrongly in jacrev of jvp.
"""

import contextlib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, vmap

import implicit_solvers as ims
from implicit_solvers import Status

F32, F64 = torch.float32, torch.float64
EYE = torch.eye(3, dtype=F64)

# -- systems: an operator made of tensors, and its matrix written down without the library -----
# All are near the identity (spectral radius of I - A below 0.8): the Neumann series converges.

W = torch.tensor([[0.2, -0.3, 0.1], [0.25, 0.1, -0.2], [-0.1, 0.35, -0.15]], dtype=F64)
Z = torch.tensor([0.3, -0.8, 0.6], dtype=F64)
D = torch.tensor([1.3, 0.6, 1.5], dtype=F64)
B = torch.tensor([0.7, -1.2, 0.4], dtype=F64)
MANY_B = torch.tensor(
    [[0.7, -1.2, 0.4], [1.0, 0.2, -0.3], [-0.5, 0.9, 1.1], [0.1, 0.2, 0.8]]
).double()
MANY_W = torch.stack([W, W.T, 0.5 * W + 0.1 * EYE, -W])
S0 = torch.tensor(1.2, dtype=F64)


def tree(flat):
    return {"a": flat[:2], "b": flat[2]}


def untree(v):
    return torch.cat([v["a"], v["b"].reshape(1)])


def same(v):
    return v


def scalar(flat):
    return flat[0]


def unscalar(v):
    return v.reshape(1)


def spd(L):
    return torch.eye(3).to(L) + L @ L.T


def bowl(z, L):
    return 0.5 * (z**2).sum() + 0.5 * ((L.T @ z) ** 2).sum() + 0.05 * (z**4).sum()


def bowl_matrix(z, L):
    return spd(L) + 0.6 * torch.diag(z**2)


def sine(z, W):
    return z + 0.6 * torch.sin(W @ z)


def sine_matrix(z, W):
    return torch.eye(3).to(W) + 0.6 * torch.diag(torch.cos(W @ z)) @ W


def inverse(A, b):
    return torch.linalg.inv(A) @ b


@dataclass(frozen=True)
class System:
    name: str
    tensors: tuple[torch.Tensor, ...]
    operator: Callable[..., Any]
    matrix: Callable[..., torch.Tensor]
    pack: Callable = same
    ravel: Callable = same
    spd: bool = False
    diagonal: bool = False

    def __str__(self):
        return self.name

    @property
    def b(self):
        return B[: len(self.matrix(*self.tensors))]

    def solve(self, solver, b, *tensors, **options):
        A = self.operator(*tensors)
        return self.ravel(ims.linear_solve(A, self.pack(b), solver=solver, **options).value)

    def oracle(self, b, *tensors):
        return inverse(self.matrix(*tensors), b)


EYE_OP = ims.IdentityOperator()
SYSTEMS = [
    System(
        "matrix",
        (W,),
        lambda W: ims.MatrixOperator(torch.eye(3).to(W) + W),
        lambda W: torch.eye(3).to(W) + W,
    ),
    System(
        "matrix-spd",
        (W,),
        lambda L: ims.MatrixOperator(spd(L), positive_definite=True),
        spd,
        spd=True,
    ),
    System(
        "function",
        (W,),
        lambda W: ims.FunctionOperator(lambda v: v + W @ v, like=W[0]),
        lambda W: torch.eye(3).to(W) + W,
    ),
    System(
        "function-spd",
        (W,),
        lambda L: ims.FunctionOperator(lambda v: v + L @ (L.T @ v), L[0], positive_definite=True),
        spd,
        spd=True,
    ),
    System(
        "function-tree",
        (W,),
        lambda W: ims.FunctionOperator(lambda v: tree(untree(v) + W @ untree(v)), tree(W[0])),
        lambda W: torch.eye(3).to(W) + W,
        tree,
        untree,
    ),
    System(
        "function-0d",
        (S0,),
        lambda s: ims.FunctionOperator(lambda v: s * v, like=s),
        lambda s: s.reshape(1, 1),
        scalar,
        unscalar,
    ),
    System("jacobian", (Z, W), lambda z, W: ims.JacobianOperator(sine, z, (W,)), sine_matrix),
    System(
        "jacobian-tree",
        (Z, W),
        lambda z, W: ims.JacobianOperator(lambda z, W: tree(sine(untree(z), W)), tree(z), (W,)),
        sine_matrix,
        tree,
        untree,
    ),
    System(
        "hessian",
        (Z, W),
        lambda z, L: ims.HessianOperator(bowl, z, (L,), positive_definite=True),
        bowl_matrix,
        spd=True,
    ),
    System(
        "hessian-0d",
        (S0,),
        lambda z: ims.HessianOperator(lambda z: z**3 / 6, z, positive_definite=True),
        lambda z: z.reshape(1, 1),
        scalar,
        unscalar,
        spd=True,
    ),
    System(
        "diagonal",
        (D,),
        lambda d: ims.DiagonalOperator(d, positive_definite=True),
        torch.diag,
        spd=True,
        diagonal=True,
    ),
    System(
        "diagonal-tree",
        (D,),
        lambda d: ims.DiagonalOperator(tree(d), positive_definite=True),
        torch.diag,
        tree,
        untree,
        spd=True,
        diagonal=True,
    ),
    System(
        "identity-scaled",
        (S0,),
        lambda s: s * EYE_OP,
        lambda s: s * torch.eye(3).to(s),
        diagonal=True,
    ),
    System(
        "sum",
        (S0, W),
        lambda s, W: s * EYE_OP + ims.MatrixOperator(W),
        lambda s, W: s * torch.eye(3).to(W) + W,
    ),
    System(
        "product",
        (D, W),
        lambda d, W: ims.DiagonalOperator(d) @ (EYE_OP + ims.MatrixOperator(W)),
        lambda d, W: d[:, None] * (torch.eye(3).to(W) + W),
    ),
    System(
        "transpose",
        (W,),
        lambda W: (EYE_OP + ims.MatrixOperator(W)).T,
        lambda W: torch.eye(3).to(W) + W.T,
    ),
    System(
        "transpose-of-jacobian",
        (Z, W),
        lambda z, W: ims.JacobianOperator(sine, z, (W,)).T,
        lambda z, W: sine_matrix(z, W).T,
    ),
]
BY_NAME = {system.name: system for system in SYSTEMS}

ANY = {
    "default": None,
    "LU": ims.LU(),
    "GMRES": ims.GMRES(),
    "GMRES-2": ims.GMRES(restart=2),
    "GMRES-1": ims.GMRES(restart=1),
    "BiCGStab": ims.BiCGStab(),
    "Neumann": ims.Neumann(),
}
SPD = {"Cholesky": ims.Cholesky(), "CG": ims.CG(), "MINRES": ims.MINRES()}
SOLVERS = {**ANY, **SPD, "Diagonal": ims.Diagonal()}


def fits(system, solver):
    return (
        solver in ANY
        or (system.spd and solver in SPD)
        or (system.diagonal and solver == "Diagonal")
    )


PAIRS = [(system, solver) for system in SYSTEMS for solver in SOLVERS if fits(system, solver)]
pairs = pytest.mark.parametrize(
    "system, solver", PAIRS, ids=[f"{system}-{solver}" for system, solver in PAIRS]
)
FEW = [
    (BY_NAME[name], solver)
    for name, solver in [
        ("matrix", "LU"), ("matrix", "GMRES-2"), ("matrix-spd", "Cholesky"), ("matrix-spd", "CG"),
        ("matrix-spd", "MINRES"), ("matrix", "BiCGStab"), ("function-tree", "GMRES"),
        ("function-0d", "default"), ("jacobian", "LU"),
        ("jacobian", "GMRES"), ("hessian", "CG"), ("diagonal", "Diagonal"), ("sum", "Neumann"),
        ("product", "default"), ("transpose", "LU"),
    ]
]  # fmt: skip
few = pytest.mark.parametrize(
    "system, solver", FEW, ids=[f"{system}-{solver}" for system, solver in FEW]
)


def error(ours, reference):
    """Return the largest error relative to the largest entry."""
    assert ours.shape == reference.shape
    size = reference.detach().abs().max().clamp(min=1e-2)
    return float((ours - reference).detach().abs().max() / size)


# The solvers promise a relative residual of eps**(2/3), and the systems' condition is below 20.
VALUE = {F64: 20 * 2.2e-16 ** (2 / 3), F32: 20 * 1.2e-7 ** (2 / 3)}


@pairs
@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
def test_value(system, solver, dtype):
    tensors = [t.to(dtype) for t in system.tensors]
    b = system.b.to(dtype)
    A = system.operator(*tensors)
    sol = ims.linear_solve(A, system.pack(b), solver=SOLVERS[solver])
    x = system.ravel(sol.value)
    exact = np.linalg.solve(system.matrix(*system.tensors).numpy(), system.b.numpy())
    assert x.dtype == sol.residual.dtype == dtype
    assert error(x.double(), torch.from_numpy(exact)) < VALUE[dtype]
    assert bool(sol.converged) and int(sol.status) == Status.CONVERGED
    # the residual reported is that of the solution returned
    r = b - system.matrix(*tensors) @ x
    rms = float(torch.linalg.vector_norm(r) / math.sqrt(len(r)))
    rounding = 20 * torch.finfo(dtype).eps * float(b.abs().max())
    assert abs(float(sol.residual) - rms) <= rounding


MODES = {
    "reverse": lambda f, i: jacrev(f, argnums=i),
    "forward": lambda f, i: jacfwd(f, argnums=i),
    "hessian": lambda f, i: hessian(lambda *t: cube(f(*t)), argnums=i),
    "rev-fwd": lambda f, i: jacrev(jacfwd(lambda *t: cube(f(*t)), argnums=i), argnums=i),
    "rev-rev": lambda f, i: jacrev(jacrev(lambda *t: cube(f(*t)), argnums=i), argnums=i),
}


def cube(x):
    """Return a scalar whose derivatives mix all entries."""
    return x.sum() ** 3 + (x**2).sum()


@pairs
@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_first_derivatives(system, solver, mode):
    arguments = (system.b, *system.tensors)
    for i in range(len(arguments)):
        ours = MODES[mode](lambda *t: system.solve(SOLVERS[solver], *t), i)(*arguments)
        reference = MODES[mode](system.oracle, i)(*arguments)
        assert error(ours, reference) < 1e-8, i


@few
@pytest.mark.parametrize("mode", ["hessian", "rev-fwd", "rev-rev"])
def test_second_derivatives(system, solver, mode):
    arguments = (system.b, *system.tensors)
    for i in range(len(arguments)):
        ours = MODES[mode](lambda *t: system.solve(SOLVERS[solver], *t), i)(*arguments)
        reference = MODES[mode](system.oracle, i)(*arguments)
        assert error(ours, reference) < 1e-7, i


@pairs
def test_backward_of_everything_at_once(system, solver):
    ours = [t.clone().requires_grad_() for t in (system.b, *system.tensors)]
    theirs = [t.clone().requires_grad_() for t in (system.b, *system.tensors)]
    first = torch.autograd.grad(cube(system.solve(SOLVERS[solver], *ours)), ours, create_graph=True)
    expected = torch.autograd.grad(cube(system.oracle(*theirs)), theirs, create_graph=True)
    for g, e in zip(first, expected, strict=True):
        assert error(g, e) < 1e-8
    second = torch.autograd.grad(sum((g**2).sum() for g in first), ours)
    expected = torch.autograd.grad(sum((g**2).sum() for g in expected), theirs)
    for g, e in zip(second, expected, strict=True):
        assert error(g, e) < 1e-7


@pytest.mark.parametrize("system, solver", FEW[1:6:2], ids=[str(s) for s, _ in FEW[1:6:2]])
def test_gradcheck(system, solver):
    inputs = tuple(t.clone().requires_grad_() for t in (system.b, *system.tensors))

    def solve(*t):
        return system.solve(SOLVERS[solver], *t)

    assert gradcheck(solve, inputs, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(solve, inputs)


VMAPPED = {"b": (0, None), "A": (None, 0), "both": (0, 0)}


@pytest.mark.parametrize("over", VMAPPED)
@pytest.mark.parametrize(
    "name, solver",
    [
        ("matrix", "LU"), ("matrix", "GMRES-2"), ("matrix", "GMRES-1"), ("matrix", "Neumann"),
        ("matrix-spd", "Cholesky"), ("matrix-spd", "CG"), ("function", "LU"),
        ("matrix", "BiCGStab"), ("function-spd", "MINRES"),
        ("function-tree", "GMRES"), ("function-spd", "CG"),
    ],
)  # fmt: skip
def test_vmap(name, solver, over):
    system = BY_NAME[name]
    b = MANY_B if over != "A" else B
    A = MANY_W if over != "b" else W

    def solution(b, A):
        return system.solve(SOLVERS[solver], b, A)

    ours = vmap(solution, VMAPPED[over])(b, A)
    assert error(ours, vmap(system.oracle, VMAPPED[over])(b, A)) < 1e-9
    # derivatives of a batch, and a batch of derivatives
    for i in (0, 1):
        of_batch = grad(lambda *t: cube(vmap(solution, VMAPPED[over])(*t)), argnums=i)(b, A)
        expected = grad(lambda *t: cube(vmap(system.oracle, VMAPPED[over])(*t)), argnums=i)(b, A)
        assert error(of_batch, expected) < 1e-8
        for mode in (jacrev, jacfwd):
            batch_of = vmap(mode(solution, argnums=i), VMAPPED[over])(b, A)
            expected = vmap(mode(system.oracle, argnums=i), VMAPPED[over])(b, A)
            assert error(batch_of, expected) < 1e-8


def test_nested_vmap():
    """Lanes over b inside lanes over A."""
    system = BY_NAME["matrix"]
    inner = vmap(lambda b, A: system.solve(None, b, A), (0, None))
    exact = torch.einsum("aij,bj->abi", torch.linalg.inv(EYE + MANY_W), MANY_B)
    assert error(vmap(inner, (None, 0))(MANY_B, MANY_W), exact) < 1e-12


@pytest.mark.parametrize(
    "solver",
    ["default", "LU", "GMRES", "GMRES-1", "BiCGStab", "Neumann", "CG", "MINRES", "Cholesky"],
)
@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
def test_several_right_hand_sides(solver, dtype):
    system = BY_NAME["matrix-spd" if solver in SPD else "matrix"]
    b, A = MANY_B.T.to(dtype), W.to(dtype)
    exact = np.linalg.solve(system.matrix(W).numpy(), MANY_B.T.numpy())
    sol = ims.linear_solve(system.operator(A), b, solver=SOLVERS[solver])
    assert sol.value.shape == b.shape and sol.value.dtype == dtype
    assert sol.status.shape == sol.iterations.shape == sol.residual.shape == (4,)
    assert error(sol.value.double(), torch.from_numpy(exact)) < VALUE[dtype]


@pytest.mark.parametrize("solver", ["LU", "GMRES", "BiCGStab", "CG", "MINRES", "Cholesky"])
def test_derivatives_of_several_right_hand_sides(solver):
    system = BY_NAME["matrix-spd" if solver in SPD else "matrix"]
    arguments = (MANY_B.T.contiguous(), W)
    for i in (0, 1):
        for mode in ("reverse", "forward"):
            ours = MODES[mode](lambda *t: system.solve(SOLVERS[solver], *t), i)(*arguments)
            assert error(ours, MODES[mode](system.oracle, i)(*arguments)) < 1e-8


def test_several_right_hand_sides_of_pytrees():
    A = ims.FunctionOperator(lambda v: tree(untree(v) + W @ untree(v)), like=tree(Z))
    b = {"a": MANY_B.T[:2], "b": MANY_B.T[2]}
    sol = ims.linear_solve(A, b)
    exact = torch.linalg.inv(EYE + W) @ MANY_B.T
    assert error(torch.cat([sol.value["a"], sol.value["b"].unsqueeze(0)]), exact) < 1e-12


# -- lanes that the operator handles itself ----------------------------------------------------

BATCHED = [
    ("matrices", lambda Ws: ims.MatrixOperator(EYE + Ws), MANY_W, lambda Ws: EYE + Ws),
    ("one-matrix", lambda W: ims.MatrixOperator(EYE + W), W, lambda W: (EYE + W).expand(4, 3, 3)),
    ("sum", lambda Ws: EYE_OP + ims.MatrixOperator(Ws), MANY_W, lambda Ws: EYE + Ws),
    (
        "transpose",
        lambda Ws: (0.9 * ims.MatrixOperator(EYE + Ws)).T,
        MANY_W,
        lambda Ws: 0.9 * (EYE + Ws).mT,
    ),
    (
        "function",
        lambda W: ims.FunctionOperator(lambda v: v + v @ W.T, like=B),
        W,
        lambda W: (EYE + W).expand(4, 3, 3),
    ),
    (
        "diagonal",
        lambda d: ims.DiagonalOperator(d),
        D,
        lambda d: torch.diag(d).expand(4, 3, 3),
    ),
    ("identity", lambda s: s * EYE_OP, S0, lambda s: (s * EYE).expand(4, 3, 3)),
]


@pytest.mark.parametrize("solver", ["default", "LU", "GMRES", "GMRES-1", "BiCGStab", "Neumann"])
@pytest.mark.parametrize(
    "operator, tensor, matrices", [case[1:] for case in BATCHED], ids=[case[0] for case in BATCHED]
)
def test_batch_dims(operator, tensor, matrices, solver):
    def solve(b, t):
        return ims.linear_solve(operator(t), b, solver=SOLVERS[solver], batch_dims=1).value

    def oracle(b, t):
        return (torch.linalg.inv(matrices(t)) @ b.unsqueeze(-1)).squeeze(-1)

    sol = ims.linear_solve(operator(tensor), MANY_B, solver=SOLVERS[solver], batch_dims=1)
    assert sol.status.shape == sol.iterations.shape == sol.residual.shape == (4,)
    assert error(sol.value, oracle(MANY_B, tensor)) < 1e-9
    for i in (0, 1):
        for mode in (jacrev, jacfwd):
            ours = mode(solve, argnums=i)(MANY_B, tensor)
            assert error(ours, mode(oracle, argnums=i)(MANY_B, tensor)) < 1e-8


def test_batch_dims_with_several_right_hand_sides():
    b = torch.randn(4, 3, 2, dtype=F64)
    sol = ims.linear_solve(ims.MatrixOperator(EYE + MANY_W), b, batch_dims=1)
    assert error(sol.value, torch.linalg.inv(EYE + MANY_W) @ b) < 1e-12


def test_two_batch_dims():
    matrices, b = (EYE + MANY_W).reshape(2, 2, 3, 3), MANY_B.reshape(2, 2, 3)
    sol = ims.linear_solve(ims.MatrixOperator(matrices), b, batch_dims=2)
    exact = (torch.linalg.inv(matrices) @ b.unsqueeze(-1)).squeeze(-1)
    assert sol.status.shape == (2, 2)
    assert error(sol.value, exact) < 1e-12


@pytest.mark.parametrize(
    "A, b, batch_dims",
    [
        (ims.MatrixOperator(torch.ones(0, 3, 3)), torch.ones(0, 3), 1),
        (ims.MatrixOperator(torch.eye(3)), torch.ones(3, 0), 0),
        (ims.MatrixOperator(torch.ones(0, 0)), torch.ones(0), 0),
    ],
    ids=["no-lanes", "no-right-hand-sides", "no-unknowns"],
)
def test_empty(A, b, batch_dims):
    sol = ims.linear_solve(A, b, batch_dims=batch_dims)
    assert sol.value.shape == b.shape
    assert bool(sol.converged.all())


@pytest.mark.parametrize("restart", [1, 2, 3, 5, 50])
@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("rtol", [1e-2, 1e-8])
def test_lanes_end_on_their_own(restart, compact, rtol):
    """A lane that has converged keeps its iterate while others go on, past their restarts too."""
    n = 9
    matrices = torch.stack([with_eigenvalues(torch.linspace(1, 20, k), n, k) for k in (1, 3, 9, 9)])
    b = seeded(4, n)
    solver = ims.GMRES(rtol=rtol, restart=restart, compact=compact)

    def solve(A, b):
        return ims.linear_solve(ims.MatrixOperator(A), b, solver=solver)

    batch = vmap(solve)(matrices, b)
    for i in range(4):
        single = solve(matrices[i], b[i])
        assert int(batch.status[i]) == int(single.status)
        assert abs(int(batch.iterations[i]) - int(single.iterations)) <= 1
        if int(batch.iterations[i]) == int(single.iterations):
            assert error(batch.value[i], single.value) < 1e-10


@pytest.mark.parametrize("solver", [ims.CG, ims.MINRES, ims.BiCGStab, ims.Neumann, ims.GMRES])
def test_compact_or_not_is_the_same(solver):
    matrices = torch.stack(
        [with_eigenvalues(torch.linspace(0.5, 1.5, k), 6, k) for k in (1, 2, 4, 6)]
    )
    b = seeded(4, 6)

    def solve(compact):
        def one(A, b):
            A = ims.MatrixOperator(A, positive_definite=True)
            return ims.linear_solve(A, b, solver=solver(compact=compact))

        return vmap(one)(matrices, b)

    whole, compacted = solve(False), solve(True)
    assert torch.equal(whole.iterations, compacted.iterations)
    assert error(compacted.value, whole.value) < 1e-10


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def with_eigenvalues(values, n, seed=0):
    """Return a symmetric matrix whose eigenvalues are ``values``, repeated."""
    q = torch.linalg.qr(seeded(n, n, seed=seed))[0]
    return q @ torch.diag(values.double()[torch.arange(n) % len(values)]) @ q.T


# -- how often a matrix is factored ------------------------------------------------------------


@pytest.fixture
def factorizations(monkeypatch):
    """Count the calls of ``lu_factor_ex`` and the matrices that they factored."""
    counted, original = {"calls": 0, "matrices": 0}, torch.linalg.lu_factor_ex

    def counting(A, *args, **kwargs):
        counted["calls"] += 1
        counted["matrices"] += math.prod(A.shape[:-2])
        return original(A, *args, **kwargs)

    monkeypatch.setattr(torch.linalg, "lu_factor_ex", counting)
    return counted


def lu(b, A):
    return ims.linear_solve(ims.MatrixOperator(A), b, solver=ims.LU()).value


A0 = EYE + W


def backward_twice():
    b, A = B.clone().requires_grad_(), A0.clone().requires_grad_()
    gb, gA = torch.autograd.grad(cube(lu(b, A)), (b, A), create_graph=True)
    ((gb**2).sum() + (gA**2).sum()).backward()


ONE_FACTORIZATION = {
    "value": lambda: lu(B, A0),
    "several-right-hand-sides": lambda: lu(MANY_B.T, A0),
    "vmap-over-b": lambda: vmap(lu, (0, None))(MANY_B, A0),
    "nested-vmap-over-b": lambda: vmap(vmap(lu, (0, None)), (0, None))(MANY_B[None], A0),
    "batch-of-one-matrix": lambda: ims.linear_solve(
        ims.MatrixOperator(A0[None]), MANY_B[:1], batch_dims=1
    ),
    "backward-twice": backward_twice,
    "jacrev-b": lambda: jacrev(lu)(B, A0),
    "jacrev-A": lambda: jacrev(lu, argnums=1)(B, A0),
    "jacfwd-A": lambda: jacfwd(lu, argnums=1)(B, A0),
    "jacrev-of-vmap-over-b": lambda: jacrev(vmap(lu, (0, None)), argnums=1)(MANY_B, A0),
    "vmap-over-b-of-jacrev": lambda: vmap(jacrev(lu), (0, None))(MANY_B, A0),
    "vmap-over-b-of-grad-A": lambda: vmap(grad(lambda A, b: cube(lu(b, A))), (None, 0))(A0, MANY_B),
    "jacrev-of-several": lambda: jacrev(lu)(MANY_B.T, A0),
    "hessian-A": lambda: hessian(lambda A: cube(lu(B, A)))(A0),
    "jacrev-jacrev-A": lambda: jacrev(jacrev(lambda A: cube(lu(B, A))))(A0),
    "jacobian-operator": lambda: jacrev(
        lambda z: ims.linear_solve(ims.JacobianOperator(sine, z, (W,)), B, solver=ims.LU()).value
    )(Z),
}


@pytest.mark.parametrize("name", ONE_FACTORIZATION)
def test_one_factorization(name, factorizations):
    ONE_FACTORIZATION[name]()
    assert factorizations == {"calls": 1, "matrices": 1}


@pytest.mark.parametrize(
    "call",
    [
        lambda: vmap(lu)(MANY_B, EYE + MANY_W),
        lambda: vmap(lu, (None, 0))(B, EYE + MANY_W),
        lambda: jacrev(vmap(lu), argnums=1)(MANY_B, EYE + MANY_W),
        lambda: vmap(jacrev(lu, argnums=1))(MANY_B, EYE + MANY_W),
        lambda: vmap(hessian(lambda b, A: cube(lu(b, A)), argnums=1))(MANY_B, EYE + MANY_W),
        lambda: vmap(vmap(lu, (0, None)), (None, 0))(MANY_B, EYE + MANY_W),
        lambda: vmap(vmap(lu, (None, 0)), (0, None))(MANY_B, EYE + MANY_W),
    ],
    ids=["vmap", "vmap-A", "jacrev-of-vmap", "vmap-of-jacrev", "vmap-of-hessian", "A-b", "b-A"],
)
def test_each_matrix_is_factored_once(call, factorizations):
    call()
    assert factorizations == {"calls": 1, "matrices": 4}


def cubic(z, W, b):
    return z + 0.3 * (W @ z) ** 3 - b


@pytest.mark.parametrize("lanes", [None, "b", "both"])
def test_backward_of_newton_factors_nothing(factorizations, lanes):
    W, b = (torch.nn.Parameter(t) for t in (MANY_W if lanes == "both" else 0.5 * A0, MANY_B))
    if lanes is None:
        value = ims.root(cubic, torch.zeros(3, dtype=F64), (W, b[0])).value
    else:

        def solve(W, b):
            return ims.root(cubic, torch.zeros(3, dtype=F64), (W, b)).value

        value = vmap(solve, (0 if lanes == "both" else None, 0))(W, b)
    before = dict(factorizations)
    assert before["calls"] > 1
    value.pow(2).sum().backward()
    assert factorizations == before
    # and it is right: a factorization at the last iterate but one is refined
    reference = [t.detach().clone().requires_grad_() for t in (W, b)]
    z = value.detach()
    Ws = reference[0] if lanes == "both" else reference[0].expand(4, 3, 3)
    if lanes is None:
        z, bs, Ws = z[None], reference[1][:1], Ws[:1]
    else:
        bs = reference[1]
    Wz = (Ws @ z.unsqueeze(-1)).squeeze(-1)
    J = EYE + 0.9 * (Wz**2).unsqueeze(-1) * Ws
    w = (torch.linalg.inv(J.detach()).mT @ (2 * z).unsqueeze(-1)).squeeze(-1)
    residual = z + 0.3 * Wz**3 - bs
    expected = torch.autograd.grad(residual, reference, -w)
    for ours, theirs in zip((W.grad, b.grad), expected, strict=True):
        assert error(ours, theirs) < 1e-8


def test_double_backward_of_newton_factors_at_most_once(factorizations):
    b = B.clone().requires_grad_()
    value = ims.root(cubic, torch.zeros(3, dtype=F64), (A0, b)).value
    before = factorizations["calls"]
    (g,) = torch.autograd.grad(value.sum(), b, create_graph=True)
    g.pow(2).sum().backward()
    assert factorizations["calls"] - before <= 1


# -- preconditioners, starts, budgets ----------------------------------------------------------

SCALES = torch.logspace(-3, 3, 12, dtype=F64)
ILL_SPD = SCALES[:, None].sqrt() * with_eigenvalues(torch.linspace(1, 3, 12), 12) * SCALES.sqrt()
ILL = SCALES[:, None] * (torch.eye(12, dtype=F64) + 0.25 * seeded(12, 12, seed=4) / 2)
NEARLY = torch.linalg.inv(ILL) @ (torch.eye(12, dtype=F64) + 1e-3 * seeded(12, 12, seed=5))
B12 = seeded(12, seed=6)
# diagonally dominant at every scale, and not symmetric: a Jacobi preconditioner suits A and A^T
BAND = torch.diag(SCALES) + 0.2 * torch.diag((SCALES[1:] * SCALES[:-1]).sqrt(), 1)

PRECONDITIONED = [
    ("CG-Jacobi", ims.CG(), ILL_SPD, ims.Jacobi(), 15),
    (
        "CG-operator",
        ims.CG(),
        ILL_SPD,
        ims.DiagonalOperator(1 / SCALES, positive_definite=True),
        15,
    ),
    ("CG-function", ims.CG(), ILL_SPD, lambda r: r / SCALES, 15),
    ("MINRES-Jacobi", ims.MINRES(), ILL_SPD, ims.Jacobi(), 15),
    ("BiCGStab-operator", ims.BiCGStab(), ILL, ims.MatrixOperator(NEARLY), 8),
    ("GMRES-Jacobi", ims.GMRES(restart=6), BAND, ims.Jacobi(), 60),
    ("GMRES-operator", ims.GMRES(restart=6), ILL, ims.MatrixOperator(NEARLY), 8),
    ("GMRES-function", ims.GMRES(restart=6), ILL, lambda r: NEARLY @ r, 8),
    ("Neumann-operator", ims.Neumann(), ILL, ims.MatrixOperator(NEARLY), 12),
]
preconditioned = pytest.mark.parametrize(
    "solver, matrix, preconditioner, most",
    [case[1:] for case in PRECONDITIONED],
    ids=[case[0] for case in PRECONDITIONED],
)


@preconditioned
def test_preconditioner(solver, matrix, preconditioner, most):
    """It saves steps, forward and backward; the backward pass needs its transpose."""
    definite = isinstance(solver, (ims.CG, ims.MINRES))

    def solve(A, b, M, on_failure="raise"):
        A = ims.MatrixOperator(A, positive_definite=definite)
        return ims.linear_solve(A, b, solver=solver, preconditioner=M, on_failure=on_failure)

    plain = solve(matrix, B12, None, on_failure="mask")
    A, b = matrix.clone().requires_grad_(), B12.clone().requires_grad_()
    with ims.monitor() as log:
        sol = solve(A, b, preconditioner)
        sol.value.sum().backward()
    assert int(sol.iterations) <= most < int(plain.iterations)
    (adjoint,) = log.adjoints()
    assert int(adjoint.iterations) <= most
    inv = torch.linalg.inv(matrix)
    w = inv.T @ torch.ones(12, dtype=F64)
    # in the norm that the tolerance is stated in: the residual of each system
    assert torch.linalg.vector_norm(matrix @ sol.value.detach() - B12) < 1e-10 * B12.norm()
    assert torch.linalg.vector_norm(matrix.T @ b.grad - 1) < 1e-10 * math.sqrt(12)
    assert error(b.grad, w) < 1e-6
    assert error(A.grad, -w[:, None] * (inv @ B12)) < 1e-6


@preconditioned
def test_preconditioner_under_vmap(solver, matrix, preconditioner, most):
    A = ims.MatrixOperator(matrix, positive_definite=isinstance(solver, (ims.CG, ims.MINRES)))
    b = seeded(3, 12, seed=7)
    sol = vmap(lambda b: ims.linear_solve(A, b, solver=solver, preconditioner=preconditioner))(b)
    assert bool((sol.iterations <= most).all())
    assert bool((torch.linalg.vector_norm(sol.value @ matrix.T - b, dim=-1) < 1e-9).all())


def test_preconditioner_gets_no_gradient():
    for wrap in (ims.MatrixOperator, lambda M: lambda r: M @ r):
        M, b = NEARLY.clone().requires_grad_(), B12.clone().requires_grad_()
        A = ims.MatrixOperator(ILL)
        ims.linear_solve(A, b, solver=ims.GMRES(), preconditioner=wrap(M)).value.sum().backward()
        assert M.grad is None
        assert b.grad is not None


def test_budget_is_spent_on_the_preconditioned_system():
    """Two terms of the Neumann series with a preconditioner: M b + M (b - A M b)."""
    M = NEARLY
    A = ims.MatrixOperator(ILL)
    solver = ims.Neumann(max_steps=2, rtol=None)
    sol = ims.linear_solve(A, B12, solver=solver, preconditioner=ims.MatrixOperator(M))
    assert error(sol.value, M @ B12 + M @ (B12 - ILL @ (M @ B12))) < 1e-12


ITERATIVE = [
    ("CG", ims.CG(), with_eigenvalues(torch.linspace(1, 100, 30), 30)),
    ("GMRES", ims.GMRES(restart=10), with_eigenvalues(torch.linspace(1, 100, 30), 30)),
    ("MINRES", ims.MINRES(), with_eigenvalues(torch.linspace(1, 100, 30), 30)),
    ("BiCGStab", ims.BiCGStab(), with_eigenvalues(torch.linspace(1, 100, 30), 30)),
    ("Neumann", ims.Neumann(), with_eigenvalues(torch.linspace(0.2, 1.8, 30), 30)),
]
iterative = pytest.mark.parametrize(
    "solver, matrix", [case[1:] for case in ITERATIVE], ids=[case[0] for case in ITERATIVE]
)


@iterative
def test_start(solver, matrix):
    A, b = ims.MatrixOperator(matrix, positive_definite=True), seeded(30)
    exact = torch.linalg.inv(matrix) @ b
    cold = ims.linear_solve(A, b, solver=solver)
    x0 = (exact + 1e-8 * seeded(30, seed=1)).requires_grad_()
    warm = ims.linear_solve(A, b, solver=solver, x0=x0)
    there = ims.linear_solve(A, b, solver=solver, x0=exact)
    assert int(there.iterations) == 0
    assert torch.equal(there.value, exact)
    assert int(warm.iterations) < 0.75 * int(cold.iterations)
    assert error(warm.value, exact) < 1e-8
    assert not warm.value.requires_grad  # b and A do not: a start gets no gradient
    assert torch.equal(
        jacrev(lambda x0: ims.linear_solve(A, b, solver=solver, x0=x0).value)(exact),
        torch.zeros(30, 30, dtype=F64),
    )


def test_starts_of_several_right_hand_sides_and_lanes():
    matrix = ITERATIVE[0][2]
    A, b = ims.MatrixOperator(matrix, positive_definite=True), seeded(30, 3)
    exact = torch.linalg.inv(matrix) @ b
    sol = ims.linear_solve(A, b, solver=ims.CG(), x0=exact)
    assert sol.iterations.tolist() == [0, 0, 0]
    sol = vmap(lambda b, x: ims.linear_solve(A, b, solver=ims.CG(), x0=x))(b.T, exact.T)
    assert sol.iterations.tolist() == [0, 0, 0]


@iterative
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_budget(solver, matrix, steps):
    solver = type(solver)(rtol=None, max_steps=steps)
    A, b = ims.MatrixOperator(matrix, positive_definite=True), seeded(30)
    sol = ims.linear_solve(A, b, solver=solver)
    assert int(sol.iterations) == steps
    assert int(sol.status) == Status.BUDGET and not bool(sol.converged)
    r = b - matrix @ sol.value
    assert torch.allclose(sol.residual, torch.linalg.vector_norm(r) / math.sqrt(30), rtol=1e-10)


def krylov(matrix, b, k):
    return torch.linalg.qr(
        torch.stack([torch.linalg.matrix_power(matrix, j) @ b for j in range(k)], 1)
    )[0]


@pytest.mark.parametrize("k", [1, 2, 5])
def test_budget_of_conjugate_gradients_is_best_in_the_energy_norm(k):
    matrix, b = with_eigenvalues(torch.linspace(1, 9, 7), 7), seeded(7)
    A = ims.MatrixOperator(matrix, positive_definite=True)
    V = krylov(matrix, b, k)
    best = V @ torch.linalg.inv(V.T @ matrix @ V) @ (V.T @ b)
    sol = ims.linear_solve(A, b, solver=ims.CG(rtol=None, max_steps=k))
    assert error(sol.value, best) < 1e-11


@pytest.mark.parametrize("k", [1, 2, 5])
def test_budget_of_gmres_has_the_least_residual(k):
    matrix, b = torch.eye(7, dtype=F64) + 0.3 * seeded(7, 7, seed=3), seeded(7)
    AV = matrix @ krylov(matrix, b, k)
    least = b - AV @ torch.linalg.inv(AV.T @ AV) @ (AV.T @ b)
    sol = ims.linear_solve(ims.MatrixOperator(matrix), b, solver=ims.GMRES(rtol=None, max_steps=k))
    assert error(b - matrix @ sol.value, least) < 1e-11


@pytest.mark.parametrize("k", [0, 1, 2, 7])
def test_budget_of_neumann_is_the_explicit_sum(k):
    b, A = B.clone().requires_grad_(), A0.clone().requires_grad_()
    solver = ims.Neumann(rtol=None, max_steps=k)
    value = ims.linear_solve(ims.MatrixOperator(A), b, solver=solver).value
    series = sum(
        (torch.linalg.matrix_power(EYE - A0, j) for j in range(k)), torch.zeros(3, 3).double()
    )
    assert error(value.detach(), series @ B) < 1e-14
    value.sum().backward()
    # the adjoint is the same series of the transpose
    w = series.T @ torch.ones(3, dtype=F64)
    assert error(b.grad, w) < 1e-14
    assert error(A.grad, -torch.outer(w, series @ B)) < 1e-14


@pytest.mark.parametrize("solver", [ims.CG, ims.MINRES, ims.GMRES, ims.BiCGStab, ims.Neumann])
def test_budget_may_outlast_the_residual(solver):
    """Steps past an exact solution neither divide 0 by 0 nor move."""
    A, b = (0.5 * EYE).requires_grad_(), B.clone().requires_grad_()
    operator = ims.MatrixOperator(A, positive_definite=True)
    sol = ims.linear_solve(operator, b, solver=solver(rtol=None, max_steps=80))
    assert int(sol.status) == Status.BUDGET and int(sol.iterations) == 80
    assert error(sol.value, 2 * B) < 1e-15
    sol.value.sum().backward()
    assert torch.isfinite(A.grad).all()
    assert error(b.grad, torch.full((3,), 2.0).double()) < 1e-15


KINDS = [
    ims.CG(), ims.MINRES(), ims.GMRES(), ims.BiCGStab(), ims.Neumann(), ims.LU(), ims.Cholesky(),
]  # fmt: skip

# -- exactness of conjugate gradients (wrong answer 3 of the design) ---------------------------


@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
@pytest.mark.parametrize("atol", [0.0, 1e-30])
def test_residual_that_is_exactly_zero(dtype, atol):
    """Powers of two: the first step is exact, and its result is the one that is returned."""
    b = torch.tensor([1.0, -2.0, 4.0], dtype=dtype, requires_grad=True)
    A = ims.MatrixOperator((2 * EYE).to(dtype), positive_definite=True)
    sol = ims.linear_solve(A, b, solver=ims.CG(rtol=0.0, atol=atol))
    assert torch.equal(sol.value, b / 2)
    assert int(sol.iterations) == 1 and float(sol.residual) == 0
    assert int(sol.status) == Status.CONVERGED
    sol.value.sum().backward()
    assert torch.equal(b.grad, torch.full_like(b, 0.5))


@pytest.mark.parametrize("k", [1, 2, 4])
def test_converged_iterate_is_returned(k):
    """With k different eigenvalues k steps suffice; the step before is off by far more."""
    matrix, b = with_eigenvalues(torch.linspace(1, 5, k), 8), seeded(8)
    A = ims.MatrixOperator(matrix, positive_definite=True)
    sol = ims.linear_solve(A, b, solver=ims.CG(max_steps=k))
    assert int(sol.iterations) == k and bool(sol.converged)
    assert error(sol.value, torch.linalg.inv(matrix) @ b) < 1e-12


@pytest.mark.parametrize("solver", KINDS)
def test_right_hand_side_of_zero(solver):
    b, A = torch.zeros(3, dtype=F64, requires_grad=True), spd(W).requires_grad_()
    sol = ims.linear_solve(ims.MatrixOperator(A, positive_definite=True), b, solver=solver)
    assert torch.equal(sol.value, torch.zeros(3, dtype=F64))
    assert bool(sol.converged) and float(sol.residual) == 0
    sol.value.sum().backward()
    assert torch.equal(A.grad, torch.zeros(3, 3, dtype=F64))
    assert error(b.grad, torch.linalg.inv(spd(W)) @ torch.ones(3, dtype=F64)) < 1e-9


def test_zero_among_the_lanes():
    b = torch.stack([B, 0 * B, -B])
    A = ims.MatrixOperator(spd(W), positive_definite=True)
    for solver in (ims.CG(), ims.MINRES(), ims.GMRES(), ims.BiCGStab(), ims.Neumann()):
        sol = vmap(lambda b, s=solver: ims.linear_solve(A, b, solver=s))(b)
        assert bool(sol.converged.all()) and int(sol.iterations[1]) == 0
        assert error(sol.value, b @ torch.linalg.inv(spd(W))) < 1e-9


# -- failures ----------------------------------------------------------------------------------

HILBERT = 1 / (torch.arange(12)[:, None] + torch.arange(12) + 1.0).double()
ROTATION = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=F64)
SHIFT = torch.eye(8, dtype=F64).roll(1, 0)


def definite(matrix):
    return ims.MatrixOperator(matrix, positive_definite=True)


FAILURES = [
    ("CG-indefinite", definite(torch.diag(torch.tensor([1.0, -2.0, 3.0]))), ims.CG(), "INDEFINITE"),
    ("CG-negative", definite(-EYE), ims.CG(), "INDEFINITE"),
    ("CG-zero", definite(0 * EYE), ims.CG(), "INDEFINITE"),
    ("Cholesky-indefinite", definite(torch.diag(torch.tensor([1.0, -2.0, 3.0]))), ims.Cholesky(),
     "INDEFINITE"),
    ("CG-steps", definite(HILBERT), ims.CG(max_steps=2), "MAX_STEPS"),
    ("GMRES-steps", ims.MatrixOperator(SHIFT), ims.GMRES(max_steps=4), "MAX_STEPS"),
    ("GMRES-restarts", ims.MatrixOperator(SHIFT), ims.GMRES(restart=4, max_steps=50), "MAX_STEPS"),
    ("GMRES-stagnation", ims.MatrixOperator(ROTATION), ims.GMRES(restart=1, max_steps=50),
     "MAX_STEPS"),
    ("GMRES-singular", ims.MatrixOperator(torch.diag(torch.tensor([1.0, 0.0]))), ims.GMRES(),
     "BREAKDOWN"),
    ("GMRES-zero", ims.MatrixOperator(0 * EYE), ims.GMRES(), "BREAKDOWN"),
    ("MINRES-singular", ims.MatrixOperator(torch.diag(torch.tensor([1.0, 0.0])), symmetric=True),
     ims.MINRES(), "BREAKDOWN"),
    ("MINRES-zero", definite(0 * EYE), ims.MINRES(), "BREAKDOWN"),
    ("MINRES-steps", definite(HILBERT), ims.MINRES(max_steps=2), "MAX_STEPS"),
    ("MINRES-nan", definite(EYE * math.nan), ims.MINRES(), "NONFINITE"),
    ("BiCGStab-rotation", ims.MatrixOperator(ROTATION), ims.BiCGStab(), "BREAKDOWN"),
    ("BiCGStab-zero", ims.MatrixOperator(0 * EYE), ims.BiCGStab(), "BREAKDOWN"),
    ("BiCGStab-steps", ims.MatrixOperator(SHIFT), ims.BiCGStab(max_steps=2), "MAX_STEPS"),
    ("BiCGStab-nan", ims.MatrixOperator(EYE * math.nan), ims.BiCGStab(), "NONFINITE"),
    ("Neumann-steps", ims.MatrixOperator(0.1 * EYE), ims.Neumann(max_steps=5), "MAX_STEPS"),
    ("Neumann-divergent", ims.MatrixOperator(3 * EYE), ims.Neumann(max_steps=50), "MAX_STEPS"),
    ("Neumann-overflow", ims.MatrixOperator(3 * EYE), ims.Neumann(max_steps=3000), "NONFINITE"),
    ("LU-zero", ims.MatrixOperator(0 * EYE), ims.LU(), "SINGULAR"),
    ("Diagonal-zero", ims.DiagonalOperator(torch.tensor([1.0, 0.0]).double()), None, "SINGULAR"),
    ("LU-nan", ims.MatrixOperator(EYE * math.nan), ims.LU(), "NONFINITE"),
    ("LU-inf", ims.MatrixOperator(EYE * math.inf), ims.LU(), "NONFINITE"),
    ("Cholesky-nan", definite(EYE * math.nan), ims.Cholesky(), "NONFINITE"),
    ("Diagonal-nan", ims.DiagonalOperator(Z * math.nan), None, "NONFINITE"),
    ("CG-nan", definite(EYE * math.nan), ims.CG(), "NONFINITE"),
    ("GMRES-nan", ims.MatrixOperator(EYE * math.nan), ims.GMRES(), "NONFINITE"),
    ("Neumann-nan", ims.MatrixOperator(EYE * math.nan), ims.Neumann(), "NONFINITE"),
]  # fmt: skip


@pytest.mark.parametrize(
    "A, solver, status", [case[1:] for case in FAILURES], ids=[case[0] for case in FAILURES]
)
def test_failure_is_reported(A, solver, status):
    """Never accepted: the status says why, the policy what follows (wrong answer 10)."""
    A = (
        ims.MatrixOperator(A.matrix.double(), A.symmetric, A.positive_definite)
        if isinstance(A, ims.MatrixOperator)
        else A
    )
    b = torch.ones(A.structure.size, dtype=F64)
    b[0] = 2
    with pytest.raises(ims.ConvergenceError, match=f"linear_solve.*{status}"):
        ims.linear_solve(A, b, solver=solver)
    with pytest.warns(ims.ConvergenceWarning, match=status):
        warned = ims.linear_solve(A, b, solver=solver, on_failure="warn")
    masked = ims.linear_solve(A, b, solver=solver, on_failure="mask")
    for sol in (warned, masked):
        assert Status(int(sol.status)).name == status
        assert not bool(sol.converged)


@pytest.mark.parametrize(
    "solver",
    [ims.CG(rtol=1e-15), ims.CG(rtol=1e-15, max_steps=200), ims.GMRES(rtol=1e-15), ims.CG(),
     ims.GMRES(restart=3, max_steps=300), ims.MINRES(rtol=1e-15), ims.MINRES(),
     ims.BiCGStab(rtol=1e-15), ims.BiCGStab()],
    ids=["CG", "CG-200", "GMRES", "CG-default", "GMRES-3", "MINRES", "MINRES-default", "BiCGStab",
         "BiCGStab-default"],
)  # fmt: skip
def test_recursive_residuals_are_not_believed(solver):
    """On a Hilbert matrix, condition 1e16, what is called converged has the residual asked for."""
    b = torch.ones(12, dtype=F64)
    sol = ims.linear_solve(definite(HILBERT), b, solver=solver, on_failure="mask")
    true = torch.linalg.vector_norm(b - HILBERT @ sol.value) / math.sqrt(12)
    assert torch.allclose(sol.residual, true, rtol=0.5, atol=1e-15)
    rtol = solver.rtol if isinstance(solver.rtol, float) else 2.2e-16 ** (2 / 3)
    assert bool(sol.converged) == (int(sol.status) == Status.CONVERGED)
    if bool(sol.converged):
        assert true <= 1.2 * rtol


def test_failed_gmres_returns_its_best_iterate():
    sol = ims.linear_solve(
        ims.MatrixOperator(HILBERT), torch.ones(12, dtype=F64), solver=ims.GMRES(max_steps=3),
        on_failure="mask",
    )  # fmt: skip
    assert float(sol.residual) < 1 and int(sol.iterations) == 3


SINGULAR = {
    "dependent-rows": [[1.0, 2.0], [2.0, 4.0]],
    "zero": [[0.0, 0.0], [0.0, 0.0]],
    "zero-row": [[1.0, 2.0], [0.0, 0.0]],
    "zero-column": [[1.0, 0.0], [2.0, 0.0]],
    "numerically": [[0.1, 0.3], [0.2, 0.6]],
    "numerically-3": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]],
    "tenths": [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9]],
    "tiny": [[1e-30, 3e-30], [2e-30, 6e-30]],
    "scaled-rows": [[1e-10, 3e-10], [2e10, 6e10]],
    "scaled-columns": [[0.1e-10, 0.3e10], [0.2e-10, 0.6e10]],
    "nilpotent": [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]],
    "laplacian": [[1.0, -1.0, 0.0], [-1.0, 2.0, -1.0], [0.0, -1.0, 1.0]],
}


@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", SINGULAR)
def test_singular_matrix(name, dtype):
    matrix = torch.tensor(SINGULAR[name], dtype=dtype)
    b = torch.arange(1.0, len(matrix) + 1, dtype=dtype)
    sol = ims.linear_solve(ims.MatrixOperator(matrix), b, on_failure="mask")
    assert int(sol.status) == Status.SINGULAR and not bool(sol.converged)


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
}


@pytest.mark.parametrize("name", REGULAR)
def test_badly_scaled_matrix_is_not_called_singular(name):
    matrix = REGULAR[name]
    exact = torch.ones(len(matrix), dtype=F64)
    sol = ims.linear_solve(ims.MatrixOperator(matrix), matrix @ exact, solver=ims.LU())
    assert bool(sol.converged)
    backward = (matrix @ sol.value - matrix @ exact).abs() / (matrix.abs() @ sol.value.abs())
    assert float(backward.max()) < 1e-13


BAD_LANES = [
    ("nan-matrix", "A", math.nan, ims.LU(), Status.NONFINITE),
    ("nan-matrix", "A", math.nan, ims.GMRES(), Status.NONFINITE),
    ("nan-matrix", "A", math.nan, ims.CG(), Status.NONFINITE),
    ("nan-matrix", "A", math.nan, ims.Cholesky(), Status.NONFINITE),
    ("nan-matrix", "A", math.nan, ims.Neumann(), Status.NONFINITE),
    ("singular", "A", 0.0, ims.LU(), Status.SINGULAR),
    ("singular", "A", 0.0, ims.GMRES(), Status.BREAKDOWN),
    ("singular", "A", 0.0, ims.CG(), Status.INDEFINITE),
    ("singular", "A", 0.0, ims.Cholesky(), Status.INDEFINITE),
    ("nan-matrix", "A", math.nan, ims.MINRES(), Status.NONFINITE),
    ("nan-matrix", "A", math.nan, ims.BiCGStab(), Status.NONFINITE),
    ("singular", "A", 0.0, ims.MINRES(), Status.BREAKDOWN),
    ("singular", "A", 0.0, ims.BiCGStab(), Status.BREAKDOWN),
    ("nan-vector", "b", math.nan, ims.LU(), Status.NONFINITE),
    ("nan-vector", "b", math.nan, ims.GMRES(), Status.NONFINITE),
    ("nan-vector", "b", math.nan, ims.CG(), Status.NONFINITE),
    ("inf-vector", "b", math.inf, ims.LU(), Status.NONFINITE),
    ("slow", "A", "ill", ims.CG(max_steps=4), Status.MAX_STEPS),
]


@pytest.mark.parametrize("way", ["vmap", "batch_dims"])
@pytest.mark.parametrize(
    "where, what, solver, status",
    [case[1:] for case in BAD_LANES],
    ids=[f"{case[0]}-{type(case[3]).__name__}" for case in BAD_LANES],
)
def test_bad_lane_changes_no_other(where, what, solver, status, way):
    """Values and gradients, those of a shared parameter included, are as without the bad lane."""
    n = 6
    matrices = torch.stack([with_eigenvalues(torch.linspace(0.6, 1.4, 2), n, k) for k in range(4)])
    b = seeded(4, n)
    if what == "ill":
        matrices[1] = with_eigenvalues(torch.logspace(-3, 0, n), n)
    else:
        (matrices if where == "A" else b)[1] *= what
    good = torch.tensor([0, 2, 3])

    def run(matrices, b):
        matrices, b = matrices.clone().requires_grad_(), b.clone().requires_grad_()
        scale = torch.tensor(1.1, dtype=F64, requires_grad=True)

        def one(A, b):
            times = ims.FunctionOperator(lambda v: scale * (A @ v), like=b, positive_definite=True)
            return ims.linear_solve(times, b, solver=solver, on_failure="mask")

        def all_lanes(A, b):
            A = ims.MatrixOperator(1.1 * A, positive_definite=True)
            return ims.linear_solve(A, b, solver=solver, on_failure="mask", batch_dims=1)

        sol = (vmap(one) if way == "vmap" else all_lanes)(matrices, b)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ims.ConvergenceWarning)
            torch.where(sol.converged.unsqueeze(-1), sol.value, 0.0).pow(2).sum().backward()
        return sol, matrices.grad, b.grad, scale.grad

    sol, gA, gb, gs = run(matrices, b)
    alone, alone_A, alone_b, alone_s = run(matrices[good], b[good])
    assert int(sol.status[1]) == status
    assert sol.status[good].tolist() == [0, 0, 0]
    # one product of a batch and one of a single lane differ by roundings
    assert error(sol.value.detach()[good], alone.value.detach()) < 1e-12
    assert error(gb[good], alone_b) < 1e-9 and error(gA[good], alone_A) < 1e-9
    assert torch.equal(gb[1], torch.zeros(n, dtype=F64))
    if way == "vmap":
        assert torch.equal(gA[1], torch.zeros(n, n, dtype=F64))
        assert error(gs, alone_s) < 1e-9


POLICY = {
    "raise": pytest.raises(ims.ConvergenceError, match="adjoint of linear_solve.*MAX_STEPS"),
    "warn": pytest.warns(ims.ConvergenceWarning, match="adjoint of linear_solve.*MAX_STEPS"),
    "mask": pytest.warns(ims.ConvergenceWarning, match="adjoint of linear_solve.*MAX_STEPS"),
}


@pytest.mark.parametrize("policy", POLICY)
@pytest.mark.parametrize("kind", [ims.CG, ims.MINRES, ims.GMRES, ims.BiCGStab, ims.Neumann])
def test_backward_solve_is_held_to_the_policy(kind, policy):
    """The forward solve starts at its solution; one step is too few for the backward solve."""
    matrix = spd(W)
    b = B.clone().requires_grad_()
    exact = torch.linalg.inv(matrix) @ B
    A = ims.MatrixOperator(matrix, positive_definite=True)
    sol = ims.linear_solve(A, b, solver=kind(max_steps=1), x0=exact, on_failure=policy)
    assert bool(sol.converged)
    with POLICY[policy]:
        sol.value.sum().backward()
    if policy == "warn":
        assert b.grad is not None and float(b.grad.abs().max()) > 0
    if policy == "mask":
        assert torch.equal(b.grad, torch.zeros(3, dtype=F64))


def test_lanes_are_named_in_the_error():
    A = torch.stack([EYE, 0 * EYE, EYE])
    with pytest.raises(ims.ConvergenceError, match=r"1 of 3 lanes \(lane 1: SINGULAR"):
        vmap(lambda A: ims.linear_solve(ims.MatrixOperator(A), B))(A)


# -- flags -------------------------------------------------------------------------------------

INDEFINITE = torch.diag(torch.tensor([1.0, -1.0, 1.0], dtype=F64))
REFUTED = [
    ("matrix", ims.MatrixOperator(A0, symmetric=True), "symmetric=True"),
    ("matrix-slightly", ims.MatrixOperator(EYE + 1e-6 * W, symmetric=True), "symmetric=True"),
    ("function", ims.FunctionOperator(lambda v: A0 @ v, B, symmetric=True), "symmetric=True"),
    ("jacobian", ims.JacobianOperator(sine, Z, (W,), symmetric=True), "symmetric=True"),
    ("definite-but-not-symmetric", definite(A0), "symmetric=True"),
    ("negative", definite(-EYE), "positive_definite=True"),
    ("negative-diagonal", ims.DiagonalOperator(-D, positive_definite=True), "positive_definite"),
    ("negative-hessian", ims.HessianOperator(lambda z: -(z**2).sum(), Z, positive_definite=True),
     "positive_definite=True"),
    ("sum", definite(A0) + EYE_OP, "symmetric=True"),
]  # fmt: skip


@pytest.mark.parametrize("A, words", [r[1:] for r in REFUTED], ids=[r[0] for r in REFUTED])
def test_check_refutes_wrong_flags(A, words):
    with pytest.raises(ValueError, match=words):
        ims.linear_solve(A, B, check=True)


@pytest.mark.parametrize("system", SYSTEMS, ids=str)
@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
def test_check_accepts_right_flags(system, dtype):
    A = system.operator(*(t.to(dtype) for t in system.tensors))
    assert bool(ims.linear_solve(A, system.pack(system.b.to(dtype)), check=True).converged)


def test_default_solver():
    with ims.monitor() as log:
        for system in ("matrix", "matrix-spd", "diagonal", "hessian", "identity-scaled"):
            BY_NAME[system].solve(None, B, *BY_NAME[system].tensors)
        big = torch.ones(600, dtype=F64)
        ims.linear_solve(ims.FunctionOperator(lambda v: 2 * v, big), big)
        ims.linear_solve(ims.FunctionOperator(lambda v: 2 * v, big, positive_definite=True), big)
    names = [record.solver for record in log.records]
    assert names == ["LU", "Cholesky", "Diagonal", "Cholesky", "Diagonal", "GMRES", "CG"]


# -- wrong input -------------------------------------------------------------------------------

MAT = ims.MatrixOperator(A0)
MATS = ims.MatrixOperator(EYE + MANY_W)
TREE = ims.DiagonalOperator(tree(D))
g = ims.GMRES()


def call(A, b, **options):
    return lambda: ims.linear_solve(A, b, **options)


REFUSED = [
    ("A-an-array", call(A0.numpy(), B), TypeError, "A is a ndarray.*MatrixOperator.*a tensor"),
    ("A-a-function", call(lambda v: v, B), TypeError, "A is a function.*FunctionOperator"),
    ("A-none", call(None, B), TypeError, "A is a NoneType"),
    ("b-too-short", call(MAT, B[:2]), ValueError, r"b has leaves of shapes.*\(2,\).*\(3,\)"),
    ("b-0d", call(MAT, B[0]), ValueError, r"b has leaves of shapes"),
    ("b-lanes-first", call(MAT, MANY_B), ValueError, "b has leaves of shapes.*batch_dims"),
    ("b-without-lanes", call(MATS, B), ValueError, "b has leaves of shapes.*batch_dims"),
    ("b-lanes-not-counted", call(MATS, MANY_B), ValueError, "batch_dims"),
    (
        "b-other-lanes",
        call(MATS, MANY_B[:2], batch_dims=1),
        ValueError,
        "b has leaves of shapes",
    ),
    ("b-in-a-list", call(MAT, [B]), ValueError, "b has the structure"),
    ("b-not-a-tree", call(TREE, B), ValueError, "b has the structure"),
    ("b-of-another-tree", call(TREE, {"a": B[:2], "c": B[2]}), ValueError, "b has the structure"),
    ("b-of-numbers", call(MAT, [1.0, 2.0, 3.0]), TypeError, "b has a leaf of type float"),
    ("b-integer", call(MAT, torch.arange(3)), TypeError, "b has dtype torch.int64"),
    ("b-complex", call(MAT, B + 0j), TypeError, "b has torch.complex128.*A has"),
    ("b-float32", call(MAT, B.float()), TypeError, "b has torch.float32.*A has torch.float64"),
    ("b-empty-tree", call(MAT, {}), ValueError, "b is an empty pytree"),
    ("b-mixed", call(TREE, {"a": B[:2], "b": B[2].float()}), ValueError, "b mixes"),
    ("batch_dims-too-many", call(MAT, B, batch_dims=2), ValueError, "batch_dims=2"),
    ("batch_dims-negative", call(MAT, B, batch_dims=-1), ValueError, "batch_dims"),
    ("solver-a-class", call(MAT, B, solver=ims.LU), TypeError, "solver.*LU"),
    ("solver-a-string", call(MAT, B, solver="lu"), TypeError, "solver.*str"),
    (
        "solver-for-equations",
        call(MAT, B, solver=ims.Newton()),
        (TypeError, ValueError),
        "solver.*Newton",
    ),
    ("CG-nonsymmetric", call(MAT, B, solver=ims.CG()), ValueError, "CG.*symmetric"),
    (
        "Cholesky-nonsymmetric",
        call(MAT, B, solver=ims.Cholesky()),
        ValueError,
        "Cholesky.*symmetric",
    ),
    ("MINRES-nonsymmetric", call(MAT, B, solver=ims.MINRES()), ValueError, "MINRES.*symmetric"),
    ("Diagonal-full", call(MAT, B, solver=ims.Diagonal()), ValueError, "Diagonal.*diagonal"),
    ("x0-for-LU", call(MAT, B, solver=ims.LU(), x0=B), ValueError, "x0.*LU.*direct"),
    ("x0-for-default", call(MAT, B, x0=B), ValueError, "x0.*LU.*direct"),
    ("x0-shape", call(MAT, B, solver=g, x0=B[:2]), ValueError, r"x0.*\(2,\)"),
    ("x0-dtype", call(MAT, B, solver=g, x0=B.float()), (TypeError, ValueError), "x0.*float32"),
    ("x0-structure", call(MAT, B, solver=g, x0=[B]), ValueError, "x0.*structure"),
    ("x0-a-number", call(MAT, B, solver=g, x0=0.0), (TypeError, ValueError), "x0"),
    ("x0-without-columns", call(MAT, MANY_B.T, solver=g, x0=B), ValueError, "x0"),
    (
        "preconditioner-for-LU",
        call(MAT, B, solver=ims.LU(), preconditioner=MAT),
        ValueError,
        "preconditioner.*LU.*direct",
    ),
    (
        "preconditioner-for-default",
        call(MAT, B, preconditioner=ims.Jacobi()),
        ValueError,
        "preconditioner.*LU.*direct",
    ),
    (
        "preconditioner-a-string",
        call(MAT, B, solver=g, preconditioner="jacobi"),
        TypeError,
        "preconditioner.*str",
    ),
    (
        "preconditioner-a-class",
        call(MAT, B, solver=g, preconditioner=ims.Jacobi),
        TypeError,
        "preconditioner.*Jacobi",
    ),
    (
        "preconditioner-a-tensor",
        call(MAT, B, solver=g, preconditioner=A0),
        TypeError,
        "preconditioner.*Tensor",
    ),
    (
        "preconditioner-size",
        call(MAT, B, solver=g, preconditioner=ims.MatrixOperator(EYE[:2, :2])),
        ValueError,
        "preconditioner",
    ),
    (
        "preconditioner-dtype",
        call(MAT, B, solver=g, preconditioner=ims.MatrixOperator(EYE.float())),
        (TypeError, ValueError),
        "preconditioner",
    ),
    (
        "preconditioner-function-shape",
        call(MAT, B, solver=g, preconditioner=lambda r: r[:2]),
        ValueError,
        "preconditioner",
    ),
    (
        "function-shape-GMRES",
        call(ims.FunctionOperator(lambda v: v[:2], B), B, solver=g),
        ValueError,
        r"returned.*\(2,\)",
    ),
    (
        "function-shape-LU",
        call(ims.FunctionOperator(lambda v: v[:2], B), B),
        ValueError,
        r"returned.*\(2,\)",
    ),
    (
        "function-dtype",
        call(ims.FunctionOperator(lambda v: v.float(), B), B),
        TypeError,
        "returned torch.float32",
    ),
    (
        "function-structure",
        call(ims.FunctionOperator(lambda v: (v, v), B), B, solver=g),
        ValueError,
        "returned the structure",
    ),
    ("sum-of-sizes", lambda: MAT + ims.MatrixOperator(EYE[:2, :2]), ValueError, r"\(3,\).*\(2,\)"),
    (
        "product-of-sizes",
        lambda: MAT @ ims.MatrixOperator(EYE[:2, :2]),
        ValueError,
        r"\(3,\).*\(2,\)",
    ),
    (
        "hessian-of-a-vector",
        call(ims.HessianOperator(lambda z: z**2, Z), B),
        ValueError,
        "fn returned|scalar|0-d",
    ),
    ("on_failure", call(MAT, B, on_failure="ignore"), ValueError, "on_failure is 'ignore'"),
]


@pytest.mark.parametrize(
    "solve, exception, words", [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_refused(solve, exception, words):
    with pytest.raises(exception, match=words):
        solve()


# -- properties --------------------------------------------------------------------------------

DTYPES = st.sampled_from([F32, F64])
SIZES = st.integers(1, 8)
SEEDS = st.integers(0, 10**6)
CONDITIONS = st.floats(0, 2)  # powers of ten
GENERAL = {"LU": ims.LU(), "GMRES": ims.GMRES(), "GMRES-3": ims.GMRES(restart=3, max_steps=20_000)}
DEFINITE = {"Cholesky": ims.Cholesky(), "CG": ims.CG(), "MINRES": ims.MINRES()}


def spectrum(n, log_condition, seed):
    """Return ``n`` numbers from 1 to the condition number, its ends among them, shuffled."""
    values = torch.logspace(0, log_condition, n, dtype=F64)
    return values[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]


def orthogonal(n, seed):
    return torch.linalg.qr(seeded(n, n, seed=seed))[0]


@st.composite
def systems(draw, lanes=1):
    """Draw matrices with a chosen spectrum, right-hand sides, and a solver that fits."""
    n, dtype, seed = draw(SIZES), draw(DTYPES), draw(SEEDS)
    symmetric = draw(st.booleans())
    # restarted GMRES stalls on ill-conditioned indefinite systems: singular values from 1 to 10
    log_condition = draw(CONDITIONS) if symmetric else min(draw(CONDITIONS), 1.0)
    names = [*DEFINITE, *GENERAL] if symmetric else [k for k in GENERAL if k != "GMRES-3"]
    solver = draw(st.sampled_from(names))
    matrices = []
    for lane in range(lanes):
        q, s = orthogonal(n, seed + lane), spectrum(n, log_condition, seed + lane)
        p = q if symmetric else orthogonal(n, seed + lane + 1000)
        matrix = q @ torch.diag(s) @ p.T
        matrices.append((matrix + matrix.T) / 2 if symmetric else matrix)
    b = seeded(lanes, n, seed=seed + 17)
    return torch.stack(matrices).to(dtype), b.to(dtype), symmetric, {**GENERAL, **DEFINITE}[solver]


def run(matrix, b, symmetric, solver):
    A = ims.MatrixOperator(matrix, positive_definite=symmetric)
    return ims.linear_solve(A, b, solver=solver)


def bound(matrix, b, x):
    """Return what the residual may be: the solver's tolerance, or the rounding of the product."""
    eps, n = torch.finfo(b.dtype).eps, b.shape[-1]
    rounding = 8 * n * eps * torch.linalg.matrix_norm(matrix, 2) * torch.linalg.vector_norm(x)
    return 1.1 * eps ** (2 / 3) * torch.linalg.vector_norm(b) + rounding


@given(systems())
def test_solution_solves(drawn):
    (matrix,), (b,), symmetric, solver = drawn
    sol = run(matrix, b, symmetric, solver)
    assert bool(sol.converged)
    residual = torch.linalg.vector_norm(b.double() - matrix.double() @ sol.value.double())
    assert residual <= bound(matrix, b, sol.value)


@given(systems(), st.floats(-3, 3), st.floats(-3, 3))
def test_solution_is_linear_in_b(drawn, s, t):
    (matrix,), (b,), symmetric, solver = drawn
    c = seeded(len(b), seed=99).to(b)
    x, y, z = (run(matrix, v, symmetric, solver).value for v in (b, c, s * b + t * c))
    r = matrix.double() @ (z - (s * x + t * y)).double()
    size = abs(s) * bound(matrix, b, x) + abs(t) * bound(matrix, c, y)
    assert torch.linalg.vector_norm(r) <= size + bound(matrix, s * b + t * c, z) + 1e-30


@given(systems(lanes=5), st.permutations(range(5)))
def test_permuted_lanes_give_permuted_results(drawn, order):
    matrices, b, symmetric, solver = drawn

    def solve(A, b):
        return run(A, b, symmetric, solver)

    straight, permuted = vmap(solve)(matrices, b), vmap(solve)(matrices[order], b[order])
    assert torch.equal(permuted.status, straight.status[order])
    # the same lanes at other places of a batched product differ by roundings
    assert int((permuted.iterations - straight.iterations[order]).abs().max()) <= 1
    for i, j in enumerate(order):
        r = matrices[j].double() @ (permuted.value[i] - straight.value[j]).double()
        assert torch.linalg.vector_norm(r) <= 2 * bound(matrices[j], b[j], straight.value[j])


@given(systems(lanes=4))
def test_lanes_equal_the_loop_over_lanes(drawn):
    matrices, b, symmetric, solver = drawn
    batch = vmap(lambda A, b: run(A, b, symmetric, solver))(matrices, b)
    for i in range(4):
        single = run(matrices[i], b[i], symmetric, solver)
        assert int(batch.status[i]) == int(single.status)
        assert abs(int(batch.iterations[i]) - int(single.iterations)) <= 1
        r = matrices[i].double() @ (batch.value[i] - single.value).double()
        assert torch.linalg.vector_norm(r) <= 2 * bound(matrices[i], b[i], single.value)


@given(systems())
def test_gradients_solve_the_transposed_system(drawn):
    (matrix,), (b,), symmetric, solver = drawn
    b, A = b.clone().requires_grad_(), matrix.clone().requires_grad_()
    x = run(A, b, symmetric, solver).value
    weights = seeded(len(b), seed=5).to(b)
    (weights @ x).backward()
    r = matrix.double().T @ b.grad.double() - weights.double()
    assert torch.linalg.vector_norm(r) <= bound(matrix, weights, b.grad)
    outer = torch.outer(b.grad, x.detach())
    assert torch.allclose(A.grad, -outer, rtol=0, atol=10 * torch.finfo(b.dtype).eps
                          * float(outer.abs().max()))  # fmt: skip


def test_warnings_stay_silent_where_nothing_fails():
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("error")
        for system, solver in FEW:
            system.solve(SOLVERS[solver], system.b, *system.tensors, on_failure="warn")
