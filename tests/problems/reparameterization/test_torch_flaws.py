"""Where ``torch.distributions`` has been seen to be wrong: ours is right."""

import pytest
import scipy.stats
import torch

from implicit_solvers.problems.reparameterization import Beta, Dirichlet, StudentT


def test_beta_in_float32_is_finite_for_large_parameters():
    torch.manual_seed(4)
    a = torch.linspace(66_000, 66_576, 577).requires_grad_()
    b = torch.full_like(a, 3.0).requires_grad_()
    x = Beta(a, b).rsample()
    gradients = torch.autograd.grad(x.sum(), (a, b))
    torch.manual_seed(4)
    exact = [t.detach().double().requires_grad_() for t in (a, b)]
    wanted = torch.autograd.grad(Beta(*exact).rsample().sum(), exact)
    for ours, theirs in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_student_t_of_few_degrees_of_freedom_is_finite(dtype):
    """``|t|`` overflows in float32 with a probability of 1 %; a bounded function has a gradient."""
    torch.manual_seed(5)
    df = torch.full((20_000,), 0.05, dtype=dtype, requires_grad=True)
    t = StudentT(df).rsample()
    assert t.isfinite().all()
    (gradient,) = torch.autograd.grad(t.atan().sum(), df, retain_graph=True)
    assert gradient.isfinite().all()
    (by_df,) = torch.autograd.grad(t.sign().mul(t.abs().log()).sum() + t.atan().sum(), df)
    assert by_df.isfinite().all()
    assert StudentT(df).log_prob(t).isfinite().all()


def test_a_dirichlet_vector_of_tiny_parameters_is_never_uniform():
    torch.manual_seed(6)
    concentration = torch.full((3,), 1e-3, dtype=torch.float64, requires_grad=True)
    z = Dirichlet(concentration).rsample((20_000,))
    assert not ((z - 1 / 3).abs() < 1e-6).all(-1).any()
    margin = scipy.stats.beta(1e-3, 2e-3)
    for p in (1e-30, 0.5):
        share = (z > p).double().mean(0)
        expected = margin.sf(p)
        assert bool(((share - expected).abs() < 4 * (expected / len(z)) ** 0.5).all())
    # E[z_0 (1 - z_0)] = 2 a^2 / (3 a)^2 / (3 a + 1), its derivative by a common a
    (gradient,) = torch.autograd.grad((z[:, 0] * (1 - z[:, 0])).mean(), concentration)
    assert gradient.isfinite().all()
