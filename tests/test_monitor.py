"""The log of solves, forward and backward."""

import io

import pytest
import torch

import implicit_solvers as ims

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
