"""Layers as modules: all that torch.nn and torch.func expect of one."""

import copy
import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

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


class Energy(nn.Module):
    """``|z - U x|^2 / 2 + sum softplus(V z)``, one number for each row."""

    def __init__(self, n=4):
        super().__init__()
        self.inner, self.outer = nn.Linear(n, n), nn.Linear(n, n)

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


def unrolled_descent(energy, x, steps=150):
    z = torch.zeros_like(x)
    for _ in range(steps):
        slope = torch.sigmoid(energy.inner(z)) @ energy.inner.weight
        z = z - 0.5 * (z - energy.outer(x) + slope)
    return z


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


@each_class
def test_trains(kind):
    layer, x = make(kind), X
    target = make(kind)(x).detach()
    optimizer = torch.optim.Adam(layer.parameters(), lr=2e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (layer(x) - target).pow(2).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]


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
def test_state_dict_round_trip(kind):
    layer, other = make(kind), make(kind)
    assert set(layer.state_dict()) == {f"cell.{name}" for name in layer.cell.state_dict()}
    assert not torch.equal(other(X), layer(X))
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(X), layer(X), rtol=0, atol=0)


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
    agree(gradients(layer, layer(X)), gradients(layer, unrolled(layer.cell, X)))
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
def test_pickle(kind):
    adjoint = ims.ImplicitAdjoint(ims.GMRES() if kind != "minimize" else ims.CG())
    layer = make(kind, adjoint=adjoint, on_failure="mask")
    layer(X)
    again = pickle.loads(pickle.dumps(layer))
    agree(gradients(again, again(X)), gradients(layer, layer(X)), 0)
    assert again.adjoint == adjoint and repr(again) == repr(layer)


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
    reference = Cell().double()
    reference.load_state_dict(layer.cell.state_dict())
    layer.cell.register_forward_hook(lambda m, inputs, out: shapes.append(out.shape) or out * 0.5)
    out = layer(X)
    assert len(shapes) > 5
    half = unrolled(lambda z, x: 0.5 * reference(z, x), X)
    ours = gradients(layer.cell, out)
    agree(ours, gradients(reference, half))


def test_one_cell_in_two_layers_sums_gradients():
    shared = Cell().double()
    first, second = ims.nn.FixedPoint(shared), ims.nn.FixedPoint(shared, solver=ims.Newton())
    model = nn.Sequential(first, second)
    assert len(list(model.parameters())) == len(list(shared.parameters()))
    out = model(X)
    agree(
        gradients(shared, out),
        gradients(shared, unrolled(shared, unrolled(shared, X))),
    )


class Twice(nn.Module):
    """One parameter under two names."""

    def __init__(self):
        super().__init__()
        self.inner = self.outer = nn.Parameter(torch.tensor(0.3))

    def forward(self, z, x):
        return torch.tanh(self.inner * z + self.outer**2 * x)


class Unrolled(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell

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


def scaled(z, x):
    return torch.sin(z) * x


def test_without_batch_dims_a_batch_is_one_problem():
    sol = ims.nn.FixedPoint(scaled, return_solution=True)(0.5 * X)
    assert sol.converged.shape == ()


@pytest.mark.parametrize("kind", ["left out", "given"])
def test_every_input_carries_the_lanes_so_that_finished_ones_leave(kind):
    rows = []

    def cell(z, x):
        rows.append(len(z))
        return x * torch.cos(z)

    x = torch.tensor([[0.01]] * 15 + [[0.9]], dtype=F64)
    options = {} if kind == "left out" else {"in_dims": (0,)}
    solver = ims.FixedPointIteration()
    layer = ims.nn.FixedPoint(
        cell, solver=solver, batch_dims=1, return_solution=True, init=torch.ones_like, **options
    )
    sol = layer(x)
    assert sol.iterations.shape == (16,) and sol.iterations[0] < sol.iterations[-1]
    assert min(rows) == 1


def test_a_nan_lane_leaves_the_parameters_alone():
    layer = make(on_failure="mask")
    x = X.clone()
    x[2] = torch.nan
    rest = X[[0, 1, 3, 4]]
    out = layer(x)
    agree(
        gradients(layer, out[[0, 1, 3, 4]]),
        gradients(layer, layer(rest)),
    )


# ---- torch.func --------------------------------------------------------------------------------


def loss(layer, p, x):
    return functional_call(layer, p, (x,)).pow(2).sum()


def other_values(layer):
    """Parameters that the layer does not hold: backward must not read those that it does."""
    return {name: 0.9 * p.detach() + 0.05 for name, p in layer.named_parameters()}


@each_class
def test_per_sample_gradients(kind):
    cls, cell, reference = CASES[kind]
    layer = cls(cell()).double()
    p = other_values(layer)
    ours = vmap(grad(lambda p, x: loss(layer, p, x)), (None, 0))(p, X)
    same = cls(cell()).double()
    same.load_state_dict(p)
    for i, x in enumerate(X):
        agree({k: g[i] for k, g in ours.items()}, gradients(same, reference(same.cell, x)))


@each_class
def test_functional_call_then_backward(kind):
    layer = make(kind)
    p = {k: v.requires_grad_() for k, v in other_values(layer).items()}
    g = torch.autograd.grad(loss(layer, p, X), p.values())
    same = make(kind)
    same.load_state_dict(p)
    agree(dict(zip(p, g, strict=True)), gradients(same, same(X)))
    assert all(p.grad is None for p in layer.parameters())


def test_an_ensemble_of_stacked_states():
    members = [make() for _ in range(3)]
    p, _ = stack_module_state(members)
    skeleton = copy.deepcopy(members[0]).to("meta")
    ours = vmap(grad(lambda p: loss(skeleton, p, X)))(p)
    for i, member in enumerate(members):
        agree({k: g[i] for k, g in ours.items()}, gradients(member, member(X)))


def test_vmap_of_the_layer_equals_batch_dims():
    layer = make()
    torch.testing.assert_close(vmap(ims.nn.FixedPoint(layer.cell))(X), layer(X))


# ---- Several processes -------------------------------------------------------------------------

WORKER = """
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import implicit_solvers as ims

rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group(
    "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world
)


class Cell(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, z, x):
        return torch.tanh(self.inner(z) + self.outer(x))


layer = ims.nn.FixedPoint(Cell(), batch_dims=1).double()
x, state = torch.load(f"{folder}/inputs.pt", weights_only=True)
if rank == 0:
    layer.load_state_dict(state)  # the others get it from this one
model = DistributedDataParallel(layer)
for _ in range(2):  # a second pass is where DDP finds parameters that were not reduced
    model.zero_grad()
    model(x.chunk(world)[rank]).pow(2).mean().backward()
torch.save({k: p.grad for k, p in layer.named_parameters()}, f"{folder}/gradients{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="needs torch.distributed with gloo",
)
def test_distributed_data_parallel_equals_one_process(tmp_path):
    layer, x = make(), X[:4]
    torch.save((x, layer.state_dict()), tmp_path / "inputs.pt")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), "2", str(tmp_path)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(outputs)
    layer(x).pow(2).mean().backward()
    expected = {name: p.grad for name, p in layer.named_parameters()}
    for rank in range(2):
        ours = torch.load(tmp_path / f"gradients{rank}.pt", weights_only=True)
        agree(ours, expected, 1e-6)


# ---- Wrong arguments ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cell, options, error, message",
    [
        (3, {}, TypeError, "cell is a int: pass a function or a module"),
        (None, {}, TypeError, "cell is a NoneType"),
        (Cell, {}, TypeError, "cell is the class Cell: pass an instance"),
        (Cell(), {"init": X}, TypeError, "init is a Tensor: pass a function of the input"),
        (Cell(), {"init": None}, TypeError, "init is a NoneType"),
    ],
)
@each_class
def test_refused_at_once(kind, cell, options, error, message):
    with pytest.raises(error, match=message):
        CASES[kind][0](cell, **options)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"init": lambda x: None}, TypeError, "init(x) has a leaf of type NoneType"),
        ({"init": lambda x: 0.0}, TypeError, "init(x) has a leaf of type float"),
        ({"init": lambda x: {}}, ValueError, "init(x) is an empty pytree"),
        ({"init": lambda x: x.long()}, TypeError, "init(x) has dtype torch.int64"),
        ({"init": lambda x: (x, x.float())}, ValueError, "init(x) mixes"),
        ({"init": lambda x: x[:, :2]}, ValueError, "fn returned a tensor of shape (5, 4)"),
        ({"init": lambda x: x[0, 0]}, ValueError, "fn returned a tensor of shape"),
        ({"solver": ims.Anderson}, TypeError, "solver is the class Anderson"),
        ({"solver": ims.GradientDescent()}, ValueError, "choose a solver for fixed_point"),
        ({"in_dims": 0}, ValueError, "batch_dims is 0"),
        ({"batch_dims": -1}, ValueError, "batch_dims is -1"),
        ({"batch_dims": 3}, ValueError, "fewer than batch_dims=3"),
        ({"batch_dims": 1, "in_dims": (0, 0)}, ValueError, "for 1 args"),
        ({"on_failure": "ignore"}, ValueError, "on_failure is 'ignore'"),
    ],
)
def test_refused_in_a_call(options, error, message):
    layer = ims.nn.FixedPoint(lambda z, x: 0.5 * x, **options)
    with pytest.raises(error) as caught:
        layer(X)
    assert message in str(caught.value)


def test_an_input_without_lanes_is_refused():
    layer = ims.nn.FixedPoint(lambda z, x, a: a * x, batch_dims=1)
    with pytest.raises(ValueError, match=r"args\[1\] carries lanes, .* put None for it"):
        layer(X, torch.tensor(0.5, dtype=F64))


def test_messages_name_the_cell():
    layer = ims.nn.FixedPoint(Cell().double(), solver=ims.Anderson(max_steps=1))
    with pytest.raises(ims.ConvergenceError, match="fixed_point of Cell failed"):
        layer(X)
