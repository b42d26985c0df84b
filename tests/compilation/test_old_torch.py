"""Where torch is too old to trace a solve, that is said, and the solve runs outside of graphs."""

import subprocess
import sys

import pytest

from .comparison import COMPILES

# where torch is old, these are the day's only tests of graphs
pytestmark = [pytest.mark.nightly] if COMPILES else []
PROGRAM = """
import torch
if {pretend}:
    torch.__version__ = "2.12.0"
import implicit_solvers as ims

X = torch.tensor([0.3, -0.2], dtype=torch.float64)

def solved(x, **options):
    solver = ims.Newton(**options)
    fn = lambda z, x: z**3 + z - x
    return ims.root(fn, torch.zeros_like(x), (x,), solver=solver, on_failure="mask").value

try:
    torch.compile(solved, fullgraph=True, backend="eager")(X)
except torch._dynamo.exc.Unsupported as error:
    # torch 2.8 cannot trace as far as that
    assert not {pretend} or "needs torch 2.13 or later" in str(error), error
else:
    raise AssertionError("one graph is not refused")

x, y = X.clone().requires_grad_(), X.clone().requires_grad_()
compiled = torch.compile(solved, backend="eager")
torch.testing.assert_close(compiled(x), solved(y))
compiled(x).sum().backward()
solved(y).sum().backward()
torch.testing.assert_close(x.grad, y.grad)

try:
    solved(X, compile=True)
except RuntimeError as error:
    assert "Newton(compile=True) needs torch 2.13 or later" in str(error), error
else:
    raise AssertionError("a compiled step is not refused")
"""


def test_an_old_torch():
    program = PROGRAM.format(pretend=COMPILES)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
