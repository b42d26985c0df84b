"""What every distribution with implicit derivatives must pass."""

import itertools

import numpy as np
import torch
from scipy import integrate, stats
from torch.autograd import grad, gradcheck, gradgradcheck

from implicit_solvers.problems.reparameterization import ImplicitReparameterization
from implicit_solvers.testing import check_implicit_gradients

SAMPLES = 100_000
SLOPES = 20_000
COSTS = {
    "square": (torch.square, np.square),
    "sine": (torch.sin, np.sin),
    "bell": (lambda z: (-z * z).exp(), lambda z: np.exp(-z * z)),
}


def double(*values, requires_grad=False):
    return tuple(torch.tensor(v, dtype=torch.float64, requires_grad=requires_grad) for v in values)


def check_distribution(q, transform):
    """Kolmogorov and Smirnov's test of 10^5 samples; each margin of the transform is uniform."""
    torch.manual_seed(1)
    with torch.no_grad():
        u = transform(q.rsample((SAMPLES,))).reshape(SAMPLES, -1).numpy()
    for margin in u.T:
        assert stats.kstest(margin, "uniform").pvalue > 1e-4


def estimates(make, parameters, cost, count=SLOPES):
    """Mean and standard error of dE[cost]/dphi, for the entries of each parameter."""
    torch.manual_seed(2)
    lanes = [p.expand(count, *p.shape).clone().requires_grad_() for p in parameters]
    z = make(*lanes).rsample()
    slopes = [s.reshape(count, -1) for s in grad(cost(z).sum(), lanes)]
    return [(s.mean(0).numpy(), s.std(0).numpy() / count**0.5) for s in slopes]


def check_expectations(make, parameters, density, interval, breaks=()):
    """Compare with differences of SciPy's quadrature of ``cost(z) density(z, *parameters)``."""
    for cost, numpy_cost in COSTS.values():
        found = estimates(make, parameters, cost)
        flat = np.concatenate([p.reshape(-1).numpy() for p in parameters])

        def expectation(flat, numpy_cost=numpy_cost):
            pieces, start = [], 0
            for p in parameters:
                pieces.append(flat[start : start + p.numel()].reshape(p.shape))
                start += p.numel()
            lo, hi = interval(*pieces)
            f = lambda z: numpy_cost(z) * density(z, *pieces)
            ends = [lo, *breaks, hi]
            return sum(
                integrate.quad(f, a, b, epsabs=1e-11, limit=200)[0]
                for a, b in itertools.pairwise(ends)
            )

        h = 1e-4 * np.eye(len(flat))
        exact = [(expectation(flat + e) - expectation(flat - e)) / 2e-4 for e in h]
        mean = np.concatenate([m for m, _ in found])
        error = np.concatenate([e for _, e in found])
        # the differences themselves are right to about 1e-7
        assert (np.abs(mean - exact) < 4 * error + 1e-6).all()


def check_orders(quantile, parameters):
    """First and second derivatives with the noise held fixed, in reverse and forward mode."""
    leaves = [p.clone().requires_grad_() for p in parameters]
    assert gradcheck(quantile, leaves, fast_mode=True, check_forward_ad=True)
    assert gradgradcheck(quantile, leaves, fast_mode=True)


def check_gradients(layer, parameters, **options):
    """`check_implicit_gradients` of a layer.

    It judges by what rounding changes in a result; where ``F`` is a sum of several terms, that is
    some times more: errors of 1e-9 are none.
    """
    report = check_implicit_gradients(layer, None, parameters, **options)
    for entry in report.failures:
        assert entry.error is not None and entry.error < 1e-9, str(report)


def check_identity(make, parameters, transform, shape=(20,)):
    """``F(z(phi); phi)`` does not change with ``phi``, nor does its derivative."""
    leaves = [p.clone().requires_grad_() for p in parameters]
    q = make(*leaves)
    u = transform(q, q.rsample(shape))
    slopes = grad(u.sum(), leaves, create_graph=True)
    curvatures = grad(sum(s.sum() for s in slopes), leaves, materialize_grads=True)
    for slope, curvature in zip(slopes, curvatures, strict=True):
        assert slope.abs().max() < 1e-8
        assert curvature.abs().max() < 1e-7


def check_lanes(make, parameters):
    """vmap draws for every lane, with the gradients of the lane alone."""
    lanes = [torch.stack([p, p, p]) for p in parameters]
    numbers = tuple(range(len(parameters)))

    def total(*parameters):
        z = make(*parameters).rsample((2,))
        return z.sum(), z

    slope = torch.func.grad(total, argnums=numbers, has_aux=True)
    slopes, z = torch.func.vmap(slope, randomness="different")(*lanes)
    assert z.shape[:2] == (3, 2) and not torch.equal(z[0], z[1])
    for i in range(3):
        attached = [p[i].clone().requires_grad_() for p in lanes]
        expected = grad(fixed(make(*attached), z[i]).sum(), attached)
        for s, e in zip(slopes, expected, strict=True):
            torch.testing.assert_close(s[i], e, rtol=1e-8, atol=1e-10)


def fixed(q, z):
    """The same samples, attached by the tool."""
    return ImplicitReparameterization(q, validate_args=False).attach(z)


def check_single(make, parameters):
    """float32 in, float32 out, with the derivatives of float64."""
    single = [p.float().requires_grad_() for p in parameters]
    q = make(*single)
    z = q.rsample((50,))
    assert z.dtype == torch.float32 and q.log_prob(z).dtype == torch.float32
    slopes = grad(z.sum(), single)
    leaves = [p.clone().requires_grad_() for p in parameters]
    expected = grad(fixed(make(*leaves), z.detach().double()).sum(), leaves)
    for s, e in zip(slopes, expected, strict=True):
        torch.testing.assert_close(s.double(), e, rtol=2e-3, atol=2e-3)
