"""What quadratic programs refuse."""

import implicit_solvers as ims
from tests.refusals.row import Refusal

SETUP = """
from implicit_solvers.problems.qp import InteriorPoint, quadratic_program
eye, one, rows, hasty = torch.eye(3), torch.ones(3), torch.ones(2, 3), InteriorPoint(max_steps=0)
free = quadratic_program(eye, one)
"""

ROWS = [
    Refusal("quadratic_program(eye.tolist(), one)", TypeError, "Q is a list: pass a tensor"),
    Refusal("quadratic_program(eye, one.long())", TypeError, "int64: pass float32 or float64"),
    Refusal("quadratic_program(eye, one[0])", ValueError, "p has the shape (): pass a vector"),
    Refusal("quadratic_program(one, one)", ValueError, "Q has the shape (3,): pass a matrix"),
    Refusal("quadratic_program(eye[:2, :2], one)", ValueError, "(2, 2), and should end in (3, 3)"),
    Refusal("quadratic_program(eye.double(), one)", TypeError, "Q is torch.float64 on cpu, and p"),
    Refusal("quadratic_program(eye, one, rows)", ValueError, "without h: pass both, or neither"),
    Refusal("quadratic_program(eye, one, h=one[:2])", ValueError, "h was given without G"),
    Refusal("quadratic_program(eye, one, rows, one)", ValueError,
            "(2, 3), and should end in (3, 3)"),
    Refusal("quadratic_program(eye, one, A=rows)", ValueError, "A was given without b"),
    Refusal("quadratic_program(eye, one, A=rows[:, :2], b=one)", ValueError, "shape (2, 2)"),
    Refusal("quadratic_program(torch.stack([eye, eye]), eye)", ValueError, "Q (2,), p (3,)"),
    Refusal("quadratic_program(eye[:0, :0], one[:0])", ValueError, "at least one variable"),
    Refusal("quadratic_program(eye, one, start=one)", TypeError, "start is a Tensor: pass what"),
    Refusal("quadratic_program(eye, one, rows, one[:2], start=free)", ValueError,
            "start has the sizes [3, 0, 0]"),
    Refusal("quadratic_program(eye, rows, start=quadratic_program(eye, eye))", ValueError,
            "start has the batch (3,), and the program (2,)"),
    Refusal("quadratic_program(-eye, one)", ims.ConvergenceError, "INDEFINITE"),
    Refusal("quadratic_program(eye, one, solver=hasty)", ims.ConvergenceError, "MAX_STEPS"),
    Refusal("ims.root(torch.sub, one, (one,), solver=hasty)", TypeError, "quadratic_program only"),
    *(Refusal(f"InteriorPoint({name}={value})", error, f"InteriorPoint has {name}={shown}{fix}")
      for names, value, shown, error, fix in [
            (["rtol", "atol"], "-1e-9", "-1e-09", ValueError, ": pass a number >= 0, leave it out"),
            (["rtol", "atol"], "math.nan", "nan", ValueError, ": pass a number >= 0"),
            (["rtol", "atol"], "'1e-3'", "'1e-3'", TypeError, ", of type str: pass"),
            (["rtol", "atol"], "True", "True", TypeError, ", of type bool: pass"),
            (["rtol"], "torch.tensor(1e-3)", "tensor(0.0010)", TypeError, ", of type Tensor: pass"),
            (["rtol"], "-1.0", "-1.0", ValueError, ": pass a number >= 0, leave it out, or None"),
            (["atol"], "None", "None", TypeError, ", of type NoneType: pass a number"),
            (["max_steps"], "-1", "-1", ValueError, ": pass a whole number >= 0"),
            (["max_steps"], "10.0", "10.0", TypeError, ", of type float: pass a whole"),
            (["max_steps"], "True", "True", TypeError, ", of type bool: pass a whole number >= 0"),
      ] for name in names),
]  # fmt: skip
