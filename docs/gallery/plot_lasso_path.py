"""
A lasso path, and the penalty by gradient
=========================================

The lasso, :math:`z(\\lambda) = \\arg\\min_z \\tfrac12 |X z - y|^2 / m + \\lambda \\sum_i |z_i|`, is ``minimize`` with a
**proximal operator**: the absolute values have no gradient at zero, and are known by what
:math:`\\arg\\min_x \\lambda |x| + (x - v)^2 / 2t` is. All penalties of the path are one batch, and the
derivative of the validation loss with respect to each of them comes with it.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_diabetes

import implicit_solvers as ims
from implicit_solvers.problems.projections import soft_threshold

torch.manual_seed(0)

# %%
# The data
# --------
# 442 patients, ten measurements, and the progression of their disease a year later; with the squares and products of
# the measurements, 64 features. (The square of the sex, which has two values, is the sex again: with both, there would
# be no unique solution, and problems would be SINGULAR.) Few of them help.

raw = load_diabetes()
x = torch.tensor(raw.data)
i, j = torch.tensor([(a, b) for a in range(10) for b in range(a, 10) if (a, b) != (1, 1)]).T
x = torch.cat([x, x[:, i] * x[:, j]], 1)
x = (x - x.mean(0)) / x.std(0)
y = torch.tensor(raw.target)
y = (y - y.mean()) / y.std()
order = torch.randperm(len(x))
train, validation = order[:220], order[220:]

# %%
# The path
# --------
# ``misfit`` and ``prox`` are for many penalties at once: unknowns are ``(problems, 64)``, the step is ``(problems,)``.


def misfit(z, penalty):
    return (z @ x[train].T - y[train]).square().mean(-1) / 2


def prox(v, step, penalty):
    return soft_threshold(v, (step * penalty).unsqueeze(-1))


def lasso(penalty):
    start = torch.zeros(*penalty.shape, x.shape[1], dtype=x.dtype)
    return ims.minimize(misfit, start, (penalty,), prox=prox, batch_dims=1, in_dims=(0,))


def validation_loss(z):
    return (z @ x[validation].T - y[validation]).square().mean(-1)


penalties = torch.logspace(-2.2, -0.2, 100, dtype=x.dtype).requires_grad_()
path = lasso(penalties)
losses = validation_loss(path.value)
(slopes,) = torch.autograd.grad(losses.sum(), penalties)
counts = (path.value != 0).sum(-1)
print(path)
print(f"{int(counts[0])} features at the smallest penalty, {int(counts[-1])} at the largest")

# %%
# Zeros are exact, and so are their derivatives; the others have the derivative on the support. Where a feature just
# enters there are two derivatives, and ``degenerate`` says so.

print(f"{int(path.degenerate.sum())} penalties of the path are at a kink")

# %%
# The penalty by gradient
# -----------------------
# Instead of a grid, a few steps down the slope, in the logarithm of the penalty, which are halved where the slope turns.
# Each solves once.

log_penalty = torch.tensor([-0.7], dtype=x.dtype).requires_grad_()
optimizer = torch.optim.Rprop([log_penalty], lr=0.4)
trail = []
for _ in range(15):
    optimizer.zero_grad()
    loss = validation_loss(lasso(log_penalty.exp()).value).sum()
    loss.backward()
    trail.append((log_penalty.exp().item(), loss.item()))
    optimizer.step()
best = int(losses.argmin())
print(f"by gradient: penalty {trail[-1][0]:.4f}, validation loss {trail[-1][1]:.4f}")
print(
    f"of the grid: penalty {penalties[best].item():.4f}, validation loss {losses[best].item():.4f}"
)

# %%
# The slope agrees with a central difference.

probe = penalties.detach()[::20]
ahead, behind = (validation_loss(lasso(probe * (1 + h)).value) for h in (1e-6, -1e-6))
print("slopes:        ", [f"{float(s):.5f}" for s in slopes[::20]])
print("by differences:", [f"{float(d):.5f}" for d in (ahead - behind) / (2e-6 * probe)])

at, z = penalties.detach(), path.value.detach()
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
names = [
    *raw.feature_names,
    *(f"{raw.feature_names[a]} x {raw.feature_names[b]}" for a, b in zip(i, j, strict=True)),
]
strong = set(z[70].abs().argsort(descending=True)[:5].tolist())
for k, values in enumerate(z.T):
    shown = k in strong
    left.plot(
        at,
        values,
        color=None if shown else "0.8",
        label=names[k] if shown else None,
        zorder=2 + shown,
    )
left.axvline(trail[-1][0], color="tab:red", linestyle=":")
left.set(
    xscale="log",
    xlabel="penalty",
    ylabel="coefficient",
    title="64 features, 100 penalties, one solve",
)
left.legend(fontsize="small")
right.plot(at, losses.detach(), color="tab:blue", label="validation loss")
for k in range(8, 100, 14):
    along = torch.tensor([0.8, 1.25], dtype=x.dtype)
    right.plot(
        at[k] * along,
        losses[k].detach() + slopes[k] * at[k] * (along - 1),
        color="tab:orange",
        zorder=3,
    )
right.plot([], [], color="tab:orange", label="its slope")
right.plot(
    *zip(*trail, strict=True),
    ".-",
    color="tab:red",
    linewidth=0.8,
    label="steps down the slope",
    zorder=4,
)
right.set(xscale="log", xlabel="penalty", title="the penalty that generalizes")
right.legend(fontsize="small")
plt.show()
