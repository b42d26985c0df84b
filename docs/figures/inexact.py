"""What an inexact solution, and an inexact adjoint, do to a derivative: measured, and bounded."""

import matplotlib.pyplot as plt
import torch
from torch.linalg import matrix_norm, vector_norm

import implicit_solvers as ims

torch.manual_seed(0)
n = 40
W = torch.randn(n, n, dtype=torch.float64)
W = 0.8 * W / matrix_norm(W, 2)
x = torch.randn(n, dtype=torch.float64)
weight = torch.randn(n, dtype=torch.float64)


def cell(z, x):
    return torch.tanh(W @ z + x)


def equation(z, x):
    return z - cell(z, x)


exact = ims.fixed_point(cell, torch.zeros_like(x), (x,)).value
reference = torch.func.grad(lambda x: weight @ ims.attach(equation, exact, (x,)))(x)

# constants of the bound: A = I - D W and B = -D, with 0 < D <= 1, and |tanh''| <= 0.7699
mu, curvature = 1 - 0.8, 0.7699
lipschitz = curvature * 0.8 / mu + curvature * 0.8**2 / mu**2

distances = torch.logspace(-9, -1, 17, dtype=torch.float64)
by_solution = []
direction = torch.randn(n, dtype=torch.float64)
direction /= vector_norm(direction)
for distance in distances:
    z = exact + distance * direction
    D = 1 - torch.tanh(W @ z + x) ** 2
    w = torch.linalg.solve((torch.eye(n, dtype=torch.float64) - D[:, None] * W).T, weight)
    by_solution.append(vector_norm(D * w - reference))

steps = range(1, 26)
by_adjoint, residuals = [], []
D = 1 - exact**2
transposed = (torch.eye(n, dtype=torch.float64) - D[:, None] * W).T
for k in steps:
    adjoint = ims.ImplicitAdjoint(ims.GMRES(max_steps=k, rtol=None))
    with ims.monitor() as log:
        gradient = torch.func.grad(
            lambda x, adjoint=adjoint: weight @ ims.attach(equation, exact, (x,), adjoint=adjoint)
        )(x)
    by_adjoint.append(vector_norm(gradient - reference))
    residuals.append(float(log.adjoints()[0].residual) * vector_norm(weight))

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
left.loglog(distances, by_solution, "o", markersize=4, label="measured")
left.loglog(distances, lipschitz * distances * vector_norm(weight), label="bound")
left.set(xlabel="distance of z from the solution", ylabel="error of the gradient")
left.legend()
right.semilogy(steps, by_adjoint, "o", markersize=4, label="measured")
right.semilogy(steps, torch.stack(residuals) / mu, label="bound")
right.set(xlabel="steps of GMRES in the adjoint", ylabel="error of the gradient")
right.legend()
