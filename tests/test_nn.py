"""Layers as modules, where people use them: torch.nn, torch.func, optimizers, hooks, workers."""

import copy
import functools
import pickle
import shutil

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

import implicit_solvers as ims

F64 = torch.float64
X = torch.linspace(-1, 1, 20, dtype=F64).reshape(5, 4)


class Cell(nn.Module):
    """``tanh(W z + U x)``, a contraction."""

    def __init__(self, n=4):
        super().__init__()
        self.inner, self.outer = nn.Linear(n, n), nn.Linear(n, n)
        nn.init.orthogonal_(self.inner.weight, 0.5)

    def forward(self, z, x):
        return torch.tanh(self.inner(z) + self.outer(x))


class Residual(Cell):
    def forward(self, z, x):
        return z - super().forward(z, x)


class Energy(Cell):
    """``|z - U x|^2 / 2 + sum softplus(V z)``, one number for each row."""

    def forward(self, z, x):
        return 0.5 * (z - self.outer(x)).pow(2).sum(-1) + self.softplus(z).sum(-1)

    def softplus(self, z):
        return nn.functional.softplus(self.inner(z))


class Normalized(nn.Module):
    """A cell with dropout and batch normalization: an equation in eval mode alone."""

    def __init__(self, n=4):
        super().__init__()
        self.linear, self.norm, self.dropout = nn.Linear(n, n), nn.BatchNorm1d(n), nn.Dropout(0.5)
        nn.init.orthogonal_(self.linear.weight, 0.5)
        self.norm.running_var.fill_(2.0)

    def forward(self, z, x):
        return torch.tanh(self.dropout(self.norm(self.linear(z))) + x)


def unrolled(cell, x, steps=150):
    z = torch.zeros_like(x)
    for _ in range(steps):
        z = cell(z, x)
    return z


def unrolled_descent(energy, x):
    def step(z, x):
        slope = torch.sigmoid(energy.inner(z)) @ energy.inner.weight
        return z - 0.5 * (z - energy.outer(x) + slope)

    return unrolled(step, x)


CASES = {
    "fixed_point": (ims.nn.FixedPoint, Cell, unrolled),
    "root": (ims.nn.Root, Residual, lambda cell, x: unrolled(super(Residual, cell).forward, x)),
    "minimize": (ims.nn.Minimize, Energy, unrolled_descent),
}
each_class = pytest.mark.parametrize("kind", CASES)


def make(kind="fixed_point", **options):
    layer, cell, _ = CASES[kind]
    return layer(cell(), batch_dims=1, **options).double()


def gradients(module, out):
    module.zero_grad()
    out.pow(2).sum().backward()
    return {name: p.grad.clone() for name, p in module.named_parameters()}


def unrolled_gradients(layer, x):
    """Return the gradients of a fixed point, by backpropagation through its steps."""
    return gradients(layer, unrolled(layer.cell, x))


def agree(ours, reference, tolerance=1e-8):
    assert ours.keys() == reference.keys() and ours
    for name in ours:
        torch.testing.assert_close(ours[name], reference[name], rtol=tolerance, atol=tolerance)


@each_class
def test_gradients_equal_the_unrolled_ones(kind):
    layer = make(kind)
    x, y = X.clone().requires_grad_(), X.clone().requires_grad_()
    reference = CASES[kind][2]
    agree(gradients(layer, layer(x)), gradients(layer, reference(layer.cell, y)))
    torch.testing.assert_close(x.grad, y.grad)


def test_a_cell_that_returns_one_number_needs_no_lanes():
    layer = ims.nn.Minimize(lambda z, x, y: ((z - x) ** 2 + (z - y) ** 2).sum())
    torch.testing.assert_close(layer(X, 3 * X), 2 * X)


def train_step(layer, optimizer, loss_of=lambda out: out.pow(2).sum()):
    optimizer.zero_grad()
    loss = loss_of(layer(X))
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compile_with_graph_breaks_trains_alike():
    plain = make()
    compiled = torch.compile(copy.deepcopy(plain))
    for layer in (plain, compiled):
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
        layer.losses = [train_step(layer, optimizer) for _ in range(3)]
    # the compiled parts may round in another order
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-10)
    assert plain.losses == sorted(plain.losses, reverse=True)
    ours = {k.removeprefix("_orig_mod."): p.grad for k, p in compiled.named_parameters()}
    agree(ours, {k: p.grad for k, p in plain.named_parameters()}, 1e-10)


def test_pytrees_and_further_inputs():
    gain = nn.Parameter(torch.tensor(0.3, dtype=F64))

    def cell(z, x, shift):
        return {"a": gain * torch.cos(z["b"]) + x["in"], "b": 0.5 * z["a"] + shift}

    def start(x):
        return {"a": torch.zeros_like(x["in"]), "b": torch.ones_like(x["in"])}

    layer = ims.nn.FixedPoint(cell, init=start, batch_dims=1, in_dims=(0, None))
    z = layer({"in": X}, torch.tensor(0.1, dtype=F64))
    torch.testing.assert_close(z["a"], gain * torch.cos(0.5 * z["a"] + 0.1) + X)
    z["a"].sum().backward()
    assert gain.grad is not None and not list(layer.parameters())


# ---- Modules -----------------------------------------------------------------------------------


@each_class
def test_to(kind):
    layer = make(kind)
    expected = gradients(layer, layer(X))
    layer.to(torch.float32)
    out = layer(X.float())
    assert out.dtype == torch.float32
    single = gradients(layer, out)
    agree({name: g.double() for name, g in single.items()}, expected, 5e-3)
    layer.to(torch.float64)
    assert layer(X).dtype == torch.float64
    agree(gradients(layer, layer(X)), expected, 1e-5)  # the weights were rounded


def test_train_and_eval_reach_the_cell():
    layer = ims.nn.FixedPoint(Normalized(), batch_dims=1).double()
    assert layer.cell.dropout.training
    layer.eval()
    assert not layer.cell.training and not layer.cell.dropout.training
    before = copy.deepcopy(layer.state_dict())
    agree(gradients(layer, layer(X)), unrolled_gradients(layer, X))
    agree(dict(layer.state_dict()), dict(before), 0)
    layer.train()
    assert layer.cell.dropout.training


def test_deepcopy_is_independent():
    layer = make(init=torch.ones_like, solver=ims.FixedPointIteration())
    layer(X)
    other = copy.deepcopy(layer)
    expected = layer(X).detach()
    torch.testing.assert_close(other(X), expected, rtol=0, atol=0)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    torch.testing.assert_close(layer(X), expected, rtol=0, atol=0)
    assert not other(X).any()
    other(X).sum().backward()
    assert all(p.grad is None for p in layer.parameters())


@each_class
def test_pickle_and_state_dict_round_trip(kind):
    adjoint = ims.ImplicitAdjoint(ims.GMRES() if kind != "minimize" else ims.CG())
    layer, other = make(kind, adjoint=adjoint, on_failure="mask"), make(kind, adjoint=adjoint)
    expected = gradients(layer, layer(X))
    again = pickle.loads(pickle.dumps(layer))
    assert again.adjoint == adjoint and repr(again) == repr(layer)
    assert set(layer.state_dict()) == {f"cell.{name}" for name in layer.cell.state_dict()}
    assert not torch.equal(other(X), layer(X))
    other.load_state_dict(layer.state_dict())
    for same in (again, other):
        agree(gradients(same, same(X)), expected, 0)


def test_hooks_on_the_layer_fire_once():
    layer, seen = make(), []
    layer.register_forward_pre_hook(lambda m, inputs: (inputs[0] * 2,))
    layer.register_forward_hook(lambda m, inputs, out: seen.append(out.shape) or out + 1)
    layer.register_full_backward_hook(lambda m, before, after: seen.append("backward"))
    out = layer(X.clone().requires_grad_())
    torch.testing.assert_close(out, unrolled(layer.cell, 2 * X) + 1)
    out.sum().backward()
    assert seen == [X.shape, "backward"]


def test_hooks_on_the_cell_fire_and_count():
    layer, shapes = make(), []
    reference = copy.deepcopy(layer.cell)
    layer.cell.register_forward_hook(lambda m, inputs, out: shapes.append(out.shape) or out * 0.5)
    out = layer(X)
    assert len(shapes) > 5
    half = unrolled(lambda z, x: 0.5 * reference(z, x), X)
    agree(gradients(layer.cell, out), gradients(reference, half))


@pytest.mark.parametrize("part", ["cell", "layer"])
def test_full_backward_hooks_work_outside_of_transforms(part):
    layer, fired = make(), []
    expected = gradients(layer, layer(X))
    hooked = layer.cell if part == "cell" else layer
    hooked.register_full_backward_hook(lambda *_: fired.append(part))
    agree(gradients(layer, layer(X.clone().requires_grad_())), expected, 0)
    assert fired
    fired.clear()
    vmap(layer)(X[None].clone().requires_grad_()).sum().backward()
    assert not fired
    for transform in (torch.func.grad, torch.func.jacfwd)[: 2 if part == "cell" else 1]:
        with pytest.raises(RuntimeError, match="functorch transform"):
            transform(lambda x: layer(x).sum())(X)


def saved_on_cpu(layer, x):
    with torch.autograd.graph.save_on_cpu():
        return layer(x)


# further ways to call a layer
CALLS = {
    "checkpoint": lambda layer, x: checkpoint(layer, x, use_reentrant=False),
    "reentrant checkpoint": lambda layer, x: checkpoint(layer, x, use_reentrant=True),
    "save_on_cpu": saved_on_cpu,
    "vmap": lambda layer, x: vmap(ims.nn.FixedPoint(layer.cell))(x),
}


@pytest.mark.parametrize("name", CALLS)
def test_other_calls_give_the_same(name):
    layer = make()
    out = CALLS[name](layer, X.clone().requires_grad_())
    torch.testing.assert_close(out, layer(X))
    agree(gradients(layer, out), gradients(layer, layer(X)))


def test_saved_tensor_hooks_around_every_entry_point():
    a = torch.tensor([2.0, 3.0], dtype=F64, requires_grad=True)
    z0, A = torch.ones(2, dtype=F64), torch.eye(2, dtype=F64)
    with torch.autograd.graph.save_on_cpu():
        solutions = [
            ims.root(lambda z: z**2 - a, z0).value,
            ims.minimize(lambda z: ((z**2 - a) ** 2).sum(), z0).value,
            ims.least_squares(lambda z: z**2 - a, z0).value,
            ims.linear_solve(ims.MatrixOperator(A * a.sqrt()), a).value,
            vmap(lambda a: ims.root(lambda z: z**2 - a, z0[0]).value)(a),
        ]
    for z in solutions:
        (g,) = torch.autograd.grad(z.sum(), a, retain_graph=True)
        torch.testing.assert_close(g, 0.5 / a.detach().sqrt())
        assert torch.equal(torch.autograd.grad(z.sum(), a)[0], g)


def test_no_grad_and_inference_mode():
    layer = make()
    expected = layer(X).detach()
    with torch.no_grad():
        out = layer(X)
    assert not out.requires_grad
    torch.testing.assert_close(out, expected)
    with torch.inference_mode():
        torch.testing.assert_close(layer(X.clone()), expected)
        captured = X.clone() ** 2 + 1  # an inference tensor
        sol = ims.root(lambda z: z**3 - captured, captured)
    torch.testing.assert_close(sol.value.clone(), captured.clone() ** (1 / 3))


class Roots(Dataset):
    """Square roots by Newton, computed in the worker."""

    def __len__(self):
        return 6

    def __getitem__(self, i):
        a = torch.tensor(float(i + 1))
        with ims.monitor() as log:
            sol = ims.root(lambda z: z**2 - a, torch.tensor(1.0))
        return sol.value, len(log.records)


def test_data_loader_worker():
    loader = DataLoader(Roots(), batch_size=3, num_workers=1)
    values, records = zip(*loader, strict=True)
    torch.testing.assert_close(torch.cat(values), torch.arange(1.0, 7.0).sqrt())
    assert torch.cat(records).tolist() == [1] * 6


def test_data_loader_worker_that_is_spawned():
    solve = functools.partial(ims.linear_solve, ims.MatrixOperator(2 * torch.eye(4, dtype=F64)))
    options = {"num_workers": 1, "multiprocessing_context": "spawn"}
    loader = DataLoader(list(X), batch_size=None, collate_fn=solve, **options)
    torch.testing.assert_close(torch.stack([sol.value for sol in loader]), X / 2)


def test_one_cell_in_two_layers_sums_gradients():
    shared = Cell().double()
    first, second = ims.nn.FixedPoint(shared), ims.nn.FixedPoint(shared, solver=ims.Newton())
    model = nn.Sequential(first, second)
    assert len(list(model.parameters())) == len(list(shared.parameters()))
    out = model(X)
    agree(gradients(shared, out), gradients(shared, unrolled(shared, unrolled(shared, X))))


class Twice(nn.Module):
    """One parameter under two names."""

    def __init__(self):
        super().__init__()
        self.inner = self.outer = nn.Parameter(torch.tensor(0.3))

    def forward(self, z, x):
        return torch.tanh(self.inner * z + self.outer**2 * x)


class Unrolled(ims.nn.FixedPoint):
    def forward(self, x):
        return unrolled(self.cell, x)


@pytest.mark.parametrize("cell", [Cell, Twice])
@pytest.mark.parametrize("tie", [True, False])
def test_tied_parameters(cell, tie):
    layer = ims.nn.FixedPoint(cell(), batch_dims=1).double()
    if cell is Cell:
        layer.cell.outer.weight = layer.cell.inner.weight
    reference = Unrolled(layer.cell)
    agree(gradients(layer, layer(X)), gradients(layer, reference(X)))

    # other values in the places of the tied parameter: one for all its names, or one for each
    p = {
        name: (0.8 * p.detach() + 0.05 * i).requires_grad_()
        for i, (name, p) in enumerate(layer.named_parameters(remove_duplicate=tie))
    }

    def run(module):
        out = functional_call(module, p, (X,), tie_weights=tie)
        g = torch.autograd.grad(out.pow(2).sum(), p.values())
        return dict(zip(p, g, strict=True))

    agree(run(layer), run(reference))


def snapshot(layer):
    """Return every attribute, of every submodule, and copies of all tensors."""
    attributes = {
        (name, key): dict(value) if isinstance(value, dict) else value
        for name, module in layer.named_modules()
        for key, value in vars(module).items()
    }
    tensors = {name: tensor.detach().clone() for name, tensor in layer.state_dict().items()}
    return attributes, tensors


@each_class
@pytest.mark.parametrize("whole", [False, True])
def test_nothing_is_kept(kind, whole):
    layer = make(kind, return_solution=whole)
    attributes, tensors = snapshot(layer)
    out = layer(X)
    (out.value if whole else out).sum().backward()
    vmap(layer)(X.reshape(5, 1, 4))
    p = {name: 2 * p.detach() for name, p in layer.named_parameters()}

    def total(x):
        out = functional_call(layer, p, (x,))
        return (out.value if whole else out).sum()

    grad(total)(X)
    now, tensors_now = snapshot(layer)
    assert now == attributes
    agree(tensors_now, tensors, 0)


def test_return_solution():
    sol = make(return_solution=True)(X)
    assert isinstance(sol, ims.Solution)
    assert sol.converged.tolist() == [True] * 5
    layer = make()
    assert torch.equal(layer(X), ims.fixed_point(layer.cell, 0 * X, (X,), batch_dims=1).value)


def test_the_adjoint_is_the_one_given():
    layer = make(adjoint=ims.OneStepAdjoint())
    z = layer(X).detach()
    agree(gradients(layer, layer(X)), gradients(layer, layer.cell(z, X)))


def test_extra_repr():
    adjoint = ims.ImplicitAdjoint(ims.GMRES(restart=7))
    text = repr(make(solver=ims.Anderson(window=3), adjoint=adjoint, on_failure="warn"))
    assert "solver=Anderson(window=3)" in text and "(cell): Cell(" in text
    assert "adjoint=ImplicitAdjoint(linear_solver=GMRES(restart=7))" in text
    assert "batch_dims=1" in text and "on_failure='warn'" in text
    assert repr(ims.nn.Root(torch.sub)) == "Root(cell=sub, solver=None, adjoint=None)"


# ---- Lanes -------------------------------------------------------------------------------------


def test_without_batch_dims_a_batch_is_one_problem():
    sol = ims.nn.FixedPoint(lambda z, x: torch.sin(z) * x, return_solution=True)(0.5 * X)
    assert sol.converged.shape == ()


@pytest.mark.parametrize("in_dims", [None, (0,)], ids=["left out", "given"])
def test_every_input_carries_the_lanes_so_that_finished_ones_leave(in_dims):
    rows = []

    def cell(z, x):
        rows.append(len(z))
        return x * torch.cos(z)

    x = torch.tensor([[0.01]] * 15 + [[0.9]], dtype=F64)
    options = {"solver": ims.FixedPointIteration(), "init": torch.ones_like}
    layer = ims.nn.FixedPoint(cell, batch_dims=1, in_dims=in_dims, return_solution=True, **options)
    sol = layer(x)
    assert sol.iterations.shape == (16,) and sol.iterations[0] < sol.iterations[-1]
    assert min(rows) == 1


# ---- torch.func --------------------------------------------------------------------------------


def loss(layer, p, x):
    return functional_call(layer, p, (x,)).pow(2).sum()


def other_values(layer):
    """Parameters that the layer does not hold: backward must not read those that it does."""
    return {name: 0.9 * p.detach() + 0.05 for name, p in layer.named_parameters()}


@each_class
def test_functional_call_and_per_sample_gradients(kind):
    cls, _, reference = CASES[kind]
    layer, same = make(kind), make(kind)
    p = {k: v.requires_grad_() for k, v in other_values(layer).items()}
    same.load_state_dict(p)
    g = torch.autograd.grad(loss(layer, p, X), p.values())
    agree(dict(zip(p, g, strict=True)), gradients(same, same(X)))
    assert all(p.grad is None for p in layer.parameters())
    one = cls(layer.cell)
    ours = vmap(grad(lambda p, x: loss(one, p, x)), (None, 0))(p, X)
    for i, x in enumerate(X):
        agree({k: g[i] for k, g in ours.items()}, gradients(same, reference(same.cell, x)))


def test_an_ensemble_of_stacked_states():
    members = [make() for _ in range(3)]
    p, _ = stack_module_state(members)
    skeleton = copy.deepcopy(members[0]).to("meta")
    ours = vmap(grad(lambda p: loss(skeleton, p, X)))(p)
    for i, member in enumerate(members):
        agree({k: g[i] for k, g in ours.items()}, gradients(member, member(X)))


def test_messages_name_the_cell():
    layer = ims.nn.FixedPoint(Cell().double(), solver=ims.Anderson(max_steps=1))
    with pytest.raises(ims.ConvergenceError, match="fixed_point of Cell failed"):
        layer(X)
