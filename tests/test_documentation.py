"""Every example runs: docstrings under their installed names, the README, the docs pages."""

import ast
import doctest
import importlib
import inspect
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import implicit_solvers as ims
from tests.compilation.comparison import COMPILES

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


def test_all_lists_exactly_what_the_package_offers():
    public = {n for n, v in vars(ims).items() if not n.startswith("_") and not inspect.ismodule(v)}
    assert public == set(ims.__all__)
    assert all(getattr(ims, name).__doc__ for name in ims.__all__)


def python_blocks(text):
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def sections(path):
    """Return the sections of a page by their anchors."""
    parts = re.split(r"(?m)^##+ (.*)\n", path.read_text())
    return {
        re.sub(r"[^\w-]", "", title.lower().replace(" ", "-")): text
        for title, text in zip(parts[1::2], parts[2::2], strict=True)
    }


DOCS = ROOT / "docs"
PAGES = [
    str(path.relative_to(ROOT))
    for path in [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
    if python_blocks(path.read_text()) and not path.name.startswith("recipes_")
]
RECIPES = [
    (path.name, anchor) for path in sorted(DOCS.glob("recipes_*.md")) for anchor in sections(path)
]


@pytest.mark.parametrize("path", PAGES)
def test_the_examples_of_a_page_run(path, capsys):
    if path == "docs/compilation.md" and not COMPILES:
        pytest.skip("needs torch 2.13 or later")
    blocks = python_blocks((ROOT / path).read_text())
    scope = {}
    for block in blocks:
        exec(compile(block, path, "exec"), scope)
    if path == "README.md":
        # dE/dM = 1 / (1 - e cos E), lane by lane
        E, e = scope["sol"].value.detach(), scope["e"]
        expected = 1 / (1 - e * torch.cos(E))
        torch.testing.assert_close(scope["M"].grad, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(scope["jacobian"], torch.diag(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("page, anchor", RECIPES)
def test_a_recipe_runs_by_itself(page, anchor, capsys):
    text = sections(DOCS / page)[anchor]
    if "import lightning" in text:
        pytest.importorskip("lightning")
    if '"g++"' in text and shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    for block in python_blocks(text):
        exec(compile(block, page, "exec"), {"__name__": "recipe"})
    for script in re.findall(r"{literalinclude} (\S+)", text):
        run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        place = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        if sys.platform == "linux":
            place["GLOO_SOCKET_IFNAME"] = "lo"
        done = subprocess.run(
            [*run, str(DOCS / script)], env=os.environ | place, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


def test_every_question_leads_to_code_that_is_run_and_checked():
    text = (DOCS / "how_do_i.md").read_text()
    links = re.findall(r"(?m)^- \[.*?\]\((\w+\.md)#?([\w-]*)\)", text)
    assert len(links) >= 20 and "how_do_i" in (DOCS / "index.md").read_text()
    for page, anchor in links:
        code = (DOCS / page).read_text() if not anchor else sections(DOCS / page)[anchor]
        checked = "assert" in "".join(python_blocks(code)) or "{literalinclude}" in code
        assert checked, (page, anchor)
    assert set(RECIPES) <= set(links)
    assert text.count("\n- ") == len(links)


def imports(folder):
    """Return each file of a folder, its text, and the modules of ours that it imports."""
    for path in (ROOT / folder).rglob("*.py"):
        text, inside = path.read_text(), path.relative_to(ROOT / folder).parts
        if folder == "problems" or inside[0] != "problems":
            yield inside, text, re.findall(r"(?:from|import) (implicit_solvers[\w.]*)", text)


def the_map():
    """Return the groups of files in CONTRIBUTING.md: those to be read, in order, and the others."""
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("## The map of the core")[2]
    for group in re.split(r"(?m)^\d+\. ", text)[1:]:
        read, _, later = group.partition("- later:")
        yield re.findall(r"(?m)^ +- `([^`]+)`", read), re.findall("`([^`]+)`", later)


def test_the_map_names_every_file_of_the_core_in_the_order_of_the_imports():
    files = {"/".join(path): text for path, text, _ in imports("implicit_solvers")}
    # where a file stands as one that imports, and as one that is imported
    places, folders = {}, {}
    for group, (read, later) in enumerate(the_map()):
        places |= {name: ((group, i), (group, i)) for i, name in enumerate(read)}
        for name in later:
            (folders if name.endswith("/") else places)[name] = (group, len(read)), (group, -1)
    assert set(places) <= set(files)
    for path, text in files.items():
        assert len(text.splitlines()) <= 650, path
        folder = path[: path.find("/") + 1]
        assert path in places or folder in folders, f"{path} is in no group of the map"
        first = ast.get_docstring(ast.parse(text)) or ""
        assert re.search(r"\bknows?\b", first), f"{path}: say first what it must not know"
        places.setdefault(path, folders.get(folder))
    for path, text in files.items():
        for node in ast.walk(ast.parse(text)):
            line = ast.unparse(node) if isinstance(node, ast.Import | ast.ImportFrom) else ""
            line = line.replace("implicit_solvers import ", "implicit_solvers.")
            for module in re.findall(r"implicit_solvers\.([\w.]+)", line):
                below = places[module.replace(".", "/") + ".py"][1] > places[path][0]
                assert not below, f"{path} imports {module}, which the map has below it"


def test_private_names_of_torch_stand_in_one_file():
    files = [*imports("implicit_solvers"), *imports("problems")]
    files = {path: text for path, text, _ in files if path != ("torch_internals.py",)}
    # what named tuples have, and what our classes define or inherit
    own = re.findall(r"(?m)(?:def |class |self\.|cls\.|^ *)(_\w+)", "\n".join(files.values()))
    own = {"_fields", "_replace", "_asdict", *own}
    for path, text in files.items():
        for node in ast.walk(ast.parse(text)):
            private = False
            if isinstance(node, ast.Import | ast.ImportFrom):
                private = re.search(r"torch.*[ .]_[a-zA-Z]|[ .]_[a-zA-Z].*torch", ast.unparse(node))
            elif isinstance(node, ast.Attribute):
                private = re.match("_[a-zA-Z]", node.attr) and node.attr not in own
            assert not private, (path, ast.unparse(node))


def test_problems_use_public_names_only_and_not_their_experiments():
    own = ["problems", "testing", "torch_internals"]  # torch's names are not ours
    public = tuple(f"implicit_solvers.{name}" for name in own)
    for path, _, targets in imports("problems"):
        for target in targets:
            assert target == "implicit_solvers" or target.startswith(public), (path, target)
            if "experiments" not in path and path[-1] != "__main__.py":
                assert ".problems.experiments" not in target, (path, target)


def test_files_are_opened_with_an_encoding():
    for path, text, _ in [*imports("implicit_solvers"), *imports("problems")]:
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.Call):
                continue
            called, written = ast.unparse(node.func), ast.unparse(node)
            binary = re.search(r"['\"][rwax]b['\"]", written) or called in (
                "Image.open",
                "os.open",
                "wave.open",
            )
            if re.search(r"(^|\.)(open|read_text|write_text)$", called) and not binary:
                assert "encoding=" in written, (path, written)
        for line in re.findall(r">>> .*|\.\.\. .*", text):
            assert not re.search(r"(read|write)_text\((?!.*encoding=)", line), (path, line)


def logic_lines(source):
    """Count lines with code: not blank, not only a comment, not of a docstring."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            first, last = node.body[0].lineno - 1, node.body[0].end_lineno
            lines[first:last] = [""] * (last - first)
    return sum(bool(line.partition("#")[0].strip()) for line in lines)


@pytest.mark.parametrize("name", ["ernn", "imaml", "reparameterization"])
def test_a_definition_fits_on_a_page_and_uses_public_names_only(name):
    assert logic_lines('"""A\n\nB."""\n# why\nx = (\n    1,  # one\n)\n\n') == 3
    source = (ROOT / "problems" / name / "definition.py").read_text()
    assert logic_lines(source) <= 60
    used = set(re.findall(r"\bims\.(\w+)", source))
    assert used and used <= set(ims.__all__)
