"""The tables: searches, cells that are kept, means over seeds, and the sine waves' errors."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from implicit_solvers.problems.__main__ import main
from implicit_solvers.problems.experiments.harness import RunFolder, half_width
from implicit_solvers.problems.experiments.imaml.configuration import LABELS, configuration_from
from implicit_solvers.problems.experiments.imaml.grid import (
    GRIDS,
    WAVE_GRIDS,
    Cell,
    finished,
    pattern_search,
    run_all,
)
from implicit_solvers.problems.experiments.imaml.problem import interval, load_problem, task_scores
from implicit_solvers.problems.experiments.imaml.sinusoid import errors_after_steps
from implicit_solvers.problems.experiments.imaml.table import (
    Setting,
    best_of,
    markdown,
    summary,
)
from tests.problems.experiments.runs import COMMANDS, METHODS

TABLE = COMMANDS["imaml table"].arguments


@pytest.fixture
def table(finished):
    """The folder of a tiny table."""
    return finished("imaml table").out


def test_the_table_holds_the_means_of_its_runs(table):
    lines = (table / "table.md").read_text().splitlines()
    assert lines[0] == "| method | 2-way 1-shot (seeds: 2) | 3-way 1-shot (seeds: 2) |"
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| MAML", "| R2D2"]
    for line, method in zip(lines[2:4], ("maml", "r2d2"), strict=True):
        numbers = re.findall(r"([\d.]+) ± ([\d.]+)", line)
        for (mean, half), setting in zip(numbers, ("2x1x2", "3x1x1"), strict=True):
            paths = [table / f"{setting}-{method}-seed{seed}" / "metrics.json" for seed in (0, 1)]
            scores = [json.loads(path.read_text())["score"] for path in paths]
            assert [score["tasks"] for score in scores] == [5, 5]
            means = [100 * score["mean"] for score in scores]
            assert abs(float(mean) - np.mean(means)) <= 0.051
            # Student's t of one degree of freedom
            assert abs(float(half) - 12.706 * np.std(means) / 1) <= 0.06
    assert "inner_lr 0." in lines[7] and "MB a meta-step; 0 tasks left out, 0" in lines[7]


def test_every_method_uses_the_best_point_of_its_search_in_each_setting(table):
    content = json.loads((table / "metrics.json").read_text())
    for setting, text in (("2-way 1-shot", "2x1x2"), ("3-way 1-shot", "3x1x1")):
        for method, name in (("maml", "inner_lr"), ("r2d2", "scale")):
            found = content["trials"][setting][method]
            scores = {trial[name]: trial["validation"] for trial in found["tried"]}
            # what the command line gives is not searched for
            (chosen,) = found["chosen"].values()
            assert set(found["chosen"]) == {name} and scores[chosen] == max(scores.values())
            assert {chosen / 2, 2 * chosen} <= set(scores)
            for value, score in scores.items():
                folder = table / f"{text}-trial-{method}-{value:g}"
                metrics = json.loads((folder / "metrics.json").read_text())
                assert metrics["score"] is None  # the test's classes are not looked at
                assert metrics["validation"] == score
                configuration = json.loads((folder / "config.json").read_text())
                # no training has the trials' seed
                assert (configuration["steps"], configuration["seed"]) == (1, 2)
                assert configuration[name] == value
            path = table / f"{text}-{method}-seed1" / "config.json"
            configuration = json.loads(path.read_text())
            assert configuration[name] == chosen
            assert (configuration["seed"], configuration["class_seed"]) == (1, 0)


def test_what_is_there_is_kept(table):
    """A run without its metrics is done again; the others' files are not touched."""
    (table / "3x1x1-r2d2-seed0" / "metrics.json").unlink()
    (table / "2x1x2-maml-seed1" / "metrics.json").write_text("{")  # a kill in the midst of writing
    kept = table / "2x1x2-r2d2-seed0" / "metrics.json"
    content = json.loads(kept.read_text())
    kept.write_text(json.dumps(content | {"timing": {**content["timing"], "total": 5e4}}))
    before = {path: path.stat().st_mtime_ns for path in table.glob("*/metrics.json")}
    text = (table / "table.md").read_text()
    assert main([*TABLE, "--out", str(table)]) == 0
    assert (table / "table.md").read_text() == text
    changed = {p.parent.name for p, moment in before.items() if p.stat().st_mtime_ns != moment}
    assert changed == {"2x1x2-maml-seed1"}
    assert (table / "3x1x1-r2d2-seed0" / "metrics.json").exists()
    # what the kept runs took is in the sum
    assert json.loads((table / "metrics.json").read_text())["timing"]["total"] > 5e4


def test_the_table_of_given_inner_steps(tmp_path):
    options = ["--settings", "2x1x2@1", "2x1x2@3", "--methods", "maml", "--seeds", "1"]
    assert main([*TABLE, *options, "--trial-steps", "0", "--out", str(tmp_path)]) == 0
    one, three = json.loads((tmp_path / "metrics.json").read_text())["summary"]
    assert (one["inner_steps"], three["inner_steps"]) == (1, 3)
    assert three["memory"] > one["memory"] and three["half"] is None
    configuration = json.loads((tmp_path / "2x1x2@3-maml-seed0" / "config.json").read_text())
    assert configuration["inner_steps"] == 3
    line = (tmp_path / "table.md").read_text().splitlines()[0]
    assert (
        line == "| method | 2-way 1-shot, steps: 1 (seeds: 1) | 2-way 1-shot, steps: 3 (seeds: 1) |"
    )


@pytest.mark.parametrize("jobs", [1, 2])
def test_cells_come_back_in_their_order(jobs, tmp_path):
    options = {"data": "sinusoid", "method": "r2d2", "width": 4, "meta_batch": 1, "steps": 1}
    options |= {"validations": 1, "validation_tasks": 2, "evaluation_tasks": 2}
    cells = [
        Cell(configuration_from({**options, "seed": seed}), tmp_path / f"{jobs}-{seed}")
        for seed in (2, 0)
    ]
    assert [finished(cell) for cell in cells] == [None, None]
    metrics = run_all(RunFolder(tmp_path, {}), "runs", cells, jobs)
    assert [entry["score"] for entry in metrics] == [finished(cell)["score"] for cell in cells]
    assert metrics[0]["score"] != metrics[1]["score"]


# ---- The search ----


def searched(grid, score):
    """Return what the search chooses, and the points that it tried with their scores."""
    search, tried = pattern_search(grid, higher_is_better=True), []
    point = next(search)
    while True:
        tried.append((point, score(point)))
        try:
            point = search.send(tried[-1][1])
        except StopIteration as end:
            return end.value, tried


@given(
    best=st.tuples(*[st.integers(-6, 6)] * 3),
    weights=st.tuples(*[st.floats(0.1, 10)] * 3),
    mix=st.floats(0, 0.3),
)
def test_the_search_finds_the_interior_maximum_wherever_it_lies(best, weights, mix):
    """Of a concave function of the exponents, beyond where any fixed grid ends."""
    grid = {"strength": (0.5, 2.0), "inner_lr": (0.2, 2.0), "ridge": (5.0, 2.0)}

    def place(point):
        ratios = [point[name] / first for name, (first, _) in grid.items()]
        return np.round(np.log2(ratios)).astype(int)

    def score(point):
        away = place(point) - best
        return -float(weights @ away**2 + mix * min(weights) * abs(away.sum()))

    chosen, tried = searched(grid, score)
    assert place(chosen).tolist() == list(best)
    assert len({tuple(point.values()) for point, _ in tried}) == len(tried) < 60


@given(
    seed=st.integers(0, 1000),
    first=st.sampled_from([1, 3, 5, 8]),
    broken=st.sampled_from([0.0, 0.3]),
)
def test_no_neighbour_of_the_choice_is_better(seed, first, broken):
    """Whatever the scores, NaN among them: both neighbours were tried, unless there is no step."""
    generator, scores = np.random.default_rng(seed), {}

    def score(point):
        value = float(generator.choice([generator.random(), np.nan], p=[1 - broken, broken]))
        return scores.setdefault(tuple(point.values()), value)

    grid = {"inner_lr": (0.2, 2.0), "inner_steps": (first, 2.0)}
    chosen, tried = searched(grid, score)
    rate, steps = chosen.values()
    finite = [value for _, value in tried if value == value]
    if finite and scores[rate, steps] == scores[rate, steps]:
        assert scores[rate, steps] == max(finite)
    powers = [max(1, round(first * 2.0**k)) for k in range(-5, 30)]
    index = len(powers) - 1 - powers[::-1].index(steps)
    neighbours = [(rate / 2, steps), (2 * rate, steps), (rate, powers[index + 1])]
    if steps > 1:
        neighbours.append((rate, max(p for p in powers if p < steps)))
    for neighbour in neighbours:
        assert not scores[neighbour] > scores[rate, steps]


def test_every_method_is_searched():
    assert set(GRIDS) == set(WAVE_GRIDS) == set(METHODS) == set(LABELS)
    names = {method: list(grid) for method, grid in GRIDS.items()}
    assert names["imaml-gd"] == ["strength", "inner_lr", "inner_steps", "adjoint_steps"]
    assert names["maml"] == names["fomaml"] == names["reptile"] == ["inner_lr", "inner_steps"]


# ---- Numbers ----

means = st.floats(0, 1)


@given(scores=st.lists(means, min_size=2, max_size=30))
def test_intervals_are_those_of_the_normal_distribution(scores):
    found = interval(torch.tensor(scores, dtype=torch.float64))
    error = np.std(scores) / np.sqrt(len(scores))
    low, high = stats.norm.interval(0.95, np.mean(scores), error) if error > 0 else (scores[0],) * 2
    # 1.96 for the normal quantile 1.95996...
    tolerance = 1e-4 * error + 1e-12
    assert abs(found["mean"] - np.mean(scores)) < 1e-12
    assert abs(found["low"] - low) < tolerance and abs(found["high"] - high) < tolerance
    assert found["tasks"] == len(scores)


@given(seeds=st.lists(means, min_size=2, max_size=6))
def test_the_interval_is_students_over_seeds(seeds):
    common = {"residuals": {"adjoint": {"median": 0.5}}, "timing": {"processor": 3.0}}
    common |= {"history": {"loss": [1, 2]}, "tasks_left_out": [[0, 1]]}
    common |= {"failures": {"kept": {"CG": 2, "other": 1}}}
    row = summary([{**common, "score": {"mean": mean}} for mean in seeds])
    np.testing.assert_allclose(row["mean"], np.mean(seeds), atol=1e-12)
    error = stats.sem(seeds)
    high = stats.t.interval(0.95, len(seeds) - 1, row["mean"], error)[1] if error else row["mean"]
    np.testing.assert_allclose(row["mean"] + row["half"], high, atol=1e-10)
    assert row["half"] == half_width(seeds) and half_width(seeds[:1]) is None
    assert (row["seconds"], row["adjoint_residual"]) == (1.5, 0.5)
    assert (row["left_out"], row["kept"]) == (len(seeds), 3 * len(seeds))


@given(data=st.data(), seeds=st.integers(2, 5), methods=st.integers(2, 6))
def test_bold_are_the_best_and_what_a_paired_test_cannot_tell_from_it(data, seeds, methods):
    scores = st.lists(st.integers(0, 1000).map(lambda k: k / 1000), min_size=seeds, max_size=seeds)
    values = [data.draw(scores) for _ in range(methods)]
    costs = {"chosen": {}, "seconds": 1.0, "memory": 1, "left_out": 0, "kept": 0}
    rows = [
        {"setting": "s", "method": method, "mean": np.mean(own), "half": 0.1, "seeds": own} | costs
        for method, own in zip(METHODS, values, strict=False)
    ]
    lines, best = (
        markdown(rows).splitlines()[2 : 2 + methods],
        max(rows, key=lambda row: row["mean"]),
    )
    assert best["method"] in best_of(rows)
    for line, row in zip(lines, rows, strict=True):
        behind = np.subtract(best["seeds"], row["seeds"])
        tied = np.ptp(behind) < 1e-9
        p = float(behind.mean() < 1e-9) if tied else stats.ttest_1samp(behind, 0).pvalue
        if abs(p - 0.05) > 1e-6:
            assert ("**" in line) == (p > 0.05), (behind, p)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *[("5x1", (5, 1, 10, None)), ("20x5", (20, 5, 5, None)), ("6x1", (6, 1, 5, None))],
        *[("10x2x3", (10, 2, 3, None)), ("5x1@64", (5, 1, 10, 64)), ("6x1x2@3", (6, 1, 2, 3))],
    ],
)
def test_settings(text, expected):
    setting = Setting.parse(text)
    assert (setting.ways, setting.shots, setting.queries, setting.inner_steps) == expected
    assert setting.name.startswith(f"{expected[0]}-way {expected[1]}-shot")


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
