"""Digits: an image attends to others by softmax, by entmax and by sparsemax, each with a learned scale."""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

from implicit_solvers.problems.projections import entmax

digits = load_digits()
X = torch.tensor(digits.data / 16)
one_hot = torch.nn.functional.one_hot(torch.tensor(digits.target), 10).double()
keys, queries = slice(0, 400), slice(400, 600)
distances = torch.cdist(X[queries], X[keys]).square()


def learned(alpha):
    """The weights of the keys for each query, with the scale at which they predict the label best."""
    log_scale = torch.tensor(-0.5).double().requires_grad_()
    optimizer = torch.optim.Adam([log_scale], 0.1)
    for _ in range(30):
        weights = entmax(-log_scale.exp() * distances, alpha)
        loss = (weights @ one_hot[keys] - one_hot[queries]).square().sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return entmax(-log_scale.exp() * distances, alpha).detach(), loss.item()


query = 22
figure = plt.figure(figsize=(10, 3.8), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=(1, 1.2))
axes = left.subplots()
for alpha, name in ((1.0, "softmax"), (1.5, "entmax, 1.5"), (2.0, "sparsemax")):
    weights, loss = learned(alpha)
    positive = weights[query][weights[query] > 0].sort(descending=True).values
    axes.loglog(
        range(1, len(positive) + 1),
        positive,
        "o-",
        markersize=3,
        label=f"{name}: {len(positive)} images, loss {loss:.3f}",
    )
    if alpha == 1.5:
        shown = weights[query]
axes.set(xlabel="image, in the order of its weight", ylabel="weight", ylim=(1e-5, 5))
axes.legend(fontsize="small", loc="upper right")
grid = right.subplots(2, 5)
order = shown.argsort(descending=True)[:9]
for place, axes in enumerate(grid.flat):
    image = X[queries][query] if place == 0 else X[keys][order[place - 1]]
    axes.imshow(image.reshape(8, 8), cmap="gray_r")
    axes.set(xticks=[], yticks=[])
    title = "query" if place == 0 else f"{shown[order[place - 1]]:.2g}"
    axes.set_title(title, fontsize="medium", color="tab:red" if place == 0 else "black")
right.suptitle("what the query attends to, by entmax")
