"""Every operator against the matrix that it stands for, which is written down without it."""

import pytest
import torch
from torch.func import vmap
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

import implicit_solvers as ims
from tests.linear.systems import BY_NAME, F32, F64, FORMS, SYSTEMS, B, error, seeded, times

# A few operations of entries of size 10 in float64: some thousand roundings.
TOLERANCE = 1e-12
EYE = torch.eye(3, dtype=F64)
ZERO_D = torch.tensor(-1.5, dtype=F64)


class Case:
    """A system's operator, its matrix, and flat vectors laid out as it takes them."""

    def __init__(self, system):
        self.system, self.name = system, system.name
        self.A, self.M = system.operator(*system.tensors), system.matrix(*system.tensors)
        self.pack, self.ravel = FORMS["plain" if system.form == "complex" else system.form]
        anything = ims.DiagonalOperator(self.pack(torch.ones(3, dtype=F64)))
        self.structure = anything.structure if self.A.structure is None else None

    def __str__(self):
        return self.name

    def vectors(self, seed=0):
        """Return a vector that the operator takes, and one like its products."""
        m, n = self.M.shape[-2:]
        return (seeded(k, seed=seed + i, dtype=self.M.dtype) for i, k in enumerate((n, m)))


CASES = [Case(s) for s in SYSTEMS if not s.lanes and not s.columns]
cases = pytest.mark.parametrize("case", CASES, ids=str)


@cases
def test_products_and_dense(case):
    v, w = case.vectors()
    A, M = case.A, case.M
    for operator, N, x, y in [(A, M, v, w), (A.T, M.T, w, v), (A.H, M.mH, w, v)]:
        for product, expected, like in [
            (operator.mv(case.pack(x)), N @ x, y),
            (operator @ case.pack(x), N @ x, y),
            (operator.rmv(case.pack(y)), N.mH @ y, x),
            (operator.T.mv(case.pack(y)), N.T @ y, x),
            (operator.H.mv(case.pack(y)), N.mH @ y, x),
            (operator.T.T.mv(case.pack(x)), N @ x, y),
        ]:
            assert tree_flatten(product)[1] == tree_flatten(case.pack(like))[1]
            shapes = [t.shape for t in tree_leaves(case.pack(like))]
            assert [t.shape for t in tree_leaves(product)] == shapes
            assert error(case.ravel(product), expected) < TOLERANCE
            assert not any(t.requires_grad for t in tree_leaves(product))
        assert error(operator.dense(case.structure), N) < TOLERANCE
        assert error(operator.diagonal_entries(case.structure), N.diagonal()) < TOLERANCE
    # the definition of the adjoint, between products of the operator alone
    left = torch.vdot(w, case.ravel(A.mv(case.pack(v))))
    assert error(left, torch.vdot(case.ravel(A.rmv(case.pack(w))), v)) < TOLERANCE


@cases
def test_flags(case):
    A, marks = case.A, case.system.properties
    assert bool(A.symmetric) == ("symmetric" in marks)
    assert bool(A.positive_definite) == ("definite" in marks)
    assert bool(A.diagonal) == ("diagonal" in marks)
    assert (A.bands is not None) == ("banded" in marks)
    assert isinstance(A, ims.SparseOperator) == ("sparse" in marks)
    # no flag claims what the matrix refutes
    if A.symmetric:
        assert torch.allclose(case.M, case.M.mH, rtol=1e-15, atol=0) and A.H is A
    if A.positive_definite:
        assert torch.linalg.eigvalsh(case.M).min() > 0
    if A.bands is not None:
        below, above = A.bands
        assert torch.equal(case.M.triu(-below).tril(above), case.M)


@cases
def test_operator_is_a_pytree_and_takes_lanes_of_vectors(case):
    leaves, spec = tree_flatten(case.A)
    copy = tree_unflatten(leaves, spec)
    v, _ = case.vectors(3)
    assert type(copy) is type(case.A)
    assert torch.equal(case.ravel(copy.mv(case.pack(v))), case.ravel(case.A.mv(case.pack(v))))
    many = torch.stack([next(case.vectors(seed)) for seed in range(4)])
    products = vmap(lambda v: case.ravel(case.A.mv(case.pack(v))))(many)
    assert error(products, many @ case.M.T) < TOLERANCE


def test_vmap_over_an_operator():
    system, vectors = BY_NAME["lanes"], seeded(4, 3)
    ours = vmap(lambda A, v: A.mv(v) + A.T.mv(v))(system.operator(*system.tensors), vectors)
    M = system.matrix(*system.tensors)
    assert error(ours, times(M + M.mT, vectors)) < TOLERANCE


LANES = BY_NAME["lanes"].matrix(*BY_NAME["lanes"].tensors)
LANES_OPERATOR = ims.MatrixOperator(LANES)
OF_LANES = {
    "difference": (ims.IdentityOperator() - LANES_OPERATOR, EYE - LANES),
    "number": (2.0 * LANES_OPERATOR, 2 * LANES),
    "0d": (ZERO_D * LANES_OPERATOR, ZERO_D * LANES),
    "product": (LANES_OPERATOR @ LANES_OPERATOR, LANES @ LANES),
}
OF_LANES |= {
    system.name: (system.operator(*system.tensors), system.matrix(*system.tensors))
    for system in SYSTEMS
    if system.lanes and system.form == "plain" and "shared" not in system.name
}
for name in ("lanes-identity", "lanes-function", "lanes-diagonal"):  # which have none of their own
    del OF_LANES[name]


@pytest.mark.parametrize("name", OF_LANES)
def test_lanes_of_matrices(name):
    A, M = OF_LANES[name]
    v, w = seeded(*M.mT.shape[:-1]), seeded(*M.shape[:-1])
    assert error(A.mv(v), times(M, v)) < TOLERANCE
    assert error(A.rmv(w), times(M.mT, w)) < TOLERANCE
    assert error(A.T.mv(w), times(M.mT, w)) < TOLERANCE
    assert error(A.dense(), M) < TOLERANCE
    assert error(A.diagonal_entries(), M.diagonal(dim1=-2, dim2=-1)) < TOLERANCE


@pytest.mark.parametrize("of", ["z", "v", "scale"])
def test_a_product_has_a_graph_that_leads_to_what_asks_for_a_gradient(of):
    given = {"z": seeded(3), "v": seeded(3, seed=1), "scale": torch.tensor(1.5, dtype=F64)}
    leaf = given[of].requires_grad_()
    z, v, scale = given.values()
    inner = lambda z: ims.JacobianOperator(lambda z: z**4, z) @ v  # 4 z^3 v
    product = ims.JacobianOperator(lambda z: scale * inner(z), z) @ v
    expected = 12 * scale * z**2 * v**2
    assert error(product, expected) < TOLERANCE
    found, expected = (torch.autograd.grad(t.sum(), leaf)[0] for t in (product, expected))
    assert error(found, expected) < TOLERANCE


def test_one_matrix_multiplies_many_vectors():
    v, A, M = seeded(5, 3), ims.MatrixOperator(LANES[0]), LANES[0]
    assert error(A.mv(v), v @ M.T) < TOLERANCE and error(A.rmv(v), v @ M) < TOLERANCE


@cases
def test_dtype_in_is_dtype_out(case):
    A = case.system.operator(*(t.to(F32) for t in case.system.tensors))
    v, w = (t.to(torch.complex64 if t.is_complex() else F32) for t in case.vectors())
    structure = ims.DiagonalOperator(case.pack(v)).structure if A.structure is None else None
    for product in (A.mv(case.pack(v)), A.rmv(case.pack(w)), A.dense(structure)):
        assert {t.dtype for t in tree_leaves(product)} == {v.dtype}


BANDS = {
    "A": (lambda A, d: A, (1, 1)),
    "A.T": (lambda A, d: A.T, (1, 1)),
    "2A+d": (lambda A, d: 2.0 * A + d, (1, 1)),
    "AA": (lambda A, d: A @ A, (2, 2)),
    "A.TAA": (lambda A, d: A.T @ A @ A, (3, 3)),
    "dA-I": (lambda A, d: d @ A - ims.IdentityOperator(), (1, 1)),
    "A+dense": (lambda A, d: A + ims.MatrixOperator(torch.eye(5, dtype=F64)), None),
}


@pytest.mark.parametrize("name", BANDS)
def test_bands_of_what_is_made_of_banded_operators(name):
    system, (make, bands) = BY_NAME["tridiagonal"], BANDS[name]
    A = make(system.operator(*system.tensors), ims.DiagonalOperator(seeded(5, seed=4)))
    v, dense = seeded(5, seed=5), A.dense()
    assert A.bands == bands
    assert error(A.mv(v), dense @ v) < TOLERANCE and error(A.rmv(v), dense.T @ v) < TOLERANCE
    with ims.monitor() as log:
        x = ims.linear_solve(A, B[:5]).value
    assert log.records[0].solver == ("LU" if bands is None else "Banded")
    assert error(dense @ x, B[:5]) < 1e-9  # the cube of a condition of 20, times roundings


def test_trees_in_and_out():
    matrix, b = seeded(4, 3), seeded(4)
    like = {"a": b[:2], "b": b[2]}

    def multiply(v):
        flat = matrix @ torch.cat([v["a"], v["b"].reshape(1)])
        return flat[:1], flat[1:]

    A = ims.FunctionOperator(multiply, like, out_like=(b[:1], b[1:]))
    assert error(A.dense(), matrix) < 1e-14 and error(A.T.dense(), matrix.T) < 1e-14
    for solver in (None, ims.QR(), ims.SVD(), ims.LSMR()):
        x = ims.linear_solve(A, (b[:1], b[1:]), solver=solver).value
        flat = torch.cat([x["a"], x["b"].reshape(1)])
        assert error(flat, torch.linalg.pinv(matrix) @ b) < 1e-9  # LSMR's tolerance, times 20


def test_algebra_of_rectangular_operators():
    m, k = seeded(4, 3), seeded(2, 4, seed=1)
    A, K = ims.MatrixOperator(m), ims.MatrixOperator(k)
    for operator, matrix in [
        (K @ A, k @ m),
        ((K @ A).T, (k @ m).T),
        (2.0 * A + A, 3 * m),
        (A.T @ A, m.T @ m),
    ]:
        assert error(operator.dense(), matrix) < 1e-14
        b = seeded(len(matrix))
        for solver in (ims.SVD(), ims.QR()):
            x = ims.linear_solve(operator, b, solver=solver).value
            assert error(x, torch.linalg.pinv(matrix) @ b) < 1e-10
