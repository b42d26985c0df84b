"""The experiments `imaml truth` and `imaml costs`, in small."""

import itertools

import numpy as np
import pytest
import torch

from implicit_solvers.problems.experiments.imaml import truth
from implicit_solvers.problems.experiments.imaml.costs import (
    METHODS,
    CostRow,
    measure_meta_gradients,
    method_of,
    noise_task,
)
from implicit_solvers.problems.experiments.imaml.figures import draw_cost_panels
from implicit_solvers.problems.experiments.imaml.truth import (
    SPECTRA,
    TOLERANCE,
    Spectrum,
    measure_truth,
)
from tests.problems.imaml.meta_tasks import curves


@pytest.mark.parametrize("name", SPECTRA)
def test_the_exact_meta_gradient(name):
    spectrum = SPECTRA[name]
    data = truth.quadratic_tasks(spectrum, 3, 6, torch.Generator().manual_seed(1))
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
    # condition numbers of 1e4 at most times the rounding, 1e-16
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
    rows = list(
        measure_truth(
            {name: SPECTRA[name]}, [1, inner_steps], [1, 2, 5], tasks=1, dimension=20, seed=3
        )
    )
    first, last = (
        {row.method: row.error for row in rows if row.inner_steps == steps}
        for steps in (1, inner_steps)
    )
    assert len(first) == len(last) == 6 and {row.spectrum for row in rows} == {name}
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
    rows = measure_truth({"small": small}, [64], [3], tasks=1, dimension=3)
    exact = [row.method for row in rows if row.error < 1e-8]
    assert exact == ["iMAML, 3 CG steps", TOLERANCE, "MAML"]


def memory(method, *inner_steps):
    rows = measure_meta_gradients(*noise_task(2, queries=1), inner_steps, [method], rounds=1)
    return [row.memory for row in rows]


@pytest.mark.parametrize("method", ["iMAML", "first-order MAML"])
def test_the_memory_does_not_depend_on_the_inner_steps(method):
    few, many = memory(method, 4, 64)
    assert many <= 1.05 * few


def test_the_memory_of_maml_grows_with_the_inner_steps():
    few, more, most = memory("MAML", 2, 10, 18)
    assert most - more == pytest.approx(more - few, rel=0.02)
    assert most > 3 * few
    # with checkpoints, with the square root: at 4 times as many, not much above twice
    less, twice = memory("MAML, checkpointed", 4, 16)
    assert twice < 2.2 * less
    assert 2 * twice < most


def test_costs_are_of_the_same_adaptation():
    plain, *others = (method_of(name, 7).meta_gradient(*curves()).loss for name in METHODS)
    for loss in others:
        torch.testing.assert_close(loss, plain)
    assert not method_of("MAML", 4).checkpoint and method_of("MAML, checkpointed", 4).checkpoint


@pytest.mark.parametrize("last", [(1, 1, 1, 1), (1, 1.02, 50, 49), (0.91, 1.27, 3.24, 5.24)])
def test_labels_of_costs_do_not_overlap(last):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ends = zip(METHODS, last, strict=True)
    rows = [CostRow(m, n, int(1e6 * end**n), end * n / 9) for m, end in ends for n in (1, 9)]
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    panels = figure.subplots(1, 2)
    draw_cost_panels(*panels, rows)
    FigureCanvasAgg(figure).draw()
    for panel in panels:
        boxes = [text.get_window_extent() for text in panel.texts]
        assert len(boxes) == len(METHODS)
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
