"""
Optimal control with constraints
================================

A cart is driven to rest at the origin in two seconds, with as little fuel as possible, a thrust that is
limited, and a speed limit. ``minimize`` finds the thrusts under these constraints, and the plan is
differentiable: **how does the fuel change with the start, and what is the speed limit worth?**
"""

import matplotlib.pyplot as plt
import torch

import implicit_solvers as ims

F64 = torch.float64

# %%
# The problem
# -----------
# Position and speed follow the thrusts of 40 intervals. The cost is the work of the engine; the cart ends
# at rest in the origin (two equalities), and is never faster than the limit (80 inequalities).

steps, dt = 40, 0.05


def states(thrust, start):
    speed = start[..., 1:] + dt * thrust.cumsum(-1)
    before = torch.cat([start[..., 1:], speed[..., :-1]], -1)
    position = start[..., :1] + dt * (before + dt * thrust / 2).cumsum(-1)
    return position, speed


def fuel(thrust, start, limit):
    return dt * (thrust**2).sum(-1) / 2


def at_rest(thrust, start, limit):
    position, speed = states(thrust, start)
    return torch.stack([position[..., -1], speed[..., -1]], -1)


def too_fast(thrust, start, limit):
    speed = states(thrust, start)[1]
    return {"forward": speed - limit, "backward": -speed - limit}


def plan(start, limit):
    return ims.minimize(
        fuel,
        torch.zeros(steps, dtype=F64),
        (start, limit),
        bounds=(-4.0, 4.0),
        equalities=at_rest,
        inequalities=too_fast,
    )


# %%
# Plans, and their derivatives
# ----------------------------
# The multiplier of a constraint is the price of its limit: summed over time they are the derivative of
# the fuel, which comes by backward() too.

start = torch.tensor([1.0, 0.0], dtype=F64, requires_grad=True)
limit = torch.tensor(0.6, dtype=F64, requires_grad=True)
sol = plan(start, limit)
cost = fuel(sol.value, start, limit)
by_start, by_limit = torch.autograd.grad(cost, (start, limit), retain_graph=True)
prices = sum(y.sum() for y in sol.multipliers.inequalities.values())
print(sol)
print(
    f"fuel {cost.item():.4f}, by position {by_start[0].item():.4f}, by speed {by_start[1].item():.4f}"
)
print(f"by the speed limit {by_limit.item():.4f}; minus the prices {-prices.item():.4f}")

moved = [fuel(plan(start.detach(), limit.detach() + h).value, 0, 0) for h in (1e-4, -1e-4)]
print(f"by differences {(moved[0] - moved[1]).item() / 2e-4:.4f}")

# %%
# Many limits at once, as a batch; those that are too low for two seconds are INFEASIBLE.

limits = torch.linspace(0.4, 1.6, 25, dtype=F64)
many = ims.minimize(
    fuel,
    torch.zeros(len(limits), steps, dtype=F64),
    (start.detach().expand(len(limits), 2), limits.unsqueeze(-1)),
    bounds=(-4.0, 4.0),
    equalities=at_rest,
    inequalities=too_fast,
    batch_dims=1,
    in_dims=0,
    on_failure="mask",
)
print(many)

# %%
# The slope of the speed with respect to the start shows what the plan does with a push: nothing where the
# limit holds.

position, speed = states(sol.value, start)
rows = [torch.autograd.grad(v, start, retain_graph=True)[0][1] for v in speed]

time = dt * torch.arange(1, steps + 1)
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
left.step(time, sol.value.detach(), where="pre", label="thrust")
left.plot(time, position.detach(), label="position")
left.plot(time, speed.detach(), label="speed")
left.axhline(-limit.item(), color="gray", linestyle=":", label="speed limit")
left.set(xlabel="time", title="The plan")
left.legend(fontsize=8)
middle.plot(time, torch.stack(rows))
middle.set(xlabel="time", title="Speed, by the speed at the start")
costs = fuel(many.value, 0, 0)
right.plot(limits[many.converged], costs[many.converged])
right.plot(limit.item(), cost.item(), "o")
tangent = torch.tensor([0.55, 0.68])
right.plot(tangent, cost.item() + by_limit.item() * (tangent - limit.item()), "--")
right.set(xlabel="speed limit", title="Fuel, and its slope at one limit")
plt.show()
