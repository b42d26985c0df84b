"""Derivatives of elementwise functions of any number of arguments, by every mode; errors."""

import itertools

import torch
from torch.autograd import grad, gradcheck, gradgradcheck


def worst(value, expected, scale=None):
    """Return the largest error, relative to ``expected`` or to a scale such as a sum of terms."""
    value, scale = value.detach(), expected.abs() if scale is None else scale
    assert value.shape == expected.shape and not value.isnan().any()
    # an error that is not representable is none, where the scale underflows too
    error = ((value - expected).abs() - 1e-290).clamp(min=0)
    error = torch.where(value == expected, 0.0, error / scale)
    return float(error.nan_to_num(torch.inf, posinf=torch.inf).max()) if error.numel() else 0.0


def leaves(*tensors):
    """Return copies that record gradients."""
    return [t.clone().requires_grad_() for t in tensors]


def derivatives(function, *args, order=2):
    """Return value, first and (nested) second derivatives by all arguments, elementwise."""
    args = leaves(*args)
    value = function(*args)
    first = grad(value.sum(), args, create_graph=order > 1, materialize_grads=True)
    second = [
        grad(s.sum(), args, retain_graph=True, materialize_grads=True)
        for s in (first if order > 1 else ())
    ]
    return value.detach(), [s.detach() for s in first], second


def check_every_mode(function, *args, orders=2):
    """Check all words of forward and reverse mode up to an order, also under vmap."""
    func, numbers = torch.func, tuple(range(len(args)))
    modes = ("check_forward_ad", "check_batched_grad", "check_batched_forward_grad", "fast_mode")
    assert gradcheck(function, leaves(*args), **dict.fromkeys(modes, True))
    gradients = func.grad(lambda *args: function(*args).sum(), numbers)(*args)
    ones = tuple(map(torch.ones_like, args))
    pushed = func.jvp(function, args, ones)[1]
    torch.testing.assert_close(pushed, sum(gradients), rtol=1e-10, atol=1e-14)
    lanes = func.vmap(func.grad(function, numbers))(*args)
    torch.testing.assert_close(lanes, gradients, rtol=1e-12, atol=0)
    if orders == 1:
        return
    modes = ("check_fwd_over_rev", "check_rev_over_rev", "check_batched_grad", "fast_mode")
    assert gradgradcheck(function, leaves(*args), **dict.fromkeys(modes, True))
    _, _, second = derivatives(function, *args)
    expected = torch.stack([torch.stack(row, -1) for row in second], -2)
    # of products of inputs of both signs: their rounding
    close = {"rtol": 1e-9, "atol": 1e-12}
    for outer, inner in itertools.product((func.jacfwd, func.jacrev), repeat=2):
        hessian = func.vmap(outer(inner(lambda v: function(*v))))(torch.stack(args, -1))
        torch.testing.assert_close(hessian, expected, **close)
    once = lambda *args: func.jvp(function, args, ones)[1]
    twice = func.jvp(once, args, ones)[1]
    torch.testing.assert_close(twice, expected.sum((-1, -2)), **close)
