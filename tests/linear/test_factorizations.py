"""Each matrix is factored once, for its value, every derivative, and any number of lanes of b."""

import gc
import weakref

import pytest
import scipy.sparse.linalg
import torch
from torch.func import grad, hessian, jacfwd, jacrev, vmap

import implicit_solvers as ims
from tests.linear.systems import BY_NAME, EYE, F64, MANY_W, B, W, cube, error, near, seeded

# which function factors, for a solver and a system
FACTOR = {
    "LU": (torch.linalg, "lu_factor_ex", ims.LU(), BY_NAME["matrix"]),
    "LU-function": (torch.linalg, "lu_factor_ex", ims.LU(), BY_NAME["function"]),
    "Cholesky": (torch.linalg, "cholesky_ex", ims.Cholesky(), BY_NAME["definite"]),
    "QR": (torch.linalg, "qr", ims.QR(), BY_NAME["tall"]),
    "SVD": (torch.linalg, "svd", ims.SVD(), BY_NAME["tall"]),
    "SuperLU": (scipy.sparse.linalg, "splu", None, BY_NAME["sparse"]),
}


@pytest.fixture
def factored(monkeypatch):
    """Return a function that begins to note the shapes of what is factored."""

    def watch(module, name):
        shapes, original = [], getattr(module, name)

        def noting(A, *args, **kwargs):
            shapes.append(tuple(A.shape))
            return original(A, *args, **kwargs)

        monkeypatch.setattr(module, name, noting)
        return shapes

    return watch


def backward_twice(f, b, t):
    b, t = b.clone().requires_grad_(), t.clone().requires_grad_()
    gb, gt = torch.autograd.grad(cube(f(b, t)), (b, t), create_graph=True)
    ((gb**2).sum() + (gt**2).sum()).backward()


def many(b):
    return torch.stack([b, 2 * b, -b])


ONE = {
    "value": lambda f, b, t: f(b, t),
    "columns": lambda f, b, t: f(many(b).T, t),
    "vmap-over-b": lambda f, b, t: vmap(f, (0, None))(many(b), t),
    "nested": lambda f, b, t: vmap(vmap(f, (0, None)), (0, None))(many(b)[None], t),
    "backward-twice": backward_twice,
    "jacrev-b": lambda f, b, t: jacrev(f)(b, t),
    "jacrev-A": lambda f, b, t: jacrev(f, 1)(b, t),
    "jacfwd-A": lambda f, b, t: jacfwd(f, 1)(b, t),
    "jacrev-of-vmap": lambda f, b, t: jacrev(vmap(f, (0, None)), 1)(many(b), t),
    "vmap-of-jacrev": lambda f, b, t: vmap(jacrev(f), (0, None))(many(b), t),
    "vmap-of-grad-A": lambda f, b, t: vmap(grad(lambda t, b: cube(f(b, t))), (None, 0))(t, many(b)),
    "jacrev-of-columns": lambda f, b, t: jacrev(f)(many(b).T, t),
    "hessian-A": lambda f, b, t: hessian(lambda t: cube(f(b, t)))(t),
    "jacrev-jacrev-A": lambda f, b, t: jacrev(jacrev(lambda t: cube(f(b, t))))(t),
}


@pytest.mark.parametrize("run", ONE)
@pytest.mark.parametrize("name", FACTOR)
def test_one_factorization(name, run, factored):
    module, function, solver, system = FACTOR[name]
    shapes = factored(module, function)
    b, (t, *others) = system.b, system.tensors
    ONE[run](lambda b, t: system.solve(solver, b, t, *others), b, t)
    assert len(shapes) == 1
    lanes, matrix = shapes[0][:-2], shapes[0][-2:]
    assert all(k == 1 for k in lanes) and matrix == tuple(system.real(t, *others).shape)


def lu(b, A):
    return ims.linear_solve(ims.MatrixOperator(A), b, solver=ims.LU()).value


B4 = seeded(4, 3)
EACH = {
    "vmap": lambda: vmap(lu)(B4, near(MANY_W)),
    "vmap-A": lambda: vmap(lu, (None, 0))(B4[0], near(MANY_W)),
    "jacrev-of-vmap": lambda: jacrev(vmap(lu), 1)(B4, near(MANY_W)),
    "vmap-of-jacrev": lambda: vmap(jacrev(lu, 1))(B4, near(MANY_W)),
    "vmap-of-hessian": lambda: vmap(hessian(lambda b, A: cube(lu(b, A)), 1))(B4, near(MANY_W)),
    "A-b": lambda: vmap(vmap(lu, (0, None)), (None, 0))(B4, near(MANY_W)),
    "b-A": lambda: vmap(vmap(lu, (None, 0)), (0, None))(B4, near(MANY_W)),
}


@pytest.mark.parametrize("name", EACH)
def test_each_matrix_is_factored_once(name, factored):
    shapes = factored(torch.linalg, "lu_factor_ex")
    EACH[name]()
    assert [shape[-2:] for shape in shapes] == [(3, 3)]
    assert torch.Size(shapes[0][:-2]).numel() == 4


def test_sparse_factors_are_let_go(monkeypatch):
    """What the user holds, a solver, keeps nothing; the graph of the value does."""
    alive, original = [], scipy.sparse.linalg.splu

    class Factors:
        def __init__(self, *args, **options):
            self.factors = original(*args, **options)
            alive.append(weakref.ref(self))

        def __getattr__(self, name):
            return getattr(self.factors, name)

    monkeypatch.setattr(scipy.sparse.linalg, "splu", Factors)
    solver, system = ims.SuperLU(), BY_NAME["sparse"]
    values = system.tensors[0].clone().requires_grad_()
    x = system.solve(solver, system.b, values)
    x.sum().backward(retain_graph=True)
    x.pow(2).sum().backward()
    assert len(alive) == 1
    del x
    gc.collect()
    assert alive[0]() is None


# -- equations: the adjoint takes the factors of the last step ---------------------------------


def cubic(z, W, b):
    return z + 0.3 * (W @ z) ** 3 - b


@pytest.mark.parametrize("lanes", [None, "b", "both"])
def test_backward_of_newton_factors_nothing(factored, lanes):
    shapes = factored(torch.linalg, "lu_factor_ex")
    Ws = torch.nn.Parameter(MANY_W if lanes == "both" else 0.5 * near(W))
    b = torch.nn.Parameter(B4 if lanes else B4[0])
    dims = {None: None, "b": (None, 0), "both": (0, 0)}[lanes]

    def solve(W, b):
        return ims.root(cubic, torch.zeros(3, dtype=F64), (W, b)).value

    value = vmap(solve, dims)(Ws, b) if lanes else solve(Ws, b)
    before = len(shapes)
    assert before > 1
    value.pow(2).sum().backward()
    assert len(shapes) == before
    # and it is right: a factorization at the last iterate but one is refined
    reference = [t.detach().clone().requires_grad_() for t in (Ws, b)]

    def pulled(z, W, b):
        Wz = W @ z
        J = EYE + 0.9 * (Wz**2).unsqueeze(-1) * W
        return -(torch.linalg.inv(J.detach()).T @ (2 * z)) @ cubic(z, W, b)

    one = (value.detach(), *reference)
    total = vmap(pulled, (0, *dims))(*one).sum() if lanes else pulled(*one)
    for ours, theirs in zip((Ws.grad, b.grad), torch.autograd.grad(total, reference), strict=True):
        assert error(ours, theirs) < 1e-8


def test_double_backward_of_newton_factors_at_most_once(factored):
    shapes, b = factored(torch.linalg, "lu_factor_ex"), B[:3].clone().requires_grad_()
    value = ims.root(cubic, torch.zeros(3, dtype=F64), (near(W), b)).value
    before = len(shapes)
    (g,) = torch.autograd.grad(value.sum(), b, create_graph=True)
    g.pow(2).sum().backward()
    assert len(shapes) - before <= 1
