"""Linear operators, one differentiable linear solve, direct and iterative solvers."""
