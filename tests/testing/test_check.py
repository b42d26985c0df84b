"""What is right passes, whatever it is; what is wrong with a point or an equation is named."""

import functools
import json
import math

import numpy as np
import pytest
import torch

import implicit_solvers as ims
from implicit_solvers.testing import (
    Entry,
    GradientCheckError,
    Report,
    assert_implicit_gradients,
    check_implicit_gradients,
    problems,
)
from implicit_solvers.testing.captured import captured_tensors
from implicit_solvers.testing.differences import central_difference, is_kinked
from tests.cases import CASES, P, W

DOUBLE = torch.float64
QUICK = {"order": 1, "vmap": False, "starts": 0}


def kepler(E, M, e):
    return E - e * torch.sin(E) - M


M, e = torch.tensor(0.5, dtype=DOUBLE), torch.tensor(0.3, dtype=DOUBLE)


def entry_of(report, check, of=None):
    return next(x for x in report.entries if x.check == check and of in (None, x.of))


def clean(report):
    assert report.passed, str(report)
    assert all(entry.result != "warning" for entry in report.entries), str(report)
    return report


# -- what is right ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_an_equation_passes_in_every_comparison(dtype):
    report = clean(check_implicit_gradients(kepler, M.to(dtype), (M.to(dtype), e.to(dtype))))
    assert (report.name, report.kind) == ("kepler", "root")
    assert report.dtype == str(dtype).removeprefix("torch.")
    made = {entry.check for entry in report.entries if entry.result == "ok"}
    assert made == {
        *("in-place writes", "equation alone", "residual", "conditioning", "reverse mode"),
        *("forward mode", "double backward", "fwd over reverse", "vmap", "vmap of reverse"),
        *("reverse of vmap", "vmap of forward", "NaN lane", "other starts"),
    }
    rough = 1e-9 if dtype == torch.float64 else 1e-3
    assert all(x.tolerance < rough for x in report.entries if x.check.endswith(" mode"))


@pytest.mark.parametrize("case", [c for c in CASES if c.name.endswith("scalar")], ids=str)
def test_layers_without_their_equation(case):
    report = clean(check_implicit_gradients(case.solve, None, (P,)))
    assert report.kind == "layer"
    assert entry_of(report, "residual").result == "skipped"


@pytest.mark.nightly
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_case_to_third_order(case):
    clean(check_implicit_gradients(case.solve, None, (P,), order=3))


@pytest.mark.nightly
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_case_in_float32(case):
    clean(check_implicit_gradients(case.solve, None, (P.float(),)))


@pytest.mark.parametrize(
    "adjoint,solver",
    [
        (ims.ImplicitAdjoint(ims.GMRES()), None),
        (None, ims.Newton(linear_solver=ims.GMRES())),
        (None, ims.Newton(rtol=1e-6, atol=1e-6)),
    ],
    ids=["gmres-adjoint", "newton-krylov", "loose"],
)
def test_solvers_and_adjoints(adjoint, solver):
    def f(z, x):
        return {"a": z["a"] + torch.tanh(W @ z["a"]) * z["b"] - x, "b": z["b"] ** 3 - 1 - x[0]}

    start = {"a": torch.zeros(3, dtype=DOUBLE), "b": torch.ones((), dtype=DOUBLE)}
    clean(check_implicit_gradients(f, start, (P,), adjoint=adjoint, solver=solver, **QUICK))


def test_a_bracket():
    ends = (torch.zeros(()), torch.tensor(3.0))
    args = (M.float(), e.float())
    report = check_implicit_gradients(
        kepler, args=args, bracket=ends, double=True, order=1, vmap=False
    )
    assert clean(report).kind == "root" and report.dtype == "float64"
    assert "bracket" in entry_of(report, "other starts").cause


def test_auxiliary_outputs():
    report = check_implicit_gradients(
        lambda z, a: (z**3 - a, {"twice": 2 * z}), M, (M,), has_aux=True, **QUICK
    )
    clean(report)


def test_third_order():
    report = clean(check_implicit_gradients(kepler, M, (M, e), order=3, vmap=False, starts=0))
    assert entry_of(report, "triple backward").result == "ok"


def test_minimize_and_least_squares():
    def energy(z, a):
        return ((z - a) ** 2).sum() + 0.25 * (z**4).sum() * a[0] ** 2

    def decay(z, y):
        t = torch.arange(4.0, dtype=DOUBLE)
        return {"all": z[0] * torch.exp(-z[1] * t) - y}

    clean(check_implicit_gradients(energy, torch.zeros_like(P), (P,), kind="minimize", **QUICK))
    start = torch.tensor([1.0, 0.3], dtype=DOUBLE)
    y = torch.tensor([1.0, 0.7, 0.2, 0.4], dtype=DOUBLE)
    report = check_implicit_gradients(decay, start, (y,), kind="least_squares", **QUICK)
    assert clean(report).kind == "least_squares"


class Cell(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(3, 3)
        self.register_buffer("scale", torch.tensor(0.5))
        with torch.no_grad():
            self.inner.weight.mul_(0.5)

    def forward(self, z, x):
        return torch.tanh(self.scale * self.inner(z) + x)


@pytest.mark.parametrize("double", [False, True], ids=["float32", "double"])
def test_modules_keep_their_parameters(double):
    layer = ims.nn.FixedPoint(Cell(), solver=ims.Newton(), batch_dims=1)
    before = {name: t.clone() for name, t in layer.state_dict().items()}
    x = torch.tensor([[0.1, -0.2, 0.3], [0.5, 0.4, -0.7]])
    report = clean(check_implicit_gradients(layer, None, (x,), double=double, order=1, vmap=False))
    assert report.dtype == ("float64" if double else "float32")
    names = {entry.of for entry in report.entries if entry.check == "reverse mode"}
    assert names == {
        *("args[0] (x)", "captured cell.inner.weight", "captured cell.inner.bias"),
    }
    assert {"lane 0 changed", "lane 0 unused", "NaN lane"} <= {x.check for x in report.entries}
    for name, tensor in layer.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, before[name])
    assert all(p.grad is None and p.requires_grad for p in layer.parameters())


def test_captured_tensors_are_found_where_they_hide():
    in_closure = torch.ones(2)

    class Holder:
        def __init__(self):
            self.attribute = torch.ones(3)

        def method(self, z):
            return z * self.attribute

    class Called(Holder):
        def __call__(self, z):
            return z * self.attribute + W.sum()

    given = torch.zeros(1)
    partial = functools.partial(lambda z, q, k: z * in_closure * q * k, k=given)
    assert set(captured_tensors(partial)) == {"in_closure", "k"}
    assert set(captured_tensors(Holder().method)) == {"attribute"}
    assert set(captured_tensors(Called())) == {"attribute", "W"}
    assert set(captured_tensors(Cell())) == {"inner.weight", "inner.bias", "scale"}
    assert captured_tensors(lambda z: [torch.sin(z) for _ in range(2)]) == {}
    # an attribute's name is not a global's
    assert "W" not in captured_tensors(lambda z: z.W)


def test_parameters_are_perturbed_and_put_back():
    held = torch.tensor(0.7, dtype=DOUBLE)  # requires no gradient: a constant, unless asked for

    def f(z, a):
        return z**3 + held * z - a

    quiet = check_implicit_gradients(f, M, (M,), **QUICK)
    assert not any("held" in entry.of for entry in quiet.entries)
    for given in ([held], {"held": held}, held):
        report = clean(check_implicit_gradients(f, M, (M,), parameters=given, **QUICK))
        assert entry_of(report, "reverse mode", "captured held").result == "ok"
        assert held.item() == 0.7 and not held.requires_grad


def test_large_problems_are_differenced_through_the_layer():
    x = torch.linspace(-1, 1, 300, dtype=DOUBLE)
    report = check_implicit_gradients(
        lambda z, x: x - 0.1 * torch.sin(z.roll(1, 0)),
        torch.zeros_like(x),
        (x,),
        kind="fixed_point",
        solver=ims.FixedPointIteration(),
        adjoint=ims.ImplicitAdjoint(ims.GMRES()),
        **QUICK,
    )
    assert clean(report)
    assert "300 unknowns" in entry_of(report, "conditioning").cause


def test_two_native_lane_dimensions_without_in_dims():
    x = torch.linspace(-1, 1, 12, dtype=DOUBLE).reshape(2, 3, 2)

    def cell(z, x):
        return z + 0.3 * torch.sin(z.flip(-1)) - x

    clean(check_implicit_gradients(cell, torch.zeros_like(x), (x,), batch_dims=2, **QUICK))
    both = check_implicit_gradients(
        cell, torch.zeros_like(x), (x,), batch_dims=2, in_dims=(0,), **QUICK
    )
    assert entry_of(clean(both), "lane 0 changed").result == "ok"


def test_the_same_seed_gives_the_same_report():
    state = torch.get_rng_state()
    first = check_implicit_gradients(kepler, M, (M, e), seed=3, vmap=False)
    assert first == check_implicit_gradients(kepler, M, (M, e), seed=3, vmap=False)
    assert torch.equal(torch.get_rng_state(), state)


# -- what is wrong ------------------------------------------------------------------------------


def test_no_convergence():
    report = check_implicit_gradients(lambda z, a: z**2 + a, M, (M,))
    assert entry_of(report, "solve").cause.startswith("not converged")
    masked = check_implicit_gradients(lambda z, a: z**2 + a, M, (M,), on_failure="mask")
    assert entry_of(masked, "residual").cause.startswith("not converged: the solve ended as")


def test_a_budget_is_an_estimate():
    report = check_implicit_gradients(
        kepler, M, (M, e), solver=ims.Newton(max_steps=1, rtol=None), **QUICK
    )
    assert "budget of steps (rtol=None) ended" in entry_of(report, "residual").cause
    assert all(cause.startswith("not converged") for cause in report.causes), str(report)


@pytest.mark.parametrize(
    "f,start",
    [
        (lambda z, a: (z - a) ** 2, 2.0),
        (lambda z, a: (z - a) ** 3, 2.0),
        (lambda z, a: torch.stack([z.sum() - a, 2 * z.sum() - 2 * a]), [0.3, 0.2]),
    ],
    ids=["double", "triple", "valley"],
)
def test_a_singular_jacobian(f, start):
    solver = ims.Newton(max_steps=200)
    report = check_implicit_gradients(f, torch.tensor(start, dtype=DOUBLE), (M,), solver=solver)
    assert report.causes[0].startswith("singular Jacobian"), str(report)
    assert not any(entry.check == "reverse mode" for entry in report.entries)


def test_a_simple_root_of_a_badly_scaled_equation_is_not_singular():
    def scaled(z, a):
        return torch.stack([1e-6 * (z[0] - a), 1e2 * (z[1] ** 3 - a)])

    clean(check_implicit_gradients(scaled, torch.ones(2, dtype=DOUBLE), (M,), **QUICK))


@pytest.mark.parametrize(
    "f",
    [
        lambda z, a: z + torch.relu(z - 0.5) - a,
        lambda z, a: torch.where(a > 0.5, z - a, z - 2 * a + 0.5),
    ],
    ids=["relu", "branch"],
)
def test_a_kink(f):
    report = check_implicit_gradients(f, M, (M,), **QUICK)
    assert report.causes, str(report)
    assert all(
        cause.startswith(("non-differentiable point", "the equation's own"))
        for cause in report.causes
    ), str(report)


def test_a_derivative_that_is_not_finite():
    # sqrt of zero in the argument, at the solution z = 0
    report = check_implicit_gradients(
        lambda z, a: z + torch.where(a > 0, torch.sqrt(a * 0.0), a * 0), M, (M,), **QUICK
    )
    assert "is not finite" in report.causes[0], str(report)


def test_more_than_one_root_is_a_warning_unless_asked():
    def cubic(z, a):
        return z**3 - z - 0.1 * a

    report = check_implicit_gradients(cubic, 2 * M, (M,), order=1, vmap=False)
    found = entry_of(report, "other starts")
    assert report.passed and found.result == "warning"
    assert found.cause.startswith("more than one root")
    strict = check_implicit_gradients(cubic, 2 * M, (M,), order=1, vmap=False, unique=True)
    assert [entry.check for entry in strict.failures] == ["other starts"]


@pytest.mark.parametrize("cut", [torch.detach, lambda t: t.item()], ids=["detach", "item"])
def test_an_argument_that_is_cut(cut):
    report = check_implicit_gradients(
        lambda E, M, e: E - cut(e) * torch.sin(E) - M, M, (M, e), **QUICK
    )
    assert report.failures[0].cause.startswith(
        "the residual depends on args[1] (e) but the derivative with respect to it is zero: a "
        "detach() or .item()"
    )
    others = {entry.of for entry in report.failures}
    assert not any("args[0]" in of for of in others)


def test_an_argument_or_unknown_that_is_cut_in_part():
    report = check_implicit_gradients(
        lambda E, M, e: E - e * torch.sin(E.detach()) - M, M, (M, e), **QUICK
    )
    assert "with respect to z is not that of its values" in report.causes[0], str(report)
    report = check_implicit_gradients(
        lambda E, M, e: E - e * torch.sin(e.detach() * E) - M, M, (M, e), **QUICK
    )
    assert "with respect to args[1] (e) is not that of its values" in report.causes[0]


def test_a_captured_tensor_that_is_cut():
    weight = torch.tensor(0.4, dtype=DOUBLE, requires_grad=True)
    report = check_implicit_gradients(lambda z, a: z**3 + weight.detach() * z - a, M, (M,), **QUICK)
    assert "depends on captured weight but" in report.causes[0], str(report)


def test_in_place_writes():
    counter = torch.zeros((), dtype=DOUBLE)

    def into_z(z, a):
        z -= a
        return z

    def into_argument(z, a):
        a += 1
        return z - a

    def into_captured(z, a):
        counter.add_(1)
        return z - a

    for f, name in ((into_z, "z"), (into_argument, "args[0] (a)"), (into_captured, "captured")):
        report = check_implicit_gradients(f, M, (M,))
        assert report.failures[0].cause.startswith(f"the function writes into {name}")
    assert M.item() == 0.5 and counter.item() == 0.0

    def layer(a):
        a *= 2
        return a

    report = check_implicit_gradients(layer, None, (M,))
    assert report.causes == ("the layer writes into args[0] in place",)


def test_a_solver_for_symmetric_operators_is_unfit():
    report = check_implicit_gradients(
        kepler, M, (M, e), adjoint=ims.ImplicitAdjoint(ims.CG()), **QUICK
    )
    assert report.causes[0].startswith("adjoint solver unfit for a nonsymmetric operator")


def test_lanes_that_an_equation_mixes():
    def mixing(z, x):
        return z - x - 0.1 * x.mean(0)

    x = torch.linspace(-1, 1, 6, dtype=DOUBLE).reshape(3, 2)
    report = check_implicit_gradients(
        mixing, torch.zeros_like(x), (x,), batch_dims=1, in_dims=(0,), **QUICK
    )
    assert any(entry.check.startswith("lane 0") for entry in report.failures), str(report)
    assert any(cause.startswith("lanes leak") for cause in report.causes)


def test_a_layer_that_does_not_run_under_vmap_or_forward_mode():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**2

        @staticmethod
        def backward(ctx, g):
            return 2 * g * ctx.saved_tensors[0]

    report = check_implicit_gradients(Square.apply, None, (P,))
    assert {"forward mode", "vmap"} <= {entry.check for entry in report.failures}
    assert all("it raised" in cause for cause in report.causes), str(report)
    clean(check_implicit_gradients(Square.apply, None, (P,), forward=False, vmap=False))


def test_an_equation_that_cannot_be_differentiated():
    def by_numpy(z, a):
        return torch.from_numpy(np.asarray(z**3)) - a

    report = check_implicit_gradients(by_numpy, M, (M,))
    assert any("numpy() on Tensor that requires grad" in cause for cause in report.causes)
    report = check_implicit_gradients(lambda a: a ** (1 / 3), None, (M,), equation=by_numpy)
    assert [entry.of for entry in report.failures] == ["derivatives"], str(report)


def test_a_layer_that_fails_nearby_cannot_be_differenced():
    def fragile(a):
        if not torch.equal(a.detach(), M):
            raise RuntimeError("no solution")
        return a**2

    report = check_implicit_gradients(fragile, None, (M,), vmap=False)
    assert report.passed
    for check in ("reverse mode", "forward mode", "double backward"):
        assert "could not be differenced" in entry_of(report, check).cause


def test_a_solution_that_is_not_finite():
    report = check_implicit_gradients(lambda a: a / 0, None, (M,))
    assert [entry.check for entry in report.failures] == ["residual"]
    assert "NaN or inf" in report.causes[0]


def test_nothing_to_differentiate():
    report = check_implicit_gradients(lambda z: z**3 - 2, M)
    assert report.passed and entry_of(report, "derivatives").result == "skipped"
    empty = check_implicit_gradients(lambda z, a: z - a, M.new_zeros(0), (M.new_zeros(0),))
    assert empty.passed and entry_of(empty, "derivatives").result == "skipped"


# -- wrong use ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments,options,kind,message",
    [
        ((3, M, (M,)), {}, TypeError, "equation_or_layer is a int"),
        ((kepler, M, M), {}, TypeError, "args is a Tensor: pass a tuple"),
        ((kepler, M, (M, e)), {"kind": "maximize"}, ValueError, "kind is 'maximize'"),
        ((kepler, M, (M, e)), {"order": 4}, ValueError, "order is 4: use 1, 2 or 3"),
        ((kepler, M, (M, e)), {"starts": -1}, ValueError, "starts is -1"),
        ((kepler, torch.tensor(1), (M, e)), {}, TypeError, "z0 has dtype torch.int64"),
        ((kepler, M, (M, e)), {"equation": kepler}, ValueError, "z0 and equation are given"),
        ((kepler, M, (M, e)), {"parameters": [3]}, TypeError, "parameters has no floating tensor"),
        ((torch.sin, None, (M,)), {"solver": ims.Newton()}, TypeError, "solver: options of a sol"),
        ((torch.sin, None, (M,)), {"equation": lambda z, a: z.expand(2)}, ValueError, "equation r"),
        ((ims.nn.Root(kepler), None, ()), {}, ValueError, "args is empty"),
    ],
)
def test_wrong_use(arguments, options, kind, message):
    with pytest.raises(kind, match=message):
        check_implicit_gradients(*arguments, **options)


# -- the report, and the differences ------------------------------------------------------------


def test_assert_raises_with_the_table():
    assert isinstance(assert_implicit_gradients(kepler, M, (M, e), **QUICK), Report)
    with pytest.raises(GradientCheckError, match="reverse mode .*FAILED") as error:
        assert_implicit_gradients(lambda z, a: z - a.detach(), M, (M,), **QUICK)
    assert isinstance(error.value, AssertionError) and not error.value.report.passed


def test_the_table_is_of_fixed_width_and_json_is_valid():
    long = "a rather long cause " * 12
    report = Report(
        "f",
        "root",
        "float64",
        (
            Entry("reverse mode", "args[0]['a rather long name'] (x)", "failed", 1.0, 1e-9, long),
            Entry("forward mode", "args[0]", "failed", math.nan, math.inf, long, "change it"),
            Entry("vmap", "args", "warning", cause="another"),
            Entry("NaN lane", "args", "skipped"),
        ),
    )
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0] == "f (root, float64): FAILED, 2 of 3 checks, 1 warning"
    table = [x for x in lines[3:] if not x.startswith(" ")]
    assert {x.rindex(" ") for x in table} == {table[0].rindex(" ")}
    words = " ".join(str(report).split())
    assert words.count("a rather long cause") == 12 and words.count("cause: as above") == 1
    read = json.loads(report.to_json())
    assert read["passed"] is False and len(read["entries"]) == 4
    assert (read["entries"][1]["error"], read["entries"][1]["tolerance"]) == ("nan", "inf")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("x", [-1.3, 0.2, 2.0])
def test_differences_are_as_good_as_they_say(dtype, x):
    def f(t):
        y = torch.tensor(x + t, dtype=dtype)
        return torch.stack([torch.exp(y), torch.sin(3 * y), 1 / (3 + y)])

    exact = torch.tensor([math.exp(x), 3 * math.cos(3 * x), -1 / (3 + x) ** 2], dtype=torch.float64)
    found = central_difference(f, dtype=dtype)
    error = float((found.value.double() - exact).abs().max())
    assert error <= 4 * found.uncertainty
    assert found.uncertainty <= (1e-10 if dtype == torch.float64 else 1e-3)


def test_differences_shrink_their_step_for_a_narrow_function():
    def narrow(t):
        return torch.tanh(torch.tensor(1e3 * t, dtype=DOUBLE))

    found = central_difference(narrow, dtype=DOUBLE)
    assert abs(float(found.value) - 1e3) <= 4 * found.uncertainty <= 1e-3


def test_kinks():
    def value(fn):
        return lambda t: torch.as_tensor(fn(t), dtype=DOUBLE)

    assert is_kinked(value(lambda t: abs(t) + t), dtype=DOUBLE)
    assert is_kinked(value(lambda t: math.sqrt(abs(t))), dtype=DOUBLE)
    assert not is_kinked(value(lambda t: math.sin(100 * t)), dtype=DOUBLE)
    assert not is_kinked(value(lambda t: 1.0), dtype=DOUBLE)


# -- the problems of the literature -------------------------------------------------------------


def checked(problem, dtype=DOUBLE, **options):
    z0 = torch.tensor(problem.z0, dtype=dtype)
    theta = torch.tensor(problem.parameters, dtype=dtype)
    options = {**QUICK, **options}
    return check_implicit_gradients(problem.fn, z0, (theta,), kind=problem.kind, **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(
    "problem",
    [
        problems.COLEBROOK,  # parameters ten orders of magnitude apart
        problems.POWELL_BADLY_SCALED,  # a root that moves fast
        problems.TRIGONOMETRIC,
        problems.HIMMELBLAU,
        problems.RIDGE_RESIDUALS,
        problems.CHANDRASEKHAR_ITERATION,
    ],
    ids=lambda problem: problem.name,
)
def test_regular_problems(problem, dtype):
    report = checked(problem, dtype)
    assert report.passed, str(report)
    if dtype == DOUBLE:
        clean(report)


@pytest.mark.parametrize(
    "problem", [problems.DOUBLE_ROOT, problems.POWELL_SINGULAR], ids=lambda problem: problem.name
)
def test_singular_problems(problem):
    assert checked(problem).causes[0].startswith("singular Jacobian")


@pytest.mark.nightly
@pytest.mark.parametrize("problem", problems.ALL, ids=lambda problem: problem.name)
def test_every_problem(problem):
    report = checked(problem, order=2, vmap=True)
    solved = not any(entry.check == "solve" for entry in report.failures)
    assert report.passed == (problem.regular and solved), str(report)


@pytest.mark.parametrize("name", ["Picard", "Anderson", "minimum"])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_accurate_layers_of_unknown_equations_pass(name, n):
    """The values of a layer have the error of its solver, which differences magnify."""
    generator = torch.Generator().manual_seed(7 * n)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    for _ in range(8):
        M, x = randn(n, n), randn(n)
        M = 0.6 * M / torch.linalg.matrix_norm(M, 2)
        S = M @ M.T + torch.eye(n, dtype=torch.float64)

        def cell(z, x, M=M):
            return torch.tanh(M @ z + x)

        def objective(z, x, S=S):
            return 0.5 * z @ (S @ z) + 0.1 * (z**4).sum() - x @ z

        layers = {
            "Picard": lambda x: (
                ims.fixed_point(
                    cell, torch.zeros_like(x), (x,), solver=ims.FixedPointIteration()
                ).value
            ),
            "Anderson": lambda x: ims.fixed_point(cell, torch.zeros_like(x), (x,)).value,
            "minimum": lambda x: ims.minimize(objective, torch.zeros_like(x), (x,)).value,
        }
        report = check_implicit_gradients(layers[name], args=(x,), order=1, vmap=False)
        assert report.passed, report
        judged = [e for e in report.entries if e.check in ("reverse mode", "forward mode")]
        assert all(e.result == "ok" and e.tolerance < 1e-7 for e in judged), report
