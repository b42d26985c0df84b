"""Sparse Jacobians: patterns, colors, and solves at sizes that no dense one has."""

import gc
import weakref

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import jacfwd, jacrev, vmap

import implicit_solvers as ims
from implicit_solvers.linear.sparsity import SparsityPattern
from tests.solvers.systems import F64, error

GMRES, ILU = ims.GMRES(), ims.ILU()


def bratu(u, load):
    """Return ``u_xx + u_yy + load e^u`` on the inner points of a square, by five points."""
    v = torch.nn.functional.pad(u, (1, 1, 1, 1))
    sides = v[..., 2:, 1:-1] + v[..., :-2, 1:-1] + v[..., 1:-1, 2:] + v[..., 1:-1, :-2]
    return (sides - 4 * u) * (u.shape[-1] + 1) ** 2 + load * torch.exp(u)


def five_points(side):
    one = scipy.sparse.diags_array([1.0, 1.0, 1.0], offsets=[-1, 0, 1], shape=(side, side))
    eye = scipy.sparse.eye_array(side)
    return scipy.sparse.kron(one, eye) + scipy.sparse.kron(eye, one) != 0


def by_scipy(load):
    """Return Bratu's solution, with Newton steps by SciPy's ``spsolve``."""
    side, u = len(load), np.zeros(load.numel())
    line = scipy.sparse.diags_array([1.0, -2.0, 1.0], offsets=[-1, 0, 1], shape=(side, side))
    eye = scipy.sparse.eye_array(side)
    laplacian = (scipy.sparse.kron(line, eye) + scipy.sparse.kron(eye, line)) * (side + 1) ** 2
    source = load.detach().numpy().ravel()
    for _ in range(8):
        slope = scipy.sparse.csc_array(laplacian + scipy.sparse.diags_array(source * np.exp(u)))
        u = u - scipy.sparse.linalg.spsolve(slope, laplacian @ u + source * np.exp(u))
    adjoint = scipy.sparse.linalg.spsolve(slope.T.tocsc(), np.ones_like(u))
    shape = load.shape
    return torch.from_numpy(u).reshape(shape), torch.from_numpy(-adjoint * np.exp(u)).reshape(shape)


WAYS = {
    "default": {},
    "chord": {"solver": ims.Chord(linear_solver=ims.SuperLU())},
    "adjoint anew": {"adjoint": ims.ImplicitAdjoint(GMRES, ILU)},
    "GMRES, ILU": {
        "solver": ims.Newton(linear_solver=GMRES, preconditioner=ILU),
        "adjoint": ims.ImplicitAdjoint(GMRES, ILU),
    },
    "GMRES, then SuperLU": {"solver": ims.Newton(linear_solver=GMRES, preconditioner=ILU)},
    "BiCGStab, mixed": {
        "solver": ims.Newton(linear_solver=ims.BiCGStab(), preconditioner=ILU),
        "adjoint": ims.ImplicitAdjoint(ims.GMRES(inner_dtype=torch.float32), ILU),
    },
}


@pytest.mark.parametrize("way", WAYS)
def test_a_solve_of_some_thousand_unknowns(way):
    """Solution and gradient are SciPy's; where Jacobians are factored, the end is verified."""
    side = 64
    load = torch.linspace(1, 6, side**2, dtype=F64).reshape(side, side).requires_grad_()
    u0 = torch.zeros(side, side, dtype=F64)
    sol = ims.root(bratu, u0, (load,), jac_sparsity=five_points(side), **WAYS[way])
    (slope,) = torch.autograd.grad(sol.value.sum(), load)
    u, exact = by_scipy(load)
    assert error(sol.value, u) < 1e-10 and error(slope, exact) < 1e-8
    factored = "GMRES," not in way and "BiCG" not in way
    # 1e4 of the condition times rounding
    assert (float(sol.error) < 1e-11) == factored


def test_lanes_share_a_pattern_and_fail_alone():
    side, loads = 6, torch.tensor([1.0, torch.nan, 6.0, 50.0, 3.0], dtype=F64)
    u0, pattern = torch.zeros(side, side, dtype=F64), SparsityPattern(five_points(side))
    own = torch.ones((), dtype=F64, requires_grad=True)

    def solve(load, **options):
        scaled = lambda u, load: bratu(u, own * load)
        return ims.root(scaled, options.pop("u0", u0), (load,), **options)

    masked = {"on_failure": "mask", "jac_sparsity": pattern}
    native = solve(loads[:, None, None], u0=u0.expand(5, -1, -1), batch_dims=1, in_dims=0, **masked)
    batch = vmap(lambda load: solve(load, **masked))(loads)
    dense = [solve(load, solver=ims.Newton(), on_failure="mask") for load in loads]
    slopes = [torch.autograd.grad(sol.value.sum(), own)[0] for sol in (native, batch)]
    exact = sum(torch.autograd.grad(dense[i].value.sum(), own)[0] for i in (0, 2, 4))
    for sol, slope in zip((native, batch), slopes, strict=True):
        assert sol.status.tolist() == [int(one.status) for one in dense]
        assert sol.converged.tolist() == [True, False, True, False, True]
        for i in (0, 2, 4):
            assert error(sol.value[i], dense[i].value) < 1e-12
        assert error(slope, exact) < 1e-10


def test_many_cotangents_use_one_factorization(monkeypatch):
    made, factor = [], ims.SuperLU._factor_lane
    monkeypatch.setattr(
        ims.SuperLU, "_factor_lane", lambda self, m: made.append(m.shape) or factor(self, m)
    )
    u0, pattern = torch.zeros(5, 5, dtype=F64), five_points(5)

    def solve(load):
        return ims.root(bratu, u0, (load,), jac_sparsity=pattern).value.ravel()

    load = torch.full((5, 5), 3.0, dtype=F64)
    steps = int(ims.root(bratu, u0, (load,), jac_sparsity=pattern).iterations)
    for mode in (jacrev, jacfwd):
        made.clear()
        assert mode(solve)(load).shape == (25, 5, 5)
        assert len(made) == steps + 1  # and one where the solve ends


def test_factors_live_as_long_as_the_graph(monkeypatch):
    kept, factor = [], ims.SuperLU._factor_lane

    class Factors:
        def __init__(self, made):
            self.solve = made.solve

    def remember(self, matrix):
        made, how = factor(self, matrix)
        made = Factors(made)
        kept.append(weakref.ref(made))
        return made, how

    monkeypatch.setattr(ims.SuperLU, "_factor_lane", remember)
    load = torch.tensor(3.0, dtype=F64, requires_grad=True)
    sol = ims.root(bratu, torch.zeros(5, 5, dtype=F64), (load,), jac_sparsity=five_points(5))
    gc.collect()
    assert [ref() is not None for ref in kept] == [False] * (len(kept) - 1) + [True]
    del sol
    gc.collect()
    assert kept[-1]() is None


@pytest.mark.parametrize("equation", ["root", "fixed_point", "minimize"])
def test_every_equation_with_a_pattern_that_is_found(equation):
    """A chain: solutions and derivatives are those without a pattern."""

    def energy(z, a):
        return (torch.cosh(z[1:] - z[:-1]) + a * z[1:] ** 2).sum() + (z[0] - a) ** 4 + z[0] ** 2

    def step(z, a):
        return a + 0.3 * torch.sin(torch.nn.functional.pad(z, (1, 1))[2:]) * z.roll(1)

    fn = {"root": lambda z, a: z - step(z, a), "fixed_point": step, "minimize": energy}[equation]
    solve, z0 = getattr(ims, equation), torch.zeros(9, dtype=F64)
    a = torch.tensor(0.7, dtype=F64)
    pattern = ims.jacobian_sparsity(fn, z0, (a,), equation=solve)
    assert pattern.products <= 5
    for order in (lambda f: f, jacrev, lambda f: jacfwd(jacrev(f))):
        ours = order(lambda a: solve(fn, z0, (a,), jac_sparsity=pattern).value)(a)
        assert error(ours, order(lambda a: solve(fn, z0, (a,)).value)(a)) < 1e-9
    sol = solve(fn, z0, (a,), jac_sparsity=pattern)
    assert float(sol.error) < 1e-12


def test_a_minimum_is_told_from_a_saddle():
    def saddle(z):
        return (z[0] ** 2 - z[1] ** 2).cosh() - z[0] * z[1] + (z**4).sum()

    options = {"jac_sparsity": torch.ones(2, 2), "on_failure": "mask"}
    assert ims.minimize(saddle, torch.zeros(2, dtype=F64), **options).status == ims.Status.SADDLE
    sol = ims.minimize(saddle, torch.tensor([0.1, 0.2], dtype=F64), **options)
    found = scipy.optimize.minimize(lambda z: float(saddle(torch.from_numpy(z))), [0.1, 0.2])
    assert bool(sol.converged) and error(saddle(sol.value), torch.tensor(found.fun)) < 1e-8


def test_steps_go_down_where_a_large_hessian_is_indefinite():
    def energy(z):
        waves = torch.cos(3 * (z[1:] - z[:-1])) + 0.1 * z[1:] ** 2 + z[1:] * z[:-1]
        return waves.sum() + 0.5 * (z**4).sum()

    start = torch.linspace(0.3, -1, 600, dtype=F64)
    pattern = torch.ones(600, 600).tril(1).triu(-1)
    sol = ims.minimize(energy, start, jac_sparsity=pattern)
    H = torch.func.hessian(energy)(sol.value)
    assert float(sol.error) < 1e-12 and float(torch.linalg.eigvalsh(H)[0]) > 0
    assert float(torch.linalg.eigvalsh(torch.func.hessian(energy)(start))[0]) < 0


def forms(dense):
    blocks = dense.double().to_sparse_bsr((2, 2)), dense.double().to_sparse_bsc((3, 3))
    sparse = [dense.to_sparse(), dense.double().to_sparse_csr(), dense.to_sparse_csc(), *blocks]
    return [dense, dense.double(), dense.numpy(), scipy.sparse.coo_matrix(dense.numpy()), *sparse]


@given(st.integers(1, 12), st.integers(1, 12), st.floats(0, 1), st.integers(0, 10**6))
def test_colors_show_all_entries(m, n, density, seed):
    draw = torch.Generator().manual_seed(seed)
    dense = torch.rand(m, n, generator=draw) < density
    pattern, matrix = SparsityPattern(dense), dense * torch.randn(m, n, generator=draw, dtype=F64)
    assert torch.equal(pattern.dense(), dense)
    times = matrix if pattern.by_rows else matrix.T
    entries = pattern.picked((pattern.seeds(matrix) @ times).unsqueeze(1))
    weights = pattern.weights(entries)
    suspects = pattern.suspects(entries, (weights @ times).unsqueeze(1), weights)
    assert torch.equal(pattern.filled(entries)[0], matrix) and not len(suspects)
    v, w = torch.randn(n, dtype=F64), torch.randn(m, dtype=F64)
    assert error(pattern.times(entries, v)[0], matrix @ v) < 1e-12
    assert error(pattern.times(entries, w, transposed=True)[0], matrix.T @ w) < 1e-12
    # one line has that many entries
    assert pattern.products >= min(int(dense.sum(0).amax()), int(dense.sum(1).amax()))


# torch says once that these layouts are young
beta = pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta")


@beta
def test_patterns_of_every_form():
    dense = torch.eye(6, dtype=torch.bool).roll(1, 0) | torch.eye(6, dtype=torch.bool)
    for form in forms(dense):
        found = SparsityPattern(form).dense()
        stored = int(found.sum())
        assert bool((dense <= found).all()) and stored in (12, 24, 36)  # blocks are stored whole
    assert SparsityPattern(torch.ones(40, 1)).products == 1
    assert SparsityPattern(torch.ones(1, 40)).products == 1
    tri = SparsityPattern(torch.ones(50, 50).tril(1).triu(-1))
    assert tri.products == 3 and tri.symmetric and tri.symmetrized() is tri.with_diagonal() is tri
    half = SparsityPattern(torch.eye(5).roll(1, 0)[:, :4].new_ones(5, 5).triu(1))
    assert torch.equal(half.symmetrized().with_diagonal().dense(), torch.ones(5, 5) > 0)


@given(st.integers(1, 40), st.floats(0, 0.3), st.integers(0, 10**6))
def test_detection_finds_the_pattern(n, density, seed):
    draw = torch.Generator().manual_seed(seed)
    dense = torch.rand(n, n, generator=draw) < density
    matrix = dense * torch.randn(n, n, generator=draw, dtype=F64)

    def fn(z):
        sines = (matrix * torch.sin(z)).sum(-1)
        return torch.where(z > 0, sines, 2 * sines.abs()) + (sines**2).clamp(max=1)

    found = ims.jacobian_sparsity(fn, torch.zeros(n, dtype=F64)).dense()
    # the condition of `where` is no slope
    assert torch.equal(found, dense)


def test_detection_follows_every_side_of_a_kink():
    def upwind(u):
        v = torch.nn.functional.pad(u, (1, 1))
        return torch.where(u > 0, u - v[:-2], v[2:] - u) + torch.relu(u.roll(3))

    band = torch.ones(9, 9).tril(1).triu(-1) + torch.eye(9).roll(3, 0) > 0
    for start in (torch.ones(9), -torch.ones(9), torch.zeros(9)):
        assert torch.equal(ims.jacobian_sparsity(upwind, start).dense(), band)
    lanes = ims.jacobian_sparsity(lambda z: z * z.roll(1, -1), torch.rand(3, 4), batch_dims=1)
    assert torch.equal(lanes.dense(), torch.eye(4).add(torch.eye(4).roll(1, 0)) > 0)


ORDER = [3, 7, 0, 5, 1, 8, 4, 2, 6]


@pytest.mark.parametrize("place", [(0, 5), (7, 2), (8, 8)])
@pytest.mark.parametrize("size", [1.0, 1e-6])
@pytest.mark.parametrize("units", [(0, 0), (40, 0), (0, 40), (2, 2)])
def test_a_pattern_that_misses_an_entry_is_refused(place, size, units):
    """Whether it hides behind another of its color or not; by its place, wherever it arises.

    The units of equations, or those of unknowns, do not matter, be they 1e80 apart.
    """
    rows, columns = (10.0 ** (e * torch.linspace(-1, 1, 9, dtype=F64)[ORDER]) for e in units)
    matrix = 4 * torch.eye(9, dtype=F64) + torch.diag(torch.ones(8, dtype=F64), 1)
    pattern, z0 = matrix != 0, torch.zeros(9, dtype=F64)
    more = torch.zeros_like(matrix)
    more[place] = size
    pattern[place] = False

    def fn(z, late):
        z = columns * z
        return rows * (matrix @ z - 1 + torch.where(z.norm() > late, 1.0, 0.0) * (more @ z))

    for late in (-1.0, 0.2):  # at the start, and on the way
        with pytest.raises(ValueError, match=rf"misses the entry \({place[0]}, {place[1]}\)"):
            ims.root(fn, z0, (late,), jac_sparsity=pattern)


@beta
@pytest.mark.parametrize("layout", ["coo", "csr", "csc", "bsr", "bsc"])
def test_sparse_tensors_of_all_layouts(layout):
    """Solution and gradients of all orders are those of the dense matrix, on its pattern."""
    draw = torch.Generator().manual_seed(0)
    dense = torch.randn(6, 6, generator=draw, dtype=F64) + 5 * torch.eye(6, dtype=F64)
    dense[torch.rand(6, 6, generator=draw) < 0.5] = 0.0
    dense.fill_diagonal_(5.0)
    b = torch.randn(6, generator=draw, dtype=F64)
    blocks = ((2, 3),) if layout.startswith("bs") else ()

    def solved(dense):
        name = "to_sparse" if layout == "coo" else f"to_sparse_{layout}"
        return ims.linear_solve(getattr(dense, name)(*blocks), b).value

    grads = []
    for fn in (solved, lambda dense: torch.linalg.inv(dense) @ b):
        leaf = dense.clone().requires_grad_()
        x = fn(leaf)
        (first,) = torch.autograd.grad((x**3).sum(), leaf, create_graph=True)
        first = torch.where(dense != 0, first, 0.0)
        grads.append((x, first, torch.autograd.grad((first**2).sum(), leaf)[0] * (dense != 0)))
    for ours, exact in zip(*grads, strict=True):
        assert error(ours, exact) < 1e-10
