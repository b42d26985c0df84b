"""The layer where people use it: modules, optimizers, compile, checkpoint, hooks, workers."""

import pickle
import shutil

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

import implicit_solvers as ims


class Equilibrium(nn.Module):
    """``z = tanh(W z + U x)`` for a batch of inputs, one lane each."""

    def __init__(self, n=4):
        super().__init__()
        self.inner, self.outer = nn.Linear(n, n), nn.Linear(n, n)
        nn.init.orthogonal_(self.inner.weight, 0.5)
        self.solver = ims.Anderson()

    def forward(self, x):
        def cell(z, x):
            return torch.tanh(self.inner(z) + self.outer(x))

        start = torch.zeros_like(x)
        lanes = {"batch_dims": x.dim() - 1, "in_dims": (0,) if x.dim() > 1 else None}
        return ims.fixed_point(cell, start, (x,), solver=self.solver, **lanes).value


def unrolled(model, x, steps=200):
    z = torch.zeros_like(x)
    for _ in range(steps):
        z = torch.tanh(model.inner(z) + model.outer(x))
    return z


@pytest.fixture
def model():
    return Equilibrium().double()


X = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(5, 4)


def gradients(model, out):
    model.zero_grad()
    out.pow(2).sum().backward()
    return [p.grad.clone() for p in model.parameters()]


def agree(ours, reference, tolerance=1e-9):
    for a, b in zip(ours, reference, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_gradients_equal_the_unrolled_ones(model):
    agree(gradients(model, model(X)), gradients(model, unrolled(model, X)))


def test_adam_trains_the_module(model):
    target = unrolled(Equilibrium().double(), X).detach()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = (model(X) - target).pow(2).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


def train_three_steps(model, call):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    trace = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = call(X).pow(2).sum()
        loss.backward()
        trace.append(loss.detach())
        trace.extend(p.grad.clone() for p in model.parameters())
        optimizer.step()
    return trace


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compile_with_graph_breaks_trains_alike(model):
    other = Equilibrium().double()
    other.load_state_dict(model.state_dict())
    compiled = torch.compile(other)
    # the compiled parts may round in another order
    agree(train_three_steps(model, model), train_three_steps(other, compiled), 1e-10)


def test_no_grad_and_inference_mode(model):
    expected = model(X).detach()
    with torch.no_grad():
        out = model(X)
    assert not out.requires_grad
    torch.testing.assert_close(out, expected)
    with torch.inference_mode():
        torch.testing.assert_close(model(X.clone()), expected)
        newton = ims.root(lambda z, x: z - torch.cos(z) * x, X[0].clone(), (X[0].clone(),))
    assert bool(newton.converged)


def test_a_captured_inference_tensor_is_usable():
    with torch.inference_mode():
        x = torch.ones(3, dtype=torch.float64) * 2
        sol = ims.root(lambda z: z**3 - x, torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(sol.value.clone(), x.clone() ** (1 / 3))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint(model, use_reentrant):
    x = X.clone().requires_grad_()
    out = checkpoint(model, x, use_reentrant=use_reentrant)
    agree(gradients(model, out), gradients(model, model(X)), 1e-12)


def test_save_on_cpu(model):
    with torch.autograd.graph.save_on_cpu():
        out = model(X)
    agree(gradients(model, out), gradients(model, model(X)), 1e-12)


def test_saved_tensor_hooks_around_every_entry_point():
    a = torch.tensor([2.0, 3.0], dtype=torch.float64, requires_grad=True)
    z0 = torch.ones(2, dtype=torch.float64)
    A = torch.eye(2, dtype=torch.float64)
    with torch.autograd.graph.save_on_cpu():
        solutions = [
            ims.root(lambda z: z**2 - a, z0).value,
            ims.minimize(lambda z: ((z**2 - a) ** 2).sum(), z0).value,
            ims.least_squares(lambda z: z**2 - a, z0).value,
            ims.linear_solve(ims.MatrixOperator(A * a.sqrt()), a).value,
            torch.func.vmap(lambda a: ims.root(lambda z: z**2 - a, z0[0]).value)(a),
        ]
    for z in solutions:
        (g,) = torch.autograd.grad(z.sum(), a)
        torch.testing.assert_close(g, 0.5 / a.detach().sqrt())


def test_pickle(model):
    again = pickle.loads(pickle.dumps(model))
    torch.testing.assert_close(again(X), model(X))
    assert again.solver == model.solver


class Roots(Dataset):
    """Square roots by Newton, computed in the worker."""

    def __len__(self):
        return 6

    def __getitem__(self, i):
        a = torch.tensor(float(i + 1))
        sol = ims.root(lambda z: z**2 - a, torch.tensor(1.0))
        with ims.monitor() as log:
            ims.root(lambda z: z**2 - a, torch.tensor(1.0))
        return sol.value, len(log.records)


def test_data_loader_worker():
    loader = DataLoader(Roots(), batch_size=3, num_workers=1)
    values, records = zip(*loader, strict=True)
    torch.testing.assert_close(torch.cat(values), torch.arange(1.0, 7.0).sqrt())
    assert torch.cat(records).tolist() == [1] * 6


@pytest.mark.parametrize("order", [1, 2])
def test_retain_graph_and_twice(order):
    a = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    z = ims.root(lambda z: z**2 - a, torch.tensor(1.0, dtype=torch.float64)).value
    first = torch.autograd.grad(z, a, retain_graph=True)[0]
    again = torch.autograd.grad(z, a)[0]
    assert float(first) == float(again)
