"""What the distributions with implicit derivatives and their special functions refuse."""

from tests.refusals.row import Refusal

SETUP = """
from torch import distributions as td
import implicit_solvers.problems.reparameterization as ir
from implicit_solvers.problems.reparameterization import estimators, expectations
from implicit_solvers.problems.reparameterization.special import beta, gamma, log_tails, student_t
from implicit_solvers.problems.reparameterization.special import von_mises

class Half(td.Distribution):
    arg_constraints, support = {}, td.constraints.interval(0.0, 2.0)
    def cdf(self, z): return 0.5 * (z / 2) ** 2

one, two, phi = torch.ones(()), torch.ones(2), torch.tensor([2.0])
even = td.Categorical(two)
vectors = ir.MixtureSameFamily(even, td.Dirichlet(torch.ones(2, 3)))
tool, normal = ir.ImplicitReparameterization, ir.TruncatedNormal
"""
ROWS = [
    # special functions
    Refusal("gamma.gammainc(one)", TypeError, "gammainc: pass either z or log_z"),
    Refusal("gamma.gammaincc(one, one, log_z=one)", TypeError, "pass either z or log_z"),
    Refusal(
        "gamma.gammainc(one, torch.tensor(3))", TypeError, "z has dtype torch.int64; pass a real"
    ),
    Refusal("gamma.gamma_sample_derivative(1.0, 2.0)", TypeError, "one of a, z must be a tensor"),
    Refusal("beta.betainc(one, one)", TypeError, "betainc: pass either x or logit_x"),
    Refusal("beta.betaincc(one, one, one, logit_x=one)", TypeError, "pass either x or logit_x"),
    Refusal("beta.betainc(one, torch.tensor(3), one)", TypeError, "b has dtype torch.int64"),
    Refusal("beta.beta_sample_derivatives(1.0, 2.0, 0.5)", TypeError, "a, b, x must be a tensor"),
    Refusal("student_t.student_t_cdf(1.0, 2.0)", TypeError, "student_t_cdf: at least one of t, df"),
    Refusal("student_t.student_t_cdf('1', phi)", TypeError, "cdf: t is a str; pass a tensor"),
    Refusal("student_t.student_t_logcdf(one, 'a')", TypeError, "logcdf: df is a str; pass a"),
    Refusal(
        "student_t.student_t_logsf(torch.tensor(1), phi)", TypeError, "pass a real floating dtype"
    ),
    Refusal("student_t.student_t_log_tail(1.0, 2.0)", TypeError, "must be a tensor"),
    Refusal("student_t.student_t_sample_derivative(2.0, 1.0)", TypeError, "must be a tensor"),
    Refusal("von_mises.von_mises_cdf(1.0, 2.0)", TypeError, "von_mises_cdf: at least one of x, co"),
    Refusal("von_mises.von_mises_cdf('1', phi)", TypeError, "cdf: x is a str; pass a tensor"),
    Refusal(
        "von_mises.von_mises_logcdf(torch.tensor(1), phi)", TypeError, "logcdf: x has dtype torch.i"
    ),
    Refusal(
        "von_mises.von_mises_logsf(torch.tensor(1), phi)", TypeError, "pass a real floating dtype"
    ),
    Refusal("log_tails.log_gamma_tails(0.5, 0.5)", TypeError, "must be a tensor"),
    Refusal("log_tails.log_beta_tails(0.5, 0.5, 0.5)", TypeError, "must be a tensor"),
    Refusal("log_tails.student_t_log_tails(0.5, 0.5)", TypeError, "must be a tensor"),
    Refusal("log_tails.von_mises_log_tails(0.5, 0.5)", TypeError, "must be a tensor"),
    # parameters
    Refusal("ir.Gamma(-1.0, 1.0)", ValueError, "concentration"),
    Refusal("ir.Gamma(1.0, 0.0)", ValueError, "rate"),
    Refusal("ir.Beta(math.nan, 1.0)", ValueError, "concentration"),
    Refusal("ir.Beta(1.0, -1.0)", ValueError, "concentration"),
    Refusal("ir.Dirichlet(torch.tensor([1.0, 0.0]))", ValueError, "concentration"),
    Refusal("ir.StudentT(0.0)", ValueError, "df"),
    Refusal("ir.StudentT(1.0, 0.0, -1.0)", ValueError, "scale"),
    Refusal("ir.StudentT(1.0, math.nan)", ValueError, "loc"),
    Refusal("ir.VonMises(one, -one)", ValueError, "concentration"),
    Refusal("ir.LKJCholesky(4, 0.0)", ValueError, "concentration"),
    Refusal("ir.LKJCholesky(1, 1.0)", ValueError, "dim"),
    Refusal("ir.MultivariateStudentT(-1.0, two, torch.eye(2))", ValueError, "df"),
    Refusal("ir.MultivariateStudentT(1.0, two * math.nan, torch.eye(2))", ValueError, "loc"),
    Refusal("ir.MultivariateStudentT(1.0, two, -torch.eye(2))", ValueError, "scale_tril"),
    Refusal("ir.MultivariateStudentT(1.0, one, torch.eye(1))", ValueError, "pass a vector"),
    Refusal("ir.MultivariateStudentT(1.0, two, torch.eye(3))", ValueError, "pass (..., 2, 2)"),
    Refusal("ir.InverseGaussian(-1.0, 1.0)", ValueError, "loc"),
    Refusal("ir.InverseGaussian(1.0, 0.0)", ValueError, "concentration"),
    Refusal("ir.InverseGaussian(math.nan, 1.0)", ValueError, "loc"),
    # truncated distributions
    Refusal("normal(0.0, 1.0, 3.0, 2.0)", ValueError, "pass low < high"),
    Refusal("normal(0.0, 1.0, math.nan)", ValueError, "pass low < high"),
    Refusal("normal(0.0, -1.0)", ValueError, "scale"),
    Refusal("normal(0.0, 1.0, one.double())", TypeError, "convert it"),
    Refusal("ir.Truncated(td.Poisson(2.0), 0.0)", ValueError, "use a continuous relaxation"),
    Refusal("ir.Truncated(td.Dirichlet(two))", ValueError, "pass a univariate distribution"),
    Refusal("ir.Truncated(3.0, 0.0)", TypeError, "pass a torch.distributions"),
    Refusal("ir.Truncated(td.Laplace(0.0, 1.0), 50.0)", ValueError, "give it log_cdf"),
    Refusal("ir.Truncated(td.Exponential(1.0), -2.0, -1.0)", ValueError, "that is too little"),
    # mixtures
    Refusal(
        "ir.MixtureSameFamily(even, td.Poisson(two))", ValueError, "use a continuous relaxation"
    ),
    Refusal("ir.MixtureSameFamily(even, td.Normal(phi, 1.0))", ValueError, "component"),
    Refusal("vectors.rsample()", NotImplementedError, "use Independent(univariate, n)"),
    Refusal("vectors.cdf(torch.ones(3))", NotImplementedError, "use rosenblatt"),
    Refusal("vectors.entropy()", NotImplementedError, "use a Monte Carlo estimate"),
    # any distribution, any density
    Refusal("tool(td.Poisson(2.0))", ValueError, "use a continuous relaxation"),
    Refusal("tool(3.0)", TypeError, "pass a torch.distributions"),
    Refusal("tool(td.Dirichlet(two))", NotImplementedError, "pass transform"),
    Refusal("tool(Half())", ValueError, "at the end 2 of its support is 0.5 instead of 1"),
    Refusal("tool(td.Normal(0.0, 1.0), torch.cos).rsample((50,))", ValueError, "not increase"),
    Refusal("tool(td.Exponential(1.0)).attach(-one)", ValueError, "outside the support"),
    Refusal("tool(td.Normal(torch.zeros(3), 1.0)).attach(two)", ValueError, "does not end in"),
    Refusal("ir.IntervalDensity(lambda z: -1e6 * z**2, -one, 1.0)", ValueError, "increase nodes"),
    Refusal("ir.IntervalDensity(torch.neg, 0 * one, torch.inf)", ValueError, "pass finite ends"),
    Refusal("ir.IntervalDensity(torch.neg, one, 0.0)", ValueError, "ends with low < high"),
    Refusal("ir.IntervalDensity(torch.log, -one, 1.0)", ValueError, "not finite"),
    Refusal("ir.IntervalDensity(torch.neg, 0, 1)", TypeError, "pass a real floating tensor"),
    # estimators
    Refusal(
        "estimators.rejection_gradients(expectations.GAMMA, phi, 10, 0)",
        ValueError,
        "augmentation is 0: it must be at least 1",
    ),
    Refusal(
        "estimators.rejection_gradients(expectations.MIXTURE, phi, 10, 1)",
        ValueError,
        "from_log_gammas is None",
    ),
]
