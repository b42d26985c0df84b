"""Each strategy draws what it promises, by NumPy and SciPy, and shrinks to a small case."""

import math

import hypothesis
import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._pytree import tree_leaves

from implicit_solvers.testing import strategies as draws

F32, F64 = torch.float32, torch.float64
OPERATORS = [draws.well_conditioned, draws.positive_definite, draws.symmetric_indefinite]
OPERATORS += [draws.nonsymmetric, draws.singular, draws.rectangular, draws.banded]
KINDS = ("root", "fixed_point", "minimize", "least_squares")


def any_of(*strategies):
    return st.sampled_from(strategies)


def same_numbers(ours, expected, tolerance):
    """Compare as sets: sorted by real, then imaginary part."""
    return np.abs(np.sort_complex(ours) - np.sort_complex(expected)).max() <= tolerance


def singular_values(matrix):
    return np.sort(scipy.linalg.svdvals(matrix))[::-1]


# -- operators --------------------------------------------------------------------------------


@given(st.data(), any_of(1.0, 10.0, 1e3), any_of(1.0, 1e-3, 1e3), draws.dtypes())
@pytest.mark.parametrize("strategy", OPERATORS, ids=lambda s: s.__name__)
def test_operators_are_bounded_and_know_their_condition(strategy, data, condition, scale, dtype):
    bounds = {"min_size": 2, "max_size": 5}
    drawn = data.draw(strategy(condition=condition, scale=scale, dtype=dtype, **bounds))
    assert drawn.matrix.dtype == dtype and drawn.matrix.isfinite().all()
    assert 2 <= min(drawn.matrix.shape) <= 5
    sizes = np.abs(np.array(drawn.spectrum))
    sizes = sizes[sizes > 0]
    assert (sizes <= scale * (1 + 1e-12)).all()
    assert (sizes >= scale / condition * (1 - 1e-12)).all()
    matrix = drawn.matrix.double().numpy()
    values = singular_values(matrix)
    symmetric = matrix.shape[0] == matrix.shape[1] and np.array_equal(matrix, matrix.T)
    assert symmetric or not drawn.symmetric
    eps = torch.finfo(dtype).eps
    if math.isinf(drawn.condition):
        assert values[-1] <= 10 * eps * scale
    else:
        assert abs(values[0] / values[-1] / drawn.condition - 1) <= 50 * eps * drawn.condition
    if matrix.shape[0] == matrix.shape[1]:
        assert torch.equal(drawn.operator.dense(), drawn.matrix)
        assert drawn.operator.symmetric == drawn.symmetric
        assert drawn.operator.positive_definite == drawn.positive_definite


@given(draws.well_conditioned() | draws.rectangular() | draws.singular())
def test_singular_values_are_those_chosen(drawn):
    values = singular_values(drawn.matrix.numpy())
    assert np.abs(values - np.sort(drawn.spectrum)[::-1]).max() <= 1e-14


SYMMETRIC = draws.positive_definite() | draws.symmetric_indefinite() | draws.banded()


@given(SYMMETRIC | draws.singular(symmetric=True))
def test_eigenvalues_of_symmetric_matrices_are_those_chosen(drawn):
    matrix = drawn.matrix.numpy()
    assert np.array_equal(matrix, matrix.T)
    assert same_numbers(scipy.linalg.eigvalsh(matrix), np.array(drawn.spectrum), 1e-13)
    assert drawn.positive_definite == (min(drawn.spectrum) > 0)


@given(draws.nonsymmetric(departure=0.1) | draws.banded(symmetric=False, bandwidth=1))
def test_eigenvalues_of_nonsymmetric_matrices_are_those_chosen(drawn):
    values = scipy.linalg.eigvals(drawn.matrix.numpy())
    # a double eigenvalue with one eigenvector moves by the root of a rounding
    n, expected = len(values), np.array(drawn.spectrum, dtype=complex)
    power = [np.poly(values), np.poly(expected)]
    assert np.abs(power[0] - power[1]).max() <= 1e-12 * 4**n


def is_not_even_normal(A):
    return not np.allclose(A, A.T) and np.linalg.norm(A @ A.T - A.T @ A) > 1e-6


def has_eigenvalues_of_both_signs(A):
    values = scipy.linalg.eigvalsh(A)
    return values[0] < 0 < values[-1]


def is_singular_to_the_last_bit(A):
    return len({tuple(row) for row in A.tolist()}) < len(A) or not A.any(-1).all()


STRUCTURES = [
    (draws.nonsymmetric, {}, is_not_even_normal),
    (draws.symmetric_indefinite, {}, has_eigenvalues_of_both_signs),
    *(
        (draws.singular, {"symmetric": symmetric, "dtype": dtype}, is_singular_to_the_last_bit)
        for symmetric in (False, True)
        for dtype in (F32, F64)
    ),
    (draws.rectangular, {"tall": True, "max_size": 3, "max_extra": 2},
     lambda A: 1 <= A.shape[0] - A.shape[1] <= 2),
    (draws.rectangular, {"tall": False, "max_size": 3, "max_extra": 2},
     lambda A: 1 <= A.shape[1] - A.shape[0] <= 2),
    *(
        (draws.banded, {"bandwidth": width, "symmetric": symmetric},
         lambda A, width=width: max(scipy.linalg.bandwidth(A)) <= width)
        for width in (1, 2, 3)
        for symmetric in (False, True)
    ),
]  # fmt: skip


@pytest.mark.parametrize("strategy,options,promise", STRUCTURES)
@given(st.data())
def test_matrices_have_their_structure(strategy, options, promise, data):
    assert promise(data.draw(strategy(**options)).matrix.numpy())


@pytest.mark.parametrize("strategy", [s for s in OPERATORS if s is not draws.singular])
def test_a_chosen_spectrum_is_taken(strategy):
    spectrum = (-2.0, 3.0, 0.5) if strategy is draws.symmetric_indefinite else (2.0, 3.0, 0.5)
    drawn = hypothesis.find(strategy(spectrum=spectrum), lambda drawn: True)
    assert set(drawn.spectrum) == set(spectrum)
    values = np.linalg.svd(drawn.matrix.numpy(), compute_uv=False)
    if strategy is not draws.nonsymmetric:
        np.testing.assert_allclose(values, [3, 2, 0.5])
    else:
        assert same_numbers(np.linalg.eigvals(drawn.matrix.numpy()), np.array(spectrum), 1e-12)


# -- maps -------------------------------------------------------------------------------------


@given(st.data(), any_of(0.0, 0.3, 0.9), st.integers(0, 99))
def test_contractions_contract_by_the_constant(data, constant, seed):
    g = data.draw(draws.contractions(constant=constant))
    assert (g.lipschitz, g.modulus) == (constant, -constant)
    x, y = pairs(g.size, seed)
    moved, distance = np.linalg.norm(call(g, x) - call(g, y), axis=-1), norm(x - y)
    assert (moved <= constant * distance * (1 + 1e-12) + 1e-15).all()
    # attained where V z = 0, that is, at zero
    h = 1e-4 * (x - y)
    slope = norm(call(g, h) - call(g, -h)) / norm(2 * h)
    np.testing.assert_allclose(slope, constant, atol=1e-6)


@given(st.data(), any_of(0.0, 0.5, 2.0), any_of(0.0, 3.0), st.integers(0, 99))
def test_monotone_maps_are_monotone_by_the_modulus(data, modulus, speed, seed):
    F = data.draw(draws.monotone_maps(modulus=modulus, rotation_speed=speed))
    x, y = pairs(F.size, seed)
    d, moved = x - y, call(F, x) - call(F, y)
    inner, squared = (d * moved).sum(-1), (d * d).sum(-1)
    assert (inner >= F.modulus * squared - 1e-12 * (1 + squared)).all()
    assert (norm(moved) <= F.lipschitz * norm(d) * (1 + 1e-12)).all()
    if F.size > 1 and speed:
        J = torch.func.jacrev(F)(torch.zeros(F.size, dtype=F64)).numpy()
        assert abs(np.linalg.norm((J - J.T) / 2, 2) - speed) <= 1e-12


@given(draws.networks(), st.integers(0, 99))
def test_networks_map_between_their_sizes_and_keep_their_constant(net, seed):
    x, y = pairs(net.inputs, seed)
    assert call(net, x).shape == (len(x), net.outputs)
    moved = norm(call(net, x) - call(net, y))
    assert (moved <= net.lipschitz * norm(x - y) * (1 + 1e-12)).all()
    widths = [net.inputs, *(len(layer["bias"]) for layer in net.parameters)]
    assert widths[-1] == net.outputs and max(widths) <= 4 and len(widths) <= 4


@given(draws.networks(max_hidden=2), st.integers(0, 99))
def test_networks_are_smooth(net, seed):
    x = torch.from_numpy(pairs(net.inputs, seed)[0][0])

    def along(t):
        return float(net(x + t * torch.ones_like(x)).sum())

    # a kink would leave a second difference of order h, not h^2
    h = 1e-3
    bend = abs(along(h) - 2 * along(0.0) + along(-h)) / h**2
    assert bend <= 10 * net.inputs * net.outputs * max(1.0, net.lipschitz) ** 3


def pairs(size, seed):
    rng = np.random.default_rng(seed)
    return 3 * rng.standard_normal((2, 20, size))


def call(fn, x):
    return fn(torch.from_numpy(x)).numpy()


def norm(x):
    return np.linalg.norm(x, axis=-1)


# -- equations --------------------------------------------------------------------------------


def condition_at(equation, z):
    """Return the optimality condition at ``z``; gradients by central differences."""

    def fn(z):
        return equation.fn(torch.from_numpy(z), *equation.args).numpy()

    if equation.kind == "root":
        return fn(z)
    if equation.kind == "fixed_point":
        return z - fn(z)

    def objective(z):
        return float(fn(z)) if equation.kind == "minimize" else 0.5 * float((fn(z) ** 2).sum())

    return differences(objective, z, 1e-5)


def differences(fn, z, h):
    columns = [(fn(z + h * e) - fn(z - h * e)) / (2 * h) for e in np.eye(len(z))]
    return np.array(columns).T


@pytest.mark.parametrize("kind", KINDS)
@given(st.data(), any_of(1.0, 10.0, 100.0), st.integers(0, 99))
def test_the_root_is_a_root_and_what_is_said_of_it_holds(kind, data, condition, seed):
    equation = data.draw(draws.rooted_equations(kind, condition=condition))
    z = equation.root.numpy()
    rounding = 1e-14 if kind in ("root", "fixed_point") else 1e-9
    assert np.abs(condition_at(equation, z)).max() <= rounding * (1 + np.abs(z).max())

    exact, direct = equation.jacobian.numpy(), kind in ("root", "fixed_point")
    jacobian = differences(lambda z: condition_at(equation, z), z, 1e-6 if direct else 1e-3)
    np.testing.assert_allclose(jacobian, exact, atol=1e-8 if direct else 1e-5)
    assert direct or scipy.linalg.eigvalsh(exact)[0] > 0
    values = singular_values(exact)
    np.testing.assert_allclose(values[0] / values[-1], equation.condition, rtol=1e-9)
    # the sine of a root's equation, of strength 0.6 at most, makes slopes differ by 1.6 / 0.4
    assert equation.condition <= max(2 * condition, 4)
    assert 1 / values[-1] <= equation.stability * (1 + 1e-9)

    # points on the way from the root to beyond the start, and to anywhere
    rng = np.random.default_rng(seed)
    reach = (0.3, 1.0) if kind == "least_squares" else (0.3, 1.0, 3.0)
    ways = [equation.start.numpy() - z]
    ways += [] if kind == "least_squares" else list(rng.standard_normal((2, len(z))))
    for way in ways:
        for t in reach:
            distance = np.linalg.norm(t * way)
            gradient = np.linalg.norm(condition_at(equation, z + t * way))
            assert distance <= equation.stability * (gradient + 1e-8) * (1 + 1e-6)


@pytest.mark.parametrize("kind", KINDS)
@given(st.data(), draws.dtypes(), any_of(1.0, 1e-2, 1e2))
def test_equations_have_the_dtype_and_the_magnitude(kind, data, dtype, magnitude):
    equation = data.draw(draws.rooted_equations(kind, dtype=dtype, magnitude=magnitude))
    tensors = (equation.start, equation.root, equation.jacobian, *equation.args)
    assert {t.dtype for t in tensors} == {dtype}
    assert max(equation.start.abs().max(), equation.root.abs().max()) <= 2 * magnitude
    assert equation.solve(on_failure="mask").value.dtype == dtype


@pytest.mark.parametrize("kind", KINDS[:3])
@given(st.data(), st.integers(0, 99))
def test_rootless_equations_keep_their_distance_from_zero(kind, data, seed):
    equation = data.draw(draws.rootless_equations(kind))
    rng = np.random.default_rng(seed)
    for size in (0.0, 1.0, 10.0):
        z = equation.start.numpy() + size * rng.standard_normal(len(equation.start))
        residual = condition_at(equation, z)
        assert np.sqrt(np.mean(residual**2)) >= equation.gap * (1 - 1e-4)
    assert equation.gap > 0


# -- tensors ----------------------------------------------------------------------------------


@given(st.data(), st.integers(1, 5), draws.dtypes())
def test_parameters_are_trees_of_a_few_tensors(data, most, dtype):
    tree = data.draw(draws.parameters(max_leaves=most, max_side=2, dtype=dtype))
    leaves = tree_leaves(tree)
    assert 1 <= len(leaves) <= most
    assert all(leaf.dtype == dtype and leaf.isfinite().all() for leaf in leaves)
    assert all(leaf.dim() <= 2 and max(leaf.shape, default=1) <= 2 for leaf in leaves)


@given(st.data())
def test_batch_shapes_keep_their_bounds(data):
    shape = data.draw(draws.batch_shapes(min_dims=1, max_dims=3, min_side=0, max_side=2))
    assert 1 <= len(shape) <= 3 and all(0 <= side <= 2 for side in shape)


@given(draws.devices(), draws.dtypes())
def test_devices_are_there(device, dtype):
    assert torch.zeros(1, device=device, dtype=dtype).sum() == 0


@given(st.data())
def test_draws_leave_the_global_generator_alone(data):
    before = torch.random.get_rng_state()
    for strategy in (*(s() for s in OPERATORS), draws.contractions(), draws.monotone_maps()):
        data.draw(strategy)
    for strategy in (draws.networks(), draws.parameters(), draws.rooted_equations()):
        data.draw(strategy)
    assert torch.equal(before, torch.random.get_rng_state())


# -- shrinking --------------------------------------------------------------------------------


def smallest(strategy, condition=lambda drawn: True):
    few = hypothesis.settings(max_examples=200, deadline=None, database=None)
    return hypothesis.find(strategy, condition, settings=few)


@pytest.mark.parametrize("strategy", OPERATORS, ids=lambda s: s.__name__)
def test_operators_shrink_to_one_or_two_unknowns(strategy):
    matrix = smallest(strategy()).matrix
    two = strategy in (draws.symmetric_indefinite, draws.nonsymmetric)
    assert min(matrix.shape) == (2 if two else 1)
    assert set(matrix.flatten().tolist()) <= {0.0, 0.5, 1.0, -1.0}


def test_operators_shrink_in_size_and_to_diagonal_matrices():
    A = smallest(draws.positive_definite(), lambda A: len(A.matrix) >= 3 and A.condition > 5)
    assert A.matrix.shape == (3, 3)
    assert torch.equal(A.matrix, torch.diag(A.matrix.diagonal()))
    assert sorted(A.spectrum)[1:] == [1.0, 1.0]


def test_maps_shrink_to_one_unknown():
    g = smallest(draws.contractions(constant=0.5))
    assert [t.tolist() for t in g.args] == [[[0.5]], [[1.0]], [0.0]]
    F = smallest(draws.monotone_maps(), lambda F: F.args[3].abs().max() > 1)
    assert F.size == 1 and F.args[3].item() == 1.25
    net = smallest(draws.networks())
    assert (net.inputs, net.outputs, len(net.parameters)) == (1, 1, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_equations_shrink_to_a_linear_one_of_one_unknown(kind):
    equation = smallest(draws.rooted_equations(kind), lambda e: bool((e.root != e.start).any()))
    assert equation.root.tolist() == [0.0] and equation.start.tolist() == [0.25]
    assert equation.jacobian.tolist() == [[1.0]]


@pytest.mark.nightly
def test_trees_and_shapes_shrink():
    tree = smallest(draws.parameters(), lambda tree: len(tree_leaves(tree)) >= 3)
    assert len(tree_leaves(tree)) == 3
    assert all(leaf.dim() == 0 for leaf in tree_leaves(tree))
    assert smallest(draws.batch_shapes(), lambda shape: math.prod(shape) > 1) == (2,)
    assert smallest(draws.dtypes(), lambda d: d != F64) == F32
