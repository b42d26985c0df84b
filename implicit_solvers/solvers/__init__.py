"""Solvers for equations, one noun a file: steps of the one loop.

None knows how a solution is differentiated.
"""
