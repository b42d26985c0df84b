"""Where torch is too old to trace a solve, that is said, and the solve runs outside of graphs."""

import pytest
import torch

import implicit_solvers as ims
from implicit_solvers import graph_break

RECENT = graph_break.COMPILES
X = torch.tensor([0.3, -0.2], dtype=torch.float64)


def solved(x):
    sol = ims.root(
        lambda z, x: z**3 + z - x,
        torch.zeros_like(x),
        (x,),
        solver=ims.Newton(),
        on_failure="mask",
    )
    return sol.value


@pytest.fixture(autouse=True)
def _old(monkeypatch):
    monkeypatch.setattr(graph_break, "COMPILES", False)


def test_one_graph_is_refused():
    with pytest.raises(torch._dynamo.exc.Unsupported) as caught:
        torch.compile(solved, fullgraph=True, backend="eager")(X)
    # torch 2.8 cannot trace as far as that
    assert not RECENT or "needs torch 2.13 or later" in str(caught.value)


def test_with_a_break_in_the_graph_it_works():
    x, y = X.clone().requires_grad_(), X.clone().requires_grad_()
    compiled = torch.compile(solved, backend="eager")
    torch.testing.assert_close(compiled(x), solved(y))
    compiled(x).sum().backward()
    solved(y).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_a_compiled_step_is_refused():
    with pytest.raises(RuntimeError, match=r"Newton\(compile=True\) needs torch 2.13 or later"):
        ims.root(lambda z, x: z - x, X, (X,), solver=ims.Newton(compile=True))
