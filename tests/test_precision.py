"""Half precision and autocast around a solve: what is solved is in float32 at least."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.utils.rnn import pack_sequence

import implicit_solvers as ims
from implicit_solvers.compiling import COMPILES
from implicit_solvers.problems import imaml
from implicit_solvers.problems.ernn import ERNN, LEAKY, Equilibrium, ERNNCell, Monotone, Unrolled
from tests.cases import CASES, assert_agree, default_dtype

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32
# products of the roundings of z, of p and of cotangents, thrice in the cube of a solution and once
# in each order of its derivative; the conditions are below 3
ROUNDINGS = {F16: 2**-11 * 40, BF16: 2**-8 * 40}
# rtol of float32, 6.4e-6, over the smallest slope of a residual, and thrice in the cube
SINGLE = 2e-4
MODES = ("value", "vmap of values", "backward", "double backward", "dual", "vmap rev")


def autocast(dtype=BF16, on=True):
    return torch.autocast("cpu", dtype=dtype, enabled=on)


def modes_of(case):
    """Return modes for a case; a SciPy solver is called lane by lane."""
    return ("value", "backward") if case.name.startswith("custom") else MODES


@pytest.mark.parametrize("case", CASES, ids=str)
def test_autocast_changes_nothing(case):
    def solve(p):
        with autocast():
            return case.solve(p.float()).double()

    assert_agree(solve, case.oracle, modes_of(case), SINGLE)


@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_unknowns_in_half_precision_are_solved_in_float32(case, dtype):
    def solve(p):
        value = case.solve(p.to(dtype))
        assert value.dtype == dtype
        return value.double()

    assert_agree(solve, case.oracle, modes_of(case), ROUNDINGS[dtype])


# -- every way to solve: bit by bit what float32 gives, rounded ------------------------------------

A = torch.tensor([2.0, 3.0])
PICARD = ims.FixedPointIteration()


def squares(z, a):
    return z**2 - a


def distance(z, a):
    return ((z - a) ** 2).sum()


def wave(z, a):
    return 0.3 * torch.cos(z) + a


def soft(v, step, a):
    return torch.sign(v) * (v.abs() - step).clamp(min=0)


def like(a, *values):
    return torch.tensor(values, dtype=a.dtype)


def attached(a):
    exact = a.detach().float().sqrt().to(a.dtype)
    return ims.attach(squares, exact, (a,), rtol=0.1)


def attached_kkt(a):
    given = like(a, -1.5, -1.75), ((), like(a, 1 / 3, 2 / 7))
    return ims.attach_kkt(lambda z, a: z.sum(), *given, (a,), inequalities=squares, rtol=0.1)[0]


WAYS = {
    "bounds": lambda a: ims.minimize(
        distance, 0 * a.detach(), (a,), bounds=(0.0, like(a, 2.5, 2.5))
    ),
    "bounds of a fit": lambda a: ims.least_squares(
        lambda z, a: z - a, 0 * a.detach(), (a,), bounds=(None, 2.5)
    ),
    "robust fit": lambda a: ims.least_squares(
        lambda z, a: z - a, 0 * a.detach(), (a,), loss="huber", f_scale=0.5
    ),
    "prox": lambda a: ims.minimize(distance, 0 * a.detach(), (a,), prox=soft),
    "equalities": lambda a: ims.minimize(
        distance, 0 * a.detach(), (a,), equalities=lambda z, a: z.sum() - 1
    ),
    "inequalities": lambda a: ims.minimize(
        distance, 0 * a.detach(), (a,), inequalities=lambda z, a: z.sum() - 1
    ),
    "bracket": lambda a: ims.root(
        squares, None, (a,), bracket=(like(a, 0, 0), like(a, 4, 4)), batch_dims=1
    ),
    "starts": lambda a: ims.root(squares, ims.multistart(like(a, 1, 1, 0.5, 2).view(2, 2)), (a,)),
    "path": lambda a: ims.continuation(lambda z, t, a: z**3 + z - t * a, 0 * a.detach(), (a,)),
    "pattern": lambda a: ims.root(squares, like(a, 1, 1), (a,), jac_sparsity=torch.eye(2)),
    "unrolled": lambda a: ims.fixed_point(
        wave, like(a, 1, 1), (a,), solver=PICARD, adjoint=ims.UnrolledAdjoint()
    ),
    "one step": lambda a: ims.fixed_point(wave, like(a, 1, 1), (a,), adjoint=ims.OneStepAdjoint()),
    "lanes": lambda a: ims.root(squares, like(a, 1, 1), (a,), batch_dims=1, in_dims=0),
    "failed lane": lambda a: ims.root(
        squares, like(a, 1, 1), (a * like(a, 1, -1),), batch_dims=1, in_dims=0, on_failure="mask"
    ),
    "inner solve": lambda a: ims.root(
        lambda z, a: z - ims.fixed_point(wave, 0 * a.detach(), (a,)).value.to(z.dtype),
        like(a, 1, 1),
        (a,),
    ),
    "matrix": lambda a: ims.linear_solve(torch.diag(a) + 1, like(a, 1, 2)),
    "columns": lambda a: ims.linear_solve(torch.diag(a) + 1, like(a, 1, 2, 3, 4).view(2, 2)),
    "Jacobian": lambda a: ims.linear_solve(
        ims.JacobianOperator(squares, like(a, 1, 2), (a,)), a, solver=ims.GMRES()
    ),
    "function": lambda a: ims.linear_solve(
        ims.FunctionOperator(lambda v: a * v, like=a, positive_definite=True),
        like(a, 1, 2),
        x0=like(a, 0, 0),
        solver=ims.CG(),
        preconditioner=lambda v: v / a.detach(),
    ),
    "preconditioned adjoint": lambda a: ims.fixed_point(
        wave,
        0 * a.detach(),
        (a,),
        adjoint=ims.ImplicitAdjoint(ims.GMRES(), lambda z, a: ims.MatrixOperator(torch.diag(a))),
    ),
    "attach": attached,
    "attach_kkt": attached_kkt,
}


def value_and_gradient(way, a, around=False):
    a = a.clone().requires_grad_()
    with autocast(on=around):
        solution = WAYS[way](a)
    value = getattr(solution, "value", solution)
    return value.detach(), torch.autograd.grad(value.sum(), a)[0]


@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize("dtype", [F16, BF16, F32])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_solve_gives_what_float32_gives(way, dtype, around):
    ours, expected = value_and_gradient(way, A.to(dtype), around), value_and_gradient(way, A)
    for found, known in zip(ours, expected, strict=True):
        assert found.dtype == dtype
        # a point that is attached is rounded before, and its derivative taken there
        loose = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 0.0} if "attach" in way else {}
        exact = loose or {"rtol": 0.0, "atol": 0.0}
        torch.testing.assert_close(found, known.to(dtype), **exact)


@pytest.mark.parametrize("way", WAYS)
def test_the_default_dtype_changes_nothing(way):
    expected = value_and_gradient(way, A)
    with default_dtype(torch.float64):
        ours = value_and_gradient(way, A)
    for found, known in zip(ours, expected, strict=True):
        torch.testing.assert_close(found, known, rtol=2e-7, atol=0.0)


def test_a_solution_is_attached_with_the_accuracy_of_its_dtype():
    a, z = A.to(BF16), A.sqrt().to(BF16)
    assert torch.equal(ims.attach(squares, z, (a,)), z)
    with pytest.raises(ims.ConvergenceError, match="REJECTED"):
        ims.attach(squares, 1.2 * z, (a,))
    solution = ims.root(squares, z, (a,))
    assert torch.equal(ims.attach(squares, solution, (a,)).value, solution.value)


# -- weights that the function captures ------------------------------------------------------------


class Cell(nn.Module):
    """``tanh(W z + x) / 2``; what is cast to the dtype of the weights is so in float32."""

    def __init__(self, n=3):
        super().__init__()
        self.linear = nn.Linear(n, n)
        nn.init.orthogonal_(self.linear.weight, 0.8)

    def forward(self, z, x):
        return torch.tanh(self.linear(z.to(self.linear.weight.dtype)) + x) / 2


def low_and_wide(seed=0):
    """Return a cell in bfloat16, the same in float32, and inputs."""
    torch.manual_seed(seed)
    low = Cell().to(BF16)
    x = torch.randn(4, 3).to(BF16)
    return low, copy.deepcopy(low).float(), x


def fixed_point(cell, x, **options):
    how = {"batch_dims": 1, "in_dims": (0,), "on_failure": "mask", **options}
    return ims.fixed_point(cell, torch.zeros_like(x), (x,), **how).value


def slopes(cell, x, order=1, **options):
    x = x.clone().requires_grad_()
    leaves = [x, *cell.parameters()]
    loss = fixed_point(cell, x, **options).square().sum(dtype=F32)
    grads = torch.autograd.grad(loss, leaves, create_graph=order == 2)
    if order == 2:
        loss = sum(g.square().sum(dtype=F32) for g in grads)
        grads = torch.autograd.grad(loss, leaves)
    return grads


# a cotangent rounded to bfloat16 for one in float32, and of the second order two of them
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("around", [False, True])
def test_captured_weights_in_half_precision_are_read_in_float32(order, around):
    low, wide, x = low_and_wide()
    with autocast(on=around):
        value = fixed_point(low, x)
    assert torch.equal(value, fixed_point(wide, x.float()).to(BF16))
    with autocast(on=around):
        grads = slopes(low, x, order)
    assert {g.dtype for g in grads} == {BF16}
    for ours, known in zip(grads, slopes(wide, x.float(), order), strict=True):
        torch.testing.assert_close(ours.float(), known, rtol=0.0, atol=2**-6 * known.abs().max())


def test_weights_in_half_precision_under_transforms():
    low, wide, x = low_and_wide()

    def loss(cell):
        def call(parameters, x):
            z = fixed_point(lambda z, x: functional_call(cell, parameters, (z, x)), x)
            return z.square().sum(dtype=F32)

        return vmap(grad(call), in_dims=(None, 0))

    ours = loss(low)(dict(low.named_parameters()), x.unsqueeze(1))
    known = loss(wide)(dict(wide.named_parameters()), x.float().unsqueeze(1))
    for name, g in ours.items():
        assert g.dtype == BF16
        off = (g.float() - known[name]).abs().max()
        assert off < 2**-6 * known[name].abs().max()


# -- autocast where it is asked for ----------------------------------------------------------------


class Watched(Cell):
    """A cell that notes in which dtype its product is."""

    def __init__(self, n=3):
        super().__init__(n)
        self.seen = set()

    def forward(self, z, x):
        product = self.linear(z)
        self.seen.add(product.dtype)
        return torch.tanh(product + x) / 2


SOLVERS = {
    "Anderson": ims.Anderson,
    "FixedPointIteration": ims.FixedPointIteration,
    "Newton": ims.Newton,
    "Dogleg": ims.Dogleg,
}


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("asked", [False, True])
def test_the_function_sees_autocast_if_it_is_asked_for(name, asked):
    torch.manual_seed(0)
    cell, x = Watched(), torch.randn(4, 3)
    exact, known = fixed_point(cell, x), slopes(cell, x, 2)
    cell.seen.clear()
    solver = SOLVERS[name](autocast=asked)
    with autocast():
        z = fixed_point(cell, x, solver=solver)
        y = x.clone().requires_grad_()
        again = fixed_point(cell, y, solver=solver)
    # the second derivative evaluates the cell anew, outside of the context
    (g,) = torch.autograd.grad(again.square().sum(), y, create_graph=True)
    (second,) = torch.autograd.grad(g.square().sum(), y)
    assert cell.seen == {BF16 if asked else F32}
    # rtol is 0.026 in bfloat16, over one minus the contraction factor 0.4
    share = 0.05 if asked else 1e-4
    assert (z - exact).norm() < share * exact.norm()
    expected = slopes(cell, x, 1)[0]
    assert (g - expected).norm() < 4 * share * expected.norm()
    assert second.isfinite().all() and known[0].isfinite().all()


@pytest.mark.parametrize("adjoint", [ims.GMRES(), ims.BiCGStab(), ims.Neumann()])
def test_an_iterative_adjoint_is_as_accurate_as_the_function(adjoint):
    torch.manual_seed(0)
    cell, x = Cell(60), torch.randn(2, 60, requires_grad=True)
    (exact,) = torch.autograd.grad(fixed_point(cell, x).square().sum(), x)
    how = {"adjoint": ims.ImplicitAdjoint(adjoint), "on_failure": "raise"}
    with autocast():
        z = fixed_point(cell, x, solver=ims.Anderson(autocast=True), **how)
    (g,) = torch.autograd.grad(z.square().sum(), x)
    # rtol in both passes, over one minus the contraction factor 0.4
    assert (g - exact).norm() < 0.1 * exact.norm()


def test_without_autocast_around_nothing_is_to_be_seen():
    cell, x = Watched(), torch.randn(4, 3)
    asked = fixed_point(cell, x, solver=ims.Anderson(autocast=True))
    assert cell.seen == {F32} and torch.equal(asked, fixed_point(cell, x))


def test_a_backward_pass_under_autocast_is_the_same():
    torch.manual_seed(0)
    cell, x = Cell(40), torch.randn(4, 40, requires_grad=True)
    for adjoint in (None, ims.GMRES(), ims.Neumann()):
        loss = fixed_point(cell, x, adjoint=ims.ImplicitAdjoint(adjoint)).sum()
        with autocast():
            (ours,) = torch.autograd.grad(loss, x, retain_graph=True)
        assert torch.equal(ours, torch.autograd.grad(loss, x)[0])


# -- compiled --------------------------------------------------------------------------------------


@pytest.mark.skipif(not COMPILES, reason="torch is too old")
@pytest.mark.parametrize("dtype", [BF16, F32])
def test_in_a_graph(dtype):
    torch._dynamo.reset()
    torch.manual_seed(0)
    cell, x = Cell().to(dtype), torch.randn(4, 3).to(dtype).requires_grad_()
    layer = ims.nn.FixedPoint(cell, PICARD, batch_dims=1, on_failure="mask")
    with autocast():
        ours = torch.compile(layer, fullgraph=True, backend="eager")(x)
        expected = layer(x)
    assert ours.dtype == dtype
    slopes = [torch.autograd.grad(v.sum(), x)[0] for v in (ours, expected)]
    # the error of a solution in float32 may round to the next number of bfloat16
    close = {"rtol": max(1e-5, torch.finfo(dtype).eps), "atol": 1e-5}
    torch.testing.assert_close(ours, expected, **close)
    torch.testing.assert_close(*slopes, **close)


@pytest.mark.skipif(not COMPILES, reason="torch is too old")
def test_compiled_steps():
    low, _, x = low_and_wide()
    ours = fixed_point(low, x, solver=ims.Anderson(compile=True))
    torch.testing.assert_close(ours, fixed_point(low, x))


# -- layers, beside nn.RNN -------------------------------------------------------------------------


class Deep(nn.Module):
    """A deep equilibrium layer over time, with the interface of a recurrent one."""

    def __init__(self, inputs, hidden):
        super().__init__()
        self.inner, self.outer = nn.Linear(hidden, hidden), nn.Linear(inputs, hidden)
        nn.init.orthogonal_(self.inner.weight, 0.5)
        self.layer = ims.nn.FixedPoint(
            lambda z, x: torch.tanh(self.inner(z) + x), batch_dims=2, init=torch.zeros_like
        )

    def forward(self, x):
        states = self.layer(self.outer(x)).cumsum(0)
        return states, states[-1:]


NETWORKS = {
    "nn.RNN": nn.RNN,
    "ERNN": ERNN,
    "leaky": lambda *sizes: ERNN(*sizes, leak=LEAKY),
    "leaky, masked": lambda *sizes: ERNN(*sizes, leak=LEAKY, mode=Equilibrium(on_failure="mask")),
    "monotone": lambda *sizes: ERNN(*sizes, well_posed=Monotone()),
    "rank": lambda *sizes: ERNN(*sizes, rank=2, num_layers=2),
    "unrolled": lambda *sizes: ERNN(*sizes, mode=Unrolled(steps=3)),
    "deep equilibrium": Deep,
}


def losses(name, on, dtype=F32, steps=15):
    """Train a network to sum its inputs; the layers before and after it see autocast."""
    torch.manual_seed(0)
    x = torch.randn(4, 16, 3)
    y = x[..., :1].sum(0)
    network = nn.ModuleList((nn.Linear(3, 3), NETWORKS[name](3, 8), nn.Linear(8, 1))).to(dtype)
    optimizer = torch.optim.Adam(network.parameters(), 0.03)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        with autocast(on=on):
            states, _ = network[1](network[0](x.to(dtype)))
            loss = (network[2](states[-1]).float() - y).square().mean()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert {p.grad.dtype for p in network.parameters() if p.grad is not None} == {dtype}
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_train_under_autocast_as_rnns_do(name):
    plain, mixed = losses(name, False), losses(name, True)
    assert mixed[-1] < 0.9 * mixed[0]
    # a loss of bfloat16 activations differs by some of their roundings, 0.4% each, in any network
    assert abs(mixed[-1] - plain[-1]) < 0.1 * plain[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_train_in_half_precision_as_rnns_do(name):
    low = losses(name, False, BF16)
    assert low[-1] < 0.9 * low[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_states_are_in_kind(name):
    network, x = NETWORKS[name](3, 8), torch.randn(6, 32, 3)
    expected = network(x)
    for dtype in (F16, BF16):
        with autocast(dtype):
            found = network(x.to(dtype))
        assert {t.dtype for t in found} == {dtype}
        for ours, known in zip(found, expected, strict=True):
            # the input's rounding, and that of nn.RNN's states, in each of six steps
            off = (ours.float() - known).abs().max()
            assert off < 12 * torch.finfo(dtype).eps * known.abs().max(), (dtype, off)
    if isinstance(network, ERNN):
        with autocast():
            assert all(map(torch.equal, network(x), expected))


def test_packed_sequences_and_states_in_half_precision():
    rows = [torch.randn(4, 3), torch.randn(6, 3)]
    packed, h0 = pack_sequence(rows, enforce_sorted=False), torch.randn(1, 2, 8)
    network = ERNN(3, 8)
    with autocast():
        output, h_n = network(packed._replace(data=packed.data.to(BF16)), h0.to(BF16))
    assert output.data.dtype == h_n.dtype == BF16
    cell = ERNNCell(3, 8).to(BF16)
    assert cell(rows[0].to(BF16)).dtype == BF16
    assert 0.5 < cell.margin() < 1 and cell.coefficients().U.dtype == BF16
    cell.project_()


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["ERNN", "leaky", "deep equilibrium"])
def test_gpu(name):
    network, x = NETWORKS[name](3, 8).cuda(), torch.randn(6, 32, 3, device="cuda")
    expected, _ = network(x)
    with torch.autocast("cuda", dtype=F16):
        found, _ = network(x.half())
    found.float().square().sum().backward()
    assert found.dtype == F16
    assert {p.grad.dtype for p in network.parameters() if p.grad is not None} == {F32}
    off = (found.float() - expected).abs().max()
    assert off < 12 * torch.finfo(F16).eps * expected.abs().max()


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("name", ["nn.RNN", "ERNN", "leaky", "deep equilibrium"])
def test_lightning(name, precision):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network, self.head, self.losses = NETWORKS[name](3, 8), nn.Linear(8, 1), []

        def training_step(self, batch, _):
            x, y = batch
            states, _ = self.network(x.transpose(0, 1))
            loss = nn.functional.mse_loss(self.head(states[-1]), y)
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 0.02)

    torch.manual_seed(0)
    x = torch.randn(32, 6, 3)
    data = torch.utils.data.TensorDataset(x, x[..., :1].sum(1))
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lightning's own
        trainer = lightning.Trainer(
            precision=precision, max_epochs=25, accelerator="cpu", **dict.fromkeys(off, False)
        )
        module = Module()
        trainer.fit(module, torch.utils.data.DataLoader(data, 32))
    assert module.losses[-1] < 0.9 * module.losses[0]
    assert next(module.parameters()).dtype == (BF16 if precision == "bf16-true" else F32)


# -- meta-learning ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_imaml_adapts_in_float32(dtype):
    torch.manual_seed(0)
    x, y, theta = torch.randn(8, 3), torch.randn(8), torch.randn(3)

    def loss(phi, data):
        x, y = data
        return (torch.tanh(x @ phi) - y).square().mean()

    def adapted(theta, x, y, on):
        theta = theta.clone().requires_grad_()
        with autocast(on=on):
            phi = imaml.adapt(loss, theta, (x, y), solver=ims.NewtonCG()).value
        return phi.detach(), torch.autograd.grad(phi.sum(), theta)[0]

    given = [t.to(dtype) for t in (theta, x, y)]
    ours, known = adapted(*given, True), adapted(*(t.float() for t in given), False)
    for found, expected in zip(ours, known, strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected.to(dtype), rtol=0.0, atol=0.0)


BEYOND = {  # 1e6, which float16 does not hold
    "root": lambda a, **how: ims.root(lambda z, a: z / 1e3 - a, torch.ones_like(a), (a,), **how),
    "fixed_point": lambda a, **how: ims.fixed_point(
        lambda z, a: 0.5 * z + 500 * a, torch.ones_like(a), (a,), **how
    ),
    "minimize": lambda a, **how: ims.minimize(
        lambda z, a: (z / 1e3 - a).square(), torch.ones_like(a), (a,), **how
    ),
    "linear_solve": lambda a, **how: ims.linear_solve(
        torch.full((2, 1, 1), 1e-3, dtype=a.dtype), a.unsqueeze(-1), **how
    ),
}


@pytest.mark.parametrize("solve", BEYOND.values(), ids=BEYOND)
def test_a_solution_beyond_the_range_of_half_precision_has_failed(solve):
    a = torch.tensor([1000.0, 1.0], dtype=torch.float16, requires_grad=True)
    with pytest.raises(ims.ConvergenceError, match="beyond the range of torch.float16"):
        solve(a, batch_dims=1)
    solution = solve(a, batch_dims=1, on_failure="mask")
    assert solution.status_names() == ["NONFINITE", "CONVERGED"]
    assert solution.converged.tolist() == [False, True]
    assert solution.error[0] == torch.inf
    (slope,) = torch.autograd.grad(solution.value.sum(), a)
    torch.testing.assert_close(slope.tolist(), [0.0, 1000.0], rtol=2e-3, atol=0.0)
    wide = solve(a.detach().float(), batch_dims=1)
    torch.testing.assert_close(wide.value.flatten()[0].item(), 1e6, rtol=1e-3, atol=0.0)


def test_tangents_that_torch_has_in_float64():
    """Of a python number times a 0-d tensor, in the third order."""

    def energy(z, a):
        return (z - a).square().sum() + 0.25 * (z**4).sum() * a[0]

    def slope(a):
        return grad(lambda a: ims.minimize(energy, torch.zeros_like(a), (a,)).value.sum())(a).sum()

    a = torch.tensor([1.0, 2.0, 0.5])
    found, exact = (jvp(grad(slope), (p,), (p,))[1] for p in (a, a.double()))
    # the rounding of four solves, the condition is below 4
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-5)
