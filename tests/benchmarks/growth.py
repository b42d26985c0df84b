"""Time of a solve against the number of lanes and of unknowns: forward and backward.

    python tests/benchmarks/growth.py [--quick] [--out FOLDER]

``tanh(W z) + z = x``: 1 to 65,536 lanes of 16 unknowns, made by ``vmap``, and one problem of 2 to
2,048 unknowns, without ``vmap`` for this library. Every answer is checked against the reference
before it is timed.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import processor

if __name__ == "__main__":
    processor.one_core()

import newton
from comparison import Call, Task, compare, start_measuring, write

LANES = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)
UNKNOWNS = (2, 8, 32, 128, 512, 2048)
SIDES: dict[str, Callable[[Any], Call]] = {
    "ours, default": lambda numbers: newton.ours(numbers=numbers),
    "torch by hand": lambda numbers: newton.by_hand(newton.analytic, numbers),
    "Optimistix Newton": newton.optimistix,
    "jaxopt custom_root": newton.jaxopt,
}


def one_size(lanes: int, n: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each side at one size."""
    numbers = functools.partial(newton.numbers, lanes, n)
    task = Task(
        "growth",
        f"{lanes:,} lanes of {n:,} unknowns",
        ("z", "dW", "dx"),
        lambda: newton.exact(*numbers()),
        {label: functools.partial(make, numbers) for label, make in SIDES.items()},
    )
    rows = compare(task, rounds)
    sizes = {"lanes": lanes, "n": n}
    return [sizes | vars(row) for row in rows]


def main() -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, two rounds")
    parser.add_argument("--out", type=Path, help="a folder for a JSON file")
    options = parser.parse_args()
    start_measuring()
    rows: list[dict[str, Any]] = []
    cases = {"lanes": [(lanes, 16) for lanes in LANES], "n": [(1, n) for n in UNKNOWNS]}
    for what, sizes in cases.items():
        print(f"\n| {what} | " + " | ".join(f"{label}, ms" for label in SIDES) + " |")
        print("|---" * (len(SIDES) + 1) + "|", flush=True)
        for lanes, n in sizes[: 3 if options.quick else None]:
            few = 2 if options.quick else (3 if lanes * n**2 > 10**6 else 9)
            found = [row | {"along": what} for row in one_size(lanes, n, few)]
            rows += found
            cells = [
                f"{r['cpu_ms']:.3g}" if r["cpu_ms"] is not None else r["status"] for r in found
            ]
            print(
                f"| {lanes if what == 'lanes' else n:,} | " + " | ".join(cells) + " |", flush=True
            )
    write(options.out, {"task": "growth", "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
