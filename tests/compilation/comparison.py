"""One way of solving compared with another: values, statuses, gradients, lane by lane."""

import pytest
import torch

import implicit_solvers as ims

COMPILES = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
"""Whether torch can trace a solve."""


def drawn(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def nightly_but(daily, cases):
    """Return the cases, marked for the nightly run but for the ``daily`` ones: tracing is slow."""
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else [case]),
            marks=() if case in daily else pytest.mark.nightly,
        )
        for case in cases
    ]


def evaluated(fn, inputs, parameters=()):
    """Return what ``fn`` returns, a solution, and the gradients of a loss in its value."""
    leaves = [t.clone().requires_grad_() for t in inputs]
    solution = fn(*leaves)
    value = solution.value
    value = (torch.view_as_real(value) if value.is_complex() else value).nan_to_num(0.0, 0.0, 0.0)
    weights = torch.linspace(0.5, 1.5, value.shape[-1] if value.dim() else 1, dtype=value.dtype)
    loss = (weights * value**2).sum()
    return solution, torch.autograd.grad(loss, [*leaves, *parameters])


def compare(actual, expected, inputs, parameters=(), *, steps=1, factor=1.0):
    """Assert that two functions find the same, with the same gradients; return the first's."""
    sol, gradients = evaluated(actual, inputs, parameters)
    other, expected_gradients = evaluated(expected, inputs, parameters)
    torch.testing.assert_close(sol.status, other.status)
    torch.testing.assert_close(sol.converged, other.converged)
    assert int((sol.iterations - other.iterations).abs().max()) <= steps
    # where counts differ, both are within the tolerance of the solve
    eps = torch.finfo(sol.value.dtype).eps
    same = torch.equal(sol.iterations, other.iterations)
    tolerance = factor * (1e3 * eps if same else 10 * eps**0.75)
    close = {"rtol": tolerance, "atol": tolerance, "equal_nan": True}
    torch.testing.assert_close(sol.residual, other.residual, **close)
    # |F|^2 is flat where a lane stalls in a minimum of it: eps of it is the root of eps in z, and
    # the error there, Newton's step by a Jacobian that is singular nearby, has no digits
    stalled = sol.status == int(ims.Status.STALLED)
    flat = {**close, "atol": max(tolerance, eps**0.5)}
    for lanes, within in ((~stalled, close), (stalled, flat)):
        torch.testing.assert_close(sol.value[lanes], other.value[lanes], **within)
    torch.testing.assert_close(sol.error[~stalled], other.error[~stalled], **close)
    assert torch.equal(sol.error[stalled].isfinite(), other.error[stalled].isfinite())
    for a, b in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=10 * tolerance, atol=10 * tolerance)
    return sol, gradients


def agree(fn, inputs, parameters=(), *, backend="eager", **options):
    """Assert that ``fn`` in one graph does what it does eagerly; return what the graph found."""
    compiled = torch.compile(fn, fullgraph=True, backend=backend)
    return compare(compiled, fn, inputs, parameters, **options)


def compare_lanes(actual, expected, inputs, per_lane, bad, **options):
    """Assert that they agree, whichever lanes fail, and that these have no part in gradients.

    ``per_lane`` tells which of the inputs have lanes, ``bad`` are the lanes that fail, the second
    of which is NaN.
    """
    x = inputs[0]
    good = [k for k in range(len(x)) if k not in bad]

    def where(index):
        return [t[index] if lanes else t for t, lanes in zip(inputs, per_lane, strict=True)]

    sol, gradients = compare(actual, expected, inputs, **options)
    assert sol.converged[good].all() and not sol.converged[list(bad)].any()
    assert sol.status[2] == ims.Status.NONFINITE
    for g, lanes in zip(gradients, per_lane, strict=True):
        assert torch.isfinite(g).all() and not (lanes and g[list(bad)].any())
    alone, gradients_alone = evaluated(expected, where(good))
    # both are within the tolerance of the solve
    close = {"rtol": 1e-8, "atol": 1e-8}
    torch.testing.assert_close(sol.value[good], alone.value, **close)
    for g, a, lanes in zip(gradients, gradients_alone, per_lane, strict=True):
        torch.testing.assert_close(g[good] if lanes else g, a, **close)

    # other numbers in the same graph: every lane is solved, or none
    mended = [good[k % len(good)] for k in range(len(x))]
    assert compare(actual, expected, where(mended), **options)[0].converged.all()
    broken = [torch.nan * t if lanes else t for t, lanes in zip(inputs, per_lane, strict=True)]
    none, gradients = compare(actual, expected, broken, **options)
    assert not none.converged.any() and not any(g.any() for g in gradients)
    return sol
