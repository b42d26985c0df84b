"""``implicit-solvers imaml``: tiny runs of every method from end to end, and wrong use."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

import implicit_solvers as ims
from implicit_solvers.problems.__main__ import main
from implicit_solvers.problems.experiments.data.episodes import Tasks
from implicit_solvers.problems.experiments.harness.run_folder import (
    read_checkpoint,
    write_checkpoint,
)
from implicit_solvers.problems.experiments.imaml import run as run_module
from implicit_solvers.problems.experiments.imaml import training
from implicit_solvers.problems.experiments.imaml.configuration import configuration_from
from implicit_solvers.problems.experiments.imaml.problem import load_problem
from implicit_solvers.problems.experiments.imaml.training import meta_train
from tests.problems.experiments.data.made_folders import make_mini_imagenet, make_omniglot
from tests.problems.experiments.runs import GLYPHS, METHODS, WAVES, metrics_of

SMALL_WAVES = {
    **{"data": "sinusoid", "method": "maml", "shots": 3, "queries": 4, "width": 6, "steps": 4},
    **{"meta_batch": 3, "inner_steps": 2, "validation_tasks": 4, "evaluation_tasks": 5},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("data", [GLYPHS, WAVES], ids=["glyphs", "sinusoid"])
def test_every_method_runs_from_end_to_end(data, method, tmp_path, capsys):
    command = ["imaml", "--method", method, *data.split(), "--steps", "4", "--seed", "3"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    configuration = json.loads((tmp_path / "config.json").read_text())
    assert (configuration["method"], configuration["seed"]) == (method, 3)

    metrics = metrics_of(tmp_path)
    name = "accuracy" if data is GLYPHS else "squared error"
    assert metrics["score"]["name"] == name
    assert metrics["score"]["low"] <= metrics["score"]["mean"] <= metrics["score"]["high"]
    assert metrics["score"]["tasks"] == (6 if data is GLYPHS else 5)
    assert [steps for steps, _ in metrics["history"]["validation"]] == [2, 4]
    assert metrics["validation"] == metrics["history"]["validation"][-1][1]
    assert np.isfinite(np.array(metrics["history"]["loss"], dtype=float)).all()
    assert metrics["tasks_left_out"] == []
    assert (metrics["residuals"]["adjoint"] is not None) == method.startswith("imaml")
    assert (metrics["residuals"]["inner"] is not None) == (method not in ("reptile", "r2d2"))
    printed = capsys.readouterr().out
    assert f"{method}: {name} " in printed and str(tmp_path) in printed


@pytest.mark.parametrize("method", ["imaml-gd", "r2d2"])
@pytest.mark.parametrize("make", [make_omniglot, make_mini_imagenet])
def test_folders_of_images_are_learned_from(make, method, tmp_path):
    folder = tmp_path / "images of mine"
    folder.mkdir()
    make(folder)
    kind = "omniglot" if make is make_omniglot else "mini-imagenet"
    options = [
        *("--method", method, "--data", f"{kind}:{folder}", "--side", "8", "--width", "4"),
        *("--ways", "2", "--queries", "1", "--steps", "2", "--meta-batch", "2"),
        *("--inner-steps", "2", "--normalization", "group", "--strength", "50"),
        *("--validations", "1", "--validation-tasks", "3", "--evaluation-tasks", "4"),
    ]
    assert main(["imaml", *options, "--out", str(tmp_path / "run")]) == 0
    metrics = metrics_of(tmp_path / "run")
    assert metrics["score"]["tasks"] == 4
    assert None not in metrics["history"]["loss"]


def test_training_lowers_the_error():
    """R2D2 on sine waves: 60 meta-steps at least halve the error of random features."""
    options = {**SMALL_WAVES, "method": "r2d2", "shots": 10, "width": 40, "meta_batch": 8}
    configuration = configuration_from({**options, "steps": 60, "lr": 0.01, "scale": 1.0})
    problem = load_problem(configuration)
    tasks = problem.test.batch(range(200))

    def error(theta):
        scores = [
            problem.score(
                problem.method.adapt(problem.model, problem.criterion, theta, (sx, sy))(qx), qy
            )
            for sx, sy, qx, qy in zip(*tasks, strict=True)
        ]
        return float(torch.stack(scores).mean().detach())

    theta, history = meta_train(problem, configuration, None)
    assert error(theta) < error(problem.first) / 2
    assert history.steps == 60


# ---- Options ----


@pytest.mark.parametrize("ending", ["toml", "json"])
def test_a_file_of_options_is_overridden_by_the_command_line(ending, tmp_path):
    options = {**SMALL_WAVES, "validations": 1}
    path = tmp_path / f"run.{ending}"
    if ending == "json":
        path.write_text(json.dumps(options))
    else:
        lines = [f"{name.replace('_', '-')} = {json.dumps(v)}" for name, v in options.items()]
        path.write_text("\n".join(lines))
    for out, changes in [("file", []), ("changed", ["--inner-lr", "0.004"])]:
        command = ["imaml", "--config", str(path), *changes, "--out", str(tmp_path / out)]
        assert main(command) == 0
    written = [json.loads((tmp_path / o / "config.json").read_text()) for o in ("file", "changed")]
    assert {name: written[0][name] for name in options} == options
    assert written[1] == {**written[0], "inner_lr": 0.004}
    assert written[0]["inner_lr"] != 0.004


PAPER = [
    ({"ways": 5}, {"width": 64, "meta_batch": 32, "inner_steps": 16, "steps": 60_000}),
    ({"ways": 20}, {"width": 64, "meta_batch": 16, "inner_steps": 25, "steps": 60_000}),
    (
        {"data": "mini-imagenet:images"},
        {"side": 84, "pooling": True, "meta_batch": 4, "inner_steps": 10, "strength": 0.5},
    ),
    ({"ways": 20, "meta_batch": 3, "steps": 7}, {"width": 64, "meta_batch": 3, "steps": 7}),
]


@pytest.mark.parametrize(("given", "expected"), PAPER)
def test_one_flag_gives_the_papers_size(given, expected):
    """Its numbers for Omniglot and Mini-ImageNet; what is given overrides them."""
    configuration = asdict(configuration_from({**given, "size": "paper"}))
    assert {name: configuration[name] for name in expected} == expected


def test_another_working_folder_makes_no_other_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = configuration_from({"data": "omniglot:images"})
    assert here == configuration_from({"data": f"omniglot:{tmp_path}/images"})
    assert here.folder == tmp_path / "images"


# ---- How it is computed ----


class _Poisoned:
    """Tasks, one of which has a NaN in its support."""

    def __init__(self, source, number):
        self.source, self.number = source, number

    def batch(self, tasks):
        batch = Tasks(*(part.clone() for part in self.source.batch(tasks)))
        for i, task in enumerate(tasks):
            if task == self.number:
                batch.support_x[i, 0] = float("nan")
        return batch


@pytest.mark.parametrize("method", METHODS)
def test_a_task_with_nan_is_left_out_and_reported(method, tmp_path, monkeypatch, capsys):
    """Task 4 is the second of the second step."""
    options = {**SMALL_WAVES, "method": method, "strength": 40.0, "newton_steps": 1}
    problem = load_problem(configuration_from(options))
    poisoned = replace(problem, train=_Poisoned(problem.train, 4))
    monkeypatch.setattr(run_module, "load_problem", lambda *arguments: poisoned)
    line = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    assert main(["imaml", *line, "--out", str(tmp_path)]) == 0
    assert "1 of 12 tasks left out: 1 NONFINITE" in capsys.readouterr().out
    metrics = metrics_of(tmp_path)
    assert metrics["tasks_left_out"] == [[1, 4]]
    assert all(loss is not None for loss in metrics["history"]["loss"])


def test_a_step_without_a_usable_task_changes_nothing():
    """Adam would move on a gradient of zero, by its memory of the first step."""

    class Broken:
        def batch(self, tasks):
            batch = problem.train.batch(tasks)
            if min(tasks) < 3:
                return batch
            return batch._replace(support_x=torch.full_like(batch.support_x, torch.nan))

    configuration = configuration_from({**SMALL_WAVES, "lr": 3e-3})
    problem = load_problem(configuration)
    seen = []
    with pytest.warns(ims.ConvergenceWarning, match="3 of 6 tasks so far"):
        theta, history = meta_train(
            replace(problem, train=Broken()),
            configuration,
            None,
            report=lambda history: seen.append(history.steps),
        )
    assert len(history.left_out) == 9 and history.loss[1:] == [None] * 3
    # Adam's first step has the length of its rate in every direction
    moved = torch.cat([(theta[k] - v).flatten() for k, v in problem.first.items()]).abs()
    assert float(moved.max()) == pytest.approx(3e-3, rel=1e-3)
    assert seen == [0, 1, 2, 3, 4]


def test_the_memory_limit_makes_chunks(tmp_path, monkeypatch):
    """The chunks are what `lanes_that_fit` says; they, and a loop, change rounding only."""
    chunks = []
    original = training.distributed_meta_gradient

    def recorded(*arguments, tasks_at_once, **keywords):
        chunks.append(tasks_at_once)
        return original(*arguments, tasks_at_once=tasks_at_once, **keywords)

    monkeypatch.setattr(training, "distributed_meta_gradient", recorded)
    line = f"imaml {GLYPHS} --method imaml-gd --steps 1 --meta-batch 6 "
    losses = []
    for options in ("", "--memory-limit 1", "--memory-limit 0.0001", "--batching loop"):
        out = tmp_path / str(len(chunks))
        assert main([*(line + options).split(), "--out", str(out)]) == 0
        assert metrics_of(out)["batching"] == ("loop" if "loop" in options else "vmap")
        losses.append(metrics_of(out)["history"]["loss"][0])
    assert chunks[:2] == [None, 6] and 1 <= chunks[2] < 6
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)


def test_the_faster_batching_is_chosen_once_and_reported(tmp_path, capsys):
    options = ["--method", "maml", "--batching", "auto", "--steps", "2", "--out", str(tmp_path)]
    assert main(["imaml", *WAVES.split(), *options]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    seconds = metrics["timing"]["a_task"]
    assert metrics["batching"] == min(seconds, key=seconds.get)
    assert f"tasks evaluated by {metrics['batching']} (vmap " in capsys.readouterr().out
    # a run that goes on keeps the choice, even if the measurement would now say otherwise
    path = tmp_path / "checkpoint.pt"
    checkpoint = read_checkpoint(path)
    other = "loop" if metrics["batching"] == "vmap" else "vmap"
    checkpoint["history"]["batching"] = other
    write_checkpoint(path, checkpoint)
    assert main(["imaml", *WAVES.split(), *options, "--resume"]) == 0
    assert metrics_of(tmp_path)["batching"] == other
