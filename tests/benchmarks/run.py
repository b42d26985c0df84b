"""Run the benchmarks, each in a process of its own: `make bench`.

    python tests/benchmarks/run.py --tasks newton cg    # some of them
    python tests/benchmarks/run.py --quick              # few rounds, small cases
    python tests/benchmarks/run.py --list

Results go to runs/bench: of each task its tables (.md), and numbers (.json) of those that compare
libraries. Peers are looked for in .venv-bench (`make bench-env`); what is not there is reported
as missing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import processor

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PEERS = ROOT / ".venv-bench"


@dataclass(frozen=True)
class Benchmark:
    """A script of this folder: its arguments, fewer of them for a quick look, and peers by option.

    ``compares`` scripts run where all libraries of the comparison are installed.
    """

    name: str
    about: str
    compares: bool = True
    arguments: tuple[str, ...] = ()
    quick: tuple[str, ...] = ("--quick",)
    peers: tuple[tuple[str, str], ...] = ()


def script(name: str, about: str, quick: tuple[str, ...] = (), **options: object) -> Benchmark:
    """Return one of the scripts that measure this library, perhaps against a single peer."""
    return Benchmark(name, about, compares=False, quick=quick, **options)  # type: ignore[arg-type]


BENCHMARKS = (
    Benchmark("newton", "1,024 dense nonlinear systems"),
    Benchmark("straggler", "2,048 such systems, one of which is hard"),
    Benchmark("equilibrium", "a batch of equilibria"),
    Benchmark("cg", "conjugate gradients, matrix-free"),
    Benchmark("gmres", "GMRES, a dense nonsymmetric operator"),
    Benchmark("batched_cg", "a batch of positive definite systems"),
    Benchmark("overhead", "a solve over the bare sequence of what it computes"),
    Benchmark("growth", "lanes and unknowns from 1 to many"),
    script("adjoints", "bias, time and memory of the adjoints", ("--rounds", "1")),
    script("linear_solvers", "the linear solvers", ("--rounds", "1")),
    script("compilation", "what compiling buys and costs", ("--rounds", "3")),
    script("memory_and_speed", "what a solve costs, and what changes it", ("cost", "sharing")),
    script(
        "imaml",
        "meta-gradients",
        ("--rounds", "1"),
        arguments=("--compiled",),
        peers=(("--torchopt", "peers"), ("--jax", "peers")),
    ),
    script("ernn", "the exact network against an LSTM", ("--steps", "16", "--rounds", "1")),
    script(
        "reparameterization",
        "samples with gradients",
        ("--rounds", "1", "--scale", "0.01"),
        arguments=("--compiled",),
        peers=(("--tfp", "tfp"),),
    ),
    script(
        "qp",
        "quadratic programs",
        ("--rounds", "2"),
        arguments=("--compiled",),
        peers=(("--qpth", "qpth"),),
    ),
    script("convex", "convex programs", ("--quick",), peers=(("--cvxpylayers", "cvxpylayers"),)),
    script(
        "solver_table",
        "solvers on the test problems",
        ("--starts", "0", "--only", "kepler", "cosine"),
    ),
    script(
        "nist_and_cutest", "standard collections, beside SciPy", ("--only", "misra1a-1", "booth")
    ),
    script("sparse_jacobians", "Bratu's problem, by its sparse Jacobian", ("--side", "40")),
    script("constrained", "minima with constraints, beside SciPy", ("--only", "hs71")),
)
NAMES = tuple(b.name for b in BENCHMARKS)


def python_of(environment: str) -> Path | None:
    """Return the interpreter of an environment of peers, if it is there."""
    python = PEERS / environment / "bin" / "python"
    return python if python.exists() else None


def command(benchmark: Benchmark, quick: bool, out: Path) -> list[str]:
    """Return the command of a benchmark; peers that are not installed are left out, and named."""
    python: Path | str = sys.executable
    if benchmark.compares:
        python = python_of("peers") or sys.executable
    words = [str(python), "-W", "ignore", str(HERE / f"{benchmark.name}.py")]
    words += benchmark.quick if quick else benchmark.arguments
    for option, environment in benchmark.peers:
        if found := python_of(environment):
            words += [option, str(found)]
        else:
            print(f"  {option[2:]}: missing (make bench-env)", file=sys.stderr)
    if benchmark.compares:
        words += ["--out", str(out)]
    if benchmark.name in ("solver_table", "nist_and_cutest", "constrained"):
        words += ["--out", str(out / f"{benchmark.name}_page.md")]
    if benchmark.name == "solver_table":
        words += ["--jobs", "1"]
    return words


def run(benchmark: Benchmark, quick: bool, out: Path) -> int:
    """Run one benchmark; what it prints is its tables."""
    print(f"\n==== {benchmark.name}: {benchmark.about}", file=sys.stderr, flush=True)
    start = time.monotonic()
    words = command(benchmark, quick, out)
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            print(line, end="", flush=True)
    (out / f"{benchmark.name}.md").write_text("".join(lines))
    minutes = (time.monotonic() - start) / 60
    print(f"  {benchmark.name}: {minutes:.1f} minutes", file=sys.stderr)
    return process.returncode


def main(words: Sequence[str] | None = None) -> int:
    """Run what is asked for; tell at the end which scripts failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", nargs="+", choices=NAMES, default=NAMES, metavar="TASK")
    parser.add_argument("--quick", action="store_true", help="a look at everything")
    parser.add_argument("--list", action="store_true", help="list the tasks")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench")
    options = parser.parse_args(words)
    if options.list:
        print("\n".join(f"{b.name:20} {b.about}" for b in BENCHMARKS))
        return 0
    processor.one_core()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)
    if python_of("peers") is None:
        print("peers are not installed (make bench-env): theirs is missing below", file=sys.stderr)
    chosen = [b for b in BENCHMARKS if b.name in options.tasks]
    bad = [b.name for b in chosen if run(b, options.quick, out)]
    if bad:
        print(f"\nfailed: {', '.join(bad)}", file=sys.stderr)
    print(f"\nresults: {out}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
