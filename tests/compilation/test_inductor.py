"""The default backend of ``torch.compile``, which needs a C++ compiler."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import implicit_solvers as ims

from .comparison import agree, compare, drawn, nightly_but
from .systems import LANES, ROWS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"),
    # said by torch of itself
    pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning"),
]
PAGE = Path(__file__).parents[2] / "docs" / "compilation.md"
W = 0.3 * drawn(4, 4, seed=1)


@pytest.fixture(autouse=True)
def _traced_only():
    """Leave the default backend as it is."""
    torch._dynamo.reset()


def test_one_graph():
    def run(x, W):
        fn = lambda z, x, W: torch.tanh(z @ W.T) + x
        solver = ims.FixedPointIteration()
        return ims.fixed_point(fn, torch.zeros_like(x), (x, W), solver=solver, **LANES)

    # the backward pass is compiled at night: C++ compilers are slow
    x = drawn(5, 4)
    with torch.no_grad():
        sol, expected = torch.compile(run, fullgraph=True)(x, W), run(x, W)
    assert torch.equal(sol.status, expected.status)
    torch.testing.assert_close(sol.value, expected.value, rtol=1e-9, atol=1e-9)


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["FixedPointIteration", "Newton", "Dogleg", "LBFGS"])
def test_one_graph_of_lanes_that_fail(name):
    system, solver = ROWS[name].problem, ROWS[name].solver
    agree(system.run(solver()), system.data(7), backend="inductor", factor=1e3)


@pytest.mark.nightly
def test_conjugate_gradients_in_a_graph():
    R = drawn(6, 6)

    def run(A, b):
        operator = ims.MatrixOperator(A, positive_definite=True)
        return ims.linear_solve(operator, b, solver=ims.CG(), on_failure="mask")

    A = R @ R.T + torch.eye(6, dtype=torch.float64)
    agree(run, (A, drawn(6, seed=1)), backend="inductor", factor=1e2)


@pytest.mark.nightly
def test_a_layer_is_packaged_ahead_of_time(tmp_path, monkeypatch):
    """As the page says."""
    monkeypatch.chdir(tmp_path)
    (recipe,) = re.findall(r"```\{code-block\} python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    scope = {"torch": torch, "ims": ims}
    exec(compile(recipe, str(PAGE), "exec"), scope)
    x = torch.randn(7, 16)
    with torch.no_grad():
        torch.testing.assert_close(scope["packaged"](x), scope["layer"](x))


@pytest.mark.parametrize("equation", nightly_but(["fixed_point"], ["fixed_point", "root"]))
def test_compiled_steps(equation):
    # a function of this test alone, so that no step of it was compiled by another backend
    def own(z, x, W):
        return torch.tanh(z @ W.T) + (x if equation == "fixed_point" else z - x)

    def run(compiled):
        solver = ims.FixedPointIteration if equation == "fixed_point" else ims.Newton
        options = {"solver": solver(compile=compiled), **LANES}
        solve = getattr(ims, equation)
        return lambda x, W: solve(own, torch.zeros_like(x), (x, W), **options)

    compare(run(True), run(False), (drawn(9, 4), W), factor=1e3)
    counters = torch._dynamo.utils.counters
    torch._dynamo.reset()
    counters.clear()
    with torch.no_grad():
        run(True)(drawn(9, 4), W)
    counts = counters["inductor"]
    assert counts["fxgraph_cache_hit"] and not counts["fxgraph_cache_miss"]


CACHED = """
import torch
import implicit_solvers as ims

def system(z, x, W):
    return torch.tanh(z @ W.T) + z - x

def solve(x, W, **options):
    lanes = {"batch_dims": 1, "in_dims": (0, None), "on_failure": "mask"}
    solver = ims.Newton(**options)
    return ims.root(system, torch.zeros_like(x), (x, W), solver=solver, **lanes).value

cached = {"unsafe_marked_cacheable_functions": {"torch.ops.higher_order.while_loop": "1"}}
whole = torch.compile(solve, fullgraph=True, options=cached)
for call in (lambda x, W: solve(x, W, compile=True), whole):
    torch.manual_seed(0)
    x, W = torch.randn(9, 3), (0.1 * torch.randn(3, 3)).requires_grad_()
    call(x, W).sum().backward()
    torch.testing.assert_close(W.grad, torch.autograd.grad(solve(x, W).sum(), W)[0])
counts = torch._dynamo.utils.counters["inductor"]
print(counts["fxgraph_cache_miss"] + counts["fxgraph_cache_bypass"], counts["fxgraph_cache_hit"])
"""


@pytest.mark.nightly
def test_another_process_compiles_nothing_again(tmp_path, monkeypatch):
    """With the option that the page names for graphs with loops."""
    assert "unsafe_marked_cacheable_functions" in PAGE.read_text()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    runs = [subprocess.check_output([sys.executable, "-c", CACHED], text=True) for _ in range(2)]
    first, second = ([int(count) for count in run.split()] for run in runs)
    assert first[0] >= 2 and second == [0, sum(first)]
