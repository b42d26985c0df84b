"""Every example runs: docstrings under their installed names, the README, the docs pages."""

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import implicit_solvers as ims

ROOT = Path(__file__).parent.parent
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MODULES = sorted(
    m.name
    for m in pkgutil.walk_packages(ims.__path__, "implicit_solvers.")
    if not m.name.endswith("__main__")
)


@pytest.mark.parametrize("name", ["implicit_solvers", *MODULES])
def test_doctests(name):
    module = importlib.import_module(name)
    torch.set_printoptions(profile="default")
    result = doctest.testmod(module, optionflags=OPTIONS)
    assert result.failed == 0


def test_every_public_name_has_a_doctested_example():
    finder = doctest.DocTestFinder()
    without = []
    for name in ims.__all__:
        value = getattr(ims, name)
        if issubclass(value, Exception) if inspect.isclass(value) else False:
            continue
        examples = [e for t in finder.find(value, name) for e in t.examples]
        if not callable(value) or name == "Auto":
            continue
        if not examples:
            without.append(name)
    assert without == []


def test_all_lists_exactly_what_the_package_offers():
    public = {n for n, v in vars(ims).items() if not n.startswith("_") and not inspect.ismodule(v)}
    assert public == set(ims.__all__)
    assert all(getattr(ims, name).__doc__ for name in ims.__all__)


def python_blocks(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)


PAGES = [
    str(path.relative_to(ROOT))
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    if python_blocks(path)
]


@pytest.mark.parametrize("path", PAGES)
def test_the_examples_of_a_page_run(path, capsys):
    blocks = python_blocks(ROOT / path)
    scope = {}
    for block in blocks:
        exec(compile(block, path, "exec"), scope)
    if path == "README.md":
        # dE/dM = 1 / (1 - e cos E), lane by lane
        E, e = scope["sol"].value.detach(), scope["e"]
        expected = 1 / (1 - e * torch.cos(E))
        torch.testing.assert_close(scope["M"].grad, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(scope["jacobian"], torch.diag(expected), rtol=1e-5, atol=1e-5)


def test_modules_are_small_and_layered():
    order = ["autodiff", "linear", "problem", "differentiate", "driver", "root_finding"]
    rank = {name: i for i, name in enumerate(order)}
    for path in (ROOT / "implicit_solvers").rglob("*.py"):
        if "problems" in path.parts:
            continue
        text = path.read_text()
        own = rank.get(path.relative_to(ROOT / "implicit_solvers").parts[0].removesuffix(".py"))
        assert len(text.splitlines()) <= 650, path
        for target in re.findall(r"^from implicit_solvers\.(\w+)", text, flags=re.MULTILINE):
            if own is not None and target in rank:
                assert rank[target] <= own, f"{path} imports {target}, a layer above it"


def test_problems_use_public_names_only():
    for path in (ROOT / "problems").rglob("*.py"):
        for target in re.findall(r"(?:from|import) (implicit_solvers[\w.]*)", path.read_text()):
            public = ("implicit_solvers.problems", "implicit_solvers.testing")
            assert target == "implicit_solvers" or target.startswith(public), (
                f"{path} imports {target}"
            )


def test_problems_do_not_import_their_command_line():
    for path in (ROOT / "problems").rglob("*.py"):
        if "cli" in path.relative_to(ROOT / "problems").parts or path.name == "__main__.py":
            continue
        assert "implicit_solvers.problems.cli" not in path.read_text(), path
