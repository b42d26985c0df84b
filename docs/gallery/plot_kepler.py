"""
Kepler's equation
=================

Where is a planet at a given time? The mean anomaly :math:`M` grows evenly with time; the eccentric
anomaly :math:`E`, which gives the position, solves

.. math:: E - e \\sin E = M .

There is no closed form. Here a thousand such equations are solved at once, each on its own, and
differentiated: the velocity along the orbit is :math:`\\mathrm{d}E/\\mathrm{d}M`, and how the position
moves with the eccentricity is :math:`\\partial E/\\partial e`.
"""

import math

import matplotlib.pyplot as plt
import torch
from torch.func import jvp, vmap

import implicit_solvers as ims


def kepler(E, M, e):
    return E - e * torch.sin(E) - M


def eccentric_anomaly(M, e):
    return ims.root(kepler, torch.full_like(M, math.pi), (M, e)).value


# %%
# One orbit
# ---------
# ``vmap`` turns the solver of one equation into the solver of many. Every problem stops when it has
# converged, and has its own status.

M = torch.linspace(0, 2 * math.pi, 1001, dtype=torch.float64)
e = torch.tensor(0.7, dtype=torch.float64)

solution = vmap(lambda M: ims.root(kepler, torch.full_like(M, math.pi), (M, e)))(M)
print("all converged:", bool(solution.converged.all()))
print("iterations:", int(solution.iterations.min()), "to", int(solution.iterations.max()))
print(f"largest residual: {float(solution.residual.max()):.1e}")

# %%
# Derivatives
# -----------
# The closed forms are :math:`\partial E/\partial M = 1/(1 - e\cos E)` and
# :math:`\partial E/\partial e = \sin E/(1 - e\cos E)`. Forward mode gives both to rounding.

one, zero = torch.ones_like(M), torch.zeros_like(M)
each = vmap(eccentric_anomaly)
E, dE_dM = jvp(each, (M, e * one), (one, zero))
_, dE_de = jvp(each, (M, e * one), (zero, one))
print(f"error of dE/dM: {float((dE_dM - 1 / (1 - e * E.cos())).abs().max()):.1e}")
print(f"error of dE/de: {float((dE_de - E.sin() / (1 - e * E.cos())).abs().max()):.1e}")

# %%
# In equal times the planet moves far near the sun and little far from it, as Kepler's second law
# says.

x, y = E.cos() - e, (1 - e**2).sqrt() * E.sin()
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
left.plot(x, y, color="0.7")
left.scatter(x[:-1:40], y[:-1:40], c=dE_dM[:-1:40], cmap="viridis", zorder=3)
left.plot(0, 0, "o", color="tab:orange", markersize=10)
left.set(aspect="equal", title="equal times apart; colour: dE/dM")
right.plot(M, dE_dM, label="∂E/∂M")
right.plot(M, dE_de, label="∂E/∂e")
right.set(xlabel="mean anomaly M", title="derivatives")
right.legend()
plt.show()
