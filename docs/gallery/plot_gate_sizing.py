"""
A geometric program: the sizes of gates
=======================================

A gate of a circuit is faster the larger it is, and slows down the gates that drive it. Which sizes make the
circuit fastest, on a given area? In logarithms that is a convex problem, ``ConvexLayer(gp=True)``, and so
**every sensitivity comes with the design**: what is the area worth, which capacitance is in the way?

Boyd, Kim, Patil and Horowitz, "Digital circuit optimization via geometric programming" (2005).
"""

import cvxpy as cp
import matplotlib.pyplot as plt
import torch

from implicit_solvers.problems.convex import ConvexLayer

F64 = torch.float64

# %%
# The circuit
# -----------
# Seven gates, two outputs. A gate of size ``x`` has the resistance ``1 / x``, and drives its own capacitance,
# proportional to ``x``, and the inputs of the gates after it. A signal is there when the latest of the inputs
# is, and the gate has passed it on.

after = {0: [3], 1: [3, 4], 2: [4], 3: [5], 4: [5, 6], 5: [], 6: []}
outputs = [5, 6]

size, arrival = cp.Variable(7, pos=True), cp.Variable(7, pos=True)
latest = cp.Variable(pos=True)
capacitance, load = cp.Parameter(7, pos=True), cp.Parameter(2, pos=True)
area = cp.Parameter(pos=True)

delays = []
for gate, driven in after.items():
    charge = 0.5 * size[gate]
    for other in driven:
        charge = charge + capacitance[other] * size[other]
    if gate in outputs:
        charge = charge + load[outputs.index(gate)]
    delays.append(charge / size[gate])

limit = cp.sum(size) <= area
constraints = [limit, size >= 1]
for gate in after:
    before = [g for g, driven in after.items() if gate in driven]
    if not before:
        constraints.append(delays[gate] <= arrival[gate])
    constraints += [arrival[g] + delays[gate] <= arrival[gate] for g in before]
constraints += [arrival[gate] <= latest for gate in outputs]

problem = cp.Problem(cp.Minimize(latest), constraints)
layer = ConvexLayer(problem, [capacitance, load, area], [size], duals=[limit], gp=True)

# %%
# A design, and what it depends on
# --------------------------------
# Elasticities: by how many percent the delay changes with one percent of each parameter. That of the area is
# the dual variable of its limit, too.

parameters = {
    "capacitance": torch.ones(7, dtype=F64),
    "load": torch.tensor([6.0, 12.0], dtype=F64),
    "area": torch.tensor(30.0, dtype=F64),
}
for value in parameters.values():
    value.requires_grad_()
value = layer(*parameters.values()).value
slopes = torch.autograd.grad(value.objective.log(), list(parameters.values()))
elasticity = [s * p for s, p in zip(slopes, parameters.values(), strict=True)]
print(f"delay {value.objective.item():.4f}, sizes {value.variables[0].detach().numpy().round(2)}")
print(f"elasticity of the area {elasticity[2].item():.5f}, its dual {-value.duals[0].item():.5f}")

h = 1e-5
with torch.no_grad():
    rest = [parameters["capacitance"], parameters["load"]]
    far = [layer(*rest, parameters["area"] * (1 + k * h)).value.objective.log() for k in (1, -1)]
print(f"by differences {(far[0] - far[1]).item() / (2 * h):.5f}")

# %%
# All areas at once
# -----------------
# One problem for each area; the slope at one of them is the price of area there.

areas = torch.linspace(9, 80, 40, dtype=F64, requires_grad=True)
curve = layer(*rest, areas).value
(price,) = torch.autograd.grad(curve.objective.sum(), areas)

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
left.plot(areas.detach(), curve.objective.detach())
for at in (5, 12, 24):
    near = areas.detach()[max(at - 5, 0) : at + 6]
    left.plot(near, curve.objective[at].item() + price[at] * (near - areas[at].item()), "k--", lw=1)
left.set(xlabel="area", ylabel="delay", title="Delay, and the price of area")
sizes = curve.variables[0].detach()
for gate in range(7):
    middle.plot(areas.detach(), sizes[:, gate], label=f"gate {gate + 1}")
middle.set(xlabel="area", title="Sizes")
middle.legend(fontsize=8)
names = [*(f"input of gate {g + 1}" for g in range(3, 7)), "first load", "second load", "area"]
bars = torch.cat([e.detach().reshape(-1) for e in elasticity])[3:]  # nothing drives the others
right.barh(names, bars)
right.invert_yaxis()
right.axvline(0, color="0.5", lw=0.8)
right.set(title="Elasticities of the delay, at area 30")
plt.show()
