"""The tables and charts of docs/benchmarks.md, from the results in runs/bench: `make bench-docs`.

    python tests/benchmarks/report.py [--results runs/bench] [--page docs/benchmarks.md]

A table of the page stands between ``<!-- NAME -->`` and ``<!-- end -->``; text around it is kept.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comparison import Row, markdown
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

ROOT = Path(__file__).parents[2]
SIX = ("newton", "straggler", "equilibrium", "cg", "gmres", "batched_cg")
BLUE, ORANGE, GREY = "#2962ff", "#ff6d00", "#78909c"
MARKS = {"ours, default": "o", "tuned": "D", "compiled": "s", "other": "o"}

NAMES = {
    "f": "f",
    "jacobian": "Jacobians",
    "factor": "factorizations",
    "solve": "solves with factors",
    "linearize": "linearization",
    "product": "products",
    "multiply": "products with the matrix",
    "pullback": "pullback",
}

Results = dict[str, dict[str, Any]]


def read(folder: Path) -> Results:
    """Return the results of a folder by task."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return {result["task"]: result for result in found}


def timed(result: dict[str, Any], ours: bool) -> list[dict[str, Any]]:
    """Return the rows with a time, of this library or of the others."""
    return [r for r in result["rows"] if r["status"] == "timed" and r["ours"] == ours]


def kind(row: dict[str, Any]) -> str:
    """Return what sort of side a row is."""
    if not row["ours"]:
        return "other"
    if "compiled" in row["label"]:
        return "compiled"
    return "ours, default" if "default" in row["label"] else "tuned"


def by_hand(row: dict[str, Any]) -> bool:
    """Tell whether a side is torch alone."""
    return row["label"].startswith(("torch ", "torch.linalg"))


# ------------------------------------------------------------------------------------------ tables


def summary(results: Results) -> list[str]:
    """Return a row for each task: ours, the best written by hand in torch, the fastest peer."""
    lines = [
        "| task | default | tuned | compiled | torch by hand | fastest other library |",
        "|---|---|---|---|---|---|",
    ]
    for task in SIX:
        if task not in results:
            continue
        rows = timed(results[task], ours=True)
        best: dict[str, float] = {}
        for row in rows:
            best[kind(row)] = min(row["cpu_ms"], best.get(kind(row), row["cpu_ms"]))
        others = timed(results[task], ours=False)
        hand = [r["cpu_ms"] for r in others if by_hand(r)]
        peers = [r for r in others if not by_hand(r)]
        cells = [
            f"{best[k]:.3g}" if k in best else "–" for k in ("ours, default", "tuned", "compiled")
        ]
        cells.append(f"{min(hand):.3g}" if hand else "–")
        if peers:
            first = min(peers, key=lambda r: r["cpu_ms"])
            cells.append(f"{first['cpu_ms']:.3g} ({first['label']})")
        else:
            cells.append("–")
        lines.append(f"| {results[task]['title']} | " + " | ".join(cells) + " |")
    return lines


def details(results: Results) -> list[str]:
    """Return the whole table of each task."""
    lines: list[str] = []
    for task in SIX:
        if task in results:
            rows = [Row(**row) for row in results[task]["rows"]]
            lines += [f"### {results[task]['title']}", "", *markdown(rows), ""]
    return lines[:-1]


def stragglers(results: Results) -> list[str]:
    """Return how many times as long each side takes because of one hard lane."""
    lines = ["| side | without, ms | with, ms | ratio |", "|---|---|---|---|"]
    if not {"straggler", "no_straggler"} <= results.keys():
        return lines
    before = {r["label"]: r["cpu_ms"] for r in results["no_straggler"]["rows"]}
    for row in results["straggler"]["rows"]:
        if row["status"] == "timed" and before.get(row["label"]):
            without, with_ = before[row["label"]], row["cpu_ms"]
            lines.append(
                f"| {row['label']} | {without:.3g} | {with_:.3g} | {with_ / without:.2f} |"
            )
    return lines


def overhead(results: Results) -> list[str]:
    """Return the ratio to the replay, and what was replayed."""
    lines = [
        "| solve | solver | solve, ms | replay, ms | overhead | what was computed |",
        "|---|---|---|---|---|---|",
    ]
    for row in results.get("overhead", {"rows": []})["rows"]:
        counts: Counter[str] = Counter()
        for part in row["sequence"]:
            count, event = re.match(r"(\d+) x (\w+)", part).groups()  # type: ignore[union-attr]
            counts[event] += int(count)
        what = ", ".join(f"{count} {NAMES[event]}" for event, count in counts.items())
        lines.append(
            f"| {row['what']} | {row['solver']} | {row['solve_ms']:.3g} | "
            f"{row['replay_ms']:.3g} | {row['overhead']:.2f} | {what} |"
        )
    return lines


def caption(results: Results) -> list[str]:
    """Return what was measured on, in words."""
    machines = [r["machine"] for r in results.values()]
    if not machines:
        return ["Nothing has been measured yet."]
    last = max(machines, key=lambda m: m["date"])
    packages = {k: v for m in machines for k, v in m["versions"].items()}
    names = {"torch": "torch", "numpy": "NumPy", "scipy": "SciPy", "jax": "JAX", "python": "Python"}
    names |= {"optimistix": "Optimistix", "torchopt": "TorchOpt"}
    shown = [f"{names.get(k, k)} {v.partition('+')[0]}" for k, v in packages.items()]
    loads = [m["load"] for m in machines if m["load"] is not None]
    load = f"load {min(loads):.1f} to {max(loads):.1f}" if loads else "load unknown"
    return [
        f"One core of {last['processor']} ({last['cores']} cores, {load}), {last['date']}; "
        f"{', '.join(shown)}. Milliseconds of processor time, medians, float64; glibc's thresholds "
        "raised for all sides."
    ]


TABLES = {
    "caption": caption,
    "summary": summary,
    "stragglers": stragglers,
    "overhead": overhead,
    "details": details,
}


def fill(page: str, results: Results) -> str:
    """Return the page with its tables made anew."""
    for name, table in TABLES.items():
        pattern = rf"(<!-- {name} -->\n)(.*?)(<!-- end -->)"
        body = "\n" + "\n".join(table(results)) + "\n\n"
        page, count = re.subn(pattern, lambda m, b=body: m[1] + b + m[3], page, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"the page has {count} places for <!-- {name} -->: it needs one")
    return page


# ------------------------------------------------------------------------------------------ charts


def chart(results: Results, path: Path) -> None:
    """Draw the time of every side, a panel for each task, fastest first, on log scales."""
    tasks = [t for t in SIX if t in results]
    figure = Figure((10, 8.5), layout="constrained")
    panels = figure.subplots(-(-len(tasks) // 2), 2)
    for axes in panels.flat[len(tasks) :]:
        axes.set_visible(False)
    for axes, task in zip(panels.flat, tasks, strict=False):
        rows = [r for r in results[task]["rows"] if r["status"] == "timed"]
        rows.sort(key=lambda r: -r["cpu_ms"])
        for height, row in enumerate(rows):
            time, color = row["cpu_ms"], color_of(row)
            axes.plot([time, time], [height, height], MARKS[kind(row)], color=color, ms=7)
            text = f"{time:.3g}" if time < 1000 else f"{time:.0f}"
            axes.annotate(
                text, (time, height), (8, 0), textcoords="offset points", va="center", fontsize=8
            )
        axes.set_yticks(range(len(rows)), [row["label"] for row in rows], fontsize=8)
        for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
            tick.set_color(color_of(row))
        axes.set_xscale("log")
        low, high = min(r["cpu_ms"] for r in rows), max(r["cpu_ms"] for r in rows)
        axes.set_xlim(low / 1.6, high * 2.2)
        axes.set_ylim(-0.7, len(rows) - 0.3)
        axes.set_title(results[task]["title"], fontsize=9, loc="right")
        axes.grid(axis="y", color="#eceff1")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", which="both", labelsize=8)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    figure.supxlabel("milliseconds of the processor, forward and backward (log scale)", fontsize=9)
    figure.savefig(path, dpi=150)


def color_of(row: dict[str, Any]) -> str:
    """Return blue for this library, orange for what is written in torch, grey for the others."""
    if row["ours"]:
        return BLUE
    return ORANGE if by_hand(row) else GREY


def growth_chart(results: Results, path: Path) -> None:
    """Draw the time of a solve against lanes and unknowns, both on log scales."""
    if "growth" not in results:
        return
    rows = [r for r in results["growth"]["rows"] if r["status"] == "timed"]
    figure = Figure((9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    labels = list(dict.fromkeys(r["label"] for r in rows))
    styles = dict.fromkeys(labels, (GREY, "--"))
    styles |= {label: (BLUE, "-") for label in labels if label.startswith("ours")}
    styles |= {label: (ORANGE, "-") for label in labels if label.startswith("torch")}
    marks = dict(zip(labels, "os^vD", strict=False))
    titles = {"lanes": "lanes of 16 unknowns", "n": "unknowns of one problem"}
    for axes, (along, title) in zip(panels, titles.items(), strict=True):
        for label in labels:
            points = [
                (r[along], r["cpu_ms"]) for r in rows if (r["along"], r["label"]) == (along, label)
            ]
            color, line = styles[label]
            axes.plot(
                *zip(*points, strict=True),
                line,
                color=color,
                marker=marks[label],
                ms=4,
                label=label,
            )
        axes.set(xscale="log", yscale="log", xlabel=title)
        axes.set_xscale("log", base=2)
        axes.grid(which="major", color="#cfd8dc", linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("milliseconds of the processor")
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def main(words: Sequence[str] | None = None) -> int:
    """Write the tables into the page and the charts beside it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "runs" / "bench")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "benchmarks.md")
    parser.add_argument("--figures", type=Path, default=ROOT / "docs" / "figures")
    options = parser.parse_args(words)
    results = read(options.results)
    options.page.write_text(fill(options.page.read_text(), results))
    chart(results, options.figures / "benchmarks.png")
    growth_chart(results, options.figures / "benchmarks_growth.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
