"""The test matrix's cases: an entry point and an unknown's structure, with an oracle.

Every case is a map from a parameter vector ``p (3,)`` to a solution. ``solve`` makes it with the
library; ``oracle`` with nothing of it: a closed form, or Newton steps unrolled at the solution in
plain torch (k steps give derivatives up to order 2^k - 1 exactly).
"""

import contextlib
import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.optimize
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import jacfwd, jacrev, jvp, vjp, vmap

import implicit_solvers as ims

W = torch.tensor([[0.3, -0.2, 0.1], [0.2, 0.1, -0.4], [-0.1, 0.3, 0.2]], dtype=torch.float64)
P = torch.tensor([0.4, -0.7, 0.9], dtype=torch.float64)
MANY_P = torch.tensor(
    [[0.4, -0.7, 0.9], [-0.3, 0.5, 0.2], [0.8, 0.1, -0.6], [0.05, 0.6, 0.35]], dtype=torch.float64
)


@contextlib.contextmanager
def default_dtype(dtype):
    """Set torch's default dtype for a while."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def newton_oracle(f, z0, p, steps=2, settle=12):
    """Return the root of ``f(z, p)`` near ``z0`` with derivatives to order ``2**steps - 1``."""

    def step(z, p):
        return z - torch.linalg.inv(jacrev(f)(z, p)) @ f(z, p)

    z = z0
    for _ in range(settle):
        z = step(z, p.detach())
    z = z.detach()
    for _ in range(steps):
        z = step(z, p)
    return z


# -- equations f(z, p) = 0 of a raveled unknown, and how each structure ravels --------------------


def f_vector(z, p):
    return z + 0.5 * torch.tanh(W.to(z.dtype) @ z) * p.sum() - p


def f_scalar(z, p):
    return z + 0.3 * torch.sin(z) * p[0] - p[1] * p[2]


def f_coupled(z, p):
    a, b = z[:2], z[2:]
    return torch.cat([a + 0.3 * torch.sin(b) * p[0] - p[:2], b + 0.4 * (a**2).sum() * p[1] - p[2:]])


@dataclass(frozen=True)
class Unknown:
    """A structure of the unknown: its size, its equation, and the way to and from a vector."""

    name: str
    n: int
    f: Callable
    pack: Callable
    ravel: Callable

    @property
    def pattern(self):
        """The pattern of the Jacobian."""
        coupled = torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, 1]])
        return ims.SparsityPattern(coupled if self.name == "dict" else torch.ones(self.n, self.n))


VECTOR = Unknown("vector", 3, f_vector, lambda z: z, lambda z: z)
SCALAR = Unknown("scalar", 1, f_scalar, lambda z: z[0], lambda z: z.reshape(1))
DICT = Unknown(
    "dict",
    3,
    f_coupled,
    lambda z: {"a": z[:2], "b": z[2]},
    lambda z: torch.cat([z["a"], z["b"].reshape(1)]),
)
UNKNOWNS = (VECTOR, SCALAR, DICT)


@dataclass(frozen=True)
class Case:
    """An entry point applied to an unknown: ``solve(p)`` by the library, ``oracle(p)`` without."""

    name: str
    solve: Callable
    oracle: Callable

    def __str__(self):
        return self.name


def zeros(u, p):
    return torch.zeros(u.n, dtype=p.dtype, device=p.device)


def by_scipy(u):
    @ims.custom_root(lambda z, p: u.pack(u.f(u.ravel(z), p)))
    def solver(z0, p):
        def residual(x):
            return u.f(torch.from_numpy(x), p.double().cpu()).numpy()

        start = u.ravel(z0).double().cpu().numpy()
        x = scipy.optimize.root(residual, start, tol=1e-14).x
        return u.pack(torch.from_numpy(np.atleast_1d(x)).to(p))

    return solver


def cases_of(u):
    """Return a case for each entry point: its solve and its condition of raveled unknowns."""

    def f(z, p):
        return u.pack(u.f(u.ravel(z), p))

    def g(z, p):
        return u.pack(u.ravel(z) - u.f(u.ravel(z), p))

    def objective(z, p):
        curve = 0.25 * (1 + p[0] ** 2) * (z**4).sum() + 0.5 * (1 + p[1] ** 2) * (z**2).sum()
        return curve + 0.3 * p[2] * torch.sin(z.sum()) - (z * p[: u.n]).sum()

    def matrix(p):
        mix = W[: u.n, : u.n].to(p)
        return (1 + p[1] ** 2) * torch.eye(u.n).to(p) + mix * p[0] + mix @ mix * p[2]

    def linear_solve(z0, p):
        A = ims.FunctionOperator(lambda v: u.pack(matrix(p) @ u.ravel(v)), like=z0)
        return ims.linear_solve(A, u.pack(p[: u.n] * p[2]))

    table = {
        "root": (lambda z0, p: ims.root(f, z0, (p,)), u.f),
        "fixed_point": (lambda z0, p: ims.fixed_point(g, z0, (p,)), u.f),
        "minimize": (
            lambda z0, p: ims.minimize(lambda z, p: objective(u.ravel(z), p), z0, (p,)),
            jacrev(objective),
        ),
        "sparse_root": (lambda z0, p: ims.root(f, z0, (p,), jac_sparsity=u.pattern), u.f),
        "sparse_minimize": (
            lambda z0, p: ims.minimize(
                lambda z, p: objective(u.ravel(z), p), z0, (p,), jac_sparsity=torch.ones(u.n, u.n)
            ),
            jacrev(objective),
        ),
        "linear_solve": (linear_solve, lambda z, p: matrix(p) @ z - p[: u.n] * p[2]),
        "custom_root": (by_scipy(u), u.f),
    }
    return [
        Case(
            f"{kind}-{u.name}",
            lambda p, solve=solve: u.ravel(solve(u.pack(zeros(u, p)), p).value),
            lambda p, condition=condition: newton_oracle(condition, zeros(u, p), p),
        )
        for kind, (solve, condition) in table.items()
    ]


CASES = [case for u in UNKNOWNS for case in cases_of(u)]

# -- modes: every way to differentiate a function of p, whatever it returns ------------------------

WORD = {"fwd": jacfwd, "rev": jacrev}
V = torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64)


def words(order):
    """Return every word of forward and reverse mode of the given length."""
    return ["-".join(word) for word in itertools.product(WORD, repeat=order)]


def derivative(word, fn):
    """Apply the modes of a word to ``fn``, the first one innermost."""
    for mode in word.split("-"):
        fn = WORD[mode](fn)
    return fn


def cube(fn):
    """Return a scalar of the solution whose derivatives mix all of its entries."""
    return lambda p: (fn(p).sum() ** 3) + (fn(p) ** 2).sum()


WRAPPERS = {
    "plain": lambda word, L: derivative(word, L)(P),
    "vmap": lambda word, L: vmap(derivative(word, L))(MANY_P),
    "of_vmap": lambda word, L: derivative(word, lambda p: vmap(L)(p).sum())(MANY_P[:2]),
    "nested_vmap": lambda word, L: vmap(vmap(derivative(word, L)))(MANY_P.reshape(2, 2, 3)),
}


def backward(fn):
    p = P.clone().requires_grad_()
    cube(fn)(p).backward()
    return p.grad


def double_backward(fn):
    p = P.clone().requires_grad_()
    (first,) = torch.autograd.grad(cube(fn)(p), p, create_graph=True)
    first.pow(2).sum().backward()
    return p.grad


def dual(fn):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(fn(forward_ad.make_dual(P, V))).tangent


# the order of the derivative, and how it is taken
MODES = {
    "value": (0, lambda fn: fn(P)),
    "vmap of values": (0, lambda fn: vmap(fn)(MANY_P)),
    "backward": (1, backward),
    "double backward": (2, double_backward),
    "dual": (1, dual),
    "jvp": (1, lambda fn: jvp(fn, (P,), (V,))[1]),
    "vjp": (1, lambda fn: vjp(lambda p: fn(p).reshape(-1), P)[1](V[: fn(P).numel()])[0]),
}
for _order, _wrapper in itertools.product((1, 2, 3), WRAPPERS):
    for _word in words(_order):
        MODES[f"{_wrapper} {_word}"] = (
            _order,
            lambda fn, word=_word, wrapper=_wrapper: WRAPPERS[wrapper](word, cube(fn)),
        )
TOLERANCE = {0: 1e-10, 1: 1e-8, 2: 1e-7, 3: 1e-7}


def modes(*orders, without=()):
    """Return the names of the modes of these orders, but for those of some wrappers."""
    return [n for n, (k, _) in MODES.items() if k in orders and n.split()[0] not in without]


def error(ours, reference):
    return float((ours - reference).abs().max() / reference.abs().max().clamp(min=1e-2))


@functools.cache
def expected(mode, reference):
    return MODES[mode][1](reference)


def assert_agree(ours, reference, names, tolerance=None):
    """Compare two functions in the modes named."""
    for name in names:
        order, apply = MODES[name]
        off = error(apply(ours), expected(name, reference))
        assert off < (tolerance or TOLERANCE[order]), (name, off)


def check_gradients(fn, *inputs, batched=True):
    """Run torch's own checks of both orders, in both modes and batched."""
    inputs = tuple(x.clone().requires_grad_() for x in inputs)
    first = {"check_forward_ad": True, "check_batched_forward_grad": True}
    second = {"check_fwd_over_rev": True, "check_rev_over_rev": True}
    assert gradcheck(fn, inputs, check_batched_grad=True, **first)
    assert gradgradcheck(fn, inputs, check_batched_grad=batched, **second)
