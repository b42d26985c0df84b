"""Diabetes: the penalties of a regression chosen by gradient descent on the held-out error."""

import cvxpy as cp
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_diabetes

from implicit_solvers.problems.convex import ConvexLayer

data = load_diabetes()
X = torch.tensor(data.data / data.data.std(0))
y = torch.tensor((data.target - data.target.mean()) / data.target.std())
train, test = slice(0, 120), slice(120, None)

# |X w - y|^2 = |R w - q|^2 + rest^2: the cone has twelve rows in the place of 120
R = torch.linalg.qr(torch.cat([X[train], y[train].unsqueeze(-1)], 1), mode="r")[1].numpy()
w, one, two = cp.Variable(10), cp.Parameter(nonneg=True), cp.Parameter(nonneg=True)
residual = cp.hstack([R[:10, :10] @ w - R[:10, 10], R[10, 10]])
loss = cp.norm(residual) + one * cp.norm1(w) + two * cp.norm(w)
layer = ConvexLayer(cp.Problem(cp.Minimize(loss)), [one, two], [w])


def held_out(penalties):
    (best,) = layer(*penalties.unbind(-1)).value.variables
    return (best @ X[test].T - y[test]).square().mean(-1), best


axis = torch.linspace(0.0, 1.5, 26).double()
grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1) + 1e-3
with torch.no_grad():
    errors, _ = held_out(grid)

point, path, coefficients = torch.tensor([1.35, 0.1]).double(), [], []
for _ in range(60):
    point.requires_grad_()
    error, best = held_out(point)
    path.append(point.detach())
    coefficients.append(best.detach())
    (slope,) = torch.autograd.grad(error, point)
    point = (point.detach() - 3.0 * slope).clamp(min=1e-3)

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
filled = left.contourf(axis, axis, errors.T, levels=24, cmap="viridis")
figure.colorbar(filled, ax=left, label="held-out mean squared error")
steps = torch.stack(path)
left.plot(steps[:, 0], steps[:, 1], "o-", color="tab:red", markersize=3)
left.set(
    xlabel="penalty of the absolute values",
    ylabel="penalty of the norm",
    title="the error of 676 regressions; descent by its gradient",
)
for name, values in zip(data.feature_names, torch.stack(coefficients).T, strict=True):
    strong = values.abs().max() > 0.1
    right.plot(values, label=name if strong else None, color=None if strong else "0.75")
right.set(xlabel="step", ylabel="coefficient", title="coefficients along the way")
right.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
