"""What a solve costs, and what changes it: the tables of docs/memory_and_speed.md.

    OMP_NUM_THREADS=1 taskset -c 0 python tests/benchmarks/memory_and_speed.py [TABLE ...]

One core; times are medians of processor time, sides taking turns; memory is the peak of live
tensors, counted exactly. Without a name, all tables are printed.
"""

import argparse
import functools
import statistics
import time

import torch
from comparison import Counted, medians
from torch.func import vmap

import implicit_solvers as ims
from implicit_solvers.testing.live_memory import LiveMemory

F64 = torch.float64
ROUNDS = 7


def generator():
    """Return a generator with the seed of every table."""
    return torch.Generator().manual_seed(0)


def rows(head, *lines):
    """Print a Markdown table."""
    print("\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for line in lines:
        print("| " + " | ".join(line) + " |")


class Factorizations(torch.utils._python_dispatch.TorchDispatchMode):
    """Count LU factorizations, a batch as one."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Count, and do as told."""
        if "lu_factor" in str(func):
            self.count += 1
        return func(*args, **(kwargs or {}))

    def since(self):
        """Return the factorizations since the last time this was asked."""
        count, self.count = self.count, 0
        return count


def cost():
    """Calls of the function and LU factorizations, forward and backward."""
    matrix = torch.randn(20, 20, generator=generator(), dtype=F64)
    matrix = 0.8 * matrix / torch.linalg.matrix_norm(matrix, 2)

    def residual(z, x):
        return z - torch.tanh(matrix @ z + x)

    def cell(z, x):
        return torch.tanh(matrix @ z + x)

    def objective(z, x):
        return (z - x).square().sum() / 2 + (matrix @ z).cosh().log().sum()

    krylov = ims.Newton(linear_solver=ims.GMRES())
    roots = {"Dogleg()": ims.Dogleg(), "Newton()": ims.Newton()}
    roots |= {"Newton(reuse=0.5)": ims.Newton(reuse=0.5), "Chord()": ims.Chord()}
    roots |= {"Broyden()": ims.Broyden(), "Newton(linear_solver=GMRES())": krylov}
    maps = {"Anderson()": ims.Anderson(), "FixedPointIteration()": ims.FixedPointIteration()}
    minima = {"NewtonCG()": ims.NewtonCG(), "LBFGS()": ims.LBFGS()}
    kinds = (ims.root, residual, roots), (ims.fixed_point, cell, maps)
    kinds += ((ims.minimize, objective, minima),)
    solves = [(name, *kind, solver) for *kind, named in kinds for name, solver in named.items()]
    lines = []
    for name, entry, fn, solver in solves:
        counted = Counted(fn)
        x = torch.linspace(-1, 1, 20, dtype=F64).requires_grad_()
        with Factorizations() as factored:
            sol = entry(counted, torch.zeros(20, dtype=F64), (x,), solver=solver)
            forward = counted.since(), factored.since()
            sol.value.sum().backward()
            backward = counted.since(), factored.since()
        line = [int(sol.iterations), *forward, *backward]
        lines.append([f"`{entry.__name__}`, `{name}`", *map(str, line)])
    rows(["solve", "steps", "calls", "LU", "calls, backward", "LU, backward"], *lines)


def memory():
    """Peak memory against the number of iterations."""
    n = 1 << 17

    def cell(z, x):
        return 0.5 * torch.tanh(z) + x

    def implicit(x, solver):
        return ims.fixed_point(cell, torch.zeros_like(x), (x,), solver=solver).value

    def unrolled(x, solver):
        z = torch.zeros_like(x)
        for _ in range(solver.max_steps):
            z = cell(z, x)
        return z

    def with_adjoint(adjoint):
        def layer(x, solver):
            z0 = torch.zeros_like(x)
            return ims.fixed_point(cell, z0, (x,), solver=solver, adjoint=adjoint).value

        return layer

    sides = {
        "`ImplicitAdjoint()`": implicit,
        "a loop, by autograd": unrolled,
        "`UnrolledAdjoint()`": with_adjoint(ims.UnrolledAdjoint()),
        "`UnrolledAdjoint(checkpoint=10)`": with_adjoint(ims.UnrolledAdjoint(checkpoint=10)),
    }
    counts = (10, 30, 100, 300)
    lines = []
    for name, side in sides.items():
        line = [name]
        for steps in counts:
            x = torch.full((n,), 0.1, dtype=F64, requires_grad=True)
            solver = ims.FixedPointIteration(max_steps=steps, rtol=None)
            with LiveMemory() as live:
                side(x, solver).sum().backward()
            line.append(f"{live.peak / 2**20:.0f}")
        lines.append(line)
    rows(["peak MB after", *(f"{steps} steps" for steps in counts)], *lines)


def compaction():
    """One straggler among many lanes."""
    lanes, n = 1024, 64
    draw = generator()
    matrix = torch.linalg.qr(torch.randn(n, n, generator=draw, dtype=F64))[0]
    x = torch.randn(lanes, n, generator=draw, dtype=F64)
    easy = torch.full((lanes, 1), 0.5, dtype=F64)
    hard = easy.clone()
    hard[0], x[0] = 0.99, 0.1

    def cell(z, strength, x):
        return strength * torch.sin(z @ matrix.mT) + x

    def solve(strength, compact):
        solver = ims.FixedPointIteration(compact=compact, max_steps=5000)
        start = torch.zeros_like(x)
        args = (strength, x)
        return ims.fixed_point(cell, start, args, solver=solver, batch_dims=1, in_dims=(0, 0))

    sides = {
        "all alike": lambda: solve(easy, True),
        "one straggler": lambda: solve(hard, True),
        "one straggler, `compact=False`": lambda: solve(hard, False),
    }
    times = medians(sides, 3)
    lines = []
    for name, side in sides.items():
        steps = side().iterations
        counts = f"{int(steps.median())}, at most {int(steps.max())}"
        lines.append([name, counts, f"{1e3 * times[name]:.0f}"])
    rows(["1,024 lanes of 64 unknowns, forward", "steps", "ms"], *lines)


def sharing():
    """A matrix that lanes share, and one for each."""
    n, lanes = 128, 256
    draw = generator()
    matrix = torch.eye(n, dtype=F64) + 0.3 * torch.randn(n, n, generator=draw, dtype=F64) / n**0.5
    b = torch.randn(lanes, n, generator=draw, dtype=F64).requires_grad_()
    copies = matrix.expand(lanes, n, n).clone()

    def solve(matrix, b):
        return ims.linear_solve(ims.MatrixOperator(matrix), b).value

    def pull(x):
        return torch.autograd.grad(x.square().sum(), b)

    times = medians(
        {
            "`vmap`, `in_dims=(None, 0)`: shared": lambda: pull(
                vmap(solve, in_dims=(None, 0))(matrix, b)
            ),
            "`vmap`, `in_dims=(0, 0)`: a copy for each": lambda: pull(vmap(solve)(copies, b)),
        },
        ROUNDS,
    )
    rows(
        ["256 systems of 128 unknowns, forward and backward", "ms"],
        *([name, f"{1e3 * value:.0f}"] for name, value in times.items()),
    )


def batching():
    """The same batch by ``batch_dims``, by ``vmap``, and as one problem."""
    n = 32
    draw = generator()
    matrix = torch.randn(n, n, generator=draw, dtype=F64)
    matrix = (0.8 * matrix / torch.linalg.matrix_norm(matrix, 2)).requires_grad_()

    def cell(z, x):
        return torch.tanh(z @ matrix.mT + x)

    def pull(z):
        return torch.autograd.grad(z.square().sum(), matrix)

    def by_dims(x):
        start = torch.zeros_like(x)
        return pull(ims.fixed_point(cell, start, (x,), batch_dims=1, in_dims=(0,)).value)

    def by_vmap(x):
        return pull(vmap(lambda x: ims.fixed_point(cell, torch.zeros_like(x), (x,)).value)(x))

    def by_loop(x):
        return pull(
            torch.stack([ims.fixed_point(cell, torch.zeros_like(x), (x,)).value for x in x])
        )

    def as_one(x):
        return pull(ims.fixed_point(cell, torch.zeros_like(x), (x,)).value)

    names = {
        "`batch_dims=1, in_dims=(0,)`": by_dims,
        "`torch.func.vmap`": by_vmap,
        "a Python loop": by_loop,
        "one problem of all unknowns": as_one,
    }
    lines = {name: [name] for name in names}
    for lanes in (1, 16, 256):
        x = torch.randn(lanes, n, generator=draw, dtype=F64)
        sides = {name: (lambda side=side, x=x: side(x)) for name, side in names.items()}
        for name, value in medians(sides, 3).items():
            lines[name].append(f"{1e3 * value:.3g}")
    rows(["ms, forward and backward", "1 lane", "16", "256"], *lines.values())


def keeping():
    """What the factors of the forward pass save the backward pass."""
    n = 512
    draw = generator()
    matrix = torch.randn(n, n, generator=draw, dtype=F64)
    matrix = 0.9 * matrix / torch.linalg.matrix_norm(matrix, 2)

    def residual(z, x):
        return z - torch.tanh(matrix @ z + x)

    x = torch.randn(n, generator=draw, dtype=F64).requires_grad_()
    solved = ims.root(residual, torch.zeros(n, dtype=F64), (x.detach(),)).value

    def timed(solve):
        def side():
            z = solve()
            with Factorizations() as factored:
                start = time.process_time()
                torch.autograd.grad(z.sum(), x)
                spent = time.process_time() - start
            return spent, factored.count

        return side

    sides = {
        "after `Newton()`": lambda: ims.root(residual, solved + 0.01, (x,), solver=ims.Newton()),
        "after `Broyden()`": lambda: ims.root(residual, solved + 0.01, (x,), solver=ims.Broyden()),
        "`attach`": None,
    }
    lines = []
    for name, solve in sides.items():
        side = timed(
            (lambda: ims.attach(residual, solved, (x,)))
            if solve is None
            else (lambda solve=solve: solve().value)
        )
        results = [side() for _ in range(ROUNDS + 1)][1:]
        spent = statistics.median(spent for spent, _ in results)
        lines.append([name, str(results[0][1]), f"{1e3 * spent:.1f}"])
    rows(["backward pass, 512 unknowns", "LU", "ms"], *lines)


def warm():
    """A training loop whose solves begin where the last ones ended."""
    n = 400
    draw = generator()
    matrix = torch.randn(n, n, generator=draw, dtype=F64)
    matrix = 0.95 * matrix / torch.linalg.matrix_norm(matrix, 2)
    first, target = torch.randn(2, n, generator=draw, dtype=F64)

    def cell(z, x):
        return torch.tanh(matrix @ z + x)

    adjoint = ims.ImplicitAdjoint(ims.GMRES())

    def train(warm_z, start, rate):
        x, z = first.clone().requires_grad_(), torch.zeros(n, dtype=F64)
        forward, backward, moved = [], [], []
        for _ in range(20):
            with ims.monitor() as log:
                z0 = z if warm_z else torch.zeros_like(z)
                sol = ims.fixed_point(cell, z0, (x,), adjoint=adjoint, adjoint_start=start)
                (g,) = torch.autograd.grad((sol.value - target).square().sum(), x)
            moved.append(float((sol.value.detach() - z).norm() / sol.value.detach().norm()))
            z, x = sol.value.detach(), (x - rate * g).detach().requires_grad_()
            forward.append(int(sol.iterations))
            backward.append(int(log.adjoints()[0].iterations))
        return [statistics.median(numbers[1:]) for numbers in (forward, backward, moved)]

    sides = {
        "cold": (False, lambda: None),
        "`z0` is the last solution": (True, lambda: None),
        "`adjoint_start=AdjointStart()` too": (True, ims.AdjointStart),
    }
    lines = []
    for rate in (1e-2, 1e-4, 1e-6):
        for name, (warm_z, start) in sides.items():
            forward, backward, moved = train(warm_z, start(), rate)
            lines.append([f"{moved:.0e}", name, f"{forward:.0f}", f"{backward:.0f}"])
    rows(["the solution moves by", "start", "steps forward", "backward"], *lines)


def equilibrium(n, dtype=F64):
    """Return a dense equilibrium of ``n`` unknowns: residual, cell, input."""
    draw = generator()
    matrix = torch.randn(n, n, generator=draw, dtype=F64)
    matrix = (0.9 * matrix / torch.linalg.matrix_norm(matrix, 2)).to(dtype)
    x = torch.randn(n, generator=draw, dtype=F64).to(dtype).requires_grad_()

    def residual(z, x):
        return z - torch.tanh(matrix @ z + x)

    def gradient(solver, adjoint=None):
        start = torch.zeros(n, dtype=dtype)
        sol = ims.root(residual, start, (x,), solver=solver, adjoint=adjoint)
        return sol, torch.autograd.grad(sol.value.square().sum(), x)

    return gradient


def reuse():
    """Factorizations that serve more than one step."""
    gradient = equilibrium(512)
    solvers = {
        "`Newton()`": ims.Newton(),
        "`Newton(reuse=0.5)`": ims.Newton(reuse=0.5),
        "`Chord()`": ims.Chord(),
        "`Broyden()`": ims.Broyden(),
    }
    calls = {name: functools.partial(gradient, solver) for name, solver in solvers.items()}
    times = medians(calls, ROUNDS)
    lines = []
    for name, solver in solvers.items():
        with Factorizations() as factored:
            sol, _ = gradient(solver)
        lines.append(
            [name, str(int(sol.iterations)), str(factored.count), f"{1e3 * times[name]:.0f}"]
        )
    rows(["512 unknowns, forward and backward", "steps", "LU", "ms"], *lines)


def sizes():
    """Direct and Krylov solvers by size, and the two precisions."""
    names = {
        f"`Newton({kind.__name__})`{note}": (kind(), dtype)
        for dtype, note in ((F64, ""), (torch.float32, ", float32"))
        for kind in (ims.LU, ims.GMRES)
    }
    lines = {name: [name] for name in names}
    counts = (16, 64, 256, 512, 1024, 2048)
    for n in counts:
        sides = {}
        for name, (linear_solver, dtype) in names.items():
            how = ims.Newton(linear_solver=linear_solver), ims.ImplicitAdjoint(linear_solver)
            sides[name] = functools.partial(equilibrium(n, dtype), *how)
        for name, value in medians(sides, 7 if n < 1000 else 3).items():
            lines[name].append(f"{1e3 * value:.3g}")
    rows(["ms, forward and backward", *(f"n = {n:,}" for n in counts)], *lines.values())


TABLES = (cost, memory, compaction, sharing, batching, keeping, warm, reuse, sizes)


def main():
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = {table.__name__: table for table in TABLES}
    parser.add_argument("tables", nargs="*", choices=[*names, []], metavar="TABLE")
    chosen = parser.parse_args().tables or list(names)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}")
    for name in chosen:
        names[name]()


if __name__ == "__main__":
    main()
