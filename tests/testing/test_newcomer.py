"""The path of somebody who has read the README: a file with an equation, and one command."""

import json
import sys

import pytest
import torch

from implicit_solvers.problems.__main__ import main

# ten lines, from the README's first example and its table
EQUATION = '''\
"""The height at which a floating ball comes to rest."""
import torch
import implicit_solvers as ims

def buoyancy(h, density, radius):
    depth = h / radius
    submerged = depth * depth * (3 - depth) / 4
    return submerged - density

height = ims.root(buoyancy, torch.tensor(1.0), (torch.tensor(0.4), torch.tensor(1.0))).value
'''
NUMBERS = ["--z0", "1.0", "--args", "0.4", "1.1"]


@pytest.fixture
def check(tmp_path, capsys):
    def run(source, *options, name="buoyancy"):
        file = tmp_path / "ball.py"
        file.write_text(source)
        status = main(["check", f"{file}:{name}", *options])
        return status, capsys.readouterr()

    return run


def squeezed(text):
    return " ".join(text.split())


def test_a_ten_line_equation_passes(check):
    assert len(EQUATION.splitlines()) == 10
    status, shown = check(EQUATION, *NUMBERS)
    assert status == 0, shown.out
    assert shown.out.startswith("buoyancy (root, float64): passed")
    assert "args[1] (radius)" in shown.out


def test_inputs_are_drawn_from_the_signature(check):
    status, shown = check(EQUATION, "--starts", "0")
    assert status == 0, shown.out
    drawn = [line.removeprefix("drawn: ") for line in shown.out.splitlines() if "drawn: " in line]
    assert [line.split()[0] for line in drawn] == ["--z0", "--args"]
    # what was drawn can be given, and is the same check
    again, given = check(EQUATION, "--starts", "0", *" ".join(drawn).split())
    assert again == 0 and given.out == shown.out.split("\n\n", 1)[1]


ZERO = "the derivative with respect to it is zero: "
SHAPED = "return torch.stack([submerged - density])"
BRANCH = "if h < 0: submerged = submerged * 0\n    return"
# a line, what is made of it, and the cause
WRONG = {
    "detach": ("- density", "- density.detach()", f"depends on args[0] (density) but {ZERO}"),
    "item": ("h / radius", "h / radius.item()", f"depends on args[1] (radius) but {ZERO}"),
    "unknown": ("- depth)", "- depth.detach())", "respect to z is not that of its values"),
    "in-place": ("h / radius", "h; depth /= radius", "the function writes into z in place"),
    "argument": ("h / radius", "h / radius; density *= 1.0001", "args[0] (density) in place"),
    "branch": ("return", BRANCH, "a tensor's value is read"),
    "shape": ("return submerged - density", SHAPED, "return one entry for each unknown"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_line_is_named_by_its_effect(check, name):
    right, wrong, cause = WRONG[name]
    # the file's own solve is left out: some of these lines stop it
    source = EQUATION.partition("\nheight")[0].replace(right, wrong)
    assert wrong in source
    status, shown = check(source, *NUMBERS, "--starts", "0")
    assert status == 1
    assert cause in squeezed(shown.out), shown.out
    assert "change:" in shown.out


FIELDS = {"check", "of", "result", "error", "tolerance", "cause", "change"}


def test_json_has_every_entry(check):
    status, shown = check(EQUATION, *NUMBERS, "--json", "--starts", "0", "--order", "1")
    report = json.loads(shown.out)
    assert status == 0 and report["passed"] and report["kind"] == "root"
    assert set(report["entries"][0]) == FIELDS


MODELS = """\
import torch
import implicit_solvers as ims

W = 0.3 * torch.eye(3)

def cell(z, x):
    return torch.tanh(z @ W.to(z.dtype) + x)

def distance(z, a):
    return ((z - a) ** 2).sum() + (z**4).sum()

def residuals(z, y):
    return torch.stack([z[0] - y, z[0] * z[1] - 2 * y, z[1] - 1])

def power(z, a, n=3):
    return z**n - a

def layer(a):
    return ims.root(lambda z, a: z**3 - a, a, (a,)).value

module = ims.nn.FixedPoint(cell, batch_dims=1)
number = 3
print("imported")
"""


KINDS = [
    ("cell", "--kind fixed_point --z0 shape=2,3 --args shape=2,3 --batch-dims 1 --in-dims 0"),
    ("distance", "--kind minimize"),
    ("residuals", "--kind least_squares --z0 [0.5,0.5]"),
    ("power", "--dtype float32"),
    ("power", "--z0 1.0 --args 2.0 python=5"),
    ("layer", "--kind layer --args [0.5,0.7]"),
    ("layer", "--kind layer"),
    ("module", "--args shape=2,3"),
]


@pytest.mark.parametrize("name,options", KINDS)
def test_kinds_and_values(check, name, options):
    options = [*options.split(), "--starts", "0", "--order", "1", "--no-vmap", "--no-forward"]
    status, shown = check(MODELS, *options, name=name)
    assert status == 0, shown.out + shown.err
    # what the file prints does not disturb what is to be parsed
    assert "imported" in shown.err and "imported" not in shown.out


MISUSED = [
    ("nothing.py:f", "", "there is no file"),
    ("models.py:nothing", "", "defines no nothing; it defines cell, distance, residuals"),
    ("models.py", "", "names no function: write path/to/file.py:name"),
    ("models.py:number", "", "number is a int: name a function or a module"),
    ("models.py:power", "--args 1 2 3", "--args has 3 values, and the function takes (z, a, n"),
    ("models.py:cell", "--args", "--args has 0 values, and the function takes (z, x)"),
    ("models.py:power", "--args a", "--args, value 1 is 'a': write a number, a list"),
    ("models.py:power", "--z0 shape=x", "--z0 is 'shape=x': write a shape as shape=3,2"),
    ("models.py:power", "--z0 [[1],[2,3]]", "write a number, a list"),
    ("models.py:power", "--starts -1", "--starts is -1"),
    ("models.py:module", "--z0 1 --args 1", "--z0 was given for a layer"),
    ("models.py:power", "--z0 1 --args 1 --in-dims 0", "--in-dims was given without --b"),
    ("broken.py:f", "", "raised ZeroDivisionError when it was run"),
    ("models.py:unfit", "", "no shape was found that the function takes"),
]


@pytest.mark.parametrize("target,options,message", MISUSED)
def test_wrong_use_exits_with_two(tmp_path, capsys, target, options, message):
    unfit = "\ndef unfit(z, a):\n    return torch.cat([z, a], 7)\n"
    (tmp_path / "models.py").write_text(MODELS + unfit)
    (tmp_path / "broken.py").write_text("1 / 0")
    assert main(["check", str(tmp_path / target), *options.split()]) == 2
    shown = capsys.readouterr()
    assert message in shown.err and shown.err.count("error: ") == 1, shown.err
    assert shown.out == ""


def test_the_check_does_not_leave_traces(check):
    rng, path = torch.get_rng_state(), list(sys.path)
    check(EQUATION, *NUMBERS, "--starts", "0", "--order", "1", "--no-vmap")
    assert torch.equal(rng, torch.get_rng_state()) and path == sys.path
