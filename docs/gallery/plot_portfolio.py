"""
A portfolio that learns how much to trust its numbers
=====================================================

Markowitz's portfolio takes estimated means and covariances for the truth. A ``ConvexLayer`` makes it a
differentiable function of them, so that **what is done to the estimates can be learned** from how the
portfolios fared: an aversion to risk, how far the means are drawn together, and how far the covariances.
"""

import cvxpy as cp
import matplotlib.pyplot as plt
import torch

from implicit_solvers.problems.convex import ConvexLayer

F64 = torch.float64
torch.manual_seed(0)

# %%
# Returns
# -------
# Twenty assets, three factors, months in percent. A portfolio is made from 30 months and held for the next
# sixty; 32 such spans to learn from, 32 others to see what was learned.

n, past, held, spans = 20, 30, 60, 64
factors = torch.randn(n, 3, dtype=F64)
mean = 0.6 + 0.25 * torch.randn(n, dtype=F64)
noise = 2 + 3 * torch.rand(n, dtype=F64)


def drawn(months):
    common = 2.5 * torch.randn(spans, months, 3, dtype=F64) @ factors.T
    return mean + common + noise * torch.randn(spans, months, n, dtype=F64)


before, later = drawn(past), drawn(held)
estimates = before.mean(1)
centred = before - estimates.unsqueeze(1)
covariances = centred.mT @ centred / (past - 1)

# %%
# The layer
# ---------
# Maximize the mean less half the variance, times the aversion to risk; no asset is sold short, none is more
# than a quarter. Half the variance is :math:`|R x|^2 / 2`, with a root ``R`` that is a parameter: the problem
# is affine in its parameters.

x, means, root = cp.Variable(n), cp.Parameter(n), cp.Parameter((n, n))
goal = cp.Maximize(means @ x - cp.sum_squares(root @ x) / 2)
problem = cp.Problem(goal, [cp.sum(x) == 1, x >= 0, x <= 0.25])
layer = ConvexLayer(problem, [means, root], [x])


def portfolios(settings, chosen):
    aversion, means_kept, covariances_kept = settings[0].exp(), *settings[1:].sigmoid()
    m, C = estimates[chosen], covariances[chosen]
    m = m.mean(-1, keepdim=True) + means_kept * (m - m.mean(-1, keepdim=True))
    variances = C.diagonal(dim1=-2, dim2=-1).diag_embed()
    C = variances + covariances_kept * (C - variances)
    return layer(m, (aversion.sqrt() * torch.linalg.cholesky(C)).mT).value.variables[0]


def utility(x, chosen):
    """The later mean less five percent of the variance, over the spans."""
    returns = (later[chosen] * x.unsqueeze(1)).sum(-1)
    return (returns.mean(1) - 0.05 * returns.var(1)).mean()


# %%
# Learning
# --------
# 32 portfolios in each step, as a batch.

train, test = torch.arange(32), torch.arange(32, 64)
settings = torch.tensor([-2.3, 3.0, 3.0], dtype=F64, requires_grad=True)  # aversion 0.1; all kept
optimizer = torch.optim.Adam([settings], lr=0.25)
history = []
for _ in range(14):
    optimizer.zero_grad()
    gain = utility(portfolios(settings, train), train)
    (-gain).backward()
    optimizer.step()
    with torch.no_grad():
        history.append((gain.item(), utility(portfolios(settings, test), test).item()))

with torch.no_grad():
    first = portfolios(torch.tensor([-2.3, 3.0, 3.0], dtype=F64), test)
    last = portfolios(settings, test)
    equal = torch.full_like(last, 1 / n)
print(
    f"aversion {settings[0].exp().item():.2f}, of the means {settings[1].sigmoid().item():.0%} kept"
)
print(f"of the covariances {settings[2].sigmoid().item():.0%} kept")
for name, held_by in (("estimates", first), ("learned", last), ("equal parts", equal)):
    print(f"later utility, {name}: {utility(held_by, test).item():.3f}")

# %%
# The gradient agrees with a central difference.

settings = settings.detach()
slope = torch.func.grad(lambda s: utility(portfolios(s, train), train))(settings)
steps = 1e-5 * torch.eye(3, dtype=F64)
ends = [[utility(portfolios(settings + k * s, train), train) for s in steps] for k in (1, -1)]
difference = (torch.stack(ends[0]) - torch.stack(ends[1])) / 2e-5
print(f"gradient {slope.numpy().round(6)}, by differences {difference.numpy().round(6)}")

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
left.plot(history, label=["learned from", "not seen"])
left.axhline(
    utility(equal, test).item(), color="0.6", linestyle="--", label="equal parts, not seen"
)
left.set(xlabel="step", ylabel="utility", title="How the portfolios fare")
left.legend(fontsize=8)
for name, held_by in (("estimates as they are", first), ("learned", last)):
    right.plot(held_by.sort(-1, descending=True).values.mean(0), "o-", ms=3, label=name)
right.axhline(1 / n, color="0.6", linestyle="--", label="equal parts")
right.set(xlabel="assets, sorted", title="Parts of the portfolio, mean over spans")
right.legend(fontsize=8)
plt.show()
