"""The package as a process meets it: what an import costs, what is offered, what may be missing."""

import json
import os
import re
import subprocess
import sys
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
