"""The rows of a stencil's Jacobian by color, and the gradient with respect to 10,000 coefficients."""

import matplotlib.pyplot as plt
import torch

import implicit_solvers as ims


def balance(u, k, source):
    """-div(k grad u) + u^3 - source on a grid, with u = 0 around it."""
    u, k = (
        torch.nn.functional.pad(t[None], (1, 1, 1, 1), mode=mode)[0]
        for t, mode in ((u, "constant"), (k, "replicate"))
    )
    across = (k[1:] + k[:-1])[:, 1:-1] / 2 * u.diff(dim=0)[:, 1:-1]
    along = (k[:, 1:] + k[:, :-1])[1:-1] / 2 * u.diff(dim=1)[1:-1]
    return u[1:-1, 1:-1] ** 3 - across.diff(dim=0) - along.diff(dim=1) - source


def problem(side):
    """Return a start, coefficients and a source in the middle of the left half."""
    source = torch.zeros(side, side, dtype=torch.float64)
    source[side // 2, side // 4] = 1.0
    return torch.zeros_like(source), torch.ones_like(source).requires_grad_(), source


u0, k, source = problem(7)
pattern = ims.jacobian_sparsity(balance, u0, (k, source))

fig, (left, right) = plt.subplots(1, 2, figsize=(8.0, 3.6), layout="constrained")
left.scatter(pattern.columns, pattern.rows, c=pattern.colors[pattern.rows], cmap="tab10", s=9)
left.set(title=f"{pattern.products} colors of 49 rows", xlabel="unknown", ylabel="equation")
left.set_aspect("equal")
left.invert_yaxis()

u0, k, source = problem(100)
pattern = ims.jacobian_sparsity(balance, u0, (k, source))
u = ims.root(balance, u0, (k, source), jac_sparsity=pattern).value
u[50, 75].backward()  # a sensor in the middle of the right half
size = float(k.grad.abs().quantile(0.995))
image = right.imshow(k.grad, cmap="RdBu_r", vmin=-size, vmax=size)
right.plot([25, 75], [50, 50], "k.", markersize=4)
right.set(title="what k in each cell does to the sensor", xticks=[], yticks=[])
fig.colorbar(image, ax=right, shrink=0.85)
