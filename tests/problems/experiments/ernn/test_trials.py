"""Scores against scikit-learn, statistics against SciPy; rates, folds, failures, tables."""

import math
import statistics
from dataclasses import asdict

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
from hypothesis import given
from torch import nn

from implicit_solvers.problems.experiments.data.adding import generate_adding
from implicit_solvers.problems.experiments.data.copying import generate_copying
from implicit_solvers.problems.experiments.data.sequences import Sequences, SequenceTask
from implicit_solvers.problems.experiments.ernn import sequence_training, trials
from implicit_solvers.problems.experiments.ernn.figures import draw_learning, draw_table, score_text
from implicit_solvers.problems.experiments.ernn.sequence_training import evaluate
from implicit_solvers.problems.experiments.ernn.statistics import holm, paired_p
from implicit_solvers.problems.experiments.ernn.tasks import FOLDER_TASKS, SHIPPED, TASKS, load_task
from implicit_solvers.problems.experiments.ernn.train import markdown, seconds_of
from implicit_solvers.problems.experiments.ernn.trials import (
    Configuration,
    adjust,
    better,
    summary,
)
from implicit_solvers.problems.experiments.harness import half_width
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


def configuration(models, **options):
    options = {"rates": [0.1, 0.2], "seeds": 2, "first_seed": 4, **options}
    return Configuration("digits", "", epochs=1, batch=1, models=models, **options)


def result(model, fold, rate, seed, validation, score, tested=10):
    own = {"model": model, "fold": fold, "rate": rate, "seed": seed, "parameters": 7}
    own |= {"score": score, "tested": tested, "shuffled": score, "validation": validation}
    return {**own, "validation_loss": None if validation is None else 1.0}


def test_the_rate_is_chosen_by_validation_in_each_fold_and_seeds_are_averaged():
    own = configuration(["gru", "rnn"])
    (_, models, seed), (_, _, last) = own.stages()
    assert (models, seed, last) == (["gru", "rnn"], 4, 5)
    runs = own.trainings(models, 4, 2, [])
    assert runs == [(m, fold, r, 4) for m in models for fold in (0, 1) for r in (0.1, 0.2)]
    given = [(0.5, 0.9), (0.6, 0.1), (0.9, 0.3), (0.8, 0.8), *[(0.7, 0.2), (None, None)] * 2]
    results = [
        result(*run, *values, tested=10 * (1 + run[1]))
        for run, values in zip(runs, given, strict=True)
    ]
    again = [("gru", 0, 0.2, 5), ("gru", 1, 0.1, 5), ("rnn", 0, 0.1, 5), ("rnn", 1, 0.1, 5)]
    assert own.trainings(models, 5, 2, results) == again
    # the last fold is missing
    results += [result(*run, 0.6, 0.6, tested=10 * (1 + run[1])) for run in again[:3]]
    first, second = summary(results, own)
    # in the order of the table of all models, whatever was trained first
    assert (first["model"], second["model"]) == ("rnn", "gru")
    assert second["rates"] == [0.2, 0.1] and second["seeds"] == [4, 5]
    pooled = [(10 * 0.1 + 20 * 0.3) / 30, 0.6]
    assert second["scores"] == pytest.approx(pooled) and second["failed"] == 0
    assert second["mean"] == second["shuffled"] == pytest.approx(statistics.mean(pooled))
    assert second["deviation"] == pytest.approx(statistics.stdev(pooled))
    assert (first["seeds"], first["deviation"], first["half"]) == ([4], None, None)
    assert second["parity_shuffled"] is None and second["p"] is None
    results.append(result(*again[3], None, None, tested=20))
    assert [row["failed"] for row in summary(results, own)] == [1, 0]


def test_slow_models_come_last_with_the_rate_of_another():
    own = configuration(["leaky-implicit", "leaky", "rnn"], seeds=7, first_seed=0)
    stages = [(models[0], seed) for _, models, seed in own.stages()]
    q, slow = "leaky", "leaky-implicit"
    assert stages == [*((q, seed) for seed in range(7)), *((slow, seed) for seed in range(5))]
    results = [result("leaky", 0, 0.1, 0, 0.6, 0.5), result("leaky", 0, 0.2, 0, 0.7, 0.5)]
    assert own.trainings([slow], 0, 1, results) == [(slow, 0, 0.2, 0)]
    alone = configuration([slow], seeds=1)
    assert alone.trainings([slow], 4, 1, []) == [(slow, 0, 0.1, 4), (slow, 0, 0.2, 4)]


def test_tables_of_a_part_of_the_stages_are_those_of_fewer_seeds(tmp_path):
    task = generate_adding(4, train=8, validation=4, test=4)
    options = {"models": ["rnn", "gru"], "rates": [1e-2], "seeds": 3}
    _, whole = run(task, tmp_path / "whole", **options)
    configuration, part = run(task, tmp_path / "part", until=0, **options)
    assert [r["seed"] for r in part] == [0, 0] and [r["seed"] for r in whole] == [0, 0, 1, 1, 2, 2]
    assert [r["score"] for r in part] == [r["score"] for r in whole[:2]]
    row = summary(whole, configuration)[0]
    assert row["seeds"] == [0, 1, 2] and len(set(row["scores"])) == 3


SCORES = st.lists(st.floats(0, 1), min_size=2, max_size=9)


@given(SCORES, st.data())
def test_intervals_and_paired_tests_against_scipy(scores, data):
    other = data.draw(st.lists(st.floats(0, 1), min_size=len(scores), max_size=len(scores)))
    if len(set(scores)) > 1:
        error = scipy.stats.sem(scores)
        low, high = scipy.stats.t.interval(0.95, len(scores) - 1, np.mean(scores), error)
        assert half_width(scores) == pytest.approx((high - low) / 2, rel=1e-6)
    differences = np.subtract(scores, other)
    if np.ptp(differences) > 1e-6:
        found = paired_p(dict(enumerate(scores)), {**dict(enumerate(other)), 99: 0.5})
        expected = scipy.stats.ttest_rel(scores, other).pvalue
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-9)


@given(st.lists(st.floats(0, 0.1), max_size=8), st.floats(0.001, 0.2))
def test_holm_is_its_step_down_rule(values, level):
    """Reject in order, as long as p is at most the level over the number of hypotheses left."""
    rejected = set()
    for rank, place in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        if values[place] * (len(values) - rank) > level:
            break
        rejected.add(place)
    assert {i for i, p in enumerate(holm(values)) if p <= level} == rejected


def test_all_comparisons_are_one_family_and_marks_say_what_is_better():
    rows = {}
    for task, sign in (("digits", 1), ("adding", -1)):
        results = [
            result(m, 0, 0.1, s, 0.5, 0.5 + sign * shift + 0.01 * ((7 * s + i) % 5))
            for i, (m, shift) in enumerate({"rnn": 0, "gru": 0.3, "lstm": -0.3, "k3": 0}.items())
            for s in range(4, 9)
        ]
        rows[task] = summary(results, configuration(["rnn", "gru", "lstm", "k3"], seeds=5))
    adjust(rows)
    tested = [row for own in rows.values() for row in own if row["model"] != "rnn"]
    assert [row["p_holm"] for row in tested] == holm([row["p"] for row in tested])
    for task, own in rows.items():
        marks = {row["model"]: score_text(task, row)[-1] for row in own}
        assert marks == {"k3": ")", "rnn": ")", "gru": "▲", "lstm": "▼"}


def run(task, tmp_path, until=math.inf, **options):
    tmp_path.mkdir(exist_ok=True)
    configuration = Configuration("adding", "", **{"epochs": 2, "batch": 4, "hidden": 3, **options})
    folder = RunFolder(tmp_path, asdict(configuration))
    results = trials.run_trials(configuration, [task], folder.checkpoint(), 1, folder, until)
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
    assert rows[0]["rates"] == [1e-2] and rows[0]["failed"] == 0


def test_all_rates_may_fail(tmp_path):
    task = generate_adding(4, train=8, validation=4, test=4)
    configuration, results = run(task, tmp_path, models=["rnn", "gru"], rates=[1e30], seeds=1)
    rows = {"adding": summary(results, configuration)}
    assert [row["failed"] for row in rows["adding"]] == [1, 1]
    adjust(rows)
    text = markdown(rows, {"adding": seconds_of(results, rows["adding"])})
    assert text.count("failed") == 2 and text.count("; – |") == 2
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
        assert row["rates"] == [0.1] and row["mean"] > 0.95
    assert all(r["train"][-1] < r["train"][0] for r in results if r["rate"] == 0.1)
    # one step has one order
    assert all(r["shuffled"] == r["parity_shuffled"] == r["score"] for r in results)


def test_texts_and_seconds():
    row = {"seeds": [0, 1], "failed": 0, "p_holm": None}
    assert score_text("adding", {**row, "mean": 0.16666, "half": 1e-4}) == "166.66 ± 0.10 (2)"
    assert score_text("watch", {**row, "mean": 0.5, "half": None}) == "50.0 (2)"
    assert score_text("watch", {**row, "mean": None, "half": None}) == "failed"
    results = [
        {"model": "rnn", "seconds": 1.0, "processor_seconds": s, "score": 0.5}
        for s in (2.0, 4.0, 12.0)
    ]
    results.append({"model": "gru", "seconds": 1.0, "processor_seconds": 1.0, "score": None})
    rows = [{"model": "rnn"}, {"model": "gru"}]
    assert seconds_of(results, rows) == {"rnn": 4.0, "gru": None}
    seconds = taken(results, "seconds", "processor_seconds")
    assert seconds["processor_seconds"] == [2.0, 4.0, 12.0, 1.0]
    assert not any("seconds" in key for one in results for key in one)


def test_tasks():
    assert set(TASKS) == set(SHIPPED) | set(FOLDER_TASKS)
    for name in ("pixels", "noise", "adding", "copying"):
        (task,) = load_task(name, "")
        assert name == "pixels" or task.test.x.shape[1] == 200
    assert task.outputs == 2 and len(load_task("watch", "")) == 5
