"""The commands of ``implicit-solvers``, one module each, and what they share."""
