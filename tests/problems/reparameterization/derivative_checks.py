"""What the tests of special functions of two arguments have in common."""

from pathlib import Path

import numpy as np
import torch
from torch.autograd import gradcheck, gradgradcheck

GRIDS = Path(__file__).parent / "grids"
COLUMNS = "x p tail log_tail f log_f G G_p G_x F_pp F_px F_xx G_p_terms G_x_terms F_px_terms"


def load(name, key="grid", columns=COLUMNS):
    """Return a grid as a dictionary of float64 columns."""
    with np.load(GRIDS / f"{name}.npz") as arrays:
        table = torch.from_numpy(arrays[key])
    return dict(zip(columns.split(), table.T.contiguous(), strict=True))


def worst(value, expected, terms=None):
    """Return the largest error, relative to ``expected`` or to a sum of terms."""
    scale = expected.abs() if terms is None else terms
    # where the scale underflows nothing is relative
    error = torch.where(scale > 1e-290, (value - expected).abs() / scale, 0.0)
    assert not error.isnan().any()
    return float(error.max())


def first_derivatives(function, x, p):
    """Return value and first derivatives by x and p, elementwise."""
    x, p = x.clone().requires_grad_(), p.clone().requires_grad_()
    value = function(x, p)
    return value.detach(), *torch.autograd.grad(value.sum(), (x, p))


def derivatives(function, x, p):
    """Return value, first derivatives by x, p, and second ones by xx, xp, px, pp, elementwise."""
    x, p = x.clone().requires_grad_(), p.clone().requires_grad_()
    value = function(x, p)
    by_x, by_p = torch.autograd.grad(value.sum(), (x, p), create_graph=True)
    second = [
        *torch.autograd.grad(by_x.sum(), (x, p), retain_graph=True),
        *torch.autograd.grad(by_p.sum(), (x, p)),
    ]
    return [t.detach() for t in (value, by_x, by_p, *second)]


def slope_and_curvature(function, p):
    """Return first and second derivatives of an elementwise function of one argument."""
    p = p.clone().requires_grad_()
    (slope,) = torch.autograd.grad(function(p).sum(), p, create_graph=True)
    return slope.detach(), torch.autograd.grad(slope.sum(), p)[0]


def check_every_mode(function, x, p, orders=2):
    """Check all words of forward and reverse mode up to an order, also under vmap."""
    func = torch.func
    arguments = (x.clone().requires_grad_(), p.clone().requires_grad_())
    modes = {
        "check_forward_ad": True,
        "check_batched_grad": True,
        "check_batched_forward_grad": True,
        "fast_mode": True,
    }
    assert gradcheck(function, arguments, **modes)
    gradients = func.grad(lambda x, p: function(x, p).sum(), argnums=(0, 1))(x, p)
    ones = torch.ones_like(x), torch.ones_like(p)
    pushed = func.jvp(function, (x, p), ones)[1]
    torch.testing.assert_close(pushed, sum(gradients), rtol=1e-10, atol=0)
    lanes = func.vmap(func.grad(function, argnums=(0, 1)))(x, p)
    torch.testing.assert_close(lanes, gradients, rtol=1e-12, atol=0)
    if orders == 1:
        return
    assert gradgradcheck(function, arguments, check_fwd_over_rev=True, fast_mode=True)
    xx, xp, px, pp = derivatives(function, x, p)[3:]
    expected = torch.stack([torch.stack([xx, xp], -1), torch.stack([px, pp], -1)], -2)
    for outer, inner in [
        (func.jacfwd, func.jacrev),
        (func.jacrev, func.jacrev),
        (func.jacfwd, func.jacfwd),
        (func.jacrev, func.jacfwd),
    ]:
        hessian = func.vmap(outer(inner(lambda v: function(v[0], v[1]))))(torch.stack([x, p], -1))
        torch.testing.assert_close(hessian, expected, rtol=1e-9, atol=1e-12)
    once = lambda x, p: func.jvp(function, (x, p), ones)[1]
    twice = func.jvp(once, (x, p), ones)[1]
    torch.testing.assert_close(twice, expected.sum((-1, -2)), rtol=1e-9, atol=1e-12)
