"""Linear operators, one differentiable linear solve, direct and iterative solvers.

Nothing here knows a solver of equations.
"""
