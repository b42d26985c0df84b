"""A function with a solve inside, compiled and not: values, statuses, gradients."""

import pytest
import torch


def nightly_but(daily, cases):
    """Return the cases, marked for the nightly run but for the ``daily`` ones: tracing is slow."""
    return [c if c in daily else pytest.param(c, marks=pytest.mark.nightly) for c in cases]


def evaluated(fn, inputs, parameters):
    """Return what ``fn`` returns, a solution, and the gradients of a loss in its value."""
    leaves = [
        t.clone().requires_grad_() if t.is_floating_point() or t.is_complex() else t for t in inputs
    ]
    wrt = [t for t in leaves if t.requires_grad] + list(parameters)
    solution = fn(*leaves)
    weights = torch.linspace(0.5, 1.5, solution.value.numel(), dtype=solution.value.dtype)
    value = solution.value.nan_to_num(0.0, 0.0, 0.0)
    loss = (weights.reshape(value.shape) * value**2).sum()
    return solution, torch.autograd.grad(loss, wrt)


def agree(fn, inputs, parameters=(), *, backend="eager", dynamic=None, steps=1, factor=1.0):
    """Assert that ``fn``, compiled in one graph, does what it does eagerly; return both results."""
    compiled = torch.compile(fn, fullgraph=True, backend=backend, dynamic=dynamic)
    expected, expected_gradients = evaluated(fn, inputs, parameters)
    actual, gradients = evaluated(compiled, inputs, parameters)
    torch.testing.assert_close(actual.status, expected.status)
    torch.testing.assert_close(actual.converged, expected.converged)
    assert int((actual.iterations - expected.iterations).abs().max()) <= steps
    # where counts differ, both are within the tolerance of the solve
    eps = torch.finfo(actual.value.dtype).eps
    same = torch.equal(actual.iterations, expected.iterations)
    tolerance = factor * (1e3 * eps if same else 10 * eps**0.75)
    close = {"rtol": tolerance, "atol": tolerance, "equal_nan": True}
    torch.testing.assert_close(actual.value, expected.value, **close)
    torch.testing.assert_close(actual.residual, expected.residual, **close)
    for a, b in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=10 * tolerance, atol=10 * tolerance)
    return (actual, gradients), (expected, expected_gradients)
