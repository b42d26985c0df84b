"""What quadratic programs refuse."""

import implicit_solvers as ims
from tests.refusals.row import Refusal

SETUP = """
from implicit_solvers.problems.qp import InteriorPoint, quadratic_program
eye, one, rows = torch.eye(3), torch.ones(3), torch.ones(2, 3)
"""

ROWS = [
    Refusal("quadratic_program(eye.tolist(), one)", TypeError, "Q is a list: pass a tensor"),
    Refusal(
        "quadratic_program(eye, one.long())",
        TypeError,
        "p is torch.int64: pass float32 or float64",
    ),
    Refusal(
        "quadratic_program(eye, torch.tensor(1.0))",
        ValueError,
        "p has the shape (): pass a vector",
    ),
    Refusal("quadratic_program(one, one)", ValueError, "Q has the shape (3,): pass a matrix"),
    Refusal(
        "quadratic_program(torch.eye(2), one)",
        ValueError,
        "Q has the shape (2, 2), and should end in (3, 3)",
    ),
    Refusal(
        "quadratic_program(eye.double(), one)",
        TypeError,
        "Q is torch.float64 on cpu, and p is torch.float32",
    ),
    Refusal(
        "quadratic_program(eye, one, rows)",
        ValueError,
        "G was given without h: pass both, or neither",
    ),
    Refusal("quadratic_program(eye, one, h=one[:2])", ValueError, "h was given without G"),
    Refusal(
        "quadratic_program(eye, one, rows, one)",
        ValueError,
        "G has the shape (2, 3), and should end in (3, 3)",
    ),
    Refusal("quadratic_program(eye, one, A=rows)", ValueError, "A was given without b"),
    Refusal(
        "quadratic_program(eye, one, A=eye[:, :2], b=one)", ValueError, "A has the shape (3, 2)"
    ),
    Refusal(
        "quadratic_program(eye.expand(2, 3, 3), one.expand(4, 3))",
        ValueError,
        "broadcast: Q (2,), p (4,)",
    ),
    Refusal("quadratic_program(eye[:0, :0], one[:0])", ValueError, "at least one variable"),
    Refusal(
        "quadratic_program(eye, one, rows, one[:2], solver=InteriorPoint(max_steps=1))",
        ims.ConvergenceError,
        "MAX_STEPS",
    ),
    Refusal(
        "ims.root(lambda z, a: z - a, torch.zeros(2), (torch.ones(2),), solver=InteriorPoint())",
        TypeError,
        "quadratic_program only",
    ),
    *(
        Refusal(f"InteriorPoint({name}={value})", error, f"InteriorPoint has {name}={shown}: {fix}")
        for name, value, shown, error, fix in [
            ("rtol", "-1e-9", "-1e-09", ValueError, "pass a number >= 0, leave it out, or None"),
            ("rtol", "math.nan", "nan", ValueError, "pass a number >= 0"),
            ("rtol", "'1e-3'", "'1e-3'", TypeError, "pass a number >= 0"),
            ("rtol", "True", "True", TypeError, "pass a number >= 0"),
            ("rtol", "torch.tensor(1e-3)", "tensor(0.0010)", TypeError, "pass a number >= 0"),
            ("atol", "-1e-9", "-1e-09", ValueError, "pass a number >= 0, leave it out"),
            ("atol", "math.nan", "nan", ValueError, "pass a number >= 0"),
            ("atol", "None", "None", TypeError, "pass a number >= 0, leave it out"),
            ("max_steps", "-1", "-1", ValueError, "pass a whole number >= 0"),
            ("max_steps", "10.0", "10.0", TypeError, "pass a whole number >= 0"),
            ("max_steps", "True", "True", TypeError, "pass a whole number >= 0"),
        ]
    ),
]
