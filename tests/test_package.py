"""The package as a process meets it: what an import costs, what is offered, what may be missing."""

import ast
import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from importlib.machinery import PathFinder
from pathlib import Path

import implicit_solvers as ims

ROOT = Path(__file__).parent.parent

# neither what the command line needs, nor what some solves need
IMPORT = """
import json, sys, time, torch
sys.modules |= {"rich": None, "filelock": None}
before, started = set(sys.modules), time.process_time()
import implicit_solvers as ims
print(json.dumps([time.process_time() - started, sorted(set(sys.modules) - before)]))
a = torch.tensor(2.0, requires_grad=True)
with ims.monitor() as log:
    ims.root(lambda z, a: z**2 - a, torch.tensor(1.0), (a,)).value.backward()
log.table()
import implicit_solvers.testing, implicit_solvers.problems.convex
import implicit_solvers.problems.imaml, implicit_solvers.problems.reparameterization
"""
LATER = [
    "scipy",
    "sympy",
    "torch._dynamo",
    "torch.export",
    "torch.distributed.fsdp",
    "implicit_solvers.problems",
    "implicit_solvers.testing",
]


def output_of(code, **variables):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_import_is_short_and_needs_no_more_than_torch():
    imported, *table = output_of(IMPORT).splitlines()
    seconds, modules = json.loads(imported)
    assert [name for name in LATER if name in modules] == []
    # a seventh of a second of processor time on an idle machine, twice that without compiled files
    assert seconds < 1.5
    assert any("adjoint of root of <lambda>" in line for line in table)


def test_completion_offers_public_names_only():
    assert {name for name in dir(ims) if not name.startswith("_")} == {*ims.__all__, "nn"}
    assert "__version__" in dir(ims)


def test_the_reference_lists_each_public_name_once():
    listed = re.findall(r"(?m)^   (\w[\w.]*)$", (ROOT / "docs/api/index.md").read_text("utf-8"))
    layers = [f"nn.{name}" for name in ims.nn.__all__]
    assert sorted(listed) == sorted([*ims.__all__, *layers])


# ---- Any system ----


def test_nothing_needs_what_only_some_systems_have():
    lacking = {"fcntl", "grp", "mmap", "pwd", "resource", "termios", "winreg", "msvcrt"}
    calls = {"fork", "getuid", "geteuid", "killpg", "link", "setsid", "symlink", "symlink_to"}
    for path in [*(ROOT / "implicit_solvers").rglob("*.py"), *(ROOT / "problems").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {getattr(node, "module", None), *(alias.name for alias in node.names)}
                assert not names & lacking, (path, ast.unparse(node))
            elif isinstance(node, ast.Attribute):
                assert node.attr not in calls, (path, ast.unparse(node))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not re.match(r"/(proc|dev|sys|tmp)\b", node.value), (path, node.value)


def test_problems_are_found_where_a_checkout_has_no_link(tmp_path):
    package = tmp_path / "implicit_solvers"
    package.mkdir()
    # git writes it so on Windows
    (package / "problems").write_text("../problems")
    shutil.copy(ROOT / "implicit_solvers/problems.py", package)
    shutil.copytree(ROOT / "problems/qp", tmp_path / "problems/qp")
    name = "implicit_solvers.problems"
    spec = PathFinder.find_spec(name, [str(package)])
    stand_in = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stand_in)
    found = PathFinder.find_spec(f"{name}.qp", stand_in.__path__)
    assert Path(found.origin) == tmp_path / "problems/qp/__init__.py"


# ---- A release ----

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_a_version_and_an_address_stand_everywhere_alike():
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    address = PROJECT["urls"]["Repository"]
    assert f"version: {ims.__version__}\n" in citation and PROJECT["version"] == ims.__version__
    assert f"repository-code: {address}\n" in citation
    assert all(url.startswith(address) for url in PROJECT["urls"].values())


def test_the_links_of_the_long_description_are_absolute():
    here = re.findall(r"\]\(([^)]*)\)", (ROOT / "README.md").read_text("utf-8"))
    text = runpy.run_path(str(ROOT / "setup.py"))["long_description"]()
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)]*)\)", text)
    assert len(links) == len(here) and any(image for image, _ in links)
    for image, link in links:
        assert re.match("https?:|#", link)
        base = f"{PROJECT['urls']['Repository']}/{'raw' if image else 'blob'}/v{ims.__version__}/"
        if link.startswith(PROJECT["urls"]["Repository"]):
            assert (ROOT / link.removeprefix(base)).is_file(), link
