"""The experiments of the command ``implicit-solvers``, by problem, and their data."""
