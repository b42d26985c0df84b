"""What is right passes, whatever it is; what is wrong with a point or an equation is named."""

import functools
import json
import math

import numpy as np
import pytest
import torch

import implicit_solvers as ims
from implicit_solvers import testing
from implicit_solvers.testing import Entry, Report, check_implicit_gradients, problems
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


def check(f, *args, start=M, **options):
    """Check an equation that starts and stands at M, with a few comparisons."""
    return check_implicit_gradients(f, start, args or (M,), **{**QUICK, **options})


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
@pytest.mark.parametrize("p,order", [(P, 3), (P.float(), 2)], ids=["third order", "float32"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_case(case, p, order):
    clean(check_implicit_gradients(case.solve, None, (p,), order=order))


def tree(z, x):
    return {"a": z["a"] + torch.tanh(W @ z["a"]) * z["b"] - x, "b": z["b"] ** 3 - 1 - x[0]}


def energy(z, a):
    return ((z - a) ** 2).sum() + 0.25 * (z**4).sum() * a[0] ** 2


def decay(z, y):
    return {"all": z[0] * torch.exp(-z[1] * torch.arange(4.0, dtype=DOUBLE)) - y}


def scaled(z, a):
    return torch.stack([1e-6 * (z[0] - a), 1e2 * (z[1] ** 3 - a)])


def apart(z, p):
    return z + 0.1 * torch.sin(z.flip(0)) - torch.stack([p[0] * 1e-6, p[1] ** 2])


def weighted(z, strengths):
    return (strengths * (z - 1) ** 2).sum() + (z**2).sum()


def coupled(z, x):
    return z + 0.3 * torch.sin(z.flip(-1)) - x


TREE = {"a": torch.zeros(3, dtype=DOUBLE), "b": torch.ones((), dtype=DOUBLE)}
UNITS, STRENGTHS = torch.tensor([1e6, 0.5]), torch.tensor([1e3, 1e-3])
ZERO, LANES = torch.zeros(3, dtype=DOUBLE), torch.linspace(-1, 1, 12, dtype=DOUBLE).reshape(2, 3, 2)
MANY = torch.linspace(-1, 1, 300, dtype=DOUBLE)
PICARD = {"kind": "fixed_point", "solver": ims.FixedPointIteration()}
RIGHT = {
    "GMRES adjoint": (tree, TREE, P, {"adjoint": ims.ImplicitAdjoint(ims.GMRES())}),
    "Newton-Krylov": (tree, TREE, P, {"solver": ims.Newton(linear_solver=ims.GMRES())}),
    "loose": (tree, TREE, P, {"solver": ims.Newton(rtol=1e-6, atol=1e-6)}),
    "auxiliary": (lambda z, a: (z**3 - a, {"twice": 2 * z}), M, M, {"has_aux": True}),
    "minimize": (energy, ZERO, P, {"kind": "minimize"}),
    "least_squares": (decay, torch.tensor([1.0, 0.3], dtype=DOUBLE),
     torch.tensor([1.0, 0.7, 0.2, 0.4], dtype=DOUBLE), {"kind": "least_squares"}),
    # a simple root, which is not singular
    "badly scaled": (scaled, torch.ones(2, dtype=DOUBLE), M, {}),
    # entries of one argument in units of their own, in float32
    "units apart": (apart, torch.zeros(2), UNITS, {}),
    "strengths": (weighted, torch.zeros(2), STRENGTHS, {"kind": "minimize"}),
    "two dimensions of lanes": (coupled, 0 * LANES, LANES, {"batch_dims": 2}),
    "with in_dims": (coupled, 0 * LANES, LANES, {"batch_dims": 2, "in_dims": (0,)}),
    "large": (lambda z, x: x - 0.1 * torch.sin(z.roll(1, 0)), 0 * MANY, MANY,
     {**PICARD, "adjoint": ims.ImplicitAdjoint(ims.GMRES())}),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_passes(name):
    f, start, argument, options = RIGHT[name]
    report = clean(check(f, argument, start=start, **options))
    assert report.kind == options.get("kind", "root")
    if name == "with in_dims":
        assert entry_of(report, "lane 0 changed").result == "ok"
    if name == "large":  # it is differenced through the layer
        assert "300 unknowns" in entry_of(report, "conditioning").cause


def test_a_bracket():
    ends = (torch.zeros(()), torch.tensor(3.0))
    report = check(kepler, M.float(), e.float(), start=None, bracket=ends, double=True, starts=3)
    assert clean(report).kind == "root" and report.dtype == "float64"
    assert "bracket" in entry_of(report, "other starts").cause


def test_third_order():
    report = clean(check(kepler, M, e, order=3))
    assert entry_of(report, "triple backward").result == "ok"


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
    assert names == {*("args[0] (x)", "captured cell.inner.weight", "captured cell.inner.bias")}
    assert {"lane 0 changed", "lane 0 unused", "NaN lane"} <= {x.check for x in report.entries}
    for name, tensor in layer.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, before[name])
    assert all(p.grad is None and p.requires_grad for p in layer.parameters())


def cell_of(linear):
    return lambda z, x: torch.tanh(0.5 * linear(z) + x)


@pytest.mark.parametrize("given", ["parameters", "equation", "init"])
def test_modules_held_by_functions_are_converted(given):
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(3, 3), torch.tensor([0.1, -0.2, 0.3])
    kept = linear.weight.detach().clone()
    first = linear if given == "init" else torch.zeros_like
    layer = ims.nn.FixedPoint(cell_of(linear), init=first)
    options = {
        "parameters": {"parameters": [linear.weight]},
        "equation": {"equation": cell_of(linear), "kind": "fixed_point"},
        "init": {},
    }[given]
    solve = layer if given != "equation" else lambda x: layer(x)
    report = clean(check(solve, x, start=None, double=True, **options))
    assert report.dtype == "float64"
    assert any("weight" in entry.of for entry in report.entries), str(report)
    assert linear.weight.dtype == torch.float32 and torch.equal(linear.weight, kept)


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

    def by_keyword(z, *, keyword=given):
        return z * keyword

    cell = Cell()
    cell.inner.plain, cell.several = torch.ones(3), [lambda z: z * in_closure]
    held = {"inner.weight", "inner.bias", "scale", "inner.plain", "in_closure"}
    assert set(captured_tensors(cell)) == held
    assert set(captured_tensors(ims.nn.Root(Holder().method))) == {"cell.attribute"}
    assert set(captured_tensors(by_keyword)) == {"keyword"}
    # two tensors of one name
    assert len(captured_tensors(Holder().method, Holder().method)) == 2
    assert captured_tensors(lambda z: [torch.sin(z) for _ in range(2)]) == {}
    # an attribute's name is not a global's
    assert "W" not in captured_tensors(lambda z: z.W)


def test_parameters_are_perturbed_and_put_back():
    held = torch.tensor(0.7, dtype=DOUBLE)  # requires no gradient: a constant, unless asked for

    def f(z, a):
        return z**3 + held * z - a

    quiet = check(f)
    assert not any("held" in entry.of for entry in quiet.entries)
    for given in ([held], {"held": held}, held):
        report = clean(check(f, parameters=given))
        assert entry_of(report, "reverse mode", "captured held").result == "ok"
        assert held.item() == 0.7 and not held.requires_grad


def test_the_same_seed_gives_the_same_report():
    state = torch.get_rng_state()
    first = check_implicit_gradients(kepler, M, (M, e), seed=3, vmap=False)
    assert first == check_implicit_gradients(kepler, M, (M, e), seed=3, vmap=False)
    assert torch.equal(torch.get_rng_state(), state)


# -- what is wrong ------------------------------------------------------------------------------

WEIGHT = torch.tensor(0.4, dtype=DOUBLE, requires_grad=True)
FAR, IN_VALLEY = torch.tensor(2.0, dtype=DOUBLE), torch.tensor([0.3, 0.2], dtype=DOUBLE)
SLOW = {"solver": ims.Newton(max_steps=200)}
CUT = "the residual depends on args[1] (e) but the derivative with respect to it is zero: "


def by_numpy(z, a):
    return torch.from_numpy(np.asarray(z**3)) - a


def valley(z, a):
    return torch.stack([z.sum() - a, 2 * z.sum() - 2 * a])


KINK = ("non-differentiable point", "the equation's own")
SINGULAR, UNCONVERGED = "singular Jacobian", "not converged"
BUDGET, UNFIT = ims.Newton(max_steps=1, rtol=None), ims.ImplicitAdjoint(ims.CG())
# what the first cause begins with, and the equation
WRONG = {
    "no root": (f"{SINGULAR}: ConvergenceError", lambda z, a: z**2 + a, {}),
    "no root, masked": (
        "not converged: the solve ended as", lambda z, a: z**2 + a, {"on_failure": "mask"}
    ),
    "a budget": ("not converged: the budget of steps (rtol=None)", kepler, {"solver": BUDGET}),
    "a double root": (SINGULAR, lambda z, a: (z - a) ** 2, {"start": FAR, **SLOW}),
    "a triple root": (SINGULAR, lambda z, a: (z - a) ** 3, {"start": FAR, **SLOW}),
    "a valley": (SINGULAR, valley, {"start": IN_VALLEY, **SLOW}),
    "a kink": (KINK, lambda z, a: z + torch.relu(z - 0.5) - a, {}),
    "a branch": (KINK, lambda z, a: torch.where(a > 0.5, z - a, z - 2 * a + 0.5), {}),
    "detach": (CUT, lambda E, M, e: E - e.detach() * torch.sin(E) - M, {}),
    "item": (CUT, lambda E, M, e: E - e.item() * torch.sin(E) - M, {}),
    "detach of what is captured": (
        "the residual depends on captured WEIGHT but",
        lambda z, a: z**3 + WEIGHT.detach() * z - a, {},
    ),
    "CG": ("adjoint solver unfit for a nonsymmetric operator", kepler, {"adjoint": UNFIT}),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(name):
    words, f, options = WRONG[name]
    report = check(f, *([M, e] if "e" in f.__code__.co_varnames else [M]), **options)
    assert report.causes and report.failures[0].cause.startswith(words), str(report)
    if words is KINK or name == "a budget":
        every = words if words is KINK else UNCONVERGED
        assert all(cause.startswith(every) for cause in report.causes), str(report)
    if words is CUT:
        assert not any("args[0]" in entry.of for entry in report.failures), str(report)
    if words is SINGULAR:
        assert not any(entry.check == "reverse mode" for entry in report.entries)


# words somewhere in the first cause
INSIDE = {
    # sqrt of zero in the argument, at the solution z = 0
    "is not finite": lambda z, a: z + torch.where(a > 0, torch.sqrt(a * 0.0), a * 0),
    "to z is not that of its values": lambda z, a: z - 0.3 * torch.sin(z.detach()) - a,
    "to args[0] (a) is not that of its values": lambda z, a: z - 1 - a * torch.sin(a.detach() * z),
}


@pytest.mark.parametrize("words", INSIDE)
def test_a_derivative_that_is_wrong_in_part(words):
    report = check(INSIDE[words])
    assert words in report.causes[0], str(report)


def test_more_than_one_root_is_a_warning_unless_asked():
    def cubic(z, a):
        return z**3 - z - 0.1 * a

    report = check_implicit_gradients(cubic, 2 * M, (M,), order=1, vmap=False)
    found = entry_of(report, "other starts")
    assert report.passed and found.result == "warning"
    assert found.cause.startswith("more than one root")
    strict = check_implicit_gradients(cubic, 2 * M, (M,), order=1, vmap=False, unique=True)
    assert [entry.check for entry in strict.failures] == ["other starts"]


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
    for name in ("reverse mode", "forward mode", "double backward"):
        assert "could not be differenced" in entry_of(report, name).cause


def test_what_is_complex_is_not_passed():
    report = check_implicit_gradients(lambda a: (a**2, torch.complex(a, a)), None, (M,))
    assert [entry.check for entry in report.failures] == ["solve"]
    assert "the layer's value is complex" in report.causes[0]
    constant = torch.tensor(0.6 + 0.8j)  # none of the inputs: it stays as it is
    for double in (False, True):
        clean(check(lambda z, a: z - a * constant.abs(), double=double))
    assert constant.dtype == torch.complex64


def test_a_solution_that_is_not_finite():
    report = check_implicit_gradients(lambda a: a / 0, None, (M,))
    assert [entry.check for entry in report.failures] == ["residual"]
    assert "NaN or inf" in report.causes[0]


def test_nothing_to_differentiate():
    report = check_implicit_gradients(lambda z: z**3 - 2, M)
    assert report.passed and entry_of(report, "derivatives").result == "skipped"
    empty = check_implicit_gradients(lambda z, a: z - a, M.new_zeros(0), (M.new_zeros(0),))
    assert empty.passed and entry_of(empty, "derivatives").result == "skipped"


# -- the report, and the differences ------------------------------------------------------------


def test_assert_raises_with_the_table():
    assert isinstance(testing.assert_implicit_gradients(kepler, M, (M, e), **QUICK), Report)
    with pytest.raises(testing.GradientCheckError, match="reverse mode .*FAILED") as error:
        testing.assert_implicit_gradients(lambda z, a: z - a.detach(), M, (M,), **QUICK)
    assert isinstance(error.value, AssertionError) and not error.value.report.passed


def test_the_table_is_of_fixed_width_and_json_is_valid():
    long = "a rather long cause " * 12
    entries = (
        Entry("reverse mode", "args[0]['a rather long name'] (x)", "failed", 1.0, 1e-9, long),
        Entry("forward mode", "args[0]", "failed", math.nan, math.inf, long, "change it"),
        Entry("vmap", "args", "warning", cause="another"),
        Entry("NaN lane", "args", "skipped"),
    )
    report = Report("f", "root", "float64", entries)
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
    start, theta = problem.start(dtype), problem.theta(dtype)
    return check(problem.fn, theta, start=start, kind=problem.kind, **options)


REGULAR = [
    "COLEBROOK",  # parameters ten orders of magnitude apart
    "POWELL_BADLY_SCALED",  # a root that moves fast
    *("TRIGONOMETRIC", "HIMMELBLAU", "RIDGE_RESIDUALS", "CHANDRASEKHAR_ITERATION"),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", REGULAR)
def test_regular_problems(name, dtype):
    report = checked(getattr(problems, name), dtype)
    assert report.passed, str(report)
    if dtype == DOUBLE:
        clean(report)


@pytest.mark.parametrize("name", ["DOUBLE_ROOT", "POWELL_SINGULAR"])
def test_singular_problems(name):
    assert checked(getattr(problems, name)).causes[0].startswith(SINGULAR)


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
    picard = ims.FixedPointIteration() if name == "Picard" else None
    for _ in range(8):
        W, x = (torch.randn(s, generator=generator, dtype=DOUBLE) for s in ((n, n), (n,)))
        W = 0.6 * W / torch.linalg.matrix_norm(W, 2)
        S = W @ W.T + torch.eye(n, dtype=DOUBLE)

        def layer(x, W=W, S=S):
            cell = lambda z, x: torch.tanh(W @ z + x)
            energy = lambda z, x: 0.5 * z @ (S @ z) + 0.1 * (z**4).sum() - x @ z
            if name == "minimum":
                return ims.minimize(energy, torch.zeros_like(x), (x,)).value
            return ims.fixed_point(cell, torch.zeros_like(x), (x,), solver=picard).value

        report = check_implicit_gradients(layer, args=(x,), order=1, vmap=False)
        assert report.passed, report
        judged = [e for e in report.entries if e.check in ("reverse mode", "forward mode")]
        assert all(e.result == "ok" and e.tolerance < 1e-7 for e in judged), report
