"""``compile=True``: the step is a graph, the loop, the lanes and the adjoint are what they were."""

import functools
import gc
import weakref

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import implicit_solvers as ims
from implicit_solvers import compiled_step
from implicit_solvers.problem import EquationProblem

from .comparison import nightly_but

COMPILE = torch.compile


def drawn(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


@pytest.fixture(autouse=True)
def _without_inductor(monkeypatch):
    """Trace and count as torch.compile does, without waiting for a C++ compiler."""
    compile_with(monkeypatch, "eager")
    monkeypatch.setattr(compiled_step, "_STEPS", weakref.WeakKeyDictionary())
    counters.clear()


def compile_with(monkeypatch, backend):
    monkeypatch.setattr(torch, "compile", functools.partial(COMPILE, backend=backend))


def graphs():
    """The number of graphs compiled since the test began."""
    return counters["stats"]["unique_graphs"]


def system(z, x, W):
    return torch.tanh(z @ W.T) + z - x


def contraction(z, x, W):
    return torch.tanh(z @ W.T) + x


X, W = drawn(40, 4), 0.3 * drawn(4, 4, seed=1)
LANES = {"batch_dims": 1, "in_dims": (0, None)}
SOLVERS = {
    "Newton": (ims.root, system, ims.Newton),
    "Newton, full steps": (ims.root, system, lambda **kw: ims.Newton(halvings=0, **kw)),
    "Chord": (ims.root, system, ims.Chord),
    "FixedPointIteration": (ims.fixed_point, contraction, ims.FixedPointIteration),
    "Anderson": (ims.fixed_point, contraction, ims.Anderson),
}


def both(call, *inputs):
    """Return the solutions and gradients of ``call(compile, *inputs)`` without and with."""
    results = []
    for compiled in (False, True):
        leaves = [t.clone().requires_grad_() for t in inputs]
        sol = call(compiled, *leaves)
        results.append((sol, torch.autograd.grad((sol.value**2).sum(), leaves)))
    return results


def agree(call, *inputs, steps=1):
    (expected, expected_gradients), (actual, gradients) = both(call, *inputs)
    assert torch.equal(actual.status, expected.status)
    assert int((actual.iterations - expected.iterations).abs().max()) <= steps
    torch.testing.assert_close(actual.value, expected.value, rtol=1e-9, atol=1e-9)
    for a, b in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    return actual


@pytest.mark.parametrize("name", nightly_but(["Newton", "Anderson"], SOLVERS))
def test_lanes_that_leave_one_after_the_other(name, monkeypatch):
    compile_with(monkeypatch, "aot_eager")
    equation, fn, solver = SOLVERS[name]
    scales = torch.logspace(-3, 0.5, len(X), dtype=torch.float64).unsqueeze(-1)

    def call(compiled, x, W):
        start = torch.zeros_like(x)
        return equation(fn, start, (x, W), solver=solver(compile=compiled), **LANES)

    sol = agree(call, scales * X, W)
    assert sol.iterations.min() < sol.iterations.max()
    # the whole batch, and buckets of any smaller size
    assert graphs() <= 4


def test_one_lane_that_is_left_is_gathered_once(monkeypatch):
    """It goes on in the smallest bucket, whose other places only pad."""
    sizes, take = [], EquationProblem.take

    def counted(problem, index):
        sizes.append(len(index))
        return take(problem, index)

    monkeypatch.setattr(EquationProblem, "take", counted)
    start = torch.zeros_like(X)
    start[7] = 1e6

    def cubic(z, x, W):
        return z**3 + torch.tanh(z @ W.T) + z - x

    def call(compiled, x, W):
        sizes.clear()
        solver = ims.Newton(compile=compiled, halvings=0)
        return ims.root(cubic, start, (x, W), solver=solver, **LANES)

    sol = agree(call, X, W)
    rest = torch.cat([sol.iterations[:7], sol.iterations[8:]])
    assert int(sol.iterations[7]) > int(rest.max()) + 10
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] == 8 and sizes.count(8) == 1


def test_gradient_descent():
    def call(compiled, x, w):
        return ims.minimize(
            lambda z, x, w: ((z - x) ** 2).sum(-1) + w * (z**4).sum(-1),
            torch.zeros_like(x),
            (x, w),
            solver=ims.GradientDescent(0.1, compile=compiled),
            **LANES,
        )

    agree(call, X[:9], torch.tensor(0.2, dtype=torch.float64))


PICARD = ims.FixedPointIteration(compile=True)


def test_each_of_many_functions_has_a_graph():
    count = 12
    for k in range(count):
        fn = eval(f"lambda z, x: {k + 2} / 20 * torch.cos(z) + x")
        for _ in range(3):
            sol = ims.fixed_point(fn, X[0] * 0, (X[0],), solver=PICARD)
            torch.testing.assert_close(fn(sol.value, X[0]), sol.value)
    assert graphs() == len(compiled_step._STEPS) == count


def test_each_of_many_values_in_a_closure_is_respected():
    def scaled(a):
        return lambda z, x: a * torch.cos(z) + x

    # one code object, and more values than Dynamo compiles for by itself
    for k in range(12):
        fn = scaled((k + 2) / 20)
        sol = ims.fixed_point(fn, X[0] * 0, (X[0],), solver=PICARD)
        torch.testing.assert_close(fn(sol.value, X[0]), sol.value)
    assert len(compiled_step._STEPS) == 1


def test_too_many_graphs_for_one_function_are_an_error(monkeypatch):
    monkeypatch.setattr(compiled_step, "LIMIT", 3)

    def of(kind):
        return lambda z, x: 0.3 * kind(z) + x

    kinds = [torch.sin, torch.cos, torch.tanh, torch.atan]
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        for kind in kinds:
            ims.fixed_point(of(kind), X[0] * 0, (X[0],), solver=PICARD)


def test_a_number_in_a_closure_that_changes_counts():
    shift = 0.0

    def fn(z, x):
        return z**3 + z - x - shift

    for value in (1.0, 2.0, -3.0, 1.0):
        shift = value
        sol = ims.root(fn, X[0] * 0, (X[0],), solver=ims.Newton(compile=True))
        torch.testing.assert_close(fn(sol.value, X[0]), torch.zeros_like(X[0]))


def test_a_module_of_which_there_are_twelve():
    for seed in range(12):
        torch.manual_seed(seed)
        cell = nn.Linear(4, 4).double()
        layer = ims.nn.FixedPoint(
            lambda z, x, cell=cell: 0.3 * torch.tanh(cell(z) + x),
            solver=ims.Anderson(compile=True),
            batch_dims=1,
        )
        plain = ims.nn.FixedPoint(layer.cell, batch_dims=1)
        z, expected = layer(X[:3]), plain(X[:3])
        torch.testing.assert_close(z, expected, rtol=1e-9, atol=1e-9)
        for a, b in zip(
            torch.autograd.grad(z.sum(), cell.parameters()),
            torch.autograd.grad(expected.sum(), cell.parameters()),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    assert not counters["unimplemented"]


def test_under_vmap_and_grad():
    def call(compiled, x, W):
        def one(x):
            solver = ims.Newton(compile=compiled)
            return ims.root(lambda z, x, W: torch.tanh(W @ z) + z - x, 0 * x, (x, W), solver=solver)

        return torch.func.vmap(one)(x)

    agree(call, X[:9], W)
    assert graphs() >= 1

    def loss(x, compiled):
        solver = ims.Newton(compile=compiled)
        return (
            ims.root(system, torch.zeros_like(x), (x, W), solver=solver, **LANES).value ** 2
        ).sum()

    for transform in (torch.func.grad, torch.func.jacfwd):
        torch.testing.assert_close(transform(loss)(X[:3], True), transform(loss)(X[:3], False))
    hessians = [torch.func.hessian(loss)(X[:1], compiled) for compiled in (True, False)]
    torch.testing.assert_close(*hessians)


def test_captured_tensors_under_transforms():
    def one(x, w, compiled):
        # w is batched or differentiated, and only captured
        solver = ims.Newton(compile=compiled)
        return ims.root(lambda z: z**3 + w * z - x, torch.zeros_like(x), solver=solver).value

    w = X[:9, 0] ** 2
    got, expected = (
        torch.func.vmap(lambda x, w, c=c: one(x, w, c))(X[:9], w) for c in (True, False)
    )
    torch.testing.assert_close(got, expected)
    got, expected = (
        torch.func.grad(lambda w, c=c: one(X[0], w, c).sum())(w[0]) for c in (True, False)
    )
    torch.testing.assert_close(got, expected)


def test_failures_are_raised_and_masked_as_ever():
    x = torch.tensor([[2.0], [-9.0], [float("nan")], [5.0]], dtype=torch.float64)

    def call(compiled, policy):
        return ims.root(
            lambda z, x: z**2 - x,
            torch.ones_like(x),
            (x,),
            solver=ims.Newton(max_steps=30, compile=compiled),
            on_failure=policy,
            **{"batch_dims": 1, "in_dims": (0,)},
        )

    with pytest.raises(ims.ConvergenceError, match="lane 1: "):
        call(True, "raise")
    assert torch.equal(call(True, "mask").status, call(False, "mask").status)


@pytest.mark.parametrize("adjoint", [ims.OneStepAdjoint(), ims.UnrolledAdjoint()])
def test_adjoints(adjoint):
    def call(compiled, x, W):
        solver = ims.FixedPointIteration(compile=compiled)
        start = torch.zeros_like(x)
        return ims.fixed_point(contraction, start, (x, W), solver=solver, adjoint=adjoint, **LANES)

    agree(call, X[:5], W)


def test_what_cannot_be_traced_is_an_error():
    def fn(z, x):
        return z - x if float(z.sum()) > 100 else z - 2 * x

    with pytest.raises(torch._dynamo.exc.TorchDynamoException) as caught:
        ims.root(fn, X[0] * 0, (X[0],), solver=ims.Newton(compile=True))
    assert "leave compile out" in caught.value.__notes__[0]


def test_a_function_that_goes_takes_its_graph_along():
    class Equation:
        def __call__(self, z, x):
            return z**3 + z - x

    fn = Equation()
    ims.root(fn, X[0] * 0, (X[0],), solver=ims.Newton(compile=True))
    assert fn in compiled_step._STEPS
    del fn
    gc.collect()
    assert not compiled_step._STEPS
