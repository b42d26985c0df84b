"""Keep the scores of long runs, and go on with them on another machine.

    python docs/results/scores.py keep ernn runs/ernn-table
    python docs/results/scores.py restore ernn runs/ernn-table
    implicit-solvers ernn table --out runs/ernn-table --resume

``keep`` writes what the tables of the documentation are made of, the configuration and the scores
of each training, to ``docs/results/NAME.json``. ``restore`` makes a folder of runs of it, in which
the command goes on; learning curves and weights are not kept.
"""

import argparse
import json
from pathlib import Path

from implicit_solvers.problems.experiments.harness.run_folder import (
    read_checkpoint,
    read_json,
    write_checkpoint,
    write_json,
)

HERE = Path(__file__).parent
CURVES = {"train": [], "test": []}


def rounded(value):
    """Return a tree of numbers with seven digits."""
    if isinstance(value, dict):
        return {key: rounded(own) for key, own in value.items()}
    if isinstance(value, list):
        return [rounded(own) for own in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def keep(name, folder):
    """Write the scores of a folder of runs."""
    content = {"config": read_json(folder / "config.json"), "trainings": {}, "runs": {}}
    for task in content["config"]:
        if not (path := folder / f"checkpoint-{task}.pt").exists():
            continue
        trained = read_checkpoint(path)
        results = [{k: v for k, v in r.items() if k not in CURVES} for r in trained["results"]]
        kept = {"config": trained["configuration"], "seconds": trained["seconds"]}
        content["trainings"][path.name] = {**kept, "results": results}
    for path in sorted(folder.glob("*/metrics.json")):
        metrics = read_json(path)
        metrics["steps"] = len(metrics.pop("history")["loss"])
        content["runs"][path.parent.name] = {
            "config": read_json(path.with_name("config.json")),
            "metrics": metrics,
        }
    lines = json.dumps(rounded(content), separators=(",", ":"))
    for mark in ('{"model"', '"config"', '"checkpoint-', '"metrics"'):
        lines = lines.replace(mark, "\n" + mark)
    (HERE / f"{name}.json").write_text(lines + "\n", encoding="utf-8")


def restore(name, folder):
    """Make a folder of runs in which the command goes on."""
    content = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
    folder.mkdir(parents=True)
    write_json(folder / "config.json", content["config"])
    for file, trained in content["trainings"].items():
        results = [{**result, **CURVES} for result in trained["results"]]
        state = {"results": results, "kept": {}, "current": None, "seconds": trained["seconds"]}
        write_checkpoint(folder / file, {"configuration": trained["config"], **state})
    for run, kept in content["runs"].items():
        (folder / run).mkdir()
        write_json(folder / run / "config.json", kept["config"])
        metrics = {**kept["metrics"], "history": {"loss": [0.0] * kept["metrics"]["steps"]}}
        write_json(folder / run / "metrics.json", metrics)


def main():
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("action", choices=["keep", "restore"])
    parser.add_argument("name")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    {"keep": keep, "restore": restore}[arguments.action](arguments.name, arguments.folder)


if __name__ == "__main__":
    main()
