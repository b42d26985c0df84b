"""Solvers for equations, one noun a file: steps of the one loop."""
