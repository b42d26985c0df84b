"""
An inverse problem with a sparse Jacobian
=========================================

The ground conducts heat, or water, at a rate that differs from place to place. A few wells tell the
potential :math:`u` when one of them is pumped; the conductivity :math:`k` in between is wanted:

.. math:: \\nabla \\cdot (k \\, \\nabla u) + s = 0, \\qquad u = 0 \\text{ on the boundary}.

On a grid this is an equation for each cell, whose Jacobian has five entries in a row. Its pattern is
found once; then every solve, and every gradient with respect to all cells of :math:`k`, takes one
sparse factorization.
"""

import matplotlib.pyplot as plt
import torch

import implicit_solvers as ims

torch.manual_seed(0)
side = 32


def flow(u, logk, source):
    """What flows into each cell of (..., side, side): through four faces, and from its source."""
    u = torch.nn.functional.pad(u, (1, 1, 1, 1))
    k = torch.exp(torch.nn.functional.pad(logk[None], (1, 1, 1, 1), mode="replicate")[0])
    across = (k[1:] + k[:-1])[:, 1:-1] / 2 * (u[..., 1:, 1:-1] - u[..., :-1, 1:-1])
    along = (k[:, 1:] + k[:, :-1])[1:-1] / 2 * (u[..., 1:-1, 1:] - u[..., 1:-1, :-1])
    return across.diff(dim=-2) + along.diff(dim=-1) + source


# %%
# The ground, and what is measured
# --------------------------------
# A channel conducts ten times as well as the rest, and a block a tenth. Sixteen wells are pumped,
# one in each experiment, and all are read, with an error of one percent.

x, y = torch.meshgrid(*[torch.linspace(0, 1, side, dtype=torch.float64)] * 2, indexing="xy")
truth = torch.zeros(side, side, dtype=torch.float64)
truth[(y - 0.3 - 0.3 * x).abs() < 0.08] = torch.log(torch.tensor(10.0)).double()
truth[(x - 0.65).abs() + (y - 0.22).abs() < 0.17] = -torch.log(torch.tensor(10.0)).double()

places = torch.arange(4, side, 8)
rows, columns = (t.reshape(-1) for t in torch.meshgrid(places, places, indexing="ij"))
sources = torch.zeros(len(rows), side, side, dtype=torch.float64)
sources[range(len(rows)), rows, columns] = 1.0

# %%
# The pattern
# -----------
# Products with random vectors find it. Rows of one color have no column in common, so that seven
# products show the whole Jacobian of 1,024 unknowns.

start = torch.zeros(side, side, dtype=torch.float64)
pattern = ims.jacobian_sparsity(flow, start, (truth, sources[0]))
print(pattern)


def measured(logk):
    """The potentials at all wells, of each experiment, one problem each; all share the pattern."""
    u = ims.root(
        flow,
        torch.zeros_like(sources),
        (logk, sources),
        jac_sparsity=pattern,
        batch_dims=1,
        in_dims=(None, 0),
    ).value
    return u[:, rows, columns]


exact = measured(truth)
data = exact * (1 + 0.01 * torch.randn_like(exact))

# %%
# Recover the conductivity
# ------------------------
# The misfit, in its standard deviations, and a price on differences between neighbors, smooth near
# zero: edges may be sharp. L-BFGS minimizes it; its gradient goes through sixteen sparse solves.

scale = 0.01 * data.abs()


def loss(logk):
    misfit = ((measured(logk) - data) / scale).square().sum() / 2
    steps = torch.cat([logk.diff(dim=0).reshape(-1), logk.diff(dim=1).reshape(-1)])
    return misfit + 4.0 * (steps.square() + 1e-3).sqrt().sum()


logk = torch.zeros_like(truth).requires_grad_()
optimizer = torch.optim.LBFGS([logk], max_iter=50, history_size=20, line_search_fn="strong_wolfe")
history = []


def closure():
    optimizer.zero_grad()
    value = loss(logk)
    value.backward()
    history.append(float(value.detach()))
    return value


optimizer.step(closure)
print(f"{len(history)} evaluations, loss {history[0]:.0f} -> {history[-1]:.0f}")

# %%
# Where the wells are, the channel and the block are found; near the boundary, where nothing is
# measured, the prior decides.

fig, axes = plt.subplots(1, 3, figsize=(10.5, 3.4), layout="constrained")
for axis, field, title in zip(
    axes, (truth, logk.detach()), ("the ground", "recovered"), strict=False
):
    image = axis.imshow(field / torch.log(torch.tensor(10.0)), vmin=-1, vmax=1, cmap="RdBu_r")
    axis.plot(columns, rows, "k.", markersize=3)
    axis.set(title=title, xticks=[], yticks=[])
fig.colorbar(image, ax=axes[:2], label=r"$\log_{10} k$", shrink=0.85)
axes[2].semilogy(history)
axes[2].set(title="loss", xlabel="evaluation")
plt.show()
