"""The commands of `implicit-solvers`."""
