"""What the docstring of every public name must hold: its parameters, an example, what it raises."""

import doctest
import importlib
import inspect
import re

import pytest

import implicit_solvers as ims

PROBLEMS = (
    "convex ernn ernn.baselines ernn.definition imaml projections qp "
    "reparameterization special_functions.beta special_functions.gamma "
    "special_functions.student_t special_functions.von_mises"
)
MODULES = ["implicit_solvers"]
OWN = ("nn", "testing", "testing.live_memory", "testing.strategies")
MODULES += [f"implicit_solvers.{name}" for name in OWN]
MODULES += [f"implicit_solvers.problems.{name}" for name in PROBLEMS.split()]
# type aliases, whose description stands below them in the source
ALIASES = {"definition.Phi", "imaml.Model", "imaml.Criterion", "imaml.Predictor"}


def public_names():
    for module in MODULES:
        package = importlib.import_module(module)
        for name in package.__all__:
            value, label = getattr(package, name), f"{module.rpartition('.')[2]}.{name}"
            if callable(value) and label not in ALIASES:
                yield label, value


NAMES = dict(public_names())


def sections(value):
    """Split a docstring into its sections: of a title, what is written below its underline."""
    text = inspect.getdoc(value) or ""
    parts = re.split(r"^(\w[\w ]*)\n-+\n", "Summary\n-------\n" + text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def named(section):
    """Return the names that a section describes: those of its lines that are not indented."""
    heads = re.findall(r"^(\S.*)$", section, flags=re.MULTILINE)
    return [n.strip(" *") for head in heads for n in head.split(" : ")[0].split(",")]


def parameters(value):
    """Return the names of the arguments, and whether further ones are taken."""
    if inspect.isclass(value) and issubclass(value, Exception):
        return set(), True
    if getattr(value, "_is_protocol", False) or value is ims.LinearOperator:
        return set(), True
    try:
        given = inspect.signature(value).parameters.values()
    except ValueError:  # an enumeration has none
        return set(), True
    open_ended = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in given)
    return {p.name for p in given if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}, open_ended


@pytest.mark.parametrize("label", NAMES)
def test_parameters_are_those_of_the_signature(label):
    value = NAMES[label]
    if hasattr(value, "__members__"):
        return  # an enumeration
    found = sections(value)
    described = named(found.get("Parameters", "")) + named(found.get("Attributes", ""))
    wanted, open_ended = parameters(value)
    assert wanted <= set(described), f"not described: {wanted - set(described)}"
    if not open_ended:
        stale = set(named(found.get("Parameters", ""))) - wanted
        assert not stale, f"described, and no parameter: {stale}"
    for name in wanted:
        assert described.count(name) == 1, f"{name} is described {described.count(name)} times"


@pytest.mark.parametrize("label", NAMES)
def test_an_example(label):
    value = NAMES[label]
    if (inspect.isclass(value) and issubclass(value, Exception)) or label.endswith(".Auto"):
        return
    assert doctest.DocTestParser().get_examples(inspect.getdoc(value) or "")


@pytest.mark.parametrize("label", NAMES)
def test_what_is_raised_when_it_is_made_or_called_is_told(label):
    value = NAMES[label]
    if inspect.isclass(value):
        makers = [vars(value).get(name) for name in ("__init__", "__post_init__")]
        # those of a dataclass or a protocol are not written there
        written = [m for m in makers if inspect.isfunction(m) and m.__module__ == value.__module__]
        written = [m for m in written if m.__code__.co_filename == inspect.getsourcefile(value)]
        code = "".join(inspect.getsource(m) for m in written)
    else:
        code = inspect.getsource(value)
    raised = set(re.findall(r"^ +raise (\w+Error)\(", code, flags=re.MULTILINE))
    told = set(re.findall(r"\w+Error\b", inspect.getdoc(value) or ""))
    assert raised <= told, f"raised, and not told: {raised - told}"


def test_the_checks_reach_something():
    assert len(NAMES) > 150
    assert parameters(ims.Newton)[0] > {"rtol", "max_steps", "reuse"}
    assert named(sections(ims.root)["Parameters"])[:3] == ["fn", "z0", "args"]
