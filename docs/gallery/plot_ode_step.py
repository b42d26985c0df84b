"""
A differentiable step of an ODE
===============================

An implicit Runge-Kutta method solves an equation in every step. The trapezoidal rule,

.. math:: y_{k+1} = y_k + \\tfrac h2 \\left(F(y_k) + F(y_{k+1})\\right),

is stable where explicit methods need tiny steps. As a layer it is differentiable: here the stiffness
of a Van der Pol oscillator is learned from a noisy observation of its orbit.
"""

import matplotlib.pyplot as plt
import torch

import implicit_solvers as ims

torch.manual_seed(0)


def van_der_pol(y, mu):
    """The right-hand side, with the position y[0] and the velocity y[1]."""
    return torch.stack([y[1], mu * (1 - y[0] ** 2) * y[1] - y[0]])


def trapezoidal(after, before, mu, h):
    return after - before - h / 2 * (van_der_pol(before, mu) + van_der_pol(after, mu))


def orbit(mu, y0, h, steps):
    ys = [y0]
    for _ in range(steps):
        ys.append(ims.root(trapezoidal, ys[-1], (ys[-1], mu, h), solver=ims.Newton()).value)
    return torch.stack(ys)


# %%
# An orbit
# --------
# Nine units of time at a stiffness of 3, in steps of 0.15.

h = torch.tensor(0.15, dtype=torch.float64)
y0 = torch.tensor([2.0, 0.0], dtype=torch.float64)
truth = torch.tensor(3.0, dtype=torch.float64)
clean = orbit(truth, y0, h, 60)
observed = clean[:, 0] + 0.1 * torch.randn(61, dtype=torch.float64)

# %%
# Learn the stiffness
# -------------------
# The gradient goes through every step by one small linear solve each. Gauss-Newton needs the
# sensitivity of the orbit, and forward mode gives it in one pass.


def position(mu):
    return orbit(mu, y0, h, 60)[:, 0]


mu = torch.tensor(1.5, dtype=torch.float64)
history = [float(mu)]
for _ in range(6):
    now, slope = torch.func.jvp(
        lambda mu: orbit(mu, y0, h, 60)[:, 0], (mu,), (torch.ones_like(mu),)
    )
    mu = mu + (slope @ (observed - now)) / (slope @ slope)
    history.append(float(mu))
print("stiffness:", " ".join(f"{value:.4f}" for value in history))

# %%
# The last slope also tells the standard error of the estimate, 0.1 divided by its norm.

print(f"estimate {history[-1]:.3f} ± {0.1 / float(slope.norm()):.3f}, truth 3")
fitted = orbit(mu, y0, h, 60)
t = 0.15 * torch.arange(61)
figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
axes.plot(t, observed, ".", color="0.6", markersize=4, label="observed")
axes.plot(t, orbit(torch.tensor(1.5, dtype=torch.float64), y0, h, 60)[:, 0], "--", label="start")
axes.plot(t, fitted[:, 0], label="fitted")
axes.set(xlabel="time", ylabel="position")
axes.legend(loc="lower left", ncols=3)
plt.show()
