"""Worked problems, stated with the public names of ``implicit_solvers`` alone.

Their data sets, figures and command line need ``pip install 'implicit-solvers[problems]'``; the
definitions themselves need nothing more than the library.
"""
