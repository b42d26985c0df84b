"""Time a batch of quadratic programs, forward and backward, against qpth.

    OMP_NUM_THREADS=1 python tests/benchmarks/qp.py --qpth ENVIRONMENT/bin/python

128 programs of 32 variables and 32 inequalities in float64, on one thread; gradients of a sum of
squares in ``Q``, ``p``, ``G`` and ``h``. ``--compiled`` times `quadratic_program` in a compiled
function too: the graph is broken there, and the solve runs outside of it. qpth needs versions of
packages that nothing else here does: make it an environment of its own (``python -m venv
ENVIRONMENT``, then ``ENVIRONMENT/bin/pip install qpth torch``). Each side is a process; they take
turns, and the CPU time of each turn counts; freed memory is kept. Errors are those of the
minimizers and of the gradients, the largest entry, against a dense solve on the active set.
"""

import argparse
import os
import statistics
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from processor import raise_allocator_thresholds
from worker import Worker, in_turns, seconds_of, serve

LANES, VARIABLES, INEQUALITIES = 128, 32, 32
REPEATS = 5


def programs():
    """Draw programs with one solution each; about a quarter of the rows are active."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(LANES, *shape, generator=generator, dtype=torch.float64)

    root = normal(VARIABLES, VARIABLES)
    Q = root @ root.mT / VARIABLES + 0.1 * torch.eye(VARIABLES, dtype=torch.float64)
    G, x = normal(INEQUALITIES, VARIABLES), normal(VARIABLES)
    h = (G @ x[..., None])[..., 0] + normal(INEQUALITIES).abs()
    return Q, normal(VARIABLES), G, h


def ours():
    from implicit_solvers.problems.qp import quadratic_program

    return lambda *operands: quadratic_program(*operands).value.x


def qpth():
    from qpth.qp import QPFunction

    none = torch.zeros(0, dtype=torch.float64)
    solve = QPFunction(verbose=-1)
    return lambda Q, p, G, h: solve(Q, p, G, h, none, none)


def in_compiled_function():
    return torch.compile(ours())


SIDES = {
    "implicit_solvers": ours,
    "implicit_solvers, in torch.compile": in_compiled_function,
    "qpth": qpth,
}


def exact(Q, p, G, h, near):
    """Solve and differentiate on the active set of a point that is near the solution."""
    n = len(p)
    active = G @ near > h - 1e-6
    rows = G[active]
    zero = np.zeros((len(rows), len(rows)))
    kkt = np.block([[Q, rows.T], [rows, zero]])
    z = np.linalg.solve(kkt, np.concatenate([-p, h[active]]))
    x, duals = z[:n], z[n:]
    assert duals.min(initial=1) > 0 and (G @ x - h).max() < 1e-9
    w = np.linalg.solve(kkt, np.concatenate([2 * x, 0 * duals]))
    dx, dy = -w[:n], -w[n:]
    dQ = (np.outer(dx, x) + np.outer(x, dx)) / 2
    dG, dh = np.zeros_like(G), np.zeros_like(h)
    dG[active] = np.outer(dy, x) + np.outer(duals, dx)
    dh[active] = -dy
    return x, (dQ, dx, dG, dh)


def answers(side):
    """Return the functions that answer ``seconds`` and ``errors``."""
    torch.set_num_threads(1)
    raise_allocator_thresholds()
    solve = SIDES[side]()
    operands = [t.requires_grad_() for t in programs()]

    def both():
        x = solve(*operands)
        return x, torch.autograd.grad(x.square().sum(), operands)

    def seconds():
        return seconds_of(lambda: [both() for _ in range(REPEATS)]) / REPEATS

    def errors():
        x, gradients = both()
        value_error = gradient_error = 0.0
        for lane in range(LANES):
            own = [t[lane].detach().numpy() for t in operands]
            truth, slopes = exact(*own, x[lane].detach().numpy())
            value_error = max(value_error, abs(x[lane].detach().numpy() - truth).max())
            for g, slope in zip(gradients, slopes, strict=True):
                found = g[lane].numpy()
                if g.shape[1:] == (VARIABLES, VARIABLES) and g is gradients[0]:
                    found = (found + found.T) / 2
                gradient_error = max(gradient_error, abs(found - slope).max())
        return float(value_error), float(gradient_error)

    return {"seconds": seconds, "errors": errors}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--qpth", metavar="PYTHON", help="an interpreter that has qpth and torch")
    parser.add_argument("--compiled", action="store_true", help="time a compiled function too")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(answers(options.serve))
        return
    interpreters = {"implicit_solvers": sys.executable}
    if options.compiled:
        interpreters["implicit_solvers, in torch.compile"] = sys.executable
    if options.qpth:
        interpreters["qpth"] = options.qpth
    workers = {side: Worker(python, __file__, side) for side, python in interpreters.items()}
    errors = {side: worker.ask("errors") for side, worker in workers.items()}
    times = in_turns(workers, options.rounds)
    print("| library | ms, median (least) | error of x | error of the gradients |")
    print("|---|---|---|---|")
    for side in workers:
        median, least = 1e3 * statistics.median(times[side]), 1e3 * min(times[side])
        x, gradient = errors[side]
        print(f"| {side} | {median:.1f} ({least:.1f}) | {x:.1e} | {gradient:.1e} |")
    if "qpth" in times:
        pairs = zip(times["qpth"], times["implicit_solvers"], strict=True)
        ratio = statistics.median(theirs / own for theirs, own in pairs)
        print(f"\nqpth takes {ratio:.2f} times as long (median of {options.rounds} turns)")
    for worker in workers.values():
        worker.close()


if __name__ == "__main__":
    main()
