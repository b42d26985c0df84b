"""Every operator against the matrix that it stands for, which is written down here without it."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.func import vmap
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

import implicit_solvers as ims

F64 = torch.float64
EYE = torch.eye(3, dtype=F64)
M = torch.tensor([[1.0, 2.0, -1.0], [0.5, 3.0, 0.25], [-2.0, 0.0, 1.5]], dtype=F64)
N = torch.tensor([[0.0, 1.0, 0.5], [-1.0, 2.0, 0.0], [0.3, 0.2, -1.0]], dtype=F64)
S = torch.tensor([[4.0, 1.0, 0.0], [1.0, 3.0, -1.0], [0.0, -1.0, 2.0]], dtype=F64)
D = torch.tensor([2.0, -3.0, 0.5], dtype=F64)
Z = torch.tensor([0.3, -0.8, 1.1], dtype=F64)
SCALE = torch.tensor(-1.5, dtype=F64)
LANES = torch.stack([M, N + 2 * EYE, S, M.T])
# A few operations of entries of size 10 in float64: 1e-12 is some thousand roundings.
TOLERANCE = 1e-12


def tree(flat):
    """Return a vector of three entries as a dict with a vector and a 0-d leaf."""
    return {"a": flat[..., :2], "b": flat[..., 2]}


def ravel(v):
    leaves = [v] if isinstance(v, torch.Tensor) else [v["a"], v["b"].unsqueeze(-1)]
    return torch.cat([t.reshape(-1) for t in leaves])


def unlike(flat, like):
    """Return the three entries (or the one) as a vector of the structure of ``like``."""
    return flat.reshape(like.shape) if isinstance(like, torch.Tensor) else tree(flat)


def sine(z, W):
    return torch.sin(W @ z)


def sine_tree(z, W):
    return tree(sine(ravel(z), W))


def quartic(z, W):
    return 0.25 * (z**4).sum() + 0.5 * z @ W @ z


def multiply(A):
    return lambda v: A @ v


@dataclass(frozen=True)
class Case:
    name: str
    operator: Any
    matrix: torch.Tensor
    symmetric: bool = False
    positive_definite: bool = False
    diagonal: bool = False
    like: Any = None

    def __str__(self):
        return self.name

    def vector(self, seed):
        flat = torch.randn(len(self.matrix), generator=torch.Generator().manual_seed(seed)).double()
        return flat, unlike(flat, Z if self.like is None else self.like)

    @property
    def structure(self):
        """The structure to hand to ``dense`` of an operator that takes any vector."""
        anything = ims.DiagonalOperator(Z if self.like is None else self.like)
        return None if self.operator.structure is not None else anything.structure


mat, diag, eye = ims.MatrixOperator(M), ims.DiagonalOperator(D), ims.IdentityOperator()
spd = ims.MatrixOperator(S, positive_definite=True)
cos = torch.cos(M @ Z)
SINE_JACOBIAN = cos[:, None] * M
QUARTIC_HESSIAN = torch.diag(3 * Z**2) + S
ONE = torch.tensor(0.7, dtype=F64)
ALL = {"symmetric": True, "positive_definite": True, "diagonal": True}

CASES = [
    Case("matrix", mat, M),
    Case("matrix-symmetric", ims.MatrixOperator(S, symmetric=True), S, symmetric=True),
    Case("matrix-spd", spd, S, symmetric=True, positive_definite=True),
    Case("function", ims.FunctionOperator(multiply(M), like=Z), M),
    Case("function-symmetric", ims.FunctionOperator(multiply(S), Z, symmetric=True), S, True),
    Case("function-spd", ims.FunctionOperator(multiply(S), Z, positive_definite=True), S, True, 1),
    Case(
        "function-tree",
        ims.FunctionOperator(lambda v: tree(M @ ravel(v)), like=tree(Z)),
        M,
        like=tree(Z),
    ),
    Case(
        "function-0d",
        ims.FunctionOperator(lambda v: 3 * v, ONE),
        torch.full((1, 1), 3.0).double(),
        like=ONE,
    ),
    Case("jacobian", ims.JacobianOperator(sine, Z, (M,)), SINE_JACOBIAN),
    Case(
        "jacobian-symmetric",
        ims.JacobianOperator(lambda z: z**3 + S @ z, Z, symmetric=True),
        torch.diag(3 * Z**2) + S,
        symmetric=True,
    ),
    Case(
        "jacobian-tree", ims.JacobianOperator(sine_tree, tree(Z), (M,)), SINE_JACOBIAN, like=tree(Z)
    ),
    Case(
        "jacobian-0d", ims.JacobianOperator(torch.sin, ONE), torch.cos(ONE).reshape(1, 1), like=ONE
    ),
    Case("hessian", ims.HessianOperator(quartic, Z, (S,)), QUARTIC_HESSIAN, symmetric=True),
    Case(
        "hessian-of-nonsymmetric-form",
        ims.HessianOperator(quartic, Z, (M,)),
        torch.diag(3 * Z**2) + 0.5 * (M + M.T),
        symmetric=True,
    ),
    Case(
        "hessian-spd",
        ims.HessianOperator(quartic, Z, (S,), positive_definite=True),
        QUARTIC_HESSIAN,
        symmetric=True,
        positive_definite=True,
    ),
    Case(
        "hessian-tree",
        ims.HessianOperator(lambda z: quartic(ravel(z), S), tree(Z)),
        QUARTIC_HESSIAN,
        symmetric=True,
        like=tree(Z),
    ),
    Case(
        "hessian-0d",
        ims.HessianOperator(lambda z: z**3, ONE),
        (6 * ONE).reshape(1, 1),
        symmetric=True,
        like=ONE,
    ),
    Case("diagonal", diag, torch.diag(D), symmetric=True, diagonal=True),
    Case(
        "diagonal-positive",
        ims.DiagonalOperator(D**2, positive_definite=True),
        torch.diag(D**2),
        **ALL,
    ),
    Case(
        "diagonal-tree",
        ims.DiagonalOperator(tree(D)),
        torch.diag(D),
        symmetric=True,
        diagonal=True,
        like=tree(Z),
    ),
    Case(
        "diagonal-0d",
        ims.DiagonalOperator(ONE),
        ONE.reshape(1, 1),
        symmetric=True,
        diagonal=True,
        like=ONE,
    ),
    Case("identity", eye, EYE, **ALL),
    Case("identity-tree", eye, EYE, **ALL, like=tree(Z)),
    Case("sum", mat + ims.MatrixOperator(N), M + N),
    Case(
        "sum-symmetric",
        spd + ims.MatrixOperator(S.flip(0, 1), symmetric=True),
        S + S.flip(0, 1),
        symmetric=True,
    ),
    Case("sum-spd", spd + 2.0 * eye, S + 2 * EYE, symmetric=True, positive_definite=True),
    Case("sum-diagonal", diag + eye, torch.diag(D) + EYE, symmetric=True, diagonal=True),
    Case("sum-identity-first", eye + mat, M + EYE),
    Case("difference", mat - ims.MatrixOperator(N), M - N),
    Case("difference-of-spd", spd - 2.0 * eye, S - 2 * EYE, symmetric=True),
    Case("product", mat @ ims.MatrixOperator(N), M @ N),
    Case("product-of-spd", spd @ spd, S @ S),
    Case("product-diagonal", diag @ diag, torch.diag(D**2), symmetric=True, diagonal=True),
    Case("product-with-diagonal", diag @ mat, D[:, None] * M),
    Case("negation", -mat, -M),
    Case("negation-of-spd", -spd, -S, symmetric=True),
    Case("scaled-float", 2.5 * mat, 2.5 * M),
    Case("scaled-int", spd * 3, 3 * S, symmetric=True, positive_definite=True),
    Case("scaled-negative", -2.0 * spd, -2 * S, symmetric=True),
    Case("scaled-zero", 0.0 * spd, 0 * S, symmetric=True),
    Case("scaled-0d-tensor", SCALE * spd, SCALE * S, symmetric=True),
    Case("0d-tensor-from-the-right", mat * SCALE, SCALE * M),
    Case(
        "scaled-tree",
        SCALE * ims.DiagonalOperator(tree(D)),
        torch.diag(SCALE * D),
        symmetric=True,
        diagonal=True,
        like=tree(Z),
    ),
    Case("transpose", mat.T, M.T),
    Case("transpose-of-function", ims.FunctionOperator(multiply(M), like=Z).T, M.T),
    Case("transpose-of-jacobian", ims.JacobianOperator(sine, Z, (M,)).T, SINE_JACOBIAN.T),
    Case("transpose-of-sum", (mat + diag).T, M.T + torch.diag(D)),
    Case("transpose-of-product", (mat @ ims.MatrixOperator(N)).T, N.T @ M.T),
    Case("transpose-of-scaled", (2.0 * mat).T, 2 * M.T),
    Case(
        "nested",
        2.0 * (mat.T @ (spd + SCALE * eye)) - diag,
        2 * M.T @ (S + SCALE * EYE) - torch.diag(D),
    ),
    Case(
        "nested-tree",
        (ims.JacobianOperator(sine_tree, tree(Z), (M,)) @ ims.DiagonalOperator(tree(D)) + eye).T,
        (SINE_JACOBIAN * D + EYE).T,
        like=tree(Z),
    ),
]
cases = pytest.mark.parametrize("case", CASES, ids=str)


@cases
def test_products(case):
    flat, v = case.vector(0)
    for operator, matrix in [(case.operator, case.matrix), (case.operator.T, case.matrix.T)]:
        for product, expected in [
            (operator.mv(v), matrix @ flat),
            (operator @ v, matrix @ flat),
            (operator.rmv(v), matrix.T @ flat),
            (operator.T.mv(v), matrix.T @ flat),
            (operator.T.T.mv(v), matrix @ flat),
        ]:
            assert tree_flatten(product)[1] == tree_flatten(v)[1]
            assert [t.shape for t in tree_leaves(product)] == [t.shape for t in tree_leaves(v)]
            assert torch.allclose(ravel(product), expected, rtol=0, atol=TOLERANCE)


@cases
def test_adjoint_identity(case):
    (_, u), (_, v) = case.vector(1), case.vector(2)
    left = ravel(u) @ ravel(case.operator.mv(v))
    assert torch.allclose(left, ravel(case.operator.rmv(u)) @ ravel(v), rtol=0, atol=TOLERANCE)


@cases
def test_dense(case):
    for operator, matrix in [(case.operator, case.matrix), (case.operator.T, case.matrix.T)]:
        dense = operator.dense(case.structure)
        assert torch.allclose(dense, matrix, rtol=0, atol=TOLERANCE)
        entries = operator.diagonal_entries(case.structure)
        assert torch.allclose(entries, matrix.diagonal(), rtol=0, atol=TOLERANCE)


@cases
def test_flags(case):
    A = case.operator
    assert bool(A.symmetric) == case.symmetric
    assert bool(A.positive_definite) == bool(case.positive_definite)
    assert bool(A.diagonal) == case.diagonal
    # no flag claims what the matrix refutes
    if A.symmetric:
        assert torch.equal(case.matrix, case.matrix.T)
        assert A.T is A
    if A.positive_definite:
        assert torch.linalg.eigvalsh(case.matrix).min() > 0


@cases
def test_operator_is_a_pytree(case):
    leaves, spec = tree_flatten(case.operator)
    copy = tree_unflatten(leaves, spec)
    flat, v = case.vector(3)
    assert type(copy) is type(case.operator)
    assert torch.equal(ravel(copy.mv(v)), ravel(case.operator.mv(v)))
    doubled = tree_unflatten(leaves, spec).mv(unlike(2 * flat, v))
    assert torch.allclose(ravel(doubled), 2 * case.matrix @ flat, rtol=0, atol=TOLERANCE)


@cases
def test_vmap_over_vectors(case):
    flats = torch.stack([case.vector(seed)[0] for seed in range(4)])

    def product(flat):
        return ravel(case.operator.mv(unlike(flat, Z if case.like is None else case.like)))

    assert torch.allclose(vmap(product)(flats), flats @ case.matrix.T, rtol=0, atol=TOLERANCE)


def test_vmap_over_an_operator():
    batch = ims.MatrixOperator(LANES)
    vectors = torch.randn(4, 3, dtype=F64)
    ours = vmap(lambda A, v: A.mv(v) + A.T.mv(v))(batch, vectors)
    expected = ((LANES + LANES.mT) @ vectors.unsqueeze(-1)).squeeze(-1)
    assert torch.allclose(ours, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "operator, matrices",
    [
        (ims.MatrixOperator(LANES), LANES),
        (ims.MatrixOperator(LANES).T, LANES.mT),
        (ims.MatrixOperator(LANES) + eye, LANES + EYE),
        (eye - ims.MatrixOperator(LANES), EYE - LANES),
        (2.0 * ims.MatrixOperator(LANES), 2 * LANES),
        (SCALE * ims.MatrixOperator(LANES), SCALE * LANES),
        (ims.MatrixOperator(LANES) @ ims.MatrixOperator(LANES), LANES @ LANES),
        (ims.MatrixOperator(LANES.reshape(2, 2, 3, 3)), LANES.reshape(2, 2, 3, 3)),
    ],
    ids=["matrix", "transpose", "sum", "difference", "number", "0d", "product", "two-levels"],
)
def test_lanes_of_matrices(operator, matrices):
    v = torch.randn(*matrices.shape[:-1], dtype=F64)
    expected = (matrices @ v.unsqueeze(-1)).squeeze(-1)
    transposed = (matrices.mT @ v.unsqueeze(-1)).squeeze(-1)
    assert torch.allclose(operator.mv(v), expected, rtol=0, atol=TOLERANCE)
    assert torch.allclose(operator.rmv(v), transposed, rtol=0, atol=TOLERANCE)
    assert torch.allclose(operator.T.mv(v), transposed, rtol=0, atol=TOLERANCE)
    assert torch.allclose(operator.dense(), matrices, rtol=0, atol=TOLERANCE)
    assert torch.allclose(
        operator.diagonal_entries(), matrices.diagonal(dim1=-2, dim2=-1), rtol=0, atol=TOLERANCE
    )


def test_one_matrix_multiplies_many_vectors():
    v = torch.randn(5, 3, dtype=F64)
    assert torch.allclose(mat.mv(v), v @ M.T, rtol=0, atol=TOLERANCE)
    assert torch.allclose(mat.rmv(v), v @ M, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "make",
    [
        ims.MatrixOperator,
        lambda m: ims.FunctionOperator(lambda v: m @ v, like=m[0]),
        lambda m: ims.JacobianOperator(sine, m[0], (m,)),
        lambda m: ims.HessianOperator(quartic, m[0], (m,)),
        lambda m: ims.DiagonalOperator(m[0]),
        lambda m: 2.0 * ims.MatrixOperator(m) + ims.IdentityOperator(),
        lambda m: m[0, 0] * ims.MatrixOperator(m).T,
    ],
    ids=["matrix", "function", "jacobian", "hessian", "diagonal", "sum", "0d-scaled-transpose"],
)
def test_dtype_in_is_dtype_out(make, dtype):
    operator = make(M.to(dtype))
    v = Z.to(dtype)
    assert operator.mv(v).dtype == operator.rmv(v).dtype == operator.dense().dtype == dtype


REFUSED = [
    (
        "matrix-symmetric-and-not-square",
        lambda: ims.MatrixOperator(torch.ones(2, 3), symmetric=True),
        ValueError,
        "matrix.*square",
    ),
    ("matrix-a-vector", lambda: ims.MatrixOperator(torch.ones(3)), ValueError, "matrix.*shape"),
    ("matrix-0d", lambda: ims.MatrixOperator(torch.tensor(1.0)), ValueError, "matrix.*shape"),
    ("matrix-integer", lambda: ims.MatrixOperator(torch.eye(2).long()), TypeError, "matrix.*int64"),
    ("matrix-a-list", lambda: ims.MatrixOperator([[1.0]]), TypeError, "matrix is list"),
    (
        "matrix-numpy",
        lambda: ims.MatrixOperator(torch.eye(2).numpy()),
        TypeError,
        "matrix is ndarr",
    ),
    (
        "like-integer",
        lambda: ims.FunctionOperator(abs, torch.arange(3)),
        TypeError,
        "like has dtype",
    ),
    ("like-a-number", lambda: ims.FunctionOperator(abs, 1.0), TypeError, "like.*float"),
    ("like-empty", lambda: ims.FunctionOperator(abs, {}), ValueError, "like is an empty"),
    ("like-mixed", lambda: ims.FunctionOperator(abs, (Z, Z.float())), ValueError, "like mixes"),
    ("jacobian-z-integer", lambda: ims.JacobianOperator(abs, torch.arange(3)), TypeError, "z has"),
    ("jacobian-z-mixed", lambda: ims.JacobianOperator(abs, (Z, Z.float())), ValueError, "z mixes"),
    (
        "jacobian-of-another-shape",
        lambda: ims.JacobianOperator(lambda z: z[:2], Z).mv(Z),
        ValueError,
        r"fn returned.*\(2,\).*z has",
    ),
    (
        "jacobian-of-another-structure",
        lambda: ims.JacobianOperator(lambda z: (z, z), Z).mv(Z),
        ValueError,
        "fn returned the structure",
    ),
    ("hessian-z-integer", lambda: ims.HessianOperator(abs, torch.arange(3)), TypeError, "z has"),
    ("entries-integer", lambda: ims.DiagonalOperator(torch.arange(3)), TypeError, "entries has"),
    ("entries-a-list-of-numbers", lambda: ims.DiagonalOperator([1.0]), TypeError, "entries.*float"),
    ("scale-with-a-shape", lambda: torch.ones(3) * mat, ValueError, r"shape \(3,\).*Diagonal"),
    ("scale-of-one-entry", lambda: mat * torch.ones(1), ValueError, r"shape \(1,\).*Diagonal"),
    ("identity-dense", eye.dense, ValueError, "dense.*structure"),
    ("sum-with-a-number", lambda: mat + 1.0, TypeError, "unsupported operand"),
    ("sum-with-a-tensor", lambda: mat + M, TypeError, "unsupported operand"),
    ("difference-with-a-number", lambda: mat - 1.0, TypeError, "unsupported operand"),
    ("product-by-star", lambda: mat * mat, TypeError, "unsupported operand"),
]


@pytest.mark.parametrize(
    "call, exception, words", [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_refused(call, exception, words):
    with pytest.raises(exception, match=words):
        call()
