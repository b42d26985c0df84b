"""Data files that installed packages ship, found without importing the packages."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

__all__ = ["package_file"]


def package_file(package: str, name: str, extra: str) -> Path:
    """Return the path of a file of an installed package, from the package's metadata.

    ``package`` is the name that pip knows, ``name`` the file's, or the end of its path, such as
    ``"data/x.ts"``. Errors name the ``extra`` of ``implicit-solvers`` that installs the package.

    Examples
    --------
    >>> package_file("torch", "torch/version.py", extra="test").name
    'version.py'
    """
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ModuleNotFoundError(
            f"{name} is a file of the package {package}: pip install 'implicit-solvers[{extra}]'",
            name=package,
        ) from error
    for file in files:
        path = Path(str(file.locate()))
        if f"/{file.as_posix()}".endswith(f"/{name}") and path.is_file():
            return path
    raise FileNotFoundError(
        f"the installed package {package} has no file {name}: "
        f"pip install --force-reinstall --no-deps {package}"
    )
