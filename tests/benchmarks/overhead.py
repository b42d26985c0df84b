"""The time of a solve over that of the bare sequence of what it computed.

    python tests/benchmarks/overhead.py [--rounds 21] [--out FOLDER]

A solve of ``tanh(W z) + z = x``, forward and backward, is watched once: every evaluation of ``f``,
Jacobian, product, factorization, solve with factors and pullback is noted with its number of
lanes. Then the sequence is replayed without the library, on tensors of the same shapes: ``f``
under ``vmap``, Jacobians by the faster of two ways, LAPACK's routines. The replay decides nothing:
no norms, no tests for convergence, no line search. The two are timed in turns. Of conjugate
gradients the products are replayed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import processor

if __name__ == "__main__":
    processor.one_core()

import cg
import newton
from comparison import Counted, alternate, start_measuring, write
from gradient_sides import tensors

Event = tuple[str, int]


@contextmanager
def watch(events: list[Event]) -> Iterator[None]:
    """Note what the library computes: each event with its number of lanes."""
    import torch

    import implicit_solvers as ims
    from implicit_solvers import differentiate, masking
    from implicit_solvers.linear.jacobian_template import JacobianTemplate
    from implicit_solvers.linear.lane_map import LaneMap

    def noting(owner: Any, name: str, event: str, lanes: Callable[..., int]) -> Any:
        original = getattr(owner, name)

        def noted(*args: Any, **options: Any) -> Any:
            if count := lanes(*args):
                events.append((event, count))
            return original(*args, **options)

        return mock.patch.object(owner, name, noted)

    def grid(template: Any, lanes: Any, like: Any, *rest: Any) -> int:
        return max(like.shape[:-1].numel(), 1)

    def own(solver: Any, matrix: Any, *rest: Any) -> int:
        # before the first step a solver may store the factors of the identity
        eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype)
        return 0 if bool((matrix == eye).all()) else len(matrix)

    def evaluated(count: int) -> None:
        """Forget the last evaluation: the replay evaluates the function where this one serves."""
        if ("f", count) in events:
            events.reverse()
            events.remove(("f", count))
            events.reverse()

    def formed(A: Any) -> bool:
        return A.matrices is not None

    def jacobian(A: Any) -> int:
        if formed(A):
            return 0
        if A.graph is not None:
            evaluated(A.grid)
        return int(A.grid)

    def pulled(fn: Any, *primals: Any) -> int:
        return max(len(t) if t.dim() > 1 and t.shape[0] != t.shape[1] else 1 for t in primals)

    def on_graph(spec: Any, transposed: bool, rhs: Any, *rest: Any) -> int:
        # a gradient of first order is pulled back by autograd itself, through an evaluation
        count = max(rhs.shape[:-1].numel(), 1) if isinstance(rest[-1], tuple) else 0
        evaluated(count)
        return count

    with (
        noting(ims.EquationProblem, "residual", "f", lambda problem, z, *rest: len(z)),
        noting(ims.EquationProblem, "residual_to_factor", "f", lambda problem, z: len(z)),
        noting(LaneMap, "dense", "jacobian", jacobian),
        noting(JacobianTemplate, "products", "linearize", grid),
        noting(LaneMap, "_apply", "product", lambda A, _, v: 0 if formed(A) else len(v)),
        noting(LaneMap, "_apply", "multiply", lambda A, _, v: len(v) if formed(A) else 0),
        noting(ims.LU, "factor_dense", "factor", own),
        noting(ims.LU, "solve", "solve", lambda solver, factors, b, *rest: len(b)),
        noting(masking, "vjp", "pullback", pulled),
        noting(differentiate, "_inverse_times", "pullback", on_graph),
    ):
        yield


@dataclass
class Bare:
    """The same computations by torch alone, at the solution ``z``."""

    z: Any
    W: Any
    x: Any
    f: Callable[..., Any]

    def over(self, count: int) -> Callable[..., Any]:
        """Return ``f`` of that many lanes; of one problem as it is."""
        import torch

        if self.z.dim() == 1:
            return self.f
        return torch.func.vmap(self.f, in_dims=(0, None, 0))

    def part(self, t: Any, count: int) -> Any:
        """Return that many lanes."""
        return t if self.z.dim() == 1 else t[:count]

    def step(self, event: Event) -> Callable[[], Any]:
        """Return what computes an event."""
        import torch

        kind, count = event
        f = self.over(count)
        z, x, W = self.part(self.z, count), self.part(self.x, count), self.W
        n = z.shape[-1]
        rows = z.reshape(-1, n)
        J = self.rows(f, z, W, x).reshape(-1, n, n)
        lu, pivots, _ = torch.linalg.lu_factor_ex(J)
        column = rows.unsqueeze(-1)
        if kind == "f":
            return lambda: f(z, W, x)
        if kind == "jacobian":
            ways = {"rows": lambda: self.rows(f, z, W, x), "columns": lambda: self.columns(z, W, x)}
            seconds = alternate(ways, 5)
            return min(ways.items(), key=lambda way: min(cpu for _, cpu in seconds[way[0]]))[1]
        if kind == "multiply":
            return lambda: J @ column
        if kind == "factor":
            return lambda: torch.linalg.lu_factor_ex(J)
        if kind == "solve":
            return lambda: torch.linalg.lu_solve(lu, pivots, column)
        if kind == "pullback":
            return lambda: torch.func.vjp(lambda W, x: f(z, W, x), W, x)[1](z)
        if kind == "linearize":
            return lambda: torch.func.vjp(lambda z: f(z, W, x), z)
        if kind == "product":
            pull = torch.func.vjp(lambda z: f(z, W, x), z)[1]
            return lambda: pull(z)
        raise ValueError(kind)

    def rows(self, f: Any, z: Any, W: Any, x: Any) -> Any:
        """Return the Jacobians by pullbacks of one graph for all lanes."""
        import torch

        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            out = f(leaf, W, x)

            def row(e: Any) -> Any:
                return torch.autograd.grad(out, leaf, e.expand(out.shape), retain_graph=True)[0]

            return torch.func.vmap(row, out_dims=-2)(torch.eye(z.shape[-1], dtype=z.dtype))

    def columns(self, z: Any, W: Any, x: Any) -> Any:
        """Return the Jacobians by pullbacks of pullbacks, the basis inside of the lanes."""
        import torch

        eye = torch.eye(z.shape[-1], dtype=z.dtype)

        def dense(z: Any, W: Any, x: Any) -> Any:
            out, pull = torch.func.vjp(lambda z: self.f(z, W, x), z)
            push = torch.func.vjp(pull, torch.zeros_like(out))[1]
            return torch.func.vmap(lambda e: push((e,))[0], out_dims=-1)(eye)

        if z.dim() > 1:
            dense = torch.func.vmap(dense, in_dims=(0, None, 0))
        return dense(z, W, x)


def measure(lanes: int, solver: Any, rounds: int) -> dict[str, Any]:
    """Return the overhead of a batch, or, for no lanes, of one problem."""
    import torch

    import implicit_solvers as ims

    W, x, _ = tensors(newton.numbers(max(lanes, 1)))
    if not lanes:
        x = x[0].detach().requires_grad_()
    f = Counted(newton.equation(torch.tanh))

    def one(x):
        return ims.root(f, torch.zeros_like(x), (W, x), solver=solver).value

    solve = torch.func.vmap(one) if lanes else one
    slope = torch.ones_like(x)

    def whole() -> Any:
        return torch.autograd.grad(solve(x), (W, x), slope)

    whole()
    events: list[Event] = []
    f.since()
    with watch(events):
        whole()
    evaluations = f.since()
    bare = Bare(solve(x).detach(), W.detach(), x.detach(), f)
    with torch.no_grad():
        kinds = {event: bare.step(event) for event in set(events)}
        steps = [kinds[event] for event in events]
        f.since()
        for step in steps:
            step()
        replayed = f.since()
        repeat = 1 if lanes else 20

        def many(run: Callable[[], Any]) -> Callable[[], Any]:
            return lambda: [run() for _ in range(repeat)]

        def replay() -> None:
            for step in steps:
                step()

        def solved() -> None:
            with torch.enable_grad():
                whole()

        seconds = alternate({"solve": many(solved), "replay": many(replay)}, rounds)
    sequence = [f"{count} x {kind} ({n} lanes)" for (kind, n), count in Counter(events).items()]
    return row(lanes, sequence, (evaluations, replayed), seconds, repeat)


def row(
    lanes: int, sequence: list[str], calls: tuple[int, int], seconds: Any, repeat: int = 1
) -> dict[str, Any]:
    """Return the overhead: the median of the rounds' ratios of solve and replay."""
    solve, replay = ([cpu for _, cpu in seconds[name]] for name in ("solve", "replay"))
    return {
        "lanes": lanes,
        "sequence": sequence,
        "calls_of_f": dict(zip(("solve", "replay"), calls, strict=True)),
        "solve_ms": 1e3 / repeat * statistics.median(solve),
        "replay_ms": 1e3 / repeat * statistics.median(replay),
        "overhead": statistics.median(s / r for s, r in zip(solve, replay, strict=True)),
    }


def measure_cg(rounds: int) -> dict[str, Any]:
    """Return the overhead of conjugate gradients over the products that they made."""
    import torch

    d, b = tensors(cg.numbers())
    product = Counted(cg.torch_product)
    whole = cg.ours(product=product)
    whole()
    product.since()
    whole()
    count = product.since()
    v, fixed = b.detach(), d.detach()

    def replay() -> None:
        with torch.no_grad():
            for _ in range(count):
                cg.torch_product(v, fixed)

    seconds = alternate({"solve": whole, "replay": replay}, rounds)
    return row(0, [f"{count} x product (1 lanes)"], (count, count), seconds)


def main() -> int:
    """Print the overhead at 1,024 lanes and for one problem, and that of conjugate gradients."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    parser.add_argument("--out", type=Path, help="a folder for a JSON file")
    options = parser.parse_args()
    rounds = 3 if options.quick else options.rounds
    start_measuring()
    import implicit_solvers as ims

    rows = []
    print("| solve | solver | solve, ms | replay, ms | overhead | calls of f |")
    print("|---|---|---|---|---|---|")

    def show(row: dict[str, Any]) -> None:
        rows.append(row)
        calls = "{solve} ({replay} replayed)".format(**row["calls_of_f"])
        times = f"{row['solve_ms']:.3g} | {row['replay_ms']:.3g} | {row['overhead']:.2f}"
        print(f"| {row['what']} | {row['solver']} | {times} | {calls} |", flush=True)

    for lanes in (1024, 0):
        what = f"{lanes:,} problems, n = 16" if lanes else "one problem, n = 16"
        for name, solver in {"default": None, "Newton()": ims.Newton()}.items():
            show(measure(lanes, solver, rounds) | {"solver": name, "what": what})
    show(measure_cg(rounds) | {"solver": "CG()", "what": "one matrix-free system, n = 4,096"})
    for row in rows:
        print(f"\n{row['what']}, {row['solver']}: {', '.join(row['sequence'])}.")
    write(options.out, {"task": "overhead", "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
