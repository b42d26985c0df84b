"""Masked mode (``compact=False``) and compaction agree: values, statistics, every derivative."""

import pytest
import torch
from torch.func import grad, hessian, jvp, vmap

import implicit_solvers as ims

W = torch.tensor([[0.3, -0.2, 0.1], [0.2, 0.1, -0.4], [-0.1, 0.3, 0.2]], dtype=torch.float64)
Z0 = torch.zeros(3, dtype=torch.float64)
# easy, hard (many more steps for a slow map), easy, bad (NaN), easy
MANY_X = torch.tensor(
    [[0.1, 0.2, 0.3], [3.0, -2.5, 4.0], [0.2, 0.1, 0.0], [torch.nan, 0.0, 0.0], [0.5, 0.4, 0.3]],
    dtype=torch.float64,
)


def equation(z, w, x):
    return z + 0.5 * torch.tanh(w @ z) * x.sum() - x


def root(compact):
    krylov = ims.GMRES(rtol=1e-13, compact=compact)
    solver = ims.Newton(compact=compact, linear_solver=krylov)
    adjoint = ims.ImplicitAdjoint(krylov)
    return lambda w, x: ims.root(
        equation, Z0, (w, x), solver=solver, adjoint=adjoint, on_failure="mask"
    )


def fixed_point(compact):
    solver = ims.Anderson(compact=compact)
    return lambda w, x: ims.fixed_point(
        lambda z, w, x: torch.tanh(w @ z) + x, Z0, (w, x), solver=solver, on_failure="mask"
    )


def minimize(compact):
    solver = ims.NewtonCG(compact=compact)
    adjoint = ims.ImplicitAdjoint(ims.CG(rtol=1e-13, compact=compact))

    def objective(z, w, x):
        return ((z - w @ x) ** 2).sum() + (z**4).sum()

    return lambda w, x: ims.minimize(
        objective, Z0, (w, x), solver=solver, adjoint=adjoint, on_failure="mask"
    )


def least_squares(compact):
    solver = ims.GaussNewton(compact=compact)
    return lambda w, x: ims.least_squares(equation, Z0, (w, x), solver=solver, on_failure="mask")


def linear_solve(compact):
    solver = ims.GMRES(rtol=1e-13, compact=compact)

    def solve(w, x):
        A = ims.MatrixOperator(torch.eye(3, dtype=w.dtype) + w)
        return ims.linear_solve(A, x, solver=solver, on_failure="mask")

    return solve


@pytest.mark.parametrize("entry", [root, fixed_point, minimize, least_squares, linear_solve])
def test_masked_mode_and_compaction_agree(entry):
    results = []
    for compact in (True, False):
        solve = entry(compact)

        def total(w, x, solve=solve):
            return (vmap(solve, (None, 0))(w, x).value ** 3).sum()

        def each(w, x, solve=solve):
            return (solve(w, x).value ** 3).sum()

        sol = vmap(solve, (None, 0))(W, MANY_X)
        results.append(
            {
                "value": sol.value,
                "status": sol.status,
                "iterations": sol.iterations,
                "shared": grad(total)(W, MANY_X),
                "lanes": grad(total, argnums=1)(W, MANY_X),
                "each": vmap(grad(each), (None, 0))(W, MANY_X),
                "tangent": jvp(lambda w: total(w, MANY_X), (W,), (W.T.contiguous(),))[1],
                "second": hessian(total)(W, MANY_X),
            }
        )
    compacted, masked = results
    assert compacted["status"].tolist()[3] != 0
    assert [s for i, s in enumerate(compacted["status"].tolist()) if i != 3] == [0] * 4
    for name, value in compacted.items():
        assert bool(torch.isfinite(value).all()) or name == "value", name
        # batches of another size round in another order
        torch.testing.assert_close(masked[name], value, rtol=1e-9, atol=1e-11, equal_nan=True)
