"""What a user does with a `Solution`: print it, ask it how lanes ended, mistake it for a tensor."""

import copy
import pathlib
import pickle
import re
import subprocess
import sys

import pytest
import torch
from torch.func import grad, jvp, vmap

import implicit_solvers as ims
from implicit_solvers.compiling import COMPILES

A = torch.linspace(-0.75, 0.25, 1000, dtype=torch.float64)


def f(z, a):
    return z**2 - a


def square_roots(a, **options):
    return ims.root(f, torch.ones_like(a), (a,), batch_dims=1, in_dims=0, **options)


@pytest.fixture(scope="module")
def mixed():
    """A thousand lanes, of which those with a negative argument have no root."""
    return square_roots(A, on_failure="mask", solver=ims.Newton())


def test_a_batch_reads_in_one_line(mixed):
    found = re.fullmatch(
        r"Solution\(250 of 1,000 converged, (\d+) (\w+)(?:, (\d+) (\w+))*; "
        r"at most (\d+) iterations; error \S+, residual (\S+)\)",
        repr(mixed),
    )
    assert found and str(mixed) == repr(mixed)
    assert int(found[5]) == int(mixed.iterations.max())
    assert float(found[6]) == pytest.approx(float(mixed.residual.max()), rel=0.05)  # two digits
    counts = re.findall(r"(\d+) ([A-Z_]+)", repr(mixed))
    assert sum(int(count) for count, _ in counts) == 750
    assert {name for _, name in counts} <= {"STALLED", "SINGULAR", "MAX_STEPS"}


def test_one_problem_reads_in_one_line():
    one = ims.root(f, torch.tensor(1.0, dtype=torch.float64), (torch.tensor(4.0).double(),))
    ends = f"error {float(one.error):.2g}, residual {float(one.residual):.2g}"
    assert repr(one) == f"Solution(CONVERGED after {int(one.iterations)} iterations; {ends})"
    linear = ims.linear_solve(ims.MatrixOperator(torch.eye(2)), torch.ones(2))
    assert repr(linear) == "Solution(CONVERGED after 1 iteration; error 2.1e-07, residual 0)"
    assert repr(square_roots(A[:0])) == "Solution(no problems)"


@pytest.mark.parametrize(
    "solve, solver, by_products",
    [
        (ims.root, None, False),
        (ims.root, ims.Broyden(), True),
        (ims.root, ims.Newton(ims.GMRES()), True),
        # (that does not go on to a residual of zero, which is examined by products)
        (ims.fixed_point, ims.Anderson(rtol=1e-6), False),
        (ims.minimize, ims.NewtonCG(), True),
        (ims.least_squares, None, False),
    ],
)
@pytest.mark.parametrize("lanes", [1, 5])
def test_calls_of_the_function_are_counted(solve, solver, by_products, lanes):
    calls = []

    def fn(z, a):
        calls.append(z)
        if solve is ims.minimize:
            return (torch.cosh(z - a)).sum(-1)
        return 0.5 * torch.cos(z) + a if solve is ims.fixed_point else torch.sinh(z - a)

    # the last lane needs most steps, and none comes without: it was there at every call
    a = torch.linspace(0.5, 2.5, lanes, dtype=torch.float64).unsqueeze(-1).expand(lanes, 3)
    options = {"solver": solver, "batch_dims": 1, "in_dims": 0}
    with ims.monitor() as log, torch.no_grad():
        found = solve(fn, torch.zeros_like(a), (a,), **options).evaluations
    assert found.function.shape == (lanes,) and int(found.function.max()) == len(calls)
    assert bool((found.function > 0).all()) and log.records[0].evaluations.function is not None
    assert bool((found.products > 0).all()) == by_products


def test_other_statuses_are_counted_by_name():
    budget = square_roots(A[990:].expand(10), solver=ims.Newton(max_steps=2, rtol=None))
    assert repr(budget).startswith("Solution(0 of 10 converged, 10 BUDGET; at most 2 iterations")
    grid = ims.root(f, torch.ones(3, 4), (torch.ones(3, 4),), batch_dims=2)
    assert repr(grid).startswith("Solution(12 of 12 converged; at most 0 iterations; error ")


def test_status_names_have_the_shape_of_the_lanes(mixed):
    names = mixed.status_names()
    assert [ims.Status[name] for name in names] == mixed.status.tolist()
    grid = ims.root(f, torch.ones(1, 2), (torch.ones(1, 2),), batch_dims=2)
    assert grid.status_names() == [["CONVERGED", "CONVERGED"]]
    assert ims.root(f, torch.ones(()), (torch.ones(()),)).status_names() == "CONVERGED"


def test_it_prints_inside_of_transforms():
    seen = []

    def solve(a):
        sol = ims.root(f, torch.ones((), dtype=a.dtype), (a,))
        seen.append(repr(sol))
        return sol.value

    vmap(solve)(A[-2:])
    vmap(grad(solve))(A[-2:])
    assert seen == ["Solution(inside a transform)"] * 2
    grad(solve)(A[-1])
    jvp(solve, (A[-1],), (A[-1],))
    assert all(re.match(r"Solution\((CONVERGED after|inside)", text) for text in seen[2:])


@pytest.mark.skipif(not COMPILES, reason="torch is too old")
def test_it_is_traced_while_a_graph_is_compiled():
    @torch.compile(fullgraph=True, backend="eager")
    def solve(a):
        sol = square_roots(a, on_failure="mask", solver=ims.Newton())
        return sol, f"{sol}"

    sol, text = solve(A[-3:])
    assert isinstance(sol, ims.Solution) and "3 of 3 converged" in repr(sol)
    assert text.startswith("Solution(")


def test_it_is_copied_and_pickled(mixed):
    for again in (copy.deepcopy(mixed), pickle.loads(pickle.dumps(mixed))):
        assert repr(again) == repr(mixed) and torch.equal(again.value, mixed.value)


def test_what_is_no_attribute_is_none(mixed):
    assert not hasattr(mixed, "sum") and not hasattr(mixed, "valeu")
    with pytest.raises(AttributeError, match="no valeu"):
        _ = mixed.valeu


TYPED = """
import torch
from torch import Tensor

import implicit_solvers as ims


def f(z: Tensor, a: Tensor) -> Tensor:
    return z - a


z = torch.ones(2)
ims.root(f, z, (z,), solver="newton")  # error: incompatible type "str"; expected "EquationMethod
ims.root(f, z, (z,), solver=ims.Newton)  # error: incompatible type "type[Newton]"
ims.minimize(f, z, (z,), solver=ims.CG())  # error: incompatible type "CG"
ims.root(f, z, (z,), adjoint="unrolled")  # error: incompatible type "str"
ims.root(f, z, adjoint=ims.ImplicitAdjoint)  # error: incompatible type "type[ImplicitAdjoint]"
ims.linear_solve(z, z, solver=ims.Newton())  # error: incompatible type "Newton"
ims.ImplicitAdjoint(ims.LU)  # error: incompatible type "type[LU]"
ims.nn.FixedPoint(f, solver=ims.Anderson)  # error: incompatible type "type[Anderson]"
ims.root(f, z, (z,), tol=1e-6)  # error: Unexpected keyword argument "tol"
ims.Newton(maxiter=7)  # error: Unexpected keyword argument "maxiter"
ims.root(f, z, (z,)) + 1  # error: Unsupported operand types
ims.root(f, z, (z,)).sum()  # error: has no attribute "sum"
ims.fixed_point(f, {"a": z}).value.sum()  # error: "dict[str, Tensor]" has no attribute "sum"

right: Tensor = ims.root(f, z, (z,), solver=ims.Newton(linear_solver=ims.LU())).value
right = ims.root(f, None, bracket=(z, 3.0)).value
right = ims.least_squares(f, z, adjoint=ims.ImplicitAdjoint(ims.CG())).value
right = ims.linear_solve(z, z, solver=ims.LU()).value
right = ims.attach(f, z)
names: dict[str, Tensor] = ims.minimize(f, {"a": z}, solver=ims.LBFGS()).value
"""


@pytest.mark.slow
def test_a_type_checker_sees_what_is_no_solver(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "snippet.py").write_text(TYPED)
    checkout = pathlib.Path(__file__).parents[1]
    # in the checkout, whose settings and cache it shares with make lint
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", str(tmp_path / "snippet.py")],
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=400,
    )
    said: dict[int, str] = {}
    for number, text in re.findall(r"snippet\.py:(\d+): error: (.*)", run.stdout):
        said[int(number)] = said.get(int(number), "") + text
    lines = [line.partition("  # error: ") for line in TYPED.splitlines()]
    wanted = {number: words for number, (_, mark, words) in enumerate(lines, 1) if mark}
    assert set(said) == set(wanted), run.stdout + run.stderr
    assert [n for n, words in wanted.items() if words not in said[n]] == [], run.stdout


def test_a_value_that_is_not_judged_is_attached_where_it_is():
    """NaN is a failure of its problem; elsewhere dz = -F_a / F_z at a point that is no root."""
    z, a = torch.tensor([1.0, torch.nan, 3.0]).double(), torch.full((3,), 2.0).double()
    f, policy = lambda z, a: z**2 - a, {"batch_dims": 1, "in_dims": 0, "on_failure": "mask"}
    sol = ims.attach(f, ims.Solution.unjudged(z, 1), (a.requires_grad_(),), **policy)
    assert sol.status_names() == ["BUDGET", "NONFINITE", "BUDGET"]
    assert sol.residual[::2].tolist() == [1.0, 7.0] and not sol.converged.any()
    slope = torch.autograd.grad(sol.value[::2].sum(), a)[0]
    torch.testing.assert_close(slope, torch.tensor([1 / 2, 0.0, 1 / 6]).double())
