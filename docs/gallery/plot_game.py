"""
An equilibrium of a game
========================

Firms choose how much to produce. Firm :math:`i` earns
:math:`q_i\\, p(Q) - c_i q_i - \\tfrac12 d\\, q_i^2` where the price falls with the total,
:math:`p(Q) = a\\, Q^{-1/\\eta}`. In the Cournot equilibrium no firm gains by changing its own quantity:

.. math:: \\frac{\\partial}{\\partial q_i} \\mathrm{profit}_i(q) = 0 \\quad \\text{for every } i .

This is a root of the *stacked* gradients, of which no potential exists: a minimizer would not find it.
How the market answers to a tax is one implicit derivative.
"""

import matplotlib.pyplot as plt
import torch
from torch.func import grad, jacrev, vmap

import implicit_solvers as ims

cost = torch.tensor([1.0, 1.1, 1.2, 1.3, 1.4], dtype=torch.float64)
firms = len(cost)


def profit(own, cost, others, tax):
    """What a firm earns that produces ``own`` where the others together produce ``others``."""
    price = 10 * (own + others) ** (-1 / 1.5)
    return own * (price - cost - tax) - 0.1 * own**2 / 2


def incentives(log_q, tax):
    """How each firm's profit changes with its own quantity, the others' held."""
    q = log_q.exp()
    return vmap(grad(profit), (0, 0, 0, None))(q, cost, q.sum() - q, tax)


def equilibrium(tax):
    start = torch.zeros(firms, dtype=torch.float64)
    return ims.root(incentives, start, (tax,)).value.exp()


tax = torch.tensor(0.3, dtype=torch.float64)
q = equilibrium(tax)
print("quantities:", " ".join(f"{value:.3f}" for value in q.tolist()))

# %%
# No firm can do better
# ---------------------
# The best answer of each firm to the others, by brute force:

trial = torch.linspace(1e-3, 2 * float(q.max()), 20001, dtype=torch.float64)
for i in range(firms):
    earned = profit(trial, cost[i], q.sum() - q[i], tax)
    print(
        f"firm {i}: equilibrium {float(q[i]):.4f}, best answer {float(trial[earned.argmax()]):.4f}"
    )

# %%
# Who bears a tax?
# ----------------
# The derivative of the equilibrium tells how quantities fall; the pass-through is the share of the
# tax that ends in the price.


def price(tax):
    return 10 * equilibrium(tax).sum() ** (-1 / 1.5)


print("dq/dtax:", " ".join(f"{value:.3f}" for value in jacrev(equilibrium)(tax).tolist()))
print(f"pass-through: {float(grad(price)(tax)):.3f}")

# %%
# The tax that raises most
# ------------------------
# Revenue is tax times quantity at the equilibrium. Its maximum is a root of its derivative: a root
# whose function contains a root.


def marginal_revenue(tax):
    return grad(lambda tax: tax * equilibrium(tax).sum())(tax)


best = ims.root(marginal_revenue, tax).value
print(f"best tax: {float(best):.4f}")

taxes = torch.linspace(0, 4, 81, dtype=torch.float64)
quantities = vmap(equilibrium)(taxes)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
left.plot(taxes, quantities, label=[f"firm {i}" for i in range(firms)])
left.set(xlabel="tax", ylabel="quantity")
left.legend()
right.plot(taxes, taxes * quantities.sum(1))
right.axvline(float(best), color="0.6", linestyle="--")
right.set(xlabel="tax", ylabel="revenue")
plt.show()
