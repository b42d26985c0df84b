"""The experiments `imaml truth` and `imaml costs`, in small."""

import json

import numpy as np
import pytest
import torch

from implicit_solvers.problems.__main__ import main
from implicit_solvers.problems.cli.imaml.costs import (
    INNER_STEPS,
    METHODS,
    measure_meta_gradients,
    method_of,
)
from implicit_solvers.problems.cli.imaml.truth import (
    SPECTRA,
    TOLERANCE,
    Spectrum,
    measure_truth,
    quadratic_tasks,
)


@pytest.mark.parametrize("name", SPECTRA)
def test_the_exact_meta_gradient(name):
    spectrum = SPECTRA[name]
    data = quadratic_tasks(spectrum, 3, 6, torch.Generator().manual_seed(1))
    (As, cs), (_, ys) = data.supports, data.queries
    s, theta = spectrum.strength, data.theta.numpy()
    slopes = []
    for A, c, y in zip(As.numpy(), cs.numpy(), ys.numpy(), strict=True):
        np.testing.assert_allclose(A, A.T)
        curvatures = np.linalg.eigvalsh(A)
        assert curvatures[0] == pytest.approx(spectrum.lowest)
        assert curvatures[-1] == pytest.approx(spectrum.highest)
        K = A + s * np.eye(6)
        assert np.linalg.eigvalsh(K)[0] > 0
        phi = np.linalg.solve(K, c + s * theta)
        slopes.append(s * np.linalg.solve(K, phi - y))
    np.testing.assert_allclose(data.exact, np.mean(slopes, 0), atol=1e-12)


def test_the_spectra():
    assert (SPECTRA["convex"].curvatures(9) > 0).all()
    indefinite = SPECTRA["indefinite"]
    assert indefinite.curvatures(9)[0] < 0 < indefinite.strength + indefinite.lowest
    stretched = SPECTRA["ill-conditioned"].curvatures(9)
    assert stretched[-1] / stretched[0] == pytest.approx(1e4)
    np.testing.assert_allclose((stretched[1:] / stretched[:-1]).diff(), 0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "inner_steps"), [("convex", 64), ("ill-conditioned", 1024), ("indefinite", 128)]
)
def test_errors_of_meta_gradients(name, inner_steps):
    rows = measure_truth(
        {name: SPECTRA[name]}, [1, inner_steps], [1, 2, 5], tasks=2, dimension=20, seed=3
    )
    first, last = {}, {}
    for row in rows:
        assert row.spectrum == name
        (first if row.inner_steps == 1 else last)[row.method] = row.error
    assert len(first) == len(last) == 6
    # far from the minimum nobody knows the meta-gradient; at it, CG to a tolerance and MAML do
    assert min(first.values()) > 0.02
    assert last[TOLERANCE] < 1e-8
    assert last["MAML"] < 1e-8
    assert last["first-order MAML"] > 0.1
    budgets = [last[f"iMAML, {steps} CG steps"] for steps in (1, 2, 5)]
    assert sorted(budgets, reverse=True) == budgets
    assert budgets[-1] > 1e-6


def test_cg_needs_no_more_steps_than_dimensions():
    small = Spectrum(0.5, 1.0, strength=1.0)
    rows = list(measure_truth({"small": small}, [64], [3], tasks=1, dimension=3))
    assert [row.method for row in rows if row.error < 1e-8] == [
        "iMAML, 3 CG steps",
        TOLERANCE,
        "MAML",
    ]


def test_the_command_truth(tmp_path):
    arguments = ["--tasks", "1", "--dimension", "5", "--inner-steps", "1", "4"]
    assert main(["imaml", "truth", "--out", str(tmp_path), *arguments]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert len(metrics["rows"]) == 3 * 2 * 7
    assert {row["spectrum"] for row in metrics["rows"]} == set(SPECTRA)
    assert (tmp_path / "truth.png").stat().st_size > 10_000


def memory(method, inner_steps):
    rows = measure_meta_gradients(inner_steps, [method], width=4, queries=2, rounds=1)
    return [row.memory for row in rows]


def test_the_memory_of_imaml_does_not_depend_on_the_inner_steps():
    peaks = memory("iMAML", [4, 32, 256])
    assert max(peaks) <= 1.05 * min(peaks)
    first_order = memory("first-order MAML", [4, 64])
    assert first_order[1] <= 1.05 * first_order[0]


def test_the_memory_of_maml_grows_with_the_inner_steps():
    few, more, most = memory("MAML", [4, 16, 28])
    assert most - more == pytest.approx(more - few, rel=0.02)
    assert most > 3 * few
    # with checkpoints, with the square root: at 4 times as many, not much above twice
    few, more = memory("MAML, checkpointed", [9, 36])
    assert more < 2.2 * few
    assert memory("MAML", [36])[0] > 2 * more


def test_costs_are_of_the_same_gradient():
    assert {type(method_of(name, 4)).__name__ for name in METHODS} == {
        "Imaml",
        "Maml",
        "FirstOrderMaml",
    }
    assert (method_of("MAML", 4).checkpoint, method_of("MAML, checkpointed", 4).checkpoint) == (
        False,
        True,
    )
    assert INNER_STEPS[-1] == 256
    assert method_of("iMAML", 7).solver.max_steps == method_of("MAML", 7).steps == 7


def test_the_command_costs(tmp_path):
    arguments = ["--width", "2", "--inner-steps", "1", "2"]
    assert main(["imaml", "costs", "--out", str(tmp_path), *arguments]) == 0
    rows = json.loads((tmp_path / "metrics.json").read_text())["rows"]
    assert [(row["method"], row["inner_steps"]) for row in rows] == [
        (name, steps) for steps in (1, 2) for name in METHODS
    ]
    assert all(row["memory"] > 0 and row["seconds"] > 0 for row in rows)
    assert (tmp_path / "costs.png").stat().st_size > 10_000
