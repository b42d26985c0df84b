"""Linear systems and the solvers that are for them, of which the checks make their cases.

A system is written once, in the words of ``o``, and read twice: as an operator of the library, and
as a plain matrix. The inverse of that matrix is the oracle of values and of every derivative:
``torch.linalg.inv``, never ``torch.linalg.solve``, which torch 2.13 differentiates wrongly in
jacrev of jvp. Complex systems are functions of pairs of real numbers, and so is their oracle.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pytest
import torch
from torch.func import hessian, jacfwd, jacrev, jvp, vmap

import implicit_solvers as ims

F32, F64 = torch.float32, torch.float64
C64, C128 = torch.complex64, torch.complex128


def seeded(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def error(value, reference):
    """Return the largest error relative to the largest entry."""
    assert value.shape == reference.shape and value.dtype == reference.dtype
    size = reference.detach().abs().max().clamp(min=1e-2)
    return float((value - reference).detach().abs().max() / size)


def cube(x):
    """Return a scalar whose derivatives mix all entries."""
    return x.sum() ** 3 + (x**2).sum()


def times(matrix, v):
    return (matrix @ v.unsqueeze(-1)).squeeze(-1)


def with_eigenvalues(values, n=None, seed=0):
    """Return a symmetric matrix whose eigenvalues are ``values``, repeated."""
    n = n or len(values)
    q = torch.linalg.qr(seeded(n, n, seed=seed))[0]
    return q @ torch.diag(values.double()[torch.arange(n) % len(values)]) @ q.T


def adjoint(L):
    # torch 2.13 asserts in batched forward mode through the lazy conj()
    return (L.real - 1j * L.imag).mT if L.is_complex() else L.mT


def near(W):
    return torch.eye(W.shape[-1]).to(W) + W


def spd(L):
    return near(L @ adjoint(L))


def indefinite(L):
    return L + adjoint(L) + torch.diag(torch.tensor([4.0, -5.0, 6.0])).to(L)


def pinv(L, R):
    """Return the pseudo-inverse of ``L R^T``, whose parameters keep the rank."""
    return R @ torch.linalg.inv(R.mT @ R) @ torch.linalg.inv(L.mT @ L) @ L.mT


def cx(pairs):
    # the pullback of torch.complex has no batching rule where a cotangent is a lazy conjugate
    return pairs[..., 0] + 1j * pairs[..., 1]


def by_real_numbers(m):
    """Return the matrix that does to real and imaginary parts what a complex one does."""
    return torch.cat([torch.cat([m.real, -m.imag], -1), torch.cat([m.imag, m.real], -1)], -2)


def bowl(z, L):
    return 0.5 * (z**2).sum() + 0.5 * ((L.T @ z) ** 2).sum() + 0.05 * (z**4).sum()


def slope(z, L):
    return spd(L) @ z + 0.2 * z**3


def skewed(z, W):
    return 0.25 * (z**4).sum() + 0.5 * z @ near(W) @ z


def sine(z, W):
    return z + 0.6 * torch.sin(W @ z)


def elementwise(z):
    return z + 0.5 * torch.sin(z)


def chain(z, a):
    """Discretized: each unknown sees its neighbours."""
    left, right = torch.nn.functional.pad(z[:-1], (1, 0)), torch.nn.functional.pad(z[1:], (0, 1))
    return 3 * z - left - 0.5 * right + 0.1 * a * z**3 - a


def curve(z, t):
    return torch.stack([z[0] * torch.exp(-z[1] * s) + t * z[0] ** 2 for s in (0.1, 0.7, 1.3, 2.0)])


# -- how unknowns are laid out: from a flat vector and back ------------------------------------


def tree(flat):
    return {"a": flat[..., :2], "b": flat[..., 2]}


FORMS = {
    "plain": (lambda v: v, lambda v: v),
    "tree": (tree, lambda v: torch.cat([v["a"], v["b"].unsqueeze(-1)], -1)),
    "tree-columns": (
        lambda flat: {"a": flat[:2], "b": flat[2]},
        lambda v: torch.cat([v["a"], v["b"].unsqueeze(0)]),
    ),
    "scalar": (lambda flat: flat[0], lambda v: v.reshape(1)),
    "complex": (lambda v: torch.complex(*v.chunk(2, -1)), lambda v: torch.cat([v.real, v.imag])),
}

KEPT = (torch.rand(6, 6, generator=torch.Generator().manual_seed(0)) < 0.4) | torch.eye(6).bool()
PLACES = torch.eye(36, dtype=F64)[KEPT.flatten()]
PATTERN = ims.SparseOperator(KEPT.double().to_sparse_csr())


class Operators:
    """The words of a system, said with operators on unknowns of some layout."""

    eye = ims.IdentityOperator()
    matrix, tridiagonal = staticmethod(ims.MatrixOperator), staticmethod(ims.TridiagonalOperator)
    sparse = staticmethod(PATTERN.with_values)

    def __init__(self, form):
        self.pack, self.ravel = FORMS["plain" if form == "complex" else form.split("-")[0]]

    def near(self, W):
        return ims.MatrixOperator(near(W))

    def definite(self, L):
        return ims.MatrixOperator(spd(L), positive_definite=True)

    def indefinite(self, L):
        return ims.MatrixOperator(indefinite(L), symmetric=True)

    def function(self, m, **flags):
        product = lambda v: self.pack(times(m, self.ravel(v)))
        return ims.FunctionOperator(product, self.pack(m[..., 0, :]), **flags)

    def diagonal(self, entries, **flags):
        return ims.DiagonalOperator(self.pack(entries), **flags)

    def jacobian(self, f, z, args=(), **flags):
        inner = lambda z, *args: self.pack(f(self.ravel(z), *args))
        return ims.JacobianOperator(inner, self.pack(z), args, **flags)

    def hessian(self, f, z, args=(), **flags):
        inner = lambda z, *args: f(self.ravel(z), *args)
        return ims.HessianOperator(inner, self.pack(z), args, **flags)

    def T(self, A):
        return A.T

    def H(self, A):
        return A.H


class Matrices:
    """The same words, said with matrices."""

    eye = torch.eye(3, dtype=F64)

    near, definite, indefinite = staticmethod(near), staticmethod(spd), staticmethod(indefinite)

    def matrix(self, m, **flags):
        return m

    function = matrix

    def diagonal(self, entries, **flags):
        return torch.diag_embed(entries)

    def jacobian(self, f, z, args=(), **flags):
        # jacfwd refuses complex numbers
        column = lambda e: jvp(lambda z: f(z, *args), (z,), (e,))[1]
        return vmap(column, out_dims=-1)(torch.eye(len(z)).to(z))

    def hessian(self, f, z, args=(), **flags):
        return hessian(f)(z, *args)

    def tridiagonal(self, lower, main, upper):
        return sum(torch.diag_embed(t, k) for t, k in ((lower, -1), (main, 0), (upper, 1)))

    def sparse(self, values):
        return (values @ PLACES.to(values)).unflatten(-1, (6, 6))

    def T(self, m):
        return m.mT

    def H(self, m):
        return adjoint(m)


# -- what systems are made of, by name: near the identity, so that a Neumann series converges --

W = torch.tensor([[0.2, -0.3, 0.1], [0.25, 0.1, -0.2], [-0.1, 0.35, -0.15]], dtype=F64)
Z = torch.tensor([0.3, -0.8, 0.6], dtype=F64)
D = torch.tensor([1.3, 0.6, 1.5], dtype=F64)
B = torch.tensor([0.7, -1.2, 0.4, 1.1, -0.6, 0.9, -0.3, 0.8, 0.2, -1.0], dtype=F64)
MANY_B = seeded(4, 6, seed=3)
EYE = torch.eye(3, dtype=F64)
MANY_W = torch.stack([W, W.T, 0.5 * W + 0.1 * EYE, -W])
TENSORS = {
    "W": W,
    "U": 0.4 * W.flip(0, 1) - 0.2 * EYE,
    "Ws": MANY_W,
    "z": Z,
    "d": D,
    "ds": D + 0.1 * seeded(4, 3),
    "s": torch.tensor(1.2, dtype=F64),
    "C": 0.2 * seeded(3, 3, 2),
    "c": seeded(3, 2, seed=1),
    "p": seeded(4),
    "q": seeded(5, seed=1),
    "r": seeded(4, seed=2),
    "ps": seeded(4, 4),
    "qs": seeded(4, 5, seed=1),
    "rs": seeded(4, 4, seed=2),
    "values": (torch.eye(6) + seeded(6, 6) / 5)[KEPT],
    "many_values": (torch.eye(6) + seeded(4, 6, 6) / 5)[:, KEPT],
}


@dataclass(frozen=True, eq=False)
class System:
    """``A x = b``; ``marks`` say what ``A`` claims, in ``given`` are tensors of other names."""

    name: str
    write: Callable
    marks: str = ""
    form: str = "plain"
    given: dict = field(default_factory=dict)
    lanes: int = 0
    columns: tuple = ()
    solvers: tuple = ()

    def __str__(self):
        return self.name

    @cached_property
    def tensors(self):
        names = list(inspect.signature(self.write).parameters)[1:]
        return tuple((TENSORS | self.given)[name] for name in names)

    def operator(self, *tensors):
        return self.write(Operators(self.form), *tensors)

    def matrix(self, *tensors):
        return self.write(Matrices(), *tensors)

    def inverse(self, *tensors):
        if "L" in inspect.signature(self.write).parameters:
            return pinv(*tensors)
        matrix = self.real(*tensors)
        if matrix.shape[-2] > matrix.shape[-1]:
            return torch.linalg.inv(matrix.mT @ matrix) @ matrix.mT
        if matrix.shape[-2] < matrix.shape[-1]:
            return matrix.mT @ torch.linalg.inv(matrix @ matrix.mT)
        return torch.linalg.inv(matrix)

    def real(self, *tensors):
        matrix = self.matrix(*tensors)
        return by_real_numbers(matrix) if self.form == "complex" else matrix

    @cached_property
    def b(self):
        rows = self.real(*self.tensors).shape[-2]
        shape = {0: (), 1: (4,), 2: (2, 2)}[self.lanes]
        if not self.lanes and not self.columns:
            return B[:rows]
        return seeded(*shape, rows, *self.columns, seed=3)

    @property
    def outcomes(self):
        """The shape of the statuses."""
        return tuple(self.b.shape[: self.lanes]) + self.columns

    def run(self, solver, b, *tensors, **options):
        A, b = self.operator(*tensors), FORMS[self.form][0](b)
        return ims.linear_solve(A, b, solver=solver, batch_dims=self.lanes, **options)

    def solve(self, solver, b, *tensors, **options):
        return FORMS[self.form][1](self.run(solver, b, *tensors, **options).value)

    def oracle(self, b, *tensors):
        inverse = self.inverse(*tensors)
        return inverse @ b if self.columns else times(inverse, b)

    @cached_property
    def singular_values(self):
        return np.linalg.svd(self.real(*self.tensors).numpy(), compute_uv=False)

    @property
    def condition(self):
        s = self.singular_values
        return float(s.max() / s[s > 1e-10].min())

    @cached_property
    def properties(self):
        """What solvers ask for: the marks and what follows from them, and from the matrix."""
        matrix, found = self.real(*self.tensors), set(self.marks.split())
        if "definite" in found:
            found.add("symmetric")
        if "diagonal" in found:
            found.add("banded")
        if self.singular_values.min() > 1e-10:
            found.add("full")
        if matrix.shape[-1] == matrix.shape[-2]:
            found.add("square")
            eye = torch.eye(matrix.shape[-1], dtype=F64)
            if torch.linalg.eigvals(eye - matrix).abs().max() < 0.8:
                found.add("near")
        return found

    def fits(self, solver):
        needs = SOLVERS[solver][1].split()
        return self.properties.issuperset(needs) and solver in (self.solvers or SOLVERS)


# the solver, and the properties of systems that it is for
SOLVERS = {
    "default": (None, "full"),
    "LU": (ims.LU(), "square full"),
    "Cholesky": (ims.Cholesky(), "definite"),
    "QR": (ims.QR(), "full"),
    "SVD": (ims.SVD(), ""),
    "Diagonal": (ims.Diagonal(), "diagonal"),
    "Banded": (ims.Banded(), "banded"),
    "SuperLU": (ims.SuperLU(), "sparse square"),
    "SuperLU-natural": (ims.SuperLU("NATURAL"), "sparse square"),
    "SuperLU-ATA": (ims.SuperLU("MMD_ATA"), "sparse square"),
    "SuperLU-ATplusA": (ims.SuperLU("MMD_AT_PLUS_A"), "sparse square"),
    "Structured": (ims.Structured(), "square full"),
    "CG": (ims.CG(), "definite"),
    "MINRES": (ims.MINRES(), "symmetric full"),
    "GMRES": (ims.GMRES(), "square full"),
    "GMRES-2": (ims.GMRES(restart=2), "near"),
    "GMRES-1": (ims.GMRES(restart=1), "near"),
    "GMRES-mixed": (ims.GMRES(inner_dtype=F32), "square full"),
    "BiCGStab": (ims.BiCGStab(), "near"),
    "LSMR": (ims.LSMR(), ""),
    "Neumann": (ims.Neumann(), "near"),
}


def _most(*row, **options):
    """Return a system that adds nothing to what these solvers show of a matrix."""
    repeating = ("QR", "SVD", "LSMR", "Structured", "GMRES-mixed")
    return System(*row, solvers=tuple(k for k in SOLVERS if k not in repeating), **options)


def _few(*row, **options):
    """Return a system of which every solver would repeat what two show."""
    return System(*row, solvers=("default", "GMRES"), **options)


def _complex(name, write, *marks):
    return _few(f"complex-{name}", write, *(marks or [""]), "complex")


def _product(name, m, n, rank, **options):
    given = {"L": seeded(m, rank, seed=m), "R": seeded(n, rank, seed=n + 10)}
    return System(name, lambda o, L, R: o.matrix(L @ R.mT), given=given, **options)


def cubic(z):
    return (z**3 / 6).sum()


def bands(o, c, C):
    return o.tridiagonal(cx(c)[:2], near(cx(C)).diagonal(), cx(c)[1:])


def nested(o, W, U, s, d):
    return 2.0 * (o.T(o.near(W)) @ (o.matrix(U) + s * o.eye)) - 0.2 * o.diagonal(d)


SYMMETRIC, DEFINITE = {"symmetric": True}, {"positive_definite": True}
SYSTEMS = [
    System("matrix", lambda o, W: o.near(W)),
    System("symmetric", lambda o, W: o.indefinite(W), "symmetric"),
    System("definite", lambda o, W: o.definite(W), "definite"),
    _most("function", lambda o, W: o.function(near(W))),
    _most("function-tree", lambda o, W: o.function(near(W)), form="tree"),
    _most("function-0d", lambda o, s: o.function(s.reshape(1, 1)), form="scalar"),
    _few("function-symmetric", lambda o, W: o.function(spd(W), **SYMMETRIC), "symmetric"),
    _few("function-definite", lambda o, W: o.function(spd(W), **DEFINITE), "definite"),
    _most("jacobian", lambda o, z, W: o.jacobian(sine, z, (W,))),
    _few("jacobian-tree", lambda o, z, W: o.jacobian(sine, z, (W,)), form="tree"),
    _few("jacobian-0d", lambda o, s: o.jacobian(torch.sin, s.reshape(1)), form="scalar"),
    _few(
        "jacobian-symmetric",
        lambda o, z, W: o.jacobian(slope, z, (W,), **SYMMETRIC),
        "symmetric",
    ),
    _few("hessian", lambda o, z, W: o.hessian(bowl, z, (W,)), "symmetric"),
    _few("hessian-tree", lambda o, z, W: o.hessian(bowl, z, (W,)), "symmetric", "tree"),
    _few("hessian-skewed", lambda o, z, W: o.hessian(skewed, z, (W,)), "symmetric"),
    _most("hessian-definite", lambda o, z, W: o.hessian(bowl, z, (W,), **DEFINITE), "definite"),
    _few(
        "hessian-0d", lambda o, s: o.hessian(cubic, s.reshape(1), **DEFINITE), "definite", "scalar"
    ),
    System("diagonal", lambda o, d: o.diagonal(d), "symmetric diagonal"),
    _few("diagonal-tree", lambda o, d: o.diagonal(d), "symmetric diagonal", "tree"),
    _few("diagonal-0d", lambda o, s: o.diagonal(s.reshape(1)), "symmetric diagonal", "scalar"),
    _most("diagonal-definite", lambda o, d: o.diagonal(d, **DEFINITE), "definite diagonal"),
    _few("identity", lambda o: o.eye, "definite diagonal"),
    _few("identity-tree", lambda o: o.eye, "definite diagonal", "tree"),
    _few("identity-scaled", lambda o, s: s * o.eye, "symmetric diagonal"),
    System("tridiagonal", lambda o, p, q, r: o.tridiagonal(p, q, r), "banded"),
    System("sparse", lambda o, values: o.sparse(values), "sparse"),
    _few("sparse-transposed", lambda o, values: o.T(o.sparse(values)), "sparse"),
    _few("sparse-doubled", lambda o, values: 2.0 * o.sparse(values)),
    _few("structure", lambda o, z: o.jacobian(elementwise, z, detect=True)),
    _few("chain", lambda o, z, d: o.jacobian(chain, z, (d,), detect=True)),
    _few("no-structure", lambda o, z, W: o.jacobian(sine, z, (W,), detect=True)),
    # algebra
    _most("sum", lambda o, s, W: s * o.eye + o.matrix(W)),
    _few(
        "sum-symmetric",
        lambda o, W, U: o.definite(W) + o.matrix(spd(U), **SYMMETRIC),
        "symmetric",
    ),
    _few("sum-definite", lambda o, W: o.definite(W) + 2.0 * o.eye, "definite"),
    _few("sum-diagonal", lambda o, d: o.diagonal(d) + o.eye, "symmetric diagonal"),
    _few("sum-identity-first", lambda o, W: o.eye + o.matrix(W)),
    _few("difference", lambda o, W, U: o.near(W) - o.matrix(U)),
    _few("difference-of-definite", lambda o, W: o.definite(W) - 3.0 * o.eye, "symmetric"),
    _most("product", lambda o, d, W: o.diagonal(d) @ (o.eye + o.matrix(W))),
    _few("product-of-matrices", lambda o, W, U: o.near(W) @ o.near(U)),
    _few("product-of-definite", lambda o, W: o.definite(W) @ o.definite(W)),
    _few("product-diagonal", lambda o, d: o.diagonal(d) @ o.diagonal(d), "symmetric diagonal"),
    _few("negation", lambda o, W: -o.near(W)),
    _few("negation-of-definite", lambda o, W: -o.definite(W), "symmetric"),
    _few("scaled", lambda o, W: 2.5 * o.near(W)),
    _few("scaled-by-an-int", lambda o, W: o.definite(W) * 3, "definite"),
    _few("scaled-negative", lambda o, W: -2.0 * o.definite(W), "symmetric"),
    _few("scaled-by-a-tensor", lambda o, s, W: -s * o.definite(W), "symmetric"),
    _few("scaled-by-zero", lambda o, W: 0.0 * o.definite(W), "symmetric"),
    _few("scaled-from-the-right", lambda o, s, W: o.near(W) * s),
    _few("scaled-tree", lambda o, s, d: s * o.diagonal(d), "symmetric diagonal", "tree"),
    _most("transpose", lambda o, W: o.T(o.eye + o.matrix(W))),
    _few("transpose-of-function", lambda o, W: o.T(o.function(near(W)))),
    _few("transpose-of-jacobian", lambda o, z, W: o.T(o.jacobian(sine, z, (W,)))),
    _few("transpose-of-sum", lambda o, d, W: o.T(o.matrix(W) + o.diagonal(d))),
    _few("transpose-of-product", lambda o, W, U: o.T(o.near(W) @ o.near(U))),
    _few("transpose-of-scaled", lambda o, W: o.T(2.0 * o.near(W))),
    _few("nested", nested),
    _few(
        "nested-tree",
        lambda o, z, W, d: o.T(o.jacobian(sine, z, (W,)) @ o.diagonal(d) + o.eye),
        form="tree",
    ),
    # complex
    System("complex", lambda o, C: o.near(cx(C)), form="complex"),
    System("complex-hermitian", lambda o, C: o.indefinite(cx(C)), "symmetric", "complex"),
    System("complex-definite", lambda o, C: o.definite(cx(C)), "definite", "complex"),
    _complex("function", lambda o, C: o.function(near(cx(C)))),
    _complex("diagonal", lambda o, c: o.diagonal(cx(c)), "diagonal"),
    _complex("scaled", lambda o, C: (1 + 2j) * o.near(cx(C))),
    _complex("scaled-by-a-tensor", lambda o, c, C: cx(c)[0] * o.near(cx(C))),
    _complex("sum", lambda o, C: o.near(cx(C)) + 1j * o.eye),
    _complex("product", lambda o, c, C: o.diagonal(cx(c)) @ o.near(cx(C))),
    _complex("transpose", lambda o, C: o.T(o.near(cx(C)))),
    _complex("adjoint", lambda o, C: o.H(o.near(cx(C)))),
    _complex("T-H", lambda o, C: o.H(o.T(o.near(cx(C))))),
    _complex("H-T", lambda o, C: o.T(o.H(o.near(cx(C))))),
    _complex("hermitian-transposed", lambda o, C: o.T(o.indefinite(cx(C)))),
    _complex("jacobian", lambda o, c, C: o.jacobian(lambda z: torch.sin(near(cx(C)) @ z), cx(c))),
    _complex("tridiagonal", bands, "banded"),
    _complex("tridiagonal-transposed", lambda o, c, C: o.T(bands(o, c, C)), "banded"),
    # rectangular, and of a lower rank
    _product("tall", 5, 3, 3),
    _product("wide", 3, 5, 3),
    _product("square", 4, 4, 4),
    System("tall-jacobian", lambda o, s, z: o.jacobian(curve, z[:2], (s,), out_like=B[:4].to(z))),
    System("complex-tall", lambda o, K: o.matrix(cx(K)), "", "complex", {"K": seeded(5, 3, 2)}),
    System("complex-wide", lambda o, K: o.matrix(cx(K)), "", "complex", {"K": seeded(3, 5, 2)}),
    _product("tall-deficient", 5, 3, 2),
    _product("wide-deficient", 3, 5, 2),
    _product("square-deficient", 4, 4, 2),
    # lanes that the operator handles itself, and those that share it
    System("lanes", lambda o, Ws: o.near(Ws), lanes=1),
    _few("lanes-shared", lambda o, W: o.near(W), lanes=1),
    _most("lanes-definite", lambda o, Ws: o.definite(Ws), "definite", lanes=1),
    _few("lanes-sum", lambda o, Ws: o.eye + o.matrix(Ws), lanes=1),
    _few("lanes-transpose", lambda o, Ws: o.T(0.9 * o.near(Ws)), lanes=1),
    _most("lanes-function", lambda o, Ws: o.function(near(Ws)), lanes=1),
    _few("lanes-function-shared", lambda o, W: o.function(near(W)), lanes=1),
    _most("lanes-diagonal", lambda o, ds: o.diagonal(ds, **DEFINITE), "definite diagonal", lanes=1),
    _few(
        "lanes-diagonal-tree", lambda o, ds: o.diagonal(ds), "symmetric diagonal", "tree", lanes=1
    ),
    _few("lanes-diagonal-shared", lambda o, d: o.diagonal(d), "symmetric diagonal", lanes=1),
    _few("lanes-identity", lambda o, s: s * o.eye, "symmetric diagonal", lanes=1),
    System(
        "lanes-tridiagonal",
        lambda o, ps, qs, rs: o.tridiagonal(ps, qs, rs),
        "banded",
        lanes=1,
    ),
    System("lanes-sparse", lambda o, many_values: o.sparse(many_values), "sparse", lanes=1),
    _few("lanes-two-levels", lambda o, Ws: o.matrix(near(Ws).reshape(2, 2, 3, 3)), lanes=2),
    _few("lanes-columns", lambda o, Ws: o.near(Ws), lanes=1, columns=(2,)),
    System("lanes-tall", lambda o, K: o.matrix(K), given={"K": seeded(4, 5, 3)}, lanes=1),
    # several right-hand sides
    System("columns", lambda o, W: o.near(W), columns=(4,)),
    _most("columns-definite", lambda o, W: o.definite(W), "definite", columns=(4,)),
    _most("columns-tree", lambda o, W: o.function(near(W)), form="tree-columns", columns=(4,)),
    _few("columns-tridiagonal", lambda o, p, q, r: o.tridiagonal(p, q, r), "banded", columns=(3,)),
    _few("columns-sparse", lambda o, values: o.sparse(values), "sparse", columns=(3,)),
    _product("columns-tall", 5, 3, 3, columns=(2,)),
]
BY_NAME = {system.name: system for system in SYSTEMS}
PAIRS = {f"{s}-{name}": (s, name) for s in SYSTEMS for name in SOLVERS if s.fits(name)}


def pairs(names=None):
    """Parametrize a test over systems and the solvers for them; all, or those named."""
    names = names.split() if isinstance(names, str) else names or PAIRS
    chosen = {name: PAIRS[name] for name in names}
    return pytest.mark.parametrize("system, solver", chosen.values(), ids=chosen)


MODES = {
    "reverse": lambda f, i: jacrev(f, i),
    "forward": lambda f, i: jacfwd(f, i),
    "hessian": lambda f, i: hessian(lambda *t: cube(f(*t)), i),
    "rev-fwd": lambda f, i: jacrev(jacfwd(lambda *t: cube(f(*t)), i), i),
    "rev-rev": lambda f, i: jacrev(jacrev(lambda *t: cube(f(*t)), i), i),
    "fwd-fwd": lambda f, i: jacfwd(jacfwd(lambda *t: cube(f(*t)), i), i),
}
