"""Stands in for the link to problems/ where there is none: on Windows, or in an unpacked archive.

Python takes the folder of this name where it exists. It knows one path.
"""

from pathlib import Path

__path__ = [str(Path(__file__).parents[1] / "problems")]

if __name__ == "__main__":
    import runpy

    runpy.run_module("implicit_solvers.problems.__main__", run_name="__main__")
