"""The tables of the documentation are what the published scores of all trainings say."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from implicit_solvers.problems.experiments.ernn import train, trials
from implicit_solvers.problems.experiments.imaml import table

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def scores():
    spec = importlib.util.spec_from_file_location("scores", DOCS / "results" / "scores.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def published(name):
    return json.loads((DOCS / "results" / f"{name}.json").read_text(encoding="utf-8"))


def missing(text, page):
    """Return the lines of the text's tables that are not on the page."""
    there = set((DOCS / page).read_text(encoding="utf-8").splitlines())
    return [line for line in text.splitlines() if line.startswith("|") and line not in there]


def test_networks():
    """Means, intervals, marks, costs and orders on the page follow from the trainings."""
    kept = published("ernn")["trainings"].values()
    results = {own["config"]["task"]: own["results"] for own in kept}
    rows = {
        own["config"]["task"]: trials.summary(own["results"], trials.Configuration(**own["config"]))
        for own in kept
    }
    trials.adjust(rows)
    seconds = {task: train.seconds_of(results[task], rows[task]) for task in rows}
    tables = train.markdown(rows, seconds)
    assert missing(tables, "ernn.md") == []
    assert missing(tables.replace("| RNN | ", "| RNN | 1"), "ernn.md") != []


def test_methods():
    """Accuracies, intervals and which are bold follow from the trainings."""
    trained = {}
    for name, run in published("imaml")["runs"].items():
        if found := re.fullmatch(r"(\d+x\d+)-(.+)-seed\d", name):
            metrics = {**run["metrics"], "history": {"loss": [0.0] * run["metrics"]["steps"]}}
            trained.setdefault(found.groups(), []).append(metrics)
    rest = {"chosen": {}, "memory": 0}
    rows = [
        {
            "setting": table.Setting.parse(setting).name,
            "method": method,
            **rest,
            **table.summary(of),
        }
        for (setting, method), of in trained.items()
    ]
    rows.sort(key=lambda row: list(table.LABELS).index(row["method"]))
    accuracies = table.markdown(sorted(rows, key=lambda row: row["setting"])).split("\n\n")[0]
    assert missing(accuracies, "imaml.md") == []
    assert missing(accuracies.replace("| R2D2 | ", "| R2D2 | 1"), "imaml.md") != []


@pytest.mark.parametrize("name", ["ernn", "imaml"])
def test_runs_go_on_from_what_is_published(name, scores, tmp_path, monkeypatch):
    before = published(name)
    scores.restore(name, tmp_path / "runs")
    monkeypatch.setattr(scores, "HERE", tmp_path)
    scores.keep(name, tmp_path / "runs")
    assert json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8")) == before
