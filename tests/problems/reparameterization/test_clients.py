"""The distributions in other people's code: Pyro, GPyTorch, torch's wrappers, vmap, compilation."""

import math
import re
from pathlib import Path

import pytest
import torch
from torch import distributions as td
from torch.autograd import grad

from implicit_solvers.compiling import COMPILES
from implicit_solvers.problems import reparameterization as dist
from tests.problems.reparameterization.cases import UNIVARIATE, double

# ------------------------------------------------------------------------------------- torch


def test_a_transformed_variable_moves_with_its_base():
    a, rate, low, scale = double(2.3, 1.7, 0.5, 3.0, requires_grad=True)
    transforms = [td.AffineTransform(low, scale), td.ExpTransform()]
    q = td.TransformedDistribution(dist.Gamma(a, rate), transforms)
    torch.manual_seed(0)
    x = q.rsample((100,))
    torch.manual_seed(0)
    z = dist.Gamma(a, rate).rsample((100,))
    expected = grad((low + scale * z).exp().log().sum(), (a, rate, low, scale))
    for found, wanted in zip(grad(x.log().sum(), (a, rate, low, scale)), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=0)
    value = double(40.0)[0]
    exact = dist.Gamma(a, rate).log_prob((value.log() - low) / scale)
    exact = exact - scale.log() - value.log()
    torch.testing.assert_close(q.log_prob(value), exact, rtol=1e-12, atol=0)


def test_independent_variables():
    a, b = double([0.5, 2.0, 7.0], [1.0, 2.0, 3.0], requires_grad=True)
    q = td.Independent(dist.Beta(a, b), 1)
    torch.manual_seed(0)
    x = q.rsample((5,))
    torch.manual_seed(0)
    again = dist.Beta(a, b).rsample((5,))
    assert x.shape == (5, 3) and q.event_shape == (3,) and torch.equal(x, again)
    torch.testing.assert_close(q.log_prob(x), dist.Beta(a, b).log_prob(x).sum(-1))
    torch.testing.assert_close(grad(x.sum(), (a, b)), grad(again.sum(), (a, b)))


# -------------------------------------------------------------------------------------- vmap


@pytest.mark.parametrize("name", ["gamma", "gamma-small", "beta", "student_t", "von_mises"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "lanes"])
def test_lanes_with_the_same_randomness_are_equal(name, shared):
    case = UNIVARIATE[name]
    lanes = [p.expand(4) for p in double(*case.parameters)]

    def lane(_, *p):
        return case(*(double(*case.parameters) if shared else p)).rsample((3,))

    draw = torch.func.vmap(lane, randomness="same")
    first = draw(torch.zeros(4), *lanes)
    assert (first == first[0]).all() and len(first[0].unique()) == 3
    assert (draw(torch.zeros(4), *lanes) != first).all()  # the generator goes on
    other = torch.func.vmap(lane, randomness="different")(torch.zeros(4), *lanes)
    assert len(other.unique()) == 12


# --------------------------------------------------------------------------------- compilation


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gamma", "beta", "student_t", "von_mises", "mixed-normal"])
def test_a_compiled_draw_is_the_eager_one(name):
    """In one graph, as torch's own Gamma; mixtures break it, and torch's StudentT's constructor."""
    case = UNIVARIATE[name]
    parameters = case.leaves

    def draws(*p):
        q = case(*p)
        return torch.stack([q.rsample((50,)), q.rsample((50,))])

    torch._dynamo.reset()
    fullgraph = COMPILES and name in ("gamma", "beta", "von_mises")
    compiled = torch.compile(draws, backend="aot_eager", fullgraph=fullgraph)
    found = []
    for f in (draws, compiled, compiled):
        torch.manual_seed(0)
        z = f(*parameters)
        assert (z[0] != z[1]).all()
        found.append((z, *grad((z * z).sum(), parameters)))
    for eager, *others in zip(*found, strict=True):
        for other in others:
            torch.testing.assert_close(other, eager, rtol=1e-10, atol=1e-12)


# ---------------------------------------------------------------------------------------- Pyro


@pytest.fixture
def pyro():
    pyro = pytest.importorskip("pyro")
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    return pyro


def recipe(word):
    """Run the example of the documentation that names a package."""
    text = (Path(__file__).parents[3] / "docs" / "reparameterization.md").read_text()
    (block,) = re.findall(rf"```{{code-block}} python\nimport {word}\n.*?```", text, re.DOTALL)
    scope = {"torch": torch, "Gamma": dist.Gamma}
    exec(block.partition("\n")[2].removesuffix("```"), scope)
    return scope


def test_the_recipe_for_pyro(pyro):
    scope = recipe("pyro")
    assert scope["rate"].shape == (2,) and len(scope["rate"].unique()) == 2


def mixed_in(kind):
    mixin = pytest.importorskip("pyro.distributions.torch_distribution").TorchDistributionMixin
    return type(kind.__name__, (kind, mixin), {})


def fit(pyro, model, guide, steps=400, lr=0.05, particles=20):
    loss = pyro.infer.Trace_ELBO(num_particles=particles, vectorize_particles=True)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": lr}), loss)
    losses = [svi.step() for _ in range(steps)]
    assert all(map(math.isfinite, losses))
    return losses


def positive(pyro, name, value):
    constraint = td.constraints.positive
    return pyro.param(name, torch.as_tensor(value), constraint=constraint)


def test_pyro_fits_a_gamma_guide(pyro):
    """Poisson counts: the posterior is Gamma(14, 4) in every one of two plates."""
    Gamma, counts = mixed_in(dist.Gamma), torch.tensor([3.0, 5.0, 4.0])

    def model():
        with pyro.plate("groups", 2):
            rate = pyro.sample("rate", Gamma(torch.tensor(2.0), torch.tensor(1.0)))
        for i, count in enumerate(counts):
            with pyro.plate(f"again{i}", 2):
                pyro.sample(f"count{i}", pyro.distributions.Poisson(rate), obs=count.expand(2))

    def guide():
        a, rate = positive(pyro, "a", torch.ones(2)), positive(pyro, "rate_", torch.ones(2))
        with pyro.plate("groups", 2):
            pyro.sample("rate", Gamma(a, rate))

    fit(pyro, model, guide)
    a, rate = pyro.param("a"), pyro.param("rate_")
    torch.testing.assert_close(a / rate, torch.full((2,), 3.5), rtol=0.05, atol=0)


def test_pyro_fits_directions(pyro):
    """A von Mises prior and observations of one concentration have a von Mises posterior."""
    VonMises, angles = mixed_in(dist.VonMises), torch.tensor([2.9, -3.0, 2.5])

    def model():
        mean = pyro.sample("mean", VonMises(torch.zeros(1), torch.full((1,), 0.1)).to_event(1))
        for i, angle in enumerate(angles):
            pyro.sample(f"angle{i}", VonMises(mean, 4.0).to_event(1), obs=angle.expand(1))

    def guide():
        loc = pyro.param("loc", torch.full((1,), 2.0))
        pyro.sample("mean", VonMises(loc, positive(pyro, "k", torch.ones(1))).to_event(1))

    fit(pyro, model, guide)
    sine, cosine = (4 * f(angles).sum() for f in (torch.sin, torch.cos))
    exact, k = torch.atan2(sine, cosine + 0.1), torch.hypot(sine, cosine + 0.1)
    gap = torch.remainder(pyro.param("loc") - exact + math.pi, 2 * math.pi) - math.pi
    assert gap.abs().item() < 0.05 and abs(pyro.param("k").item() / k.item() - 1) < 0.25


def test_pyro_fits_a_mixture_guide(pyro):
    """A target of two modes; the guide's weights get gradients."""
    Mixture, Normal = mixed_in(dist.MixtureSameFamily), pyro.distributions.Normal
    Categorical = pyro.distributions.Categorical
    target = ([0.8, 0.2], [-2.0, 2.0])

    def model():
        weights, loc = map(torch.tensor, target)
        pyro.sample("z", Mixture(Categorical(weights), Normal(loc, 0.5)))

    def guide():
        logits, loc = (
            pyro.param("logits", torch.zeros(2)),
            pyro.param("loc", torch.tensor([-1.0, 1.0])),
        )
        pyro.sample("z", Mixture(Categorical(logits=logits), td.Normal(loc, 0.5)))

    fit(pyro, model, guide)
    torch.testing.assert_close(
        pyro.param("logits").softmax(-1), torch.tensor(target[0]), atol=0.05, rtol=0
    )
    torch.testing.assert_close(pyro.param("loc"), torch.tensor(target[1]), atol=0.1, rtol=0)


BOUNDED = {
    "gamma": (dist.Gamma, (3.0, 2.0), 1.5),
    "beta": (dist.Beta, (2.0, 3.0), 0.4),
    "truncated": (dist.TruncatedNormal, (0.0, 1.0, 0.0, 2.0), 0.7225),
    "half_open": (dist.TruncatedNormal, (0.0, 1.0, 0.5, torch.inf), 1.1411),
    "inverse_gaussian": (dist.InverseGaussian, (1.0, 3.0), 1.0),
}


def bounded(pyro, name):
    kind, parameters, mean = BOUNDED[name]
    q = mixed_in(kind)(*map(torch.tensor, parameters))
    return lambda: pyro.sample("z", q), mean


@pytest.mark.parametrize("name", BOUNDED)
def test_pyro_guides_itself_over_bounded_supports(pyro, name):
    model, mean = bounded(pyro, name)
    guide = pyro.infer.autoguide.AutoNormal(model)
    fit(pyro, model, guide, steps=150)
    quantiles = guide.quantiles([0.05, 0.5, 0.95])["z"]
    low, middle, high = (float(x) for x in quantiles)
    assert low < mean < high and low < middle < high


@pytest.mark.slow
@pytest.mark.parametrize("name", BOUNDED)
def test_pyro_walks_over_bounded_supports(pyro, name):
    """NUTS."""
    model, mean = bounded(pyro, name)
    chain = pyro.infer.MCMC(
        pyro.infer.NUTS(model), num_samples=400, warmup_steps=100, disable_progbar=True
    )
    chain.run()
    z = chain.get_samples()["z"]
    # an effective sample in four
    assert abs(z.mean() - mean) < 5 * z.std() / 100**0.5


# ------------------------------------------------------------------------------------- GPyTorch


def test_a_prior_of_a_kernel():
    gpytorch = pytest.importorskip("gpytorch")

    GammaPrior = recipe("gpytorch")["GammaPrior"]

    class Model(gpytorch.models.ExactGP):
        def __init__(self, x, y, likelihood, prior):
            super().__init__(x, y, likelihood)
            self.mean_module = gpytorch.means.ConstantMean()
            self.covar_module = gpytorch.kernels.RBFKernel(lengthscale_prior=prior)

        def forward(self, x):
            return gpytorch.distributions.MultivariateNormal(
                self.mean_module(x), self.covar_module(x)
            )

    x = torch.linspace(0, 1, 10)
    slopes = []
    for kind in (gpytorch.priors.GammaPrior, GammaPrior):
        prior = kind(torch.tensor(3.0), torch.tensor(6.0))
        likelihood = gpytorch.likelihoods.GaussianLikelihood()
        model = Model(x, (6 * x).sin(), likelihood, prior)
        model.train()
        loss = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
        loss(model(x), model.train_targets).backward()
        slopes.append(model.covar_module.raw_lengthscale.grad)
    torch.testing.assert_close(*slopes)
    model.covar_module.sample_from_prior("lengthscale_prior")
