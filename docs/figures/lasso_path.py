"""Diabetes: regression with a bound on the sum of coefficients, for sixty bounds at once, and the slope of its error."""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_diabetes

from implicit_solvers.problems.qp import quadratic_program

data = load_diabetes()
X = torch.tensor(data.data / data.data.std(0))
y = torch.tensor((data.target - data.target.mean()) / data.target.std())
train, test = slice(0, 300), slice(300, None)
d = X.shape[1]


def regression(bound):
    """Least squares with the absolute coefficients summing to the bound at most: w and bounds u >= |w|."""
    Q = torch.zeros(2 * d, 2 * d).double()
    Q[:d, :d] = X[train].T @ X[train] / 300
    p = torch.cat([-X[train].T @ y[train] / 300, torch.zeros(d).double()])
    eye, one = torch.eye(d).double(), torch.ones(1, d).double()
    G = torch.cat(
        [torch.cat([eye, -eye], 1), torch.cat([-eye, -eye], 1), torch.cat([0 * one, one], 1)]
    )
    h = torch.cat([torch.zeros(*bound.shape, 2 * d).double(), bound.unsqueeze(-1)], -1)
    return quadratic_program(Q, p, G, h).value.x[..., :d]


bounds = torch.linspace(0.02, 1.2, 60).double().requires_grad_()
w = regression(bounds)
errors = (X[test] @ w.T - y[test].unsqueeze(-1)).square().mean(0)
slopes = torch.autograd.grad(errors.sum(), bounds)[0]

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
at = bounds.detach()
for name, path in zip(data.feature_names, w.T.detach(), strict=True):
    strong = path.abs().max() > 0.12
    left.plot(
        at,
        path,
        label=name if strong else None,
        color=None if strong else "0.75",
        linewidth=1.5 if strong else 1,
    )
left.set(xlabel="bound", ylabel="coefficient", title="the coefficients enter one by one")
left.legend(fontsize="small")
right.plot(at, errors.detach(), color="tab:blue")
for i in range(4, 60, 11):
    along = torch.tensor([-0.07, 0.07]).double()
    right.plot(
        at[i] + along, errors[i].detach() + slopes[i] * along, color="tab:red", linewidth=2.5
    )
right.set(
    xlabel="bound",
    ylabel="mean squared error",
    title="held-out error, and its slope by the library (red)",
)
