"""
A receding horizon: warm starts, and a terminal cost that is learned
====================================================================

Three masses on springs are brought to rest by two forces that are limited. At every step a quadratic program
plans three steps ahead, and the first of them is made. The plan of the step before is a good **start for the next
one**, and the whole loop is differentiable: what the plan thinks of its end, **a terminal cost, is learned**.
"""

import matplotlib.pyplot as plt
import torch

from implicit_solvers.problems.qp import quadratic_program

F64 = torch.float64
torch.manual_seed(0)

# %%
# The masses
# ----------
# Positions and speeds, exact for forces that are held for half a second; the forces act on the outer masses.

chain = torch.tensor([[-2.0, 1, 0], [1, -2, 1], [0, 1, -2]], dtype=F64)
generator = torch.zeros(8, 8, dtype=F64)
generator[:3, 3:6], generator[3:6, :3] = torch.eye(3), chain
generator[3, 6], generator[5, 7] = 1.0, -1.0
transition = torch.linalg.matrix_exp(0.5 * generator)
A, B = transition[:6, :6], transition[:6, 6:]

# %%
# The plan
# --------
# The states of the next three steps are affine in the forces: ``states = free @ state + forced @ forces``.

horizon, limit = 3, 1.0
powers = [torch.linalg.matrix_power(A, k) for k in range(horizon + 1)]
free = torch.cat(powers[1:])
forced = torch.zeros(6 * horizon, 2 * horizon, dtype=F64)
for row in range(horizon):
    for column in range(row + 1):
        block = powers[row - column] @ B
        forced[6 * row : 6 * row + 6, 2 * column : 2 * column + 2] = block
eye = torch.eye(2 * horizon, dtype=F64)
G, h = torch.cat([eye, -eye]), torch.full((4 * horizon,), limit, dtype=F64)


def plan(state, terminal, start=None):
    """The forces of the next steps, for a batch of states."""
    weights = torch.cat([torch.ones(6 * (horizon - 1), dtype=F64), terminal])
    weighted = forced.T * weights
    Q = weighted @ forced + 0.1 * eye
    return quadratic_program(Q, state @ free.T @ weighted.T, G, h, start=start)


def driven(state, terminal, steps=20, warm=True):
    """What the loop costs, its states and forces, and the steps that the solver made."""
    cost, states, forces, counts, start = 0.0, [state], [], [], None
    for _ in range(steps):
        solution = plan(state, terminal, start)
        start = solution.value if warm else None
        force = solution.value.x[:, :2]
        state = state @ A.T + force @ B.T
        cost = cost + (state**2).sum(-1) + 0.1 * (force**2).sum(-1)
        states.append(state)
        forces.append(force)
        counts.append(solution.iterations)
    return cost.mean(), torch.stack(states), torch.stack(forces), torch.stack(counts)


# %%
# Warm and cold
# -------------

starts = torch.cat([torch.randn(12, 3, dtype=F64), 0.3 * torch.randn(12, 3, dtype=F64)], -1)
ones = torch.ones(6, dtype=F64)
before, states_before, _, warm = driven(starts, ones)
again, _, _, cold = driven(starts, ones, warm=False)
print(
    f"steps of the solver: {warm.double().mean().item():.1f} warm, {cold.double().mean().item():.1f} cold"
)
print(f"cost {before.item():.6f} and {again.item():.6f}")

# %%
# Learning what comes after the end
# ---------------------------------
# Each step drives the whole batch through the loop and differentiates it, twenty programs one after another.

log_terminal = torch.zeros(6, dtype=F64, requires_grad=True)
optimizer = torch.optim.Adam([log_terminal], lr=0.3)
history = []
for _ in range(8):
    optimizer.zero_grad()
    cost = driven(starts, log_terminal.exp())[0]
    cost.backward()
    optimizer.step()
    history.append(cost.item())
with torch.no_grad():
    after, states_after, forces, _ = driven(starts, log_terminal.exp())
print(f"cost {before.item():.3f} with the costs of a step at the end, {after.item():.3f} learned")

time = 0.5 * torch.arange(21)
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
left.plot(time, states_before[:, 0, 1].detach(), "--", label="middle mass, before")
left.plot(time, states_after[:, 0, 1], label="middle mass, learned")
left.step(time[:-1], forces[:, 0, 0], where="post", color="0.6", label="first force")
left.axhline(limit, color="0.8", linestyle=":")
left.axhline(-limit, color="0.8", linestyle=":")
left.set(xlabel="time", title="One of the problems")
left.legend(fontsize=8)
middle.plot(cold.double().mean(-1), label="cold")
middle.plot(warm.double().mean(-1), label="from the plan before")
middle.set(
    xlabel="step of the loop", ylim=(0, None), title="Steps of the solver, mean of the problems"
)
middle.legend(fontsize=8)
right.plot(history)
right.set(xlabel="step of learning", title="Cost of the loop")
plt.show()
