"""What the distributions with implicit derivatives and their special functions refuse."""

from tests.refusals.row import alike

SETUP = """
from torch import distributions as td
import implicit_solvers.problems.reparameterization as ir
from implicit_solvers.problems.reparameterization import estimators, expectations
from implicit_solvers.problems.special_functions import beta, gamma, log_tails, student_t
from implicit_solvers.problems.special_functions import von_mises

class Half(td.Distribution):
    arg_constraints, support = {}, td.constraints.interval(0.0, 2.0)
    def cdf(self, z): return 0.5 * (z / 2) ** 2

class Bare(td.Distribution):
    arg_constraints, support = {}, td.constraints.real
    def __init__(self, *event): super().__init__(torch.Size([2]), torch.Size(event))

class Known(Bare):
    def cdf(self, z): return torch.special.ndtr(z)

class Chain(Bare):
    def rosenblatt(self, z): return torch.special.ndtr(z)

one, two, phi = torch.ones(()), torch.ones(2), torch.tensor([2.0])
even = td.Categorical(two)
vectors = ir.MixtureSameFamily(even, td.Dirichlet(torch.ones(2, 3)))
tool, normal = ir.ImplicitReparameterization, ir.TruncatedNormal
"""
KIND, WRONG = TypeError, ValueError
# fmt: off
# an exception, words, and calls
TABLE = [
    (KIND, "gammainc: pass either z or log_z", "gamma.gammainc(one)"),
    (KIND, "pass either z or log_z", "gamma.gammaincc(one, one, log_z=one)"),
    (KIND, "z has dtype torch.int64; pass a real", "gamma.gammainc(one, torch.tensor(3))"),
    (KIND, "one of a, z must be a tensor", "gamma.gamma_sample_derivative(1.0, 2.0)"),
    (KIND, "betainc: pass either x or logit_x", "beta.betainc(one, one)"),
    (KIND, "pass either x or logit_x", "beta.betaincc(one, one, one, logit_x=one)"),
    (KIND, "b has dtype torch.int64", "beta.betainc(one, torch.tensor(3), one)"),
    (KIND, "a, b, x must be a tensor", "beta.beta_sample_derivatives(1.0, 2.0, 0.5)"),
    (KIND, "student_t_cdf: at least one of t, df", "student_t.student_t_cdf(1.0, 2.0)"),
    (KIND, "von_mises_cdf: at least one of x, co", "von_mises.von_mises_cdf(1.0, 2.0)"),
    (KIND, "cdf: {} is a str; pass a tensor",
     ("student_t.student_t_cdf('1', phi)", "t"), ("von_mises.von_mises_cdf('1', phi)", "x")),
    (KIND, "logcdf: df is a str; pass a", "student_t.student_t_logcdf(one, 'a')"),
    (KIND, "logcdf: x has dtype torch.i", "von_mises.von_mises_logcdf(torch.tensor(1), phi)"),
    (KIND, "must be a tensor",
     "student_t.student_t_log_tail(1.0, 2.0)",
     "student_t.student_t_sample_derivative(2.0, 1.0)",
     "log_tails.log_gamma_tails(0.5, 0.5)", "log_tails.log_beta_tails(0.5, 0.5, 0.5)",
     "log_tails.student_t_log_tails(0.5, 0.5)", "log_tails.von_mises_log_tails(0.5, 0.5)"),
    (KIND, "pass a real floating dtype",
     "student_t.student_t_logsf(torch.tensor(1), phi)",
     "von_mises.von_mises_logsf(torch.tensor(1), phi)"),
    (WRONG, "concentration",
     "ir.Gamma(-1.0, 1.0)", "ir.Beta(math.nan, 1.0)", "ir.Beta(1.0, -1.0)",
     "ir.Dirichlet(torch.tensor([1.0, 0.0]))", "ir.VonMises(one, -one)", "ir.LKJCholesky(4, 0.0)",
     "ir.InverseGaussian(1.0, 0.0)"),
    (WRONG, "rate", "ir.Gamma(1.0, 0.0)"),
    (WRONG, "df", "ir.StudentT(0.0)", "ir.MultivariateStudentT(-1.0, two, torch.eye(2))"),
    (WRONG, "scale", "ir.StudentT(1.0, 0.0, -1.0)", "normal(0.0, -1.0)"),
    (WRONG, "loc",
     "ir.StudentT(1.0, math.nan)", "ir.MultivariateStudentT(1.0, two * math.nan, torch.eye(2))",
     "ir.InverseGaussian(-1.0, 1.0)", "ir.InverseGaussian(math.nan, 1.0)"),
    (WRONG, "dim", "ir.LKJCholesky(1, 1.0)"),
    (WRONG, "scale_tril", "ir.MultivariateStudentT(1.0, two, -torch.eye(2))"),
    (WRONG, "pass a vector", "ir.MultivariateStudentT(1.0, one, torch.eye(1))"),
    (WRONG, "pass (..., 2, 2)", "ir.MultivariateStudentT(1.0, two, torch.eye(3))"),
    (WRONG, "pass low < high", "normal(0.0, 1.0, 3.0, 2.0)", "normal(0.0, 1.0, math.nan)"),
    (KIND, "convert it", "normal(0.0, 1.0, one.double())"),
    (WRONG, "use a continuous relaxation",
     "ir.Truncated(td.Poisson(2.0), 0.0)", "ir.MixtureSameFamily(even, td.Poisson(two))",
     "tool(td.Poisson(2.0))"),
    (WRONG, "pass a univariate distribution", "ir.Truncated(td.Dirichlet(two))"),
    (KIND, "pass a torch.distributions", "ir.Truncated(3.0, 0.0)", "tool(3.0)"),
    (WRONG, "give it log_cdf", "ir.Truncated(td.Laplace(0.0, 1.0), 50.0)"),
    (WRONG, "pass a vector of two numbers",
     "ir.VonMisesFisher(one, 1.0)", "ir.VonMisesFisher(torch.ones(1), 1.0)"),
    (WRONG, "loc", "ir.VonMisesFisher(0 * two, 1.0)", "ir.VonMisesFisher(math.nan * two, 1.0)"),
    (WRONG, "concentration", "ir.VonMisesFisher(two, 0.0)"),
    (WRONG, "support", "ir.VonMisesFisher(two, 1.0).log_prob(two)"),
    (WRONG, "pass distributions of one dimension",
     "td.kl_divergence(ir.VonMisesFisher(two, 1.0), ir.VonMisesFisher(torch.ones(3), 1.0))"),
    (WRONG, "pass the number of variables", "ir.ClaytonCopula(1.0, 1)", "ir.FrankCopula(one, 2.0)"),
    (WRONG, "theta",
     "ir.ClaytonCopula(-1.0)", "ir.FrankCopula(-one, 3)", "ir.FrankCopula(math.nan)",
     "ir.FrankCopula(701.0)"),
    (WRONG, "pass a square matrix", "ir.GaussianCopula(two)"),
    (WRONG, "scale_tril", "ir.GaussianCopula(torch.zeros(2, 2))"),
    (WRONG, "pass one for each",
     "ir.CopulaDistribution(ir.ClaytonCopula(one, 3), td.Normal(two, 1.0))",
     "ir.CopulaDistribution(ir.ClaytonCopula(one), [td.Normal(0.0, 1.0)])"),
    (KIND, "pass one of the copulas", "ir.CopulaDistribution(even, td.Normal(two, 1.0))"),
    (WRONG, "use a continuous relaxation",
     "ir.CopulaDistribution(ir.ClaytonCopula(one), td.Poisson(two))"),
    (WRONG, "pass univariate distributions",
     "ir.CopulaDistribution(ir.ClaytonCopula(one), td.Dirichlet(torch.ones(2, 3)))"),
    (WRONG, "that is too little", "ir.Truncated(td.Exponential(1.0), -2.0, -1.0)"),
    (WRONG, "component", "ir.MixtureSameFamily(even, td.Normal(phi, 1.0))"),
    (NotImplementedError, "use Independent(univariate, n)", "vectors.rsample()"),
    (NotImplementedError, "is a {} without the method {}: define it",
     ("tool(Bare())", "Bare", "cdf"), ("ir.MixtureSameFamily(even, Bare())", "Bare", "cdf"),
     ("ir.MixtureSameFamily(even, Known()).log_prob(one)", "Known", "log_prob"),
     ("ir.MixtureSameFamily(even, Known()).expand((3,))", "Known", "expand")),
    (NotImplementedError, "without the methods sample and inverse_rosenblatt: define one",
     "tool(Chain(3)).rsample()", "ir.MixtureSameFamily(even, Chain(3)).rsample()"),
    (NotImplementedError, "use sample or rsample",
     "ir.MixtureSameFamily(even, ir.Dirichlet(torch.ones(2, 3))).inverse_rosenblatt(two / 2)"),
    (NotImplementedError, "use rosenblatt", "vectors.cdf(torch.ones(3))"),
    (NotImplementedError, "use a Monte Carlo estimate", "vectors.entropy()"),
    (NotImplementedError, "has no closed form: use a Monte Carlo estimate",
     "td.kl_divergence(vectors, vectors)", "td.kl_divergence(vectors, td.Dirichlet(torch.ones(3)))",
     "td.kl_divergence(td.Normal(0.0, 1.0), ir.MixtureSameFamily(even, td.Normal(two, 1.0)))"),
    (WRONG, "dim is 3 and 4: pass",
     "td.kl_divergence(ir.LKJCholesky(3, 1.0), td.LKJCholesky(4, 1.0))"),
    (NotImplementedError, "pass transform", "tool(td.Dirichlet(two))"),
    (WRONG, "at the end 2 of its support is 0.5 instead of 1", "tool(Half())"),
    (WRONG, "not increase", "tool(td.Normal(0.0, 1.0), torch.cos).rsample((50,))"),
    (WRONG, "outside the support", "tool(td.Exponential(1.0)).attach(-one)"),
    (WRONG, "does not end in", "tool(td.Normal(torch.zeros(3), 1.0)).attach(two)"),
    (WRONG, "increase nodes", "ir.IntervalDensity(lambda z: -1e6 * z**2, -one, 1.0)"),
    (WRONG, "pass finite ends", "ir.IntervalDensity(torch.neg, 0 * one, torch.inf)"),
    (WRONG, "ends with low < high", "ir.IntervalDensity(torch.neg, one, 0.0)"),
    (WRONG, "not finite", "ir.IntervalDensity(torch.log, -one, 1.0)"),
    (KIND, "pass a real floating tensor", "ir.IntervalDensity(torch.neg, 0, 1)"),
    (WRONG, "augmentation is 0: it must be at least 1",
     "estimators.rejection_gradients(expectations.GAMMA, phi, 10, 0)"),
    (WRONG, "from_log_gammas is None",
     "estimators.rejection_gradients(expectations.MIXTURE, phi, 10, 1)"),
]
# fmt: on
ROWS = [row for group in TABLE for row in alike(*group)]
