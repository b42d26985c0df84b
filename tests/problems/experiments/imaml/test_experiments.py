"""The tables: trials, cells that are kept, means over seeds, and the sine waves' errors."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from implicit_solvers.problems.__main__ import main
from implicit_solvers.problems.experiments.imaml.configuration import LABELS, configuration_from
from implicit_solvers.problems.experiments.imaml.grid import (
    TRIALS,
    WAVE_TRIALS,
    Cell,
    best_trial,
    finished,
    run_all,
)
from implicit_solvers.problems.experiments.imaml.problem import interval, load_problem, task_scores
from implicit_solvers.problems.experiments.imaml.sinusoid import errors_after_steps
from implicit_solvers.problems.experiments.imaml.table import Setting, markdown, summarize
from tests.problems.experiments.runs import COMMANDS, METHODS

TABLE = COMMANDS["imaml table"].arguments


@pytest.fixture
def table(finished):
    """The folder of a tiny table."""
    return finished("imaml table").out


def test_the_table_holds_the_means_of_its_runs(table):
    lines = (table / "table.md").read_text().splitlines()
    assert lines[0] == "| method | 2-way 1-shot | 3-way 1-shot |"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| MAML", "| R2D2"]
    for line, method in zip(lines[2:], ("maml", "r2d2"), strict=True):
        numbers = re.findall(r"([\d.]+) ± ([\d.]+)", line)
        for (mean, half), setting in zip(numbers, ("2x1", "3x1"), strict=True):
            scores, variances = [], []
            for seed in (0, 1):
                path = table / f"{setting}-{method}-seed{seed}" / "metrics.json"
                score = json.loads(path.read_text())["score"]
                assert score["tasks"] == 5
                scores.append(100 * score["mean"])
                variances.append((100 * (score["high"] - score["mean"])) ** 2)
            assert abs(float(mean) - np.mean(scores)) <= 0.051
            assert abs(float(half) - np.sqrt(sum(variances)) / 2) <= 0.051


def test_every_method_uses_the_trial_that_is_best_on_validation_classes(table):
    content = json.loads((table / "metrics.json").read_text())
    for method in ("maml", "r2d2"):
        tried = content["trials"][method]["tried"]
        assert len(tried) == len(TRIALS[method])
        best = max(tried, key=lambda trial: trial["validation"])
        chosen = content["trials"][method]["chosen"]
        assert {**chosen, "validation": best["validation"]} == best
        for number, trial in enumerate(TRIALS[method]):
            folder = table / f"trial-{method}-{number}"
            metrics = json.loads((folder / "metrics.json").read_text())
            assert metrics["score"] is None  # the test's classes are not looked at
            assert metrics["validation"] == tried[number]["validation"]
            configuration = json.loads((folder / "config.json").read_text())
            assert configuration["steps"] == 1
            assert {name: configuration[name] for name in trial} == trial
        for setting in ("2x1", "3x1"):
            path = table / f"{setting}-{method}-seed1" / "config.json"
            configuration = json.loads(path.read_text())
            assert {name: configuration[name] for name in chosen} == chosen
            assert (configuration["seed"], configuration["class_seed"]) == (1, 0)


def test_what_is_there_is_kept(table):
    """A run without its metrics is done again; the others' files are not touched."""
    (table / "3x1-r2d2-seed0" / "metrics.json").unlink()
    (table / "2x1-maml-seed1" / "metrics.json").write_text("{")  # a kill in the midst of writing
    before = {path: path.stat().st_mtime_ns for path in table.glob("*/metrics.json")}
    text = (table / "table.md").read_text()
    assert main([*TABLE, "--out", str(table)]) == 0
    assert (table / "table.md").read_text() == text
    changed = {p.parent.name for p, moment in before.items() if p.stat().st_mtime_ns != moment}
    assert changed == {"2x1-maml-seed1"}
    assert (table / "3x1-r2d2-seed0" / "metrics.json").exists()


def test_the_estimate_computes_nothing(tmp_path, capsys):
    options = ["--methods", "r2d2", "--settings", "2x1x2", "--trial-steps", "0", "--estimate"]
    assert main([*TABLE, *options, "--out", str(tmp_path / "none")]) == 0
    printed = capsys.readouterr().out
    assert "2-way 1-shot, R2D2: " in printed and "minutes of 1 idle cores" in printed
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("jobs", [1, 2])
def test_cells_come_back_in_their_order(jobs, tmp_path):
    options = {"data": "sinusoid", "method": "r2d2", "width": 4, "meta_batch": 1, "steps": 1}
    options |= {"validations": 1, "validation_tasks": 2, "evaluation_tasks": 2}
    cells = [
        Cell(configuration_from({**options, "seed": seed}), tmp_path / f"{jobs}-{seed}")
        for seed in (2, 0)
    ]
    assert [finished(cell) for cell in cells] == [None, None]
    reported = []
    metrics = run_all(cells, jobs, lambda cell, metrics: reported.append(cell.out.name))
    assert [entry["score"] for entry in metrics] == [finished(cell)["score"] for cell in cells]
    assert metrics[0]["score"] != metrics[1]["score"]
    assert sorted(reported) == [f"{jobs}-0", f"{jobs}-2"]


@pytest.mark.parametrize("trials", [TRIALS, WAVE_TRIALS])
def test_every_method_has_four_different_trials(trials):
    assert set(trials) == set(METHODS) == set(LABELS)
    for method, own in trials.items():
        assert len({tuple(sorted(trial.items())) for trial in own}) == len(own) == 4, method


# ---- Numbers ----

means = st.floats(0, 1)


@given(scores=st.lists(means, min_size=2, max_size=30))
def test_intervals_are_those_of_the_normal_distribution(scores):
    found = interval(torch.tensor(scores, dtype=torch.float64))
    error = np.std(scores) / np.sqrt(len(scores))
    low, high = norm.interval(0.95, np.mean(scores), error) if error > 0 else (scores[0],) * 2
    # 1.96 for the normal quantile 1.95996...
    tolerance = 1e-4 * error + 1e-12
    assert abs(found["mean"] - np.mean(scores)) < 1e-12
    assert abs(found["low"] - low) < tolerance and abs(found["high"] - high) < tolerance
    assert found["tasks"] == len(scores)


@given(seeds=st.lists(st.lists(means, min_size=8, max_size=8), min_size=1, max_size=4))
def test_the_interval_of_seeds_is_that_of_their_mean(seeds):
    """Its variance is the sum of the means' variances over the number of seeds squared."""
    common = {"setting": "5-way 1-shot", "method": "maml", "steps": 2, "left_out": 1}
    common |= {"residuals": {"adjoint": {"median": 0.5}}, "timing": {"meta_training": 3.0}}
    results = [
        {**common, "seed": i, "score": interval(torch.tensor(own, dtype=torch.float64))}
        for i, own in enumerate(seeds)
    ]
    (row,) = summarize(results)
    values = np.array(seeds)
    np.testing.assert_allclose(row["mean"], values.mean(), atol=1e-12)
    error = np.sqrt((values.var(1) / 8).sum()) / len(seeds)
    np.testing.assert_allclose(row["half"], 1.96 * error, atol=1e-12)
    assert (row["seconds"], row["adjoint_residual"], row["left_out"]) == (1.5, 0.5, len(seeds))


@given(
    scores=st.lists(st.one_of(means, st.just(float("nan"))), min_size=1, max_size=6),
    higher=st.booleans(),
)
def test_the_best_trial_has_the_best_finite_score(scores, higher):
    trials = [{"lr": float(i)} for i in range(len(scores))]
    number = int(best_trial(trials, scores, higher_is_better=higher)["lr"])
    finite = [score for score in scores if score == score]
    if finite:
        best = max(finite) if higher else min(finite)
        assert number == scores.index(best)
    else:
        assert number == 0


@given(rows=st.lists(st.tuples(means, st.floats(0.001, 0.1)), min_size=2, max_size=6))
def test_bold_are_the_best_and_what_its_interval_reaches(rows):
    entries = [
        {"setting": "s", "method": method, "mean": mean, "half": half}
        for method, (mean, half) in zip(METHODS, rows, strict=False)
    ]
    lines = markdown(entries).splitlines()[2:]
    best = max(mean for mean, _ in rows)
    floor = max(mean - half for mean, half in rows)
    for line, (mean, half) in zip(lines, rows, strict=True):
        assert ("**" in line) == (mean + half >= floor)
        assert mean < best or "**" in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5x1", (5, 1, 10)), ("20x5", (20, 5, 5)), ("6x1", (6, 1, 5)), ("10x2x3", (10, 2, 3))],
)
def test_settings(text, expected):
    setting = Setting.parse(text)
    assert (setting.ways, setting.shots, setting.queries) == expected
    assert setting.name == f"{expected[0]}-way {expected[1]}-shot"


def test_chunks_of_tasks_have_the_scores_of_single_ones():
    c = configuration_from({"data": "sinusoid", "method": "maml", "width": 6, "inner_steps": 2})
    problem = load_problem(c)
    seen = []
    scores = task_scores(
        problem, problem.first, problem.test, [7, 1, 4], tasks_at_once=2, report=seen.append
    )
    assert scores.dtype == torch.float64 and seen == [2, 1]
    alone = [task_scores(problem, problem.first, problem.test, [i]) for i in (7, 1, 4)]
    torch.testing.assert_close(scores, torch.cat(alone), rtol=1e-5, atol=0)
    assert len(task_scores(problem, problem.first, problem.test, [])) == 0


# ---- Sine waves ----


@pytest.mark.parametrize("method", ["imaml-gd", "fomaml"])
def test_errors_after_steps_are_those_of_a_plain_loop(method):
    """torch.autograd takes the steps here; iMAML's objective pulls towards theta."""
    options = {"data": "sinusoid", "method": method, "width": 6, "inner_lr": 0.02}
    c = configuration_from({**options, "strength": 3.0})
    problem = load_problem(c)
    found = errors_after_steps(problem, c, problem.first, 3, [0, 5])
    assert found.shape == (2, 4)
    strength = 3.0 if method == "imaml-gd" else 0.0
    for row, task in zip(found, (0, 5), strict=True):
        sx, sy, qx, qy = (part[0] for part in problem.test.batch([task]))
        phi = {name: value.clone().requires_grad_() for name, value in problem.first.items()}
        for error in row:
            loss = (problem.model(phi, qx) - qy).square().mean()
            assert float(error) == pytest.approx(float(loss.detach()), rel=1e-4)
            inner = (problem.model(phi, sx) - sy).square().mean()
            for name, value in phi.items():
                inner = inner + strength / 2 * (value - problem.first[name]).square().sum()
            slopes = torch.autograd.grad(inner, list(phi.values()))
            phi = {
                name: (value - 0.02 * slope).detach().requires_grad_()
                for (name, value), slope in zip(phi.items(), slopes, strict=True)
            }


def test_the_sinusoid_experiment_makes_its_table(finished, capsys):
    out = finished("imaml sinusoid").out
    lines = (out / "table.md").read_text().splitlines()
    assert lines[0].startswith("| method | 0 steps | 1 | 2 | 5 | 10 |")
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        *("| iMAML, gradient descent", "| Reptile", "| R2D2")
    ]
    content = json.loads((out / "metrics.json").read_text())
    for entry in content["results"]:
        method = entry["method"]
        assert len(entry["errors"]) == (0 if method == "r2d2" else 11)
        assert entry["hyperparameters"] == content["trials"][method]["chosen"]
        tried = [trial["validation"] for trial in content["trials"][method]["tried"]]
        chosen = {**entry["hyperparameters"], "validation": min(tried)}
        assert chosen in content["trials"][method]["tried"]
        score = json.loads((out / method / "metrics.json").read_text())["score"]
        assert entry["own"] == score
        if method == "reptile":
            # its own adaptation is the ten steps
            assert entry["errors"][10]["mean"] == pytest.approx(score["mean"], rel=1e-4)

    # a run whose checkpoint has gone cannot be drawn
    checkpoint = out / "reptile" / "checkpoint.pt"
    content = checkpoint.read_bytes()
    checkpoint.unlink()
    assert main([*COMMANDS["imaml sinusoid"].arguments, "--out", str(out)]) == 2
    assert "delete " in capsys.readouterr().err
    checkpoint.write_bytes(content)
