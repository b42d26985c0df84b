"""What is solved on ranks and in one process alike: each check returns numbers to compare.

``here`` says where it runs: `Alone` leaves tensors whole, `Ranks` spreads them.
"""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import ClassVar

import torch
from torch import nn
from torch.func import functional_call

import implicit_solvers as ims
from implicit_solvers import ranks
from implicit_solvers.linear.jacobian_template import MANY_ENTRIES
from implicit_solvers.ranks import Ranks
from implicit_solvers.tolerance import rms

from .poisson import diffusion, laplacian


class Alone:
    """One process."""

    rank, ranks = 0, 1

    def shard(self, t, dim=0):
        return t.clone().requires_grad_()

    replicate = shard

    def whole(self, t):
        return t

    def chunk(self, t):
        return t

    def joined(self, t):
        return t

    def wrapped(self, model, names):
        return model

    def diffusion(self, u):
        return laplacian(u, nn.functional.pad(u, (0, 0, 1, 1)))


class OnRanks(Alone):
    """One of the ranks of a process group."""

    def __init__(self):
        import torch.distributed as dist
        from torch.distributed.device_mesh import init_device_mesh

        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.mesh = init_device_mesh("cpu", (self.ranks,))

    def _laid(self, t, placement):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(t, self.mesh, [placement]).requires_grad_()

    def shard(self, t, dim=0):
        from torch.distributed.tensor import Shard

        return self._laid(t, Shard(dim))

    def replicate(self, t):
        from torch.distributed.tensor import Replicate

        return self._laid(t, Replicate())

    def whole(self, t):
        return t.full_tensor() if hasattr(t, "full_tensor") else t

    def chunk(self, t):
        return t.tensor_split(self.ranks)[self.rank]

    def joined(self, t):
        chunks = [None] * self.ranks
        torch.distributed.all_gather_object(chunks, t)
        return torch.cat(chunks)

    def wrapped(self, model, names):
        """Wrap the parts called ``names`` of a model, in this order; "" is the whole."""
        from torch.distributed.fsdp import fully_shard

        if names == "ddp":
            return nn.parallel.DistributedDataParallel(model)
        for name in names:
            fully_shard(model.get_submodule(name))
        return model

    diffusion = staticmethod(diffusion)


def random(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def differentiated(here, solution, *tensors):
    """Return a solution, its number of steps, and the gradients of a loss in the tensors."""
    here.whole(solution.value.square().sum()).backward()
    gradients = [here.whole(t.grad) for t in tensors]
    return {
        "iterations": solution.iterations,
        "value": here.whole(solution.value.detach()),
        "gradients": gradients,
        "lies": [str(getattr(t.grad, "placements", "")) for t in tensors],
    }


# one large system, spread by rows


def of_system(solver, reaction=2.0, size=100, scale=1.0, **known):
    """Return a check of ``-(u_xx + u_yy) + (a + c) u = f`` on a square grid."""

    def check(here):
        f, a = (here.shard(random(size, size, seed=i) * scale**i) for i in range(2))
        c = here.replicate(torch.tensor(reaction, dtype=torch.float64))
        A = ims.FunctionOperator(lambda u: here.diffusion(u) + (a + c) * u, like=f, **known)
        return differentiated(here, ims.linear_solve(A, f, solver=solver), f, a, c)

    return check


def newton(here):
    return of_equation(here, lambda u, f, a, c: here.diffusion(u) + a * u + c * u**3 - f, ims.root)


def anderson(here, **options):
    def g(u, f, a, c):
        return u - (here.diffusion(u) + a * u + c * torch.sinh(u) - f) / 8

    return of_equation(here, g, ims.fixed_point, **options)


def lbfgs(here):
    def energy(u, f, a, c):
        return (u * (here.diffusion(u) + a * u) / 2 + c * u**4 / 4 - f * u).sum()

    return of_equation(here, energy, ims.minimize)


SOLVERS = {
    ims.root: ims.Newton(ims.GMRES()),
    ims.fixed_point: ims.Anderson(),
    ims.minimize: ims.LBFGS(),
}


def of_equation(here, fn, equation, **options):
    f, a = (here.shard(random(100, 100, seed=i) + i) for i in range(2))
    c = here.replicate(torch.tensor(2.0, dtype=torch.float64))
    start = torch.zeros_like(f)
    solution = equation(fn, start, (f, a, c), solver=replace(SOLVERS[equation], **options))
    return differentiated(here, solution, f, a, c)


def of_matrix(rows, columns):
    """Return a check of a dense system whose rows are spread: all by LSMR, if it has more rows."""

    def check(here):
        A = random(rows, columns) + 2 * torch.eye(rows, columns, dtype=torch.float64)
        A, b = here.shard(A), here.shard(random(rows, seed=1))
        solver = ims.GMRES() if rows == columns else ims.LSMR()
        return differentiated(here, ims.linear_solve(A, b, solver=solver), A, b)

    return check


def preconditioned(here):
    d, b = here.shard(random(11) + 1), here.shard(random(11, seed=1))
    A = ims.FunctionOperator(lambda v: d * v, like=b, positive_definite=True)
    solution = ims.linear_solve(A, b, solver=ims.CG(), preconditioner=lambda v: v / d.detach())
    return differentiated(here, solution, d, b)


def matrix_energy(here):
    """The gradient comes as a sum over ranks, and the Hessian's products go through that sum."""
    W, b = here.shard(random(8, 8) + 2 * torch.eye(8)), here.shard(random(8, seed=1))

    def energy(u, W, b):
        return (W @ u).square().sum() / 2 - (b * u).sum()

    solution = ims.minimize(energy, torch.zeros_like(b), (W, b), solver=ims.LBFGS(rtol=1e-10))
    return differentiated(here, solution, W, b)


def second_derivative(here):
    f, a = (here.shard(random(20, 20, seed=i)) for i in range(2))
    A = ims.FunctionOperator(lambda u: here.diffusion(u) + a * u, like=f, positive_definite=True)
    value = ims.linear_solve(A, f, solver=ims.CG()).value
    slope = torch.autograd.grad(here.whole(value.square().sum()), a, create_graph=True)[0]
    gradients = torch.autograd.grad(here.whole(slope.square().sum()), (f, a))
    return {"gradients": [here.whole(g) for g in gradients]}


def rows_of_lanes(here):
    b, d = here.shard(random(3, 8), 1), here.shard(random(8, seed=1) + 1)
    start, how = torch.zeros_like(b), {"batch_dims": 1, "in_dims": (0, None)}
    solver = ims.Newton(ims.GMRES())
    solution = ims.root(lambda z, b, d: z * d + z**3 - b, start, (b, d), solver=solver, **how)
    found = differentiated(here, solution, b, d)
    return {**found, "iterations": solution.iterations.max()}


UNITS = [2.0**k for k in (-664, -540, 0, 505, 664)]  # 1e-200 ... 1e200


def in_units(solve):
    """Return a check of solves in several units, against one process in the usual one."""

    def check(here):
        b, values, steps = here.shard(random(41) + 1), [], []
        for unit in UNITS:
            unit = 1.0 if here.ranks == 1 else unit
            solution = solve(torch.zeros_like(b), b, unit)
            values.append(here.whole(solution[0].value.detach()) / solution[1])
            steps.append(solution[0].iterations)
        alike = all(abs(int(k - steps[0])) <= 1 for k in steps)
        return {"value": [*values, torch.tensor(alike)]}

    return check


def fixed_point_in(z, b, unit):
    def g(u, b):
        return unit * torch.cos(u / unit) * b / 3

    return ims.fixed_point(g, z, (b,), solver=ims.Anderson()), unit


def minimum_in(z, b, unit):
    def energy(u, b):
        return unit * (u**4 / 4 + u**2 - b * u).sum()

    return ims.minimize(energy, z, (b,), solver=ims.LBFGS()), 1.0


def single(here):
    """In float32, on two ranks, of which one has more rows than norms take as they come."""
    b = here.shard(1 + random(2 * MANY_ENTRIES + 1).float())
    solution = ims.fixed_point(lambda u, b: torch.cos(u) * b / 3, torch.zeros_like(b), (b,))
    u, b = (here.whole(t.detach()) for t in (solution.value, b))
    return {"value": [(u - torch.cos(u) * b / 3).abs().amax() < 1e-4]}


def norms(here):
    """Norms of rows whose squares under- or overflow, of zeros, and of what is no number."""
    found = []
    for dtype, exponents in {
        torch.float64: (-1020, -664, 0, 664, 1015),
        torch.float32: (-125, -80, 0, 80, 120),
    }.items():
        # of each lane a rank has a row, the last one none
        v, few = random(8, 6).to(dtype), max(here.ranks - 1, 1)
        columns = v if here.ranks == 1 else v[:, : 6 // few * few].tensor_split(few, 1)
        for k in exponents:
            unit = torch.tensor(2.0, dtype=dtype) ** (0 if here.ranks == 1 else k)
            own = v if here.ranks == 1 else (*columns, v[:, :0])[here.rank]
            own = torch.view_as_complex((own * unit).reshape(8, -1, 2)) if k == 0 else own * unit
            with over_rows(here):
                norms = ranks.norm(own), ranks.norm(own, keepdim=True), rms(own)
            found += [part / unit for part in norms]
    with over_rows(here):
        special = torch.tensor([[0.0], [torch.inf], [torch.nan]])
        found += [ranks.norm(special), rms(special)]
    return {"value": found}


def over_rows(here):
    """Let norms go over the rows of all ranks."""
    return ranks.over(None if here.ranks == 1 else Ranks(rows=torch.distributed.group.WORLD))


# lanes, spread over ranks


def of_lanes(count, **options):
    """Return a check of ``count`` cubic equations with a coefficient that they share."""

    def check(here):
        x, theta = here.shard(random(count, 3) + 1), here.replicate(random(3, seed=1) + 1)
        solution = ims.root(
            lambda z, x, theta: z**3 + theta * z - x,
            torch.ones_like(x),
            (x, theta),
            batch_dims=1,
            in_dims=(0, None),
            **options,
        )
        found = differentiated(here, replace(solution, iterations=torch.tensor(0)), x, theta)
        return found

    return check


def systems(here):
    A, b = here.shard(random(6, 3, 3) + torch.eye(3)), here.shard(random(6, 3, seed=1))
    solution = ims.linear_solve(A, b, batch_dims=1)
    return differentiated(here, replace(solution, iterations=torch.tensor(0)), A, b)


def of_a_layer(here):
    """The parameters are plain: their gradients are of this rank's lanes."""
    torch.manual_seed(0)
    x, layer = here.shard(X), ims.nn.FixedPoint(Cell().double(), batch_dims=1, return_solution=True)
    return differentiated(here, replace(layer(x), iterations=torch.tensor(0)), x)


# modules, sharded or replicated


class Cell(nn.Module):
    def __init__(self, n=4):
        super().__init__()
        self.inner, self.outer = nn.Linear(n, n), nn.Linear(n, n)
        nn.init.orthogonal_(self.inner.weight, 0.5)

    def forward(self, z, x):
        return torch.tanh(self.inner(z) + self.outer(x))


class Loop(nn.Module):
    """The fixed point by 50 explicit steps: what is left of the start is 0.5**50."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        z = torch.zeros_like(x)
        for _ in range(50):
            z = self.cell(z, x)
        return z


class Residual(Loop):
    def forward(self, z, x):
        return z - self.cell(z, x)


class Closure(Loop):
    """A module whose forward calls the solver."""

    options: ClassVar[dict] = {}

    def forward(self, x):
        cell, z = self.cell, torch.zeros_like(x)
        solution = ims.fixed_point(lambda z, x: cell(z, x), z, (x,), **self.options)
        return solution.value


class Masked(Closure):
    """One with a lane more, that fails."""

    options: ClassVar[dict] = {"batch_dims": 1, "in_dims": 0, "on_failure": "mask"}

    def forward(self, x):
        return super().forward(torch.cat([x, torch.full_like(x[:1], torch.nan)]))[:-1]


class Energy(Loop):
    """The minimum of an energy whose gradient goes through the cell."""

    def forward(self, x):
        def energy(z, x):
            return (z - self.cell(z, x)).square().sum(-1) / 2 + (z - x).square().sum(-1)

        how = {"batch_dims": 1, "in_dims": 0}
        return ims.minimize(energy, torch.zeros_like(x), (x,), **how).value


class Equilibrium(nn.Module):
    """A layer with modules before it and after it."""

    def __init__(self, layer):
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(4, 4), layer, nn.Linear(4, 4)

    def forward(self, x):
        return self.last(self.layer(self.first(x)))


class Meta(nn.Module):
    """iMAML: a head that is fitted to each task, on features, near a start that is learned."""

    def __init__(self, features):
        super().__init__()
        self.features, self.start = features, nn.Linear(4, 1)

    def loss(self, head, x, y):
        return (functional_call(self.start, head, (self.features(x),)) - y).square().mean((-1, -2))

    def forward(self, x):
        (support, query), start = x.chunk(2, 1), dict(self.start.named_parameters())
        start = {name: t.expand(len(x), *t.shape) for name, t in start.items()}

        def inner(head, support, start):
            features, y = self.features(support), support.sum(-1, keepdim=True).sin()
            out = features @ head["weight"].mT + head["bias"].unsqueeze(1)
            near = sum((head[k] - start[k]).square().flatten(1).sum(-1) for k in head)
            return (out - y).square().mean((-1, -2)) + near / 2

        zeros = {name: torch.zeros_like(t) for name, t in start.items()}
        how = {"batch_dims": 1, "in_dims": (0, 0)}
        head = ims.minimize(inner, zeros, (support, start), **how).value
        out = self.features(query) @ head["weight"].mT + head["bias"].unsqueeze(1)
        return (out - query.sum(-1, keepdim=True).sin()).flatten(1)


def layer(cell):
    return ims.nn.FixedPoint(cell, batch_dims=1)


def root(cell):
    return ims.nn.Root(Residual(cell), batch_dims=1)


X = torch.linspace(-1, 1, 48, dtype=torch.float64).reshape(12, 4)
TASKS = torch.linspace(-1, 1, 192, dtype=torch.float64).reshape(4, 12, 4)


def built(make):
    torch.manual_seed(0)
    model = Meta(nn.Linear(4, 4)) if make is Meta else Equilibrium(make(Cell()))
    return model.double(), TASKS if make is Meta else X


def of_module(make, names, reference=None):
    """Return a check of the gradients of a model, parts of which are wrapped."""

    def check(here):
        model, x = built(reference if here.ranks == 1 and reference else make)
        model = here.wrapped(model, names)
        with torch.no_grad():
            value = here.joined(model(here.chunk(x)))
        # a second pass is where parameters that were not reduced are found
        for _ in range(2):
            model.zero_grad()
            model(here.chunk(x)).square().mean().backward()
        gradients = [here.whole(p.grad) for p in model.parameters()]
        return {"value": value, "gradients": gradients}

    return check


def trained(here, steps, model=None, optimizer=None):
    """Train a model whose cell and whole are sharded; return it with its optimizer."""
    if model is None:
        model, _ = built(layer)
        model = here.wrapped(model, ["layer.cell", ""])
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        model(here.chunk(X)).square().mean().backward()
        optimizer.step()
    return SimpleNamespace(model=model, optimizer=optimizer)


def resumed(here, folder=None):
    """Train for three steps on two ranks, and for two more on four; or for five in one process."""
    if here.ranks == 1:
        done = trained(here, 5)
    else:
        import torch.distributed.checkpoint as checkpoint
        from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

        done = trained(here, 3 if here.ranks == 2 else 0)
        model, optimizer = get_state_dict(done.model, done.optimizer)
        state = {"model": model, "optimizer": optimizer}
        if here.ranks == 2:
            checkpoint.save(state, checkpoint_id=folder)
        else:
            checkpoint.load(state, checkpoint_id=folder)
            how = {"model_state_dict": state["model"], "optim_state_dict": state["optimizer"]}
            set_state_dict(done.model, done.optimizer, **how)
        done = trained(here, 2, done.model, done.optimizer)
    return {"gradients": [here.whole(p.detach()) for p in done.model.parameters()]}


ROWS = {
    "CG": of_system(ims.CG(), positive_definite=True),
    "MINRES": of_system(ims.MINRES(), symmetric=True),
    "GMRES": of_system(ims.GMRES()),
    "BiCGStab": of_system(ims.BiCGStab()),
    "LSMR": of_system(ims.LSMR(), reaction=8.0),
    "Newton": newton,
    "Anderson": anderson,
    # it comes to the same point by whatever weights
    "ten steps of Anderson": partial(anderson, rtol=None, max_steps=10),
    "LBFGS": lbfgs,
    "matrix, uneven": of_matrix(7, 7),
    "matrix, a rank without rows": of_matrix(1, 1),
    "fit": of_matrix(9, 5),
    "energy of a matrix": matrix_energy,
    "rows of lanes": rows_of_lanes,
    "preconditioned": preconditioned,
}
IN_UNITS = {
    "norms": norms,
    "float32": single,
    "fixed point in units": in_units(fixed_point_in),
    "minimum in units": in_units(minimum_in),
}
LANES = {
    "uneven": of_lanes(7),
    "a rank without lanes": of_lanes(1, sync_failures=True),
    "systems": systems,
    "layer": of_a_layer,
}
MODULES = {
    "second derivative": second_derivative,
    "explicit loop": of_module(Loop, ["layer.cell", ""]),
    "ddp": of_module(layer, "ddp", Loop),
    "sharded layer": of_module(layer, ["layer", ""], Loop),
    "cell": of_module(layer, ["layer.cell", ""], Loop),
    "cell and layer": of_module(layer, ["layer.cell", "layer", ""], Loop),
    "part of the cell": of_module(layer, ["layer.cell.inner", "layer", ""], Loop),
    "closure": of_module(Closure, ["layer", ""], Loop),
    "cell in a closure": of_module(Closure, ["layer.cell", "layer", ""], Loop),
    "cell of a root": of_module(root, ["layer.cell.cell", "layer", ""]),
    "energy": of_module(Energy, ["layer.cell", "layer", ""]),
    "masked": of_module(Masked, ["layer.cell", ""], Loop),
    "iMAML, ddp": of_module(Meta, "ddp"),
    "iMAML, layer": of_module(Meta, [""]),
    "iMAML, cell": of_module(Meta, ["features", ""]),
}
CHECKS = {**ROWS, **IN_UNITS, **LANES, **MODULES}
# what DTensors of torch 2.8 cannot: differentiate the way to local parts twice, multiply a matrix
NEWER = ("Newton", "LBFGS", "energy of a matrix", "rows of lanes", "second derivative")
NEWER += ("minimum in units", "matrix, uneven", "matrix, a rank without rows", "fit")
LARGE = of_system(ims.CG(), reaction=0.0, size=500, scale=0.01, positive_definite=True)
