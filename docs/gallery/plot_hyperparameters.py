"""
Hyperparameters by gradient descent
===================================

A model is trained, :math:`w(\\lambda) = \\arg\\min_w L_{\\mathrm{train}}(w) + \\tfrac12 \\sum_j e^{\\lambda_j} w_j^2`,
and judged on validation data. ``minimize`` makes the trained weights a differentiable function of the
penalties, so that **one penalty for each feature** can be learned, where a grid search would need
:math:`10^{30}` trainings.
"""

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer

import implicit_solvers as ims

torch.manual_seed(0)

# %%
# The data
# --------
# 569 tumours, 30 features, malignant or benign; 150 to train, 150 to validate, the rest to test.

raw = load_breast_cancer()
x = torch.tensor(raw.data)
x = (x - x.mean(0)) / x.std(0)
y = torch.tensor(raw.target, dtype=torch.float64)
order = torch.randperm(len(x))
train, validation, test = order[:150], order[150:300], order[300:]


def loss(weights, rows):
    return F.binary_cross_entropy_with_logits(x[rows] @ weights, y[rows])


def penalized(weights, log_penalty):
    return loss(weights, train) + (log_penalty.exp() * weights**2).sum() / 2


def trained(log_penalty):
    start = torch.zeros(30, dtype=torch.float64)
    return ims.minimize(penalized, start, (log_penalty,)).value


# %%
# One penalty for all, by a grid
# ------------------------------

grid = torch.linspace(-9, 2, 12, dtype=torch.float64)
curve = torch.stack([loss(trained(g.expand(30)), validation) for g in grid])
best = grid[curve.argmin()].expand(30).clone()
print(
    f"best single penalty exp({float(best[0]):g}): validation loss {float(curve.min()):.4f},"
    f" test loss {float(loss(trained(best), test)):.4f}"
)

# %%
# Thirty penalties, by gradient
# -----------------------------
# Each step trains the model once and solves one linear system with its Hessian.

log_penalty = best.clone().requires_grad_()
optimizer = torch.optim.Adam([log_penalty], lr=0.2)
history = []
for _ in range(30):
    optimizer.zero_grad()
    validation_loss = loss(trained(log_penalty), validation)
    validation_loss.backward()
    optimizer.step()
    history.append(validation_loss.item())

with torch.no_grad():
    final = trained(log_penalty)
print(
    f"thirty penalties: validation loss {float(loss(final, validation)):.4f},"
    f" test loss {float(loss(final, test)):.4f}"
)

# %%
# The gradient agrees with a central difference.

probe = torch.randn(30, dtype=torch.float64)


def objective(log_penalty):
    return loss(trained(log_penalty), validation)


slope = torch.func.grad(objective)(best) @ probe
difference = (objective(best + 1e-4 * probe) - objective(best - 1e-4 * probe)) / 2e-4
print(f"directional derivative {float(slope):.8f}, by differences {float(difference):.8f}")

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
left.plot(history)
left.axhline(float(curve.min()), color="0.6", linestyle="--", label="best single penalty")
left.set(xlabel="step", ylabel="validation loss")
left.legend()
names = raw.feature_names
shown = log_penalty.detach().argsort()
shown = torch.cat([shown[:5], shown[-5:]])
right.barh([str(names[i]) for i in shown], log_penalty.detach()[shown])
right.set(xlabel="log penalty", title="trusted and distrusted features")
plt.show()
