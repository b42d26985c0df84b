"""iMAML against closed forms, differences, and the paper's algorithm written out."""

import ast
import io
import tokenize
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad, hessian, vmap

import implicit_solvers as ims
from implicit_solvers.problems import imaml
from implicit_solvers.problems.imaml import definition

EXACT = {"solver": ims.NewtonCG(), "adjoint": ims.ImplicitAdjoint(ims.CG())}


def ravel(phi):
    return torch.cat([phi["w"].flatten(), phi["b"].flatten()])


def quadratic(phi, data):
    A, c = data
    z = ravel(phi)
    return z @ A @ z / 2 - c @ z


def distance(phi, y):
    return (ravel(phi) - y).square().sum() / 2


def loss(phi, data):
    """The support of a task is (A, c), its query a point: two kinds of data, one loss."""
    return quadratic(phi, data) if isinstance(data, tuple) else distance(phi, data)


def quadratic_tasks(seed, tasks):
    """Positive definite A (condition number up to about 30), c and y, in 5 dimensions."""
    g = torch.Generator().manual_seed(seed)
    R = torch.randn(tasks, 5, 5, generator=g, dtype=torch.float64)
    A = R @ R.mT / 5 + 0.2 * torch.eye(5, dtype=torch.float64)
    c, y = torch.randn(2, tasks, 5, generator=g, dtype=torch.float64)
    theta = {
        "w": torch.randn(2, 2, generator=g, dtype=torch.float64),
        "b": torch.randn((), generator=g, dtype=torch.float64),
    }
    return theta, A, c, y


def closed_form(theta, A, c, y, strength):
    """phi = (A + s)^-1 (c + s theta); the meta-gradient is s (A + s)^-1 (phi - y)."""
    K = A.numpy() + strength * np.eye(len(A))
    phi = np.linalg.solve(K, c.numpy() + strength * ravel(theta).numpy())
    return phi, strength * np.linalg.solve(K, phi - y.numpy())


@given(seed=st.integers(0, 10**6), strength=st.floats(0.05, 20))
def test_meta_gradient_of_a_quadratic(seed, strength):
    theta, A, c, y = quadratic_tasks(seed, 1)
    A, c, y = A[0], c[0], y[0]
    phi, expected = closed_form(theta, A, c, y, strength)

    leaves = {name: value.clone().requires_grad_() for name, value in theta.items()}
    sol = imaml.adapt(loss, leaves, (A, c), strength=strength, **EXACT)
    by_transform = grad(lambda t: imaml.meta_loss(loss, t, (A, c), y, strength=strength, **EXACT))
    imaml.meta_loss(loss, leaves, (A, c), y, strength=strength, **EXACT).backward()

    # Newton and CG stop at 1.8e-12 (eps**0.75) relative; condition numbers are below 200
    assert sol.converged
    np.testing.assert_allclose(ravel(sol.value).detach().numpy(), phi, atol=1e-8)
    np.testing.assert_allclose(ravel(by_transform(theta)).numpy(), expected, atol=1e-8)
    by_backward = {name: value.grad for name, value in leaves.items()}
    np.testing.assert_allclose(ravel(by_backward).numpy(), expected, atol=1e-8)


def test_meta_hessian_of_a_quadratic():
    _, A, c, y = quadratic_tasks(1, 1)
    A, c, y = A[0], c[0], y[0]
    theta = torch.randn(5, dtype=torch.float64)

    def F(theta):
        as_tree = {"w": theta[:4].reshape(2, 2), "b": theta[4]}
        return imaml.meta_loss(loss, as_tree, (A, c), y, strength=0.5, **EXACT)

    dphi = 0.5 * torch.linalg.inv(A + 0.5 * torch.eye(5, dtype=torch.float64))
    # nested solves to 1.8e-12 relative, condition numbers below 100
    torch.testing.assert_close(hessian(F)(theta), dphi @ dphi, rtol=0, atol=1e-8)


@pytest.fixture
def curved():
    """A network with tanh, as a loss of its parameters; data of three tasks."""
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    theta = {name: value.detach().clone() for name, value in model.named_parameters()}

    def loss(phi, data):
        x, y = data
        return (functional_call(model, phi, (x,)) - y).square().mean()

    x = torch.randn(3, 6, 2, dtype=torch.float64)
    y = torch.sin(x.sum(-1, keepdim=True) + torch.arange(3).reshape(3, 1, 1))
    support, query = (x[:, :3], y[:, :3]), (x[:, 3:], y[:, 3:])
    return loss, theta, support, query


def one(data, task):
    return tuple(t[task] for t in data)


def test_meta_gradient_is_the_slope_of_the_meta_loss(curved):
    loss, theta, supports, queries = curved

    def F(theta):
        return imaml.meta_loss(
            loss, theta, one(supports, 0), one(queries, 0), strength=0.5, **EXACT
        )

    direction = {name: torch.randn_like(value) for name, value in theta.items()}
    h = 1e-5
    ahead, behind = (
        F({name: theta[name] + sign * h * direction[name] for name in theta}) for sign in (1, -1)
    )
    gradient = grad(F)(theta)
    slope = sum((gradient[name] * direction[name]).sum() for name in theta)
    # truncation h² = 1e-10 times a third derivative of order 1, solves 1e-12 / h = 1e-7 at worst
    torch.testing.assert_close((ahead - behind) / (2 * h), slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options", [EXACT, {}], ids=["exact", "budget"])
def test_tasks_batched_by_vmap_equal_the_loop(curved, options):
    loss, theta, supports, queries = curved

    def batched(theta):
        return imaml.meta_objective(loss, theta, supports, queries, strength=0.5, **options)

    def looped(theta):
        losses = [
            imaml.meta_loss(loss, theta, one(supports, i), one(queries, i), strength=0.5, **options)
            for i in range(3)
        ]
        return sum(losses) / 3

    # the same steps up to rounding; where they are judged, up to the tolerance 1.8e-12 too
    torch.testing.assert_close(batched(theta), looped(theta), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(grad(batched)(theta), grad(looped)(theta), rtol=1e-9, atol=1e-9)


def test_solutions_come_out_of_vmap(curved):
    loss, theta, supports, _ = curved
    sol = vmap(lambda support: imaml.adapt(loss, theta, support, strength=0.5, **EXACT))(supports)
    assert sol.converged.shape == sol.iterations.shape == (3,)
    assert sol.converged.all()


def test_the_default_is_the_papers_algorithm():
    theta, A, c, y = quadratic_tasks(2, 1)
    A, c, y, strength = A[0] / 2, c[0], y[0], 2.0
    with ims.monitor() as log:
        leaves = {name: value.clone().requires_grad_() for name, value in theta.items()}
        sol = imaml.adapt(loss, leaves, (A, c))
        loss(sol.value, y).backward()

    K, start = A.numpy() + strength * np.eye(5), ravel(theta).numpy()
    phi = start
    for _ in range(16):
        phi = phi - 0.1 * (K @ phi - c.numpy() - strength * start)
    b = phi - y.numpy()
    x, r = np.zeros(5), b
    p = r
    for _ in range(5):
        a = (r @ r) / (p @ K @ p)
        x, r, old = x + a * p, r - a * K @ p, r
        p = r + (r @ r) / (old @ old) * p

    assert (sol.iterations, sol.status) == (16, ims.Status.BUDGET)
    assert [int(record.iterations) for record in log.adjoints()] == [5]
    gradient = ravel({name: value.grad for name, value in leaves.items()}).numpy()
    # 21 steps of a contraction, and five of CG, in float64
    np.testing.assert_allclose(ravel(sol.value).detach().numpy(), phi, rtol=1e-12)
    np.testing.assert_allclose(gradient, strength * x, rtol=1e-9)


def test_a_strong_pull_gives_the_first_order_gradient(curved):
    loss, theta, supports, queries = curved
    support, query = one(supports, 0), one(queries, 0)
    implicit = grad(lambda t: imaml.meta_loss(loss, t, support, query, strength=1e4, **EXACT))(
        theta
    )
    # phi - theta and lemma 1's matrix minus the identity are of order 1/strength, times curvatures
    torch.testing.assert_close(implicit, grad(loss)(theta, query), rtol=0, atol=1e-3)


@pytest.mark.parametrize("strength", [0.0, -1.0, float("nan"), float("inf")])
def test_strength_must_be_positive_and_finite(strength):
    theta, A, c, _ = quadratic_tasks(0, 1)
    with pytest.raises(ValueError, match="strength"):
        imaml.adapt(loss, theta, (A[0], c[0]), strength=strength)


@pytest.mark.parametrize("theta", [{}, {"w": 1.0}, [torch.zeros(2), None, "w"]])
def test_theta_must_be_made_of_tensors(theta):
    with pytest.raises(TypeError, match="theta"):
        imaml.adapt(lambda phi, data: torch.zeros(()), theta, None)


def test_loss_must_be_a_number():
    with pytest.raises(ValueError, match="objective"):
        imaml.adapt(lambda phi, data: phi - data, torch.zeros(3), torch.ones(3))


def test_negative_curvature_is_an_error_or_leaves_the_task_out():
    def saddle(phi, x):
        return x - 2 * phi.square().sum()

    theta, x = torch.ones(3, requires_grad=True), torch.tensor(0.0)
    with pytest.raises(ims.ConvergenceError, match="INDEFINITE"):
        imaml.meta_loss(saddle, theta, x, x, strength=2.0).backward()
    with pytest.warns(ims.ConvergenceWarning, match="INDEFINITE"):
        imaml.meta_loss(saddle, theta, x, x, strength=2.0, on_failure="mask").backward()
    assert (theta.grad == 0).all()
    theta.grad = None
    imaml.meta_loss(saddle, theta, x, x, strength=5.0).backward()
    assert (theta.grad != 0).all()


def logic_lines(source):
    """Lines with code: not blank, not only a comment, not a docstring."""
    docstrings = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(
            node
        ):
            docstrings.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    empty = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    used = {
        line
        for token in tokens
        if token.type not in (*empty, tokenize.ENDMARKER)
        for line in range(token.start[0], token.end[0] + 1)
    }
    return len(used - docstrings)


SAMPLE = '''\
"""A module."""

# why
x = (
    1,  # one
)

def f():
    """Documented.

    At length.
    """
    return x
'''


def test_logic_lines():
    assert logic_lines(SAMPLE) == 5


def test_the_definition_fits_on_a_page():
    assert logic_lines(Path(definition.__file__).read_text()) <= 60


def test_the_definition_uses_public_names_only():
    tree = ast.parse(Path(definition.__file__).read_text())
    imports = [n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))]
    modules = [node.module for node in imports if isinstance(node, ast.ImportFrom)]
    modules += [a.name for node in imports if isinstance(node, ast.Import) for a in node.names]
    ours = {name for name in modules if name.split(".")[0] == "implicit_solvers"}
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) == "ims"
    }
    own = "implicit_solvers.problems.imaml."
    assert {name for name in ours if not name.startswith(own)} == {"implicit_solvers"}
    assert used and used <= set(ims.__all__)
