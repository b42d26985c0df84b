"""Scores against scikit-learn, the choice of a rate, trainings that fail, tables."""

import io
import math
import statistics
from dataclasses import asdict

import hypothesis.strategies as st
import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given
from rich.console import Console
from torch import nn

from implicit_solvers.problems.experiments.data.adding import generate_adding
from implicit_solvers.problems.experiments.data.copying import generate_copying
from implicit_solvers.problems.experiments.data.sequences import Sequences, SequenceTask
from implicit_solvers.problems.experiments.ernn import sequence_training, trials
from implicit_solvers.problems.experiments.ernn.figures import draw_learning, draw_table, score_text
from implicit_solvers.problems.experiments.ernn.sequence_training import evaluate
from implicit_solvers.problems.experiments.ernn.tasks import FOLDER_TASKS, SHIPPED, TASKS, load_task
from implicit_solvers.problems.experiments.ernn.train import print_table, seconds_an_epoch
from implicit_solvers.problems.experiments.ernn.trials import Configuration, better, summary
from implicit_solvers.problems.experiments.harness.run_folder import RunFolder
from implicit_solvers.problems.experiments.harness.training import taken


class Given(nn.Module):
    """Returns the numbers of the sequences' first step."""

    def forward(self, x, lengths):
        return x[:, :1]


@given(count=st.integers(1, 12), seed=st.integers(0, 99))
def test_scores_against_scikit_learn(count, seed):
    draw = np.random.default_rng(seed)
    x = torch.tensor(draw.normal(size=(count, 2, 3)), dtype=torch.float32)
    y = torch.tensor(draw.integers(3, size=(count, 1)))
    before = sequence_training.EVALUATED_TOGETHER
    sequence_training.EVALUATED_TOGETHER = 5  # so that there are several parts
    try:
        score, loss = evaluate(Given(), Sequences(x, torch.full((count,), 2), y))
        values = torch.tensor(draw.normal(size=(count, 1)), dtype=torch.float32)
        error, same = evaluate(Given(), Sequences(x[..., :1], torch.full((count,), 2), values))
    finally:
        sequence_training.EVALUATED_TOGETHER = before
    shown, labels = x[:, 0].double().softmax(-1).numpy(), y[:, 0].numpy()
    assert score == pytest.approx(sklearn.metrics.accuracy_score(labels, shown.argmax(1)))
    assert loss == pytest.approx(sklearn.metrics.log_loss(labels, shown, labels=range(3)), 1e-5)
    expected = sklearn.metrics.mean_squared_error(values[:, 0], x[:, 0, 0])
    assert error == same == pytest.approx(expected, rel=1e-5)


def test_every_output_counts():
    task = generate_copying(2, 4, 4, 4, symbols=2, copied=3)
    right = nn.functional.one_hot(task.test.y, 2).float()
    right[0, 0] = right[0, 0].flip(0)  # one of twelve symbols is wrong

    class Copies(nn.Module):
        def forward(self, x, lengths):
            return right

    assert evaluate(Copies(), task.test)[0] == pytest.approx(11 / 12)


ONE = {"validation": 0.9, "validation_loss": 0.2}
ORDERED = [  # each is better than the next
    {"validation": 0.95, "validation_loss": 0.9},
    ONE,
    {"validation": 0.9, "validation_loss": 0.3},
    {"validation": 0.1, "validation_loss": 0.01},
    {"validation": None, "validation_loss": None},
]


def test_what_is_preferred():
    keys = [better(result) for result in ORDERED]
    assert keys == sorted(keys, reverse=True) and len(set(keys)) == len(keys)
    assert better({"validation": 0.5, "validation_loss": math.nan}) == better(ORDERED[-1])
    errors = [{"validation": e, "validation_loss": e} for e in (1e-4, 0.1, 0.2)]
    assert sorted(errors, key=better, reverse=True) == errors


CONFIGURATION = Configuration(
    "digits", "", epochs=1, batch=1, models=["gru", "rnn"], rates=[0.1, 0.2], seeds=2, first_seed=4
)


def result(model, rate, seed, validation, score):
    own = {"model": model, "rate": rate, "seed": seed, "parameters": 7, "score": score}
    loss = None if validation is None else 1.0
    return {**own, "validation": validation, "validation_loss": loss, "shuffled": score}


def test_the_rate_is_chosen_by_validation_and_seeds_are_averaged():
    assert CONFIGURATION.trials() == [
        *(("gru", 0.1, 4), ("gru", 0.2, 4), ("rnn", 0.1, 4), ("rnn", 0.2, 4))
    ]
    results = [
        result("gru", 0.1, 4, 0.5, 0.9),
        result("gru", 0.2, 4, 0.6, 0.1),
        result("rnn", 0.1, 4, 0.7, 0.2),
        result("rnn", 0.2, 4, None, None),
    ]
    assert CONFIGURATION.repetitions(results) == [("gru", 0.2, 5), ("rnn", 0.1, 5)]
    results += [result("gru", 0.2, 5, 0.6, 0.3), result("rnn", 0.1, 5, None, None)]
    first, second = summary(results, CONFIGURATION)
    # in the order of the table of all models, whatever was trained first
    assert (first["model"], second["model"]) == ("rnn", "gru")
    assert second["mean"] == statistics.mean([0.1, 0.3]) == second["shuffled"]
    assert second["deviation"] == statistics.stdev([0.1, 0.3]) and second["failed"] == 0
    assert (first["mean"], first["deviation"], first["failed"]) == (0.2, None, 1)
    assert second["parity_shuffled"] is None


def run(task, tmp_path, **options):
    configuration = Configuration("adding", "", **{"epochs": 2, "batch": 4, "hidden": 3, **options})
    folder = RunFolder(tmp_path, asdict(configuration))
    results = trials.run_trials(configuration, task, folder.checkpoint(), 1, folder)
    return configuration, results


def test_a_training_that_diverges_is_reported_and_loses(tmp_path):
    task = generate_adding(4, train=8, validation=4, test=4)
    rates = [1e38, 3e37, 1e30, 1e-2]
    configuration, results = run(task, tmp_path, models=["rnn"], rates=rates, seeds=2)
    assert [r["rate"] for r in results] == [*rates, 1e-2]
    overflow, *diverged, good, again = results
    assert overflow["failed"] == "a step of the rate 1e+38 overflows: lower the rate"
    assert all("not finite: lower the rate" in failed["failed"] for failed in diverged)
    assert all(failed["score"] is None for failed in (overflow, *diverged))
    assert all("failed" not in trained and trained["score"] > 0 for trained in (good, again))
    rows = summary(results, configuration)
    assert rows[0]["rate"] == 1e-2 and rows[0]["failed"] == 0


def test_all_rates_may_fail(tmp_path):
    task = generate_adding(4, train=8, validation=4, test=4)
    configuration, results = run(task, tmp_path, models=["rnn", "gru"], rates=[1e30], seeds=1)
    rows = {"adding": summary(results, configuration)}
    assert [row["failed"] for row in rows["adding"]] == [1, 1]
    out = io.StringIO()
    seconds = {"adding": seconds_an_epoch(results, rows["adding"])}
    print_table(Console(file=out, width=120), rows, seconds)
    assert out.getvalue().count("failed") == 2
    draw_table(tmp_path / "table.png", rows)
    draw_learning(tmp_path / "learning.png", "adding", results, rows["adding"])
    for name in ("table.png", "learning.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_gradients_are_clipped(tmp_path, monkeypatch):
    norms = []
    step = torch.optim.Adam.step

    def recorded(self, closure=None):
        # hooks have run when the step itself begins
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(torch.cat([g.flatten() for g in gradients]).norm().item())
        return step.__wrapped__(self, closure)

    task = generate_adding(4, train=8, validation=4, test=4)
    torch.optim.Adam(nn.Linear(1, 1).parameters())  # hooks are patched into the class once
    monkeypatch.setattr(torch.optim.Adam, "step", torch.optim.Adam.profile_hook_step(recorded))
    run(task, tmp_path, models=["rnn"], rates=[1e-2], seeds=1, clip=1e-3)
    assert len(norms) == 4 and all(norm <= 1.0001e-3 for norm in norms)


def test_learning_lowers_the_loss_and_the_best_rate_is_not_the_smallest(tmp_path):
    """One step of memory less than none: the class is the sign of the only step."""
    torch.manual_seed(0)
    x = torch.randn(90, 1, 1)
    part = Sequences(x, torch.ones(90, dtype=torch.int64), (x[:, 0] > 0).long())
    task = SequenceTask(part, part, part, classes=("minus", "plus"))
    options = {"models": ["rnn", "exact"], "rates": [1e-9, 0.1], "seeds": 1, "epochs": 8}
    configuration, results = run(task, tmp_path, batch=30, **options)
    for row in summary(results, configuration):
        assert row["rate"] == 0.1 and row["mean"] > 0.95
    assert all(r["train"][-1] < r["train"][0] for r in results if r["rate"] == 0.1)
    # one step has one order
    assert all(r["shuffled"] == r["parity_shuffled"] == r["score"] for r in results)


def test_texts_and_seconds():
    assert score_text("adding", {"mean": 0.16666, "deviation": 0.0001}) == "166.66 ± 0.10"
    assert score_text("watch", {"mean": 0.5, "deviation": None}) == "50.0"
    assert score_text("watch", {"mean": None, "deviation": None}) == "failed"
    results = [
        {"model": "rnn", "seconds": 1.0, "processor_seconds": s, "test": [0.1] * 4}
        for s in (2.0, 4.0, 12.0)
    ]
    results.append({"model": "gru", "seconds": 1.0, "processor_seconds": 1.0, "test": []})
    rows = [{"model": "rnn"}, {"model": "gru"}]
    assert seconds_an_epoch(results, rows) == {"rnn": 1.0, "gru": None}
    seconds = taken(results, "seconds", "processor_seconds")
    assert seconds["processor_seconds"] == [2.0, 4.0, 12.0, 1.0]
    assert not any("seconds" in key for one in results for key in one)


def test_tasks():
    assert set(TASKS) == set(SHIPPED) | set(FOLDER_TASKS)
    assert load_task("copying", "").outputs == 10
