"""Time of iMAML's meta-gradient: the tables of docs/imaml.md and docs/compilation.md.

    OMP_NUM_THREADS=1 taskset -c 0 python tests/benchmarks/imaml.py
    ... --torchopt PYTHON     # of an environment with torchopt and torch
    ... --jax PYTHON          # of an environment with jax
    ... --compiled            # compile=True and torch.compile too
    ... --convolutions        # the few-shot network too: vmap, a loop, and which one is chosen

32 tasks of sine regression, 10 points to learn from and 10 of the query, a network with two hidden
layers of 40 (tanh), 16 inner steps, 5 steps of CG, float64, one thread. Every side gets the same
numbers, lives in a process of its own, and computes the gradient that a plain loop in this file
does; its distance from that is checked before it is timed. Sides take turns. A time is the
processor's, the median over rounds, and the best; a ratio is the median of the rounds' ratios, so
that other load on the machine falls on all sides. The first call has the compilation in it.
"""

import argparse
import functools
import os
import statistics
import sys

import numpy as np
from comparison import medians
from worker import Worker, in_turns, seconds_of, serve

TASKS, POINTS, WIDTH = 32, 10, 40
STEPS, CG_STEPS, LR, STRENGTH = 16, 5, 0.05, 2.0


def numbers():
    """Return the parameters and the data (tasks, points, 1), as float64 arrays."""
    rng = np.random.default_rng(0)
    sizes = [(1, WIDTH), (WIDTH, WIDTH), (WIDTH, 1)]
    theta = []
    for fan_in, fan_out in sizes:
        theta += [
            rng.normal(size=(fan_in, fan_out)) / 2 / fan_in**0.5,
            0.1 * rng.normal(size=fan_out),
        ]
    x = rng.uniform(-3, 3, (TASKS, 2 * POINTS, 1))
    y = rng.uniform(0.5, 1.5, (TASKS, 1, 1)) * np.sin(x + rng.uniform(0, np.pi, (TASKS, 1, 1)))
    return theta, (x[:, :POINTS], y[:, :POINTS]), (x[:, POINTS:], y[:, POINTS:])


# ------------------------------------------------------------------------------------- the sides


def torch_numbers():
    import torch

    torch.set_num_threads(1)
    theta, *data = numbers()
    return [torch.from_numpy(t) for t in theta], *(
        tuple(map(torch.from_numpy, pair)) for pair in data
    )


def loss_of(phi, x, y, tanh):
    w1, b1, w2, b2, w3, b3 = phi
    out = tanh(tanh(x @ w1 + b1) @ w2 + b2) @ w3 + b3
    return ((out - y) ** 2).mean()


def inner_loss(phi, theta, x, y, tanh):
    """Return the loss of a task, with the pull back to the meta-parameters."""
    pull = sum(((p - t) ** 2).sum() for p, t in zip(phi, theta, strict=True))
    return loss_of(phi, x, y, tanh) + STRENGTH / 2 * pull


def dot(u, v):
    return sum((a * b).sum() for a, b in zip(u, v, strict=True))


def torch_cg(product, b):
    """Take the steps of conjugate gradients from zero, by hand."""
    w, r, p = [t * 0 for t in b], b, b
    rr = dot(r, r)
    for _ in range(CG_STEPS):
        Ap = product(p)
        a = rr / dot(p, Ap)
        w = [s + a * t for s, t in zip(w, p, strict=True)]
        r = [s - a * t for s, t in zip(r, Ap, strict=True)]
        rr, old = dot(r, r), rr
        p = [s + rr / old * t for s, t in zip(r, p, strict=True)]
    return w


def ours(loop=False, compiled=False):
    import torch

    import implicit_solvers as ims
    from implicit_solvers.problems import imaml

    theta, supports, queries = torch_numbers()
    method = imaml.Imaml(
        STRENGTH,
        ims.GradientDescent(LR, max_steps=STEPS, rtol=None, compile=compiled),
        ims.ImplicitAdjoint(ims.CG(max_steps=CG_STEPS, rtol=None)),
    )

    def model(phi, x):
        w1, b1, w2, b2, w3, b3 = phi
        return torch.tanh(torch.tanh(x @ w1 + b1) @ w2 + b2) @ w3 + b3

    def criterion(out, y):
        return (out - y).square().mean()

    batching = imaml.Batching.LOOP if loop else imaml.Batching.VMAP

    def call():
        got = method.meta_gradient(model, criterion, theta, supports, queries, batching=batching)
        assert not got.left_out.any()
        return got.gradient

    return call


def ours_graph():
    """Compile the meta-objective and its backward pass."""
    import torch

    import implicit_solvers as ims
    from implicit_solvers.problems import imaml

    theta, supports, queries = torch_numbers()
    leaves = [t.requires_grad_() for t in theta]
    adaptation = {
        "strength": STRENGTH,
        "solver": ims.GradientDescent(LR, max_steps=STEPS, rtol=None),
        "adjoint": ims.ImplicitAdjoint(ims.CG(max_steps=CG_STEPS, rtol=None)),
        "on_failure": "mask",
    }

    def loss(phi, data):
        return loss_of(phi, *data, torch.tanh)

    @torch.compile(fullgraph=True)
    def objective(theta, supports, queries):
        return imaml.meta_objective(loss, theta, supports, queries, **adaptation)

    return lambda: torch.autograd.grad(objective(leaves, supports, queries), leaves)


def func(compiled=False):
    """Write the algorithm for one task, as short as it can be, and let ``vmap`` batch it."""
    import torch
    from torch.func import grad, vjp, vmap

    theta, supports, queries = torch_numbers()

    def task(x, y, query_x, query_y):
        def inner(phi):
            return inner_loss(phi, theta, x, y, torch.tanh)

        phi = theta
        for _ in range(STEPS):
            phi = [p - LR * g for p, g in zip(phi, grad(inner)(phi), strict=True)]
        b = grad(lambda phi: loss_of(phi, query_x, query_y, torch.tanh))(phi)
        _, pull = vjp(grad(inner), phi)
        return [STRENGTH * t for t in torch_cg(lambda p: pull(p)[0], b)]

    def mean(*data):
        return [t.mean(0) for t in vmap(task)(*data)]

    gradient = torch.compile(mean, fullgraph=True) if compiled else mean
    return lambda: gradient(*supports, *queries)


def plain():
    """Write the algorithm with `torch.autograd.grad`, task by task."""
    import torch

    theta, supports, queries = torch_numbers()

    def task(x, y, query_x, query_y):
        def inner(phi):
            return inner_loss(phi, theta, x, y, torch.tanh)

        phi = [t.clone().requires_grad_() for t in theta]
        for _ in range(STEPS):
            slopes = torch.autograd.grad(inner(phi), phi)
            phi = [(p - LR * g).detach().requires_grad_() for p, g in zip(phi, slopes, strict=True)]
        b = torch.autograd.grad(loss_of(phi, query_x, query_y, torch.tanh), phi)
        slopes = torch.autograd.grad(inner(phi), phi, create_graph=True)

        def product(p):
            return torch.autograd.grad(slopes, phi, p, retain_graph=True)

        return [STRENGTH * t for t in torch_cg(product, b)]

    def call():
        total = [torch.zeros_like(t) for t in theta]
        for data in zip(*supports, *queries, strict=True):
            total = [s + t for s, t in zip(total, task(*data), strict=True)]
        return [t / TASKS for t in total]

    return call


def torchopt():
    import torch
    import torchopt
    from torchopt.diff.implicit import custom_root

    theta, supports, queries = torch_numbers()

    def inner(phi, theta, x, y):
        return inner_loss(phi, theta, x, y, torch.tanh)

    slope = torch.func.grad(inner)
    cg = torchopt.linear_solve.solve_cg(maxiter=CG_STEPS, rtol=0.0, atol=0.0)

    @custom_root(slope, argnums=1, solve=cg)
    def solve(phi, theta, x, y):
        for _ in range(STEPS):
            with torch.enable_grad():
                phi = tuple(p.detach().requires_grad_() for p in phi)
                slopes = torch.autograd.grad(inner(phi, theta, x, y), phi)
            phi = tuple(p.detach() - LR * g for p, g in zip(phi, slopes, strict=True))
        return phi

    def call():
        leaves = tuple(t.clone().requires_grad_() for t in theta)
        start = tuple(t.clone() for t in theta)
        total = 0.0
        for x, y, query_x, query_y in zip(*supports, *queries, strict=True):
            total = total + loss_of(solve(start, leaves, x, y), query_x, query_y, torch.tanh)
        return torch.autograd.grad(total / TASKS, leaves)

    return call


def torchopt_module():
    import torch
    import torchopt

    theta, supports, queries = torch_numbers()
    cg = torchopt.linear_solve.solve_cg(maxiter=CG_STEPS, rtol=0.0, atol=0.0)

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.phi = torch.nn.ParameterList([t.clone() for t in theta])

        def forward(self, x, y):
            return loss_of(self.phi, x, y, torch.tanh)

    class Adapted(torchopt.nn.ImplicitMetaGradientModule, linear_solve=cg):
        def __init__(self, meta):
            super().__init__()
            self.meta = meta
            self.net = torchopt.module_clone(meta, by="deepcopy", detach_buffers=True)

        def objective(self, x, y):
            pairs = zip(self.parameters(), self.meta_parameters(), strict=True)
            pull = sum((p - t).square().sum() for p, t in pairs)
            return self.net(x, y) + STRENGTH / 2 * pull

        def solve(self, x, y):
            parameters = tuple(self.parameters())
            with torch.enable_grad():
                for _ in range(STEPS):
                    slopes = torch.autograd.grad(self.objective(x, y), parameters)
                    with torch.no_grad():
                        for p, g in zip(parameters, slopes, strict=True):
                            p -= LR * g
            return self

    meta = Network()

    def call():
        total = 0.0
        for x, y, query_x, query_y in zip(*supports, *queries, strict=True):
            total = total + Adapted(meta).solve(x, y).net(query_x, query_y)
        return torch.autograd.grad(total / TASKS, tuple(meta.parameters()))

    return call


def jax():
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    theta, supports, queries = numbers()
    theta = [jnp.asarray(t) for t in theta]
    data = [jnp.asarray(a) for a in (*supports, *queries)]
    tree = jax.tree_util.tree_map

    def task(theta, x, y, query_x, query_y):
        def inner(phi):
            return inner_loss(phi, theta, x, y, jnp.tanh)

        def step(_, phi):
            return tree(lambda p, g: p - LR * g, phi, jax.grad(inner)(phi))

        phi = jax.lax.fori_loop(0, STEPS, step, theta)
        b = jax.grad(lambda phi: loss_of(phi, query_x, query_y, jnp.tanh))(phi)
        _, product = jax.linearize(jax.grad(inner), phi)

        def cg(_, state):
            w, r, p, rr = state
            Ap = product(p)
            a = rr / dot(p, Ap)
            w = tree(lambda s, t: s + a * t, w, p)
            r = tree(lambda s, t: s - a * t, r, Ap)
            new = dot(r, r)
            return w, r, tree(lambda s, t: s + new / rr * t, r, p), new

        zero = tree(jnp.zeros_like, b)
        w, *_ = jax.lax.fori_loop(0, CG_STEPS, cg, (zero, b, b, dot(b, b)))
        return tree(lambda t: STRENGTH * t, w)

    batched = jax.jit(
        lambda theta, *data: tree(
            lambda t: t.mean(0), jax.vmap(task, in_axes=(None, 0, 0, 0, 0))(theta, *data)
        )
    )
    return lambda: jax.block_until_ready(batched(theta, *data))


SIDES = {
    "ours": ("this library, `vmap`", ours),
    "ours_compiled": ("this library, `vmap`, `compile=True`", lambda: ours(compiled=True)),
    "ours_graph": ("this library, `torch.compile(fullgraph=True)`", ours_graph),
    "ours_loop": ("this library, task by task", lambda: ours(loop=True)),
    "func": ("hand-written `torch.func`", func),
    "func_compiled": (
        "hand-written `torch.func`, `torch.compile(fullgraph=True)`",
        lambda: func(compiled=True),
    ),
    "plain": ("hand-written loop over tasks", plain),
    "torchopt": ("TorchOpt, `custom_root`", torchopt),
    "torchopt_module": ("TorchOpt, `ImplicitMetaGradientModule`", torchopt_module),
    "jax": ("JAX, `vmap` and `jit`", jax),
}


# --------------------------------------------------------------------------------- taking turns


def answers(side):
    """Return the functions that answer ``gradient`` and ``seconds``."""
    call = SIDES[side][1]()
    return {
        "first": lambda: seconds_of(call),
        "gradient": lambda: np.concatenate([np.ravel(np.asarray(t)) for t in call()]).tolist(),
        "seconds": lambda: seconds_of(call),
    }


def compare(pythons, rounds):
    """Print a line for each side: times, the ratio to ours, and the seconds of the first call."""
    workers = {name: Worker(python, __file__, name) for name, python in pythons.items()}
    reference = np.concatenate([np.ravel(t) for t in plain()()])
    first = {}
    for name, worker in workers.items():
        first[name] = worker.ask("first")
        gradient = np.array(worker.ask("gradient"))
        error = np.linalg.norm(gradient - reference) / np.linalg.norm(reference)
        if not error < 1e-9:
            raise SystemExit(f"{name}: the gradient is {error:.1e} from the reference: not timed")
    seconds = in_turns(workers, rounds)
    print("| | ms, median | ms, best | times ours | first call, s |\n|---|---|---|---|---|")
    for name, worker in workers.items():
        ratios = [s / o for s, o in zip(seconds[name], seconds["ours"], strict=True)]
        print(
            f"| {SIDES[name][0]} | {1e3 * statistics.median(seconds[name]):.1f} | "
            f"{1e3 * min(seconds[name]):.1f} | {statistics.median(ratios):.2f} | "
            f"{first[name]:.1f} |"
        )
        worker.close()


def convolutions(rounds):
    """Print the seconds of a task by `vmap` and by a loop, and the choice, for three batches."""
    import torch
    import torch.nn.functional as F

    from implicit_solvers.problems import imaml
    from implicit_solvers.problems.imaml.few_shot_networks import classifier, initial_parameters

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    network = classifier(28, 1, 32, 5)
    model, _ = imaml.functional_model(network)
    theta = initial_parameters(network, generator)
    method = imaml.Imaml(STRENGTH)
    print("| tasks together | `vmap`, s a task | loop, s a task | chosen |\n|---|---|---|---|")
    for tasks in (1, 4, 8):
        supports, queries = (
            (
                torch.rand(tasks, 5 * n, 1, 28, 28, generator=generator),
                torch.arange(5).repeat_interleave(n).expand(tasks, -1),
            )
            for n in (1, 10)
        )

        def call(supports, queries, batching):
            method.meta_gradient(
                model, F.cross_entropy, theta, supports, queries, batching=batching
            )

        sides = {b: functools.partial(call, supports, queries, b) for b in imaml.Batching}
        vmap, loop = (seconds / tasks for seconds in medians(sides, rounds).values())
        choice = imaml.faster_batching(call, supports, queries)
        print(f"| {tasks} | {vmap:.3f} | {loop:.3f} | {choice.batching.value} |", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--torchopt", metavar="PYTHON", help="interpreter with torchopt and torch")
    parser.add_argument("--jax", metavar="PYTHON", help="interpreter with jax")
    parser.add_argument("--compiled", action="store_true", help="time what is compiled too")
    parser.add_argument("--convolutions", action="store_true", help="time the few-shot network too")
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(answers(arguments.serve))
    pythons = dict.fromkeys(("ours", "ours_loop", "func", "plain"), sys.executable)
    if arguments.compiled:
        # the time of a first call is what it is only without the results of earlier ones
        os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
        compiled = ("ours_compiled", "ours_graph", "func_compiled")
        pythons |= dict.fromkeys(compiled, sys.executable)
    if arguments.torchopt:
        pythons["torchopt"] = pythons["torchopt_module"] = arguments.torchopt
    if arguments.jax:
        pythons["jax"] = arguments.jax
    compare(pythons, arguments.rounds)
    if arguments.convolutions:
        convolutions(max(3, arguments.rounds // 4))
    return None


if __name__ == "__main__":
    main()
