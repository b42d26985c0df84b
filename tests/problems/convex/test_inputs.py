"""Wrong problems and wrong inputs: errors that name what is wrong and what to do."""

import cvxpy as cp
import numpy as np
import pytest
import torch

import implicit_solvers as ims
from implicit_solvers.problems.convex import SCS, Clarabel, ConvexLayer, project_exponential_cone


@pytest.fixture(scope="module")
def parts():
    x, A, b = cp.Variable(2, name="x"), cp.Parameter((3, 2), name="A"), cp.Parameter(3, name="b")
    return cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [x >= 0]), A, b, x


@pytest.fixture(scope="module")
def layer(parts):
    problem, A, b, x = parts
    return ConvexLayer(problem, [A, b], [x])


def minimize(objective, constraints=()):
    return cp.Problem(cp.Minimize(objective), list(constraints))


class TestProblems:
    def test_no_problem(self, parts):
        with pytest.raises(TypeError, match="problem is a Minimize: pass a cvxpy.Problem"):
            ConvexLayer(parts[0].objective, [], [])

    def test_not_dpp(self):
        x, a, b = cp.Variable(2), cp.Parameter(nonneg=True), cp.Parameter(nonneg=True)
        with pytest.raises(ValueError, match=r"not DPP.*https://www.cvxpy.org/tutorial/dpp"):
            ConvexLayer(minimize(cp.sum_squares(a * b * x - 1)), [a, b], [x])

    def test_a_quadratic_form_that_is_not_semidefinite(self):
        x, p = cp.Variable(2), cp.Parameter(2)
        form = cp.quad_form(x, np.diag([1.0, -1.0])) + p @ x
        with pytest.raises(
            ValueError, match=r"not convex by CVXPY's rules.*semidefinite.*objective"
        ):
            ConvexLayer(minimize(form), [p], [x])

    def test_a_constraint_that_is_not_convex(self):
        x, p = cp.Variable(2), cp.Parameter(2)
        with pytest.raises(ValueError, match=r"not convex.*Constraint 1.0 <= .* is not"):
            ConvexLayer(minimize(p @ x, [cp.norm(x) >= 1]), [p], [x])

    def test_integers(self):
        x, p = cp.Variable(2, integer=True), cp.Parameter(2)
        with pytest.raises(ValueError, match="integer or boolean variables"):
            ConvexLayer(minimize(cp.sum_squares(x - p)), [p], [x])

    def test_complex_numbers(self):
        x, p = cp.Variable(2, complex=True, name="wave"), cp.Parameter(2)
        with pytest.raises(ValueError, match="wave is complex: write its real and imaginary parts"):
            ConvexLayer(minimize(cp.norm(x - p)), [p], [x])

    def test_power_cones(self):
        x, p = cp.Variable(3), cp.Parameter()
        with pytest.raises(NotImplementedError, match="power cones"):
            ConvexLayer(minimize(p * x[0], [cp.PowCone3D(x[0], x[1], x[2], 0.3), x <= 2]), [p], [x])

    def test_parameters(self, parts):
        problem, A, b, x = parts
        with pytest.raises(ValueError, match=r"parameters lacks b: name every one"):
            ConvexLayer(problem, [A], [x])
        with pytest.raises(ValueError, match="parameters has stray, which is not in the problem"):
            ConvexLayer(problem, [A, b, cp.Parameter(name="stray")], [x])
        with pytest.raises(ValueError, match="parameters has A twice"):
            ConvexLayer(problem, [A, A, b], [x])
        with pytest.raises(TypeError, match="parameters has a Variable"):
            ConvexLayer(problem, [A, x], [x])
        with pytest.raises(TypeError, match="parameters is a Parameter: pass a list"):
            ConvexLayer(problem, A, [x])

    def test_variables_and_duals(self, parts):
        problem, A, b, x = parts
        with pytest.raises(ValueError, match="variables has y, which is not in the problem"):
            ConvexLayer(problem, [A, b], [x, cp.Variable(name="y")])
        with pytest.raises(TypeError, match="variables has a Parameter"):
            ConvexLayer(problem, [A, b], [A])
        with pytest.raises(ValueError, match=r"duals has .*, which is no constraint"):
            ConvexLayer(problem, [A, b], [x], duals=[x >= 0])

    def test_options(self, parts):
        problem, A, b, x = parts
        with pytest.raises(TypeError, match=r"solver is 'ECOS': pass Clarabel\(\) or SCS\(\)"):
            ConvexLayer(problem, [A, b], [x], solver="ECOS")
        with pytest.raises(ValueError, match="on_failure is 'ignore'"):
            ConvexLayer(problem, [A, b], [x], on_failure="ignore")
        with pytest.raises(TypeError, match="linear_solver=LU"):
            layer = ConvexLayer(problem, [A, b], [x], adjoint=ims.ImplicitAdjoint(ims.LU))
            layer(torch.ones(3, 2), torch.ones(3))


class TestValues:
    A, b = torch.ones(3, 2), torch.ones(3)

    def test_their_number(self, layer):
        with pytest.raises(ValueError, match=r"given 1 tensors for 2 parameters.*A, b, in this"):
            layer(self.A)

    def test_their_types(self, layer):
        with pytest.raises(TypeError, match="A is a ndarray: pass a tensor"):
            layer(self.A.numpy(), self.b)
        with pytest.raises(TypeError, match="A is torch.int64: pass float32 or float64"):
            layer(self.A.long(), self.b)
        with pytest.raises(TypeError, match="A is torch.complex64"):
            layer(self.A.to(torch.complex64), self.b)

    def test_their_dtypes_and_devices(self, layer):
        with pytest.raises(TypeError, match=r"b is torch.float64 on cpu, and A is torch.float32"):
            layer(self.A, self.b.double())
        with pytest.raises(TypeError, match=r"b is torch.float32 on meta, and A is .* on cpu"):
            layer(self.A, self.b.to("meta"))

    def test_their_shapes(self, layer):
        with pytest.raises(ValueError, match=r"A has the shape \(2, 3\), and .* has \(3, 2\)"):
            layer(self.A.T, self.b)
        with pytest.raises(ValueError, match=r"b has the shape \(\), and the parameter has \(3,\)"):
            layer(self.A, self.b[0])
        with pytest.raises(ValueError, match=r"lanes do not broadcast: A \(2,\), b \(5,\)"):
            layer(self.A.expand(2, 3, 2), self.b.expand(5, 3))

    def test_nan_and_infinity_fail_their_lanes(self, parts):
        problem, A, b, x = parts
        layer = ConvexLayer(problem, [A, b], [x], on_failure="mask")
        b_values = self.b.expand(4, 3).clone()
        b_values[1, 0], b_values[2, 2] = torch.nan, torch.inf
        A_value = (self.A + torch.rand(3, 2)).requires_grad_()
        solution = layer(A_value, b_values)
        assert solution.status.tolist() == [0, 3, 3, 0]
        solution.value.variables[0].nansum().backward()
        assert A_value.grad.isfinite().all()
        with pytest.raises(ims.ConvergenceError, match="lane 1: NONFINITE"):
            ConvexLayer(problem, [A, b], [x])(A_value, b_values)

    def test_the_start(self, layer):
        with pytest.raises(TypeError, match="start is no floating tensor"):
            layer(self.A, self.b, start=[0.0])
        with pytest.raises(ValueError, match=r"start has the shape \(3,\).*value.point"):
            layer(self.A, self.b, start=torch.zeros(3))


def test_rows_for_the_exponential_cone():
    with pytest.raises(ValueError, match=r"v has the shape \(4,\): pass rows \(r, s, t\)"):
        project_exponential_cone(torch.zeros(4))
    with pytest.raises(TypeError, match="v is torch.int64"):
        project_exponential_cone(torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("method", [Clarabel, SCS])
@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"rtol": -1e-9}, ValueError),
        ({"rtol": "1e-9"}, TypeError),
        ({"atol": float("nan")}, ValueError),
        ({"atol": True}, TypeError),
        ({"max_steps": 0}, ValueError),
        ({"max_steps": 10.0}, TypeError),
        ({"polish": -1}, ValueError),
        ({"workers": 0}, ValueError),
        ({"workers": 1.5}, TypeError),
    ],
    ids=str,
)
def test_settings_that_make_no_sense(method, setting, error):
    (name,) = setting
    with pytest.raises(error, match=f"{method.__name__} has {name}="):
        method(**setting)
