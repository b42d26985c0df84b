"""Mixtures, beyond what `test_distributions` asks of all: formulas, tails, entropies, shapes."""

import mpmath as mp
import numpy as np
import pytest
import torch
from scipy import stats
from torch import distributions as td
from torch.autograd import grad

from implicit_solvers.problems.reparameterization import (
    Beta,
    Dirichlet,
    Gamma,
    MixtureSameFamily,
    MultivariateStudentT,
    StudentT,
    Truncated,
    VonMises,
)
from tests.problems.reparameterization.cases import (
    LINE,
    LOGITS,
    assert_constant,
    assert_uniform,
    check_expectations,
    double,
    fixed,
    mixture,
)

normals = mixture(td.Normal)


def test_components_that_do_not_reach_a_sample():
    """A component far away has no part in it, and nothing is NaN."""
    leaves = double([0.0, 0.0], [3.0, 5.0], [0.0, 1e200], [1.0, 1.0], requires_grad=True)
    q = mixture(StudentT)(*leaves, validate_args=False)
    q.sample = lambda _: torch.tensor([0.5, -1e100, 1e150], dtype=torch.float64)
    z = q.rsample((3,))
    slopes = torch.autograd.grad(z[0], leaves, retain_graph=True)
    assert all(bool(s.isfinite().all()) for s in slopes)
    torch.testing.assert_close(slopes[2], torch.tensor([1.0, 0.0], dtype=torch.float64))
    for i in (1, 2):
        assert not any(
            s.isnan().any() for s in torch.autograd.grad(z[i], leaves, retain_graph=True)
        )


def test_the_paper_formula():
    """dz = sum_k r_k dz_k - sum_k F_k dw_k / q."""
    logits, loc, scale = double(LOGITS, *LINE, requires_grad=True)
    z = normals(logits, loc, scale).rsample((50,))
    by_logits, by_loc, by_scale = torch.autograd.grad(z.sum(), (logits, loc, scale))
    z, w = z.detach().numpy()[:, None], logits.detach().softmax(-1).numpy()
    m, s = loc.detach().numpy(), scale.detach().numpy()
    joint = w * stats.norm.pdf(z, m, s)
    q = joint.sum(-1, keepdims=True)
    below = stats.norm.cdf(z, m, s)
    weights = -w * (below - (w * below).sum(-1, keepdims=True)) / q
    np.testing.assert_allclose(by_loc.numpy(), (joint / q).sum(0), rtol=1e-9)
    np.testing.assert_allclose(by_scale.numpy(), (joint / q * (z - m) / s).sum(0), rtol=1e-9)
    np.testing.assert_allclose(by_logits.numpy(), weights.sum(0), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("far", [9.0, -9.0])
def test_weights_move_samples_in_both_tails(far):
    """Far out, one component remains: dz = -(1 - F_k) dw_k / q and its mirror image."""
    logits, loc, scale = double([0.0, 0.0], [0.0, 0.0], [1.0, 0.5], requires_grad=True)
    q = normals(logits, loc, scale)
    place = torch.tensor(far, dtype=torch.float64)
    slope, again = (
        grad(z, logits, retain_graph=True)[0] for z in (fixed(q, place), q._attach(place))
    )
    torch.testing.assert_close(again, slope, rtol=1e-12, atol=0)
    # with w = 1/2 the tail is that of the first component; dw_1 = dlogit_1 / 4 - dlogit_2 / 4
    tail = np.sign(far) * stats.norm.sf(9.0) / (2 * stats.norm.pdf(9.0))
    np.testing.assert_allclose(slope.numpy(), [tail, -tail], rtol=1e-10)


def test_components_on_different_intervals():
    logits, low = double([0.2, -0.1], [0.0, 2.0], requires_grad=True)
    uniform = td.Normal(*double([0.5, 2.5], [1.0, 1.0]), validate_args=False)
    kind = lambda low, validate_args: Truncated(uniform, low, low + 1, validate_args)
    q = mixture(kind)(logits, low, validate_args=False)
    z = q.rsample((20,))
    for slope in torch.autograd.grad(z.sum(), (logits, low)):
        assert slope.isfinite().all()


def test_shapes_of_broadcast_and_of_matrix_components():
    component = td.Normal(torch.zeros(3, 2), torch.ones(2))
    q = MixtureSameFamily(td.Categorical(torch.ones(2)), component).expand((4, 3))
    assert q.rsample((5,)).shape == (5, 4, 3) and q.entropy().shape == (4, 3)
    matrix = td.Independent(td.Normal(torch.zeros(2, 3, 2), 1.0), 2)
    q = MixtureSameFamily(td.Categorical(torch.ones(2)), matrix)
    assert q.rsample((5,)).shape == (5, 3, 2) and q.rosenblatt(q.sample()).shape == (3, 2)


WEIGHTS = [0.3, -0.2, 0.1]
SHARES = [[1.0, 2.0, 3.0], [4.0, 1.0, 2.0]]
PLACES = [[0.0, 1.0], [2.0, -1.0], [-1.0, 0.5]]


def heavy(loc, validate_args=None):
    df, factor = double([5.0, 8.0, 3.0], [[1.0, 0.0], [0.5, 0.8]])
    df, factor = df.expand(loc.shape[:-1]), factor.expand(*loc.shape[:-1], 2, 2)
    return MultivariateStudentT(df, loc, factor, validate_args=False)


def mean_share(logits, a):
    return (logits.softmax(-1) * a[..., 1] / a.sum(-1)).sum(-1)


def mean_square(logits, a):
    total = a.sum(-1)
    return (logits.softmax(-1) * a[..., 0] * (a[..., 0] + 1) / total / (total + 1)).sum(-1)


VECTORS = {
    "dirichlet": (
        mixture(Dirichlet),
        (WEIGHTS[:2], SHARES),
        [
            (lambda z: z[..., 1], mean_share),
            (lambda z: z[..., 0] ** 2, mean_square),
        ],
    ),
    "student_t": (
        mixture(heavy),
        (WEIGHTS, PLACES),
        [(lambda z: z[..., 1], lambda w, loc: (w.softmax(-1) * loc[..., 1]).sum(-1))],
    ),
}


@pytest.mark.parametrize("make, parameters, rows", VECTORS.values(), ids=VECTORS)
def test_components_with_a_rosenblatt_transform(make, parameters, rows):
    logits, p = double(*parameters, requires_grad=True)
    q = make(logits, p, validate_args=False)
    torch.manual_seed(3)
    z = q.rsample((5000,))
    u = q.rosenblatt(z)
    assert_uniform(u)
    assert_constant(u[:200], (logits, p), orders=1, rounding=1e-6)
    check_expectations(
        lambda *p: make(*p, validate_args=False), double(*parameters), rows, count=4000
    )


def test_components_without_a_sampler():
    class Square(td.Distribution):
        arg_constraints, support = {}, td.constraints.unit_interval

        def __init__(self, power):
            self.power = power
            super().__init__(power.shape, validate_args=False)

        def cdf(self, z):
            return z**self.power

    logits, power = double([0.3, -0.2], [0.5, 3.0], requires_grad=True)
    q = MixtureSameFamily(td.Categorical(logits=logits), Square(power))
    torch.manual_seed(0)
    z = q.rsample((2000,))
    assert_uniform((logits.softmax(-1) * z.unsqueeze(-1) ** power).sum(-1))
    assert_constant(q.cdf(z), (logits, power))


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-9), (torch.float32, 1e-6)])
@pytest.mark.parametrize("narrow", [1.0, 1e-2, 1e-4, 1e-8])
def test_entropies_of_components_of_unequal_scale(narrow, dtype, rtol):
    logits, loc = torch.zeros(2, dtype=dtype), torch.tensor([0.25, 0.5], dtype=dtype)
    scale = torch.tensor([1.0, narrow], dtype=dtype)
    density = lambda x: (mp.npdf(x, 0.25, 1) + mp.npdf(x, 0.5, mp.mpf(scale[1].item()))) / 2
    places = sorted({m + k * s for m, s in ((0.25, 1.0), (0.5, narrow)) for k in range(-12, 13)})
    exact = mp.quad(lambda x: -density(x) * mp.log(density(x)), places)
    found = MixtureSameFamily(td.Categorical(logits=logits), td.Normal(loc, scale)).entropy()
    assert found.dtype == dtype
    np.testing.assert_allclose(found.item(), float(exact), rtol=rtol)


SINGULAR = [(Beta, (0.3, 2.0)), (Gamma, (0.1, 2.0))]
HEAVY = [(StudentT, (df, 0.0, 2.0)) for df in (0.2, 0.5, 1.0)]


@pytest.mark.parametrize("kind, parameters", SINGULAR + HEAVY)
def test_entropies_with_singular_ends_and_heavy_tails(kind, parameters):
    """Of two equal components, that of one."""
    both = double(*([p, p] for p in parameters))
    weights = td.Categorical(logits=double([0.0, 0.0])[0])
    found = MixtureSameFamily(weights, kind(*both)).entropy()
    np.testing.assert_allclose(found.item(), kind(*double(*parameters)).entropy().item(), rtol=1e-7)


@pytest.mark.parametrize("concentration", [3.0, 1e4])
def test_the_entropy_of_directions(concentration):
    logits, loc, k = double([0.0, 1.0], [0.3, 2.9], [2.0, concentration], requires_grad=True)
    make = lambda *p: mixture(VonMises)(*p, validate_args=False)
    angles = torch.linspace(-torch.pi, torch.pi, 200_001, dtype=torch.float64)[:-1]
    log_q = make(logits, loc, k).log_prob(angles).detach()
    exact = -2 * torch.pi * (log_q.exp() * log_q).mean()
    torch.testing.assert_close(make(logits, loc, k).entropy().detach(), exact, rtol=1e-11, atol=0.0)
    assert torch.autograd.gradcheck(lambda *p: make(*p).entropy(), (logits, loc, k))
