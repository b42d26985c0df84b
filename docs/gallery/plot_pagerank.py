"""
PageRank
========

The rank of a page is the share of time that a random surfer spends there: with probability
:math:`d` she follows a link, else she jumps anywhere,

.. math:: r = d\\, P^\\top r + (1 - d)\\, \\tfrac1n \\mathbf 1 .

It is a fixed point, and a linear one. The implicit derivative answers what the ranks alone do not:
which link, made a little stronger, helps a page most?
"""

import matplotlib.pyplot as plt
import torch

import implicit_solvers as ims

torch.manual_seed(3)

# %%
# A small web
# -----------
# Thirty pages; new pages link to popular ones. ``weights[i, j]`` is how often the link from page i
# to page j is followed.

n = 30
weights = torch.zeros(n, n, dtype=torch.float64)
for page in range(1, n):
    popularity = 1 + weights[:page, :page].sum(0)
    linked = torch.multinomial(popularity, min(page, 3))
    weights[page, linked] = 1.0
weights[0, torch.tensor([3, 7])] = 1.0


def surf(rank, weights, damping):
    """Where the surfer is after one step."""
    probability = weights / weights.sum(1, keepdim=True)
    return damping * probability.T @ rank + (1 - damping) / len(rank)


def page_rank(weights, damping):
    start = torch.full((n,), 1 / n, dtype=torch.float64)
    return ims.fixed_point(surf, start, (weights, damping)).value


damping = torch.tensor(0.85, dtype=torch.float64)
rank = page_rank(weights, damping)
exact = torch.linalg.solve(
    torch.eye(n, dtype=torch.float64) - damping * (weights / weights.sum(1, keepdim=True)).T,
    torch.full((n,), float(1 - damping) / n, dtype=torch.float64),
)
print(
    f"sum {float(rank.sum()):.12f}; distance to a dense solve {float((rank - exact).abs().max()):.1e}"
)

# %%
# Which link matters to page 5?
# -----------------------------
# One backward pass, one linear solve: the derivative of its rank with respect to all 900 weights.

page = 5
slope = torch.func.grad(lambda w: page_rank(w, damping)[page])(weights)
existing = slope.masked_fill(weights == 0, 0)
best = int(existing.abs().argmax())
print(f"the link from page {best // n} to page {best % n}: {float(existing.flatten()[best]):+.2e}")

limit = float(slope.abs().max())
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
left.bar(range(n), rank, color=["tab:orange" if i == page else "tab:blue" for i in range(n)])
left.set(xlabel="page", title="rank")
image = right.imshow(slope, cmap="RdBu_r", vmin=-limit, vmax=limit)
right.set(xlabel="to page", ylabel="from page", title=f"∂ rank of page {page} / ∂ weight")
figure.colorbar(image)
plt.show()
