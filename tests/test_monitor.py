"""The log of solves, forward and backward."""

import gc
import io
import math

import pytest
import torch

import implicit_solvers as ims
from implicit_solvers.testing.live_memory import LiveMemory

A = torch.tensor([2.0, 3.0], dtype=torch.float64)


def square_roots(a):
    return ims.root(lambda z, a: z**2 - a, torch.ones_like(a), (a,)).value


def test_forward_and_backward_are_recorded():
    a = A.clone().requires_grad_()
    with ims.monitor() as log:
        square_roots(a).sum().backward()
    forward, backward = log.records
    assert forward.equation == "root of <lambda>"
    assert backward.equation == f"adjoint of {forward.equation}"
    assert (forward.solver, backward.solver) == ("NewtonDogleg", "LU")
    assert forward.lanes == 1 and forward.iterations.item() > 2
    assert forward.seconds > 0 and log.adjoints() == [backward]
    assert backward.residual.item() < 1e-12


def test_lanes_are_recorded_under_vmap():
    with ims.monitor() as log:
        torch.func.vmap(torch.func.grad(square_roots))(A)
    forward, backward = log.records
    assert forward.lanes == backward.lanes == 2
    assert forward.status.tolist() == [0, 0]


def test_the_adjoint_residual_is_that_of_a_budget():
    M = torch.diag(torch.linspace(1, 30, 6, dtype=torch.float64))
    b = torch.ones(6, dtype=torch.float64, requires_grad=True)
    adjoint = ims.ImplicitAdjoint(ims.CG(max_steps=2, rtol=None))
    with ims.monitor() as log:
        sol = ims.minimize(lambda z: z @ M @ z / 2 - z @ b, torch.zeros_like(b), adjoint=adjoint)
        sol.value.sum().backward()
    (record,) = log.adjoints()
    relative = (torch.ones(6) - M @ b.grad).norm() / 6**0.5
    assert record.residual.item() == pytest.approx(relative.item())
    assert 0.1 < record.residual.item() < 1
    assert record.status.item() == ims.Status.BUDGET


def test_nothing_is_recorded_outside_and_monitors_nest():
    with ims.monitor() as outer:
        square_roots(A)
        with ims.monitor() as inner:
            square_roots(A)
    square_roots(A)
    assert (len(outer.records), len(inner.records)) == (2, 1)


def test_the_table_names_each_solve():
    with ims.monitor() as log:
        square_roots(A)
        ims.linear_solve(ims.MatrixOperator(torch.eye(2)), torch.ones(2))
    out = io.StringIO()
    log.table(out)
    text = out.getvalue()
    assert "root of <lambda>" in text and "NewtonDogleg" in text and "CONVERGED" in text
    assert "linear_solve with MatrixOperator" in text


def lambert(a, z0, **options):
    f = lambda z, a: z * z.exp() - a
    return ims.root(f, z0, (a,), batch_dims=a.dim(), in_dims=(0,) if a.dim() else None, **options)


def test_the_history_of_a_lane_is_that_of_the_lane_alone():
    a = torch.tensor([1.0, 1e6, -2.0, 0.01, 30.0, 1e3, 2.0, 1e-3], dtype=torch.float64)
    with ims.monitor(history=True) as log:
        lambert(a, torch.ones_like(a), on_failure="mask")
        for x in a:
            lambert(x, torch.ones_like(x), on_failure="mask")
    together, *alone = log.records
    _, residuals = together.history.residuals()
    counts = []
    for lane, record in enumerate(alone):
        steps, each = record.history.residuals()
        assert steps.tolist() == sorted(steps.tolist()) and each.shape[1] == 1
        column = residuals[:, lane]
        column = column[~column.isnan()]
        # (in some of its steps one problem is not looked at)
        torch.testing.assert_close(column[: len(each)], each[:, 0], rtol=1e-6, atol=1e-15)
        counts.append(len(column))
    assert len(set(counts)) > 3


def test_the_history_is_the_residual_of_each_iterate():
    x = z0 = torch.tensor([0.1, 1.0], dtype=torch.float64)
    solver = ims.FixedPointIteration(max_steps=5, rtol=None)
    with ims.monitor(history=True) as log:
        ims.fixed_point(torch.cos, z0, solver=solver, batch_dims=1)
    steps, residuals = log.records[0].history.residuals()
    for step, row in zip(steps.tolist(), residuals, strict=True):
        z = x
        for _ in range(step):
            z = z.cos()
        torch.testing.assert_close(row, (z.cos() - z).abs(), rtol=1e-12, atol=1e-15)
    assert steps[-1] == 5


def test_the_history_of_a_linear_solve_is_relative():
    A = torch.diag(torch.linspace(1, 30, 6, dtype=torch.float64))
    b = torch.full((6,), 1e-5, dtype=torch.float64)
    with ims.monitor(history=True) as log:
        ims.linear_solve(ims.MatrixOperator(A, positive_definite=True), b, solver=ims.CG())
    _, residuals = log.records[0].history.residuals()
    assert residuals[0].item() == pytest.approx(1) and residuals[-1].item() < 1e-5


def test_pictures():
    pytest.importorskip("matplotlib").use("Agg")
    with ims.monitor(history=True) as log:
        assert len(log.plot().axes) == 3  # of nothing
        a = torch.tensor([1.0, -2.0, math.nan], dtype=torch.float64)
        solution = lambert(a, torch.zeros_like(a), on_failure="mask")
        ims.linear_solve(torch.eye(2), torch.ones(2))
    left, middle, right = log.plot().axes
    failures = [line for line in left.lines if line.get_color() == "#ff6d00"]
    assert len(failures) == 1  # NaN has no residual to draw
    assert sum(patch.get_height() for patch in middle.patches) >= 3
    words = [text.get_text() for text in right.get_legend().get_texts()]
    assert "CONVERGED: 2" in words and "NONFINITE: 1" in words
    assert log.records[0].plot().get_xlabel() == "step"
    assert log.records[1].plot().texts[0].get_text().startswith("no steps")
    assert "NONFINITE: 1" in solution._repr_html_() and "(3,)" in solution._repr_html_()
    shown = log._repr_html_()
    assert shown.count("<tr>") == 3 and "NONFINITE: 1" in shown and "&lt;lambda&gt;" in shown


@pytest.mark.parametrize("history", [False, True])
def test_a_log_keeps_a_few_numbers_for_each_problem_unless_asked_for_more(history):
    b = torch.linspace(0.1, 1, 800, dtype=torch.float64).reshape(100, 8).requires_grad_()
    bytes_, g = [], lambda z, b: torch.cos(z) * b / 2
    solver = ims.FixedPointIteration(rtol=None, max_steps=30)
    how = {"batch_dims": 1, "in_dims": (0,), "solver": solver}
    with LiveMemory() as memory, ims.monitor(history=history) as log:
        for _ in range(3):
            for _ in range(20):
                ims.fixed_point(g, torch.zeros_like(b), (b,), **how).value.sum().backward()
            gc.collect()
            bytes_.append(memory.live)
    first, second, third = bytes_
    assert abs((third - second) - (second - first)) < 0.01 * third  # as much for each solve
    # of both passes: four numbers, and three counts of the first
    numbers = 20 * 100 * 8 * (4 + 3 + 4)
    assert (numbers <= third - second <= 1.1 * numbers) is not history
    assert all((record.history is None) is not history for record in log.records[::2])


def test_a_log_of_the_last_solves():
    with ims.monitor(last=3) as log, ims.monitor() as everything:
        for a in A.repeat(5):
            square_roots(a)
    assert log.records == everything.records[-3:] and len(everything.records) == 10


def test_a_log_inside_of_another_keeps_what_it_was_asked_for():
    with ims.monitor() as outer, ims.monitor(history=True) as inner:
        square_roots(A)
    assert outer.records[0].history is None and len(inner.records[0].history.residuals()[0]) > 1
