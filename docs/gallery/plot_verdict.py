"""
When is an equation solved?
===========================

A residual says little: it is small where the function is small, in whatever units that is measured. A solve here ends by
an estimate of the error of :math:`z`, in units of :math:`z`, and says it: ``Solution.error``.
"""

import matplotlib.pyplot as plt
import torch

import implicit_solvers as ims

F64 = torch.float64


def one(value):
    return torch.tensor(value, dtype=F64)


# %%
# A scaled function
# -----------------
#
# :math:`c\,(z^3 - z - 2) = 0` has the same root for every :math:`c`. The residual at the end follows :math:`c` over forty
# orders of magnitude; the error, its estimate and the number of steps do not.

root = one(1.521379706804567569604)
powers = torch.arange(-20, 21, 2)
newton = ims.Newton(rtol=1e-4)
cubes = [
    ims.root(lambda z, c=10.0**k: c * (z**3 - z - 2), one(2.0), solver=newton)
    for k in powers.tolist()
]
assert len({(int(s.status), int(s.iterations)) for s in cubes}) == 1

# %%
# A double root
# -------------
#
# :math:`(e^z - 1)^2 = 0`: the residual is the square of the error, so that its rounding hides the root from afar. The
# solve goes on until the estimate is small, not the residual.

budgets = list(range(1, 41, 3))
double = [
    ims.root(
        lambda z: torch.expm1(z) ** 2, one(1.0), solver=ims.Newton(max_steps=k), on_failure="mask"
    )
    for k in budgets
]

# %%
# A plateau
# ---------
#
# :math:`\arctan(z - 3) + 2` has no root, and :math:`1/z` neither: their values and slopes become as small as one likes
# where :math:`z` runs away. Neither ever counts as solved.

for name, f in {"1 / z": lambda z: 1 / z, "arctan": lambda z: torch.atan(z - 3) + 2}.items():
    print(f"{name:8}", ims.root(f, one(1.0), on_failure="mask"))

flat = [
    ims.root(lambda z: 1 / z, one(1.0), solver=ims.Newton(max_steps=k), on_failure="mask")
    for k in budgets
]
assert not any(bool(s.converged) for s in flat)

# %%
# In pictures
# -----------

figure, (left, right, last) = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
left.semilogy(powers, [float(s.residual) for s in cubes], "o-", label="residual")
left.semilogy(powers, [float((s.value - root).abs()) for s in cubes], "s", label="error")
left.semilogy(powers, [float(s.error) for s in cubes], "k+", label="estimate")
left.set(xlabel="power of ten of $c$", title="$c\\,(z^3 - z - 2) = 0$")
right.semilogy(budgets, [float(s.residual) for s in double], "o-", label="residual")
right.semilogy(budgets, [float(s.value.abs()) for s in double], "s", label="error")
right.semilogy(budgets, [float(s.error) for s in double], "k+", label="estimate")
right.set(xlabel="steps", title="$(e^z - 1)^2 = 0$")
last.semilogy(budgets, [float(s.residual) for s in flat], "o-", label="residual")
last.semilogy(budgets, [float(s.value.abs()) for s in flat], "^", label="size of $z$")
last.semilogy(budgets, [float(s.error) for s in flat], "k+", label="estimate")
last.set(xlabel="steps", title="$1 / z = 0$")
for axes in (left, right, last):
    axes.legend()
plt.show()
