"""
Implied volatility
==================

The Black-Scholes formula gives the price of an option from the volatility :math:`\\sigma` of its
stock. Markets quote prices; the volatility that explains a price solves

.. math:: C(\\sigma; S, K, T, r) = c .

The price grows with the volatility, so a bracket always works. The derivative of the solution with
respect to the price is one over *vega*; those with respect to everything else come with it.
"""

import matplotlib.pyplot as plt
import torch
from torch.func import grad, vmap

import implicit_solvers as ims


def normal_cdf(x):
    return 0.5 * torch.erfc(-x / 2**0.5)


def call_price(sigma, S, K, T, r):
    """Black and Scholes (1973), equation 13."""
    d1 = ((S / K).log() + (r + sigma**2 / 2) * T) / (sigma * T.sqrt())
    return S * normal_cdf(d1) - K * (-r * T).exp() * normal_cdf(d1 - sigma * T.sqrt())


def mispricing(sigma, price, S, K, T, r):
    return call_price(sigma, S, K, T, r) - price


def implied_volatility(price, S, K, T, r):
    low, high = torch.full_like(price, 1e-3), torch.full_like(price, 5.0)
    start = torch.full_like(price, 0.2)
    return ims.root(mispricing, start, (price, S, K, T, r), bracket=(low, high))


# %%
# A market with a smile
# ---------------------
# Prices are made with a volatility that depends on strike and maturity; the solver finds it again.

S = torch.tensor(100.0, dtype=torch.float64)
r = torch.tensor(0.02, dtype=torch.float64)
K = torch.linspace(70, 130, 61, dtype=torch.float64)
T = torch.tensor([0.25, 0.5, 1.0, 2.0], dtype=torch.float64)
strikes, maturities = torch.meshgrid(K, T, indexing="ij")
moneyness = (strikes / S).log() / maturities.sqrt()
true = 0.18 + 0.08 * moneyness**2 - 0.05 * moneyness
prices = call_price(true, S, strikes, maturities, r)

solve = vmap(vmap(implied_volatility, (0, None, None, 0, None)), (0, None, 0, None, None))
solution = solve(prices, S, K, T, r)
print("all converged:", bool(solution.converged.all()))
print("function values, at most:", int(solution.iterations.max()))
print(f"largest error: {float((solution.value - true).abs().max()):.1e}")

# %%
# The slope is one over vega
# --------------------------
# Where vega is small, the price says little about the volatility: the derivative tells how much an
# error of one cent in the price moves the answer.

slope = vmap(
    vmap(grad(lambda *a: implied_volatility(*a).value), (0, None, None, 0, None)),
    (0, None, 0, None, None),
)(prices, S, K, T, r)
vega = vmap(vmap(grad(call_price), (0, None, None, 0, None)), (0, None, 0, None, None))(
    solution.value, S, K, T, r
)
print(f"slope times vega, largest distance from one: {float((slope * vega - 1).abs().max()):.1e}")

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for i, maturity in enumerate(T.tolist()):
    left.plot(K, 100 * solution.value[:, i], label=f"{maturity:g} years")
    right.semilogy(K, slope[:, i])
left.set(xlabel="strike", ylabel="implied volatility, %", title="the smile, found again")
left.legend()
right.set(xlabel="strike", ylabel="∂σ/∂price", title="what one unit of price does to it")
plt.show()
