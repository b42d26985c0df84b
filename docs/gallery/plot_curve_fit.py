"""
A curve fit with error bars
===========================

Nonlinear least squares finds the parameters of a decay,

.. math:: \\hat\\theta(y) = \\arg\\min_\\theta \\tfrac12 \\sum_i
          \\left(a e^{-k t_i} + c - y_i\\right)^2 .

Its error bars come in two ways. The textbook's covariance is :math:`s^2 (J^\\top J)^{-1}`. The other
way asks how the answer moves with every single data point: the implicit derivative
:math:`\\partial\\hat\\theta/\\partial y`, through the full Hessian. Multiplied by the noise of the data it
gives the same error bars to first order, and it names the points that the answer hangs on.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.optimize import curve_fit
from torch.func import jacrev

import implicit_solvers as ims

torch.manual_seed(0)


def model(theta, t):
    a, k, c = theta
    return a * torch.exp(-k * t) + c


def residuals(theta, t, y):
    return model(theta, t) - y


# %%
# The fit
# -------

t = torch.linspace(0, 6, 40, dtype=torch.float64)
truth = torch.tensor([2.0, 0.9, 0.5], dtype=torch.float64)
noise = 0.08
y = model(truth, t) + noise * torch.randn(40, dtype=torch.float64)
start = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)


def fit(y):
    return ims.least_squares(residuals, start, (t, y)).value


theta = fit(y)
by_scipy, covariance = curve_fit(
    lambda t, a, k, c: a * np.exp(-k * t) + c, t.numpy(), y.numpy(), p0=start.numpy()
)
print("fit:  ", " ".join(f"{value:.6f}" for value in theta.tolist()))
print("scipy:", " ".join(f"{value:.6f}" for value in by_scipy))

# %%
# Two kinds of error bars
# -----------------------

J = jacrev(model)(theta, t)
variance = residuals(theta, t, y).square().sum() / (len(t) - 3)
textbook = (variance * torch.linalg.inv(J.T @ J)).diagonal().sqrt()
influence = jacrev(fit)(y)
implicit = variance.sqrt() * influence.norm(dim=1)
for name, *bars in zip("akc", textbook, implicit, covariance.diagonal() ** 0.5, strict=True):
    print(name, "(JᵀJ)⁻¹ {:.4f}   implicit {:.4f}   scipy {:.4f}".format(*map(float, bars)))

# %%
# A thousand repetitions with new noise show which one is right: both are, here, where the residuals
# are small. ``vmap`` fits them all at once.

repeated = model(theta, t) + variance.sqrt() * torch.randn(1000, 40, dtype=torch.float64)
spread = torch.func.vmap(fit)(repeated).std(0)
print("repeated fits:", " ".join(f"{value:.4f}" for value in spread.tolist()))

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
left.errorbar(t, y, noise, fmt=".", color="0.5", label="data")
left.plot(t, model(theta, t), label="fit")
left.set(xlabel="t", title="a exp(−kt) + c")
left.legend()
for name, row in zip("akc", influence, strict=True):
    right.plot(t, row, label=f"∂{name}/∂y")
right.set(xlabel="t of the data point", title="what each data point does to the answer")
right.legend()
plt.show()
