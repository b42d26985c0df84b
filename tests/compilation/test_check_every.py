"""``check_every``: convergence is asked for now and then."""

import importlib

import pytest
import torch

import implicit_solvers as ims
from tests.test_operations import Count

from .comparison import drawn
from .systems import ROWS

LOOP = importlib.import_module("implicit_solvers.iterate")
R = drawn(6, 6)


def positive(x, w):
    A = ims.MatrixOperator(R @ R.T + torch.eye(6, dtype=torch.float64), positive_definite=True)
    return ims.linear_solve(A, drawn(3, 6), solver=ims.CG(), batch_dims=1, on_failure="mask")


EVERY = {"FixedPointIteration": 4, "Anderson": 4, "GradientDescent": 4, "Newton": 1, "CG": 4}


@pytest.mark.parametrize("name", EVERY)
def test_a_gpu_is_asked_every_fourth_light_step(name, monkeypatch):
    """Here the CPU is taken for one, that has to be waited for."""
    if name == "CG":
        run, (x, w) = positive, (R, R)
    else:
        run = ROWS[name].problem.run(ROWS[name].solver(compact=False))
        x, w = ROWS[name].problem.data(8)
        x = x[4:]
    asked, settle = [], LOOP.settle

    def counted(*masks):
        asked.append(None)
        return settle(*masks)

    with torch.no_grad():
        expected = run(x, w)
        monkeypatch.setattr(LOOP, "_waits", lambda device: True)
        monkeypatch.setattr(LOOP, "settle", counted)
        sol = run(x, w)
    assert torch.equal(sol.iterations, expected.iterations)
    assert torch.equal(sol.status, expected.status)
    steps = int(sol.iterations.max())
    assert steps > 3 and len(asked) <= steps // EVERY[name] + 3
    assert EVERY[name] > 1 or len(asked) >= steps


def test_questions_are_few():
    """Count how often values are read on the host."""
    system, solver = ROWS["FixedPointIteration"].problem, ROWS["FixedPointIteration"].solver
    x, w = system.data(8)
    counts = []
    for every in (1, 10):
        with torch.no_grad(), Count() as counter:
            sol = system.run(solver(check_every=every))(x[4:], w)
        counts.append(counter.questions)
    steps = int(sol.iterations.max())
    assert steps > 20
    assert counts[1] <= steps // 10 + 5 < counts[0]


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["Newton", "Chord", "FixedPointIteration", "Anderson"])
def test_no_synchronization_between_checks(name):
    system, solver = ROWS[name].problem, ROWS[name].solver
    x, w = (t.cuda() for t in system.data(64))
    every = 16
    run = system.run(solver(check_every=every, compact=False, max_steps=every, rtol=None))
    with torch.no_grad():
        run(x, w)  # handles, workspaces
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with pytest.warns(UserWarning, match="synchronizing") as caught:
                run(x, w)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(caught) <= 8
