"""The tables of the documentation are what the published scores of all trainings say."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from implicit_solvers.problems.experiments.ernn import train, trials
from implicit_solvers.problems.experiments.imaml import table

DOCS = Path(__file__).parents[3] / "docs"
FEW_SHOT = ["imaml", "imaml-20-ways", "imaml-steps"]


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


@pytest.mark.parametrize("name", FEW_SHOT)
def test_methods(name):
    """Accuracies, intervals and which are bold follow from the trainings."""
    trained = {}
    for run_name, run in published(name)["runs"].items():
        if found := re.fullmatch(r"(\d+x\d+(?:@\d+)?)-(.+)-seed\d", run_name):
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
    settings = published(name)["config"]["settings"]
    names = [table.Setting.parse(setting).name for setting in settings]
    rows.sort(key=lambda row: names.index(row["setting"]))
    accuracies = table.markdown(rows).split("\n\n")[0]
    assert missing(accuracies, "imaml.md") == []
    assert missing(accuracies.replace("| MAML | ", "| MAML | 1"), "imaml.md") != []


@pytest.mark.parametrize("name", ["ernn", *FEW_SHOT])
def test_runs_go_on_from_what_is_published(name, scores, tmp_path, monkeypatch):
    before = published(name)
    scores.restore(name, tmp_path / "runs")
    monkeypatch.setattr(scores, "HERE", tmp_path)
    scores.keep(name, tmp_path / "runs")
    assert json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8")) == before
