"""Meta-batches that the tests share: quadratic tasks with closed forms, and curves to fit."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from implicit_solvers.problems import imaml


def normal(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64)


def ravel(tree):
    return torch.cat([leaf.flatten() for leaf in tree_leaves(tree)])


def unravel(vector):
    return {"w": vector[:4].reshape(2, 2), "b": vector[4]}


def quadratic_model(phi, A):
    """Return (z, A z), of which `quadratic_criterion` makes z·A z/2 - c·z."""
    z = ravel(phi)
    return torch.stack([z, A @ z])


def quadratic_criterion(out, c):
    z, Az = out
    return z @ Az / 2 - c @ z


@dataclass
class Quadratics:
    """Tasks with Hessians A (tasks, 5, 5), linear terms c, and the query |z - y|²/2 - |y|²/2."""

    theta: dict
    A: torch.Tensor
    c: torch.Tensor
    y: torch.Tensor

    @property
    def data(self):
        eye = torch.eye(5, dtype=self.A.dtype).expand_as(self.A)
        return (self.A, self.c), (eye, self.y)

    @property
    def arguments(self):
        return quadratic_model, quadratic_criterion, self.theta, *self.data

    def arrays(self):
        return ravel(self.theta).numpy(), self.A.numpy(), self.c.numpy(), self.y.numpy()

    def closed_form(self, strength, damping=0.0):
        """Return phi (tasks, 5), and their meta-gradients S (A + (1 + damping) S)^-1 (phi - y)."""
        theta, A, c, y = self.arrays()
        S = np.diag(np.broadcast_to(strength, 5))
        phi = np.linalg.solve(A + S, (c + S @ theta)[..., None])[..., 0]
        slopes = S @ np.linalg.solve(A + (1 + damping) * S, (phi - y)[..., None])
        return phi, slopes[..., 0]

    def query_loss(self, phi):
        return (phi * phi).sum(1) / 2 - (phi * self.y.numpy()).sum(1)


def quadratics(seed=0, tasks=3, lowest=0.2):
    """Return tasks whose curvatures are at least ``lowest``, random beyond it."""
    g = torch.Generator().manual_seed(seed)
    R = torch.randn(tasks, 5, 5, generator=g, dtype=torch.float64)
    A = R @ R.mT / 5
    shift = torch.linalg.eigvalsh(A)[:, :1, None] - lowest
    c, y = torch.randn(2, tasks, 5, generator=g, dtype=torch.float64)
    theta = unravel(torch.randn(5, generator=g, dtype=torch.float64))
    return Quadratics(theta, A - shift * torch.eye(5, dtype=torch.float64), c, y)


def curves(seed=0, tasks=3, shots=4):
    """Return (model, criterion, theta, supports, queries) of a tanh network that fits waves."""
    g = torch.Generator().manual_seed(seed)
    network = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    model, theta = imaml.functional_model(network)
    theta = tree_map(lambda t: torch.randn(t.shape, generator=g, dtype=torch.float64) * 0.7, theta)
    x = 3 * torch.randn(tasks, 2 * shots, 1, generator=g, dtype=torch.float64)
    y = torch.sin(x + torch.rand(tasks, 1, 1, generator=g, dtype=torch.float64))
    supports, queries = (x[:, :shots], y[:, :shots]), (x[:, shots:], y[:, shots:])
    return model, F.mse_loss, theta, supports, queries


def loss_of(model, criterion):
    """Return the loss of the definition, ``loss(phi, (x, y))``."""
    return lambda phi, data: criterion(model(phi, data[0]), data[1])


def one(tree, task):
    return tree_map(lambda t: t[task], tree)


def assert_slope(method, arguments, h=1e-5, rtol=1e-6, atol=1e-6):
    """Compare the gradient, along a direction, with a central difference of the mean query loss.

    The truncation is h² = 1e-10 times a third derivative of order 1 to 10; solves to 1e-12, over
    h, are 1e-7 at worst; where there is none, rounding, 1e-16, over h is 1e-11.
    """
    model, criterion, theta, supports, queries = arguments
    g = torch.Generator().manual_seed(1)
    direction = tree_map(lambda t: torch.randn(t.shape, generator=g, dtype=t.dtype), theta)

    def loss(step):
        moved = tree_map(lambda t, d: t + step * d, theta, direction)
        return method.meta_gradient(model, criterion, moved, supports, queries).loss.mean()

    got = method.meta_gradient(*arguments)
    difference, slope = (loss(h) - loss(-h)) / (2 * h), ravel(got.gradient) @ ravel(direction)
    torch.testing.assert_close(difference, slope, rtol=rtol, atol=atol)
    return got


def assert_same(got, expected, rtol=1e-9, atol=1e-9):
    """Compare two `MetaGradient`s."""
    torch.testing.assert_close(got, expected, rtol=rtol, atol=atol, equal_nan=True)
